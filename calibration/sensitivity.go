package calibration

import (
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// Request asks for a range.
type Request struct {
	Stats   *Stats
	Method  Method
	Options MethodOptions
}

// Answer is the result of Range.
type Answer struct {
	Range quant.Range
	Err   error
}

// Ranges answers all requests, on the given number of threads (0: one per
// processor).
func Ranges(list []Request, threads int) []Answer {
	out := make([]Answer, len(list))
	par.Each(threads, len(list), func(i int) {
		r := &list[i]
		out[i].Range, out[i].Err = Range(r.Stats, r.Method, r.Options)
	})
	return out
}

// Sensitivity returns, for each of the channels of v, the sum of the squares of
// the constant weights that an element of the channel is multiplied with by the
// Conv, MatMul and Gemm nodes that read v. It is nil where there are none, or
// where they do not have that many channels.
func Sensitivity(v *graph.Value, channels int) []float64 {
	var out []float64
	for _, u := range v.Uses() {
		if u.Node == nil || u.Index != 0 || len(u.Node.Inputs()) < 2 || u.Node.Op.Domain != graph.OnnxDomain {
			continue
		}
		w := u.Node.Input(1)
		if w == nil || !w.IsConst() || w.Const.DType() != tensor.Float32 || w.Const.Rank() < 2 {
			continue
		}
		own := squares(u.Node, w.Const, channels)
		if own == nil {
			continue
		}
		if out == nil {
			out = make([]float64, channels)
		}
		for c, s := range own {
			out[c] += s
		}
	}
	return out
}

// squares sums the squares of the weights of each input channel.
func squares(n *graph.Node, w *tensor.Tensor, channels int) []float64 {
	shape, data := w.Shape(), tensor.As[float32](w)
	out := make([]float64, channels)
	switch n.Op.Type {
	case "Conv":
		groups := int(n.Int("group", 1))
		if groups < 1 || shape[0]%groups != 0 || shape[1]*groups != channels || len(data) == 0 {
			return nil
		}
		each := len(data) / (shape[0] * shape[1])
		for i, x := range data {
			o, c := i/each/shape[1], i/each%shape[1]
			out[o/(shape[0]/groups)*shape[1]+c] += float64(float64(x) * float64(x))
		}
	case "MatMul", "Gemm":
		axis := ops.Lookup(n).Axis(n, 1, len(shape))
		if len(shape) != 2 || axis < 0 || shape[1-axis] != channels {
			return nil
		}
		for i, x := range data {
			at := [2]int{i / shape[1], i % shape[1]}
			out[at[1-axis]] += float64(float64(x) * float64(x))
		}
	default:
		return nil
	}
	return out
}
