package ops

import (
	"fmt"
	"math"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
)

// activation is an activation function that an operator names in an
// attribute: those of LSTM, GRU and RNN, and those of com.microsoft's fused
// operators.
type activation struct {
	name        string
	params      int // how many of alpha and beta it takes
	alpha, beta float64
	f           func(x, alpha, beta float64) float64
}

// activations lists the functions with the defaults of alpha and beta, as in
// the ONNX operators of the same names.
var activations = []activation{
	{"Relu", 0, 0, 0, func(x, _, _ float64) float64 { return max(x, 0) }},
	{"Tanh", 0, 0, 0, func(x, _, _ float64) float64 { return math.Tanh(x) }},
	{"Sigmoid", 0, 0, 0, func(x, _, _ float64) float64 { return 1 / (1 + math.Exp(-x)) }},
	{"Affine", 2, 1, 0, func(x, a, b float64) float64 { return a*x + b }},
	{"LeakyRelu", 1, 0.01, 0, func(x, a, _ float64) float64 {
		if x < 0 {
			return a * x
		}
		return x
	}},
	{"ThresholdedRelu", 1, 1, 0, func(x, a, _ float64) float64 {
		if x < a {
			return 0
		}
		return x
	}},
	{"ScaledTanh", 2, 1, 1, func(x, a, b float64) float64 { return a * math.Tanh(b*x) }},
	{"HardSigmoid", 2, 0.2, 0.5, func(x, a, b float64) float64 { return min(max(a*x+b, 0), 1) }},
	{"Elu", 1, 1, 0, func(x, a, _ float64) float64 {
		if x < 0 {
			return a * math.Expm1(x)
		}
		return x
	}},
	{"Softsign", 0, 0, 0, func(x, _, _ float64) float64 { return x / (1 + math.Abs(x)) }},
	{"Softplus", 0, 0, 0, func(x, _, _ float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }},
	{"Clip", 2, math.Inf(-1), math.Inf(1), func(x, a, b float64) float64 { return min(max(x, a), b) }},
}

// newActivation returns the function with the given name, in any case, with as many of its
// defaults replaced as params has entries.
func newActivation(name string, params []float32) (*activation, error) {
	for _, a := range activations {
		if !strings.EqualFold(a.name, name) {
			continue
		}
		if len(params) > 0 {
			a.alpha = float64(params[0])
		}
		if len(params) > 1 {
			a.beta = float64(params[1])
		}
		return &a, nil
	}
	return nil, fmt.Errorf("unknown activation %q", name)
}

// fusedActivation returns the activation of a fused operator of com.microsoft,
// or nil if it has none.
func fusedActivation(n *graph.Node) (*activation, error) {
	name := n.String("activation", "")
	if name == "" {
		return nil, nil
	}
	var params []float32
	if a := n.Attr("activation_params"); a != nil {
		params = a.Floats
	}
	return newActivation(name, params)
}

// activate applies a to every element of y, in float32 as ONNX Runtime does.
func activate[T float32 | float64](a *activation, y []T) {
	if y32, ok := any(y).([]float32); ok {
		switch a.name {
		case "Relu":
			kernels.Unary(kernels.Relu, y32, y32)
			return
		case "Tanh":
			kernels.Unary(kernels.TanhRatio, y32, y32)
			return
		case "Sigmoid":
			kernels.Unary(kernels.SigmoidRatio, y32, y32)
			return
		}
	}
	for i, v := range y {
		y[i] = T(a.f(float64(v), a.alpha, a.beta))
	}
}
