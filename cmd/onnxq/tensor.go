package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
	"github.com/urfave/cli/v2"
)

func (e *env) tensorCommand() *cli.Command {
	return &cli.Command{
		Name: "tensor", Usage: "quantize one tensor in several ways and compare them", ArgsUsage: "FILE.npy|MODEL.onnx:NAME",
		Flags: flagList([]cli.Flag{
			&cli.IntFlag{Name: "bits", Usage: "integers of so many bits: 2, 3, 4 or 8", DefaultText: "as --weights says"},
			&cli.IntFlag{Name: "axis", Value: -1, Usage: "the axis that blocks run along; the others have scales of their own"},
			&cli.StringFlag{Name: "grid", Usage: "one of `GRID` in place of --weights, for inspection: " + strings.Join(quant.Grids(), ", "), DefaultText: "as --weights says"},
			&cli.StringFlag{Name: "ranges", Usage: "with --grid dimension:B: the least and the greatest value of each place of a line, `FILE.npy` of the shape (2, dim)", DefaultText: "those of the tensor"},
			&cli.IntFlag{Name: "threads", Usage: "threads to use", DefaultText: "one per processor"},
			&cli.StringSliceFlag{Name: "algorithm", Usage: "how scales are found: none, clip, hqq or kquant", DefaultText: "none"},
		}, weightFlags(), jsonFlag(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "FILE.npy|MODEL.onnx:NAME")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			if c.IsSet("bits") && c.Int("bits") == 0 {
				return usagef("--bits cannot be 0")
			}
			t, done, err := openTensor(a[0], o)
			if err != nil {
				return err
			}
			defer done()
			var r *onnxq.TensorResult
			if c.IsSet("grid") {
				r, err = gridTensor(c, t, o)
			} else if c.IsSet("ranges") {
				err = usagef("--ranges goes with --grid dimension:B")
			} else {
				r, err = onnxq.QuantizeTensor(c.Context, t, c.Int("axis"), c.Int("bits"), o)
			}
			if err != nil {
				return err
			}
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, r); err != nil {
					return err
				}
			}
			return e.printTensor(c, r)
		},
	}
}

// gridTensor puts t on the grid of --grid.
func gridTensor(c *cli.Context, t *tensor.Tensor, o onnxq.Options) (*onnxq.TensorResult, error) {
	for _, other := range []string{"bits", "weights", "weight-zero", "scale-type", "algorithm", "power-of-two"} {
		if c.IsSet(other) {
			return nil, usagef("--grid takes the place of --%s", other)
		}
	}
	g, err := quant.ParseGrid(c.String("grid"))
	if err != nil {
		return nil, usagef("--grid: %v", err)
	}
	var ranges *tensor.Tensor
	if path := c.String("ranges"); path != "" {
		var done func()
		if ranges, done, err = openTensor(path, o); err != nil {
			return nil, err
		}
		defer done()
	}
	return onnxq.GridTensor(t, c.Int("axis"), g, ranges, o)
}

// openTensor reads FILE.npy, or the constant NAME of MODEL.onnx:NAME, which is
// divided at the first colon behind the longest prefix that is a file. done
// closes what the tensor lies in.
func openTensor(arg string, o onnxq.Options) (t *tensor.Tensor, done func(), err error) {
	for at := len(arg); at > 0; at = strings.LastIndexByte(arg[:at], ':') {
		info, err := os.Stat(arg[:at])
		if err != nil || info.IsDir() {
			continue
		}
		if at == len(arg) {
			f, err := os.Open(arg)
			if err != nil {
				return nil, nil, err
			}
			defer f.Close()
			array, err := npy.Open(f, info.Size())
			if err == nil {
				t, err = array.Tensor()
			}
			if err != nil {
				return nil, nil, usagef("%s: %v; of a model, one tensor is MODEL.onnx:NAME", arg, err)
			}
			return t, func() {}, nil
		}
		name := arg[at+1:]
		m, err := o.Load(arg[:at])
		if err != nil {
			return nil, nil, err
		}
		var names []string
		for g := range m.Scopes() {
			for _, v := range g.Initializers() {
				if v.Name() == name && v.Const != nil {
					return v.Const, func() { m.Close() }, nil
				}
				names = append(names, v.Name())
			}
			for n := range g.Nodes() {
				if v := n.Output(0); n.Op.Type == "Constant" && v != nil && v.Name() == name && n.Attr("value") != nil && n.Attr("value").T != nil {
					return n.Attr("value").T, func() { m.Close() }, nil
				}
			}
		}
		m.Close()
		if len(names) == 0 {
			return nil, nil, usagef("%s has no constant tensor %q, nor another one", arg[:at], name)
		}
		return nil, nil, usagef("%s has no constant tensor %q, but %s", arg[:at], name, fewNames(names))
	}
	_, err = os.Stat(arg)
	if err == nil {
		err = usagef("%s is no file", arg)
	}
	return nil, nil, err
}

// shown bounds the lines and elements of a line that are printed.
const shown = 12

func (e *env) printTensor(c *cli.Context, r *onnxq.TensorResult) error {
	w := e.table(c)
	fmt.Fprintf(w, "%s%s, %s along axis %d: %.3f bits a weight, SSE %.6g, SQNR %.2f dB, greatest error %.4g\n",
		r.DType, tensor.ShapeString(r.Shape), r.Chosen.Scheme, r.Axis, r.Chosen.Bits, r.Chosen.SSE, r.Chosen.SQNR, r.Chosen.Max)
	tw := columns(w)
	fmt.Fprintln(tw, "LINE\tSCALES\tZEROS\tCODES\tVALUES\tERRORS")
	for i := range min(len(r.Codes), shown) {
		var scales []float32
		var zeros []int32
		if i < len(r.Scales) {
			scales = r.Scales[i]
		}
		if i < len(r.Zeros) {
			zeros = r.Zeros[i]
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\t%s\n", i, few(scales, "%.7g"), few(zeros, "%d"), few(r.Codes[i], "%d"), few(r.Values[i], "%.5g"), few(r.Errors[i], "%.2g"))
	}
	if n := len(r.Codes) - shown; n > 0 {
		fmt.Fprintf(tw, "… and %d more lines: see --json\n", n)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	most := 1
	for _, h := range r.Counts {
		most = max(most, h.Count)
	}
	tw = columns(w)
	fmt.Fprintln(tw, "\nFROM\tTO\tCOUNT")
	for _, h := range r.Counts {
		fmt.Fprintf(tw, "%.4g\t%.4g\t%d\t%s\n", h.From, h.To, h.Count, strings.Repeat("█", (h.Count*30+most-1)/most))
	}
	fmt.Fprintln(tw, "\nSCHEME\tBITS\tSSE\tSQNR\tGREATEST ERROR")
	for _, s := range r.Others {
		fmt.Fprintf(tw, "%s\t%.3f\t%.6g\t%.2f dB\t%.4g\n", s.Scheme, s.Bits, s.SSE, s.SQNR, s.Max)
	}
	return tw.Flush()
}

// few formats the first elements of a list.
func few[T any](list []T, format string) string {
	var b strings.Builder
	for i, x := range list {
		if i == shown {
			return b.String() + " …"
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, format, x)
	}
	return b.String()
}
