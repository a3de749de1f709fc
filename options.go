package onnxq

import (
	"fmt"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/job"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/targets"
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
