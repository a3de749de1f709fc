// Package demo does the main job on the sample models.
package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/models"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Run quantizes every sample model, evaluates the float and the quantized
// model on test data with the embedded executor, and prints a table. Models
// and data are left in dir; "" is a temporary folder that is removed.
func Run(ctx context.Context, w io.Writer, dir string) error {
	keep := dir != ""
	if !keep {
		var err error
		if dir, err = os.MkdirTemp("", "onnxq-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	fmt.Fprintln(w, "Quantizing two small models that are inside this program, and scoring them on data they have not seen:")
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "MODEL\tFILE\tMETRIC\tFLOAT\tQUANTIZED\tCHANGE\tOUTPUT SQNR\tTIME")
	for _, s := range models.All() {
		folder := filepath.Join(dir, s.Name)
		in, out := filepath.Join(folder, "model.onnx"), filepath.Join(folder, "model.int8.onnx")
		if err := unpack(s, folder, in); err != nil {
			return err
		}
		res, err := onnxq.Quantize(ctx, in, out, onnxq.Options{Data: []string{filepath.Join(folder, "calib")}})
		if err != nil {
			return err
		}
		var value [2]float64
		for i, path := range []string{in, out} {
			if value[i], err = evaluate(ctx, s, path, filepath.Join(folder, "eval")); err != nil {
				return err
			}
		}
		db := "exact"
		if res.SQNR != nil {
			db = fmt.Sprintf("%.1f dB", *res.SQNR)
		}
		fmt.Fprintf(tw, "%s\t%.0f kB → %.0f kB\t%s, %s\t%.4f\t%.4f\t%+.2f %%\t%s\t%.1f s\n", s.Name, float64(res.BytesIn)/1e3, float64(res.BytesOut)/1e3,
			s.Metric, better(s.Metric), value[0], value[1], 100*(value[1]-value[0])/value[0], db, res.Seconds)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, s := range models.All() {
		fmt.Fprintf(w, "%s: %s\n        data: %s\n", s.Name, s.Title, s.Source)
	}
	fmt.Fprintln(w)
	if keep {
		fmt.Fprintf(w, "Models, samples and results are in %s.\n", strconv.Quote(dir))
	}
	_, err := fmt.Fprintln(w, "Now yours: onnxq quantize model.onnx -o model.int8.onnx --data SAMPLES")
	return err
}

func better(m models.Metric) string {
	if m.LowerIsBetter() {
		return "lower is better"
	}
	return "higher is better"
}

func unpack(s models.Sample, folder, model string) error {
	for name, from := range map[string]fs.FS{"calib": s.Calib, "eval": s.Eval} {
		to := filepath.Join(folder, name)
		if err := os.MkdirAll(to, 0o777); err != nil {
			return err
		}
		entries, err := fs.ReadDir(from, ".")
		if err != nil {
			return err
		}
		for _, e := range entries {
			b, err := fs.ReadFile(from, e.Name())
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(to, e.Name()), b, 0o666); err != nil {
				return err
			}
		}
	}
	if old, err := os.ReadFile(model); err == nil && bytes.Equal(old, s.Model) {
		return nil
	}
	return os.WriteFile(model, s.Model, 0o666)
}

func evaluate(ctx context.Context, s models.Sample, path, data string) (float64, error) {
	m, err := onnxq.Load(path)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	return Score(ctx, s, m, data)
}

// Score runs the test samples in the folder data through m, which computes
// what the sample's model does, and returns its metric.
func Score(ctx context.Context, s models.Sample, m *graph.Model, data string) (float64, error) {
	var outputs [][]float32
	_, err := onnxq.Run(ctx, m, onnxq.Options{Data: []string{data}}, func(_ string, out []ops.Data) error {
		outputs = append(outputs, tensor.As[float32](out[0].(*tensor.Tensor)))
		return nil
	})
	if err != nil {
		return 0, err
	}
	return s.Score(outputs)
}
