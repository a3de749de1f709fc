package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/atomicfile"
	"github.com/onnxq/onnxq/internal/demo"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
	"github.com/urfave/cli/v2"
)

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

func externalFlag() cli.Flag {
	return &cli.StringFlag{Name: "external-data", Value: "auto", Usage: "store weights in a second file: auto (above 2 GiB), always or never"}
}

func inPlaceFlag() cli.Flag {
	return &cli.BoolFlag{Name: "in-place", Usage: "allow the output to replace the input"}
}

func inPlaceHint(err error) error {
	if errors.Is(err, onnxfile.ErrInput) {
		return fmt.Errorf("%w; --in-place replaces it", err)
	}
	return err
}

func (e *env) quantizeCommand() *cli.Command {
	return &cli.Command{
		Name: "quantize", Usage: "quantize a model, the main job", ArgsUsage: "MODEL",
		Flags: flagList(outputFlag("the quantized model; - is stdout, and the table then goes to stderr"), dataFlags(), holdoutFlag(), []cli.Flag{
			&cli.StringSliceFlag{Name: "eval-data", Usage: "samples to measure the result on instead of held-out ones"},
			&cli.StringFlag{Name: "plan", Usage: "do what `FILE` says, as written by onnxq plan"},
			&cli.StringFlag{Name: "format", Value: "qdq", Usage: "qdq (QuantizeLinear and DequantizeLinear around operators) or qoperator (operators on codes, such as QLinearConv)"},
			&cli.StringFlag{Name: "table", Usage: "take ranges from `FILE`, as written by onnxq calibrate"},
			&cli.StringSliceFlag{Name: "algorithm", Usage: "accuracy passes that may be used, as a list with commas: " + strings.Join(algorithmNames(), ", "), DefaultText: "all, where they help"},
			&cli.Float64Flag{Name: "min-sqnr", Usage: "fail unless the worst output has at least `DB` of signal to noise"},
			&cli.Float64Flag{Name: "min-coverage", Usage: "fail unless this `PERCENT` of multiply-adds runs on 8-bit integers"},
			&cli.Float64Flag{Name: "max-drop", Usage: "fail if the number of --eval, or without it arg-max agreement, drops by more than `X`, such as 0.005; in mode weights, weights get as few of 2, 4 and 8 bits as keep this", DefaultText: "0.005 of --eval"},
			&cli.StringFlag{Name: "eval", Usage: "a `COMMAND` that gets the path of a model and prints a number, the metric to keep"},
			&cli.BoolFlag{Name: "eval-lower-is-better", Usage: "of the number that --eval prints less is better"},
			&cli.StringFlag{Name: "prefer", Value: "balanced", Usage: "what counts in mode auto: speed, size, or balanced (few bytes, and no slower than float)"},
			&cli.BoolFlag{Name: "keep-failed", Usage: "write the model even if a demand is not met"},
			externalFlag(), inPlaceFlag(),
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "list every node left float, every pass and every weight"},
		}, planFlags(), methodFlags(), binsFlag(), runFlags(), reportFlag(), jsonFlag(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			switch f := c.String("format"); f {
			case "qdq":
			case string(onnxq.QOperator):
				o.Format = onnxq.QOperator
			default:
				return usagef("--format %q is none of qdq, qoperator", f)
			}
			o.Progress = e.progress(c)
			out, err := output(c, "the quantized model")
			if err != nil {
				return err
			}
			var res *onnxq.Result
			if out == "-" {
				res, err = e.quantizeToStdout(c, a[0], o)
			} else {
				res, err = onnxq.Quantize(c.Context, a[0], out, o)
			}
			if res == nil {
				return inPlaceHint(err)
			}
			e.endProgress()
			printResult(e.table(c), a[0], out, res, c.Bool("verbose"))
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
	m, err := o.Load(in)
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
	if werr == nil && o.Report != "" {
		werr = res.WriteReport(o.Report, in, "stdout")
	}
	if werr != nil {
		return res, werr
	}
	return res, err
}

func printResult(w io.Writer, in, out string, r *onnxq.Result, verbose bool) {
	tw := columns(w)
	defer tw.Flush()
	row := func(k, format string, a ...any) { fmt.Fprintf(tw, "%s\t%s\n", k, fmt.Sprintf(format, a...)) }
	if out == "-" {
		out = "stdout"
	}
	row("model", "%s → %s", quoted(in), quoted(out))
	row("mode", "%s for %s", r.Mode, r.Target)
	row("nodes", "%d quantized of %d", r.Quantized, r.Nodes)
	if r.Quantized > 0 {
		row("multiply-adds", "%.1f %% on 8-bit integers", 100*r.Int8MACs)
	}
	if r.BytesIn > 0 {
		row("file", "%s → %s (%.3f)", human(r.BytesIn), human(r.BytesOut), float64(r.BytesOut)/float64(r.BytesIn))
	}
	if r.WeightBytesIn > 0 {
		row("weights", "%s → %s (%.3f)", human(r.WeightBytesIn), human(r.WeightBytesOut), float64(r.WeightBytesOut)/float64(r.WeightBytesIn))
	}
	if n := r.Stored(); n > 0 {
		row("", "%d weights of nodes that stay float are stored in fewer bits, and decoded when the runtime loads the model", n)
	}
	for _, o := range r.Outputs {
		text := "exact"
		if o.SQNR != nil && *o.SQNR == eval.Lost {
			text = "lost: not finite, or not zero as it has to be"
		} else if o.SQNR != nil {
			text = fmt.Sprintf("SQNR %.2f dB (an error of %.2g %%)", *o.SQNR, 100*math.Pow(10, -*o.SQNR/20))
		}
		if o.Cosine != nil {
			text += fmt.Sprintf(", cosine %.6f", *o.Cosine)
		}
		if o.Argmax != nil {
			text += fmt.Sprintf(", arg-max agrees on %.1f %%", 100**o.Argmax)
		}
		if o.Different > 0 {
			text += fmt.Sprintf(", %d elements differ", o.Different)
		}
		label := "output"
		if o.Picks {
			label = "picked by"
		}
		row(label, "%s: %s", strconv.Quote(o.Name), text)
	}
	if len(r.Outputs) > 0 {
		row("", "measured on %s", r.Measured)
	}
	if m := r.Metric; m != nil {
		row("metric", "%g, of the float model %g: a drop of %.3f %%", m.Quantized, m.Float, 100*m.Drop)
	}
	for _, n := range r.Notes {
		row("note", "%s", n)
	}
	if r.Plan.Empty() {
		text := "nothing can be quantized"
		if slices.ContainsFunc(r.Plan.Nodes, func(n qdq.NodePlan) bool { return n.How == qdq.Kept || n.Why == qdq.Integers }) {
			text = "the model is quantized already, and nothing else can be"
		}
		row("note", "%s: the output is the input, byte for byte", text)
	}
	printReasons(row, r, verbose)
	if verbose {
		for _, p := range r.Passes {
			row("pass", "%s: %d changes", p.Pass, p.Count)
		}
		for _, w := range r.Weights {
			row("weight", "%s (%s): %s → %s", quoted(w.Name), quoted(w.Op), human(w.BytesIn), human(w.BytesOut))
		}
	}
	row("time", "%.2f s, peak memory %s", r.Seconds, human(r.PeakRSS))
}

// printReasons groups the nodes left float by reason: first those that multiply,
// by how much. The others are named by operator alone, unless all is wanted.
func printReasons(row func(string, string, ...any), r *onnxq.Result, verbose bool) {
	type group struct {
		why   string
		macs  float64
		nodes []onnxq.FloatNode
	}
	var groups []*group
	byWhy := map[string]*group{}
	rest, ops := 0, map[string]int{}
	for _, f := range r.Float {
		if f.MACs == 0 && !verbose {
			if f.Why != "computes no real values" {
				rest++
				ops[f.Op]++
			}
			continue
		}
		g := byWhy[f.Why]
		if g == nil {
			g = &group{why: f.Why}
			byWhy[f.Why] = g
			groups = append(groups, g)
		}
		g.nodes, g.macs = append(g.nodes, f), g.macs+f.MACs
	}
	slices.SortStableFunc(groups, func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.macs, a.macs), cmp.Compare(len(b.nodes), len(a.nodes)))
	})
	most, names := 8, 2
	if verbose {
		most, names = len(groups), len(r.Float)
	}
	label := "left float"
	for i, g := range groups {
		if i == most {
			row("", "… and %d more reasons: see them with -v or --json", len(groups)-most)
			break
		}
		share := ""
		if g.macs > 0 {
			share = fmt.Sprintf(" with %.1f %% of the multiply-adds", 100*g.macs)
		}
		row(label, "%d%s: %s (%s)", len(g.nodes), share, quoted(g.why), sample(g.nodes, names))
		label = ""
	}
	if rest > 0 {
		row(label, "%d that multiply with no weights: %s; -v lists each with its reason", rest, frequent(ops, 6))
	}
}

// frequent lists the most frequent keys.
func frequent(count map[string]int, most int) string {
	keys := slices.SortedFunc(maps.Keys(count), func(a, b string) int {
		return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a, b))
	})
	var parts []string
	for _, k := range keys[:min(most, len(keys))] {
		parts = append(parts, fmt.Sprintf("%d %s", count[k], quoted(k)))
	}
	if len(keys) > most {
		parts = append(parts, "…")
	}
	return strings.Join(parts, ", ")
}

// shortened returns the end of a long name, which tells nodes apart.
func shortened(name string) string {
	const most = 48
	if r := []rune(name); len(r) > most {
		return "…" + string(r[len(r)-most+1:])
	}
	return name
}

// sample lists the first nodes by name.
func sample(nodes []onnxq.FloatNode, most int) string {
	var names []string
	for _, n := range nodes[:min(most, len(nodes))] {
		name := n.Node
		if n.Scope != graph.MainScope {
			name = n.Scope + "/" + name
		}
		if most < len(nodes) {
			name = shortened(name)
		}
		names = append(names, quoted(name))
	}
	s := strings.Join(names, ", ")
	if len(nodes) > most {
		s += ", …"
	}
	return s
}

func (e *env) calibrateCommand() *cli.Command {
	return &cli.Command{
		Name: "calibrate", Usage: "collect activation statistics", ArgsUsage: "MODEL",
		Flags: flagList(outputFlag("the table; - is stdout"), dataFlags(), holdoutFlag(), []cli.Flag{
			&cli.StringFlag{Name: "shard", Usage: "take part `I/N` of the samples, I from 0 to N-1"},
			&cli.BoolFlag{Name: "resume", Usage: "go on where an earlier run that was stopped left off (it keeps OUT.partial)"},
			&cli.StringFlag{Name: "plan", Usage: "observe what `FILE` wants, as written by onnxq plan"},
		}, planFlags(), binsFlag(), runFlags(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o := onnxq.CalibrateOptions{Resume: c.Bool("resume")}
			if o.Options, err = e.options(c); err != nil {
				return err
			}
			if o.Shard, o.Shards, err = parseShard(c.String("shard")); err != nil {
				return err
			}
			out, err := output(c, "the table")
			if err != nil {
				return err
			}
			if len(o.Data) == 0 {
				return usagef("calibrate: say with --data where the samples are; see onnxq calibrate --help")
			}
			o.Progress = e.progress(c)
			if out == "-" {
				out = ""
			}
			o.Note = e.note(c)
			t, err := onnxq.CalibrateFile(c.Context, a[0], out, o)
			if err != nil {
				return err
			}
			e.endProgress()
			if out == "" {
				return t.Encode(e.stdout)
			}
			w := e.table(c)
			fmt.Fprintf(w, "%d values of %d samples → %s\n", len(t.Values), len(t.Samples), quoted(out))
			return printGaps(w, t)
		},
		Subcommands: []*cli.Command{
			{
				Name: "merge", Usage: "join the tables of shards", ArgsUsage: "TABLE...",
				Flags: flagList(outputFlag("the joined table; - is stdout"), []cli.Flag{
					&cli.BoolFlag{Name: "partial", Usage: "write the table also if shards or samples are missing"},
				}, quietFlag()),
				Action: func(c *cli.Context) error {
					if c.NArg() == 0 {
						return usagef("calibrate merge: TABLE is missing; see onnxq calibrate merge --help")
					}
					out, err := output(c, "the joined table")
					if err != nil {
						return err
					}
					return e.merge(c, c.Args().Slice(), out)
				},
			},
			{
				Name: "diff", Usage: "which ranges moved, by how much", ArgsUsage: "BEFORE AFTER",
				Flags: flagList(methodFlags(), jsonFlag(), quietFlag()),
				Action: func(c *cli.Context) error {
					a, err := args(c, "BEFORE", "AFTER")
					if err != nil {
						return err
					}
					o, err := e.options(c)
					if err != nil {
						return err
					}
					return e.diff(c, a[0], a[1], o)
				},
			},
		},
	}
}

func (e *env) merge(c *cli.Context, paths []string, out string) error {
	var tables []*calibration.Table
	for _, path := range paths {
		t, err := readTable(path)
		if err != nil {
			return err
		}
		tables = append(tables, t)
	}
	t, err := calibration.Merge(tables...)
	if err != nil {
		var me *calibration.MergeError
		switch {
		case errors.As(err, &me) && me.Other >= 0:
			return usagef("calibrate merge: %s and %s %v", quoted(paths[me.Other]), quoted(paths[me.Table]), me.Err)
		case errors.As(err, &me):
			return usagef("calibrate merge: %s: %v", quoted(paths[me.Table]), me.Err)
		}
		return err
	}
	lacks := t.Lacks()
	if lacks != "" && !c.Bool("partial") {
		return usagef("calibrate merge: not complete: %s (--partial writes it as it is)", lacks)
	}
	if out == "-" {
		return t.Encode(e.stdout)
	}
	if err := t.Save(out); err != nil {
		return err
	}
	w := e.table(c)
	fmt.Fprintf(w, "%d values of %d samples → %s\n", len(t.Values), len(t.Samples), quoted(out))
	if lacks != "" {
		fmt.Fprintf(w, "not complete: %s\n", lacks)
	}
	return printGaps(w, t)
}

func (e *env) diff(c *cli.Context, before, after string, o onnxq.Options) error {
	a, err := readTable(before)
	if err != nil {
		return err
	}
	b, err := readTable(after)
	if err != nil {
		return err
	}
	method := o.Method
	if method == "" {
		method = calibration.Auto
	}
	type row struct {
		Tensor string      `json:"tensor"`
		Before *[2]float64 `json:"before"`
		After  *[2]float64 `json:"after"`
		Moved  float64     `json:"moved"`
	}
	bounds := func(r *quant.Range) *[2]float64 {
		if r == nil {
			return nil
		}
		return &[2]float64{r.Min, r.Max}
	}
	rows := []row{}
	for _, ch := range calibration.Diff(a, b, method, o.MethodOptions) {
		rows = append(rows, row{ch.Name, bounds(ch.A), bounds(ch.B), ch.Moved})
	}
	if path := c.String("json"); path != "" {
		if err := e.writeJSON(path, rows); err != nil {
			return err
		}
	}
	w := e.table(c)
	if len(rows) == 0 {
		_, err := fmt.Fprintf(w, "no range of the %d values moved\n", len(a.Values))
		return err
	}
	text := func(r *[2]float64) string {
		if r == nil {
			return "none"
		}
		return interval(r[0], r[1])
	}
	tw := columns(w)
	fmt.Fprintln(tw, "TENSOR\tBEFORE\tAFTER\tMOVED")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.2f %%\n", quoted(r.Tensor), text(r.Before), text(r.After), 100*r.Moved)
	}
	return tw.Flush()
}

// printGaps lists the values of which the samples tell nothing.
func printGaps(w io.Writer, t *calibration.Table) error {
	for _, gap := range []struct {
		text   string
		values []string
	}{
		{"no sample reached %d values, so what reads them stays float: %s\n", t.Unreached},
		{"%d values are zero in every sample, which gives them no range: %s\n", t.Zeros()},
	} {
		if len(gap.values) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(w, gap.text, len(gap.values), fewNames(gap.values)); err != nil {
			return err
		}
	}
	return nil
}

// fewNames lists names, the first of many.
func fewNames(names []string) string {
	const most = 8
	var list []string
	for _, n := range names[:min(most, len(names))] {
		list = append(list, quoted(shortened(n)))
	}
	if len(names) > most {
		list = append(list, "…")
	}
	return strings.Join(list, ", ")
}

// parseShard reads I/N; "" is 0/1.
func parseShard(s string) (shard, shards int, err error) {
	if s == "" {
		return 0, 1, nil
	}
	a, b, ok := strings.Cut(s, "/")
	i, err1 := strconv.Atoi(a)
	n, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || i < 0 || n < 1 || i >= n {
		return 0, 0, usagef("--shard %q is not I/N with I from 0 to N-1", s)
	}
	return i, n, nil
}

func (e *env) planCommand() *cli.Command {
	return &cli.Command{
		Name: "plan", Usage: "say what would be done to each node, and why", ArgsUsage: "MODEL",
		Flags: flagList(outputFlag("write the plan as JSON, to edit it and hand it back with --plan; - is stdout"), planFlags(), jsonFlag(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			if c.String("output") == "-" && c.String("json") == "-" {
				return usagef("plan: -o and --json both want stdout; one of them is enough")
			}
			m, err := o.Load(a[0])
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
			w := e.table(c)
			tw := columns(w)
			fmt.Fprintln(tw, "NODE\tOP\tDECISION\tWHY")
			for _, n := range plan.Nodes {
				name, decision := n.Node, string(n.How)
				if n.Scope != graph.MainScope {
					name = n.Scope + "/" + name
				}
				if !n.Quantized {
					decision = "float"
				}
				// The JSON has names whole.
				fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", quoted(shortened(name)), quoted(n.Op), decision, quoted(n.Why))
			}
			fmt.Fprintf(tw, "\n%d of %d nodes are quantized for %s\n", plan.Quantized(), len(plan.Nodes), plan.Target)
			return tw.Flush()
		},
	}
}

func (e *env) inspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "what is in a model", ArgsUsage: "MODEL",
		Flags: flagList([]cli.Flag{
			&cli.BoolFlag{Name: "cross-check", Usage: "decode the file with onnx-go as well and list differences"},
		}, jsonFlag(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			if c.Bool("cross-check") {
				if err := checkCrossCheck(); err != nil {
					return err
				}
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
			s := struct {
				*onnxq.Summary
				CrossCheck *crossCheckReport `json:"cross_check,omitempty"`
			}{Summary: onnxq.Inspect(m)}
			if c.Bool("cross-check") {
				if s.CrossCheck, err = crossCheck(a[0], m); err != nil {
					return err
				}
			}
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, s); err != nil {
					return err
				}
			}
			if err := s.Print(e.table(c)); err != nil || s.CrossCheck == nil {
				return err
			}
			if err := printCrossCheck(e.table(c), s.CrossCheck); err != nil {
				return err
			}
			return crossCheckError(a[0], s.CrossCheck)
		},
	}
}

func (e *env) prepareCommand() *cli.Command {
	return &cli.Command{
		Name: "prepare", Usage: "fold and fuse a model without quantizing it", ArgsUsage: "MODEL",
		Flags: flagList(outputFlag("the prepared model; - is stdout"), []cli.Flag{
			&cli.BoolFlag{Name: "list", Usage: "list the passes and what each needs"},
			&cli.IntFlag{Name: "opset", Usage: "operator set to lift to", DefaultText: "what per-channel quantization needs"},
			&cli.StringFlag{Name: "target", Value: "ort-cpu", Usage: "runtime to prepare for; see onnxq targets"},
			externalFlag(), inPlaceFlag(),
		}, jsonFlag(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			if c.Bool("list") {
				if _, err := args(c); err != nil {
					return err
				}
				return onnxq.PrintPasses(e.table(c))
			}
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			out, err := output(c, "the prepared model")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			var changes []passes.Change
			if out == "-" {
				changes, err = e.prepareToStdout(c, a[0], o)
			} else {
				changes, err = onnxq.PrepareFile(c.Context, a[0], out, o)
			}
			if err != nil {
				return inPlaceHint(err)
			}
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, changes); err != nil {
					return err
				}
			}
			tw := columns(e.table(c))
			fmt.Fprintln(tw, "PASS\tCHANGES")
			for _, ch := range changes {
				fmt.Fprintf(tw, "%s\t%d\n", ch.Pass, ch.Count)
			}
			return tw.Flush()
		},
	}
}

func (e *env) prepareToStdout(c *cli.Context, in string, o onnxq.Options) ([]passes.Change, error) {
	m, err := o.Load(in)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	p, changes, err := onnxq.PrepareOnly(c.Context, m, o)
	if err != nil {
		return nil, err
	}
	return changes, onnxfile.Write(c.Context, e.stdout, p)
}

func (e *env) runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "run a model on samples and store the outputs", ArgsUsage: "MODEL",
		Flags: flagList(outputFlag("the folder for the outputs"), []cli.Flag{
			&cli.StringFlag{Name: "format", Value: "pb", Usage: "pb (DIR/SAMPLE/output_J.pb) or npz (DIR/SAMPLE.npz)"},
		}, dataFlags(), runFlags(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			dir, err := output(c, "the folder of results")
			if err != nil {
				return err
			}
			if dir == "-" {
				return usagef("run: the results are files in a folder; give -o its name")
			}
			if len(o.Data) == 0 {
				return usagef("run: say with --data where the samples are; see onnxq run --help")
			}
			format := c.String("format")
			if format != "pb" && format != "npz" {
				return usagef("--format %q is none of pb, npz", format)
			}
			m, err := o.Load(a[0])
			if err != nil {
				return err
			}
			defer m.Close()
			if err := os.MkdirAll(dir, 0o777); err != nil {
				return err
			}
			o.Progress = e.progress(c)
			o.Note = e.note(c)
			n, err := onnxq.Run(c.Context, m, o, func(name string, outputs []ops.Data) error {
				return writeOutputs(dir, name, format, m, outputs)
			})
			if err != nil {
				return err
			}
			e.endProgress()
			_, err = fmt.Fprintf(e.table(c), "%d samples → %s\n", n, quoted(dir))
			return err
		},
	}
}

func (e *env) benchCommand() *cli.Command {
	return &cli.Command{
		Name: "bench", Usage: "measure how long runs of a model take, and which operators take it", ArgsUsage: "MODEL",
		Flags: flagList([]cli.Flag{
			&cli.IntFlag{Name: "runs", Usage: "measure `N` runs", DefaultText: "about two seconds of them"},
		}, dataFlags(), runFlags(), jsonFlag(), limitFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			a, err := args(c, "MODEL")
			if err != nil {
				return err
			}
			o, err := e.options(c)
			if err != nil {
				return err
			}
			runs := c.Int("runs")
			if runs < 0 || runs == 0 && c.IsSet("runs") {
				return usagef("--runs is %d, want at least 1", runs)
			}
			if len(o.Data) == 0 {
				o.Data = []string{"random:1"}
			}
			m, err := o.Load(a[0])
			if err != nil {
				return err
			}
			defer m.Close()
			o.Progress = e.progress(c)
			b, err := onnxq.Bench(c.Context, m, o, runs)
			if err != nil {
				return err
			}
			e.endProgress()
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, b); err != nil {
					return err
				}
			}
			w := e.table(c)
			name := b.Engine
			if b.Version != "" {
				name += " " + b.Version
			}
			fmt.Fprintf(w, "%s: %d runs: median %.3f ms, %.3f to %.3f; peak memory %.1f MB\n", name, b.Runs, b.MedianMS, b.MinMS, b.MaxMS, float64(b.PeakRSS)/1e6)
			t := columns(w)
			fmt.Fprintln(t, "operator\tcalls a run\tms a run\tshare\t")
			for i, op := range b.Ops {
				if i >= 20 {
					break
				}
				fmt.Fprintf(t, "%s\t%.4g\t%.3f\t%.1f %%\t\n", op.Op, op.Calls, op.MS, 100*op.Share)
			}
			return t.Flush()
		},
	}
}

func writeOutputs(dir, name, format string, m *graph.Model, outputs []ops.Data) error {
	if format == "npz" {
		return atomicfile.Write(filepath.Join(dir, name+".npz"), 0o666, func(w io.Writer) error {
			z := npy.NewWriter(w, false)
			for i, v := range m.Graph.Outputs() {
				t, ok := outputs[i].(*tensor.Tensor)
				if !ok || t.DType() == tensor.String {
					return usagef("--format npz: output %q is %v, which an array cannot hold: use --format pb", v.Name(), v.Type)
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
		b := onnxfile.EncodeDatum(datum(v.Name(), outputs[i], v.Type))
		err := atomicfile.Write(filepath.Join(folder, fmt.Sprintf("output_%d.pb", i)), 0o666, func(w io.Writer) error { _, err := w.Write(b); return err })
		if err != nil {
			return err
		}
	}
	return nil
}

// datum returns an output of a run in the form of its file.
func datum(name string, d ops.Data, t graph.Type) *onnxfile.Datum {
	var inner graph.Type
	if t.Inner != nil {
		inner = *t.Inner
	}
	switch d := d.(type) {
	case *tensor.Tensor:
		return &onnxfile.Datum{Name: name, Kind: graph.KindTensor, Tensor: d}
	case ops.Sequence:
		out := &onnxfile.Datum{Name: name, Kind: graph.KindSequence, Elem: inner.Kind}
		for _, x := range d {
			out.Items = append(out.Items, datum("", x, inner))
		}
		return out
	case *ops.Map:
		out := &onnxfile.Datum{Name: name, Kind: graph.KindMap, Keys: d.Keys, Elem: graph.KindTensor}
		for i := range d.Values.Len() {
			out.Items = append(out.Items, &onnxfile.Datum{Kind: graph.KindTensor, Tensor: d.Value(i)})
		}
		return out
	case *ops.Optional:
		out := &onnxfile.Datum{Name: name, Kind: graph.KindOptional, Elem: inner.Kind}
		if d.Elem != nil {
			out.Items = []*onnxfile.Datum{datum("", d.Elem, inner)}
		}
		return out
	}
	return &onnxfile.Datum{Name: name, Kind: graph.KindOptional, Elem: inner.Kind}
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
		Name: "targets", Usage: "list the runtimes to quantize for", Flags: flagList(jsonFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			if _, err := args(c); err != nil {
				return err
			}
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, targets.All()); err != nil {
					return err
				}
			}
			w := e.table(c)
			for _, t := range targets.All() {
				fmt.Fprintf(w, "%s: %s\n  activations %s, weights %s, opset %d to %d\n", t.Name, t.Title,
					strings.Join(t.Activations, " "), strings.Join(t.Weights, " "), t.PerTensorOpset, t.MaxOpset)
				for _, class := range targets.Classes() {
					var names []string
					for _, r := range t.Rules {
						if r.Class == class && !slices.Contains(names, r.Op) {
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
		Name: "ops", Usage: "list the operators that are understood", Flags: flagList(jsonFlag(), quietFlag()),
		Action: func(c *cli.Context) error {
			if _, err := args(c); err != nil {
				return err
			}
			type row struct {
				Domain   string `json:"domain"`
				Op       string `json:"op"`
				Since    int    `json:"since"`
				Flow     string `json:"flow"`
				Executes bool   `json:"executes"`
			}
			var rows []row
			for _, s := range ops.All() {
				rows = append(rows, row{s.Domain, s.Type, max(s.Since, 1), s.Flow.String(), s.Compile != nil})
			}
			slices.SortFunc(rows, func(a, b row) int {
				return strings.Compare(a.Domain+"\x00"+a.Op, b.Domain+"\x00"+b.Op)
			})
			if path := c.String("json"); path != "" {
				if err := e.writeJSON(path, rows); err != nil {
					return err
				}
			}
			tw := columns(e.table(c))
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
