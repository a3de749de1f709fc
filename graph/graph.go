// Package graph is the intermediate representation of an ONNX model.
//
// A Model owns a main Graph and local Functions. A Graph is a list of Nodes in
// topological order that is safe to edit while iterating. Edges are pointers:
// a Node reads Values and defines Values, and a Value knows its uses, those in
// nested graphs (captures) and the graph outputs it serves as included. Names
// are data: they matter to people and files, not to the edges.
//
// Node and Value IDs are small and never reused, so an analysis is a slice
// indexed by ID. What the representation does not model is kept as wire bytes
// in Extra fields, so that a model survives load and save unchanged.
package graph

import (
	"io"
	"iter"
	"slices"
	"strconv"

	"github.com/onnxq/onnxq/tensor"
)

// OnnxDomain is the canonical name of the default operator domain; files may
// also write "ai.onnx".
const OnnxDomain = ""

// MainScope is the Scope of a model's main graph.
const MainScope = "main"

// Model is an ONNX model.
type Model struct {
	Path            string // where it came from, for messages
	IRVersion       int64
	Opsets          []Opset // operator sets, in file order
	ProducerName    string
	ProducerVersion string
	Domain          string
	ModelVersion    int64
	Doc             string
	Metadata        []Property
	Graph           *Graph
	Functions       []*Function
	Extra           []byte // unmodelled wire bytes (training information, device configurations, unknown fields)

	// Origin is the loader's: the file mapping and how each tensor was
	// stored. It is nil for a model made in memory.
	Origin any

	nextNode, nextValue int
	names, nodeNames    map[string]int // uses of each name
	suffix              map[string]int // per base, below which numbered names may be taken
}

// Opset is an imported operator set. Domain is as in the file: "" and
// "ai.onnx" mean the same.
type Opset struct {
	Domain  string
	Version int64
	Extra   []byte
}

// Property is an entry of a metadata map.
type Property struct {
	Key, Value string
	Extra      []byte
}

// Function is a model-local function. Its body is a Graph whose inputs and
// outputs are the function's and whose initializers are empty.
type Function struct {
	Domain, Name, Overload string
	Doc                    string
	Opsets                 []Opset
	Attrs                  []string // attributes without default
	AttrDefaults           []*Attr
	Metadata               []Property
	Body                   *Graph
	Extra                  []byte
}

// OpKey names an operator.
type OpKey struct{ Domain, Type, Overload string }

// String returns the operator's type, prefixed by its domain unless that is
// the default one.
func (k OpKey) String() string {
	if k.Domain == "" || k.Domain == "ai.onnx" {
		return k.Type
	}
	return k.Domain + "." + k.Type
}

// Graph is the main graph of a model, the body of a control-flow node, or the
// body of a function.
type Graph struct {
	Name     string
	Doc      string
	Metadata []Property
	// ValueInfo lists the values whose types the file states, in file order;
	// entries whose value has left the graph are ignored.
	ValueInfo []*Value
	Extra     []byte // unmodelled wire bytes (quantization annotations, unknown fields)

	model       *Model
	parent      *Node     // the node that holds this graph in an attribute
	attr        string    // the name of that attribute
	fn          *Function // the function whose body this is
	inputs      []*Value
	outputs     []*Value
	inits       []*Value
	first, last *Node
	numNodes    int
}

// Node is one application of an operator.
type Node struct {
	ID       int
	Op       OpKey // Domain "ai.onnx" is normalized to ""; DomainAlias keeps the spelling
	Name     string
	Doc      string
	Attrs    []*Attr
	Metadata []Property
	Extra    []byte // unmodelled wire bytes

	// DomainAlias says that the file spells the default domain "ai.onnx".
	DomainAlias bool

	graph      *Graph
	inputs     []*Value // nil where an optional input is omitted
	slots      []int    // position of each input in its value's uses
	outputs    []*Value // nil where an optional output is omitted
	prev, next *Node
}

// Value is an edge: a graph input, an initializer, or an output of a node.
type Value struct {
	ID    int
	Type  Type
	Const *tensor.Tensor // of an initializer; never written to
	// Sparse is set instead of Const for a sparse initializer.
	Sparse *SparseTensor
	Doc    string
	Extra  []byte // unmodelled wire bytes of its ValueInfoProto

	name  string
	graph *Graph
	def   *Node
	index int // among the outputs of def
	input bool
	uses  []Use
}

// Use is one place that reads a value: input Index of Node, or, with a nil
// Node, output Index of Graph.
type Use struct {
	Node  *Node
	Graph *Graph
	Index int
}

// NewModel returns an empty model with an empty main graph.
func NewModel(irVersion int64, opsets ...Opset) *Model {
	m := &Model{IRVersion: irVersion, Opsets: opsets}
	m.Graph = m.NewGraph()
	return m
}

// NewGraph returns an empty graph that belongs to the model; attach it with
// Node.AddSubgraph or AddFunction.
func (m *Model) NewGraph() *Graph { return &Graph{model: m} }

// AddFunction adds a local function with an empty body.
func (m *Model) AddFunction(domain, name, overload string) *Function {
	f := &Function{Domain: domain, Name: name, Overload: overload, Body: m.NewGraph()}
	f.Body.fn = f
	m.Functions = append(m.Functions, f)
	return f
}

// Function returns the local function that op calls, or nil.
func (m *Model) Function(op OpKey) *Function {
	for _, f := range m.Functions {
		if f.Name == op.Type && NormalDomain(f.Domain) == op.Domain && f.Overload == op.Overload {
			return f
		}
	}
	return nil
}

// Close releases the file that the model's tensors alias, if any. The model
// must not be used afterwards.
func (m *Model) Close() error {
	if c, ok := m.Origin.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// NumNodes returns an upper bound (exclusive) of the IDs of nodes.
func (m *Model) NumNodes() int { return m.nextNode }

// NumValues returns an upper bound (exclusive) of the IDs of values.
func (m *Model) NumValues() int { return m.nextValue }

// NormalDomain returns the canonical name of an operator domain: the alias
// "ai.onnx" becomes "".
func NormalDomain(d string) string {
	if d == "ai.onnx" {
		return OnnxDomain
	}
	return d
}

func opsetOf(list []Opset, domain string) int {
	domain = NormalDomain(domain)
	for _, o := range list {
		if NormalDomain(o.Domain) == domain {
			return int(o.Version)
		}
	}
	return 0
}

// Opset returns the imported version of a domain, or 0.
func (m *Model) Opset(domain string) int { return opsetOf(m.Opsets, domain) }

// SetOpset sets or adds the version of a domain, under both of its names where
// it has two.
func (m *Model) SetOpset(domain string, version int) {
	found := false
	for i, o := range m.Opsets {
		if NormalDomain(o.Domain) == NormalDomain(domain) {
			m.Opsets[i].Version, found = int64(version), true
		}
	}
	if !found {
		m.Opsets = append(m.Opsets, Opset{Domain: domain, Version: int64(version)})
	}
}

// Opset returns the version of a domain that holds in g: the function's, if g
// lies in one.
func (g *Graph) Opset(domain string) int {
	for s := g; s != nil; s = s.Outer() {
		if s.fn != nil {
			return opsetOf(s.fn.Opsets, domain)
		}
	}
	return g.model.Opset(domain)
}

// Scopes yields every graph of the model in a fixed order: the main graph,
// each nested graph after the graph that holds it in node and attribute
// order, then the function bodies in file order.
func (m *Model) Scopes() iter.Seq[*Graph] {
	return func(yield func(*Graph) bool) {
		var walk func(g *Graph) bool
		walk = func(g *Graph) bool {
			if !yield(g) {
				return false
			}
			for n := g.first; n != nil; n = n.next {
				for _, a := range n.Attrs {
					for _, s := range a.Subgraphs() {
						if !walk(s) {
							return false
						}
					}
				}
			}
			return true
		}
		if m.Graph != nil && !walk(m.Graph) {
			return
		}
		for _, f := range m.Functions {
			if !walk(f.Body) {
				return
			}
		}
	}
}

// Model returns the model that g belongs to.
func (g *Graph) Model() *Model { return g.model }

// Parent returns the node that holds g in an attribute, or nil.
func (g *Graph) Parent() *Node { return g.parent }

// Function returns the function whose body g is, or nil.
func (g *Graph) Function() *Function { return g.fn }

// Outer returns the graph around g, whose values g can capture, or nil.
func (g *Graph) Outer() *Graph {
	if g.parent == nil {
		return nil
	}
	return g.parent.graph
}

// Scope names the graph: "main", "function DOMAIN.NAME", or the scope of the
// node that holds it followed by that node's label and the attribute. Where
// another node of that graph has the same label, its first output's name
// follows the label.
func (g *Graph) Scope() string {
	switch {
	case g.fn != nil:
		return "function " + OpKey{Domain: g.fn.Domain, Type: g.fn.Name}.String()
	case g.parent == nil:
		return MainScope
	}
	label := g.parent.Label()
	if g.parent.sharesLabel() {
		label += "#" + g.parent.firstOutput()
	}
	at := label + "/" + g.attr
	if o := g.Outer(); o != nil && o.Scope() != MainScope {
		return o.Scope() + "/" + at
	}
	return at
}

// Inputs returns the inputs, those that are also initializers included; the
// caller must not change the slice.
func (g *Graph) Inputs() []*Value { return g.inputs }

// FeedInputs returns the inputs that are not initializers: those that a caller
// has to give.
func (g *Graph) FeedInputs() []*Value {
	return slices.DeleteFunc(slices.Clone(g.inputs), func(v *Value) bool { return v.IsInitializer() })
}

// Outputs returns the outputs; the caller must not change the slice.
func (g *Graph) Outputs() []*Value { return g.outputs }

// Initializers returns the initializers in file order; the caller must not
// change the slice.
func (g *Graph) Initializers() []*Value { return g.inits }

// NumNodes returns the number of nodes.
func (g *Graph) NumNodes() int { return g.numNodes }

// First returns the first node, or nil.
func (g *Graph) First() *Node { return g.first }

// Last returns the last node, or nil.
func (g *Graph) Last() *Node { return g.last }

// Nodes yields the nodes in order. The node just yielded may be removed, and
// nodes may be added or removed elsewhere, while iterating.
func (g *Graph) Nodes() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for n := g.first; n != nil; {
			next := n.next
			if !yield(n) {
				return
			}
			if n.graph == g { // still linked: honour nodes added behind it
				next = n.next
			}
			for next != nil && next.graph != g {
				next = next.next
			}
			n = next
		}
	}
}

// NewValue returns a value of g that nothing defines yet. The name is taken as
// it is; use Model.UniqueName for a fresh one.
func (g *Graph) NewValue(name string, t Type) *Value {
	v := &Value{ID: g.model.nextValue, Type: t, graph: g, name: name}
	g.model.nextValue++
	g.model.count(&g.model.names, name, 1)
	return v
}

// AddInput appends v to the inputs.
func (g *Graph) AddInput(v *Value) {
	v.input = true
	g.inputs = append(g.inputs, v)
}

// RemoveInput takes v out of the inputs, for instance because it is an
// initializer that must not be overridden.
func (g *Graph) RemoveInput(v *Value) {
	g.RemoveInputs(func(w *Value) bool { return w == v })
}

// RemoveInputs takes the values for which drop reports true out of the inputs.
func (g *Graph) RemoveInputs(drop func(*Value) bool) {
	g.inputs = slices.DeleteFunc(g.inputs, func(v *Value) bool {
		if !drop(v) {
			return false
		}
		v.input = false
		return true
	})
}

// AddInitializer makes v an initializer with the value t and sets its type,
// unless it is an input whose declared type stays.
func (g *Graph) AddInitializer(v *Value, t *tensor.Tensor) {
	v.Const = t
	if v.Type.Kind == KindUnknown {
		v.Type = TypeOf(t)
	}
	g.inits = append(g.inits, v)
}

// AddSparseInitializer makes v an initializer with a sparse value.
func (g *Graph) AddSparseInitializer(v *Value, t *SparseTensor) {
	v.Sparse = t
	g.inits = append(g.inits, v)
}

// NewInitializer adds an initializer with a unique name derived from base.
func (g *Graph) NewInitializer(base string, t *tensor.Tensor) *Value {
	v := g.NewValue(g.model.UniqueName(base), Type{})
	g.AddInitializer(v, t)
	return v
}

// RemoveInitializers drops the initializers for which drop reports true; they
// must have no uses.
func (g *Graph) RemoveInitializers(drop func(*Value) bool) {
	g.inits = slices.DeleteFunc(g.inits, func(v *Value) bool {
		if !drop(v) {
			return false
		}
		if len(v.uses) > 0 {
			panic("graph: removed initializer " + strconv.Quote(v.name) + " is in use")
		}
		v.Const, v.Sparse = nil, nil
		if !v.input {
			v.leave()
		}
		return true
	})
}

func (v *Value) leave() {
	v.graph.model.count(&v.graph.model.names, v.name, -1)
	v.graph = nil
}

// AddOutput appends v to the outputs.
func (g *Graph) AddOutput(v *Value) {
	g.outputs = append(g.outputs, v)
	v.uses = append(v.uses, Use{Graph: g, Index: len(g.outputs) - 1})
}

// SetOutput makes v output i in place of the value that was. The name of an
// output of the main graph is part of the model's interface: see
// Value.ReplaceWith for a way to keep it.
func (g *Graph) SetOutput(i int, v *Value) {
	g.outputs[i].dropOutputUse(g, i)
	g.outputs[i] = v
	v.uses = append(v.uses, Use{Graph: g, Index: i})
}

// RemoveOutputs takes the outputs for whose index drop reports true out of the
// list.
func (g *Graph) RemoveOutputs(drop func(i int) bool) {
	old := g.outputs
	g.outputs = nil
	for i, v := range old {
		v.dropOutputUse(g, i)
		if !drop(i) {
			g.AddOutput(v)
		}
	}
}

func (v *Value) dropOutputUse(g *Graph, i int) {
	for k, u := range v.uses {
		if u.Node == nil && u.Graph == g && u.Index == i {
			v.dropUse(k)
			return
		}
	}
}

// dropUse removes uses[k]; the last use takes its place.
func (v *Value) dropUse(k int) {
	last := len(v.uses) - 1
	v.uses[k] = v.uses[last]
	v.uses = v.uses[:last]
	if k < last {
		if u := v.uses[k]; u.Node != nil {
			u.Node.slots[u.Index] = k
		}
	}
}

// NewNode returns a node that is in no place of the list yet; Append,
// InsertBefore or InsertAfter put it there. Inputs may be nil for omitted
// optional ones, and outputs likewise.
func (g *Graph) NewNode(op OpKey, name string, inputs, outputs []*Value, attrs ...*Attr) *Node {
	n := &Node{ID: g.model.nextNode, Op: op, Name: name, Attrs: attrs, graph: g}
	g.model.nextNode++
	g.model.count(&g.model.nodeNames, name, 1)
	if op.Domain == "ai.onnx" {
		n.Op.Domain, n.DomainAlias = OnnxDomain, true
	}
	for _, v := range inputs {
		n.AddInput(v)
	}
	for _, v := range outputs {
		n.AddOutput(v)
	}
	for _, a := range attrs {
		n.adopt(a)
	}
	return n
}

func (n *Node) adopt(a *Attr) {
	for _, s := range a.Subgraphs() {
		s.parent, s.attr = n, a.Name
	}
}

// Append puts n at the end of the list.
func (g *Graph) Append(n *Node) { g.link(n, g.last, nil) }

// InsertBefore puts n directly before mark.
func (g *Graph) InsertBefore(n, mark *Node) { g.link(n, mark.prev, mark) }

// InsertAfter puts n directly behind mark; a nil mark is the start.
func (g *Graph) InsertAfter(n, mark *Node) {
	if mark == nil {
		g.link(n, nil, g.first)
		return
	}
	g.link(n, mark, mark.next)
}

func (g *Graph) link(n, prev, next *Node) {
	n.graph, n.prev, n.next = g, prev, next
	if prev != nil {
		prev.next = n
	} else {
		g.first = n
	}
	if next != nil {
		next.prev = n
	} else {
		g.last = n
	}
	g.numNodes++
}

// unlink takes n out of the list but leaves n.next, so that an iteration that
// stands on n can go on.
func (g *Graph) unlink(n *Node) {
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		g.first = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	} else {
		g.last = n.prev
	}
	g.numNodes--
}

// MoveBefore moves n directly before mark in the same graph.
func (g *Graph) MoveBefore(n, mark *Node) {
	g.unlink(n)
	g.link(n, mark.prev, mark)
}

// Remove takes n out of the graph together with its outputs, which must have
// no uses, and the graphs it holds.
func (g *Graph) Remove(n *Node) {
	for _, v := range n.outputs {
		if v != nil && len(v.uses) > 0 {
			panic("graph: output " + strconv.Quote(v.name) + " of removed node is in use")
		}
	}
	for i := range n.inputs {
		n.SetInput(i, nil)
	}
	for _, a := range n.Attrs {
		for _, s := range a.Subgraphs() {
			s.release()
		}
	}
	for _, v := range n.outputs {
		if v != nil && v.graph != nil {
			v.leave()
		}
	}
	g.model.count(&g.model.nodeNames, n.Name, -1)
	g.unlink(n)
	n.graph = nil
}

// release drops the uses that g makes of values around it.
func (g *Graph) release() {
	for i := range g.outputs {
		g.outputs[i].dropOutputUse(g, i)
	}
	g.outputs = nil
	for n := g.last; n != nil; n = n.prev {
		for i := range n.inputs {
			n.SetInput(i, nil)
		}
		for _, a := range n.Attrs {
			for _, s := range a.Subgraphs() {
				s.release()
			}
		}
	}
}

// Graph returns the graph that n is in; nil after removal.
func (n *Node) Graph() *Graph { return n.graph }

// Next returns the next node, or nil.
func (n *Node) Next() *Node { return n.next }

// Prev returns the previous node, or nil.
func (n *Node) Prev() *Node { return n.prev }

// Label returns the node's name, or its first output's if it has none.
func (n *Node) Label() string {
	if n.Name != "" {
		return n.Name
	}
	return n.firstOutput()
}

func (n *Node) firstOutput() string {
	for _, v := range n.outputs {
		if v != nil {
			return v.name
		}
	}
	return n.Op.Type + "#" + strconv.Itoa(n.ID)
}

// sharesLabel reports whether another node of the graph has the label of n.
func (n *Node) sharesLabel() bool {
	if n.graph == nil {
		return false
	}
	label := n.Label()
	others := n.graph.model.nodeNames[label]
	if n.Name != "" {
		others--
	}
	if others <= 0 {
		return false
	}
	for k := range n.graph.Nodes() {
		if k != n && k.Label() == label {
			return true
		}
	}
	return false
}

// Opset returns the version of the node's domain that holds where it stands.
func (n *Node) Opset() int { return n.graph.Opset(n.Op.Domain) }

// Inputs returns the inputs, nil where omitted; the caller must not change the
// slice.
func (n *Node) Inputs() []*Value { return n.inputs }

// NumInputs returns the number of inputs, omitted ones in between included.
func (n *Node) NumInputs() int { return len(n.inputs) }

// Input returns input i, or nil if it is omitted or past the end.
func (n *Node) Input(i int) *Value {
	if i < 0 || i >= len(n.inputs) {
		return nil
	}
	return n.inputs[i]
}

// Outputs returns the outputs, nil where omitted; the caller must not change
// the slice.
func (n *Node) Outputs() []*Value { return n.outputs }

// Output returns output i, or nil if it is omitted or past the end.
func (n *Node) Output(i int) *Value {
	if i < 0 || i >= len(n.outputs) {
		return nil
	}
	return n.outputs[i]
}

// AddInput appends an input; nil is an omitted one.
func (n *Node) AddInput(v *Value) {
	n.inputs = append(n.inputs, nil)
	n.slots = append(n.slots, 0)
	n.SetInput(len(n.inputs)-1, v)
}

// SetInput makes v input i; nil omits it. Inputs up to i are added as omitted
// where the node has fewer.
func (n *Node) SetInput(i int, v *Value) {
	for len(n.inputs) <= i {
		n.inputs = append(n.inputs, nil)
		n.slots = append(n.slots, 0)
	}
	if old := n.inputs[i]; old != nil {
		old.dropUse(n.slots[i])
	}
	n.inputs[i] = v
	if v != nil {
		n.slots[i] = len(v.uses)
		v.uses = append(v.uses, Use{Node: n, Graph: n.graph, Index: i})
	}
}

// TruncateInputs drops the inputs from i on.
func (n *Node) TruncateInputs(i int) {
	for k := i; k < len(n.inputs); k++ {
		n.SetInput(k, nil)
	}
	if i < len(n.inputs) {
		n.inputs, n.slots = n.inputs[:i], n.slots[:i]
	}
}

// AddOutput appends an output; nil is an omitted one. The value must have no
// definition yet.
func (n *Node) AddOutput(v *Value) {
	if v != nil {
		v.def, v.index = n, len(n.outputs)
	}
	n.outputs = append(n.outputs, v)
}

// SetOutput makes v, which has no definition, output i; nil omits it. The
// value that was there has no definition until another node defines it.
func (n *Node) SetOutput(i int, v *Value) {
	if old := n.outputs[i]; old != nil {
		old.def, old.index = nil, 0
	}
	if v != nil {
		v.def, v.index = n, i
	}
	n.outputs[i] = v
}

// TruncateOutputs drops the outputs from i on, which must have no uses.
func (n *Node) TruncateOutputs(i int) {
	for k := i; k < len(n.outputs); k++ {
		if v := n.outputs[k]; v != nil {
			if len(v.uses) > 0 {
				panic("graph: dropped output " + strconv.Quote(v.name) + " is in use")
			}
			v.leave()
		}
	}
	n.outputs = n.outputs[:min(i, len(n.outputs))]
}

// Attr returns the attribute with the given name, or nil.
func (n *Node) Attr(name string) *Attr {
	for _, a := range n.Attrs {
		if a.Name == name {
			return a
		}
	}
	return nil
}

// SetAttr adds a, in place of an attribute of the same name if there is one.
func (n *Node) SetAttr(a *Attr) {
	n.adopt(a)
	for i, b := range n.Attrs {
		if b.Name == a.Name {
			n.Attrs[i] = a
			return
		}
	}
	n.Attrs = append(n.Attrs, a)
}

// RemoveAttr drops the attribute with the given name, which holds no graph.
func (n *Node) RemoveAttr(name string) {
	n.Attrs = slices.DeleteFunc(n.Attrs, func(a *Attr) bool { return a.Name == name })
}

// Int returns the integer attribute name, or def if it is absent or a
// reference to a function's attribute.
func (n *Node) Int(name string, def int64) int64 {
	if a := n.Attr(name); a != nil && a.Kind == AttrInt && a.RefName == "" {
		return a.I
	}
	return def
}

// Float returns the float attribute name, or def if it is absent or a
// reference to a function's attribute.
func (n *Node) Float(name string, def float32) float32 {
	if a := n.Attr(name); a != nil && a.Kind == AttrFloat && a.RefName == "" {
		return a.F
	}
	return def
}

// String returns the string attribute name, or def if it is absent or a
// reference to a function's attribute.
func (n *Node) String(name, def string) string {
	if a := n.Attr(name); a != nil && a.Kind == AttrString && a.RefName == "" {
		return a.S
	}
	return def
}

// Ints returns the integers attribute name, or nil.
func (n *Node) Ints(name string) []int64 {
	if a := n.Attr(name); a != nil && a.Kind == AttrInts && a.RefName == "" {
		return a.Ints
	}
	return nil
}

// Name returns the value's name.
func (v *Value) Name() string { return v.name }

// Rename gives the value another name, taken as it is.
func (v *Value) Rename(name string) {
	m := v.graph.model
	m.count(&m.names, v.name, -1)
	v.name = name
	m.count(&m.names, name, 1)
}

// Graph returns the graph that defines v; nil once it has left.
func (v *Value) Graph() *Graph { return v.graph }

// Def returns the node that defines v and the index among its outputs; nil
// for inputs and initializers.
func (v *Value) Def() (*Node, int) { return v.def, v.index }

// DefNode returns the node that defines v, or nil.
func (v *Value) DefNode() *Node { return v.def }

// IsInput reports whether v is among the inputs of its graph.
func (v *Value) IsInput() bool { return v.input }

// IsInitializer reports whether v has a value in the file, which a caller may
// override if v is an input too.
func (v *Value) IsInitializer() bool { return v.Const != nil || v.Sparse != nil }

// IsConst reports whether v is a dense initializer that no caller can
// override: it is no input, or the IR version is below 4, where initializers
// had to be listed among the inputs. nil, an input left out, is none.
func (v *Value) IsConst() bool {
	return v != nil && v.Const != nil && v.def == nil && (!v.input || v.graph.model.IRVersion < 4)
}

// Uses returns the places that read v, in no particular but a reproducible
// order; the caller must not change the slice, and must clone it before it
// edits uses of v.
func (v *Value) Uses() []Use { return v.uses }

// IsOutput reports whether v is an output of any graph.
func (v *Value) IsOutput() bool {
	for _, u := range v.uses {
		if u.Node == nil {
			return true
		}
	}
	return false
}

// OnlyUse returns the node that reads v if that is the only use, else nil.
func (v *Value) OnlyUse() *Node {
	if len(v.uses) == 1 {
		return v.uses[0].Node
	}
	return nil
}

// ReplaceUses makes every node that reads v read w instead; v stays where it
// is a graph output.
func (v *Value) ReplaceUses(w *Value) {
	for _, u := range slices.Clone(v.uses) {
		if u.Node != nil {
			u.Node.SetInput(u.Index, w)
		}
	}
}

// ReplaceWith makes every use of v, graph outputs included, a use of w.
// Where v is a graph output, w takes over its name, and v gets a fresh one.
// That is impossible where w is a graph input, an initializer, an output
// itself, or defined in another graph: then nothing changes and the result is
// false.
func (v *Value) ReplaceWith(w *Value) bool {
	if v.IsOutput() {
		if w.def == nil || w.graph != v.graph || w.IsOutput() {
			return false
		}
		for _, u := range slices.Clone(v.uses) {
			if u.Node == nil {
				u.Graph.SetOutput(u.Index, w)
			}
		}
		name := v.name
		v.Rename(v.graph.model.UniqueName(name))
		w.Rename(name)
		w.Doc, w.Extra = v.Doc, v.Extra
		switch {
		case w.Type.Kind == KindUnknown || w.Type.Shape == nil:
			w.Type = v.Type
		case w.Type.Elem == tensor.Undefined && v.Type.Kind == w.Type.Kind:
			w.Type.Elem = v.Type.Elem
		}
	}
	v.ReplaceUses(w)
	return true
}

func (m *Model) count(table *map[string]int, name string, by int) {
	if *table == nil {
		*table = map[string]int{}
	}
	if (*table)[name] += by; (*table)[name] <= 0 {
		delete(*table, name)
	}
}

// UniqueName returns base, or base with a number behind it, such that no value
// of the model has the name.
func (m *Model) UniqueName(base string) string { return m.unique(m.names, base) }

// UniqueNodeName returns base, or base with a number behind it, such that no
// node of the model has the name.
func (m *Model) UniqueNodeName(base string) string { return m.unique(m.nodeNames, base) }

func (m *Model) unique(taken map[string]int, base string) string {
	if base != "" && taken[base] == 0 {
		return base
	}
	if m.suffix == nil {
		m.suffix = map[string]int{}
	}
	for i := m.suffix[base] + 1; ; i++ {
		name := base + "_" + strconv.Itoa(i)
		if taken[name] == 0 {
			m.suffix[base] = i
			return name
		}
	}
}
