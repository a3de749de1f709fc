// Package onnxfile loads and saves ONNX models.
//
// Loading maps the file and walks the protobuf wire format once; tensors alias
// the mapping, so a model of many gigabytes opens in milliseconds. Saving
// computes all sizes first and then streams, tensor by tensor, into a
// temporary file that replaces the destination. What package graph does not
// model survives: unknown fields and fields without a place in the
// representation as wire bytes in Extra, tensors that were not touched byte by
// byte. A file in canonical protobuf form (fields in order of their numbers)
// is therefore written back unchanged.
//
// Files are taken as hostile: everything that they can declare is limited,
// references to external data are confined to the model's folder, and errors
// name the node or tensor they concern.
package onnxfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Limits bound what a file may ask for. The zero value of a field stands for
// its default.
type Limits struct {
	Depth   int   // nested messages, as every protobuf implementation limits them [100]
	Rank    int   // dimensions of a tensor [256]
	Nodes   int   // nodes in all graphs and functions [1,048,576]
	Objects int   // entries of all kinds, of about a hundred bytes of memory each: a name or dimension is one, a node or attribute four [8,388,608]
	Files   int   // files of external data [4,096]
	Memory  int64 // bytes held in memory instead of being mapped: streams, elements in typed fields [4 GiB]
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Depth, 100)
	def(&l.Rank, 256)
	def(&l.Nodes, 1<<20)
	def(&l.Objects, 1<<23)
	def(&l.Files, 4096)
	if l.Memory == 0 {
		l.Memory = 4 << 30
	}
	return l
}

// Option changes how a model is loaded.
type Option func(*loader)

// WithLimits replaces the default limits.
func WithLimits(lim Limits) Option {
	return func(l *loader) { l.limits = lim.withDefaults() }
}

// WithFetch has f called with the name of each file of external data, relative to
// the model's folder and within it, before that is opened for the first time, so
// that f can put it there.
func WithFetch(f func(name string) error) Option {
	return func(l *loader) { l.fetch = f }
}

// Open loads the model in a file, which stays mapped until Model.Close.
func Open(path string, opts ...Option) (*graph.Model, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("is a directory")}
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("is not a regular file")}
	}
	file, err := mapFile(f, info, path)
	if err != nil {
		return nil, err
	}
	l := newLoader(opts)
	l.origin.file = file
	l.dir = filepath.Dir(path)
	m, err := l.load(file.data, path)
	if err != nil {
		l.origin.Close()
		return nil, err
	}
	return m, nil
}

// Read loads a model from a stream, into memory. External data is an error.
func Read(r io.Reader, opts ...Option) (*graph.Model, error) {
	l := newLoader(opts)
	var buf bytes.Buffer
	n, err := buf.ReadFrom(io.LimitReader(r, l.limits.Memory+1))
	if err != nil {
		return nil, err
	}
	if n > l.limits.Memory {
		return nil, &LimitError{"memory", l.limits.Memory}
	}
	return l.load(buf.Bytes(), "")
}

// Decode loads a model from b, which the model aliases and which must not
// change while it is in use. External data is an error.
func Decode(b []byte, opts ...Option) (*graph.Model, error) {
	return newLoader(opts).load(b, "")
}

type loader struct {
	limits Limits
	fetch  func(name string) error // nil: all files are there
	origin *origin
	model  *graph.Model
	dir    string // folder of the model; "" for a stream
	root   *os.Root
	files  map[string]*mapping
	words  map[string]string // interned

	depth, nodes, objects int
	held                  int64

	functions map[graph.OpKey]*graph.Function
	dangling  map[*graph.Graph][]int // as origin.dangling, while scopes have no names yet
	places    []place                // nodes around the current graph
	node      place                  // the current node
	fn        string                 // scope of the current function, or ""
}

// place is a node, as messages name it, and the attribute being decoded.
type place struct{ label, op, attr string }

func newLoader(opts []Option) *loader {
	l := &loader{
		limits:   Limits{}.withDefaults(),
		files:    map[string]*mapping{},
		words:    map[string]string{},
		origin:   &origin{tensors: map[*tensor.Tensor]*stored{}, infos: map[infoKey]info{}, dangling: map[string][]int{}},
		dangling: map[*graph.Graph][]int{},
	}
	for _, o := range opts {
		o(l)
	}
	return l
}

func (l *loader) load(b []byte, path string) (*graph.Model, error) {
	defer func() {
		if l.root != nil {
			l.root.Close()
		}
	}()
	err := Guard(func() error {
		if len(b) == 0 {
			return errors.New(guess(b))
		}
		err := l.decodeModel(b)
		if err != nil && (errors.Is(err, errWire) || errors.Is(err, errNoGraph)) {
			if what := guess(b); what != "" {
				return errors.New(what)
			}
			return fmt.Errorf("no ONNX model, or damaged: %w", err)
		}
		return err
	})
	if err != nil {
		return nil, classify(path, err)
	}
	l.model.Path = path
	l.model.Origin = l.origin
	return l.model, nil
}

var errNoGraph = errors.New("the file holds no graph")

// Costs of decoded objects, about a hundred bytes of memory each.
const (
	nodeCost   = 4
	attrCost   = 4
	valueCost  = 3
	tensorCost = 3
)

// charge counts objects against the limit.
func (l *loader) charge(n int) error {
	if l.objects += n; l.objects > l.limits.Objects {
		return &LimitError{"objects", int64(l.limits.Objects)}
	}
	return nil
}

func (l *loader) memory(n int) error {
	if l.held += int64(n); l.held > l.limits.Memory {
		return &LimitError{"memory", l.limits.Memory}
	}
	return nil
}

// enter counts one level of nested messages; leave ends it.
func (l *loader) enter() error {
	if l.depth++; l.depth > l.limits.Depth {
		return &LimitError{"depth", int64(l.limits.Depth)}
	}
	return nil
}

func (l *loader) leave() { l.depth-- }

func (l *loader) intern(b []byte) string {
	if s, ok := l.words[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(s) <= 64 && len(l.words) < 1<<16 {
		l.words[s] = s
	}
	return s
}

// fail returns err with the current place and, unless it is "", the name of a
// value.
func (l *loader) fail(value string, err error) error {
	var ge *graph.Error
	if errors.As(err, &ge) {
		return err
	}
	e := &graph.Error{Stage: "load", Node: l.node.label, Op: l.node.op, Value: value, Err: err, Scope: l.fn}
	for _, p := range l.places {
		if e.Scope != "" {
			e.Scope += "/"
		}
		e.Scope += p.label + "/" + p.attr
	}
	return e
}

func (l *loader) errorf(value, format string, args ...any) error {
	return l.fail(value, fmt.Errorf(format, args...))
}

func (l *loader) properties(list []graph.Property, b []byte) ([]graph.Property, error) {
	var p graph.Property
	s := scan(b)
	for s.next() {
		switch s.tag {
		case 1<<3 | blob:
			s.str(&p.Key)
		case 2<<3 | blob:
			s.str(&p.Value)
		default:
			s.keep()
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	p.Extra = s.extra()
	return append(list, p), l.charge(1)
}

func (l *loader) opset(list []graph.Opset, b []byte) ([]graph.Opset, error) {
	var o graph.Opset
	s := scan(b)
	for s.next() {
		switch s.tag {
		case 1<<3 | blob:
			s.str(&o.Domain)
		case 2<<3 | vint:
			s.int(&o.Version)
		default:
			s.keep()
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	o.Extra = s.extra()
	if o.Version < 1 || o.Version > math.MaxInt32 {
		return nil, fmt.Errorf("operator set %q: version %d", o.Domain, o.Version)
	}
	for _, p := range list {
		if graph.NormalDomain(p.Domain) == graph.NormalDomain(o.Domain) && p.Version != o.Version {
			return nil, fmt.Errorf("operator set %q is imported in the versions %d and %d", o.Domain, p.Version, o.Version)
		}
	}
	return append(list, o), l.charge(1)
}

func (l *loader) decodeModel(b []byte) error {
	m := graph.NewModel(0)
	l.model = m
	l.depth = 1
	var main []byte
	var hasGraph bool
	var functions [][]byte
	s := scan(b)
	var err error
	for s.next() && err == nil {
		switch s.tag {
		case 1<<3 | vint:
			s.int(&m.IRVersion)
		case 2<<3 | blob:
			s.str(&m.ProducerName)
		case 3<<3 | blob:
			s.str(&m.ProducerVersion)
		case 4<<3 | blob:
			s.str(&m.Domain)
		case 5<<3 | vint:
			s.int(&m.ModelVersion)
		case 6<<3 | blob:
			s.str(&m.Doc)
		case 7<<3 | blob:
			if hasGraph {
				err = errors.New("the file holds two main graphs")
			}
			main, hasGraph = s.b, true
		case 8<<3 | blob:
			m.Opsets, err = l.opset(m.Opsets, s.b)
		case 14<<3 | blob:
			m.Metadata, err = l.properties(m.Metadata, s.b)
		case 25<<3 | blob:
			functions = append(functions, s.b)
			err = l.charge(nodeCost)
		default:
			s.keep()
		}
	}
	switch {
	case s.err != nil:
		return s.err
	case err != nil:
		return l.fail("", err)
	case !hasGraph:
		return errNoGraph
	}
	m.Extra = s.extra()
	if err := l.graph(m.Graph, main, nil); err != nil {
		return err
	}
	for _, f := range functions {
		if err := l.function(f); err != nil {
			return err
		}
	}
	l.fn, l.node = "", place{}
	for k, i := range l.origin.infos {
		i.name, i.typ, i.value = i.value.Name(), i.value.Type, nil
		l.origin.infos[k] = i
	}
	if len(l.dangling) > 0 {
		for g := range m.Scopes() {
			if at := l.dangling[g]; at != nil {
				l.origin.dangling[g.Scope()] = at
			}
		}
	}
	return l.calls()
}

// allNodes yields the nodes of g and of the graphs nested in it.
func allNodes(g *graph.Graph) iter.Seq[*graph.Node] {
	return func(yield func(*graph.Node) bool) { eachNode(g, yield) }
}

func eachNode(g *graph.Graph, yield func(*graph.Node) bool) bool {
	for n := g.First(); n != nil; n = n.Next() {
		if !yield(n) {
			return false
		}
		for _, a := range n.Attrs {
			for _, s := range a.Subgraphs() {
				if !eachNode(s, yield) {
					return false
				}
			}
		}
	}
	return true
}

// calls refuses functions that call themselves, directly or not: no runtime
// can inline them.
func (l *loader) calls() error {
	const open, done = 1, 2
	state := map[*graph.Function]int{}
	var visit func(f *graph.Function, depth int) error
	visit = func(f *graph.Function, depth int) error {
		if state[f] == done {
			return nil
		}
		name := graph.OpKey{Domain: f.Domain, Type: f.Name}.String()
		if state[f] == open {
			return l.errorf("", "function %q calls itself", name)
		}
		if depth > l.limits.Depth {
			return l.fail("", &LimitError{"depth", int64(l.limits.Depth)})
		}
		state[f] = open
		for n := range allNodes(f.Body) {
			if g := l.functions[n.Op]; g != nil {
				if err := visit(g, depth+1); err != nil {
					return err
				}
			}
		}
		state[f] = done
		return nil
	}
	for _, f := range l.model.Functions {
		if err := visit(f, 1); err != nil {
			return err
		}
	}
	return nil
}

// scope maps the names that are visible in a graph.
type scope struct {
	outer *scope
	own   map[string]*graph.Value
}

func (s *scope) find(name []byte) *graph.Value {
	for ; s != nil; s = s.outer {
		if v := s.own[string(name)]; v != nil {
			return v
		}
	}
	return nil
}

// define enters the name of a new value.
func (l *loader) define(sc *scope, v *graph.Value, output bool) error {
	name := v.Name()
	switch {
	case name == "":
		return l.errorf("", "a value without a name")
	case sc.own[name] != nil:
		return l.errorf(name, "the name is defined twice")
	case output && sc.outer.find([]byte(name)) != nil:
		return l.errorf(name, "the name is taken by a value of an outer graph")
	}
	sc.own[name] = v
	return l.charge(valueCost)
}

// graphParts is a GraphProto, or the part of a FunctionProto that is alike,
// cut into its entries.
type graphParts struct {
	nodes, inits, inputs, outputs, infos, sparse [][]byte
}

func (l *loader) graph(g *graph.Graph, b []byte, outer *scope) error {
	if err := l.enter(); err != nil {
		return l.fail("", err)
	}
	defer l.leave()
	var n [16]int // entries by field
	s := scan(b)
	for s.next() {
		if s.num() < 16 {
			n[s.num()]++
		}
		if err := l.charge(1); err != nil {
			return l.fail("", err)
		}
	}
	list := func(num int) [][]byte { return make([][]byte, 0, n[num]) }
	p := graphParts{nodes: list(1), inits: list(5), inputs: list(11), outputs: list(12), infos: list(13), sparse: list(15)}
	var err error
	s = scan(b)
	for s.next() && err == nil {
		switch s.tag {
		case 1<<3 | blob:
			p.nodes = append(p.nodes, s.b)
		case 2<<3 | blob:
			s.str(&g.Name)
		case 5<<3 | blob:
			p.inits = append(p.inits, s.b)
		case 10<<3 | blob:
			s.str(&g.Doc)
		case 11<<3 | blob:
			p.inputs = append(p.inputs, s.b)
		case 12<<3 | blob:
			p.outputs = append(p.outputs, s.b)
		case 13<<3 | blob:
			p.infos = append(p.infos, s.b)
		case 15<<3 | blob:
			p.sparse = append(p.sparse, s.b)
		case 16<<3 | blob:
			g.Metadata, err = l.properties(g.Metadata, s.b)
		default:
			s.keep()
		}
	}
	if s.err != nil {
		err = s.err
	}
	if err != nil {
		return l.fail("", err)
	}
	g.Extra = s.extra()
	sc := &scope{outer: outer, own: make(map[string]*graph.Value, len(p.inits)+len(p.inputs)+len(p.nodes))}

	first := map[*graph.Value]entry{}
	for _, b := range p.inputs {
		vi, err := l.valueInfo(b)
		if err != nil {
			return err
		}
		v := g.NewValue(vi.name, vi.typ)
		v.Doc, v.Extra = vi.doc, vi.extra
		first[v] = entry{infoKey{11, v.ID, 0}, b}
		if err := l.define(sc, v, false); err != nil {
			return err
		}
		g.AddInput(v)
	}
	for _, b := range p.inits {
		t, st, err := l.tensor(b)
		if err == nil && st.name == "" {
			err = errors.New("an initializer without a name")
		}
		if err != nil {
			return l.fail(st.nameOr(), err)
		}
		l.origin.tensors[t] = st
		v, err := l.initializer(g, sc, st.name)
		if err != nil {
			return err
		}
		g.AddInitializer(v, t)
	}
	for _, b := range p.sparse {
		t, name, err := l.sparse(b)
		if err == nil && name == "" {
			err = errors.New("a sparse initializer without a name")
		}
		if err != nil {
			return l.fail(name, err)
		}
		v, err := l.initializer(g, sc, name)
		if err != nil {
			return err
		}
		g.AddSparseInitializer(v, t)
	}
	for _, v := range g.Inputs() {
		if v.IsInitializer() {
			l.remember(v, first[v])
		} else if g == l.model.Graph && v.Type.Kind == graph.KindUnknown {
			return l.errorf(v.Name(), "the input has no type")
		}
	}
	if err := l.body(g, p.nodes, sc); err != nil {
		return err
	}
	for _, b := range p.outputs {
		vi, err := l.valueInfo(b)
		if err != nil {
			return err
		}
		v := sc.find([]byte(vi.name))
		if v == nil {
			return l.errorf(vi.name, "the graph output is defined nowhere")
		}
		l.describe(g, v, vi, first, entry{infoKey{12, v.ID, len(g.Outputs())}, b})
		g.AddOutput(v)
	}
	return l.valueInfos(g, sc, p.infos, first)
}

// nameOr returns the name of the tensor, or "" where not even that could be
// decoded.
func (s *stored) nameOr() string {
	if s == nil {
		return ""
	}
	return s.name
}

// initializer returns the value that an initializer belongs to: a new one, or
// the input of the same name.
func (l *loader) initializer(g *graph.Graph, sc *scope, name string) (*graph.Value, error) {
	if v := sc.own[name]; v != nil {
		if v.IsInitializer() {
			return nil, l.errorf(name, "the name is defined twice: two initializers")
		}
		return v, nil
	}
	v := g.NewValue(name, graph.Type{})
	return v, l.define(sc, v, false)
}

func (l *loader) body(g *graph.Graph, nodes [][]byte, sc *scope) error {
	for i, b := range nodes {
		if err := l.decodeNode(g, b, sc, nodes[i:]); err != nil {
			return err
		}
	}
	l.node = place{}
	return nil
}

func (l *loader) valueInfos(g *graph.Graph, sc *scope, infos [][]byte, first map[*graph.Value]entry) error {
	listed := make(map[*graph.Value]bool, len(infos))
	var loose []byte
	for i, b := range infos {
		vi, err := l.valueInfo(b)
		if err != nil {
			return err
		}
		v := sc.own[vi.name]
		if v == nil || listed[v] {
			loose = protowire.AppendTag(loose, 13, protowire.BytesType)
			loose = protowire.AppendBytes(loose, b)
			l.dangling[g] = append(l.dangling[g], i)
			continue
		}
		listed[v] = true
		l.describe(g, v, vi, first, entry{infoKey{13, v.ID, 0}, b})
		g.ValueInfo = append(g.ValueInfo, v)
	}
	if loose != nil {
		g.Extra = append(loose, g.Extra...)
	}
	return nil
}

// entry is a ValueInfoProto in the file.
type entry struct {
	key  infoKey
	wire []byte
}

// remember keeps an entry that v alone would not bring back.
func (l *loader) remember(v *graph.Value, at entry) {
	if got := encodeBytes(func(e *encoder) { e.valueInfo(v) }); !bytes.Equal(got, at.wire) {
		l.origin.infos[at.key] = info{wire: at.wire, value: v}
	}
}

// describe gives v what a ValueInfoProto says about it. The first entry of a
// value decides, except that a later one may know a type or shape that the
// first leaves open.
func (l *loader) describe(g *graph.Graph, v *graph.Value, vi valueInfo, first map[*graph.Value]entry, at entry) {
	if v.Graph() != g {
		l.origin.infos[at.key] = info{wire: at.wire, value: v}
		return
	}
	f, described := first[v]
	if !described {
		first[v] = at
		v.Doc, v.Extra = vi.doc, vi.extra
		if !v.IsInitializer() {
			v.Type = vi.typ
			return
		}
	} else if v.Type.Kind == graph.KindUnknown && vi.typ.Kind != graph.KindUnknown ||
		v.Type.IsTensor() && vi.typ.IsTensor() && v.Type.Elem == vi.typ.Elem && v.Type.Shape == nil && vi.typ.Shape != nil {
		v.Type = vi.typ
		l.remember(v, f)
	}
	l.remember(v, at)
}

func (l *loader) function(b []byte) error {
	if err := l.enter(); err != nil {
		return l.fail("", err)
	}
	defer l.leave()
	f := l.model.AddFunction("", "", "")
	var nodes, infos, defaults, inputs, outputs [][]byte
	var err error
	s := scan(b)
	for s.next() && err == nil {
		switch s.tag {
		case 1<<3 | blob:
			s.str(&f.Name)
		case 4<<3 | blob:
			inputs = append(inputs, s.b)
		case 5<<3 | blob:
			outputs = append(outputs, s.b)
		case 6<<3 | blob:
			f.Attrs = append(f.Attrs, string(s.b))
		case 7<<3 | blob:
			nodes = append(nodes, s.b)
		case 8<<3 | blob:
			s.str(&f.Doc)
		case 9<<3 | blob:
			f.Opsets, err = l.opset(f.Opsets, s.b)
		case 10<<3 | blob:
			s.str(&f.Domain)
		case 11<<3 | blob:
			defaults = append(defaults, s.b)
		case 12<<3 | blob:
			infos = append(infos, s.b)
		case 13<<3 | blob:
			s.str(&f.Overload)
		case 14<<3 | blob:
			f.Metadata, err = l.properties(f.Metadata, s.b)
		default:
			s.keep()
		}
		if err == nil {
			err = l.charge(1)
		}
	}
	key := graph.OpKey{Domain: graph.NormalDomain(f.Domain), Type: f.Name, Overload: f.Overload}
	l.fn, l.node = "function "+key.String(), place{}
	switch {
	case s.err != nil:
		err = s.err
	case err == nil && f.Name == "":
		err = errors.New("a function without a name")
	case err == nil && l.functions[key] != nil:
		err = fmt.Errorf("two functions are called %q", key.String())
	}
	if err != nil {
		return l.fail("", err)
	}
	if l.functions == nil {
		l.functions = map[graph.OpKey]*graph.Function{}
	}
	l.functions[key] = f
	f.Extra = s.extra()
	if f.AttrDefaults, err = l.attrs(defaults, nil); err != nil {
		return err
	}
	g := f.Body
	sc := &scope{own: make(map[string]*graph.Value, len(inputs)+len(nodes))}
	for _, name := range inputs {
		v := g.NewValue(string(name), graph.Type{})
		if err := l.define(sc, v, false); err != nil {
			return err
		}
		g.AddInput(v)
	}
	if err := l.body(g, nodes, sc); err != nil {
		return err
	}
	for _, name := range outputs {
		v := sc.find(name)
		if v == nil {
			return l.errorf(string(name), "the function's output is defined nowhere")
		}
		g.AddOutput(v)
	}
	return l.valueInfos(g, sc, infos, map[*graph.Value]entry{})
}

func (l *loader) decodeNode(g *graph.Graph, b []byte, sc *scope, rest [][]byte) error {
	if err := l.enter(); err != nil {
		return l.fail("", err)
	}
	defer l.leave()
	if l.nodes++; l.nodes > l.limits.Nodes {
		return l.fail("", &LimitError{"nodes", int64(l.limits.Nodes)})
	}
	if err := l.charge(nodeCost); err != nil {
		return l.fail("", err)
	}
	var ins, outs, attrs [][]byte
	var op graph.OpKey
	var name, doc string
	var meta []graph.Property
	var err error
	s := scan(b)
	for s.next() && err == nil {
		switch s.tag {
		case 1<<3 | blob:
			ins = append(ins, s.b)
		case 2<<3 | blob:
			outs = append(outs, s.b)
		case 3<<3 | blob:
			s.str(&name)
		case 4<<3 | blob:
			if op.Type = l.intern(s.b); len(s.b) == 0 {
				s.keep()
			}
		case 5<<3 | blob:
			attrs = append(attrs, s.b)
		case 6<<3 | blob:
			s.str(&doc)
		case 7<<3 | blob:
			if op.Domain = l.intern(s.b); len(s.b) == 0 {
				s.keep()
			}
		case 8<<3 | blob:
			s.str(&op.Overload)
		case 9<<3 | blob:
			meta, err = l.properties(meta, s.b)
		default:
			s.keep()
		}
		if err == nil {
			err = l.charge(1)
		}
	}
	l.node = place{label: name, op: op.Type}
	for i := 0; l.node.label == "" && i < len(outs); i++ {
		l.node.label = string(outs[i])
	}
	switch {
	case s.err != nil:
		err = s.err
	case err == nil && op.Type == "":
		err = errors.New("a node without an operator")
	}
	if err != nil {
		return l.fail("", err)
	}
	inputs := make([]*graph.Value, len(ins))
	for i, in := range ins {
		if len(in) == 0 {
			continue
		}
		if inputs[i] = sc.find(in); inputs[i] == nil {
			return l.undefined(string(in), outs, rest)
		}
	}
	here := l.node
	list, err := l.attrs(attrs, sc)
	if err != nil {
		return err
	}
	l.node = here
	outputs := make([]*graph.Value, len(outs))
	for i, out := range outs {
		if len(out) == 0 {
			continue
		}
		outputs[i] = g.NewValue(string(out), graph.Type{})
		if err := l.define(sc, outputs[i], true); err != nil {
			return err
		}
	}
	n := g.NewNode(op, name, inputs, outputs, list...)
	n.Doc, n.Metadata, n.Extra = doc, meta, s.extra()
	g.Append(n)
	return nil
}

// undefined says why the node that comes first in rest can not read name.
func (l *loader) undefined(name string, outs [][]byte, rest [][]byte) error {
	for _, o := range outs {
		if string(o) == name {
			return l.errorf(name, "the node reads its own output")
		}
	}
	for _, b := range rest[1:] {
		s := scan(b)
		for s.next() {
			if s.tag == 2<<3|blob && string(s.b) == name {
				return l.errorf(name, "the input is used before its definition: the nodes are not in topological order, or form a cycle")
			}
		}
	}
	return l.errorf(name, "the input is defined nowhere")
}
