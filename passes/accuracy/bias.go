// Package accuracy holds the passes that lower the error of quantization.
// They change float models or quantization parameters before the quantized
// form is written, and know nothing about how it is written.
package accuracy

import (
	"context"
	"slices"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// Means gives the mean of each channel of an activation along the axis that
// qdq.Plan.Wants asked for, or nil.
type Means func(v *graph.Value) []float64

// CorrectBias takes out of biases what quantization adds to the output of a node
// on average: b[o] -= Σ_k Wq[o,k]·E[q(x_k)] - W[o,k]·E[x_k], with the means
// E[x_k] of input channel k over the calibration samples and E[q(x_k)] of what
// is left of it after rounding and clipping, which is added to it (M. Nagel et al., "Data-Free
// Quantization Through Weight Equalization and Bias Correction", 2019, section
// 4.2; padding counts as part of the mean). Where added is nil or gives none,
// E[x_k] stands for E[q(x_k)], so that only weights count. It applies to Conv and
// Gemm nodes with a constant bias, and to MatMul nodes that a constant bias is
// added to, whose weights the plan stores in 8 bits or fewer, whether they multiply
// on integers or not. It edits m, a copy of the model that the plan was made from, and
// returns the number of biases corrected; one that other nodes read as well stays.
// Errors are summed on the given number of threads (0: one per processor), unless
// memo, which may be nil, knows them.
func CorrectBias(m *graph.Model, plan *qdq.Plan, params []quant.Params, means, added Means, memo *Memo, threads int) (int, error) {
	type key struct{ scope, name string }
	byName := map[key]*quant.Params{}
	for i := range plan.Tensors {
		if t := &plan.Tensors[i]; t.Kind == qdq.Weight && t.Form == "" && t.Type != qdq.Float16 {
			byName[key{t.Scope, t.Tensor}] = &params[i]
		}
	}
	var list, unknown []*correction
	count := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if len(n.Inputs()) < 2 || n.Input(0) == nil || n.Input(1) == nil {
				continue
			}
			w := n.Input(1)
			p := byName[key{w.Graph().Scope(), w.Name()}]
			user, port := biasOf(n)
			if p == nil || user == nil || !w.IsConst() {
				continue
			}
			mean := means(n.Input(0))
			if mean == nil {
				continue
			}
			after := mean
			if added != nil {
				if d := added(n.Input(0)); len(d) == len(mean) {
					after = slices.Clone(mean)
					for k, x := range d {
						after[k] += x
					}
				}
			}
			c := &correction{n: n, user: user, port: port, p: p, mean: mean, after: after}
			list = append(list, c)
			if e := memo.shift(useOf(n, 1), p, mean, after); e != nil {
				c.shift = e.shift
			} else {
				unknown = append(unknown, c)
			}
		}
	}
	par.Each(threads, len(unknown), func(i int) {
		c := unknown[i]
		c.shift, c.err = shiftOf(c.n, c.n.Input(1).Const, c.p, c.mean, c.after)
	})
	for _, c := range unknown {
		if c.err != nil {
			return 0, graph.NodeError("bias correction", c.n, c.err)
		}
		memo.keepShift(useOf(c.n, 1), c.p, c.mean, c.after, c.shift)
	}
	// A bias that several nodes share stays shared, as the plan has it, and gets
	// the mean of what they would have it corrected by.
	groups := map[*graph.Value][]*correction{}
	for _, c := range list {
		v := c.user.Input(c.port)
		if c.shift != nil && len(c.shift) == v.Const.Len() {
			groups[v] = append(groups[v], c)
		}
	}
	for _, c := range list {
		v := c.user.Input(c.port)
		group := groups[v]
		if len(group) == 0 || group[0] != c || len(group) != len(v.Uses()) {
			continue
		}
		b := tensor.As[float32](v.Const)
		fixed := make([]float32, len(b))
		for i := range b {
			shift := 0.0
			for _, k := range group {
				shift += k.shift[i]
			}
			fixed[i] = float32(float64(b[i]) - shift/float64(len(group)))
		}
		x := tensor.Of(fixed, v.Const.Shape()...)
		delete(groups, v)
		put(c.user, c.port, x)
		for _, k := range group[1:] {
			k.user.SetInput(k.port, c.user.Input(c.port))
		}
		if len(group) > 1 {
			settle(c.user.Input(c.port), v)
		}
		count++
	}
	return count, nil
}

// correction is what shiftOf finds for the node n, whose bias user reads.
type correction struct {
	n, user     *graph.Node
	port        int
	p           *quant.Params
	mean, after []float64
	shift       []float64
	err         error
}

// biasOf returns the node and port that hold the constant float32 bias of n.
func biasOf(n *graph.Node) (*graph.Node, int) {
	user, port := n, 2
	switch n.Op.Type {
	case "Conv", "Gemm":
	case "MatMul":
		y := n.Output(0)
		if user = y.OnlyUse(); user == nil || user.Op != (graph.OpKey{Type: "Add"}) {
			return nil, 0
		}
		port = 0
		if user.Input(0) == y {
			port = 1
		}
	default:
		return nil, 0
	}
	b := user.Input(port)
	if !holdsFloats(b) || b.Const.Rank() != 1 {
		return nil, 0
	}
	return user, port
}

// shiftOf returns the mean error of each output channel, or nil where the
// shapes do not fit.
func shiftOf(n *graph.Node, w *tensor.Tensor, p *quant.Params, mean, after []float64) ([]float64, error) {
	codes, err := p.Quantize(nil, w)
	if err != nil {
		return nil, err
	}
	a, b := tensor.As[float32](w), tensor.As[float32](p.Dequantize(codes))
	shape := w.Shape()
	spec := ops.Lookup(n)
	if n.Op.Type == "Conv" {
		groups := int(n.Int("group", 1))
		outs, ins := shape[0], shape[1]
		if groups < 1 || outs%groups != 0 || len(mean) != ins*groups {
			return nil, nil
		}
		shift := make([]float64, outs)
		if len(a) == 0 {
			return shift, nil
		}
		taps := len(a) / (outs * ins)
		for o := range shift {
			sum, first := 0.0, o/(outs/groups)*ins
			for c := range ins {
				at := (o*ins + c) * taps
				x, y := mean[first+c], after[first+c]
				for i := at; i < at+taps; i++ {
					sum += float64(float64(b[i])*y) - float64(float64(a[i])*x)
				}
			}
			shift[o] = sum
		}
		return shift, nil
	}
	axis := spec.Axis(n, 1, len(shape))
	if len(shape) != 2 || axis < 0 || len(mean) != shape[1-axis] {
		return nil, nil
	}
	shift := make([]float64, shape[axis])
	columns := shape[1]
	for r := range shape[0] {
		a, b := a[r*columns:][:columns], b[r*columns:][:columns]
		if axis == 0 {
			sum := 0.0
			for c, x := range a {
				sum += float64(float64(b[c])*after[c]) - float64(float64(x)*mean[c])
			}
			shift[r] = sum
			continue
		}
		x, y := mean[r], after[r]
		for c, w := range a {
			shift[c] += float64(float64(b[c])*y) - float64(float64(w)*x)
		}
	}
	return shift, nil
}

// MeasureMeans runs the samples through m and returns what quantization with params adds
// to the mean of each channel of the planned activations that products read: by rounding
// and clipping the very samples, since means of different ones differ by more. It is 0
// where a channel holds what is not finite.
func MeasureMeans(ctx context.Context, m *graph.Model, plan *qdq.Plan, params []quant.Params, samples Samples, o exec.SessionOptions) (Means, error) {
	values, err := plan.Values(m)
	if err != nil {
		return nil, err
	}
	want, err := plan.Wants(m)
	if err != nil {
		return nil, err
	}
	taps := make([]bool, m.NumValues())
	at := make([]int, m.NumValues())
	for i, v := range values {
		if plan.Tensors[i].Kind == qdq.Activation && want[v.ID].Channels && params[i].Type.DType.Bits() == 8 && !params[i].Type.Real() {
			taps[v.ID], at[v.ID] = true, i
		}
	}
	type sum struct {
		codes, count []int64
		x            []float64
	}
	sums := make([]sum, m.NumValues())
	prog, err := exec.Compile(m, exec.Options{Taps: taps})
	if err != nil {
		return nil, err
	}
	session := prog.NewSession(o)
	tap := func(v *graph.Value, t *tensor.Tensor) error {
		if v.ID >= len(taps) || !taps[v.ID] || t.DType() != tensor.Float32 {
			return nil
		}
		axis, shape := want[v.ID].Axis, t.Shape()
		if axis < 0 {
			axis += len(shape)
		}
		if axis < 0 || axis >= len(shape) {
			return nil
		}
		codes, err := params[at[v.ID]].Quantize(nil, t)
		if err != nil {
			return err
		}
		s := &sums[v.ID]
		for len(s.codes) < shape[axis] {
			s.codes, s.count, s.x = append(s.codes, 0), append(s.count, 0), append(s.x, 0)
		}
		inner := 1
		for _, d := range shape[axis+1:] {
			inner *= d
		}
		signed := codes.DType() == tensor.Int8
		data, floats := codes.Bytes(), tensor.As[float32](t)
		for start, c := 0, 0; start < len(data); start, c = start+inner, c+1 {
			if c == shape[axis] {
				c = 0
			}
			n := int64(0)
			for _, b := range data[start : start+inner] {
				if signed {
					n += int64(int8(b))
				} else {
					n += int64(b)
				}
			}
			s.codes[c] += n
			s.count[c] += int64(inner)
			x := 0.0
			for _, f := range floats[start : start+inner] {
				x += float64(f)
			}
			s.x[c] += x
		}
		return nil
	}
	err = samples(ctx, func(feeds map[string]ops.Data) error {
		_, err := session.Run(ctx, feeds, tap, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	return func(v *graph.Value) []float64 {
		if v.ID >= len(taps) || !taps[v.ID] {
			return nil
		}
		p, s := &params[at[v.ID]], &sums[v.ID]
		out := make([]float64, len(s.codes))
		for c := range out {
			n := float64(s.count[c])
			d := (float64(s.codes[c])/n-float64(p.Zero[0]))*float64(p.Scale[0]) - s.x[c]/n
			if d-d == 0 {
				out[c] = d
			}
		}
		return out
	}, nil
}
