//go:build !noonnxgo

package onnxgo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
	"github.com/owulveryck/onnx-go"
	"github.com/owulveryck/onnx-go/backend"
	gonum "gonum.org/v1/gonum/graph"
	"gonum.org/v1/gonum/graph/iterator"
	"gonum.org/v1/gonum/graph/simple"
	gorgonia "gorgonia.org/tensor"
)

// DefaultOpset is the version of the default domain that New assumes; onnx-go
// v0.5.0 was written for files of this version.
const DefaultOpset = 9

var _ backend.ComputationBackend = (*Backend)(nil)

// Backend is a backend of onnx-go on the embedded executor: it records the
// graph that onnx-go's decoder builds and compiles it on the first Run. It
// serves one onnx.Model and one goroutine at a time.
//
// Tensors given to SetInput are read during Run, not copied. Weights belong to
// the Backend from the first Run on. Output tensors belong to the caller.
type Backend struct {
	// Session configures the executor; it has to be set before the first Run.
	Session exec.SessionOptions

	opsets []graph.Opset
	file   *file
	nodes  []*node
	values []*value
	named  map[string]*value
	edges  []gonum.WeightedEdge // since the last operation
	from   map[int64][]gonum.WeightedEdge
	to     map[int64][]gonum.WeightedEdge
	ops    []operation
	iface  int // nodes there were when the first edge or operation came
	err    error

	feeds   []*value
	outputs []*value
	program *exec.Program
	session *exec.Session
}

// file is what the decoder does not hand on.
type file struct {
	outputs []string
	inputs  map[string]bool   // those that have to be fed
	domains map[string]string // of nodes, by their first named output
}

// operation is a node of the model as the decoder describes it.
type operation struct {
	onnx.Operation
	ins, outs []*value
}

// value is what nodes of the same name stand for.
type value struct {
	name    string
	def     int   // index of the operation that defines it, -1 if none does
	first   int64 // the first node of this name
	initial gorgonia.Tensor
	fed     gorgonia.Tensor
	result  gorgonia.Tensor
	shape   graph.Shape  // of fed, as compiled
	elem    tensor.DType // of fed, as compiled
}

// node is a node of onnx-go's graph, which stands for a value. The decoder may
// make several of one name: for an input, its value_info and an output.
type node struct {
	id       int64
	b        *Backend
	v        *value
	declared gorgonia.Tensor // zeros of the declared type, or an initializer
	sets     int             // tensors set while decoding
}

// New returns a backend for models of the given operator-set versions, which
// onnx-go's decoder does not hand on; without any, for DefaultOpset. The domain
// of an operator, which it does not hand on either, is the first of those in
// package ops that has its name and version, the default domain before others.
//
// Every value that the file declares a type for is computed as an output, since
// the decoder does not tell them from outputs. NewFor knows all three.
func New(opsets ...graph.Opset) *Backend {
	if len(opsets) == 0 {
		opsets = []graph.Opset{{Version: DefaultOpset}}
	}
	return &Backend{opsets: opsets, named: map[string]*value{}, from: map[int64][]gonum.WeightedEdge{}, to: map[int64][]gonum.WeightedEdge{}}
}

// NewFor returns a backend for the model in data, a serialized ModelProto that
// UnmarshalBinary is going to read, with the operator sets, domains and outputs
// of the file.
func NewFor(data []byte) (*Backend, error) {
	m, err := onnxfile.Decode(data)
	if err != nil {
		return nil, err
	}
	f := &file{inputs: map[string]bool{}, domains: map[string]string{}}
	for _, v := range m.Graph.Outputs() {
		f.outputs = append(f.outputs, v.Name())
	}
	for _, v := range m.Graph.FeedInputs() {
		f.inputs[v.Name()] = true
	}
	for n := range m.Graph.Nodes() {
		for _, v := range n.Outputs() {
			if v != nil {
				f.domains[v.Name()] = n.Op.Domain
				break
			}
		}
	}
	b := New(m.Opsets...)
	b.file = f
	return b, nil
}

// ID is the node's number, counted from 0 in the order of creation; onnx-go
// relies on that order.
func (n *node) ID() int64 { return n.id }

// GetName returns the name of the value; it is empty for omitted inputs.
func (n *node) GetName() string {
	if n.v == nil {
		return ""
	}
	return n.v.name
}

// SetName says which value the node stands for.
func (n *node) SetName(name string) {
	if name == "" {
		return
	}
	n.v = n.b.named[name]
	if n.v == nil {
		n.v = &value{name: name, def: -1, first: n.id}
		n.b.named[name] = n.v
		n.b.values = append(n.b.values, n.v)
	}
}

// SetTensor sets the declared type or initializer while the model is decoded,
// and an input afterwards.
func (n *node) SetTensor(t gorgonia.Tensor) error {
	if n.v == nil {
		return errors.New("onnxgo: tensor for a value without a name")
	}
	if n.b.iface > 0 {
		n.v.fed = t
		return nil
	}
	if n.sets++; n.sets > 1 {
		n.v.initial = t
	}
	n.declared = t
	return nil
}

// GetTensor returns the result of the last Run, or else what was set.
func (n *node) GetTensor() gorgonia.Tensor {
	if n.v != nil {
		for _, t := range []gorgonia.Tensor{n.v.result, n.v.fed, n.v.initial} {
			if t != nil {
				return t
			}
		}
	}
	return n.declared
}

// NewNode returns a node that AddNode has to add before another is made.
func (b *Backend) NewNode() gonum.Node { return &node{id: int64(len(b.nodes)), b: b} }

// AddNode adds a node that NewNode has returned. Another one makes Run fail.
func (b *Backend) AddNode(n gonum.Node) {
	own, ok := n.(*node)
	if !ok || own.b != b || own.id != int64(len(b.nodes)) {
		b.err = cmp.Or(b.err, fmt.Errorf("onnxgo: node %d was not made for this place", n.ID()))
		return
	}
	b.nodes = append(b.nodes, own)
}

// NewWeightedEdge returns an edge from a value to one that it is computed from,
// whose place among the inputs is the weight.
func (b *Backend) NewWeightedEdge(from, to gonum.Node, weight float64) gonum.WeightedEdge {
	return simple.WeightedEdge{F: from, T: to, W: weight}
}

// SetWeightedEdge adds an edge. There may be several between two nodes.
func (b *Backend) SetWeightedEdge(e gonum.WeightedEdge) {
	b.decoded()
	b.edges = append(b.edges, e)
	b.from[e.From().ID()] = append(b.from[e.From().ID()], e)
	b.to[e.To().ID()] = append(b.to[e.To().ID()], e)
}

func (b *Backend) decoded() {
	if b.iface == 0 {
		b.iface = len(b.nodes)
	}
}

// ApplyOperation records an operator. Its inputs are the edges from the first
// output that were set since the operation before.
func (b *Backend) ApplyOperation(o onnx.Operation, outputs ...gonum.Node) error {
	b.decoded()
	b.program = nil
	op := operation{Operation: o}
	for i, out := range outputs {
		n, ok := out.(*node)
		if !ok {
			return fmt.Errorf("onnxgo: %s: output %d is no node of this backend", o.Name, i)
		}
		if n.v != nil {
			if n.v.def >= 0 {
				return fmt.Errorf("onnxgo: %s: value %q is defined twice", o.Name, n.v.name)
			}
			n.v.def = len(b.ops)
		}
		op.outs = append(op.outs, n.v)
	}
	for _, e := range b.edges {
		n, ok := e.To().(*node)
		if !ok {
			return fmt.Errorf("onnxgo: %s: an input is no node of this backend", o.Name)
		}
		if len(outputs) == 0 || e.From().ID() != outputs[0].ID() {
			continue
		}
		i := int(e.Weight())
		if i < 0 || i > len(op.ins) || float64(i) != e.Weight() {
			return fmt.Errorf("onnxgo: %s: edge of weight %v after %d inputs", o.Name, e.Weight(), len(op.ins))
		}
		if i == len(op.ins) {
			op.ins = append(op.ins, nil)
		}
		op.ins[i] = n.v
	}
	b.edges = b.edges[:0]
	b.ops = append(b.ops, op)
	return nil
}

// Node returns the node with the given ID, or nil.
func (b *Backend) Node(id int64) gonum.Node {
	if id < 0 || id >= int64(len(b.nodes)) {
		return nil
	}
	return b.nodes[id]
}

// Nodes returns all nodes in order of their IDs.
func (b *Backend) Nodes() gonum.Nodes {
	all := make([]gonum.Node, len(b.nodes))
	for i, n := range b.nodes {
		all[i] = n
	}
	return iterator.NewOrderedNodes(all)
}

// From returns the nodes that the node with the given ID is computed from.
func (b *Backend) From(id int64) gonum.Nodes { return ends(b.from[id], gonum.WeightedEdge.To) }

// To returns the nodes that are computed from the node with the given ID.
func (b *Backend) To(id int64) gonum.Nodes { return ends(b.to[id], gonum.WeightedEdge.From) }

func ends(edges []gonum.WeightedEdge, end func(gonum.WeightedEdge) gonum.Node) gonum.Nodes {
	var list []gonum.Node
	seen := map[int64]bool{}
	for _, e := range edges {
		if n := end(e); !seen[n.ID()] {
			seen[n.ID()] = true
			list = append(list, n)
		}
	}
	if len(list) == 0 {
		return gonum.Empty
	}
	return iterator.NewOrderedNodes(list)
}

// Edge returns the first edge from u to v, or nil.
func (b *Backend) Edge(uid, vid int64) gonum.Edge {
	for _, e := range b.from[uid] {
		if e.To().ID() == vid {
			return e
		}
	}
	return nil
}

// HasEdgeFromTo reports whether there is an edge from u to v.
func (b *Backend) HasEdgeFromTo(uid, vid int64) bool { return b.Edge(uid, vid) != nil }

// HasEdgeBetween reports whether there is an edge between x and y.
func (b *Backend) HasEdgeBetween(xid, yid int64) bool {
	return b.HasEdgeFromTo(xid, yid) || b.HasEdgeFromTo(yid, xid)
}

// Run is RunContext without an end.
func (b *Backend) Run() error { return b.RunContext(context.Background()) }

// RunContext computes the outputs from the inputs that were set. The model is
// compiled for their types and shapes; a dimension that differs in a later run
// is compiled as unknown. An operator without a kernel is an
// *onnx.ErrNotImplemented.
func (b *Backend) RunContext(ctx context.Context) error {
	if b.err != nil {
		return b.err
	}
	feeds := map[string]ops.Data{}
	for _, v := range b.values {
		if v.fed == nil || v.def >= 0 {
			continue
		}
		t, err := fromGorgonia(v.fed)
		if err != nil {
			return fmt.Errorf("onnxgo: input %q: %w", v.name, err)
		}
		if v.fit(t) {
			b.program = nil
		}
		feeds[v.name] = t
	}
	if b.program == nil {
		if err := b.compile(); err != nil {
			return err
		}
	}
	for _, v := range b.feeds {
		if v.fed == nil {
			return fmt.Errorf("onnxgo: input %q has no tensor: SetInput was not called for it", v.name)
		}
	}
	outs, err := b.session.Run(ctx, feeds, nil, nil)
	if err != nil {
		return err
	}
	for i, v := range b.outputs {
		t, ok := outs[i].(*tensor.Tensor)
		if !ok {
			return fmt.Errorf("onnxgo: output %q is no tensor, and onnx-go has nothing else", v.name)
		}
		if v.result, err = toGorgonia(t); err != nil {
			return fmt.Errorf("onnxgo: output %q: %w", v.name, err)
		}
	}
	return nil
}

// fit makes the type that v is compiled for one that t has, and reports whether
// it was not.
func (v *value) fit(t *tensor.Tensor) (changed bool) {
	if v.elem != t.DType() || len(v.shape) != t.Rank() || v.shape == nil {
		v.elem, v.shape = t.DType(), graph.ShapeOf(t.Shape()...)
		return true
	}
	for i, d := range v.shape {
		if d.Known && d.Size != int64(t.Shape()[i]) {
			v.shape = slices.Clone(v.shape)
			v.shape[i] = graph.Sym("")
			changed = true
		}
	}
	return changed
}

// compile makes a model of what was recorded.
func (b *Backend) compile() error {
	m, err := b.model()
	if err != nil {
		return fmt.Errorf("onnxgo: %w", err)
	}
	p, err := exec.Compile(m, exec.Options{})
	if errors.Is(err, exec.ErrUnsupported) {
		not := &onnx.ErrNotImplemented{Message: err.Error()}
		if at := (*graph.Error)(nil); errors.As(err, &at) {
			not.Operator = at.Op
		}
		return not
	}
	if err != nil {
		return fmt.Errorf("onnxgo: %w", err)
	}
	b.program, b.session = p, p.NewSession(b.Session)
	return nil
}

func (b *Backend) model() (*graph.Model, error) {
	m := graph.NewModel(irVersion, b.opsets...)
	g := m.Graph
	b.feeds, b.outputs = nil, nil
	made := map[*value]*graph.Value{}
	initial := b.initializers()
	// The input that the decoder makes up for an operator without any.
	for i, op := range b.ops {
		if len(op.ins) == 1 && b.invented(op.ins[0], initial[op.ins[0]]) {
			b.ops[i].ins = nil
		}
	}
	used := map[*value]bool{}
	for _, op := range b.ops {
		for _, v := range op.ins {
			used[v] = true
		}
	}
	for _, v := range b.values {
		switch t := initial[v]; {
		case v.def >= 0 || !used[v] && v.fed == nil:
			continue
		case v.fed != nil:
			made[v] = g.NewValue(v.name, graph.TensorType(v.elem, v.shape))
			g.AddInput(made[v])
			b.feeds = append(b.feeds, v)
		case t != nil:
			c, err := fromGorgonia(t)
			if err != nil {
				return nil, fmt.Errorf("initializer %q: %w", v.name, err)
			}
			made[v] = g.NewValue(v.name, graph.TypeOf(c))
			g.AddInitializer(made[v], c)
		default:
			return nil, fmt.Errorf("input %q has no tensor: SetInput was not called for it", v.name)
		}
	}
	for _, op := range b.ops {
		var ins, outs []*graph.Value
		for _, v := range op.ins {
			if v != nil && made[v] == nil {
				return nil, fmt.Errorf("%s reads %q before it is computed", op.Name, v.name)
			}
			ins = append(ins, made[v])
		}
		for _, v := range op.outs {
			if v != nil {
				made[v] = g.NewValue(v.name, graph.Type{})
			}
			outs = append(outs, made[v])
		}
		attrs, err := attributes(op.Attributes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", op.Name, err)
		}
		g.Append(g.NewNode(graph.OpKey{Domain: b.domain(m, &op), Type: op.Name}, "", ins, outs, attrs...))
	}
	for _, v := range b.results(used) {
		g.AddOutput(made[v])
		b.outputs = append(b.outputs, v)
	}
	return m, m.Verify()
}

// irVersion is that of the models made here: the first with which every
// initializer is constant unless it is an input as well.
const irVersion = 4

// initializers returns the values that the decoder gave data. The nodes of the
// graph's inputs, value_infos and outputs come first and get zeros of their
// type, if they have one; an initializer is set after that, on a node that is
// there or on one made for it.
func (b *Backend) initializers() map[*value]gorgonia.Tensor {
	last := int64(-1) // of the nodes up to here one is a declared result
	for _, n := range b.nodes[:b.iface] {
		if n.v != nil && n.v.def >= 0 && n.declared != nil {
			last = n.id
		}
	}
	initial := map[*value]gorgonia.Tensor{}
	for _, v := range b.values {
		given := v.initial
		if n := b.nodes[v.first]; given == nil && v.first > last {
			given = n.declared
		}
		if given != nil && v.def < 0 && (b.file == nil || !b.file.inputs[v.name]) {
			initial[v] = given
		}
	}
	return initial
}

// invented reports whether v is the input that the decoder makes up for an
// operator that has none: NAME/input, without a type.
func (b *Backend) invented(v *value, initial gorgonia.Tensor) bool {
	return v != nil && v.def < 0 && v.fed == nil && initial == nil && strings.HasSuffix(v.name, "/input") &&
		b.nodes[v.first].declared == nil && (b.file == nil || !b.file.inputs[v.name])
}

// results returns the values to compute: the outputs of the file if they are
// known, else what was declared and is computed, with or without a type.
func (b *Backend) results(used map[*value]bool) []*value {
	var list []*value
	seen := map[*value]bool{}
	add := func(v *value) {
		if v != nil && v.def >= 0 && !seen[v] {
			seen[v] = true
			list = append(list, v)
		}
	}
	if b.file != nil {
		for _, name := range b.file.outputs {
			add(b.named[name])
		}
		return list
	}
	for _, n := range b.nodes[:b.iface] {
		if n.declared != nil || !used[n.v] {
			add(n.v)
		}
	}
	return list
}

// domain finds the domain of an operator, and imports it if it is not.
func (b *Backend) domain(m *graph.Model, op *operation) string {
	if b.file != nil {
		for _, v := range op.outs {
			if v != nil {
				return b.file.domains[v.name]
			}
		}
	}
	found, ok := graph.OnnxDomain, false
	for _, s := range ops.All() {
		switch {
		case s.Type != op.Name:
		case s.Domain != graph.OnnxDomain:
			if !ok {
				found, ok = s.Domain, true
			}
		case s.Since <= m.Opset(graph.OnnxDomain):
			return graph.OnnxDomain
		}
	}
	if m.Opset(found) == 0 {
		m.SetOpset(found, 1)
	}
	return found
}

// attributes returns the decoder's attributes in order of their names.
func attributes(from map[string]interface{}) ([]*graph.Attr, error) {
	var list []*graph.Attr
	for _, name := range slices.Sorted(maps.Keys(from)) {
		a, err := attribute(name, from[name])
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		list = append(list, a)
	}
	return list, nil
}

func attribute(name string, from interface{}) (*graph.Attr, error) {
	switch v := from.(type) {
	case float32:
		return graph.Float(name, v), nil
	case int64:
		return graph.Int(name, v), nil
	case string:
		return graph.String(name, v), nil
	case []float32:
		return graph.Floats(name, v...), nil
	case []int64:
		return graph.Ints(name, v...), nil
	case []string:
		return &graph.Attr{Name: name, Kind: graph.AttrStrings, Strings: v}, nil
	case gorgonia.Tensor:
		t, err := fromGorgonia(v)
		if err != nil {
			return nil, err
		}
		return graph.TensorAttr(name, t), nil
	}
	return nil, fmt.Errorf("onnx-go hands on a %T, which is none", from)
}
