package eval

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/fusion"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Value compares one value along the network over all samples.
type Value struct {
	Scope string `json:"scope"`
	Name  string `json:"name"` // in the float model
	Op    string `json:"op"`   // that makes it; "" for an input
	// SQNR and Cosine are as in Output.
	SQNR   *float64 `json:"sqnr_db"`
	Cosine *float64 `json:"cosine"`
	// Rescaled says that the channels of the two models differ by constant
	// factors, as equalization and smoothing leave them; these are divided out.
	Rescaled bool `json:"rescaled,omitempty"`
}

// NodeError says where the error of the outputs comes from. A node stands for
// itself and for the nodes before it whose values the quantized model does not
// have, such as one that was folded into it.
type NodeError struct {
	Node   string `json:"node"`
	Op     string `json:"op"` // "input" for an input, whose quantization adds error
	Output string `json:"output"`
	// In is the SQNR of the worst input in dB, Added that of the output if the
	// node alone made errors, Out that of the output as it is; nil means exact.
	// What a node adds is the difference between its output in the quantized
	// model and what the float node makes of the inputs in the quantized model.
	In    *float64 `json:"in_db"`
	Added *float64 `json:"added_db"`
	Out   *float64 `json:"out_db"`
	// Share estimates the part of the noise of the float outputs, all counting
	// alike, that starts at this node. It follows the noise from the outputs
	// back: at each node what that added stays, and the rest goes to its inputs,
	// as if errors of different origin were independent.
	Share float64 `json:"share"`
}

// Trace compares a float model and a quantized form of it value by value. Values
// are matched by name, through QuantizeLinear and integer kernels. Beside each
// part of the quantized model runs the float part on the same inputs, so that
// one run of each model says what every node adds.
type Trace struct {
	ref, plus *graph.Model
	pairs     []*pair
	byRef     map[*graph.Value]*pair
	refSlots  [][]slot // by Value.ID of ref
	plusSlots [][]slot // by Value.ID of plus
	unmatched int
	mu        sync.Mutex
	arrived   *sync.Cond
	pending   int64 // bytes of values that wait for their counterpart
	limit     int64
	rescaled  bool
	samples   int
	waiting   [2]bool
	done      [2]bool
	err       error
}

// slot says which part of a pair a tapped value is.
type slot struct {
	pair *pair
	part int
}

// Parts of a pair.
const (
	inFloat     = iota // the value in the float model
	inQuantized        // the value in the quantized model
	byFloat            // what float nodes make of the quantized model's values
	parts
)

type pair struct {
	ref       *graph.Value
	seen      *graph.Value // in Trace.plus
	twin      *graph.Value // in Trace.plus; nil if there is none
	from      []*pair      // the values that twin is made from
	relative  bool         // the noise of inputs counts relative to their power
	lo, hi    float64      // the bounds of what counts, those of ops.Saturation
	noise     noise        // of inQuantized
	carried   float64      // Σ (byFloat - inFloat)²
	added     float64      // Σ (inQuantized - byFloat)²
	channels  [2]gains     // along axis 1 and the last axis
	gain      []float64    // by which seen is multiplied, along gainAxis
	gainAxis  int          // counted from the end
	rank      int
	codes     *codes // what stands for the value; nil if it is not quantized
	seenBy    *calibration.Observer
	clipped   uint64
	queue     []*[parts]*tensor.Tensor
	count     [parts]int
	different bool // shapes differ
}

type noise struct{ signal, noise, got, dot float64 }

// lostError stands for the error of an element that is not finite and should be.
const lostError = 1e30

// squareError returns the square of the error of got; that of a reference that is
// not finite is 0.
func squareError(ref, got float64) float64 {
	d := got - ref
	switch {
	case ref-ref != 0:
		return 0
	case d-d != 0:
		d = lostError
	}
	return d * d
}

// maskLimit is what masks of attention reach down to; they are no signal.
const maskLimit = -1e30

// gains are sums by channel.
type gains struct {
	ref, got, dot []float64
	varies        bool // with the sample: it is no axis of channels
}

// pendingLimit is the size in bytes of values that may wait for their
// counterpart before one of the runs waits for the other.
const pendingLimit = 64 << 20

// NewTrace matches the values of ref and got. Both have the same operator set
// and inputs; neither is changed.
func NewTrace(ref, got *graph.Model) *Trace { return newTrace(ref, got, nil) }

func newTrace(ref, got *graph.Model, scaled []*pair) *Trace {
	t := &Trace{ref: ref, plus: got.Clone(), byRef: map[*graph.Value]*pair{}, limit: pendingLimit}
	t.arrived = sync.NewCond(&t.mu)
	b := &builder{Trace: t, position: map[*graph.Node]int{}, tail: map[int]*graph.Node{}, named: map[nameKey]*graph.Value{}, twins: map[*graph.Value]*graph.Value{}, origin: map[*graph.Value][]*pair{}}
	b.gain, b.ranges = map[*graph.Value]*pair{}, map[*graph.Value]*codes{}
	t.rescaled = len(scaled) > 0
	for _, p := range scaled {
		b.gain[p.ref] = p
	}
	b.match()
	b.addTwins()
	t.refSlots, t.plusSlots = make([][]slot, ref.NumValues()), make([][]slot, t.plus.NumValues())
	for _, p := range t.pairs {
		t.refSlots[p.ref.ID] = append(t.refSlots[p.ref.ID], slot{p, inFloat})
		t.plusSlots[p.seen.ID] = append(t.plusSlots[p.seen.ID], slot{p, inQuantized})
		if p.twin != nil {
			t.plusSlots[p.twin.ID] = append(t.plusSlots[p.twin.ID], slot{p, byFloat})
		}
	}
	return t
}

// Models returns the models to be run, and the values of each to be tapped, by
// Value.ID: the float one, and the quantized one with float nodes beside it.
func (t *Trace) Models() (ref, got *graph.Model, refTaps, gotTaps []bool) {
	taps := func(slots [][]slot) []bool {
		list := make([]bool, len(slots))
		for i, s := range slots {
			list[i] = len(s) > 0
		}
		return list
	}
	return t.ref, t.plus, taps(t.refSlots), taps(t.plusSlots)
}

// Unmatched returns the number of float32 values of the float model that the
// quantized model does not have.
func (t *Trace) Unmatched() int { return t.unmatched }

type nameKey struct{ scope, name string }

// builder makes the model of a Trace.
type builder struct {
	*Trace
	position map[*graph.Node]int // of the nodes of the quantized model, in their graph
	tail     map[int]*graph.Node // the last node added behind that of a position in the main graph
	named    map[nameKey]*graph.Value
	twins    map[*graph.Value]*graph.Value // by value of ref
	origin   map[*graph.Value][]*pair      // what the twin of a value is made from
	gain     map[*graph.Value]*pair
	ranges   map[*graph.Value]*codes // by value that counterpart returns
}

// match finds the counterpart of each value of the float model.
func (b *builder) match() {
	for g := range b.plus.Scopes() {
		if g.Function() != nil {
			continue
		}
		i := 0
		for _, v := range g.Inputs() {
			b.named[nameKey{g.Scope(), v.Name()}] = v
		}
		for n := range g.Nodes() {
			b.position[n] = i
			i++
			for _, v := range n.Outputs() {
				if v != nil {
					b.named[nameKey{g.Scope(), v.Name()}] = v
				}
			}
		}
	}
	for g := range b.ref.Scopes() {
		if g.Function() != nil {
			continue
		}
		for _, v := range g.Inputs() {
			b.value(v)
		}
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				if v != nil {
					b.value(v)
				}
			}
		}
	}
}

func (b *builder) value(v *graph.Value) {
	if v.IsConst() || v.Type.Elem != tensor.Float32 {
		return
	}
	seen := b.counterpart(v)
	// Channels that were split make another shape.
	if seen == nil || v.Type.Shape.Contradicts(seen.Type.Shape) {
		b.unmatched++
		return
	}
	p := &pair{ref: v, seen: seen, codes: b.ranges[seen]}
	p.lo, p.hi = ops.Saturation(v)
	if dq := seen.DefNode(); fusion.IsDQ(dq) {
		// What reads DequantizeLinear might become an integer kernel.
		g := seen.Graph()
		p.seen = g.NewValue(b.plus.UniqueName(v.Name()+"_seen"), seen.Type)
		b.insert(g.NewNode(graph.OpKey{Type: "Identity"}, "", []*graph.Value{seen}, []*graph.Value{p.seen}), dq)
		seen = p.seen
	}
	if known := b.gain[v]; known != nil && v.Graph() == b.ref.Graph {
		p.gain, p.gainAxis = known.gain, known.gainAxis
		shape := slices.Repeat([]int{1}, p.gainAxis)
		shape[0] = len(p.gain)
		factors := tensor.New(tensor.Float32, shape...)
		for i, x := range p.gain {
			tensor.As[float32](factors)[i] = float32(x)
		}
		g := seen.Graph()
		out := g.NewValue(b.plus.UniqueName(v.Name()+"_rescaled"), graph.TensorType(tensor.Float32, nil))
		n := g.NewNode(graph.OpKey{Type: "Mul"}, "", []*graph.Value{seen, g.NewInitializer(v.Name()+"_gain", factors)}, []*graph.Value{out})
		b.insert(n, seen.DefNode())
		p.seen = out
	}
	b.pairs = append(b.pairs, p)
	b.byRef[v] = p
}

// insert puts n, which reads what after makes, behind it.
func (b *builder) insert(n, after *graph.Node) {
	at := -1
	if after != nil {
		at = b.position[after]
	}
	b.position[n] = at
	g := n.Graph()
	if g != b.plus.Graph {
		g.InsertAfter(n, after)
		return
	}
	if t := b.tail[at]; t != nil {
		after = t
	}
	g.InsertAfter(n, after)
	b.tail[at] = n
}

// counterpart returns the float32 value of the quantized model that stands for
// v, or nil.
func (b *builder) counterpart(v *graph.Value) *graph.Value {
	w, q := b.form(v)
	switch {
	case q != nil:
		// The codes behind a node may stand for what a clamp makes of its output.
		if clamp := v.OnlyUse(); isClamp(clamp) {
			if w, same := b.form(clamp.Output(0)); w == nil && (same == nil || same == q) {
				return nil
			}
		}
		return b.decode(q)
	case w != nil:
		// Some readers may want codes.
		for _, u := range w.Uses() {
			if u.Index == 0 && fusion.IsQ(u.Node) {
				b.ranges[w] = codesOf(u.Node)
			}
		}
		return w
	}
	if n := v.DefNode(); isClamp(n) && n.Input(0).OnlyUse() == n {
		if _, q := b.form(n.Input(0)); q != nil {
			return b.decode(q)
		}
	}
	find := func(name string) *graph.Value { return b.named[nameKey{v.Graph().Scope(), name}] }
	for _, suffix := range []string{"_dq", "_DequantizeLinear_Output"} {
		if w := find(v.Name() + suffix); w != nil && fusion.IsDQ(w.DefNode()) {
			return w
		}
	}
	return nil
}

// form returns what the quantized model has under the name of v: a float32 value,
// or the node that gives its codes, if only these are read. Both are nil if it
// has nothing.
func (b *builder) form(v *graph.Value) (w *graph.Value, q *graph.Node) {
	find := func(name string) *graph.Value { return b.named[nameKey{v.Graph().Scope(), name}] }
	if w := find(v.Name()); w != nil {
		if w.Type.Elem != tensor.Float32 {
			return nil, nil
		}
		if q := quantized(w); q != nil {
			return nil, q
		}
		return w, nil
	}
	for _, suffix := range []string{"_quantized", "_q"} {
		if w := find(v.Name() + suffix); w != nil && w.DefNode() != nil {
			if scale, _ := outputParams(w.DefNode()); scale != nil {
				return nil, w.DefNode()
			}
		}
	}
	return nil, nil
}

func isClamp(n *graph.Node) bool {
	if n == nil || n.Output(0) == nil || n.Input(0) == nil {
		return false
	}
	_, _, ok := ops.ClampBounds(n)
	return ok
}

// quantized returns the QuantizeLinear that reads w, if nothing but such nodes
// does.
func quantized(w *graph.Value) *graph.Node {
	var q *graph.Node
	for _, u := range w.Uses() {
		if u.Node == nil || u.Index != 0 || !fusion.IsQ(u.Node) || u.Node.Graph() != w.Graph() {
			return nil
		}
		if q == nil {
			q = u.Node
		}
	}
	return q
}

// decode returns the dequantized output of n, which gives codes, or nil if that
// does not work.
func (b *builder) decode(n *graph.Node) *graph.Value {
	scale, zero := outputParams(n)
	y := n.Output(0)
	if scale == nil || y == nil {
		return nil
	}
	in := []*graph.Value{y, scale}
	if zero != nil {
		in = append(in, zero)
	}
	g := n.Graph()
	out := g.NewValue(b.plus.UniqueName(y.Name()+"_seen"), graph.TensorType(tensor.Float32, y.Type.Shape))
	domain := graph.OnnxDomain
	if fusion.IsQ(n) {
		domain = n.Op.Domain
	}
	dq := g.NewNode(graph.OpKey{Domain: domain, Type: "DequantizeLinear"}, "", in, []*graph.Value{out})
	if a := n.Attr("axis"); fusion.IsQ(n) && a != nil {
		dq.SetAttr(graph.Int("axis", a.I))
	}
	b.insert(dq, n)
	b.ranges[out] = codesOf(n)
	return out
}

// outputParams returns the scale and zero point of the codes that n gives.
func outputParams(n *graph.Node) (scale, zero *graph.Value) {
	at := func(i int) (*graph.Value, *graph.Value) { return n.Input(i), n.Input(i + 1) }
	for steps := 0; n != nil && steps < 64; steps++ {
		switch n.Op.Type {
		case "QuantizeLinear":
			return at(1)
		case "QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul":
			return at(6)
		case "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearSoftmax":
			return at(3)
		case "QLinearConcat":
			return at(0)
		case "QGemm", "QLinearWhere":
			return at(7)
		case "Reshape", "Transpose", "MaxPool", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "Resize", "Split", "Identity":
			if n.Input(0) == nil {
				return nil, nil
			}
			n = n.Input(0).DefNode()
		default:
			return nil, nil
		}
	}
	return nil, nil
}

// same returns the value of the quantized model that has the name and type of v,
// a value of the main graph which is not float32.
func (b *builder) same(v *graph.Value) *graph.Value {
	w := b.named[nameKey{graph.MainScope, v.Name()}]
	if w == nil || v.Type.Elem == tensor.Float32 || w.Type.Elem != v.Type.Elem || v.Type.Kind != graph.KindTensor {
		return nil
	}
	return w
}

// addTwins puts the nodes of the float model's main graph beside those of the
// quantized one, to read what the quantized model has of their inputs.
func (b *builder) addTwins() {
	if b.ref.Opset(graph.OnnxDomain) != b.plus.Opset(graph.OnnxDomain) {
		return
	}
	g := b.plus.Graph
	consts := map[*graph.Value]*graph.Value{}
	// input returns what the twin of a reader of v reads.
	input := func(v *graph.Value) (*graph.Value, []*pair, bool) {
		if v.IsConst() {
			if consts[v] == nil {
				consts[v] = g.NewInitializer(v.Name(), v.Const)
			}
			return consts[v], nil, true
		}
		if p := b.byRef[v]; p != nil {
			return p.seen, []*pair{p}, true
		}
		if w := b.same(v); w != nil {
			return w, nil, true
		}
		w := b.twins[v]
		return w, b.origin[v], w != nil
	}
nodes:
	for n := range b.ref.Graph.Nodes() {
		if slices.ContainsFunc(n.Attrs, func(a *graph.Attr) bool { return len(a.Subgraphs()) > 0 }) || b.ref.Function(n.Op) != nil || ops.Lookup(n) == nil {
			continue
		}
		wanted := false
		for _, v := range n.Outputs() {
			// Shapes and the like are there already.
			wanted = wanted || v != nil && (v.Type.Elem == tensor.Float32 || b.same(v) == nil)
		}
		if !wanted {
			continue
		}
		var in []*graph.Value
		var from []*pair
		var after *graph.Node
		at := -1
		for _, v := range n.Inputs() {
			if v == nil {
				in = append(in, nil)
				continue
			}
			w, origin, ok := input(v)
			if !ok {
				continue nodes
			}
			in = append(in, w)
			for _, p := range origin {
				if !slices.Contains(from, p) {
					from = append(from, p)
				}
			}
			if d := w.DefNode(); d != nil && (after == nil || b.position[d] > at) {
				after, at = d, b.position[d]
			}
		}
		var out []*graph.Value
		for _, v := range n.Outputs() {
			if v == nil {
				out = append(out, nil)
				continue
			}
			w := g.NewValue(b.plus.UniqueName(v.Name()+"_twin"), v.Type)
			b.twins[v], b.origin[v] = w, from
			out = append(out, w)
			if p := b.byRef[v]; p != nil {
				p.twin, p.from = w, from
				switch n.Op.Type {
				case "Add", "Sub", "Sum", "Concat", "Max", "Min", "Where":
				default:
					p.relative = true
				}
			}
		}
		attrs := make([]*graph.Attr, len(n.Attrs))
		for i, a := range n.Attrs {
			c := *a
			attrs[i] = &c
		}
		if n.Op.Domain != graph.OnnxDomain && b.plus.Opset(n.Op.Domain) == 0 {
			b.plus.SetOpset(n.Op.Domain, b.ref.Opset(n.Op.Domain))
		}
		b.insert(g.NewNode(n.Op, "", in, out, attrs...), after)
	}
}

// Run runs both models on one sample, side by side: ref and got have been opened
// on what Models returns.
func (t *Trace) Run(ctx context.Context, ref, got exec.Runner, refIn, gotIn map[string]ops.Data) (refOut, gotOut []ops.Data, err error) {
	_, _, refTaps, gotTaps := t.Models()
	t.pending, t.waiting, t.done, t.err = 0, [2]bool{}, [2]bool{}, nil
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var errs [2]error
	var wait sync.WaitGroup
	finish := func(side int, err error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		errs[side], t.done[side] = err, true
		if err != nil {
			cancel()
		}
		t.arrived.Broadcast()
	}
	wait.Go(func() {
		var err error
		refOut, err = ref.Run(ctx, refIn, t.tap(0, t.refSlots), refTaps)
		finish(0, err)
	})
	gotOut, err = got.Run(ctx, gotIn, t.tap(1, t.plusSlots), gotTaps)
	finish(1, err)
	wait.Wait()
	t.samples++
	for _, p := range t.pairs {
		p.queue, p.count = nil, [parts]int{}
	}
	for _, err := range errs {
		// The other run was stopped because of this one.
		if err != nil && (errs[0] == nil || errs[1] == nil || context.Cause(ctx) == nil || !isCanceled(err)) {
			return nil, nil, err
		}
	}
	return refOut, gotOut, errs[0]
}

func isCanceled(err error) bool { return strings.Contains(err.Error(), context.Canceled.Error()) }

// tap takes the values of one of the runs.
func (t *Trace) tap(side int, slots [][]slot) exec.Tap {
	return func(v *graph.Value, x *tensor.Tensor) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, s := range slots[v.ID] {
			t.arrive(s, x)
		}
		for t.pending > t.limit && !t.done[1-side] && !t.waiting[1-side] {
			t.waiting[side] = true
			t.arrived.Wait()
			t.waiting[side] = false
		}
		return nil
	}
}

// arrive takes x as part of a pair, and adds to the sums once it is complete.
// The k-th value of each part go together.
func (t *Trace) arrive(s slot, x *tensor.Tensor) {
	p := s.pair
	k := p.count[s.part]
	p.count[s.part]++
	for len(p.queue) <= k {
		p.queue = append(p.queue, &[parts]*tensor.Tensor{})
	}
	set := p.queue[k]
	if p.different || x.DType() != tensor.Float32 {
		return
	}
	set[s.part] = x
	if set[inFloat] == nil || set[inQuantized] == nil || p.twin != nil && set[byFloat] == nil {
		set[s.part] = x.Clone()
		t.pending += int64(len(x.Bytes()))
		return
	}
	p.add(set)
	p.observe(t.samples, set[inFloat])
	for i, y := range set {
		if y != nil && i != s.part {
			t.pending -= int64(len(y.Bytes()))
		}
	}
	p.queue[k] = &[parts]*tensor.Tensor{}
	t.arrived.Broadcast()
}

// clamp returns what the readers of p.ref see of x.
func (p *pair) clamp(x float64) float64 { return min(max(x, p.lo), p.hi) }

// add adds a set of values to the sums.
func (p *pair) add(set *[parts]*tensor.Tensor) {
	ref, got := set[inFloat], set[inQuantized]
	if !slices.Equal(ref.Shape(), got.Shape()) {
		p.different = true
		return
	}
	x, y := tensor.As[float32](ref), tensor.As[float32](got)
	z := y
	twin := p.twin != nil && slices.Equal(set[byFloat].Shape(), ref.Shape())
	if twin {
		z = tensor.As[float32](set[byFloat])
	} else {
		p.twin = nil
	}
	var s noise
	var carried, added float64
	for i := range x {
		r, g, f := float64(x[i]), float64(y[i]), float64(z[i])
		if r <= maskLimit {
			continue
		}
		r, g, f = p.clamp(r), p.clamp(g), p.clamp(f)
		if r-r != 0 {
			continue
		}
		s.signal += r * r
		s.noise += squareError(r, g)
		if g-g == 0 {
			s.got += g * g
			s.dot += r * g
		}
		carried += squareError(r, f)
		added += squareError(f, g)
	}
	p.noise.signal += s.signal
	p.noise.noise += s.noise
	p.noise.got += s.got
	p.noise.dot += s.dot
	if twin {
		p.carried += carried
		p.added += added
	}
	shape := ref.Shape()
	if len(shape) < 2 || s.noise == 0 {
		return
	}
	p.rank = len(shape)
	p.channels[0].add(x, y, shape, 1)
	if len(shape) > 2 {
		p.channels[1].add(x, y, shape, len(shape)-1)
	}
}

func (c *gains) add(ref, got []float32, shape []int, axis int) {
	channels, inner := shape[axis], 1
	if c.varies = c.varies || channels > maxChannels || c.ref != nil && len(c.ref) != channels; c.varies {
		return
	}
	for _, d := range shape[axis+1:] {
		inner *= d
	}
	if c.ref == nil {
		c.ref, c.got, c.dot = make([]float64, channels), make([]float64, channels), make([]float64, channels)
	}
	for at, ch := 0, 0; at < len(ref); at, ch = at+inner, ch+1 {
		if ch == channels {
			ch = 0
		}
		for i := at; i < at+inner; i++ {
			r, g := float64(ref[i]), float64(got[i])
			if d := r - g; d-d == 0 && r > maskLimit {
				c.ref[ch] += r * r
				c.got[ch] += g * g
				c.dot[ch] += r * g
			}
		}
	}
}

// A value counts as rescaled whose SQNR in dB is below rescaleBelow, and is
// raised by rescaleGain by constant factors by channel. Noise alone leaves
// factors near 1.
const (
	rescaleBelow = 15
	rescaleGain  = 6
)

// rescaled finds the factors by channel that bring the quantized model's value
// to that of the float model, if that is what they differ by.
func (p *pair) rescaled() bool {
	best := 0.0
	if d := db(p.noise.signal, p.noise.noise); d == nil || *d >= rescaleBelow {
		return false
	}
	for k := range p.channels {
		c := &p.channels[k]
		rest, factors := 0.0, make([]float64, len(c.ref))
		for i := range c.ref {
			factors[i] = 1
			if c.got[i] > 0 && c.dot[i] > 0 {
				factors[i] = c.dot[i] / c.got[i]
				rest += math.Max(c.ref[i]-c.dot[i]*factors[i], 0)
			} else {
				rest += c.ref[i]
			}
		}
		if len(factors) == 0 || c.varies {
			continue
		}
		if gain := 10 * math.Log10(p.noise.noise/math.Max(rest, 1e-12*p.noise.signal)); gain > max(best, rescaleGain) {
			best, p.gain = gain, factors
			if p.gainAxis = 1; k == 0 {
				p.gainAxis = p.rank - 1
			}
		}
	}
	return best > 0 && p.gainAxis > 0
}

// Rescaled returns a Trace that divides out the factors by which channels
// differ in the two models, or nil if there are none, or t does already. It has
// seen no sample.
func (t *Trace) Rescaled(got *graph.Model) *Trace {
	var scaled []*pair
	for _, p := range t.pairs {
		if !t.rescaled && !p.different && p.ref.Graph() == t.ref.Graph && p.ref.DefNode() != nil && !p.ref.IsOutput() && p.rescaled() {
			scaled = append(scaled, p)
		}
	}
	if len(scaled) == 0 {
		return nil
	}
	return newTrace(t.ref, got, scaled)
}

func db(signal, noise float64) *float64 {
	if noise <= 0 || signal <= 0 {
		return nil
	}
	x := 10 * math.Log10(signal/noise)
	if noise >= lostError*lostError {
		x = Lost
	}
	return &x
}

// Values returns the values that were seen in both models, in the order of the
// float model.
func (t *Trace) Values() []Value {
	list := []Value{}
	for _, p := range t.pairs {
		if p.different || p.noise.signal == 0 {
			continue
		}
		v := Value{Scope: p.ref.Graph().Scope(), Name: p.ref.Name(), SQNR: db(p.noise.signal, p.noise.noise), Rescaled: p.gain != nil}
		if n := p.ref.DefNode(); n != nil {
			v.Op = n.Op.String()
		}
		if p.noise.got > 0 {
			c := p.noise.dot / math.Sqrt(p.noise.signal) / math.Sqrt(p.noise.got)
			v.Cosine = &c
		}
		list = append(list, v)
	}
	return list
}

// Nodes returns what each node adds, those with the largest share first.
func (t *Trace) Nodes() []NodeError {
	list, _ := t.origins(func(int, *pair) float64 { return 1 })
	slices.Reverse(list)
	slices.SortStableFunc(list, func(a, b NodeError) int { return cmp.Compare(b.Share, a.Share) })
	return list
}

// Origins returns which part of the noise of the float outputs starts at each input
// of the float model and at what makes each value of its main graph, by Value.ID; see
// NodeError.Share. Values that are exact have 0, and those that the quantized model
// does not have are left out. Here outputs count by their noise relative to their
// power, at most 1, and that relative to what allowed has for them.
func (t *Trace) Origins(allowed []float64) map[int]float64 {
	list, values := t.origins(func(i int, p *pair) float64 {
		noise := 1.0
		if p.noise.signal > 0 {
			noise = min(p.noise.noise/p.noise.signal, 1)
		}
		return noise / allowed[i]
	})
	out := map[int]float64{}
	for _, p := range t.pairs {
		if p.twin != nil && !p.different {
			out[p.ref.ID] = 0
		}
	}
	for i, v := range values {
		out[v.ID] = list[i].Share
	}
	return out
}

// origins returns what each node adds, from the outputs back, with the output that
// stands for it, and what quantizing inputs adds. Outputs count by what of gives for
// them and their places.
func (t *Trace) origins(of func(i int, output *pair) float64) (list []NodeError, values []*graph.Value) {
	weight := map[*pair]float64{}
	all := 0.0
	for i, v := range t.ref.Graph.Outputs() {
		if p := t.byRef[v]; p != nil && p.noise.noise > 0 {
			part := of(i, p)
			weight[p] += part
			all += part
		}
	}
	for p := range weight {
		weight[p] /= all
	}
	list = []NodeError{}
	at, most := map[*graph.Node]int{}, map[*graph.Node]float64{}
	for _, p := range slices.Backward(t.pairs) {
		n := p.ref.DefNode()
		if n == nil && weight[p] > 0 {
			out := db(p.noise.signal, p.noise.noise)
			list = append(list, NodeError{Node: p.ref.Name(), Op: "input", Output: p.ref.Name(), Added: out, Out: out, Share: weight[p]})
			values = append(values, p.ref)
		}
		if p.twin == nil || p.different || n == nil {
			continue
		}
		e := NodeError{Node: n.Label(), Op: n.Op.String(), Output: p.ref.Name(), Out: db(p.noise.signal, p.noise.noise), Added: db(p.noise.signal, p.added)}
		var total float64
		each := make([]float64, len(p.from))
		for i, f := range p.from {
			each[i] = f.noise.noise
			if p.relative && f.noise.signal > 0 {
				each[i] /= f.noise.signal
			}
			total += each[i]
			if d := db(f.noise.signal, f.noise.noise); d != nil && (e.In == nil || *d < *e.In) {
				e.In = d
			}
		}
		own := 1.0
		if total > 0 && p.carried > 0 {
			own = p.added / (p.added + p.carried)
		}
		e.Share = weight[p] * own
		for i, f := range p.from {
			if total > 0 {
				weight[f] += weight[p] * (1 - own) * each[i] / total
			}
		}
		if e.Added == nil {
			continue
		}
		// Of several outputs, the one with the largest share stands for the node.
		if k, ok := at[n]; ok {
			e.Share, list[k].Share = e.Share+list[k].Share, e.Share+list[k].Share
			if weight[p]*own > most[n] {
				list[k], values[k], most[n] = e, p.ref, weight[p]*own
			}
			continue
		}
		at[n], most[n] = len(list), weight[p]*own
		list, values = append(list, e), append(values, p.ref)
	}
	return list, values
}

// String tells how much was matched.
func (t *Trace) String() string {
	twins := 0
	for _, p := range t.pairs {
		if p.twin != nil {
			twins++
		}
	}
	return fmt.Sprintf("%d values, %d of them made again, %d not found", len(t.pairs), twins, t.unmatched)
}
