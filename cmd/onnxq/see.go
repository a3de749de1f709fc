package main

import (
	"fmt"
	"io"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
	"github.com/urfave/cli/v2"
)

func (e *env) lintCommand() *cli.Command {
	return &cli.Command{
		Name: "lint", Usage: "say which groups of DequantizeLinear, operator and QuantizeLinear a runtime fuses, and why not the others", ArgsUsage: "MODEL",
		Flags: flagList([]cli.Flag{
			&cli.StringFlag{Name: "target", Value: "ort-cpu", Usage: "runtime to ask about; see onnxq targets"},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "list the groups that are fused as well"},
		}, jsonFlag(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			m, err := o.Load(a[0])
			if err != nil {
				return err
			}
			defer m.Close()
			r, err := onnxq.Lint(m, o)
			if err != nil {
				return err
			}
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, r); err != nil {
					return err
				}
			}
			return printLint(e.table(c), r, c.Bool("verbose"))
		},
	}
}

func printLint(w io.Writer, r *qdq.LintReport, verbose bool) error {
	if len(r.Groups) == 0 {
		if r.Nodes > 0 {
			fmt.Fprintf(w, "%d nodes compute on integers as they stand; there is nothing to fuse\n", r.Nodes)
		} else {
			fmt.Fprintln(w, "the model holds no DequantizeLinear: there is nothing to fuse")
		}
		return nil
	}
	tw := columns(w)
	if verbose || r.Float > 0 {
		fmt.Fprintln(tw, "NODE\tOP\tBECOMES\tWHY NOT AN INTEGER KERNEL")
	}
	for _, g := range r.Groups {
		if g.Fused && !verbose {
			continue
		}
		name, kernel := g.Node, g.Kernel
		if g.Scope != graph.MainScope {
			name = g.Scope + "/" + name
		}
		if !g.Fused {
			kernel = "float"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", quoted(shortened(name)), quoted(g.Op), quoted(kernel), quoted(g.Why))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if verbose || r.Float > 0 {
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%s fuses %d of %d groups", r.Target, r.Fused, len(r.Groups))
	if r.Nodes > 0 {
		fmt.Fprintf(w, "; %d more nodes compute on integers as they stand", r.Nodes)
	}
	fmt.Fprintln(w)
	var bytes int64
	for _, d := range r.Decoded {
		bytes += d.Bytes
	}
	if len(r.Decoded) > 0 {
		fmt.Fprintf(w, "%d constants (%s) are dequantized at every inference, since float nodes read them\n", len(r.Decoded), human(bytes))
	}
	return nil
}

func (e *env) compareCommand() *cli.Command {
	return &cli.Command{
		Name: "compare", Usage: "say how a quantized model differs from the float one, value by value, and which nodes the error comes from", ArgsUsage: "FLOAT QUANT",
		Flags: flagList([]cli.Flag{
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "list all values and nodes"},
		}, dataFlags(), runFlags(), reportFlag(), jsonFlag(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "FLOAT", "QUANT")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			if len(o.Data) == 0 {
				return usagef("compare: say with --data where the samples are; see onnxq compare --help")
			}
			ref, err := o.Load(a[0])
			if err != nil {
				return err
			}
			defer ref.Close()
			got, err := o.Load(a[1])
			if err != nil {
				return err
			}
			defer got.Close()
			o.Progress, o.Note = e.progress(c), e.note(c)
			d, err := onnxq.Diff(c.Context, ref, got, o)
			if err != nil {
				return err
			}
			e.endProgress()
			if o.Report != "" {
				if err := d.WriteReport(o.Report, a[0], a[1]); err != nil {
					return err
				}
			}
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, d); err != nil {
					return err
				}
			}
			return printDifference(e.table(c), d, c.Bool("verbose"))
		},
	}
}

// most is the number of rows that tables show without -v.
const most = 12

func optional(format string, x *float64) string {
	if x == nil {
		return "–"
	}
	return fmt.Sprintf(format, *x)
}

func printDifference(w io.Writer, d *onnxq.Difference, verbose bool) error {
	tw := columns(w)
	fmt.Fprintln(tw, "OUTPUT\tSQNR dB\tCOSINE\tARG-MAX AGREES\tKL")
	for _, o := range d.Outputs {
		name := quoted(o.Name)
		if o.Picks {
			name = "picked by " + name
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", name, eval.Decibel(o.SQNR), optional("%.6f", o.Cosine), optional("%.4f", o.Argmax), optional("%.4f", o.KL))
	}
	nodes := d.Nodes
	if !verbose {
		nodes = nodes[:min(most, len(nodes))]
	}
	if len(nodes) > 0 {
		fmt.Fprintln(tw, "\nWHERE THE ERROR IS BORN\tOP\tSHARE\tINPUT dB\tADDS dB\tOUTPUT dB")
		for _, n := range nodes {
			fmt.Fprintf(tw, "%s\t%s\t%.1f %%\t%s\t%s\t%s\n", quoted(shortened(n.Node)), quoted(n.Op), 100*n.Share, eval.Decibel(n.In), eval.Decibel(n.Added), eval.Decibel(n.Out))
		}
		if len(nodes) < len(d.Nodes) {
			fmt.Fprintf(tw, "… and %d more nodes: see them with -v or --json\n", len(d.Nodes)-len(nodes))
		}
	}
	if len(d.Values) > 0 {
		fmt.Fprintln(tw, "\nALONG THE NETWORK\tOP\tSQNR dB\tCOSINE\t")
		values := d.Values
		for i, v := range values {
			// Without -v, as many as show the course.
			if step := max(1, len(values)/most); !verbose && i%step != 0 && i != len(values)-1 {
				continue
			}
			name := v.Name
			if v.Scope != graph.MainScope {
				name = v.Scope + "/" + name
			}
			op, note := v.Op, ""
			if op == "" {
				op = "input"
			}
			if v.Rescaled {
				note = "rescaled channels"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", quoted(shortened(name)), quoted(op), eval.Decibel(v.SQNR), optional("%.6f", v.Cosine), note)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%d samples; %d values found in both models, %d in the float one alone; %.2f s\n", d.Samples, len(d.Values), d.Unmatched, d.Seconds)
	return nil
}
