package main

import (
	"fmt"
	"io"

	"github.com/onnxq/onnxq"
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
