package fusion

import "github.com/onnxq/onnxq/graph"

// Shape is the arrangement of DequantizeLinear and QuantizeLinear around an
// operator that a rule asks for.
type Shape int

// Arrangements. All inputs of a kind named here are dequantized, and nothing
// but one QuantizeLinear reads each output, unless something else is said.
const (
	// Move: the first input, whose codes are moved; the parameters of both sides
	// are the same.
	Move Shape = iota
	// MoveIn: the first input, of which the order alone counts; the output is not
	// quantized.
	MoveIn
	// MoveAll: as Move, with several outputs.
	MoveAll
	// Unary: the only input.
	Unary
	// Variadic: all inputs, of one type.
	Variadic
	// Choice: the second and third of three inputs.
	Choice
	// Convolution: activation, weight, and a bias of int32 if there is one.
	Convolution
	// Product: both factors; the output may be float.
	Product
	// General: as Convolution, with beta = 1 if there is a bias; the output may be
	// float.
	General
	// Blocks: a constant weight alone, in codes of 2, 4 or 8 bits with a scale for
	// each block, channel or tensor; the output is float.
	Blocks
)

// Rule says that a group becomes an integer kernel.
type Rule struct {
	Op    string // of the standard domain
	Since int    // the first operator set that the rule knows
	Shape Shape
	// Kernel is what the group becomes; the zero value is the operator itself, on
	// codes. Where the output is float, it is FloatKernel.
	Kernel, FloatKernel graph.OpKey
	Wide                bool // codes of 16 bits will do
	Nibbles             bool // codes of 4 bits will do
	Positive            bool // the scale has to be positive, since order counts
	// Signed says that signed activations go with signed weights on processors
	// whose kernels take them; others want unsigned activations.
	Signed bool
}

const msDomain = "com.microsoft"

func ms(op string) graph.OpKey { return graph.OpKey{Domain: msDomain, Type: op} }

func standard(op string) graph.OpKey { return graph.OpKey{Type: op} }

// Runtime is what a build of ONNX Runtime does with groups.
type Runtime struct {
	Rules []Rule
	// SignedActivations says that its kernels take signed activations. Where they
	// do not, a QuantizeLinear with one DequantizeLinear behind it is made
	// unsigned when the model is loaded.
	SignedActivations bool
}

// rules are those of ONNX Runtime's CPU provider
// (core/optimizer/qdq_transformer/selectors_actions: qdq_selectors.cc,
// qdq_selector_action_transformer.cc), as found in graphs that version 1.32.0
// writes.
var rules = []Rule{
	{Op: "Conv", Shape: Convolution, Kernel: standard("QLinearConv"), Signed: true},
	{Op: "MatMul", Shape: Product, Kernel: standard("QLinearMatMul"), FloatKernel: ms("MatMulIntegerToFloat"), Signed: true},
	{Op: "MatMul", Shape: Blocks, FloatKernel: ms("MatMulNBits"), Nibbles: true},
	{Op: "Gemm", Shape: General, Kernel: ms("QGemm"), FloatKernel: ms("QGemm")},
	{Op: "Gemm", Shape: Blocks, FloatKernel: ms("MatMulNBits"), Nibbles: true},

	{Op: "Add", Shape: Variadic, Kernel: ms("QLinearAdd")},
	{Op: "Mul", Shape: Variadic, Kernel: ms("QLinearMul")},
	{Op: "Concat", Shape: Variadic, Kernel: ms("QLinearConcat")},
	{Op: "Where", Shape: Choice, Kernel: ms("QLinearWhere")},
	{Op: "AveragePool", Shape: Unary, Kernel: ms("QLinearAveragePool")},
	{Op: "GlobalAveragePool", Shape: Unary, Kernel: ms("QLinearGlobalAveragePool")},
	{Op: "LeakyRelu", Shape: Unary, Kernel: ms("QLinearLeakyRelu")},
	{Op: "Sigmoid", Shape: Unary, Kernel: ms("QLinearSigmoid")},
	{Op: "Softmax", Shape: Unary, Kernel: ms("QLinearSoftmax")},

	{Op: "MaxPool", Since: 12, Shape: Move, Nibbles: true, Positive: true},
	{Op: "ReduceMax", Shape: Move, Nibbles: true, Positive: true},
	{Op: "ReduceMin", Shape: Move, Nibbles: true, Positive: true},
	{Op: "Resize", Shape: Move},
	{Op: "Expand", Shape: Move, Wide: true},
	{Op: "Flatten", Shape: Move, Wide: true},
	{Op: "Gather", Shape: Move, Wide: true},
	{Op: "GatherElements", Shape: Move, Wide: true},
	{Op: "Reshape", Shape: Move, Wide: true},
	{Op: "Slice", Shape: Move, Wide: true},
	{Op: "Squeeze", Shape: Move, Wide: true},
	{Op: "Tile", Shape: Move, Wide: true},
	{Op: "Transpose", Shape: Move, Wide: true},
	{Op: "Unsqueeze", Shape: Move, Wide: true},
	{Op: "Split", Shape: MoveAll, Wide: true},
	{Op: "ArgMax", Shape: MoveIn},
}

// X86 and ARM are the CPU providers of ONNX Runtime on these processors.
var (
	X86 = &Runtime{Rules: rules}
	ARM = &Runtime{Rules: rules, SignedActivations: true}
)
