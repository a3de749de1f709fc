package ops

import (
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

func rnnSpecs() []Spec {
	attrs := []AttrSpec{
		{Name: "activation_alpha", Kind: graph.AttrFloats}, {Name: "activation_beta", Kind: graph.AttrFloats},
		{Name: "activations", Kind: graph.AttrStrings}, {Name: "clip", Kind: graph.AttrFloat},
		{Name: "direction", Kind: graph.AttrString}, {Name: "hidden_size", Kind: graph.AttrInt}, {Name: "layout", Kind: graph.AttrInt},
	}
	in := []Port{
		{Name: "X", Role: Activation}, {Name: "W", Role: Weight, Axis: 1}, {Name: "R", Role: Weight, Axis: 1},
		{Name: "B", Role: Bias, Optional: true}, {Name: "sequence_lens", Role: Index, Optional: true},
		{Name: "initial_h", Role: State, Optional: true},
	}
	out := []Port{{Name: "Y", Role: Activation, Optional: true}, {Name: "Y_h", Role: State, Optional: true}}
	spec := func(name string, attr ...string) Spec {
		s := Spec{Type: name, Since: 7, Flow: Compute, Pure: true, In: in, Out: out, Attrs: attrs[:7:7], Infer: inferRNN, Compile: compileRNN}
		for _, a := range attr {
			s.Attrs = append(s.Attrs, AttrSpec{Name: a, Kind: graph.AttrInt})
		}
		return s
	}
	lstm := spec("LSTM", "input_forget")
	lstm.In = append(in[:6:6], Port{Name: "initial_c", Role: State, Optional: true}, Port{Name: "P", Optional: true})
	lstm.Out = append(out[:2:2], Port{Name: "Y_c", Role: State, Optional: true})
	dynamic := spec("DynamicQuantizeLSTM", "input_forget")
	dynamic.Domain, dynamic.Flow, dynamic.Compile, dynamic.Out = msDomain, Opaque, compileDynamicLSTM, lstm.Out
	dynamic.In = append(lstm.In[:8:8], Port{Name: "W_scale"}, Port{Name: "W_zero_point"}, Port{Name: "R_scale"}, Port{Name: "R_zero_point"})
	dynamic.In[rnnW], dynamic.In[rnnR] = Port{Name: "W"}, Port{Name: "R"}
	return []Spec{lstm, spec("GRU", "linear_before_reset"), spec("RNN"), dynamic}
}

// Inputs of the recurrent operators.
const (
	rnnX = iota
	rnnW
	rnnR
	rnnB
	rnnLens
	rnnH
	rnnC // LSTM
	rnnP // LSTM
)

// gateCount is the number of gates of an operator.
func gateCount(op string) int {
	switch op {
	case "LSTM", "DynamicQuantizeLSTM":
		return 4
	case "GRU":
		return 3
	}
	return 1
}

func directions(n *graph.Node) (int, error) {
	switch d := n.String("direction", "forward"); d {
	case "forward", "reverse":
		return 1, nil
	case "bidirectional":
		return 2, nil
	default:
		return 0, fmt.Errorf("direction is %q", d)
	}
}

func inferRNN(c *Inference) error {
	dirs, err := directions(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	x := c.Shape(rnnX)
	if x != nil && len(x) != 3 {
		return c.Errorf("input of shape %v", x)
	}
	var steps, batch, hidden graph.Dim
	if x != nil {
		steps, batch = bareDim(x[0]), bareDim(x[1])
	}
	if r := c.Shape(rnnR); len(r) == 3 && c.Node.Op.Type != "DynamicQuantizeLSTM" {
		hidden = bareDim(r[2])
	} else if len(r) == 3 {
		hidden = bareDim(r[1])
	}
	if h := c.Node.Int("hidden_size", 0); h > 0 && !hidden.Known {
		hidden = graph.D(h)
	}
	d := graph.D(int64(dirs))
	y, last := graph.Shape{steps, d, batch, hidden}, graph.Shape{d, batch, hidden}
	if c.Node.Int("layout", 0) != 0 {
		steps, batch = batch, steps
		y, last = graph.Shape{batch, steps, d, hidden}, graph.Shape{batch, d, hidden}
	}
	c.Tensor(0, c.Elem(rnnX), y)
	c.Tensor(1, c.Elem(rnnX), last)
	if gateCount(c.Node.Op.Type) == 4 {
		c.Tensor(2, c.Elem(rnnX), last)
	}
	return nil
}

// recurrence is an LSTM, GRU or RNN bound to its attributes and constants.
type recurrence struct {
	op         string
	gates      int
	dirs       int
	reverse    bool
	batchFirst bool
	clip       float64       // 0: none
	acts       []*activation // per direction f, g, h as far as the operator has them
	coupled    bool          // input_forget
	lateReset  bool          // linear_before_reset
	// Constant weights per direction. A GRU that resets before it multiplies
	// has the recurrent weights of its last gate apart.
	w, r, rh []*kernels.PackedB

	saturate bool // of integer products
}

// defaultActivations of the operators, per direction.
var defaultActivations = map[string][]string{
	"LSTM": {"Sigmoid", "Tanh", "Tanh"}, "DynamicQuantizeLSTM": {"Sigmoid", "Tanh", "Tanh"},
	"GRU": {"Sigmoid", "Tanh"}, "RNN": {"Tanh"},
}

func newRecurrence(s *Site) (*recurrence, error) {
	n := s.Node
	rn := &recurrence{
		op: n.Op.Type, gates: gateCount(n.Op.Type), reverse: n.String("direction", "") == "reverse",
		batchFirst: n.Int("layout", 0) != 0, clip: float64(n.Float("clip", 0)),
		coupled: n.Int("input_forget", 0) != 0, lateReset: n.Int("linear_before_reset", 0) != 0,
		saturate: s.Saturate,
	}
	var err error
	if rn.dirs, err = directions(n); err != nil {
		return nil, s.Errorf("%w", err)
	}
	names := defaultActivations[rn.op]
	per := len(names)
	if rn.dirs == 2 {
		names = append(names[:per:per], names...)
	}
	if a := n.Attr("activations"); a != nil && len(a.Strings) > 0 {
		if len(a.Strings) != len(names) {
			return nil, s.Errorf("%d activations, %d are needed", len(a.Strings), len(names))
		}
		names = a.Strings
	}
	var alphas, betas []float32
	if a := n.Attr("activation_alpha"); a != nil {
		alphas = a.Floats
	}
	if a := n.Attr("activation_beta"); a != nil {
		betas = a.Floats
	}
	for _, name := range names {
		act, err := newActivation(name, nil)
		if err != nil {
			return nil, s.Errorf("%w", err)
		}
		if act.params > 0 && len(alphas) > 0 {
			act.alpha, alphas = float64(alphas[0]), alphas[1:]
		}
		if act.params > 1 && len(betas) > 0 {
			act.beta, betas = float64(betas[0]), betas[1:]
		}
		rn.acts = append(rn.acts, act)
	}
	return rn, nil
}

func compileRNN(s *Site) (Kernel, error) {
	rn, err := newRecurrence(s)
	if err != nil {
		return nil, err
	}
	w, r := s.Const(rnnW), s.Const(rnnR)
	if w != nil && r != nil && isFloat32ish(w.DType()) && isFloat32ish(r.DType()) {
		hidden, err := rn.checkWeights(w, r)
		if err != nil {
			return nil, s.Errorf("%w", err)
		}
		ws, _ := tensor.Float32s(w) // float types always convert
		rs, _ := tensor.Float32s(r)
		rn.w, rn.r, rn.rh = rn.pack(ws, rs, w.Shape()[2], hidden)
	}
	return widened(func(c *Call) error {
		switch x := c.In(rnnX); x.DType() {
		case tensor.Float32:
			return recur[float32](rn, c)
		case tensor.Float64:
			return recur[float64](rn, c)
		default:
			return fmt.Errorf("input of type %v", x.DType())
		}
	}), nil
}

// checkWeights returns the hidden size.
func (rn *recurrence) checkWeights(w, r *tensor.Tensor) (int, error) {
	if w.Rank() != 3 || r.Rank() != 3 {
		return 0, fmt.Errorf("weights %v and %v", w, r)
	}
	hidden := r.Shape()[2]
	if w.Shape()[0] != rn.dirs || r.Shape()[0] != rn.dirs || w.Shape()[1] != rn.gates*hidden || r.Shape()[1] != rn.gates*hidden {
		return 0, fmt.Errorf("weights %v and %v for %d directions and %d gates", w, r, rn.dirs, rn.gates)
	}
	return hidden, nil
}

// splitGates returns how many gates the first recurrent product covers.
func (rn *recurrence) splitGates() int {
	if rn.op == "GRU" && !rn.lateReset {
		return 2
	}
	return rn.gates
}

// pack packs the weights of each direction.
func (rn *recurrence) pack(w, r []float32, in, hidden int) (pw, pr, ph []*kernels.PackedB) {
	rows, first := rn.gates*hidden, rn.splitGates()*hidden
	for d := range rn.dirs {
		pw = append(pw, kernels.PackB(in, rows, kernels.Matrix{Data: w[d*rows*in:][:rows*in], Ld: in, Trans: true}))
		rd := r[d*rows*hidden:][:rows*hidden]
		pr = append(pr, kernels.PackB(hidden, first, kernels.Matrix{Data: rd, Ld: hidden, Trans: true}))
		if first < rows {
			ph = append(ph, kernels.PackB(hidden, hidden, kernels.Matrix{Data: rd[first*hidden:], Ld: hidden, Trans: true}))
		}
	}
	return pw, pr, ph
}

// multiplier computes y = x·M for rows of x and a fixed matrix M, the rows of
// y being ldy elements apart.
type multiplier[T float32 | float64] func(c *Call, rows int, x, y []T, ldy int) error

// multipliers returns the products of a direction: with the input weights, and
// with the recurrent ones (in two parts where splitGates says so).
func multipliers[T float32 | float64](rn *recurrence, w, r []T, in, hidden, d int) (x, h, h2 multiplier[T]) {
	rows, first := rn.gates*hidden, rn.splitGates()*hidden
	if w32, ok := any(w).([]float32); ok {
		pw, pr, ph := rn.w, rn.r, rn.rh
		if pw == nil {
			pw, pr, ph = rn.pack(w32, any(r).([]float32), in, hidden)
		}
		mul := func(p *kernels.PackedB, k int) multiplier[T] {
			return func(c *Call, rows int, x, y []T, ldy int) error {
				kernels.GemmPacked(c.Pool, rows, kernels.Matrix{Data: any(x).([]float32), Ld: k}, p, any(y).([]float32), ldy, nil)
				return nil
			}
		}
		if ph != nil {
			h2 = mul(ph[d], hidden)
		}
		return mul(pw[d], in), mul(pr[d], hidden), h2
	}
	mul := func(m []T, k, n int) multiplier[T] {
		return func(c *Call, rows int, x, y []T, ldy int) error {
			product(c, rows, n, k, x, k, false, m, k, true, y, ldy)
			return nil
		}
	}
	rd := r[d*rows*hidden:]
	return mul(w[d*rows*in:], in, rows), mul(rd, hidden, first), mul(rd[first*hidden:], hidden, rows-first)
}

// recur computes a recurrent operator with weights in inputs 1 and 2.
func recur[T float32 | float64](rn *recurrence, c *Call) error {
	x, w, r := c.In(rnnX), c.In(rnnW), c.In(rnnR)
	if w.DType() != x.DType() || r.DType() != x.DType() {
		return fmt.Errorf("weights %v and %v for input %v", w, r, x)
	}
	hidden, err := rn.checkWeights(w, r)
	if err != nil {
		return err
	}
	if x.Rank() != 3 || x.Shape()[2] != w.Shape()[2] {
		return fmt.Errorf("input %v for weights %v", x, w)
	}
	var ws, rs []T
	if rn.w == nil {
		ws, rs = tensor.As[T](w), tensor.As[T](r)
	}
	return unroll(rn, c, hidden, func(d int) (xm, hm, h2 multiplier[T]) {
		return multipliers(rn, ws, rs, x.Shape()[2], hidden, d)
	})
}

// sequenceLengths returns the length of each sequence of the batch.
func sequenceLengths(t *tensor.Tensor, batch, steps int) ([]int, error) {
	if t == nil {
		return fillNew(batch, steps), nil
	}
	if t.DType() != tensor.Int32 || t.Len() != batch {
		return nil, fmt.Errorf("sequence_lens %v for a batch of %d", t, batch)
	}
	lens := make([]int, batch)
	for i, v := range tensor.As[int32](t) {
		if v < 0 || int(v) > steps {
			return nil, fmt.Errorf("sequence length %d of at most %d", v, steps)
		}
		lens[i] = int(v)
	}
	return lens, nil
}

// optional returns input i, of n elements of type T, or nil if it is omitted.
func optional[T tensor.Number](c *Call, i, n int) ([]T, error) {
	t := c.In(i)
	if t == nil {
		return nil, nil
	}
	if want := tensor.Of[T](nil).DType(); t.DType() != want || t.Len() != n {
		return nil, fmt.Errorf("input %d is %v, %d elements of %v are needed", i, t, n, want)
	}
	return tensor.As[T](t), nil
}

// unroll runs the recurrence over all steps and directions. weights returns
// the products of a direction.
func unroll[T float32 | float64](rn *recurrence, c *Call, hidden int, weights func(d int) (x, h, h2 multiplier[T])) error {
	x := c.In(rnnX)
	steps, batch, in := x.Shape()[0], x.Shape()[1], x.Shape()[2]
	if rn.batchFirst {
		steps, batch = batch, steps
	}
	lens, err := sequenceLengths(c.In(rnnLens), batch, steps)
	if err != nil {
		return err
	}
	rows := rn.gates * hidden
	bias, err := optional[T](c, rnnB, rn.dirs*2*rows)
	if err != nil {
		return err
	}
	state := rn.dirs * batch * hidden
	h0, err := optional[T](c, rnnH, state)
	if err != nil {
		return err
	}
	var c0, peep []T
	if rn.gates == 4 {
		if c0, err = optional[T](c, rnnC, state); err != nil {
			return err
		}
		if peep, err = optional[T](c, rnnP, rn.dirs*3*hidden); err != nil {
			return err
		}
	}
	var outs [3][]T
	yShape, lastShape := []int{steps, rn.dirs, batch, hidden}, []int{rn.dirs, batch, hidden}
	if rn.batchFirst {
		yShape, lastShape = []int{batch, steps, rn.dirs, hidden}, []int{batch, rn.dirs, hidden}
	}
	for i, shape := range [][]int{yShape, lastShape, lastShape} {
		if c.wants(i) {
			t, err := c.Out(i, x.DType(), shape...)
			if err != nil {
				return err
			}
			outs[i] = tensor.As[T](t)
		}
	}
	buf, err := scratch[T](c, (steps+2)*batch*rows+5*batch*hidden)
	if err != nil {
		return err
	}
	cut := func(n int) (s []T) {
		s, buf = buf[:n:n], buf[n:]
		return s
	}
	st := &steprun[T]{
		rn: rn, call: c, hidden: hidden, batch: batch, steps: steps, lens: lens,
		xw: cut(steps * batch * rows), gates: cut(batch * rows),
		h: cut(batch * hidden), cell: cut(batch * hidden), tmp: cut(batch * hidden),
	}
	if outs[0] != nil {
		clear(outs[0]) // what follows the end of a sequence is 0
	}
	for d := range rn.dirs {
		st.dir, st.backward = d, d == 1 || rn.reverse
		st.acts = rn.acts[d*len(rn.acts)/rn.dirs:]
		var xm multiplier[T]
		xm, st.hm, st.h2 = weights(d)
		if err := xm(c, steps*batch, tensor.As[T](x)[:steps*batch*in], st.xw, rows); err != nil {
			return err
		}
		st.rbh, st.bias = nil, nil
		if bias != nil {
			wb, rb := bias[d*2*rows:][:rows], bias[(d*2+1)*rows:][:rows]
			sum := make([]T, rows)
			for i := range sum {
				sum[i] = wb[i]
				if !(rn.lateReset && i >= 2*hidden) {
					sum[i] += rb[i]
				}
			}
			if rn.lateReset {
				st.rbh = rb[2*hidden:]
			}
			if rn.op != "GRU" {
				st.bias = sum
			} else if err := c.For(steps*batch, max(1, 1<<14/max(rows, 1)), func(lo, hi int) {
				for i := lo; i < hi; i++ {
					addInto(st.xw[i*rows:][:rows], sum)
				}
			}); err != nil {
				return err
			}
		}
		if peep != nil {
			st.peep = peep[d*3*hidden:][:3*hidden]
		}
		st.load(st.h, h0)
		st.load(st.cell, c0)
		for s := range steps {
			if err := c.Ctx.Err(); err != nil {
				return err
			}
			if err := st.step(s, outs[0]); err != nil {
				return err
			}
		}
		st.store(outs[1], st.h)
		st.store(outs[2], st.cell)
	}
	return nil
}

// steprun is the state of one direction of a recurrence.
type steprun[T float32 | float64] struct {
	rn                   *recurrence
	call                 *Call
	hidden, batch, steps int
	lens                 []int
	dir                  int
	backward             bool
	acts                 []*activation
	hm, h2               multiplier[T]
	rbh, peep            []T
	bias                 []T // of the gates, nil where xw has it
	xw, gates            []T // input products of all steps; gates of one
	h, cell, tmp         []T
}

// stateRow returns where the state of batch element b lies in initial and
// final states.
func (s *steprun[T]) stateRow(b int) int {
	if s.rn.batchFirst {
		return (b*s.rn.dirs + s.dir) * s.hidden
	}
	return (s.dir*s.batch + b) * s.hidden
}

func (s *steprun[T]) load(dst, initial []T) {
	if initial == nil {
		clear(dst)
		return
	}
	for b := range s.batch {
		copy(dst[b*s.hidden:][:s.hidden], initial[s.stateRow(b):])
	}
}

func (s *steprun[T]) store(out, src []T) {
	if out == nil {
		return
	}
	for b := range s.batch {
		copy(out[s.stateRow(b):][:s.hidden], src[b*s.hidden:][:s.hidden])
	}
}

// time returns the input position that batch element b reads at step i, or -1
// if its sequence is over.
func (s *steprun[T]) time(b, i int) int {
	switch n := s.lens[b]; {
	case i >= n:
		return -1
	case s.backward:
		return n - 1 - i
	}
	return i
}

// step advances every sequence of the batch that has a step i.
func (s *steprun[T]) step(i int, y []T) error {
	n, rows := s.hidden, s.rn.gates*s.hidden
	if err := s.hm(s.call, s.batch, s.h, s.gates, rows); err != nil {
		return err
	}
	for b := range s.batch {
		t := s.time(b, i)
		if t < 0 {
			continue
		}
		at := t*s.batch + b
		if s.rn.batchFirst {
			at = b*s.steps + t
		}
		g, x, h := s.gates[b*rows:][:rows], s.xw[at*rows:][:rows], s.h[b*n:][:n]
		switch s.rn.op {
		case "GRU":
			s.gruGates(g, x, h, s.tmp[b*n:][:n])
		case "RNN":
			s.sum(g, x)
			s.activate(0, g)
			copy(h, g)
		default:
			s.sum(g, x)
			s.lstm(g, h, s.cell[b*n:][:n], s.tmp[b*n:][:n])
		}
	}
	if s.rn.op == "GRU" {
		if err := s.gruHidden(i); err != nil {
			return err
		}
	}
	if y == nil {
		return nil
	}
	for b := range s.batch {
		if t := s.time(b, i); t >= 0 {
			at := ((t*s.rn.dirs+s.dir)*s.batch + b) * n
			if s.rn.batchFirst {
				at = ((b*s.steps+t)*s.rn.dirs + s.dir) * n
			}
			copy(y[at:][:n], s.h[b*n:][:n])
		}
	}
	return nil
}

// sum adds the products of the input and the bias to those of the state, in ONNX
// Runtime's order.
func (s *steprun[T]) sum(g, x []T) {
	addInto(g, x)
	if s.bias != nil {
		addInto(g, s.bias)
	}
}

// activate clips v and applies activation k of the direction. The cell state
// of an LSTM is not clipped, as in ONNX Runtime.
func (s *steprun[T]) activate(k int, v []T) {
	if c := T(s.rn.clip); c > 0 {
		clip(v, -c, c)
	}
	activate(s.acts[k], v)
}

// lstm computes a step from the gates i, o, f, c before activation.
func (s *steprun[T]) lstm(g, h, cell, tmp []T) {
	n := s.hidden
	in, out, forget, cand := g[:n], g[n:2*n], g[2*n:3*n], g[3*n:4*n]
	if s.peep != nil {
		for k, p := range s.peep[:n] {
			in[k] += p * cell[k]
			forget[k] += s.peep[2*n+k] * cell[k]
		}
	}
	s.activate(0, in)
	if s.rn.coupled {
		for k, v := range in {
			forget[k] = 1 - v
		}
	} else {
		s.activate(0, forget)
	}
	s.activate(1, cand)
	for k := range cell {
		cell[k] = T(forget[k]*cell[k]) + T(in[k]*cand[k])
	}
	if s.peep != nil {
		for k, p := range s.peep[n : 2*n] {
			out[k] += p * cell[k]
		}
	}
	s.activate(0, out)
	copy(tmp, cell)
	activate(s.acts[2], tmp)
	for k := range h {
		h[k] = out[k] * tmp[k]
	}
}

// gruGates computes the gates z and r, and of the third what does not need
// another product. tmp receives r·h where that is the factor of one.
func (s *steprun[T]) gruGates(g, x, h, tmp []T) {
	n := s.hidden
	addInto(g[:2*n], x[:2*n])
	s.activate(0, g[:n])
	s.activate(0, g[n:2*n])
	reset, cand := g[n:2*n], g[2*n:3*n]
	if !s.rn.lateReset {
		for k := range tmp {
			tmp[k] = reset[k] * h[k]
		}
		copy(cand, x[2*n:])
		return
	}
	if s.rbh != nil {
		addInto(cand, s.rbh)
	}
	for k := range cand {
		cand[k] = T(reset[k]*cand[k]) + x[2*n+k]
	}
}

// gruHidden computes the new state of each sequence from its gates.
func (s *steprun[T]) gruHidden(i int) error {
	n, rows := s.hidden, 3*s.hidden
	var extra []T
	if !s.rn.lateReset {
		// The products with r·h land in the place of the reset gates, which
		// have served.
		extra = s.gates[n:]
		for b := range s.batch {
			if s.time(b, i) < 0 {
				clear(s.tmp[b*n:][:n])
			}
		}
		if err := s.h2(s.call, s.batch, s.tmp, extra, rows); err != nil {
			return err
		}
	}
	for b := range s.batch {
		if s.time(b, i) < 0 {
			continue
		}
		g, h := s.gates[b*rows:][:rows], s.h[b*n:][:n]
		cand := g[2*n:]
		if extra != nil {
			addInto(cand, g[n:2*n])
		}
		s.activate(1, cand)
		for k, z := range g[:n] {
			h[k] = T((1-z)*cand[k]) + T(z*h[k])
		}
	}
	return nil
}

// compileDynamicLSTM compiles a DynamicQuantizeLSTM: its weights W [directions,
// input, gates] and R [directions, hidden, gates] are codes, and inputs and
// states are quantized before each product.
func compileDynamicLSTM(s *Site) (Kernel, error) {
	rn, err := newRecurrence(s)
	if err != nil {
		return nil, err
	}
	var ready [2][]quantizedWeights
	for i := range ready {
		t, scale, zero := s.Const(rnnW+i), s.Const(8+2*i), s.Const(9+2*i)
		if t != nil && scale != nil && zero != nil {
			if ready[i], err = rn.quantized(t, scale, zero); err != nil {
				return nil, s.Errorf("%w", err)
			}
		}
	}
	return func(c *Call) error {
		x, w, r := c.In(rnnX), c.In(rnnW), c.In(rnnR)
		if x.DType() != tensor.Float32 || x.Rank() != 3 || w.Rank() != 3 || r.Rank() != 3 || w.Shape()[1] != x.Shape()[2] || w.Shape()[2] != 4*r.Shape()[1] {
			return fmt.Errorf("input %v, weights %v and %v", x, w, r)
		}
		sets := ready
		for i := range sets {
			if sets[i] == nil {
				var err error
				if sets[i], err = rn.quantized(c.In(rnnW+i), c.In(8+2*i), c.In(9+2*i)); err != nil {
					return err
				}
			}
		}
		return unroll(rn, c, r.Shape()[1], func(d int) (xm, hm, h2 multiplier[float32]) {
			return sets[0][d].multiplier(), sets[1][d].multiplier(), nil
		})
	}, nil
}

// quantizedWeights are the weights of one direction.
type quantizedWeights struct {
	k      int
	packed *kernels.PackedQB
	scale  []float32
}

// quantized packs weights [directions, k, gates] with scales and zero points
// per direction, or per direction and gate.
func (rn *recurrence) quantized(t, scale, zero *tensor.Tensor) ([]quantizedWeights, error) {
	if t.Rank() != 3 || t.Shape()[0] != rn.dirs || !isByte(t.DType()) || zero.DType() != t.DType() || zero.Len() != scale.Len() {
		return nil, fmt.Errorf("weights %v, scales %v, zero points %v", t, scale, zero)
	}
	k, n := t.Shape()[1], t.Shape()[2]
	if scale.Len() != rn.dirs && scale.Len() != rn.dirs*n || n%4 != 0 || scale.DType() != tensor.Float32 {
		return nil, fmt.Errorf("scales %v for weights %v", scale, t)
	}
	z, err := integers(zero)
	if err != nil {
		return nil, err
	}
	per := scale.Len() / rn.dirs
	var out []quantizedWeights
	for d := range rn.dirs {
		m := kernels.QMatrix{Data: t.Bytes()[d*k*n:], Signed: t.DType() == tensor.Int8, Ld: n}
		out = append(out, quantizedWeights{k, kernels.PackQB(k, n, m, z[d*per:][:per], rn.saturate), tensor.As[float32](scale)[d*per:][:per]})
	}
	return out, nil
}

// multiplier returns the product with one dynamic quantization of all rows.
func (q *quantizedWeights) multiplier() multiplier[float32] {
	var codes []byte
	scale := make([]float32, len(q.scale))
	return func(c *Call, rows int, x, y []float32, ldy int) error {
		if n := rows * q.k; len(codes) < n {
			codes = make([]byte, n)
		}
		s, z, err := dynamicQuantize(c, x[:rows*q.k], codes)
		if err != nil {
			return err
		}
		for i, v := range q.scale {
			scale[i] = s * v
		}
		kernels.QGemm(c.Pool, rows, kernels.QMatrix{Data: codes, Ld: q.k}, int32(z), q.packed, &kernels.QOut{Ld: ldy, Floats: y, Scale: scale})
		return nil
	}
}
