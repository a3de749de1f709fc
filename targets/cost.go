package targets

// Cost is what parts of a model take on a target, in nanoseconds on one thread
// of one kind of processor. It need not be exact: what counts is which of two
// forms of a model is faster.
type Cost struct {
	// Node is for starting an operator.
	Node float64 `json:"node" yaml:"node"`
	// Call is for a call of the runtime, whatever the model: a difference below
	// it is of no account.
	Call float64 `json:"call" yaml:"call"`
	// Float and Int are the rates of kernels on float32 and on 8-bit integers.
	Float Rates `json:"float" yaml:"float"`
	Int   Rates `json:"int" yaml:"int"`
	// Quantize and Dequantize are for each element of a QuantizeLinear and a
	// DequantizeLinear of an activation, Layout and Unlayout for one of rank 3 and
	// more, whose channels move before integers and behind them.
	Quantize   float64 `json:"quantize" yaml:"quantize"`
	Dequantize float64 `json:"dequantize" yaml:"dequantize"`
	Layout     float64 `json:"layout" yaml:"layout"`
	Unlayout   float64 `json:"unlayout" yaml:"unlayout"`
}

// Rates are what kernels of one kind of arithmetic take, in nanoseconds.
type Rates struct {
	// MAC is for each multiply-add of a Conv, MatMul for one of a MatMul or Gemm,
	// whose output channels (of a group) count as the next multiple of Lanes; Thin
	// for one of a product of few rows, that has to fetch each weight for little
	// work; Output for each element that comes out, Input for each that goes into
	// a Conv.
	MAC    float64 `json:"mac" yaml:"mac"`
	MatMul float64 `json:"matmul" yaml:"matmul"`
	Lanes  int     `json:"lanes" yaml:"lanes"`
	Thin   float64 `json:"thin" yaml:"thin"`
	// Start is for each MatMul or Gemm, whatever its size.
	Start  float64 `json:"start,omitempty" yaml:"start,omitempty"`
	Output float64 `json:"output" yaml:"output"`
	Input  float64 `json:"input" yaml:"input"`
	// Patch is for each place of a kernel larger than 1 at each place of the
	// output of a Conv, and PatchElement for each element that is read there.
	Patch        float64 `json:"patch" yaml:"patch"`
	PatchElement float64 `json:"patch_element" yaml:"patch_element"`
	// DepthMAC and DepthOutput are MAC and Output of a depthwise Conv.
	DepthMAC    float64 `json:"depth_mac" yaml:"depth_mac"`
	DepthOutput float64 `json:"depth_output" yaml:"depth_output"`
	// Average is for each element that an AveragePool adds up, Element for each
	// output element of other operators.
	Average float64 `json:"average" yaml:"average"`
	Element float64 `json:"element" yaml:"element"`
	// Step is for each step of a recurrent cell in each row of the batch, and
	// StepMAC for each multiply-add there.
	Step    float64 `json:"step" yaml:"step"`
	StepMAC float64 `json:"step_mac" yaml:"step_mac"`
}

// ThinRows is the number of rows of a product below which Thin counts.
const ThinRows = 4

// Product returns what a product of n output channels takes that are computed
// from k inputs each at the given number of places, at the rate of MAC or MatMul.
func (r *Rates) Product(mac, places, k, n float64) float64 {
	if places < ThinRows {
		mac = r.Thin
	} else if l := float64(r.Lanes); l > 1 {
		n = l * float64(int((n+l-1)/l))
	}
	return places * n * k * mac
}

// avx2Cost was fitted to 219 convolutions of 8 models and to chains of products
// under onnxruntime 1.32.0 on a Zen 3 core, which has AVX2 and no VNNI, Start to
// chains of products of 1 to 16 rows. Steps of
// recurrent cells are estimated: those of vnniCost, with multiply-adds half as fast.
var avx2Cost = Cost{
	Node:       800,
	Call:       7000,
	Float:      Rates{MAC: 0.0222, MatMul: 0.0222, Lanes: 8, Thin: 0.085, Output: 0.1, DepthMAC: 0.045, DepthOutput: 0.1, Average: 0.06, Element: 0.3, Step: 600, StepMAC: 0.05},
	Int:        Rates{MAC: 0.0105, MatMul: 0.0105, Lanes: 16, Thin: 0.026, Start: 1500, Output: 0.3, Patch: 2, PatchElement: 0.03, DepthMAC: 0.036, DepthOutput: 0.48, Average: 0.95, Element: 0.25, Step: 1300, StepMAC: 0.022},
	Quantize:   0.35,
	Dequantize: 0.25,
	Layout:     0.4,
	Unlayout:   0.6,
}

// vnniCost was fitted to 507 convolutions of 10 models, both ways, and to products
// of 4, and to LSTM cells of 16 to 512 units, under onnxruntime 1.32.0 on a core of
// a Xeon with AVX-512 and VNNI at 2.8 GHz.
var vnniCost = Cost{
	Node:       800,
	Call:       7000,
	Float:      Rates{MAC: 0.0113, MatMul: 0.0155, Lanes: 16, Thin: 0.085, Output: 0.18, Input: 0.08, PatchElement: 0.15, DepthMAC: 0.0185, DepthOutput: 0.22, Average: 0.04, Element: 0.3, Step: 600, StepMAC: 0.037},
	Int:        Rates{MAC: 0.0028, MatMul: 0.0075, Lanes: 16, Thin: 0.026, Output: 0.155, Input: 0.05, Patch: 3.5, PatchElement: 0.03, DepthMAC: 0.0256, DepthOutput: 0.32, Average: 0.95, Element: 0.3, Step: 1300, StepMAC: 0.011},
	Quantize:   0.31,
	Dequantize: 0.3,
	Layout:     0.45,
	Unlayout:   0.75,
}
