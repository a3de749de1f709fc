package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/atomicfile"
	"github.com/onnxq/onnxq/internal/demo"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// progress returns a callback that draws a bar on stderr if that is a
// terminal, once a stage has taken a second.
func (e *env) progress(c *cli.Context) func(stage string, done, total int) {
	f, ok := e.stderr.(*os.File)
	if c.Bool("quiet") || !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	var bar *progressbar.ProgressBar
	var current string
	var began time.Time
	return func(stage string, done, total int) {
		if stage != current {
			current, began, bar = stage, time.Now(), nil
		}
		if bar == nil && time.Since(began) > time.Second && done < total {
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(stage),
				progressbar.OptionShowIts(), progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
		}
		if bar != nil {
			_ = bar.Set(done)
		}
	}
}

// writeJSON writes v to a file, or to stdout for "-".
func (e *env) writeJSON(path string, v any) error {
	write := func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", " ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	if path == "-" {
		return write(e.stdout)
	}
	return atomicfile.Write(path, 0o666, write)
}

// table returns where a command prints its table.
func (e *env) table(c *cli.Context) io.Writer {
	switch {
	case c.Bool("quiet") || c.String("json") == "-":
		return io.Discard
	case c.String("output") == "-":
		return e.stderr
	}
	return e.stdout
}

func (e *env) quantizeCommand() *cli.Command {
	return &cli.Command{
		Name: "quantize", Usage: "quantize a model, the main job", ArgsUsage: "MODEL",
		Flags: flagList(outputFlag("the quantized model; - is stdout"), dataFlags(), holdoutFlag(), []cli.Flag{
			&cli.StringSliceFlag{Name: "eval-data", Usage: "samples to measure the result on instead of held-out ones"},
			&cli.StringFlag{Name: "plan", Usage: "do what `FILE` says, as written by onnxq plan"},
			&cli.StringFlag{Name: "table", Usage: "take ranges from `FILE`, as written by onnxq calibrate"},
			&cli.StringSliceFlag{Name: "algorithm", Usage: "accuracy passes that may be used: none, equalize, bias-correction", DefaultText: "all, where they help"},
			&cli.Float64Flag{Name: "min-sqnr", Usage: "fail unless the worst output has at least `DB` of signal to noise"},
			&cli.Float64Flag{Name: "min-coverage", Usage: "fail unless this `PERCENT` of multiply-adds runs on 8-bit integers"},
			&cli.Float64Flag{Name: "max-drop", Usage: "fail if arg-max agreement drops by more than `X`, such as 0.005"},
			&cli.BoolFlag{Name: "keep-failed", Usage: "write the model even if a demand is not met"},
			&cli.StringFlag{Name: "external-data", Value: "auto", Usage: "store weights in a second file: auto (above 2 GiB), always or never"},
			&cli.BoolFlag{Name: "in-place", Usage: "allow the output to replace the input"},
		}, planFlags(), methodFlags(), runFlags(), jsonFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			o.Progress = e.progress(c)
			out := c.String("output")
			var res *onnxq.Result
			if out == "-" {
				res, err = e.quantizeToStdout(c, a[0], o)
			} else {
				res, err = onnxq.Quantize(c.Context, a[0], out, o)
			}
			if res == nil {
				return err
			}
			printResult(e.table(c), a[0], out, res)
			if path := c.String("json"); path != "" {
				if jerr := e.writeJSON(path, res); jerr != nil && err == nil {
					err = jerr
				}
			}
			return err
		},
	}
}

func (e *env) quantizeToStdout(c *cli.Context, in string, o onnxq.Options) (*onnxq.Result, error) {
	if c.String("json") == "-" {
		return nil, usagef("stdout can carry the model or the JSON, not both")
	}
	m, err := onnxq.Load(in)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	q, res, err := onnxq.QuantizeModel(c.Context, m, o)
	if res == nil || err != nil && !o.KeepFailed {
		return res, err
	}
	werr := onnxfile.Write(c.Context, e.stdout, q)
	res.BytesOut = onnxfile.Size(q)
	if info, serr := os.Stat(in); serr == nil {
		res.BytesIn = info.Size()
	}
	if werr != nil {
		return res, werr
	}
	return res, err
}

func printResult(w io.Writer, in, out string, r *onnxq.Result) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer tw.Flush()
	row := func(k, format string, a ...any) { fmt.Fprintf(tw, "%s\t%s\n", k, fmt.Sprintf(format, a...)) }
	row("model", "%s → %s", in, out)
	row("mode", "%s for %s", r.Mode, r.Target)
	row("nodes", "%d quantized of %d", r.Quantized, r.Nodes)
	row("multiply-adds", "%.1f %% on 8-bit integers", 100*r.Int8MACs)
	if r.BytesIn > 0 {
		row("file", "%s → %s (%.3f)", human(r.BytesIn), human(r.BytesOut), float64(r.BytesOut)/float64(r.BytesIn))
	}
	if r.WeightBytesIn > 0 {
		row("weights", "%s → %s (%.3f)", human(r.WeightBytesIn), human(r.WeightBytesOut), float64(r.WeightBytesOut)/float64(r.WeightBytesIn))
	}
	for _, o := range r.Outputs {
		text := "exact"
		if o.SQNR != nil {
			text = fmt.Sprintf("SQNR %.2f dB", *o.SQNR)
		}
		if o.Cosine != nil {
			text += fmt.Sprintf(", cosine %.6f", *o.Cosine)
		}
		if o.Argmax != nil {
			text += fmt.Sprintf(", arg-max agrees on %.4f", *o.Argmax)
		}
		if o.Different > 0 {
			text += fmt.Sprintf(", %d elements differ", o.Different)
		}
		row("output", "%s: %s", strconv.Quote(o.Name), text)
	}
	if len(r.Outputs) > 0 {
		row("", "measured on %s", r.Measured)
	}
	for _, n := range r.Notes {
		row("note", "%s", n)
	}
	if r.Quantized == 0 {
		row("note", "nothing can be quantized: the output is the input, byte for byte")
	}
	printReasons(row, r)
	row("time", "%.2f s, peak memory %s", r.Seconds, human(r.PeakRSS))
}

// printReasons groups the nodes left float by reason, the most frequent first.
func printReasons(row func(string, string, ...any), r *onnxq.Result) {
	type group struct {
		why   string
		nodes []onnxq.FloatNode
	}
	var groups []*group
	byWhy := map[string]*group{}
	for _, f := range r.Float {
		if f.Why == "computes no real values" {
			continue
		}
		g := byWhy[f.Why]
		if g == nil {
			g = &group{why: f.Why}
			byWhy[f.Why] = g
			groups = append(groups, g)
		}
		g.nodes = append(g.nodes, f)
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return len(b.nodes) - len(a.nodes) })
	const most = 8
	for i, g := range groups {
		if i == most {
			row("", "… and %d more reasons; see --json", len(groups)-most)
			return
		}
		label := ""
		if i == 0 {
			label = "left float"
		}
		row(label, "%d: %s (%s)", len(g.nodes), g.why, sample(g.nodes))
	}
}

func sample(nodes []onnxq.FloatNode) string {
	var names []string
	for _, n := range nodes[:min(2, len(nodes))] {
		names = append(names, strconv.Quote(n.Node))
	}
	s := strings.Join(names, ", ")
	if len(nodes) > 2 {
		s += ", …"
	}
	return s
}

func (e *env) calibrateCommand() *cli.Command {
	return &cli.Command{
		Name: "calibrate", Usage: "collect activation statistics", ArgsUsage: "MODEL",
		Flags: flagList(outputFlag("the table"), dataFlags(), holdoutFlag(), []cli.Flag{
			&cli.StringFlag{Name: "shard", Usage: "take part `I/N` of the samples, I from 0 to N-1"},
			&cli.StringFlag{Name: "plan", Usage: "observe what `FILE` wants, as written by onnxq plan"},
		}, planFlags(), runFlags()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			shard, err := parseShard(c.String("shard"))
			if err != nil {
				return err
			}
			if len(o.Data) == 0 {
				return usagef("calibrate needs --data")
			}
			o.Progress = e.progress(c)
			t, err := onnxq.CalibrateFile(c.Context, a[0], shard, o)
			if err != nil {
				return err
			}
			if err := t.Save(c.String("output")); err != nil {
				return err
			}
			fmt.Fprintf(e.table(c), "%d values of %d samples → %s\n", len(t.Values), len(t.Samples), c.String("output"))
			return nil
		},
		Subcommands: []*cli.Command{
			{
				Name: "merge", Usage: "join the tables of shards", ArgsUsage: "TABLE...", Flags: outputFlag("the joined table"),
				Action: func(c *cli.Context) error {
					if c.NArg() == 0 {
						return usagef("calibrate merge takes tables; see onnxq calibrate merge --help")
					}
					var tables []*calibration.Table
					for _, path := range c.Args().Slice() {
						t, err := calibration.Load(path)
						if err != nil {
							return err
						}
						tables = append(tables, t)
					}
					t, err := calibration.Merge(tables...)
					if err != nil {
						return usagef("calibrate merge: %v", err)
					}
					return t.Save(c.String("output"))
				},
			},
			{
				Name: "diff", Usage: "which ranges moved, by how much", ArgsUsage: "A B",
				Action: func(c *cli.Context) error {
					a, err := args(c, "A", "B")
					if err != nil {
						return err
					}
					return e.diff(a[0], a[1])
				},
			},
		},
	}
}

func (e *env) diff(before, after string) error {
	a, err := calibration.Load(before)
	if err != nil {
		return err
	}
	b, err := calibration.Load(after)
	if err != nil {
		return err
	}
	tw := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TENSOR\tBEFORE\tAFTER\tMOVED")
	for _, ch := range calibration.Diff(a, b, calibration.MinMax, calibration.MethodOptions{}) {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.2f %%\n", quoted(ch.Name), interval(ch.A), interval(ch.B), 100*ch.Moved)
	}
	return tw.Flush()
}

func interval(r *quant.Range) string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("%.6g … %.6g", r.Min, r.Max)
}

func parseShard(s string) ([2]int, error) {
	if s == "" {
		return [2]int{0, 1}, nil
	}
	a, b, ok := strings.Cut(s, "/")
	i, err1 := strconv.Atoi(a)
	n, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || i < 0 || n < 1 || i >= n {
		return [2]int{}, usagef("--shard %q is not I/N with I from 0 to N-1", s)
	}
	return [2]int{i, n}, nil
}

func (e *env) planCommand() *cli.Command {
	return &cli.Command{
		Name: "plan", Usage: "say what would be done to each node, and why", ArgsUsage: "MODEL",
		Flags: flagList([]cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the plan as JSON, to edit it and hand it back with --plan"}}, planFlags(), jsonFlag(),
			[]cli.Flag{&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing but errors"}}),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			m, err := onnxq.Load(a[0])
			if err != nil {
				return err
			}
			defer m.Close()
			p, _, err := onnxq.Prepare(c.Context, m, o)
			if err != nil {
				return err
			}
			plan, err := onnxq.MakePlan(p, o)
			if err != nil {
				return err
			}
			for _, path := range []string{c.String("output"), c.String("json")} {
				if path == "" {
					continue
				}
				if err := e.writeJSON(path, plan); err != nil {
					return err
				}
			}
			tw := tabwriter.NewWriter(e.table(c), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "NODE\tOP\tDECISION\tWHY")
			for _, n := range plan.Nodes {
				name, decision := n.Node, string(n.How)
				if n.Scope != graph.MainScope {
					name = n.Scope + "/" + name
				}
				if !n.Quantized {
					decision = "float"
				}
				fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", quoted(name), quoted(n.Op), decision, n.Why)
			}
			return tw.Flush()
		},
	}
}

// quoted returns s, with what a terminal could misread escaped.
func quoted(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

func (e *env) inspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "what is in a model", ArgsUsage: "MODEL", Flags: jsonFlag(),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			m, err := onnxq.Load(a[0])
			if err != nil {
				return err
			}
			defer m.Close()
			s := onnxq.Inspect(m)
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, s); err != nil {
					return err
				}
			}
			return s.Print(e.table(c))
		},
	}
}

func (e *env) prepareCommand() *cli.Command {
	return &cli.Command{
		Name: "prepare", Usage: "fold and fuse a model without quantizing it", ArgsUsage: "MODEL",
		Flags: flagList([]cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "the prepared model"},
			&cli.BoolFlag{Name: "list", Usage: "list the passes and what each needs"},
			&cli.IntFlag{Name: "opset", Usage: "operator set to lift to", DefaultText: "what per-channel quantization needs"},
			&cli.BoolFlag{Name: "in-place", Usage: "allow the output to replace the input"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing but errors"}}, jsonFlag()),
		Action: func(c *cli.Context) error {
			if c.Bool("list") {
				return onnxq.PrintPasses(e.stdout)
			}
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			if c.String("output") == "" {
				return usagef("prepare needs -o OUT")
			}
			changes, err := onnxq.PrepareFile(c.Context, a[0], c.String("output"), onnxq.Options{Opset: c.Int("opset"), InPlace: c.Bool("in-place")})
			if err != nil {
				return err
			}
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, changes); err != nil {
					return err
				}
			}
			tw := tabwriter.NewWriter(e.table(c), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "PASS\tCHANGES")
			for _, ch := range changes {
				fmt.Fprintf(tw, "%s\t%d\n", ch.Pass, ch.Count)
			}
			return tw.Flush()
		},
	}
}

func (e *env) runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "run a model on samples and store the outputs", ArgsUsage: "MODEL",
		Flags: flagList([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "the folder for the outputs", Required: true},
			&cli.StringFlag{Name: "format", Value: "pb", Usage: "pb (DIR/SAMPLE/output_J.pb) or npz (DIR/SAMPLE.npz)"},
		}, dataFlags(), runFlags()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			if len(o.Data) == 0 {
				return usagef("run needs --data")
			}
			format := c.String("format")
			if format != "pb" && format != "npz" {
				return usagef("--format %q is none of pb, npz", format)
			}
			m, err := onnxq.Load(a[0])
			if err != nil {
				return err
			}
			defer m.Close()
			dir := c.String("output")
			if err := os.MkdirAll(dir, 0o777); err != nil {
				return err
			}
			o.Progress = e.progress(c)
			n, err := onnxq.Run(c.Context, m, o, func(name string, outputs []ops.Data) error {
				return writeOutputs(dir, name, format, m, outputs)
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(e.table(c), "%d samples → %s\n", n, dir)
			return nil
		},
	}
}

func writeOutputs(dir, name, format string, m *graph.Model, outputs []ops.Data) error {
	if format == "npz" {
		return atomicfile.Write(filepath.Join(dir, name+".npz"), 0o666, func(w io.Writer) error {
			z := npy.NewWriter(w, false)
			for i, v := range m.Graph.Outputs() {
				t, ok := outputs[i].(*tensor.Tensor)
				if !ok {
					return fmt.Errorf("output %q is no tensor: use --format pb", v.Name())
				}
				if err := z.Add(v.Name(), t); err != nil {
					return err
				}
			}
			return z.Close()
		})
	}
	folder := filepath.Join(dir, name)
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	for i, v := range m.Graph.Outputs() {
		t, ok := outputs[i].(*tensor.Tensor)
		if !ok {
			return fmt.Errorf("output %q is no tensor", v.Name())
		}
		b := onnxfile.EncodeTensor(v.Name(), t)
		err := atomicfile.Write(filepath.Join(folder, fmt.Sprintf("output_%d.pb", i)), 0o666, func(w io.Writer) error { _, err := w.Write(b); return err })
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *env) demoCommand() *cli.Command {
	return &cli.Command{
		Name: "demo", Usage: "quantize the models inside this program and compare their accuracy",
		Flags: []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "also write models, samples and results to this `FOLDER`"}},
		Action: func(c *cli.Context) error {
			if _, err := args(c); err != nil {
				return err
			}
			return demo.Run(c.Context, e.stdout, c.String("output"))
		},
	}
}

func (e *env) targetsCommand() *cli.Command {
	return &cli.Command{
		Name: "targets", Usage: "list the runtimes to quantize for", Flags: jsonFlag(),
		Action: func(c *cli.Context) error {
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, targets.All()); err != nil {
					return err
				}
			}
			w := e.table(c)
			for _, t := range targets.All() {
				fmt.Fprintf(w, "%s: %s\n  activations %s, weights %s, opset %d to %d\n", t.Name, t.Title,
					strings.Join(t.Activations, " "), strings.Join(t.Weights, " "), t.PerTensorOpset, t.MaxOpset)
				for _, class := range []targets.Class{targets.Anchor, targets.Bridge, targets.Carry, targets.Table} {
					var names []string
					for _, r := range t.Rules {
						if r.Class == class {
							names = append(names, r.Op)
						}
					}
					fmt.Fprintf(w, "  %-7s %s\n", class, strings.Join(names, " "))
				}
				for _, s := range t.Sources {
					fmt.Fprintf(w, "  source  %s\n", s)
				}
			}
			return nil
		},
	}
}

func (e *env) opsCommand() *cli.Command {
	return &cli.Command{
		Name: "ops", Usage: "list the operators that are understood", Flags: jsonFlag(),
		Action: func(c *cli.Context) error {
			type row struct {
				Domain   string `json:"domain"`
				Op       string `json:"op"`
				Since    int    `json:"since"`
				Flow     string `json:"flow"`
				Executes bool   `json:"executes"`
			}
			var rows []row
			for _, s := range ops.All() {
				rows = append(rows, row{s.Domain, s.Type, s.Since, s.Flow.String(), s.Compile != nil})
			}
			slices.SortFunc(rows, func(a, b row) int {
				return strings.Compare(a.Domain+"\x00"+a.Op, b.Domain+"\x00"+b.Op)
			})
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, rows); err != nil {
					return err
				}
			}
			tw := tabwriter.NewWriter(e.table(c), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "OPERATOR\tFROM OPSET\tVALUES\tRUNS")
			for _, r := range rows {
				runs := "yes"
				if !r.Executes {
					runs = "no"
				}
				fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", graph.OpKey{Domain: r.Domain, Type: r.Op}, r.Since, r.Flow, runs)
			}
			return tw.Flush()
		},
	}
}
