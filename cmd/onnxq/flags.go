package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/calibration/images"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/exec/ort"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/atomicfile"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/urfave/cli/v2"
)

// env is what commands talk to.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	bar            progress
}

func flagList(groups ...[]cli.Flag) []cli.Flag {
	var out []cli.Flag
	for _, g := range groups {
		out = append(out, g...)
	}
	return out
}

func outputFlag(what string) []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: what}}
}

// quietFlag is that of every command that prints a table.
func quietFlag() []cli.Flag {
	return []cli.Flag{&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing but errors"}}
}

func jsonFlag() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "json", Usage: "also write the result as JSON to `FILE`; - is stdout, which then carries nothing else"}}
}

func reportFlag() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "report", Usage: "also describe the result in `FILE.html`, a page that needs no network"}}
}

func dataFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "data", Usage: "sample inputs: a folder or file of npz, npy, images, jsonl, safetensors or test_data_set_*, - for npz on stdin, or random:N; may be repeated"},
		&cli.IntFlag{Name: "samples", Usage: "use `N` of the samples (rows with --batched, else files), spread evenly; the first ones with --state", DefaultText: "all"},
		&cli.StringSliceFlag{Name: "state", Usage: "feed an output back as input of the next sample of a file, from zeros on: `INPUT=OUTPUT`; may be repeated"},
		&cli.BoolFlag{Name: "batched", Usage: "cut the arrays of a file along axis 0 into samples"},
		&cli.StringFlag{Name: "image", Usage: "how images become inputs, such as resize=256,crop=224,mean=127,std=128,layout=nchw,color=rgb"},
		&cli.BoolFlag{Name: "cast", Usage: "convert samples of another element type"},
		&cli.IntFlag{Name: "skip-bad-samples", Usage: "leave out up to `N` samples that cannot be used"},
		&cli.Uint64Flag{Name: "seed", Usage: "start of random values"},
	}
}

func runFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "threads", Usage: "threads to use", DefaultText: "one per processor"},
		&cli.StringFlag{Name: "max-memory", Usage: "bound on the memory of the whole process, such as 500MiB; not with --engine ort"},
		&cli.StringFlag{Name: "engine", Value: "embedded", Usage: "what runs models: embedded, or ort (ONNX Runtime, from a library on this machine)"},
		&cli.BoolFlag{Name: "saturate", Usage: "let the embedded engine compute products of u8 and i8 as ONNX Runtime does on x86 processors without VNNI, where sums of two saturate at 16 bits"},
		&cli.StringFlag{Name: "ort-lib", Usage: "the library of --engine ort", DefaultText: "ONNXQ_ORT_LIB, or the one in the usual places"},
	}
}

func methodFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "method", Value: "auto", Usage: "how ranges follow from samples: " + strings.Join(methodNames(), ", ") + "; auto is per tensor, and by measuring where samples allow it"},
		&cli.Float64Flag{Name: "percentile", Value: 99.999, Usage: "share of values, in percent, that --method percentile keeps"},
		&cli.Float64Flag{Name: "norm", Value: 2.4, Usage: "power of differences that --method lp adds up"},
	}
}

func limitFlag() []cli.Flag {
	return []cli.Flag{&cli.StringSliceFlag{Name: "limit", Usage: "what a model file may ask for, and the nodes that a sample may take (steps), `NAME=N` with one of " + strings.Join(limitNames(), ", ") + "; may be repeated"},
		&cli.StringSliceFlag{Name: "custom-domain", Usage: "keep operators of the domain `NAME`, which the runtime gets from a library of its own, as they are; may be repeated"}}
}

// limitFields returns the limits of o by name.
func limitFields(o *onnxq.Options) map[string]any {
	l := &o.Limits
	return map[string]any{"steps": &o.MaxSteps, "depth": &l.Depth, "rank": &l.Rank, "nodes": &l.Nodes, "objects": &l.Objects, "files": &l.Files, "memory": &l.Memory}
}

func limitNames() []string { return slices.Sorted(maps.Keys(limitFields(&onnxq.Options{}))) }

// parseLimit reads NAME=N into o.
func parseLimit(s string, o *onnxq.Options) error {
	name, text, _ := strings.Cut(s, "=")
	n, err := parseBytes(text)
	if err != nil || n < 1 || n > 1<<40 {
		return usagef("--limit %q is not NAME=N with a positive number", s)
	}
	switch f := limitFields(o)[name].(type) {
	case *int:
		*f = int(min(n, math.MaxInt32))
	case *int64:
		*f = n
	default:
		return usagef("--limit %q: the name is none of %s", s, strings.Join(limitNames(), ", "))
	}
	return nil
}

func binsFlag() []cli.Flag {
	return []cli.Flag{&cli.IntFlag{Name: "bins", Value: calibration.DefaultBins, Usage: "histogram bins on each side of 0"}}
}

func holdoutFlag() []cli.Flag {
	return []cli.Flag{&cli.IntFlag{Name: "holdout", Usage: "keep the last `N` samples for measuring", DefaultText: "a tenth"}}
}

// weightFlags say how weights are stored.
func weightFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "weights", DefaultText: "the target's first, such as i8", Usage: "storage type of weights: i8 (symmetric) or u8 (asymmetric), i4 where the target's integer kernels read it; with --mode weights, which the others imply: " + strings.Join(quant.Storages(), ", ")},
		&cli.StringFlag{Name: "weight-zero", Value: string(quant.Symmetric), Usage: "zero points of weights in --mode weights: symmetric (narrow range), full or asymmetric"},
		&cli.StringFlag{Name: "scale-type", Value: "f32", Usage: "type of the scales of weights in --mode weights: f32, f16 or bf16"},
		&cli.Float64Flag{Name: "bits-per-weight", Usage: "spread `X` bits a weight, scales included, over the weights: 2, 4 or 8 by the error that this saves; implies --mode weights", DefaultText: "the same for all"},
		&cli.StringFlag{Name: "granularity", DefaultText: "channel; block:32 for weights of at most 4 bits", Usage: "scales of weights: tensor, channel or, in --mode weights, block:N"},
	}
}

func planFlags() []cli.Flag {
	return append(weightFlags(), []cli.Flag{
		&cli.StringFlag{Name: "mode", Value: "auto", Usage: strings.Join(modeNames, ", ") + "; auto without samples is weights"},
		&cli.StringFlag{Name: "target", Value: "ort-cpu", Usage: "runtime to quantize for: `NAME|FILE`; see onnxq targets, and docs/targets.md for files"},
		&cli.StringFlag{Name: "activations", DefaultText: "the target's first, such as u8", Usage: "storage type of activations: " + strings.Join(activationNames, ", ") + " (none: as --mode weights)"},
		&cli.BoolFlag{Name: "power-of-two", Usage: "make scales powers of two"},
		&cli.BoolFlag{Name: "reduce-range", Usage: "use one bit less of weights, for processors whose 16-bit sums of products saturate"},
		&cli.BoolFlag{Name: "per-token", Usage: "with --mode dynamic, a scale for each row of the inputs of products"},
		&cli.BoolFlag{Name: "symmetric-activations", Usage: "keep the zero point of activations at the middle of the codes"},
		&cli.StringSliceFlag{Name: "range", Usage: "fixed range of a tensor: `NAME=MIN:MAX`; may be repeated"},
		&cli.StringSliceFlag{Name: "include", Usage: "quantize only nodes that match `GLOB` (or op:TYPE); may be repeated"},
		&cli.StringSliceFlag{Name: "exclude", Usage: "leave nodes that match `GLOB` (or op:TYPE) float; may be repeated"},
		&cli.IntFlag{Name: "opset", Usage: "operator set of the result", DefaultText: "lowest that serves"},
	}...)
}

// Values of --mode and --activations.
var (
	modeNames       = []string{"auto", "static", "dynamic", "weights", "float16"}
	activationNames = []string{"u8", "i8", "u16", "i16", "f8e4m3", onnxq.NoActivations}
)

// options reads the flags that a command has; those it lacks are at their
// defaults.
func (e *env) options(c *cli.Context) (onnxq.Options, error) {
	o := onnxq.Options{
		Data:                 c.StringSlice("data"),
		EvalData:             c.StringSlice("eval-data"),
		Samples:              c.Int("samples"),
		Include:              c.StringSlice("include"),
		Exclude:              c.StringSlice("exclude"),
		Activations:          c.String("activations"),
		Weights:              c.String("weights"),
		SymmetricActivations: c.Bool("symmetric-activations"),
		PerToken:             c.Bool("per-token"),
		PowerOfTwo:           c.Bool("power-of-two"),
		ReduceRange:          c.Bool("reduce-range"),
		Opset:                c.Int("opset"),
		Report:               c.String("report"),
		InPlace:              c.Bool("in-place"),
		Eval:                 c.String("eval"),
		EvalLowerIsBetter:    c.Bool("eval-lower-is-better"),
		KeepFailed:           c.Bool("keep-failed"),
		Threads:              c.Int("threads"),
		Bins:                 c.Int("bins"),
		Source: calibration.Options{
			Batched: c.Bool("batched"), Cast: c.Bool("cast"), Image: c.String("image"),
			Seed: c.Uint64("seed"), SkipBad: c.Int("skip-bad-samples"), Stdin: e.stdin,
		},
	}
	for _, name := range []string{"samples", "threads", "skip-bad-samples", "holdout", "opset", "bins"} {
		least := 0
		if c.IsSet(name) && (name == "samples" || name == "opset" || name == "bins") {
			least = 1
		}
		if n := c.Int(name); n < least {
			return o, usagef("--%s cannot be %d, want at least %d", name, n, least)
		}
	}
	bound(o.Threads)
	if o.Bins > calibration.MaxBins {
		return o, usagef("--bins is %d, want at most %d", o.Bins, calibration.MaxBins)
	}
	if r := o.Source.Image; r != "" {
		if _, err := images.ParseRecipe(r); err != nil {
			return o, usagef("--image: %v", err)
		}
	}
	o.Domains = c.StringSlice("custom-domain")
	for _, s := range c.StringSlice("limit") {
		if err := parseLimit(s, &o); err != nil {
			return o, err
		}
	}
	for _, s := range c.StringSlice("state") {
		f, ok := parseState(s)
		if !ok {
			return o, usagef("--state %q is not INPUT=OUTPUT", s)
		}
		o.State = append(o.State, f)
	}
	if c.IsSet("holdout") {
		n := c.Int("holdout")
		o.Holdout = &n
	}
	var err error
	if name := c.String("target"); name != "" {
		if o.Target, err = targets.Load(name); err != nil {
			return o, usagef("--target: %v", err)
		}
	}
	switch m := c.String("mode"); m {
	case "", "auto":
	default:
		if !slices.Contains(modeNames, m) {
			return o, usagef("--mode %q is none of %s", m, strings.Join(modeNames, ", "))
		}
		o.Mode = onnxq.Mode(m)
	}
	switch p := c.String("prefer"); p {
	case "", "balanced":
	case "speed", "size":
		o.Prefer = onnxq.Prefer(p)
	default:
		return o, usagef("--prefer %q is none of speed, size, balanced", p)
	}
	if m := c.String("method"); m != "" {
		if m != "auto" {
			if o.Method, err = calibration.ParseMethod(m); err != nil {
				return o, usagef("--method: %v", err)
			}
		}
		p := c.Float64("percentile")
		if c.IsSet("percentile") && o.Method != calibration.Percentile {
			return o, usagef("--percentile goes with --method percentile, not %s", m)
		}
		if !(p > 50 && p <= 100) {
			return o, usagef("--percentile is %v, want more than 50 and at most 100", p)
		}
		o.MethodOptions.Percentile = p
		norm := c.Float64("norm")
		if c.IsSet("norm") && o.Method != calibration.Lp {
			return o, usagef("--norm goes with --method lp, not %s", m)
		}
		if !(norm > 0 && norm <= 100) {
			return o, usagef("--norm is %v, want above 0 and at most 100", norm)
		}
		o.MethodOptions.Norm = norm
	}
	o.WeightZero, o.ScaleType = c.String("weight-zero"), c.String("scale-type")
	if _, err := quant.ParseZeros(o.WeightZero); err != nil {
		return o, usagef("--weight-zero: %v", err)
	}
	if _, err := quant.ParseScale(o.ScaleType); err != nil {
		return o, usagef("--scale-type: %v", err)
	}
	if c.IsSet("bits-per-weight") {
		if o.BitsPerWeight = c.Float64("bits-per-weight"); !(o.BitsPerWeight > 0 && o.BitsPerWeight <= 16) {
			return o, usagef("--bits-per-weight is %v, want more than 0 and at most 16", o.BitsPerWeight)
		}
	}
	if o.Block, o.PerTensor, err = parseGranularity(c.String("granularity")); err != nil {
		return o, err
	}
	if v := c.String("activations"); v != "" && !slices.Contains(activationNames, v) {
		return o, usagef("--activations %q is none of %s", v, strings.Join(activationNames, ", "))
	}
	if v := c.String("weights"); v != "" {
		if _, err := quant.ParseStorage(v); err != nil {
			return o, usagef("--weights: %v", err)
		}
	}
	for _, r := range c.StringSlice("range") {
		name, lo, hi, err := parseRange(r)
		if err != nil {
			return o, err
		}
		if o.Ranges == nil {
			o.Ranges = map[string][2]float64{}
		}
		o.Ranges[name] = [2]float64{lo, hi}
	}
	switch x := c.String("external-data"); x {
	case "", "auto":
	case "always":
		o.External = onnxfile.ExternalAlways
	case "never":
		o.External = onnxfile.ExternalNever
	default:
		return o, usagef("--external-data %q is none of auto, always, never", x)
	}
	if a := c.StringSlice("algorithm"); len(a) > 0 {
		if o.Algorithms, err = parseAlgorithms(a); err != nil {
			return o, err
		}
	}
	for _, d := range []struct {
		name   string
		to     **float64
		lo, hi float64
	}{
		{"min-sqnr", &o.MinSQNR, -1000, 1000},
		{"min-coverage", &o.MinCoverage, 0, 100},
		{"max-drop", &o.MaxDrop, 0, 1},
	} {
		if c.IsSet(d.name) {
			v := c.Float64(d.name)
			if !(v >= d.lo && v <= d.hi) {
				return o, usagef("--%s is %v, want %v to %v", d.name, v, d.lo, d.hi)
			}
			*d.to = &v
		}
	}
	if o.MaxMemory, err = parseBytes(c.String("max-memory")); err != nil {
		return o, usagef("--max-memory: %v", err)
	}
	if o.Engine, err = engine(c, &o); err != nil {
		return o, err
	}
	if path := c.String("plan"); path != "" {
		if o.Plan, err = readPlan(path); err != nil {
			return o, err
		}
	}
	if path := c.String("table"); path != "" {
		if o.Table, err = readTable(path); err != nil {
			return o, err
		}
	}
	return o, nil
}

// engineNames are the values of --engine.
func engineNames() []string { return []string{exec.Embedded{}.Name(), ort.Name} }

// engine returns what --engine names.
func engine(c *cli.Context, o *onnxq.Options) (exec.Engine, error) {
	switch name := c.String("engine"); {
	case name == ort.Name:
	case name != "" && !slices.Contains(engineNames(), name):
		return nil, usagef("--engine %q is none of %s", name, strings.Join(engineNames(), ", "))
	case c.IsSet("ort-lib"):
		return nil, usagef("--ort-lib goes with --engine %s", ort.Name)
	default:
		return exec.Embedded{Saturate: c.Bool("saturate")}, nil
	}
	if c.Bool("saturate") {
		return nil, usagef("--saturate is for --engine %s: ONNX Runtime does what the processor does", exec.Embedded{}.Name())
	}
	if o.MaxMemory > 0 || o.MaxSteps > 0 {
		return nil, usagef("--max-memory and --limit steps bound the embedded executor only, not --engine %s", ort.Name)
	}
	e, err := ort.Open(ort.Options{Library: c.String("ort-lib")})
	if err != nil {
		return nil, usagef("--engine %s: %v", ort.Name, err)
	}
	return e, nil
}

func methodNames() []string {
	var names []string
	for _, m := range calibration.Methods() {
		names = append(names, string(m))
	}
	return names
}

// parseState reads INPUT=OUTPUT, divided at the first sign.
func parseState(s string) (calibration.Feedback, bool) {
	in, out, ok := strings.Cut(s, "=")
	return calibration.Feedback{Input: in, Output: out}, ok && in != "" && out != ""
}

func algorithmNames() []string {
	names := []string{"none"}
	for _, a := range onnxq.Algorithms() {
		names = append(names, string(a))
	}
	return names
}

// parseAlgorithms reads the comma list of --algorithm.
func parseAlgorithms(values []string) ([]onnxq.Algorithm, error) {
	out := []onnxq.Algorithm{}
	for _, v := range values {
		for _, name := range strings.Split(v, ",") {
			switch {
			case !slices.Contains(algorithmNames(), name):
				return nil, usagef("--algorithm %q is none of %s", name, strings.Join(algorithmNames(), ", "))
			case name != "none":
				out = append(out, onnxq.Algorithm(name))
			}
		}
	}
	return out, nil
}

// maxBlock is the largest block size that can be asked for.
const maxBlock = 1 << 20

// parseGranularity reads tensor, channel or block:N; "" leaves it open.
func parseGranularity(s string) (block int, perTensor bool, err error) {
	switch s {
	case "":
		return 0, false, nil
	case "tensor":
		return 0, true, nil
	case "channel":
		return onnxq.WholeChannels, false, nil
	}
	text, ok := strings.CutPrefix(s, "block:")
	n, err := strconv.Atoi(text)
	if !ok || err != nil || n < 1 || n > maxBlock {
		return 0, false, usagef("--granularity %q is none of tensor, channel, block:N with N from 1 to %d", s, maxBlock)
	}
	return n, false, nil
}

func parseRange(s string) (name string, lo, hi float64, err error) {
	at := strings.LastIndexByte(s, '=')
	if at > 0 {
		a, b, ok := strings.Cut(s[at+1:], ":")
		if ok {
			x, err1 := strconv.ParseFloat(a, 64)
			y, err2 := strconv.ParseFloat(b, 64)
			if err1 == nil && err2 == nil && x <= y {
				return s[:at], x, y, nil
			}
		}
	}
	return "", 0, 0, usagef("--range %q is not NAME=MIN:MAX, with MIN not above MAX", s)
}

// parseBytes reads a size such as 500MiB, 2GB or 1000000; "" is 0.
func parseBytes(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits := strings.TrimRight(s, "KMGTiBkb")
	n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	unit, ok := map[string]float64{
		"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
		"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
	}[strings.ToUpper(s[len(digits):])]
	if err != nil || !ok || n < 0 || n*unit > 1<<60 {
		return 0, usagef("%q is not a size such as 500MiB", s)
	}
	return int64(n * unit), nil
}

func readPlan(path string) (*qdq.Plan, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := qdq.ReadPlan(f)
	if err != nil {
		return nil, usagef("%s: %v", path, err)
	}
	return p, nil
}

// readTable reads a calibration table; bad contents are an error of usage.
func readTable(path string) (*calibration.Table, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	t, err := calibration.Load(path)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, usageError{err.Error()}
	}
	return t, err
}

// checkOutputs reports why a file that is written at the end could not be.
func checkOutputs(c *cli.Context) error {
	for _, flag := range []string{"json", "report"} {
		if path := c.String(flag); path != "" && path != "-" {
			if err := atomicfile.Check(path); err != nil {
				return fmt.Errorf("--%s: %w", flag, err)
			}
		}
	}
	return nil
}

// args returns the positional arguments, one for each of the names.
func args(c *cli.Context, names ...string) ([]string, error) {
	got := c.Args().Slice()
	name := commandName(c)
	switch {
	case len(got) == len(names):
		return got, checkOutputs(c)
	case len(got) < len(names):
		return nil, usagef("%s: %s is missing; see onnxq %[1]s --help", name, names[len(got)])
	case len(names) == 0:
		return nil, usagef("%s takes no arguments, but there is %q", name, got[0])
	}
	var subcommands []string
	for _, s := range c.Command.Subcommands {
		subcommands = append(subcommands, s.Name)
	}
	if like := meant(got[0], subcommands); like != "" {
		return nil, usagef("%s has no command %q%s; see onnxq %[1]s --help", name, got[0], like)
	}
	hint := "see onnxq " + name + " --help"
	if slices.ContainsFunc(c.Command.Flags, func(f cli.Flag) bool { return f.Names()[0] == "data" }) {
		hint = "samples are given with --data, the result with -o"
	}
	return nil, usagef("%s takes only %s, but there is also %q; %s", name, strings.Join(names, " and "), got[len(names)], hint)
}

// commandName returns the words that chose the command.
func commandName(c *cli.Context) string {
	return strings.TrimPrefix(c.Command.HelpName, "onnxq ")
}

// output returns the value of -o, which has to be there.
func output(c *cli.Context, what string) (string, error) {
	o := c.String("output")
	if o == "" {
		return "", usagef("%s: say with -o where %s goes; see onnxq %[1]s --help", commandName(c), what)
	}
	if o == "-" && c.String("json") == "-" {
		return "", usagef("stdout can carry the result or the JSON, not both")
	}
	return o, nil
}

func human(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.2f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}
