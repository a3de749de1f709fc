// Package onnxq quantizes ONNX models: a float model and sample inputs go in,
// a model with QuantizeLinear/DequantizeLinear comes out that is about a
// quarter of the size and that ONNX Runtime runs on integers.
//
// Quantize does the whole job from file to file, QuantizeModel in memory. The
// stages can be called one by one: Load, Prepare, MakePlan and Calibrate; then
// QuantizeModel with the plan and the table as Options.Plan and Options.Table,
// and Compare.
package onnxq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/job"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
	"github.com/onnxq/onnxq/validate"
)

// Mode is what a quantized model computes with.
type Mode string

// Modes.
const (
	// Auto is Static where that holds up: parts whose quantization costs too
	// much accuracy stay float, with weights as in Weights. Without samples and
	// without a table of ranges it is Weights.
	Auto Mode = ""
	// Static computes on integers with ranges known beforehand.
	Static Mode = "static"
	// Dynamic computes products on integers with ranges found at each run, where
	// the target has kernels for that, and else is Weights.
	Dynamic Mode = "dynamic"
	// Float16 computes in 16-bit floats, float16 or, with Weights "bf16",
	// bfloat16, but for nodes that need more; see qdq.FullPrecision. With samples,
	// nodes whose values leave float16 stay float32. Inputs and outputs of the
	// model keep their types.
	Float16 Mode = "float16"
	// Weights computes in float with weights stored in fewer bits, which the
	// runtime decodes once, when it loads the model.
	Weights Mode = "weights"
)

// Prefer is what counts most in mode Auto.
type Prefer string

// Preferences.
const (
	// Balanced wants few bytes, and a model that is not slower than float.
	Balanced Prefer = ""
	// Speed leaves float what integers are not clearly estimated to make faster,
	// and weights in 16 bits where 8 cost accuracy.
	Speed Prefer = "speed"
	// Size stores every weight in few bits and leaves no node float for its speed.
	Size Prefer = "size"
)

// Format is how integer kernels stand in the model.
type Format string

// Formats.
const (
	// QDQ: as float operators between DequantizeLinear and QuantizeLinear.
	QDQ Format = ""
	// QOperator: as operators on codes, such as QLinearConv, those of ONNX
	// Runtime's domain com.microsoft among them. What the runtime would not fuse
	// stays as in QDQ.
	QOperator Format = "qoperator"
)

// Algorithm is an accuracy pass.
type Algorithm string

// Accuracy passes; see package passes/accuracy.
const (
	Equalize       Algorithm = "equalize"
	Smooth         Algorithm = "smooth"
	BiasCorrection Algorithm = "bias-correction"
	Round          Algorithm = "round"
	Clip           Algorithm = "clip"
	Split          Algorithm = "split"
	// Those of weights in blocks, beside Clip.
	HQQ    Algorithm = "hqq"
	KQuant Algorithm = "kquant"
	GPTQ   Algorithm = "gptq"
	// AWQ is used only if it is named: behind GPTQ it gains little.
	AWQ Algorithm = "awq"
)

// Algorithms returns the accuracy passes that there are.
func Algorithms() []Algorithm {
	return []Algorithm{Equalize, Smooth, BiasCorrection, Round, Clip, Split, HQQ, KQuant, GPTQ, AWQ}
}

// Options say how a model is quantized. The zero value is the default of every
// field. Their JSON form leaves out what lives in this process alone.
type Options struct {
	Mode   Mode
	Target *targets.Target // nil: ort-cpu

	// Data names the calibration samples; see package calibration. EvalData
	// names samples to measure the result on; without it the last tenth of
	// Data is held out for that.
	Data, EvalData []string
	Samples        int  // number of samples of Data to use, spread evenly; 0: all
	Holdout        *int // number of samples of Data to hold out; nil: a tenth
	Source         calibration.Options
	// State lists outputs that are fed back as inputs of the next sample of
	// the same file, from zeros at its start. Samples then takes the first ones.
	State []calibration.Feedback

	Method        calibration.Method // how ranges follow from statistics; "": what is measured to be best, or Auto
	MethodOptions calibration.MethodOptions
	Bins          int // histogram bins on each side of 0; 0: calibration.DefaultBins

	// Activations is the storage type of activations: u8 (default), i8, u16, i16,
	// f8e4m3 where the target has it, with weights alike, or none: then Mode is Weights.
	Activations string
	// Weights is the storage type of weights: i8 (default), u8 or, where the kernels
	// of Target read it, i4; in mode Weights any that quant.Storages lists.
	Weights string
	// Block is the number of elements that share a scale, in mode Weights: 0 is
	// 32 for types of at most 4 bits and else one scale for each output channel,
	// WholeChannels the latter for all types.
	Block      int
	WeightZero string // zero points in blocks: quant.Symmetric (default), quant.Full or quant.Asymmetric
	ScaleType  string // of scales in mode Weights: f32 (default), f16 or bf16
	// BitsPerWeight, if not 0, spreads so many bits a weight, scales included,
	// over the weights: each gets 2, 4 or 8 by the error that this saves.
	BitsPerWeight float64
	// PerToken gives each row of the inputs of products a scale of its own, in mode
	// Dynamic: rows of unlike magnitude then keep their precision, for some more time.
	// Without it this is done where MinSQNR or MaxDrop are not kept otherwise.
	PerToken bool
	// SymmetricActivations puts the zero point of activations at the middle of
	// the codes.
	SymmetricActivations bool
	PowerOfTwo           bool // scales are powers of two
	ReduceRange          bool // weights use one bit less
	PerTensor            bool // one scale per weight tensor instead of one per output channel
	// Algorithms are the accuracy passes that may be used; nil means all but AWQ.
	// Each is used only where it lowers the error on calibration samples.
	Algorithms []Algorithm

	// Include and Exclude are globs over node names, or op:TYPE. With Include only
	// those nodes are quantized, and what moves codes between them; Exclude wins.
	Include, Exclude []string
	// Ranges fixes the range, least and greatest value, of tensors by name, in
	// place of the calibrated one.
	Ranges map[string][2]float64

	Plan *qdq.Plan // instead of making one
	// Table holds statistics of the calibration samples, collected before.
	// Without Data as well, nothing can be measured: ranges are by Method or
	// min-max, and passes that need samples are left out.
	Table *calibration.Table `json:"-"`

	Format   Format
	Opset    int               // operator set of the result; 0: the lowest that serves
	External onnxfile.External // where weights are stored
	InPlace  bool              // allow the output to replace the input

	// Prefer says what counts where it is a choice between bytes and speed.
	Prefer Prefer

	MinSQNR     *float64 // in dB, of the worst output
	MinCoverage *float64 // percent of multiply-adds on integers
	// MaxDrop is the relative loss that is allowed: of the number that Eval
	// prints or, without Eval, of arg-max agreement. In mode Weights each weight
	// then gets as few bits, of 2, 4 and 8 and at least those of Weights, as this
	// and MinSQNR allow.
	MaxDrop *float64
	// Eval is a command that gets the path of a model as its last argument and
	// prints a number, the metric to keep; it runs on the float model and on
	// files of candidates. More is better unless EvalLowerIsBetter.
	Eval              string
	EvalLowerIsBetter bool
	KeepFailed        bool // write the output even if a demand is not met

	// Report is the HTML file that Quantize describes the result in; "": none.
	// The samples that the outputs are compared on then run once more, to compare
	// all values along the network.
	Report string

	// Limits bound what the model file may ask for.
	Limits onnxfile.Limits
	// Domains are those of custom operators, which are kept as they are.
	Domains []string

	// Engine runs models: nil stands for the embedded executor, which keeps
	// MaxBytes and MaxSteps; see package exec/ort for another.
	Engine  exec.Engine `json:"-"`
	Threads int         // that work at a time, whatever on; 0: one per processor
	// Runner, if given, does what can be divided among processes: calibration, in
	// Parts parts of the samples (0: 16), the measuring of candidates that do not
	// depend on each other, and the rounding of weights by their effect on
	// samples, in Parts groups of layers. Results are those of a single process, as far
	// as all processors are of the same kind. Whoever does the tasks, by Worker,
	// needs the files of Data under the same names, and those that tasks name,
	// which are put in folders in Work ("": the system's for temporary files).
	// It goes with the embedded executor.
	Runner job.Runner `json:"-"`
	Parts  int
	Work   string
	// MaxMemory bounds what the whole process takes, with the program, the
	// model and the samples; 0: nothing does. Samples run in parallel only as far
	// as it allows. It is one bound a process: calls with different ones do not
	// go together.
	MaxMemory int64
	MaxBytes  int64 // bound on the memory of tensors while running; 0: as in exec.SessionOptions, and at most three quarters of the machine's
	MaxSteps  int64 // bound on the nodes computed for a sample; 0: exec.DefaultMaxSteps

	// Note is called with what the user should know about the samples: files
	// left out, conversions, bad ones that were skipped. Quantize lists these in
	// the Result instead.
	Note func(text string) `json:"-"`

	unasked   bool // Mode is Weights for want of samples
	profile   bool // measure operators
	transient bool // as in exec.SessionOptions
	process   *exec.Memory
	path      string // of the model

	// Progress is called with the stage ("calibrate", "measure", "compare", "run",
	// "bench" or "metric") and how much of it is done. The total is 0 where
	// it is not known. It may be called from several goroutines, one at a time.
	Progress func(stage string, done, total int) `json:"-"`
}

func (o *Options) target() *targets.Target {
	if o.Target != nil {
		return o.Target
	}
	t, _ := targets.Get("ort-cpu")
	return t
}

func (o *Options) allows(a Algorithm) bool {
	return o.Algorithms == nil || slices.Contains(o.Algorithms, a)
}

// bound keeps the process within MaxMemory until the function that it returns
// is called.
func (o *Options) bound(m *graph.Model) (func(), error) {
	if o.MaxMemory <= 0 || o.process != nil {
		return func() {}, nil
	}
	size := int64(0)
	for g := range m.Scopes() {
		for _, v := range g.Initializers() {
			if v.Const != nil {
				size += int64(v.Const.DType().Bytes(v.Const.Len()))
			}
		}
	}
	p, err := exec.BoundMemory(o.MaxMemory, size)
	if err != nil {
		return nil, err
	}
	o.process = p
	if limit := o.MaxMemory / 4; o.Source.MaxBytes == 0 || o.Source.MaxBytes > limit {
		o.Source.MaxBytes = limit
	}
	return p.Release, nil
}

// engine returns what runs models.
func (o *Options) engine() exec.Engine {
	if o.Engine != nil {
		return o.Engine
	}
	return exec.Embedded{}
}

// session returns how the engine is to run models.
func (o *Options) session() exec.SessionOptions {
	return exec.SessionOptions{Threads: o.Threads, MaxBytes: o.MaxBytes, Ceiling: memory() / 4 * 3, MaxSteps: o.MaxSteps, Process: o.process}
}

func (o *Options) progress(stage string, done, total int) {
	if o.Progress != nil {
		o.Progress(stage, done, total)
	}
}

// ContractError says which demand on the result was not met.
type ContractError struct{ Text string }

// Error returns the demand and what was reached.
func (e *ContractError) Error() string { return e.Text }

// OptionError says that options contradict each other, the model or a file
// that they hold.
type OptionError struct{ Err error }

// Error returns the cause's text.
func (e *OptionError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *OptionError) Unwrap() error { return e.Err }

func optionErrorf(format string, args ...any) error {
	return &OptionError{fmt.Errorf(format, args...)}
}

// Load opens a model file. The model aliases the file, so Close it when done.
// A model that ONNX Runtime would not load, as far as package validate can
// tell, is a *onnxfile.ContentError.
func Load(path string, opts ...onnxfile.Option) (*graph.Model, error) {
	return open(path, validate.Options{}, opts...)
}

// Load opens a model file under the limits and with the custom domains of o.
func (o *Options) Load(path string) (*graph.Model, error) {
	return open(path, validate.Options{Domains: o.Domains}, onnxfile.WithLimits(o.Limits))
}

func open(path string, v validate.Options, opts ...onnxfile.Option) (*graph.Model, error) {
	m, err := onnxfile.Open(path, opts...)
	if err != nil {
		return nil, err
	}
	if err := onnxfile.Guard(func() error { return validate.Model(m, v) }); err != nil {
		m.Close()
		if errors.Is(err, onnxfile.ErrChanged) {
			return nil, err
		}
		return nil, &onnxfile.ContentError{Path: path, Err: err}
	}
	if _, err := passes.ReplaceWithdrawn(m); err != nil {
		m.Close()
		return nil, &onnxfile.ContentError{Path: path, Err: err}
	}
	return m, nil
}

// tieWeights names passes.TieWeights in a list of changes.
const tieWeights = "tie-weights"

// Prepare returns a copy of m in the form that quantization wants: at least
// the operator set that the target's quantized form needs, constants folded,
// normalization folded into weights. It computes the same.
func Prepare(ctx context.Context, m *graph.Model, o Options) (*graph.Model, []passes.Change, error) {
	o.settle()
	need := o.Opset
	if need == 0 {
		need, _ = o.lowestOpset()
	}
	if need > o.target().MaxOpset {
		return nil, nil, optionErrorf("%s runs quantized models up to opset %d, not %d", o.target().Name, o.target().MaxOpset, need)
	}
	var p *graph.Model
	var changes []passes.Change
	prepare := func(opset int) (err error) {
		p = m.Clone()
		changes, err = passes.Prepare(ctx, p, passes.Options{MinOpset: opset, Widen: o.Mode != Float16})
		return err
	}
	if err := prepare(need); err != nil {
		return nil, nil, err
	}
	if o.Opset == 0 && o.Mode == Weights {
		more, err := o.blocksOpset(p)
		if err != nil {
			return nil, nil, err
		}
		if more > p.Opset(graph.OnnxDomain) {
			if err := prepare(more); err != nil {
				return nil, nil, err
			}
		}
	}
	if got := p.Opset(graph.OnnxDomain); o.Opset > 0 && got > o.Opset {
		return nil, nil, optionErrorf("the model is of opset %d and is not lowered to %d", got, o.Opset)
	}
	if o.Mode == Weights || o.Mode == Float16 {
		changes = append(changes, passes.Change{Pass: tieWeights, Count: passes.TieWeights(p)})
	}
	return p, changes, o.checkRanges(p)
}

// lowestOpset returns the operator set that the quantized form needs at least,
// and what needs it.
func (o *Options) lowestOpset() (version int, what string) {
	t := o.target()
	wide := ""
	switch {
	case o.Activations == "u16" || o.Activations == "i16":
		wide = "16 bits in activations"
	case o.Mode != Weights && o.Mode != Float16 && o.narrow():
		wide = "4 bits in weights"
	}
	switch {
	case o.Mode == Float16 && o.Weights == qdq.BFloat16:
		return min(22, t.MaxOpset), "bfloat16"
	case wide != "" && !t.MSDomain:
		return t.WideOpset, wide
	case o.real():
		return max(t.PerChannelOpset, qdq.TypeOpset(o.Activations)), "float8 in activations"
	case o.PerTensor && o.Mode == Dynamic:
		return 11, "DynamicQuantizeLinear"
	case o.Mode == Weights:
		return o.weightsOpset()
	case o.PerTensor:
		return t.PerTensorOpset, "quantization"
	}
	return t.PerChannelOpset, "a scale for each channel"
}

// checkRanges returns an error if a range is given for a tensor that a
// prepared model does not have.
func (o *Options) checkRanges(m *graph.Model) error {
	left := maps.Clone(o.Ranges)
	for g := range m.Scopes() {
		for _, v := range g.Inputs() {
			delete(left, v.Name())
		}
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				if v != nil {
					delete(left, v.Name())
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		return optionErrorf("a range is given for tensor %q, which is not computed once the model is prepared; onnxq prepare shows what is", name)
	}
	return nil
}

// MakePlan decides what to quantize in a prepared model.
func MakePlan(m *graph.Model, o Options) (*qdq.Plan, error) {
	o.settle()
	if err := o.check(); err != nil {
		return nil, err
	}
	return qdq.Annotate(m, o.target(), o.qdq())
}

func (o *Options) qdq() qdq.Options {
	q := qdq.Options{
		Include: o.Include, Exclude: o.Exclude,
		Activation: o.Activations, Weight: o.Weights,
		SymmetricActivations: o.SymmetricActivations, PerTensor: o.PerTensor,
		PowerOfTwo: o.PowerOfTwo, ReduceRange: o.ReduceRange,
		Ranges: o.Ranges, WeightsOnly: o.Mode == Weights, Dynamic: o.Mode == Dynamic, PerToken: o.PerToken,
		Logged: o.Mode == Auto, // which measures them
	}
	if o.Mode == Weights {
		q.Blocks = o.blocks()
	}
	switch {
	case q.Blocks != nil:
		q.Weight, q.Store = "", weightCodes
	case o.Mode == Float16:
		q.Compute, q.Weight = qdq.Half, ""
		if o.Weights == qdq.BFloat16 {
			q.Compute = qdq.Brain
		}
	case o.Weights == qdq.Float16:
		q.Weight, q.Store = "", qdq.Float16
	case o.Mode != Static:
		q.Store = weightCodes
	}
	return q
}

// NoActivations as the storage type of activations leaves them float.
const NoActivations = "none"

// weightCodes is the storage type of weights that are decoded at load.
const weightCodes = "i8"

// check returns an error for options that contradict each other.
func (o *Options) check() error {
	switch {
	case o.Runner != nil && o.Engine != nil && o.Engine != exec.Engine(exec.Embedded{}):
		return optionErrorf("a job runner goes with the embedded executor, not with %s", o.Engine.Name())
	case o.EvalLowerIsBetter && o.Eval == "":
		return optionErrorf("there is no metric of which less could be better: give a command with --eval")
	case o.Prefer != Balanced && o.Prefer != Speed && o.Prefer != Size:
		return optionErrorf("preference %q is none of speed, size and balanced", o.Prefer)
	case o.Mode == Float16 && o.Weights != "" && o.Weights != qdq.Float16 && o.Weights != qdq.BFloat16:
		return optionErrorf("mode float16 computes in f16 or bf16, not %s", o.Weights)
	case o.Mode != Weights && o.Mode != Float16 && o.alone():
		return optionErrorf("weights in %s go with activations of the same type in the kernels of %s", o.Weights, o.target().Name)
	case o.Mode != Weights && o.Mode != Float16 && o.fewBits():
		return optionErrorf("weights in %s are for mode weights: the integer kernels of %s read %s with scales of float32, one for a channel or tensor%s", o.weightName(), o.target().Name, strings.Join(o.target().Weights, ", "), o.elsewhere())
	case o.PerToken && o.Mode != Dynamic:
		return optionErrorf("a scale for each row is for mode dynamic: scales that are known beforehand hold for a whole tensor")
	case o.Mode == Dynamic && o.narrow():
		return optionErrorf("mode dynamic has weights of 8 bits, not %s", o.Weights)
	case o.Mode != Weights && slices.Contains(o.Algorithms, AWQ):
		return optionErrorf("algorithm %s is for mode weights", AWQ)
	case o.Format == QOperator && !o.target().MSDomain:
		return optionErrorf("%s reads QuantizeLinear and DequantizeLinear, not operators on codes", o.target().Name)
	case o.Activations == NoActivations:
		return optionErrorf("mode %s quantizes activations", o.Mode)
	case o.Mode == Dynamic && o.Activations != "" && o.Activations != "u8":
		return optionErrorf("mode dynamic quantizes activations to u8, not %s: DynamicQuantizeLinear gives no other type", o.Activations)
	case o.Mode == Dynamic && o.SymmetricActivations:
		return optionErrorf("mode dynamic has no symmetric activations: DynamicQuantizeLinear chooses the zero point")
	case o.Mode == Dynamic && o.PowerOfTwo:
		return optionErrorf("mode dynamic has no power-of-two scales: DynamicQuantizeLinear chooses them")
	case o.Mode == Weights:
		return o.checkBlocks()
	}
	if q := o.qdq(); o.Plan == nil {
		if err := q.Check(o.target()); err != nil {
			return &OptionError{err}
		}
	}
	return nil
}

// Inputs describes what m has to be fed.
func Inputs(m *graph.Model) []calibration.Input {
	var in []calibration.Input
	for _, v := range m.Graph.FeedInputs() {
		i := calibration.Input{Name: v.Name(), DType: v.Type.Elem}
		if v.Type.Shape != nil {
			i.Shape, i.Symbols = make([]int, len(v.Type.Shape)), make([]string, len(v.Type.Shape))
			for k, d := range v.Type.Shape {
				i.Shape[k], i.Symbols[k] = -1, d.Sym
				if d.Known && d.Size > 0 { // some producers write 0 for unknown
					i.Shape[k] = int(d.Size)
				}
			}
		}
		in = append(in, i)
	}
	return in
}

// Open opens sample sources for m. Inputs that o.State feeds may be missing
// from samples.
func Open(ctx context.Context, m *graph.Model, specs []string, o Options) (*calibration.Source, error) {
	return o.source(ctx, specs, Inputs(m))
}

// source opens sample sources for a model with the inputs in.
func (o *Options) source(ctx context.Context, specs []string, in []calibration.Input) (*calibration.Source, error) {
	so := o.Source
	if so.ReadTensor == nil {
		so.ReadTensor = onnxfile.ReadTensor
	}
	for i := range in {
		in[i].Optional = slices.ContainsFunc(o.State, func(f calibration.Feedback) bool { return f.Input == in[i].Name })
	}
	return calibration.Open(ctx, specs, in, so)
}

// limit returns the samples that o.Samples asks for.
func (o *Options) limit(src *calibration.Source) *calibration.Source {
	switch {
	case o.Samples <= 0:
		return src
	case len(o.State) > 0:
		return src.First(o.Samples)
	}
	return src.Limit(o.Samples)
}

// suggest adds to an error about missing inputs the pairs of state that could
// supply them.
func suggest(m *graph.Model, err error) error {
	var miss *calibration.MissingError
	if !errors.As(err, &miss) {
		return err
	}
	pairs := calibration.Suggest(m.Graph, miss.Inputs)
	if len(pairs) == 0 {
		return err
	}
	var flags []string
	for _, p := range pairs {
		flags = append(flags, "--state "+strconv.Quote(p.String()))
	}
	return fmt.Errorf("%w; if the model carries state from sample to sample, try %s", err, strings.Join(flags, " "))
}

// Result says what Quantize did. Its JSON form is that of `quantize --json`.
type Result struct {
	// Nodes counts those of the prepared model, Quantized those of them that are
	// quantized; Float lists the others.
	Nodes     int         `json:"nodes"`
	Quantized int         `json:"quantized"`
	Float     []FloatNode `json:"float"`
	BytesIn   int64       `json:"bytes_in"` // files, with external data
	BytesOut  int64       `json:"bytes_out"`
	// Weight bytes count the constants that reach a weight port, with the
	// scales and zero points of the quantized ones.
	WeightBytesIn  int64        `json:"weight_bytes_in"`
	WeightBytesOut int64        `json:"weight_bytes_out"`
	Weights        []WeightSize `json:"weights"`
	// Int8MACs is the share of multiply-adds that run on 8-bit integers, 0 to 1.
	Int8MACs float64       `json:"int8_macs_share"`
	SQNR     *float64      `json:"sqnr_db"` // of the worst output; nil without samples or if exact
	Outputs  []eval.Output `json:"outputs"`
	// Measured says on which samples the outputs were compared.
	Measured string          `json:"measured_on"`
	Seconds  float64         `json:"seconds"`
	PeakRSS  int64           `json:"peak_rss_bytes"` // of the process; 0 where the system does not tell
	Mode     string          `json:"mode"`
	Target   string          `json:"target"`
	Notes    []string        `json:"notes,omitempty"`
	Metric   *Metric         `json:"metric,omitempty"` // of Options.Eval
	Passes   []passes.Change `json:"passes"`
	// Difference and Lint are there if Options.Report is set.
	Difference *Difference     `json:"difference,omitempty"`
	Lint       *qdq.LintReport `json:"lint,omitempty"`

	Plan  *qdq.Plan          `json:"-"`
	Table *calibration.Table `json:"-"`
}

// FloatNode is a node that stays float.
type FloatNode struct {
	Node  string `json:"node"` // as graph.Node.Label
	Op    string `json:"op"`
	Scope string `json:"scope"` // as graph.Graph.Scope
	Why   string `json:"why"`
	// MACs is its share of the model's multiply-adds, 0 to 1.
	MACs float64 `json:"macs_share"`
}

// WeightSize is what storing one weight takes before and after.
type WeightSize struct {
	Name     string `json:"name"`
	Op       string `json:"op"`
	BytesIn  int64  `json:"bytes_in"`
	BytesOut int64  `json:"bytes_out"`
}

// Stored returns the number of weights of nodes that stay float that are stored
// in fewer bits.
func (r *Result) Stored() int {
	n := 0
	for i := range r.Plan.Tensors {
		if r.Plan.Tensors[i].AtLoad {
			n++
		}
	}
	return n
}

// Quantize reads the model at path in and writes its quantized form to out.
// What it cannot quantize stays float with a reason in the Result; a model in
// which nothing can be quantized is copied as it is. If a demand of the
// options is not met, the error is a *ContractError, the Result is complete,
// and out is not written unless KeepFailed is set.
func Quantize(ctx context.Context, in, out string, o Options) (result *Result, err error) {
	start := time.Now()
	m, err := o.Load(in)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	defer watch(m, &err)()
	release, err := o.bound(m)
	if err != nil {
		return nil, err
	}
	defer release()
	save := o.saveOptions()
	if err := onnxfile.CheckDestination(m, out, save); err != nil {
		return nil, err
	}
	if o.Report != "" {
		if err := checkReport(o.Report, in, out); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(in)
	if err != nil {
		return nil, err
	}
	o.path = in
	q, res, err := QuantizeModel(ctx, m, o)
	var broken *ContractError
	if err != nil && !errors.As(err, &broken) {
		return nil, err
	}
	res.BytesIn, res.BytesOut = max(info.Size(), onnxfile.Size(m)), onnxfile.Size(q) // external data included
	if q != m && o.Plan == nil && res.Quantized == 0 && res.BytesOut >= res.BytesIn {
		q = m
		res.unchanged()
	}
	if broken == nil || o.KeepFailed {
		if q == m {
			res.BytesOut = res.BytesIn
			err = onnxfile.Copy(ctx, m, out, save)
		} else {
			err = o.save(ctx, q, out)
		}
		if err != nil {
			return nil, err
		}
	}
	res.Seconds, res.PeakRSS = time.Since(start).Seconds(), peakRSS()
	if o.Report != "" {
		if err := res.WriteReport(o.Report, in, out); err != nil {
			return nil, err
		}
	}
	if broken != nil {
		return res, broken
	}
	return res, nil
}

// unchanged makes r that of a model which is best left as it is.
func (r *Result) unchanged() {
	r.Plan.Tensors = nil
	r.WeightBytesOut = r.WeightBytesIn
	for i := range r.Weights {
		r.Weights[i].BytesOut = r.Weights[i].BytesIn
	}
}

// QuantizeModel returns the quantized form of m, which aliases m's tensors; m
// itself stays as it is, and is the result if nothing in it can be quantized.
// The fields of the Result about files are not set. With a *ContractError,
// model and Result are complete.
func QuantizeModel(ctx context.Context, m *graph.Model, o Options) (quantized *graph.Model, result *Result, err error) {
	defer watch(m, &err)()
	release, err := o.bound(m)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	start := time.Now()
	var more []string
	o.Note = func(text string) {
		if !slices.Contains(more, text) {
			more = append(more, text)
		}
	}
	q, err := newQuantization(ctx, m, o)
	if err != nil {
		return nil, nil, err
	}
	defer q.close()
	res, broken, err := q.run(ctx)
	if err != nil {
		return nil, nil, err
	}
	if q.result == nil {
		q.result = m
	}
	for _, src := range q.closers {
		res.Notes = append(res.Notes, notes(src)...)
	}
	res.Notes = append(res.Notes, more...)
	res.Seconds, res.PeakRSS = time.Since(start).Seconds(), peakRSS()
	if broken != nil {
		return q.result, res, broken
	}
	return q.result, res, nil
}

func notes(src *calibration.Source) []string {
	out := src.Notes()
	for _, bad := range src.Skipped() {
		out = append(out, "skipped: "+bad.Error())
	}
	return out
}

func (o *Options) note(src *calibration.Source) {
	if o.Note != nil {
		for _, text := range notes(src) {
			o.Note(text)
		}
	}
}

// quantization is one run of Quantize in memory.
type quantization struct {
	o        Options
	original *graph.Model
	prepared *graph.Model
	planned  *graph.Model // the one that the plan of the result is of
	result   *graph.Model
	calib    *calibration.Source // samples to calibrate on; nil with a table
	eval     *calibration.Source // samples to measure on; may be nil
	held     int                 // samples held out of the data
	measured string
	closers  []*calibration.Source
	passes   []passes.Change
	path     string   // of the float model; "" if it is in memory only
	metric   *float64 // of the float model
	verdicts map[*graph.Model]*verdict
}

func (q *quantization) close() {
	for _, s := range q.closers {
		s.Close()
	}
}

func newQuantization(ctx context.Context, m *graph.Model, o Options) (*quantization, error) {
	if o.Mode == Auto && len(o.Data) == 0 && o.Table == nil && o.Plan == nil && !o.narrow() {
		o.Mode, o.unasked = Weights, !o.fewBits()
	}
	o.settle()
	q := &quantization{o: o, original: m, path: o.path}
	if err := o.check(); err != nil {
		return nil, err
	}
	if t := o.Table; t != nil && t.Model != "" && t.Model != Digest(m) {
		return nil, optionErrorf("the calibration table was made from another model")
	}
	m = o.renamed(ctx, m, o.Data)
	q.original = m
	var err error
	if q.prepared, q.passes, err = Prepare(ctx, m, o); err != nil {
		return nil, err
	}
	for _, c := range q.passes {
		if c.Pass == passes.SealWeights && c.Count > 0 {
			q.note("%d initializers, most of the weights among them, are inputs as well: they are taken for constants, and are inputs no more", c.Count)
		}
	}
	need, how := o.lowestOpset()
	if got := q.prepared.Opset(graph.OnnxDomain); o.Opset > 0 && got < need {
		return nil, optionErrorf("%s needs opset %d, not %d", how, need, got)
	}
	if err := q.openSources(ctx); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// adopt takes the samples that the table was made from, with the options that
// it names, where they are still there.
func (q *quantization) adopt(ctx context.Context) {
	t := q.o.Table
	o := q.o
	o.Data, o.Samples, o.Bins, o.Holdout = t.Sources, t.Options.Limit, t.Options.Bins, &t.Options.Holdout
	o.Source.Batched, o.Source.Cast, o.Source.Image, o.Source.Seed = t.Options.Batched, t.Options.Cast, t.Options.Image, t.Options.Seed
	o.Source.SkipBad = max(o.Source.SkipBad, len(t.Skipped))
	o.State = nil
	for _, pair := range t.Options.State {
		in, out, _ := strings.Cut(pair, "=")
		o.State = append(o.State, calibration.Feedback{Input: in, Output: out})
	}
	names := strings.Join(t.Sources, ", ")
	src, err := Open(ctx, q.original, o.Data, o)
	if err == nil {
		err = t.Verify(ctx, src)
		src.Close()
	}
	if err != nil {
		q.note("the samples that the table was made from (%s) are not here as they were, so nothing is measured: %v", names, err)
		return
	}
	q.o = o
	q.note("decisions are measured on the samples that the table was made from: %s", names)
}

// note tells the user something, if that is wanted.
func (q *quantization) note(format string, args ...any) {
	if q.o.Note != nil {
		q.o.Note(fmt.Sprintf(format, args...))
	}
}

// checkTable says where the table that was given is not what its samples give.
func (q *quantization) checkTable(ctx context.Context, adopted bool) {
	t := q.o.Table
	if t == nil {
		return
	}
	if miss := t.Missing(); len(miss) > 0 {
		q.note("the table lacks the samples of %d of %d shards", len(miss), t.Shards)
	}
	if q.calib == nil || t.Data == "" {
		return
	}
	var err error
	if !adopted {
		err = t.Verify(ctx, q.calib)
	}
	if err != nil {
		q.note("ranges come from the table, which was made from other samples than those given: %v", err)
	} else if len(t.Samples)+len(t.Skipped) != q.calib.Len() || !slices.Equal(t.Measured, q.measuredOn()) {
		q.note("ranges come from the table, which was made from another part of the samples")
	}
}

func (q *quantization) openSources(ctx context.Context) error {
	given := len(q.o.Data)
	if t := q.o.Table; t != nil && given == 0 && len(t.Sources) > 0 {
		q.adopt(ctx)
	}
	adopted := len(q.o.Data) > given
	defer func() { q.checkTable(ctx, adopted) }()
	if len(q.o.Data) > 0 {
		src, err := Open(ctx, q.original, q.o.Data, q.o)
		if err != nil {
			return err
		}
		q.closers = append(q.closers, src)
		q.calib = q.o.limit(src)
	}
	if len(q.o.EvalData) > 0 {
		src, err := Open(ctx, q.original, q.o.EvalData, q.o)
		if err != nil {
			return err
		}
		q.closers = append(q.closers, src)
		q.eval, q.measured = src, "evaluation samples"
		return nil
	}
	if q.calib == nil {
		return nil
	}
	hold := -1
	if q.o.Holdout != nil {
		hold = *q.o.Holdout
	}
	rest, held, err := q.calib.Split(hold)
	if err != nil {
		return err
	}
	q.held = held.Len()
	if held.Len() > 0 {
		q.calib, q.eval, q.measured = rest, held, "held-out samples"
	} else {
		q.eval, q.measured = q.calib, "calibration samples"
	}
	return nil
}

// ErrNoData says that a mode needs samples and none were given.
var ErrNoData = errors.New("static quantization needs samples: give --data, or --table with calibrated ranges")

func (q *quantization) run(ctx context.Context) (*Result, *ContractError, error) {
	found, err := q.quantize(ctx)
	if err != nil {
		return nil, nil, err
	}
	q.result, q.planned = found.Model, found.Base
	if q.planned == nil {
		q.planned = q.prepared
	}
	if q.o.Format == QOperator && q.result != nil {
		if q.result, err = integerOperators(ctx, q.result); err != nil {
			return nil, nil, err
		}
	}
	if q.result != nil && slices.ContainsFunc(q.passes, func(c passes.Change) bool { return c.Pass == passes.WidenHalves && c.Count > 0 }) {
		passes.StoreHalves(q.result)
	}
	res := &Result{
		Plan: found.Plan, Table: found.Table, Mode: found.Plan.Mode, Target: found.Plan.Target,
		Passes: q.passes, Notes: found.Notes, Measured: q.measured,
	}
	res.describe(q)
	if t := found.Table; t != nil {
		if zeros := t.Zeros(); len(zeros) > 0 {
			const most = 8
			text := fmt.Sprintf("zero in every calibration sample, so that the samples give no range: %d values, %q", len(zeros), zeros[:min(most, len(zeros))])
			res.Notes = append(res.Notes, text)
		}
	}
	if q.result != nil && q.o.Plan == nil && res.Int8MACs == 0 && onnxfile.Size(q.result) >= onnxfile.Size(q.original) {
		q.result = nil
		res.Plan.Drop("the model would be no smaller and compute no more on integers")
		res.Notes = nil
		res.describe(q)
	}
	if n := res.Plan.Count(qdq.Integers); n > 0 && q.result != nil {
		res.Notes = append(res.Notes, fmt.Sprintf("the model is quantized already, in part or whole: %d nodes compute on integers, and stay as they are", n))
	}
	v := &verdict{}
	if q.result != nil {
		if v, err = q.judge(ctx, q.result); err != nil {
			return nil, nil, err
		}
		if q.o.Report != "" {
			if err := q.see(ctx, res); err != nil {
				return nil, nil, err
			}
		}
	}
	if v.outputs != nil {
		res.Outputs = v.outputs
	}
	res.SQNR, res.Metric = eval.Worst(res.Outputs), v.metric
	if p := q.o.MinCoverage; p != nil && 100*res.Int8MACs < *p {
		return res, &ContractError{fmt.Sprintf("%.1f %% of the multiply-adds run on integers, %g %% were demanded", 100*res.Int8MACs, *p)}, nil
	}
	return res, q.broken(v), nil
}

// see adds what a report shows besides.
func (q *quantization) see(ctx context.Context, res *Result) (err error) {
	if q.eval != nil && q.eval.Len() > 0 {
		if res.Difference, err = diff(ctx, q.original, q.result, q.eval, q.o); err != nil {
			return err
		}
	}
	res.Lint, err = Lint(q.result, q.o)
	return err
}

// quantize makes the quantized model: as a given plan and table say, or by
// measuring what serves best.
func (q *quantization) quantize(ctx context.Context) (*auto.Result, error) {
	o := auto.Options{
		Target: q.o.target(), Qdq: q.o.qdq(), Method: q.o.Method, MethodOptions: q.o.MethodOptions,
		Equalize: q.o.allows(Equalize) && q.calib != nil, Split: q.o.allows(Split) && q.calib != nil, Smooth: q.o.allows(Smooth) && q.calib != nil, CorrectBias: q.o.allows(BiasCorrection), Round: q.o.allows(Round) || q.o.allows(GPTQ), Clip: q.o.allows(Clip),
		Rows:         q.o.MinSQNR != nil || q.o.MaxDrop != nil,
		FloatIslands: q.o.Mode == Auto, Store: q.o.Mode == Auto, Size: q.o.Prefer == Size || q.o.MinCoverage != nil, Speed: q.o.Prefer == Speed,
		Contract: q.o.contract(),
		Engine:   q.o.engine(),
		Session:  q.o.session(),
		Runner:   q.o.Runner,
		Parts:    q.o.parts(),
		Work:     q.o.Work,
		Progress: func(n int) { q.o.progress("measure", n, 0) },
	}
	seen := q.measuredOn()
	o.Unseen = len(seen) > 0
	samples := func(unseen bool) *calibration.Source {
		if unseen {
			return q.calib.Without(seen)
		}
		return q.calib
	}
	o.Calibrate = q.calibrator(seen)
	if o.Method == "" && (q.calib == nil || q.o.Mode == Static && q.o.Algorithms != nil && len(q.o.Algorithms) == 0) {
		o.Method = calibration.Auto // nothing is measured, so that a table gives what its samples give
	}
	if q.o.Plan != nil {
		return q.follow(ctx, q.o.Plan, o)
	}
	if o.Qdq.Blocks != nil {
		return q.inBlocks(ctx, o.Qdq)
	}
	if q.o.Mode == Float16 {
		return q.half(ctx, o)
	}
	if o.Qdq.Dynamic {
		o.Method, o.Equalize, o.Split, o.Smooth, o.Round = calibration.MinMax, false, false, false, false // no range is known beforehand
	}
	if q.calib != nil {
		measured := measureOn
		if o.Unseen {
			measured = len(seen)
		}
		err := q.spread(ctx, q.calib, measured, func(in map[string]ops.Data) error {
			o.Samples = append(o.Samples, in)
			return nil
		})
		if err != nil {
			return nil, suggest(q.original, err)
		}
		o.Visits = min(measureOn, q.calib.Len())
		o.Visit = func(ctx context.Context, unseen bool, f func(map[string]ops.Data) error) error {
			return q.spread(ctx, samples(unseen), o.Visits, f)
		}
	}
	o.Accept = func(ctx context.Context, m *graph.Model) (auto.Shortfall, float64, error) {
		v, err := q.judge(ctx, m)
		if err != nil {
			return auto.Shortfall{}, 0, err
		}
		return v.short, v.loss, nil
	}
	return auto.Search(ctx, q.prepared, o)
}

// measuredOn returns the Index of each calibration sample that decisions are
// measured on, if these are to be measured on samples that ranges do not come
// from.
func (q *quantization) measuredOn() []int {
	if q.calib == nil || len(q.o.State) > 0 || q.calib.Len() < enoughToSplit {
		return nil
	}
	return places(q.calib, min(measureOn, q.calib.Len()/2))
}

// calibrator returns what collects statistics for a search. The samples run
// once for a model, also where those that decisions are measured on are left
// out, and not at all where the table that was given has what is wanted.
func (q *quantization) calibrator(seen []int) func(context.Context, *graph.Model, []quant.Watch, bool) (*calibration.Table, error) {
	type known struct {
		model *graph.Model
		table *calibration.Table
	}
	tables := [2]known{{q.prepared, q.o.Table}} // of the prepared model, and of the last other one
	return func(ctx context.Context, m *graph.Model, watch []quant.Watch, unseen bool) (*calibration.Table, error) {
		k := &tables[1]
		if m == q.prepared {
			k = &tables[0]
		}
		if k.model != m || k.table == nil || q.calib != nil && !covers(k.table, m, watch) {
			if q.calib == nil {
				return nil, ErrNoData
			}
			t, err := collect(ctx, m, q.calib, q.o, calibration.CollectOptions{Watch: watch, Measured: seen})
			if err != nil {
				return nil, err
			}
			*k = known{m, t}
		}
		if unseen && k.table.Unseen != nil {
			return k.table.OfUnseen(), nil
		}
		return k.table, nil
	}
}

// covers reports whether a table knows of every value that is watched.
func covers(t *calibration.Table, m *graph.Model, watch []quant.Watch) bool {
	has := func(v *graph.Value) bool {
		if v.ID >= len(watch) || !watch[v.ID].Observe {
			return true
		}
		key := calibration.ValueKey(v)
		s := t.Values[key]
		if s == nil {
			_, unreached := slices.BinarySearch(t.Unreached, key)
			return unreached
		}
		return s.Channels != nil || !watch[v.ID].Channels
	}
	for v := range calibration.Observable(m) {
		if !has(v) {
			return false
		}
	}
	return true
}

// measureOn is the number of calibration samples that decisions are measured
// on.
const measureOn = 16

// enoughToSplit is the number of calibration samples from which decisions are
// measured on samples that the ranges do not come from.
const enoughToSplit = 20

// places returns the Index of each of n samples of src, evenly spaced.
func places(src *calibration.Source, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = src.Sample(i * src.Len() / n).Index
	}
	return out
}

// spread calls f with n samples of src, evenly spaced, with the state that the
// float model has at each.
func (q *quantization) spread(ctx context.Context, src *calibration.Source, n int, f func(map[string]ops.Data) error) error {
	n = min(n, src.Len())
	var r *runner
	if len(q.o.State) > 0 {
		var err error
		if r, err = newRunner(ctx, q.prepared, q.o); err != nil {
			return err
		}
		defer r.close()
	}
	for k, i := 0, 0; i < n; k++ {
		chosen := k == i*src.Len()/n
		if chosen {
			i++
		} else if r == nil {
			continue
		}
		feed, err := src.Load(ctx, k)
		if err != nil {
			if src.Skip(k, err) {
				continue
			}
			return src.AllBad(ctx, err)
		}
		in := feedData(feed)
		if r != nil {
			if _, err := r.run(ctx, src.Sample(k), in); err != nil {
				return err
			}
		}
		if chosen {
			if err := f(in); err != nil {
				return err
			}
		}
	}
	return nil
}

// follow does what a plan from outside says.
func (q *quantization) follow(ctx context.Context, plan *qdq.Plan, o auto.Options) (*auto.Result, error) {
	res := &auto.Result{Plan: plan}
	watch, err := plan.Wants(q.prepared) // which holds the plan against the model
	if err != nil || plan.Empty() {
		return res, err
	}
	if slices.ContainsFunc(watch, func(w quant.Watch) bool { return w.Observe }) {
		if res.Table, err = o.Calibrate(ctx, q.prepared, watch, false); err != nil {
			return nil, err
		}
	}
	method := o.Method
	if method == "" {
		method = calibration.Auto
	}
	var bad map[int]string
	res.Model, res.Notes, bad, err = auto.Apply(ctx, q.prepared, plan, res.Table, auto.Way{Method: method, MethodOptions: o.MethodOptions, CorrectBias: o.CorrectBias, FitPairs: o.Target.PairSums, Threads: q.o.Threads})
	for _, id := range slices.Sorted(maps.Keys(bad)) {
		return nil, fmt.Errorf("the plan quantizes a tensor that has no range: %s", bad[id])
	}
	return res, err
}

// Calibrate runs the samples through a prepared model and collects statistics
// of the values that the plan wants.
func Calibrate(ctx context.Context, m *graph.Model, plan *qdq.Plan, src *calibration.Source, o Options) (*calibration.Table, error) {
	watch, err := plan.Wants(m)
	if err != nil {
		return nil, err
	}
	return collect(ctx, m, src, o, calibration.CollectOptions{Watch: watch})
}

// tableOptions returns what of the options a table names.
func (o *Options) tableOptions(holdout int) calibration.TableOptions {
	t := calibration.TableOptions{
		Bins: o.Bins, Limit: o.Samples, Batched: o.Source.Batched, Cast: o.Source.Cast, Image: o.Source.Image, Seed: o.Source.Seed,
		Holdout: holdout,
	}
	if t.Bins == 0 {
		t.Bins = calibration.DefaultBins
	}
	for _, f := range o.State {
		t.State = append(t.State, f.String())
	}
	slices.Sort(t.State)
	return t
}

// collect collects what co.Watch says; the rest of co follows from o, but for
// what concerns the identity of the table and its checkpoints.
func collect(ctx context.Context, m *graph.Model, src *calibration.Source, o Options, co calibration.CollectOptions) (*calibration.Table, error) {
	if _, err := calibration.NewState(m.Graph, o.State); err != nil {
		return nil, &OptionError{err}
	}
	co.Settings = o.tableOptions(co.Settings.Holdout)
	for i := range co.Watch {
		co.Watch[i].Observe = co.Watch[i].Observe || co.Watch[i].Channels
	}
	if o.Runner != nil {
		t, err := collectParts(ctx, m, src, o, co)
		return t, suggest(m, err)
	}
	taps := make([]bool, len(co.Watch))
	for i, w := range co.Watch {
		taps[i] = w.Observe
	}
	prog, err := o.engine().Compile(ctx, m, exec.Options{Taps: taps, Blocks: true})
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	if n := prog.Untapped(); n > 0 && o.Note != nil {
		o.Note(fmt.Sprintf("the engine %s does not show %d values inside of nested graphs, so what reads them stays float", o.engine().Name(), n))
	}
	co.State, co.Session = o.State, o.session()
	co.Progress = func(done, total int) { o.progress("calibrate", done, total) }
	t, err := calibration.Collect(ctx, prog, src, co)
	var other *calibration.ResumeError
	if errors.As(err, &other) {
		return nil, &OptionError{err}
	}
	return t, suggest(m, err)
}

// Compare runs the samples through both models and compares the outputs.
func Compare(ctx context.Context, ref, got *graph.Model, src *calibration.Source, o Options) ([]eval.Output, error) {
	outputs, _, _, err := compare(ctx, ref, got, src, o)
	return outputs, err
}

// compare is Compare and gives how they were compared and the eval.Score in dB as well.
func compare(ctx context.Context, ref, got *graph.Model, src *calibration.Source, o Options) ([]eval.Output, *eval.Selection, float64, error) {
	o.transient = true
	selection, left, right := eval.Align(ctx, ref, got)
	a, err := newRunner(ctx, left, o)
	if err != nil {
		return nil, nil, 0, err
	}
	defer a.close()
	b, err := newRunner(ctx, right, o)
	if err != nil {
		return nil, nil, 0, err
	}
	defer b.close()
	cmp, score := selection.Comparison(ref), eval.NewScore(len(selection.Names(ref)))
	for i := range src.Len() {
		feed, err := src.Load(ctx, i)
		if err != nil {
			if src.Skip(i, err) {
				continue
			}
			return nil, nil, 0, suggest(ref, src.AllBad(ctx, err))
		}
		x, err := a.run(ctx, src.Sample(i), feedData(feed))
		if err != nil {
			return nil, nil, 0, err
		}
		x, picked := selection.Split(x)
		in := feedData(feed)
		maps.Copy(in, picked)
		y, err := b.run(ctx, src.Sample(i), in)
		if err != nil {
			return nil, nil, 0, err
		}
		if err := cmp.Add(x, y); err != nil {
			return nil, nil, 0, err
		}
		if err := score.Add(x, y); err != nil {
			return nil, nil, 0, err
		}
		o.progress("compare", i+1, src.Len())
	}
	return cmp.Outputs(), selection, score.DB(), nil
}

// runner runs a model on samples in order.
type runner struct {
	program exec.Executable
	session exec.Runner
	state   *calibration.State
	path    string
}

func (r *runner) close() {
	r.session.Close()
	r.program.Close()
}

// prepared brings m into the form of fewest nodes, and tells whether that went
// well.
func prepared(ctx context.Context, m *graph.Model) bool {
	_, err := passes.Prepare(ctx, m, passes.Options{SameRounding: true})
	return err == nil
}

func newRunner(ctx context.Context, m *graph.Model, o Options) (*runner, error) {
	e := o.engine()
	if _, own := e.(exec.Embedded); own {
		// What cannot be prepared is compiled as it is.
		if p := m.Clone(); prepared(ctx, p) {
			m = p
		}
	}
	return o.open(ctx, m, nil)
}

// feed adds the state to the inputs in.
func (r *runner) feed(sample calibration.Sample, in map[string]ops.Data) error {
	if sample.Row == 0 || sample.Path != r.path {
		r.state.Reset()
		r.path = sample.Path
	}
	return r.state.Feed(in)
}

// run adds the state to the inputs in and runs the model.
func (r *runner) run(ctx context.Context, sample calibration.Sample, in map[string]ops.Data) ([]ops.Data, error) {
	if err := r.feed(sample, in); err != nil {
		return nil, err
	}
	out, err := r.session.Run(ctx, in, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("sample %s: %w", strconv.Quote(sample.Name), err)
	}
	r.state.Keep(out)
	return out, nil
}

// describe fills in what follows from the plan and the models.
func (r *Result) describe(q *quantization) {
	r.Float, r.Weights, r.Outputs = []FloatNode{}, []WeightSize{}, []eval.Output{}
	r.Nodes, r.Quantized, r.WeightBytesIn, r.WeightBytesOut, r.Int8MACs = 0, 0, 0, 0, 0
	half := map[[2]string]bool{}
	for _, n := range r.Plan.Nodes {
		r.Nodes++
		half[[2]string{n.Scope, n.Node}] = n.How == qdq.Half || n.How == qdq.Brain
		if n.Quantized {
			r.Quantized++
			continue
		}
		r.Float = append(r.Float, FloatNode{Node: n.Node, Op: n.Op, Scope: n.Scope, Why: n.Why})
	}
	stored, wide := map[[2]string]*qdq.TensorPlan{}, map[[2]string]bool{}
	for i := range r.Plan.Tensors {
		switch t := &r.Plan.Tensors[i]; t.Kind {
		case qdq.Weight:
			stored[[2]string{t.Scope, t.Tensor}] = t
		case qdq.Activation:
			wide[[2]string{t.Scope, t.Tensor}] = t.Type == "u16" || t.Type == "i16" || t.Type == quant.F8E4M3.Name
		}
	}
	var on, all float64
	i, float := 0, 0
	for g := range q.planned.Scopes() {
		for n := range g.Nodes() {
			e := r.Plan.Nodes[i]
			i++
			macs := MACs(n)
			all += macs
			if x := n.Input(0); e.Int8() && x != nil && !wide[[2]string{x.Graph().Scope(), x.Name()}] {
				on += macs
			}
			if !e.Quantized {
				r.Float[float].MACs = macs
				float++
			}
		}
	}
	beside := map[[2]string]bool{}
	if q.result != nil {
		for g := range q.result.Scopes() {
			for _, v := range g.Initializers() {
				beside[[2]string{g.Scope(), v.Name()}] = true
			}
		}
	}
	for g := range q.prepared.Scopes() {
		for n := range g.Nodes() {
			r.weights(n, stored, beside, half[[2]string{g.Scope(), n.Label()}])
		}
	}
	if all > 0 {
		r.Int8MACs = on / all
		for i := range r.Float {
			r.Float[i].MACs /= all
		}
	}
}

// weights lists the weights of n, by what they are stored as, and those that are in the
// model beside their codes, since some nodes read them as floats; half says that n
// computes in 16-bit floats.
func (r *Result) weights(n *graph.Node, stored map[[2]string]*qdq.TensorPlan, beside map[[2]string]bool, half bool) {
	spec := ops.Lookup(n)
	if spec == nil {
		return
	}
	for i, v := range n.Inputs() {
		if v == nil || !v.IsConst() || !v.Const.DType().IsFloat() {
			continue
		}
		if p, _ := spec.InPort(i); p.Role != ops.Weight || n.Op.Type == "Gather" && v.Const.Rank() < 2 {
			continue
		}
		if slices.ContainsFunc(r.Weights, func(w WeightSize) bool { return w.Name == v.Name() }) {
			continue
		}
		w := WeightSize{Name: v.Name(), Op: n.Op.String(), BytesIn: int64(v.Const.Size())}
		w.BytesOut = w.BytesIn
		if half && v.Const.DType() == tensor.Float32 {
			w.BytesOut = w.BytesIn / 2
		}
		key := [2]string{v.Graph().Scope(), v.Name()}
		if t := stored[key]; t != nil {
			w.BytesOut = t.StoredBytes(v.Const)
			if beside[key] {
				w.BytesOut += w.BytesIn
			}
		}
		r.Weights = append(r.Weights, w)
		r.WeightBytesIn += w.BytesIn
		r.WeightBytesOut += w.BytesOut
	}
}

// MACs estimates the multiply-adds of n from its constant weight and output
// shape; unknown dimensions count as 1.
func MACs(n *graph.Node) float64 {
	if len(n.Inputs()) < 2 || n.Output(0) == nil {
		return 0
	}
	w := n.Input(1)
	if w != nil && !w.IsConst() && w.DefNode() != nil && w.DefNode().Op.Type == "DequantizeLinear" {
		w = w.DefNode().Input(0) // codes that the model came with
	} else if w != nil && w.IsConst() && w.Const.DType() != tensor.Float32 {
		return 0
	}
	if w == nil || !w.IsConst() {
		return 0
	}
	positions := 1.0
	shape := n.Output(0).Type.Shape
	size := func(dims graph.Shape) float64 {
		p := 1.0
		for _, d := range dims {
			if d.Known {
				p *= float64(d.Size)
			}
		}
		return p
	}
	switch n.Op.Type {
	case "Conv":
		if len(shape) > 2 {
			positions = size(shape[2:])
		}
	case "ConvTranspose":
		if x := n.Input(0); x != nil && len(x.Type.Shape) > 2 {
			positions = size(x.Type.Shape[2:])
		}
	case "MatMul", "Gemm":
		if len(shape) > 1 {
			positions = size(shape[:len(shape)-1])
		}
	case "LSTM", "GRU", "RNN":
		// A step multiplies with the weights of input and state.
		both := w.Const.Len()
		if r := n.Input(2); r != nil && r.IsConst() {
			both += r.Const.Len()
		}
		time := 0
		if n.Int("layout", 0) == 1 {
			time = 1
		}
		if x := n.Input(0); x != nil && len(x.Type.Shape) == 3 {
			positions = size(x.Type.Shape[time : time+1])
		}
		return positions * float64(both)
	default:
		return 0
	}
	return positions * float64(w.Const.Len())
}
