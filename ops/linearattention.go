package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// linearSpecs lists the operators of linear attention and state-space models,
// which carry a state of fixed size from one run to the next.
func linearSpecs() []Spec {
	out := []Port{{Name: "output", Role: Activation}, {Name: "present_state", Optional: true}}
	ints := func(names ...string) (a []AttrSpec) {
		for _, n := range names {
			a = append(a, AttrSpec{Name: n, Kind: graph.AttrInt})
		}
		return a
	}
	causal := func(domain string, since int, more ...AttrSpec) Spec {
		return Spec{Domain: domain, Type: "CausalConvWithState", Since: since, Flow: Compute, Pure: true,
			In:    []Port{{Name: "input", Role: Activation}, {Name: "weight"}, {Name: "bias", Optional: true}, {Name: "past_state", Optional: true}},
			Out:   out,
			Attrs: append([]AttrSpec{{Name: "activation", Kind: graph.AttrString}}, more...),
			Infer: inferCausalConv, Compile: compileCausalConv}
	}
	attention := func(domain string, since int, more ...AttrSpec) Spec {
		return Spec{Domain: domain, Type: "LinearAttention", Since: since, Flow: Compute, Pure: true,
			In: []Port{{Name: "query", Role: Activation}, {Name: "key", Role: Activation}, {Name: "value", Role: Activation},
				{Name: "past_state", Optional: true}, {Name: "decay", Optional: true}, {Name: "beta", Optional: true}},
			Out: out,
			Attrs: append([]AttrSpec{{Name: "chunk_size", Kind: graph.AttrInt}, {Name: "kv_num_heads", Kind: graph.AttrInt, Required: true},
				{Name: "q_num_heads", Kind: graph.AttrInt, Required: true}, {Name: "scale", Kind: graph.AttrFloat}, {Name: "update_rule", Kind: graph.AttrString}}, more...),
			Infer: inferLinearAttention, Compile: compileLinearAttention}
	}
	return []Spec{
		causal(graph.OnnxDomain, 27), attention(graph.OnnxDomain, 27),
		causal(msDomain, 1, ints("channels_last", "dilation", "ndim", "state_window", "input_channels", "input_channel_offset", "state_length")...),
		attention(msDomain, 1, ints("state_window")...),
	}
}

// extended returns an error where a node of com.microsoft asks for what the
// operator of the default domain does not have.
func extended(n *graph.Node) error {
	for _, a := range []struct {
		name  string
		plain int64
	}{{"channels_last", 0}, {"dilation", 1}, {"ndim", 1}, {"state_window", 0}, {"input_channels", 0}, {"input_channel_offset", 0}, {"state_length", 0}} {
		if v := n.Int(a.name, a.plain); v != a.plain {
			return fmt.Errorf("%s is %d, only %d is supported", a.name, v, a.plain)
		}
	}
	return nil
}

func inferCausalConv(c *Inference) error {
	x, w := c.Shape(0), c.Shape(1)
	c.Tensor(0, c.Elem(0), bare(x))
	if len(x) != 3 || len(w) != 3 {
		c.Tensor(1, c.Elem(0), graph.UnknownShape(3))
		return nil
	}
	taps := graph.Dim{}
	if w[2].Known {
		taps = graph.D(w[2].Size - 1)
	}
	c.Tensor(1, c.Elem(0), graph.Shape{bareDim(x[0]), bareDim(x[1]), taps})
	return nil
}

// compileCausalConv compiles the depthwise convolution over past_state and
// input, one behind the other along the last axis: output t sees what stands
// at t-k+1 to t. The last k-1 columns are the next state.
func compileCausalConv(s *Site) (Kernel, error) {
	if err := extended(s.Node); err != nil {
		return nil, s.Errorf("%w", err)
	}
	var act unary
	switch a := s.Node.String("activation", "none"); a {
	case "none":
	case "silu", "swish":
		act = swish(1)
	default:
		return nil, s.Errorf("activation is %q", a)
	}
	return func(c *Call) error {
		x, w := c.In(0), c.In(1)
		if carrierOf(x.DType()) != carryF32 || x.Rank() != 3 || w.Rank() != 3 {
			return fmt.Errorf("input %v, weight %v", x, w)
		}
		n, ch, length, k := x.Shape()[0], x.Shape()[1], x.Shape()[2], w.Shape()[2]
		if w.Shape()[0] != ch || w.Shape()[1] != 1 || k < 1 {
			return fmt.Errorf("weight %v for %d channels", w, ch)
		}
		bias, err := optionalShape[float32](c, 2, ch)
		if err != nil {
			return err
		}
		past, err := optionalShape[float32](c, 3, n, ch, k-1)
		if err != nil {
			return err
		}
		xs, err := load[float32](c, x)
		if err != nil {
			return err
		}
		ws, err := load[float32](c, w)
		if err != nil {
			return err
		}
		y, err := newOutput[float32](c, 0, -1, x.DType(), x.Shape())
		if err != nil {
			return err
		}
		state, err := newOutput[float32](c, 1, -1, x.DType(), []int{n, ch, k - 1})
		if err != nil {
			return err
		}
		width := k - 1 + length
		rows, err := scratch[float32](c, n*ch*width)
		if err != nil {
			return err
		}
		if err := c.For(n*ch, max(1, cheapChunk/max(length*k, 1)), func(lo, hi int) {
			for r := lo; r < hi; r++ {
				row := rows[r*width:][:width]
				if past != nil {
					copy(row, past[r*(k-1):][:k-1])
				} else {
					clear(row[:k-1])
				}
				copy(row[k-1:], xs[r*length:][:length])
				copy(state.data[r*(k-1):][:k-1], row[length:])
				dst, taps := y.data[r*length:][:length], ws[r%ch*k:][:k]
				for t := range dst {
					sum := float32(0)
					for i, v := range taps {
						sum += float32(v * row[t+i])
					}
					if bias != nil {
						sum += bias[r%ch]
					}
					dst[t] = sum
				}
				if act.f32 != nil {
					act.f32(dst, dst)
				}
			}
		}); err != nil {
			return err
		}
		if err := state.store(c); err != nil {
			return err
		}
		return y.store(c)
	}, nil
}

// optionalShape returns input i, which has to have the given shape, or nil if
// it is omitted.
func optionalShape[T tensor.Real](c *Call, i int, shape ...int) ([]T, error) {
	t := c.In(i)
	if t == nil {
		return nil, nil
	}
	if !equalInts(t.Shape(), shape) {
		return nil, fmt.Errorf("input %d is %v, want the shape %v", i, t, shape)
	}
	return load[T](c, t)
}

func inferLinearAttention(c *Inference) error {
	q, k, v := c.Shape(0), c.Shape(1), c.Shape(2)
	heads, kv := c.Node.Int("q_num_heads", 0), c.Node.Int("kv_num_heads", 0)
	if !groups(heads, kv) {
		return c.Errorf("q_num_heads is %d, kv_num_heads %d", heads, kv)
	}
	per := func(s graph.Shape) graph.Dim {
		if len(s) == 3 && s[2].Known {
			return graph.D(s[2].Size / kv)
		}
		return graph.Dim{}
	}
	y, state := graph.UnknownShape(3), graph.UnknownShape(4)
	if len(q) == 3 {
		y[0], y[1], state[0] = bareDim(q[0]), bareDim(q[1]), bareDim(q[0])
	}
	state[1], state[2], state[3] = graph.D(kv), per(k), per(v)
	if state[3].Known {
		y[2] = graph.D(max(heads, kv) * state[3].Size)
	}
	c.Tensor(0, c.Elem(0), y)
	elem := c.Elem(0)
	if c.Node.Input(3) != nil {
		elem = c.Elem(3)
	}
	c.Tensor(1, elem, state)
	return nil
}

// groups reports whether heads query heads and kv key-value heads go together:
// the larger number is a multiple of the other. More key-value heads than query
// heads are an extension of com.microsoft; each then gives an output of its own.
func groups(heads, kv int64) bool {
	return heads > 0 && kv > 0 && max(heads, kv)%min(heads, kv) == 0
}

// linearAttention is a LinearAttention bound to its attributes.
type linearAttention struct {
	heads, kv    int
	scale        float32
	gated, delta bool
}

func compileLinearAttention(s *Site) (Kernel, error) {
	n := s.Node
	if err := extended(n); err != nil {
		return nil, s.Errorf("%w", err)
	}
	a := &linearAttention{heads: int(n.Int("q_num_heads", 0)), kv: int(n.Int("kv_num_heads", 0)), scale: n.Float("scale", 0)}
	switch r := n.String("update_rule", "gated_delta"); r {
	case "linear":
	case "gated":
		a.gated = true
	case "delta":
		a.delta = true
	case "gated_delta":
		a.gated, a.delta = true, true
	default:
		return nil, s.Errorf("update_rule is %q", r)
	}
	if !groups(int64(a.heads), int64(a.kv)) {
		return nil, s.Errorf("q_num_heads is %d, kv_num_heads %d", a.heads, a.kv)
	}
	if a.gated && !s.Has(4) || a.delta && !s.Has(5) {
		return nil, s.Errorf("the update rule needs decay or beta")
	}
	return a.run, nil
}

// linearRun is one execution of a linearAttention: the operands as float32.
type linearRun struct {
	*linearAttention
	length, dk, dv      int
	q, k, v             []float32
	decay, beta         []float32
	decayRow, decayStep int // elements of decay at one time step, and of one head
	betaRow             int
	y, state            []float32
}

func (a *linearAttention) run(c *Call) error {
	q, k, v := c.In(0), c.In(1), c.In(2)
	for _, t := range []*tensor.Tensor{q, k, v} {
		if carrierOf(t.DType()) != carryF32 || t.Rank() != 3 || !equalInts(t.Shape()[:2], q.Shape()[:2]) {
			return fmt.Errorf("operands %v, %v and %v", q, k, v)
		}
	}
	batch, length := q.Shape()[0], q.Shape()[1]
	r := linearRun{linearAttention: a, length: length, dk: k.Shape()[2] / a.kv, dv: v.Shape()[2] / a.kv}
	if k.Shape()[2] != r.dk*a.kv || v.Shape()[2] != r.dv*a.kv || q.Shape()[2] != r.dk*a.heads || r.dk == 0 {
		return fmt.Errorf("operands %v, %v and %v for %d and %d heads", q, k, v, a.heads, a.kv)
	}
	var err error
	if r.q, err = load[float32](c, q); err != nil {
		return err
	}
	if r.k, err = load[float32](c, k); err != nil {
		return err
	}
	if r.v, err = load[float32](c, v); err != nil {
		return err
	}
	if a.gated {
		r.decayRow, r.decayStep = a.kv, 1
		if t := c.In(4); t.Rank() == 3 && t.Shape()[2] != a.kv {
			r.decayRow, r.decayStep = a.kv*r.dk, r.dk
		}
		if r.decay, err = optionalShape[float32](c, 4, batch, length, r.decayRow); err != nil {
			return err
		}
	}
	if a.delta {
		r.betaRow = a.kv
		if t := c.In(5); t.Rank() == 3 && t.Shape()[2] == 1 {
			r.betaRow = 1
		}
		if r.beta, err = optionalShape[float32](c, 5, batch, length, r.betaRow); err != nil {
			return err
		}
	}
	elem := q.DType()
	if p := c.In(3); p != nil {
		elem = p.DType()
	}
	past, err := optionalShape[float32](c, 3, batch, a.kv, r.dk, r.dv)
	if err != nil {
		return err
	}
	y, err := newOutput[float32](c, 0, -1, q.DType(), []int{batch, length, max(a.heads, a.kv) * r.dv})
	if err != nil {
		return err
	}
	state, err := newOutput[float32](c, 1, -1, elem, []int{batch, a.kv, r.dk, r.dv})
	if err != nil {
		return err
	}
	r.y, r.state = y.data, state.data
	if past != nil {
		copy(r.state, past)
	} else {
		clear(r.state)
	}
	if a.scale == 0 {
		r.linearAttention = &linearAttention{heads: a.heads, kv: a.kv, gated: a.gated, delta: a.delta, scale: float32(1 / math.Sqrt(float64(r.dk)))}
	}
	read, err := scratch[float32](c, batch*a.kv*r.dv)
	if err != nil {
		return err
	}
	if err := c.For(batch*a.kv, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			r.head(i/a.kv, i%a.kv, read[i*r.dv:][:r.dv])
		}
	}); err != nil {
		return err
	}
	if err := state.store(c); err != nil {
		return err
	}
	return y.store(c)
}

// head runs the recurrence of key-value head h over all time steps, for the
// query heads that share it. S is its state, dk × dv:
//
//	S ← exp(decay)·S
//	S ← S + β·k ⊗ (v - Sᵀk), or S + k ⊗ v without the delta rule
//	y = scale·Sᵀq
func (r *linearRun) head(b, h int, read []float32) {
	s := r.state[(b*r.kv+h)*r.dk*r.dv:][:r.dk*r.dv]
	group, outs := max(r.heads/r.kv, 1), max(r.heads, r.kv)
	for t := range r.length {
		at := b*r.length + t
		k := r.k[(at*r.kv+h)*r.dk:][:r.dk]
		v := r.v[(at*r.kv+h)*r.dv:][:r.dv]
		if r.gated {
			g := r.decay[at*r.decayRow+h*r.decayStep:][:r.decayStep]
			for i := range k {
				f := float32(math.Exp(float64(g[i%r.decayStep])))
				for j := range v {
					s[i*r.dv+j] *= f
				}
			}
		}
		copy(read, v)
		if r.delta {
			beta := r.beta[at*r.betaRow+h%r.betaRow]
			for i, x := range k {
				for j := range v {
					read[j] -= float32(x * s[i*r.dv+j])
				}
			}
			for j := range read {
				read[j] *= beta
			}
		}
		for i, x := range k {
			for j, d := range read {
				s[i*r.dv+j] += float32(x * d)
			}
		}
		for u := range group {
			out := h*group + u
			q := r.q[(at*r.heads+out*r.heads/outs)*r.dk:][:r.dk]
			y := r.y[(at*outs+out)*r.dv:][:r.dv]
			clear(y)
			for i, x := range q {
				for j := range y {
					y[j] += float32(x * s[i*r.dv+j])
				}
			}
			for j := range y {
				y[j] *= r.scale
			}
		}
	}
}
