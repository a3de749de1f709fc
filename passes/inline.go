package passes

import (
	"errors"
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// inlineLimit bounds the nodes of a model after inlining: calls of calls grow
// a model exponentially with the size of its file.
const inlineLimit = 1 << 18

func inlineFunctions(s *State) error {
	if len(s.Model.Functions) == 0 {
		return nil
	}
	in := inliner{s: s, functions: map[graph.OpKey]*graph.Function{}, size: map[*graph.Function]int{}, ready: map[*graph.Function]bool{}}
	for _, f := range s.Model.Functions {
		key := graph.OpKey{Domain: graph.NormalDomain(f.Domain), Type: f.Name, Overload: f.Overload}
		if in.functions[key] != nil {
			return fmt.Errorf("function %v is defined twice", key)
		}
		in.functions[key] = f
	}
	total := 0
	for _, g := range mainGraphs(s.Model) {
		n, err := in.expanded(g)
		if err != nil {
			return err
		}
		if total += n; total > inlineLimit {
			return fmt.Errorf("inlining gives more than %d nodes", inlineLimit)
		}
	}
	for _, g := range mainGraphs(s.Model) {
		if err := in.graph(g); err != nil {
			return err
		}
	}
	s.Model.Functions = nil
	s.Changes++
	return nil
}

type inliner struct {
	s         *State
	functions map[graph.OpKey]*graph.Function
	size      map[*graph.Function]int  // nodes of the expanded body; -1 while it is counted
	ready     map[*graph.Function]bool // operator sets agree with the model's
}

// expanded returns the number of nodes that the nodes of g, without graphs
// nested in it, expand to.
func (in *inliner) expanded(g *graph.Graph) (int, error) {
	total := 0
	for n := range g.Nodes() {
		if err := in.s.Ctx.Err(); err != nil {
			return 0, err
		}
		total++
		f := in.functions[n.Op]
		if f == nil {
			continue
		}
		size, err := in.body(f)
		if err != nil {
			return 0, graph.NodeError("inline", n, err)
		}
		total = min(total+size, inlineLimit+1)
	}
	return total, nil
}

func (in *inliner) body(f *graph.Function) (int, error) {
	switch size, known := in.size[f]; {
	case known && size < 0:
		return 0, fmt.Errorf("function %s calls itself", f.Name)
	case known:
		return size, nil
	}
	in.size[f] = -1
	total := 0
	for _, g := range nested(f.Body) {
		n, err := in.expanded(g)
		if err != nil {
			return 0, err
		}
		total = min(total+n, inlineLimit+1)
	}
	in.size[f] = total
	return total, nil
}

// graph inlines the calls in g, and those that come with inlined bodies.
func (in *inliner) graph(g *graph.Graph) error {
	for n := g.First(); n != nil; {
		f := in.functions[n.Op]
		if f == nil {
			n = n.Next()
			continue
		}
		if err := in.s.Ctx.Err(); err != nil {
			return err
		}
		prev := n.Prev()
		subgraphs, err := in.call(n, f)
		if err != nil {
			return graph.NodeError("inline", n, fmt.Errorf("function %s: %w", f.Name, err))
		}
		in.s.Changes++
		for _, sub := range subgraphs {
			if err := in.graph(sub); err != nil {
				return err
			}
		}
		n = g.First()
		if prev != nil {
			n = prev.Next()
		}
	}
	return nil
}

// agree makes the operator sets that the body of f uses those of the model.
func (in *inliner) agree(f *graph.Function) error {
	if in.ready[f] {
		return nil
	}
	m := in.s.Model
	used := map[string]bool{}
	for _, g := range nested(f.Body) {
		for n := range g.Nodes() {
			used[n.Op.Domain] = true
		}
	}
	for _, o := range f.Opsets {
		domain := graph.NormalDomain(o.Domain)
		if !used[domain] {
			continue
		}
		have, want := m.Opset(domain), int(o.Version)
		if domain == graph.OnnxDomain && want > have && have > 0 && want <= in.s.Options.MinOpset {
			if err := in.s.lift(mainGraphs(m), m.Opsets, want, func(v int) { m.SetOpset(domain, v) }); err != nil {
				return err
			}
			have = want
		}
		switch {
		case have == 0:
			m.SetOpset(o.Domain, want)
		case have == want:
		case domain == graph.OnnxDomain && want < have:
			if err := in.s.liftFunction(f, have); err != nil {
				return err
			}
		default:
			return fmt.Errorf("it imports version %d of operator set %q, the model version %d", want, domain, have)
		}
	}
	in.ready[f] = true
	return nil
}

// call replaces a node by the body of the function that it calls, and returns
// the graphs that came with it.
func (in *inliner) call(n *graph.Node, f *graph.Function) ([]*graph.Graph, error) {
	if err := in.agree(f); err != nil {
		return nil, err
	}
	formals, results := f.Body.Inputs(), f.Body.Outputs()
	if n.NumInputs() > len(formals) || len(n.Outputs()) > len(results) {
		return nil, fmt.Errorf("called with %d inputs and %d outputs, it has %d and %d", n.NumInputs(), len(n.Outputs()), len(formals), len(results))
	}
	c := copying{caller: n, label: n.Label(), f: f, g: n.Graph(), values: map[*graph.Value]*graph.Value{}}
	for i, v := range formals {
		c.values[v] = n.Input(i)
	}
	outs := slices.Clone(n.Outputs())
	taken := map[*graph.Value]bool{}
	type echo struct{ from, to *graph.Value }
	var echoes []echo // outputs that are inputs, or the same value as another output
	for i, y := range outs {
		if y == nil {
			continue
		}
		n.SetOutput(i, nil)
		if v := results[i]; v.DefNode() == nil || taken[v] {
			echoes = append(echoes, echo{v, y})
		} else {
			taken[v] = true
			c.values[v] = y
		}
	}
	for node := range f.Body.Nodes() {
		copied, err := c.node(node, n.Graph())
		if err != nil {
			return nil, err
		}
		n.Graph().InsertBefore(copied, n)
	}
	for _, e := range echoes {
		from := c.values[e.from]
		if from == nil {
			return nil, fmt.Errorf("output %q is an input that the call omits", e.from.Name())
		}
		m := n.Graph().Model()
		n.Graph().InsertBefore(n.Graph().NewNode(graph.OpKey{Type: "Identity"}, m.UniqueNodeName(c.name("Identity")), []*graph.Value{from}, []*graph.Value{e.to}), n)
	}
	n.Graph().Remove(n)
	return c.graphs, nil
}

// copying is the copy of one function body for one call, or of the branch that
// an If takes.
type copying struct {
	caller *graph.Node
	label  string // of the caller
	f      *graph.Function
	g      *graph.Graph
	values map[*graph.Value]*graph.Value // nil where the call omits an input
	graphs []*graph.Graph
	branch bool // values that are not copied are those of the graphs around
}

// seen returns what stands for v in the copy; nil is an omitted input.
func (c *copying) seen(v *graph.Value) *graph.Value {
	if w, ok := c.values[v]; ok || !c.branch {
		return w
	}
	return v
}

func (c *copying) name(of string) string {
	if of == "" {
		return ""
	}
	return c.label + "/" + of
}

// withoutSymbols returns t without symbols, which stand for other sizes in each
// call.
func withoutSymbols(t graph.Type) graph.Type {
	if t.Inner != nil {
		inner := withoutSymbols(*t.Inner)
		t.Inner = &inner
	}
	if t.Shape != nil {
		shape := make(graph.Shape, len(t.Shape))
		for i, d := range t.Shape {
			if d.Known {
				shape[i] = graph.D(d.Size)
			}
		}
		t.Shape = shape
	}
	return t
}

func (c *copying) typeOf(v *graph.Value) graph.Type {
	if c.branch {
		return v.Type
	}
	return withoutSymbols(v.Type)
}

func (c *copying) define(v *graph.Value, g *graph.Graph) *graph.Value {
	if v == nil {
		return nil
	}
	if w, ok := c.values[v]; ok {
		if w.Type.Kind == graph.KindUnknown {
			w.Type = c.typeOf(v)
		}
		return w
	}
	w := g.NewValue(g.Model().UniqueName(c.name(v.Name())), c.typeOf(v))
	w.Doc = v.Doc
	c.values[v] = w
	return w
}

func (c *copying) node(n *graph.Node, g *graph.Graph) (*graph.Node, error) {
	ins := make([]*graph.Value, n.NumInputs())
	for i, v := range n.Inputs() {
		if v != nil {
			ins[i] = c.seen(v)
		}
	}
	for len(ins) > 0 && ins[len(ins)-1] == nil {
		ins = ins[:len(ins)-1]
	}
	var attrs []*graph.Attr
	for _, a := range n.Attrs {
		b, err := c.attr(a)
		if err != nil {
			return nil, err
		}
		if b != nil {
			attrs = append(attrs, b)
		}
	}
	outs := make([]*graph.Value, len(n.Outputs()))
	for i, v := range n.Outputs() {
		outs[i] = c.define(v, g)
	}
	m := g.Model()
	name := c.name(n.Name)
	if name != "" {
		name = m.UniqueNodeName(name)
	}
	out := g.NewNode(n.Op, name, ins, outs, attrs...)
	out.DomainAlias, out.Doc, out.Metadata, out.Extra = n.DomainAlias, n.Doc, slices.Clone(n.Metadata), n.Extra
	return out, nil
}

// attr resolves a reference with what the call says, or the default, and
// copies graphs; nil is an attribute that has neither.
func (c *copying) attr(a *graph.Attr) (*graph.Attr, error) {
	b := *a
	if a.RefName != "" && !c.branch {
		value := c.caller.Attr(a.RefName)
		if value == nil {
			for _, d := range c.f.AttrDefaults {
				if d.Name == a.RefName {
					value = d
				}
			}
		}
		if value == nil {
			return nil, nil
		}
		if a.Kind != graph.AttrUndefined && value.Kind != a.Kind {
			return nil, fmt.Errorf("attribute %s is of kind %d, the body wants %d", a.RefName, value.Kind, a.Kind)
		}
		b = *value
		b.Name, b.Extra = a.Name, a.Extra
		if len(value.Subgraphs()) > 0 {
			return nil, fmt.Errorf("attribute %s is a graph", a.RefName)
		}
		return &b, nil
	}
	if a.G != nil {
		g, err := c.graph(a.G)
		if err != nil {
			return nil, err
		}
		b.G = g
	}
	b.Graphs = nil
	for _, sub := range a.Graphs {
		g, err := c.graph(sub)
		if err != nil {
			return nil, err
		}
		b.Graphs = append(b.Graphs, g)
	}
	return &b, nil
}

func (c *copying) graph(from *graph.Graph) (*graph.Graph, error) {
	g := c.g.Model().NewGraph()
	g.Name, g.Doc, g.Metadata, g.Extra = from.Name, from.Doc, slices.Clone(from.Metadata), from.Extra
	c.graphs = append(c.graphs, g)
	for _, v := range from.Inputs() {
		g.AddInput(c.define(v, g))
	}
	for _, v := range from.Initializers() {
		w := c.define(v, g)
		if v.Sparse != nil {
			g.AddSparseInitializer(w, v.Sparse)
		} else {
			g.AddInitializer(w, v.Const)
		}
	}
	for n := range from.Nodes() {
		copied, err := c.node(n, g)
		if err != nil {
			return nil, err
		}
		g.Append(copied)
	}
	for _, v := range from.Outputs() {
		w := c.seen(v)
		if w == nil {
			return nil, errors.New("a nested graph returns an input that the call omits")
		}
		g.AddOutput(w)
	}
	for _, v := range from.ValueInfo {
		if w := c.values[v]; w != nil && w.Graph() == g {
			g.ValueInfo = append(g.ValueInfo, w)
		}
	}
	return g, nil
}

// chooseBranches puts the branch that an If with a constant condition takes in
// its place.
func chooseBranches(s *State) error {
	for _, g := range mainGraphs(s.Model) {
		if err := s.chooseIn(g); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) chooseIn(g *graph.Graph) error {
	if !attached(g) {
		return nil
	}
	for n := g.First(); n != nil; {
		cond := n.Input(0)
		if !isOp(n, "If") || cond == nil || !cond.IsConst() || cond.Const.DType() != tensor.Bool || cond.Const.Len() != 1 {
			n = n.Next()
			continue
		}
		name := "else_branch"
		if cond.Const.Bytes()[0] != 0 {
			name = "then_branch"
		}
		a := n.Attr(name)
		if a == nil || a.G == nil || len(a.G.Outputs()) != len(n.Outputs()) {
			return graph.NodeError("choose", n, fmt.Errorf("%s is missing or has another number of outputs", name))
		}
		prev := n.Prev()
		inside, err := putBranch(n, a.G)
		if err != nil {
			return graph.NodeError("choose", n, err)
		}
		s.Changes++
		for _, sub := range inside {
			if err := s.chooseIn(sub); err != nil {
				return err
			}
		}
		n = g.First()
		if prev != nil {
			n = prev.Next()
		}
	}
	return nil
}

// attached reports whether the nodes around g are still in the model.
func attached(g *graph.Graph) bool {
	for ; g.Parent() != nil; g = g.Outer() {
		if g.Parent().Graph() == nil {
			return false
		}
	}
	return true
}

// putBranch replaces an If by the nodes and initializers of a branch, and
// returns the graphs that these hold.
func putBranch(n *graph.Node, branch *graph.Graph) ([]*graph.Graph, error) {
	g := n.Graph()
	m := g.Model()
	c := copying{caller: n, label: n.Label(), g: g, values: map[*graph.Value]*graph.Value{}, branch: true}
	for _, v := range branch.Initializers() {
		if v.Sparse != nil {
			return nil, errors.New("a branch holds a sparse initializer")
		}
		c.values[v] = g.NewInitializer(c.name(v.Name()), v.Const)
	}
	type echo struct{ from, to *graph.Value }
	var echoes []echo
	taken := map[*graph.Value]bool{}
	for i, y := range slices.Clone(n.Outputs()) {
		if y == nil {
			continue
		}
		n.SetOutput(i, nil)
		v := branch.Outputs()[i]
		if v.Graph() != branch || v.DefNode() == nil || taken[v] {
			echoes = append(echoes, echo{v, y})
			continue
		}
		taken[v] = true
		c.values[v] = y
	}
	for node := range branch.Nodes() {
		copied, err := c.node(node, g)
		if err != nil {
			return nil, err
		}
		g.InsertBefore(copied, n)
	}
	for _, e := range echoes {
		g.InsertBefore(g.NewNode(graph.OpKey{Type: "Identity"}, m.UniqueNodeName(c.name("Identity")), []*graph.Value{c.seen(e.from)}, []*graph.Value{e.to}), n)
	}
	g.Remove(n)
	return c.graphs, nil
}
