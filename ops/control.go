package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// controlSpecs are the operators that hold graphs and run them.
func controlSpecs() []Spec {
	ints := func(name string) AttrSpec { return AttrSpec{Name: name, Kind: graph.AttrInts} }
	body := AttrSpec{Name: "body", Kind: graph.AttrGraph, Required: true}
	return []Spec{
		{Type: "If", Since: 1, Flow: Opaque, Pure: true,
			In: []Port{{Name: "cond"}}, Out: []Port{{Name: "outputs", Variadic: true}},
			Attrs: []AttrSpec{{Name: "then_branch", Kind: graph.AttrGraph, Required: true}, {Name: "else_branch", Kind: graph.AttrGraph, Required: true}},
			Infer: inferIf, Compile: compileIf},
		{Type: "Loop", Since: 1, Flow: Opaque, Pure: true,
			In:    []Port{{Name: "M", Role: Index, Optional: true}, {Name: "cond", Optional: true}, {Name: "v_initial", Variadic: true}},
			Out:   []Port{{Name: "v_final_and_scan_outputs", Variadic: true}},
			Attrs: []AttrSpec{body},
			Infer: inferLoop, Compile: compileLoop},
		{Type: "Scan", Since: 8, Flow: Opaque, Pure: true,
			In:  []Port{{Name: "initial_state_and_scan_inputs", Optional: true, Variadic: true}},
			Out: []Port{{Name: "final_state_and_scan_outputs", Variadic: true}},
			Attrs: []AttrSpec{body, {Name: "num_scan_inputs", Kind: graph.AttrInt, Required: true},
				ints("scan_input_axes"), ints("scan_output_axes"), ints("scan_input_directions"), ints("scan_output_directions"), ints("directions")},
			Infer: inferScan, Compile: compileScan},
		{Type: "SequenceMap", Since: 17, Flow: Opaque, Pure: true,
			In:    []Port{{Name: "input_sequence"}, {Name: "additional_inputs", Optional: true, Variadic: true}},
			Out:   []Port{{Name: "out_sequence", Variadic: true}},
			Attrs: []AttrSpec{body},
			Infer: inferSequenceMap, Compile: compileSequenceMap},
	}
}

// bodyOf returns the graph in attribute name, or nil.
func bodyOf(n *graph.Node, name string) *graph.Graph {
	if a := n.Attr(name); a != nil && a.Kind == graph.AttrGraph {
		return a.G
	}
	return nil
}

// joinTypes returns what holds of both a and b, where the model promises that
// they agree except for shapes.
func joinTypes(a, b graph.Type) graph.Type {
	switch {
	case a.Kind == graph.KindUnknown:
		b.Shape = nil
		return b
	case b.Kind == graph.KindUnknown:
		a.Shape = nil
		return a
	case a.Kind != b.Kind:
		return graph.Type{}
	}
	out := graph.Type{Kind: a.Kind, Elem: a.Elem}
	if a.Elem == tensor.Undefined {
		out.Elem = b.Elem
	}
	if a.Inner != nil && b.Inner != nil {
		inner := joinTypes(*a.Inner, *b.Inner)
		out.Inner = &inner
	}
	if a.Shape != nil && b.Shape != nil && len(a.Shape) == len(b.Shape) {
		out.Shape = bare(a.Shape)
		for i, d := range b.Shape {
			if !d.Same(a.Shape[i]) {
				out.Shape[i] = graph.Dim{}
			}
		}
	}
	return out
}

func inferIf(c *Inference) error {
	then, other := bodyOf(c.Node, "then_branch"), bodyOf(c.Node, "else_branch")
	if then == nil || other == nil {
		return c.Errorf("a branch is missing")
	}
	for _, g := range []*graph.Graph{then, other} {
		if err := c.Graph(g); err != nil {
			return err
		}
	}
	taken := (*graph.Graph)(nil)
	known, cond := false, false
	if t := c.Const(0); t != nil && t.Len() == 1 && t.DType() == tensor.Bool {
		known, cond = true, tensor.As[bool](t)[0]
	} else if d, ok := c.Dims(0); ok && len(d) == 1 && d[0].Known {
		known, cond = true, d[0].Size != 0
	}
	switch {
	case known && cond:
		taken = then
	case known:
		taken = other
	}
	for i := range c.Node.Outputs() {
		switch {
		case taken != nil && i < len(taken.Outputs()):
			v := taken.Outputs()[i]
			c.Out(i, v.Type)
			if d, ok := c.types.contents(v); ok {
				c.SetDims(i, d)
			}
		case i < len(then.Outputs()) && i < len(other.Outputs()):
			c.Out(i, joinTypes(then.Outputs()[i].Type, other.Outputs()[i].Type))
		}
	}
	return nil
}

// conditionOf returns the only element of a bool tensor.
func conditionOf(d Data) (bool, error) {
	t, ok := d.(*tensor.Tensor)
	if !ok || t.DType() != tensor.Bool || t.Len() != 1 {
		return false, fmt.Errorf("condition is %v, want one bool", d)
	}
	return tensor.As[bool](t)[0], nil
}

func compileIf(s *Site) (Kernel, error) {
	var branches [2]Body
	for i, name := range []string{"else_branch", "then_branch"} {
		g := bodyOf(s.Node, name)
		if g == nil || len(g.Outputs()) < len(s.Node.Outputs()) {
			return nil, s.Errorf("%s does not give %d outputs", name, len(s.Node.Outputs()))
		}
		var err error
		if branches[i], err = s.Body(g); err != nil {
			return nil, err
		}
	}
	return func(c *Call) error {
		cond, err := conditionOf(c.Ins[0])
		if err != nil {
			return err
		}
		b := branches[0]
		if cond {
			b = branches[1]
		}
		out, err := b.Run(c, nil)
		if err != nil {
			return err
		}
		copy(c.Outs, out)
		return nil
	}, nil
}

// bodyInput states the type of an input of a nested graph.
func bodyInput(v *graph.Value, t graph.Type) {
	t.Extra = nil
	t.Shape = bare(t.Shape)
	v.Type = mergeTypes(v.Type, t)
}

// loopBody returns the body of a Loop and its number of carried values.
func loopBody(n *graph.Node) (g *graph.Graph, carried int, err error) {
	g = bodyOf(n, "body")
	carried = max(n.NumInputs()-2, 0)
	switch {
	case g == nil:
		return nil, 0, fmt.Errorf("the body is missing")
	case len(g.Inputs()) != 2+carried || len(g.Outputs()) < 1+carried || len(n.Outputs()) > len(g.Outputs())-1:
		return nil, 0, fmt.Errorf("a body of %d inputs and %d outputs for %d carried values and %d outputs",
			len(g.Inputs()), len(g.Outputs()), carried, len(n.Outputs()))
	}
	return g, carried, nil
}

func inferLoop(c *Inference) error {
	g, carried, err := loopBody(c.Node)
	if err != nil {
		return err
	}
	in, out := g.Inputs(), g.Outputs()
	bodyInput(in[0], graph.TensorType(tensor.Int64, graph.Shape{}))
	bodyInput(in[1], graph.TensorType(tensor.Bool, graph.Shape{}))
	for i := range carried {
		t := c.In(2 + i)
		if out[1+i] != in[2+i] {
			t = anyShape(t) // a step may change it
		}
		bodyInput(in[2+i], t)
	}
	if err := c.Graph(g); err != nil {
		return err
	}
	for i := range c.Node.Outputs() {
		t := out[1+i].Type
		if i < carried {
			c.Out(i, joinTypes(c.In(2+i), t))
			continue
		}
		if t.Kind == graph.KindTensor {
			steps := graph.Dim{}
			if m, ok := c.Ints(0); ok && len(m) == 1 && m[0] >= 0 && c.Node.Input(1) == nil {
				steps = graph.D(m[0])
			}
			if t.Shape != nil {
				t.Shape = append(graph.Shape{steps}, bare(t.Shape)...)
			}
			c.Tensor(i, t.Elem, t.Shape)
		}
	}
	return nil
}

// anyShape returns t without the shapes in it.
func anyShape(t graph.Type) graph.Type {
	t.Shape = nil
	if t.Inner != nil {
		inner := anyShape(*t.Inner)
		t.Inner = &inner
	}
	return t
}

func compileLoop(s *Site) (Kernel, error) {
	g, carried, err := loopBody(s.Node)
	if err != nil {
		return nil, s.Errorf("%v", err)
	}
	body, err := s.Body(g)
	if err != nil {
		return nil, err
	}
	// Some models declare the step number and the condition as vectors of one.
	vector := [2]bool{len(g.Inputs()[0].Type.Shape) == 1, len(g.Inputs()[1].Type.Shape) == 1}
	return func(c *Call) error {
		steps, err := c.int(0, math.MaxInt64)
		if err != nil {
			return err
		}
		cond := true
		if len(c.Ins) > 1 && c.Ins[1] != nil {
			if cond, err = conditionOf(c.Ins[1]); err != nil {
				return err
			}
		}
		endless := len(c.Ins) < 2 || c.Ins[1] == nil // the condition does not count
		ins := make([]Data, 2+carried)
		copy(ins[2:], c.Ins[min(2, len(c.Ins)):])
		scans := make([][]Data, len(g.Outputs())-1-carried)
		keep := held{}
		keep.hold(ins[2:])
		for k := int64(0); k < steps && cond; k++ {
			if err := c.Ctx.Err(); err != nil {
				return err
			}
			ins[0], ins[1] = oneOf(k, vector[0]), oneOf(cond, vector[1])
			out, err := body.Run(c, append([]Data(nil), ins...))
			if err != nil {
				return err
			}
			if !endless {
				if cond, err = conditionOf(out[0]); err != nil {
					return err
				}
			}
			for i := range scans {
				scans[i] = append(scans[i], out[1+carried+i])
			}
			keep.hold(out[1+carried:])
			keep.free(c, ins[2:], out[1:1+carried])
			copy(ins[2:], out[1:1+carried])
		}
		for i := range c.Outs {
			if i < carried {
				c.Outs[i] = ins[2+i]
				continue
			}
			t, err := stack(c, scans[i-carried], 0, false, g.Outputs()[1+i].Type)
			if err != nil {
				return err
			}
			c.Outs[i] = t
		}
		return nil
	}, nil
}

// oneOf returns v as a scalar or as a vector of one element.
func oneOf[T tensor.Number](v T, vector bool) *tensor.Tensor {
	if vector {
		return tensor.Of([]T{v})
	}
	return tensor.Scalar(v)
}

// held is the memory that a loop cannot do without until it ends, by address.
type held map[*byte]bool

func (h held) hold(values []Data) {
	for _, d := range values {
		if t, ok := d.(*tensor.Tensor); ok && len(t.Bytes()) > 0 {
			h[&t.Bytes()[0]] = true
		}
	}
}

// free gives back the memory of the values carried into a step, unless it is
// held or the values that the step carries on lie in it.
func (h held) free(c *Call, before, after []Data) {
	for _, d := range after {
		if _, ok := d.(*tensor.Tensor); !ok {
			return // a sequence may refer to any of them
		}
	}
	next := held{}
	next.hold(after)
	for _, d := range before {
		t, ok := d.(*tensor.Tensor)
		if !ok || len(t.Bytes()) == 0 {
			continue
		}
		if at := &t.Bytes()[0]; !h[at] && !next[at] {
			next[at] = true // two of them may share it
			c.Mem.Free(t)
		}
	}
}

// stack joins tensors of one type along a new axis, the last first if
// backward. Without parts the result is an empty tensor of type elem, whose
// unknown dimensions are 0.
func stack(c *Call, parts []Data, attr int64, backward bool, elem graph.Type) (*tensor.Tensor, error) {
	var inner []int
	dtype := elem.Elem
	ts := make([]*tensor.Tensor, len(parts))
	for i, p := range parts {
		t, ok := p.(*tensor.Tensor)
		if !ok {
			return nil, fmt.Errorf("step %d gives %T where a tensor is wanted", i, p)
		}
		if i > 0 && (t.DType() != ts[0].DType() || tensor.ShapeString(t.Shape()) != tensor.ShapeString(ts[0].Shape())) {
			return nil, fmt.Errorf("step %d gives %v, step 0 %v", i, t, ts[0])
		}
		ts[i] = t
	}
	if len(ts) > 0 {
		inner, dtype = ts[0].Shape(), ts[0].DType()
	} else {
		for _, d := range elem.Shape {
			if !d.Known {
				d.Size = 0
			}
			inner = append(inner, int(d.Size))
		}
	}
	axis, err := NormalAxis(attr, len(inner)+1)
	if err != nil {
		return nil, err
	}
	shape := append(append(append([]int{}, inner[:axis]...), len(ts)), inner[axis:]...)
	wide := dtype
	if isPacked(dtype) {
		wide = tensor.Uint8
	}
	out, err := c.Mem.New(wide, shape)
	if err != nil {
		return nil, err
	}
	outer, n := volume(shape[:axis]), volume(shape[axis+1:])
	dst := cellsOf(out)
	for i, t := range ts {
		if isPacked(dtype) {
			if t, err = unpack(c, t); err != nil {
				return nil, err
			}
		}
		at := i
		if backward {
			at = len(ts) - 1 - i
		}
		src := cellsOf(t)
		for o := range outer {
			dst.put((o*len(ts)+at)*n, src, o*n, n)
		}
	}
	if isPacked(dtype) {
		return pack(c, out, dtype)
	}
	return out, nil
}

// take returns a copy of element i of an axis, without that axis.
func take(c *Call, t *tensor.Tensor, axis, i int) (*tensor.Tensor, error) {
	in := t.Shape()
	shape := append(append([]int{}, in[:axis]...), in[axis+1:]...)
	dtype := t.DType()
	src := t
	if isPacked(dtype) {
		var err error
		if src, err = unpack(c, t); err != nil {
			return nil, err
		}
	}
	out, err := c.Mem.New(src.DType(), shape)
	if err != nil {
		return nil, err
	}
	d, s := cellsOf(out), cellsOf(src)
	n := volume(in[axis+1:])
	for o := range volume(in[:axis]) {
		d.put(o*n, s, (o*in[axis]+i)*n, n)
	}
	if isPacked(dtype) {
		return pack(c, out, dtype)
	}
	return out, nil
}

// scan is a Scan with its attributes. Before version 9, the inputs follow an
// optional input of sequence lengths and begin with a batch axis, and the
// scanned axis is the second.
type scan struct {
	body             *graph.Graph
	batched          bool
	states, ins      int
	first            int // input of the first state
	inAxes, outAxes  []int64
	inBack, outBacks []bool
}

func newScan(n *graph.Node, opset int) (*scan, error) {
	s := &scan{body: bodyOf(n, "body"), batched: opset < 9}
	if s.batched {
		s.first = 1
	}
	m := n.Int("num_scan_inputs", -1)
	if s.body == nil || m < 1 || m > int64(n.NumInputs()-s.first) {
		return nil, fmt.Errorf("num_scan_inputs is %d for %d inputs", m, n.NumInputs())
	}
	s.ins = int(m)
	s.states = n.NumInputs() - s.first - s.ins
	outs := len(s.body.Outputs()) - s.states
	if len(s.body.Inputs()) != s.states+s.ins || outs < 0 || len(n.Outputs()) > len(s.body.Outputs()) {
		return nil, fmt.Errorf("a body of %d inputs and %d outputs for %d states and %d scanned inputs",
			len(s.body.Inputs()), len(s.body.Outputs()), s.states, s.ins)
	}
	var err error
	axes := func(name string, k int) []int64 {
		v := n.Ints(name)
		if v == nil {
			v = make([]int64, k)
		}
		if len(v) != k {
			err = fmt.Errorf("%s has %d entries, want %d", name, len(v), k)
		}
		return v
	}
	flags := func(name string, k int) []bool {
		out := make([]bool, k)
		for i, v := range axes(name, k) {
			if err == nil {
				out[i] = v != 0
			}
		}
		return out
	}
	s.inAxes, s.outAxes = make([]int64, s.ins), make([]int64, outs)
	s.outBacks = make([]bool, outs)
	if s.batched {
		s.inBack = flags("directions", s.ins)
		return s, err
	}
	s.inAxes, s.outAxes = axes("scan_input_axes", s.ins), axes("scan_output_axes", outs)
	s.inBack, s.outBacks = flags("scan_input_directions", s.ins), flags("scan_output_directions", outs)
	return s, err
}

func inferScan(c *Inference) error {
	s, err := newScan(c.Node, c.Opset)
	if err != nil {
		return err
	}
	batch, steps := graph.Dim{}, graph.Dim{}
	// strip takes the batch axis off a shape.
	strip := func(sh graph.Shape) graph.Shape {
		if !s.batched || sh == nil {
			return sh
		}
		if len(sh) == 0 {
			return nil
		}
		batch, _ = unify(batch, sh[0])
		return sh[1:]
	}
	ins := s.body.Inputs()
	for i := range s.states {
		t := c.In(s.first + i)
		t.Shape = strip(t.Shape)
		bodyInput(ins[i], t)
	}
	for i := range s.ins {
		t := c.In(s.first + s.states + i)
		if t.Shape = strip(t.Shape); t.Shape != nil {
			axis, err := NormalAxis(s.inAxes[i], len(t.Shape))
			if err != nil {
				return err
			}
			var agree bool
			if steps, agree = unify(steps, t.Shape[axis]); !agree {
				return c.Errorf("scanned inputs have different lengths")
			}
			t.Shape = append(append(graph.Shape{}, t.Shape[:axis]...), t.Shape[axis+1:]...)
		}
		bodyInput(ins[s.states+i], t)
	}
	if err := c.Graph(s.body); err != nil {
		return err
	}
	for i := range c.Node.Outputs() {
		t := s.body.Outputs()[i].Type
		if t.Kind != graph.KindTensor {
			continue
		}
		sh := bare(t.Shape)
		if i >= s.states && sh != nil {
			axis, err := NormalAxis(s.outAxes[i-s.states], len(sh)+1)
			if err != nil {
				return err
			}
			sh = append(append(append(graph.Shape{}, sh[:axis]...), steps), sh[axis:]...)
		}
		if s.batched && sh != nil {
			sh = append(graph.Shape{{Size: batch.Size, Sym: batch.Sym, Known: batch.Known}}, sh...)
		}
		c.Tensor(i, t.Elem, sh)
	}
	return nil
}

func compileScan(site *Site) (Kernel, error) {
	s, err := newScan(site.Node, site.Opset)
	if err != nil {
		return nil, site.Errorf("%v", err)
	}
	body, err := site.Body(s.body)
	if err != nil {
		return nil, err
	}
	return func(c *Call) error {
		ins := make([]*tensor.Tensor, s.states+s.ins)
		for i := range ins {
			if ins[i] = c.In(s.first + i); ins[i] == nil {
				return fmt.Errorf("input %d is missing", s.first+i)
			}
		}
		if !s.batched {
			out, err := s.run(c, body, ins, -1)
			if err == nil {
				copy(c.Outs, out)
			}
			return err
		}
		return s.runBatch(c, body, ins)
	}, nil
}

// run scans one sequence of the given length, -1 meaning all of it.
func (s *scan) run(c *Call, body Body, in []*tensor.Tensor, length int) ([]Data, error) {
	axes := make([]int, s.ins)
	for i, t := range in[s.states:] {
		axis, err := NormalAxis(s.inAxes[i], t.Rank())
		if err != nil {
			return nil, err
		}
		axes[i] = axis
		n := t.Shape()[axis]
		if length < 0 {
			length = n
		}
		if length > n || n != in[s.states].Shape()[axes[0]] {
			return nil, fmt.Errorf("scanned input %d has %d steps, want %d", i, n, length)
		}
	}
	state := make([]Data, s.states)
	for i := range state {
		state[i] = in[i]
	}
	scans := make([][]Data, len(s.body.Outputs())-s.states)
	keep := held{}
	keep.hold(state)
	for k := range length {
		if err := c.Ctx.Err(); err != nil {
			return nil, err
		}
		args := append(make([]Data, 0, len(in)), state...)
		for i, t := range in[s.states:] {
			at := k
			if s.inBack[i] {
				at = length - 1 - k
			}
			e, err := take(c, t, axes[i], at)
			if err != nil {
				return nil, err
			}
			args = append(args, e)
		}
		out, err := body.Run(c, args)
		if err != nil {
			return nil, err
		}
		keep.hold(out[s.states:])
		keep.free(c, state, out[:s.states])
		copy(state, out)
		for i := range scans {
			scans[i] = append(scans[i], out[s.states+i])
		}
	}
	out := state
	for i, parts := range scans {
		t, err := stack(c, parts, s.outAxes[i], s.outBacks[i], s.body.Outputs()[s.states+i].Type)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// runBatch scans each sequence of a batch (version 8); scanned outputs of
// shorter sequences end in zeros.
func (s *scan) runBatch(c *Call, body Body, in []*tensor.Tensor) error {
	for i, t := range in {
		if t.Rank() < 1 || i >= s.states && t.Rank() < 2 || t.Shape()[0] != in[0].Shape()[0] {
			return fmt.Errorf("input %d is %v in a batch of %v", s.first+i, t, in[0])
		}
	}
	batch, steps := in[0].Shape()[0], in[s.states].Shape()[1]
	lens := make([]int64, batch)
	for i := range lens {
		lens[i] = int64(steps)
	}
	if c.In(0) != nil {
		var err error
		if lens, err = c.ints(0); err != nil {
			return err
		}
	}
	if len(lens) != batch {
		return fmt.Errorf("%d sequence lengths for a batch of %d", len(lens), batch)
	}
	all := make([][]Data, len(s.body.Outputs()))
	for b := range batch {
		if lens[b] < 0 || lens[b] > int64(steps) {
			return fmt.Errorf("sequence length %d of %d steps", lens[b], steps)
		}
		one := make([]*tensor.Tensor, len(in))
		for i, t := range in {
			var err error
			if one[i], err = take(c, t, 0, b); err != nil {
				return err
			}
		}
		out, err := s.run(c, body, one, int(lens[b]))
		if err != nil {
			return err
		}
		for i, d := range out {
			t := d.(*tensor.Tensor)
			if i >= s.states && t.Shape()[0] < steps {
				pads := make([]int64, t.Rank())
				after := append([]int64{}, pads...)
				after[0] = int64(steps - t.Shape()[0])
				sub := *c
				sub.Outs = make([]Data, 1)
				if err := pad(&sub, t, pads, after, "constant", tensor.New(t.DType(), 1)); err != nil {
					return err
				}
				d = sub.Outs[0]
			}
			all[i] = append(all[i], d)
		}
	}
	for i := range c.Outs {
		t, err := stack(c, all[i], 0, false, s.body.Outputs()[i].Type)
		if err != nil {
			return err
		}
		c.Outs[i] = t
	}
	return nil
}

// mapBody returns the body of a SequenceMap.
func mapBody(n *graph.Node) (*graph.Graph, error) {
	g := bodyOf(n, "body")
	if g == nil || len(g.Inputs()) != n.NumInputs() || len(g.Outputs()) < len(n.Outputs()) {
		return nil, fmt.Errorf("the body does not take %d inputs to %d outputs", n.NumInputs(), len(n.Outputs()))
	}
	return g, nil
}

func inferSequenceMap(c *Inference) error {
	g, err := mapBody(c.Node)
	if err != nil {
		return err
	}
	for i, v := range g.Inputs() {
		t := c.In(i)
		if t.Kind == graph.KindSequence && t.Inner != nil {
			t = *t.Inner
		}
		bodyInput(v, t)
	}
	if err := c.Graph(g); err != nil {
		return err
	}
	for i := range c.Node.Outputs() {
		c.Out(i, sequenceOf(g.Outputs()[i].Type))
	}
	return nil
}

func compileSequenceMap(s *Site) (Kernel, error) {
	g, err := mapBody(s.Node)
	if err != nil {
		return nil, s.Errorf("%v", err)
	}
	body, err := s.Body(g)
	if err != nil {
		return nil, err
	}
	return func(c *Call) error {
		first, err := c.sequence(0)
		if err != nil {
			return err
		}
		outs := make([]Sequence, len(c.Outs))
		for k := range first {
			if err := c.Ctx.Err(); err != nil {
				return err
			}
			args := append([]Data(nil), c.Ins...)
			for i, d := range args {
				if seq, ok := d.(Sequence); ok {
					if len(seq) != len(first) {
						return fmt.Errorf("sequences of %d and %d elements", len(first), len(seq))
					}
					args[i] = seq[k]
				}
			}
			got, err := body.Run(c, args)
			if err != nil {
				return err
			}
			for i := range outs {
				outs[i] = append(outs[i], got[i])
			}
		}
		for i, seq := range outs {
			c.Outs[i] = seq
		}
		return nil
	}, nil
}
