package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

// maxNesting bounds the nesting of graphs and types in a text.
const maxNesting = 64

// Parse reads a model in ONNX's textual syntax (onnx docs/Syntax.md), with the
// additions that Fprint makes. Names are resolved as in a file: nested graphs
// see outer names, a name must be defined before it is used.
//
// "{...}" in place of a tensor's elements stands for reproducible ones that
// depend on the name (of an initializer) or the node's first output (of an
// attribute) only: pseudo-random floats in [-1, 1), zeros for other types.
//
// Errors name line and column.
func Parse(text string) (*Model, error) {
	p := &parser{src: text}
	m := NewModel(0)
	p.m = m
	p.model()
	if p.err != nil {
		return nil, p.err
	}
	return m, nil
}

// parser reads ahead by characters. After an error, which sticks, it stands at
// the end of the text, where nothing matches.
type parser struct {
	src   string
	pos   int
	err   error
	m     *Model
	depth int
	label string // seeds elided elements
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		line := 1 + strings.Count(p.src[:p.pos], "\n")
		col := p.pos - strings.LastIndexByte(p.src[:p.pos], '\n')
		p.err = fmt.Errorf("parse: line %d, column %d: %w", line, col, fmt.Errorf(format, args...))
	}
	p.pos = len(p.src)
}

func (p *parser) skip() {
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; {
		case c == '#':
			if i := strings.IndexByte(p.src[p.pos:], '\n'); i >= 0 {
				p.pos += i
			} else {
				p.pos = len(p.src)
			}
		case c == ' ' || c >= '\t' && c <= '\r':
			p.pos++
		default:
			return
		}
	}
}

// peek returns the next character, 0 at the end.
func (p *parser) peek() byte {
	if p.skip(); p.pos < len(p.src) {
		return p.src[p.pos]
	}
	return 0
}

// match skips s if it comes next.
func (p *parser) match(s string) bool {
	if p.skip(); strings.HasPrefix(p.src[p.pos:], s) {
		p.pos += len(s)
		return true
	}
	return false
}

func (p *parser) expect(s string) {
	if !p.match(s) {
		p.fail("%q expected", s)
	}
}

// list reads items with commas between them up to end, which may follow at
// once.
func (p *parser) list(end string, item func()) {
	if p.match(end) {
		return
	}
	for {
		item()
		if !p.match(",") {
			break
		}
	}
	p.expect(end)
}

// word reads an identifier, "" if none comes next.
func (p *parser) word() string {
	p.skip()
	end := p.pos
	for end < len(p.src) && identByte(p.src[end], end > p.pos) {
		end++
	}
	s := p.src[p.pos:end]
	p.pos = end
	return s
}

func (p *parser) peekWord() string {
	at := p.pos
	w := p.word()
	p.pos = at
	return w
}

func (p *parser) quoted() string {
	if p.peek() != '"' {
		p.fail("a string in quotes expected")
		return ""
	}
	var b strings.Builder
	for i := p.pos + 1; i < len(p.src); i++ {
		switch c := p.src[i]; c {
		case '"':
			p.pos = i + 1
			return b.String()
		case '\\':
			if i++; i < len(p.src) {
				b.WriteByte(p.src[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	p.fail("the string has no end")
	return ""
}

// name reads an identifier, plain or in quotes.
func (p *parser) name() string {
	if p.peek() == '"' {
		return p.quoted()
	}
	w := p.word()
	if w == "" {
		p.fail("a name expected")
	}
	return w
}

// number reads the text of a number, infinities and NaN included.
func (p *parser) number() string {
	p.skip()
	end := p.pos
	for end < len(p.src) {
		c := p.src[end]
		if !(c >= '0' && c <= '9' || c == '.' || c|32 >= 'a' && c|32 <= 'z' || (c == '-' || c == '+') && (end == p.pos || p.src[end-1]|32 == 'e')) {
			break
		}
		end++
	}
	s := p.src[p.pos:end]
	if s == "" {
		p.fail("a number expected")
	}
	p.pos = end
	return s
}

func (p *parser) int() int64 {
	at := p.pos
	v, err := strconv.ParseInt(p.number(), 10, 64)
	if err != nil {
		p.pos = min(at, p.pos)
		p.fail("an integer expected")
	}
	return v
}

func (p *parser) float(bits int) float64 {
	at := p.pos
	v, err := strconv.ParseFloat(p.number(), bits)
	if err != nil && !(errors.Is(err, strconv.ErrRange) && math.IsInf(v, 0)) || strings.ContainsAny(p.src[at:p.pos], "xXpP_") {
		p.pos = min(at, p.pos)
		p.fail("a number expected")
	}
	return v
}

func (p *parser) model() {
	m := p.m
	p.header(func(key string) bool {
		switch key {
		case "ir_version":
			m.IRVersion = p.int()
		case "opset_import":
			m.Opsets = p.opsets()
		case "producer_name":
			m.ProducerName = p.quoted()
		case "producer_version":
			m.ProducerVersion = p.quoted()
		case "domain":
			m.Domain = p.quoted()
		case "model_version":
			m.ModelVersion = p.int()
		case "doc_string":
			m.Doc = p.quoted()
		case "metadata_props":
			p.expect("[")
			p.list("]", func() {
				k := p.quoted()
				p.expect(":")
				m.Metadata = append(m.Metadata, Property{Key: k, Value: p.quoted()})
			})
		default:
			return false
		}
		return true
	})
	p.graph(m.Graph, nil)
	for p.err == nil && p.peek() != 0 {
		p.function()
	}
}

func (p *parser) header(entry func(key string) bool) {
	if !p.match("<") {
		return
	}
	p.list(">", func() {
		key := p.word()
		p.expect(":")
		if p.err == nil && !entry(key) {
			p.fail("unknown key %q", key)
		}
	})
}

func (p *parser) opsets() (list []Opset) {
	p.expect("[")
	p.list("]", func() {
		domain := p.quoted()
		p.expect(":")
		list = append(list, Opset{Domain: domain, Version: p.int()})
	})
	return list
}

// names are the values that a graph can refer to.
type names struct {
	outer *names
	own   map[string]*Value
}

func (n *names) find(name string) *Value {
	for ; n != nil; n = n.outer {
		if v := n.own[name]; v != nil {
			return v
		}
	}
	return nil
}

// define makes a value of g.
func (p *parser) define(g *Graph, sc *names, name string, t Type) *Value {
	if name == "" || sc.own[name] != nil {
		p.fail("the name %q is empty or defined twice", name)
	}
	v := g.NewValue(name, t)
	sc.own[name] = v
	return v
}

// pending is an entry of a list of outputs or inner values: it can be resolved
// only when the nodes are known.
type pending struct {
	name string
	typ  Type
	pos  int
}

func (p *parser) typed() pending {
	var e pending
	if isTypeName(p.peekWord()) {
		e.typ = p.typ()
	}
	p.skip()
	e.pos = p.pos
	e.name = p.name()
	return e
}

func (p *parser) enter() func() {
	if p.depth++; p.depth > maxNesting {
		p.fail("nested deeper than %d", maxNesting)
	}
	return func() { p.depth-- }
}

func (p *parser) graph(g *Graph, outer *names) {
	defer p.enter()()
	g.Name = p.name()
	sc := &names{outer: outer, own: map[string]*Value{}}
	p.expect("(")
	p.list(")", func() {
		e := p.typed()
		v := p.define(g, sc, e.name, e.typ)
		g.AddInput(v)
		if p.match("=") {
			p.initializer(g, v, e.typ)
		}
	})
	p.expect("=>")
	var outs []pending
	p.expect("(")
	p.list(")", func() { outs = append(outs, p.typed()) })
	infos := p.locals(g, sc)
	p.nodes(g, sc)
	p.finish(g, sc, outs, infos)
}

// finish adds outputs and the types of inner values.
func (p *parser) finish(g *Graph, sc *names, outs, infos []pending) {
	resolve := func(sc *names, e pending) *Value {
		v := sc.find(e.name)
		if v == nil {
			p.pos = min(e.pos, p.pos)
			p.fail("%q is defined nowhere", e.name)
		} else if v.graph == g && v.Type.Kind == KindUnknown {
			v.Type = e.typ
		}
		return v
	}
	for _, e := range outs {
		if v := resolve(sc, e); v != nil {
			g.AddOutput(v)
		}
	}
	for _, e := range infos {
		if v := resolve(&names{own: sc.own}, e); v != nil {
			g.ValueInfo = append(g.ValueInfo, v)
		}
	}
}

// locals reads the list of initializers and types of inner values.
func (p *parser) locals(g *Graph, sc *names) (infos []pending) {
	if !p.match("<") {
		return nil
	}
	p.list(">", func() {
		e := p.typed()
		if !p.match("=") {
			infos = append(infos, e)
			return
		}
		v := sc.own[e.name]
		if v == nil {
			v = p.define(g, sc, e.name, Type{})
		} else if v.IsInitializer() {
			p.fail("the name %q is defined twice", e.name)
		}
		p.initializer(g, v, e.typ)
	})
	return infos
}

func (p *parser) initializer(g *Graph, v *Value, t Type) {
	p.label = v.name
	if t.Kind == KindSparseTensor {
		if s := p.sparse(t); p.err == nil {
			g.AddSparseInitializer(v, s)
		}
		return
	}
	if c := p.elements(t); p.err == nil {
		g.AddInitializer(v, c)
	}
}

func (p *parser) nodes(g *Graph, sc *names) {
	p.expect("{")
	for p.err == nil && !p.match("}") {
		p.node(g, sc)
	}
}

// idents reads names with commas between them up to end, and where they
// stand; "" or nothing before a comma is an omitted one.
func (p *parser) idents(end string) (list []string, at []int) {
	for p.err == nil && !p.match(end) {
		name := ""
		p.skip()
		at = append(at, p.pos)
		if p.peek() != ',' {
			name = p.name()
		}
		list = append(list, name)
		if !p.match(",") {
			p.expect(end)
			break
		}
	}
	return list, at
}

func (p *parser) node(g *Graph, sc *names) {
	name := ""
	if p.match("[") {
		name = p.name()
		p.expect("]")
	}
	outs, _ := p.idents("=")
	var op OpKey
	op.Type = p.name()
	for p.match(".") {
		if op.Domain != "" {
			op.Domain += "."
		}
		op.Domain += op.Type
		op.Type = p.name()
	}
	if p.match(":") {
		op.Overload = p.name()
	}
	label := ""
	for _, o := range outs {
		if label == "" {
			label = o
		}
	}
	attrs := p.attrs(label, sc)
	p.expect("(")
	ins, at := p.idents(")")
	if attrs == nil {
		attrs = p.attrs(label, sc)
	}
	if p.err != nil {
		return
	}
	inputs := make([]*Value, len(ins))
	for i, in := range ins {
		if in == "" {
			continue
		}
		if inputs[i] = sc.find(in); inputs[i] == nil {
			p.pos = at[i]
			p.fail("%q is not defined before its use", in)
			return
		}
	}
	outputs := make([]*Value, len(outs))
	for i, out := range outs {
		if out != "" {
			outputs[i] = p.define(g, sc, out, Type{})
		}
	}
	g.Append(g.NewNode(op, name, inputs, outputs, attrs...))
}

func (p *parser) attrs(label string, sc *names) (list []*Attr) {
	if !p.match("<") {
		return nil
	}
	p.list(">", func() {
		p.label = label
		list = append(list, p.attr(p.name(), sc))
	})
	return list
}

// attr reads an attribute behind its name.
func (p *parser) attr(name string, sc *names) *Attr {
	a := &Attr{Name: name}
	typed := p.match(":")
	if typed {
		a.Kind = p.attrKind()
	}
	p.expect("=")
	switch {
	case p.match("@"):
		a.RefName = p.name()
	case !p.match("["):
		if a.Kind == AttrUndefined {
			a.Kind = p.guessKind()
		}
		p.attrValue(a, a.Kind, sc)
	case p.match("]"):
		if !typed {
			p.fail("an empty list needs the type of the attribute")
		}
	default:
		p.attrList(a, typed, sc)
	}
	return a
}

func (p *parser) attrList(a *Attr, typed bool, sc *names) {
	elem := listElem(a.Kind)
	if typed && elem == AttrUndefined {
		p.fail("a list for an attribute of type %s", attrKinds[a.Kind])
	}
	for p.err == nil {
		e := &Attr{Name: a.Name, Kind: elem}
		if !typed {
			e.Kind = p.guessKind()
		}
		p.attrValue(e, e.Kind, sc)
		if !typed && a.Kind == AttrInts && e.Kind == AttrFloat {
			a.Kind = AttrFloats // as in [1, 0.5]
			for _, v := range a.Ints {
				a.Floats = append(a.Floats, float32(v))
			}
			a.Ints = nil
		}
		if !typed && a.Kind == AttrFloats && e.Kind == AttrInt {
			e.Kind, e.F = AttrFloat, float32(e.I)
		}
		if a.Kind == AttrUndefined {
			for k := range attrKinds {
				if listElem(AttrKind(k)) == e.Kind {
					a.Kind = AttrKind(k)
				}
			}
		}
		if listElem(a.Kind) != e.Kind {
			p.fail("a list of mixed types")
		}
		switch e.Kind {
		case AttrFloat:
			a.Floats = append(a.Floats, e.F)
		case AttrInt:
			a.Ints = append(a.Ints, e.I)
		case AttrString:
			a.Strings = append(a.Strings, e.S)
		case AttrTensor:
			a.Tensors = append(a.Tensors, e.T)
		case AttrGraph:
			a.Graphs = append(a.Graphs, e.G)
		case AttrSparseTensor:
			a.Sparses = append(a.Sparses, e.Sparse)
		case AttrType:
			a.Types = append(a.Types, *e.Type)
		}
		if !p.match(",") {
			p.expect("]")
			return
		}
	}
}

// listElem is the kind of the elements of a list kind, else AttrUndefined.
func listElem(k AttrKind) AttrKind {
	switch k {
	case AttrFloats:
		return AttrFloat
	case AttrInts:
		return AttrInt
	case AttrStrings:
		return AttrString
	case AttrTensors:
		return AttrTensor
	case AttrGraphs:
		return AttrGraph
	case AttrSparseTensors:
		return AttrSparseTensor
	case AttrTypes:
		return AttrType
	}
	return AttrUndefined
}

func (p *parser) attrKind() AttrKind {
	w := p.word()
	for k, s := range attrKinds {
		if s == w {
			return AttrKind(k)
		}
	}
	p.fail("unknown type %q of an attribute", w)
	return AttrUndefined
}

// guessKind tells from what comes next which kind of value an attribute
// without a stated type has.
func (p *parser) guessKind() AttrKind {
	c := p.peek()
	at := p.pos
	defer func() {
		if p.err == nil {
			p.pos = at
		}
	}()
	switch {
	case c == '"':
		return AttrString
	case c == '-' || c >= '0' && c <= '9':
		if strings.ContainsAny(strings.ToLower(p.number()), ".eni") {
			return AttrFloat
		}
		return AttrInt
	}
	switch w := p.word(); {
	case w == "sparse_tensor":
		if p.typ(); p.peek() == '{' || p.peek() == '=' {
			return AttrSparseTensor
		}
		return AttrType
	case isTypeName(w):
		p.pos = at
		p.typ()
		if c := p.peek(); c == '{' || c == '=' || c == '"' || identByte(c, false) {
			return AttrTensor
		}
		return AttrType
	case strings.EqualFold(w, "nan") || strings.EqualFold(w, "inf") || strings.EqualFold(w, "infinity"):
		return AttrFloat
	}
	return AttrGraph
}

// attrValue reads a single value.
func (p *parser) attrValue(a *Attr, kind AttrKind, sc *names) {
	switch kind {
	case AttrFloat:
		a.F = float32(p.float(32))
	case AttrInt:
		a.I = p.int()
	case AttrString:
		a.S = p.quoted()
	case AttrGraph:
		a.G = p.m.NewGraph()
		p.graph(a.G, sc)
	case AttrType:
		t := p.typ()
		a.Type = &t
	case AttrTensor:
		t := p.typ()
		if p.peek() != '{' {
			if p.peek() != '=' {
				p.name() // of a tensor, which the representation does not keep
			}
			p.match("=")
		}
		a.T = p.elements(t)
	case AttrSparseTensor:
		t := p.typ()
		a.Sparse = p.sparse(t)
	default:
		p.fail("an attribute of type %s can not be a single value", attrKinds[kind])
	}
}

func (p *parser) function() {
	var f Function
	p.header(func(key string) bool {
		switch key {
		case "opset_import":
			f.Opsets = p.opsets()
		case "doc_string":
			f.Doc = p.quoted()
		case "domain":
			f.Domain = p.quoted()
		case "overload":
			f.Overload = p.quoted()
		default:
			return false
		}
		return true
	})
	name := p.name()
	if p.err != nil {
		return
	}
	fn := p.m.AddFunction(f.Domain, name, f.Overload)
	fn.Opsets, fn.Doc = f.Opsets, f.Doc
	if p.match("<") {
		p.list(">", func() {
			name := p.name()
			if c := p.peek(); c == ':' || c == '=' {
				fn.AttrDefaults = append(fn.AttrDefaults, p.attr(name, nil))
			} else {
				fn.Attrs = append(fn.Attrs, name)
			}
		})
	}
	g := fn.Body
	sc := &names{own: map[string]*Value{}}
	var outs, infos []pending
	stated := func(e pending) {
		if e.typ.Kind != KindUnknown {
			infos = append(infos, e)
		}
	}
	p.expect("(")
	p.list(")", func() {
		e := p.typed()
		g.AddInput(p.define(g, sc, e.name, Type{}))
		stated(e)
	})
	p.expect("=>")
	p.expect("(")
	p.list(")", func() {
		e := p.typed()
		stated(e)
		outs = append(outs, pending{name: e.name, pos: e.pos})
	})
	infos = append(infos, p.locals(g, sc)...)
	if len(g.inits) > 0 {
		p.fail("a function has no initializers")
	}
	p.nodes(g, sc)
	p.finish(g, sc, outs, infos)
}

func identByte(c byte, inner bool) bool {
	return c == '_' || c|32 >= 'a' && c|32 <= 'z' || inner && c >= '0' && c <= '9'
}

func isTypeName(w string) bool {
	switch w {
	case "seq", "map", "optional", "sparse_tensor", "opaque", "undefined":
		return true
	}
	_, ok := tensor.ParseDType(w)
	return ok
}

func (p *parser) typ() Type {
	defer p.enter()()
	inner := func() *Type {
		t := p.typ()
		return &t
	}
	w := p.word()
	t := Type{}
	switch w {
	case "seq":
		p.expect("(")
		t = Type{Kind: KindSequence, Inner: inner()}
	case "optional":
		p.expect("(")
		t = Type{Kind: KindOptional, Inner: inner()}
	case "map":
		p.expect("(")
		t = Type{Kind: KindMap, Elem: p.elem(p.word())}
		p.expect(",")
		t.Inner = inner()
	case "sparse_tensor":
		p.expect("(")
		t = p.tensorType(p.word())
		t.Kind = KindSparseTensor
	case "opaque":
		p.expect("(")
		t = Type{Kind: KindOpaque}
	default:
		return p.tensorType(w)
	}
	p.expect(")")
	return t
}

func (p *parser) elem(w string) tensor.DType {
	d, ok := tensor.ParseDType(w)
	if !ok && w != "undefined" {
		p.fail("%q is no element type", w)
	}
	return d
}

func (p *parser) tensorType(w string) Type {
	t := TensorType(p.elem(w), Shape{})
	if !p.match("[") {
		return t
	}
	if p.match("]") {
		t.Shape = nil
		return t
	}
	p.list("]", func() {
		switch c := p.peek(); {
		case c == '?':
			p.pos++
			t.Shape = append(t.Shape, Dim{})
		case c == '"' || identByte(c, false):
			t.Shape = append(t.Shape, Sym(p.name()))
		default:
			d := p.int()
			if d < 0 {
				p.fail("a negative dimension")
			}
			t.Shape = append(t.Shape, D(d))
		}
	})
	return t
}

// sparse reads the values and indices of a sparse tensor of dense type t.
func (p *parser) sparse(t Type) *SparseTensor {
	dims, ok := t.Shape.Dims()
	if !ok || t.Kind != KindSparseTensor {
		p.fail("a sparse tensor needs a shape")
		return nil
	}
	s := &SparseTensor{}
	for _, d := range dims {
		s.Dims = append(s.Dims, int64(d))
	}
	p.expect("{")
	s.Values = p.elements(p.typ())
	if p.match(",") {
		s.Indices = p.elements(p.typ())
	}
	p.expect("}")
	return s
}

// elements reads the elements of a tensor of type t.
func (p *parser) elements(t Type) *tensor.Tensor {
	dims, ok := t.Shape.Dims()
	n, fits := tensor.NumElements(dims)
	if !t.IsTensor() || !ok || !fits || !t.Elem.Valid() {
		p.fail("a tensor needs an element type and sizes")
		return nil
	}
	if p.peek() == '[' {
		p.fail("external data is not supported in a text")
	}
	p.expect("{")
	if p.err != nil {
		return nil
	}
	// Two characters an element bound what a text can ask for.
	if p.match("...") {
		p.expect("}")
		if n > 1<<28 {
			p.fail("an elided tensor of %d elements", n)
			return nil
		}
		return p.elided(t.Elem, dims)
	}
	if n > len(p.src)-p.pos {
		p.fail("fewer than %d elements", n)
		return nil
	}
	c := tensor.New(t.Elem, dims...)
	want := n
	if t.Elem == tensor.Complex64 || t.Elem == tensor.Complex128 {
		want *= 2
	}
	i := 0
	p.list("}", func() {
		if i >= want {
			p.fail("more than %d elements", want)
			return
		}
		p.element(c, i)
		i++
	})
	if i < want {
		p.fail("%d elements, %d needed", i, want)
	}
	return c
}

func (p *parser) element(c *tensor.Tensor, i int) {
	b, d := c.Bytes(), c.DType()
	switch d {
	case tensor.String:
		c.Strings()[i] = p.quoted()
		return
	case tensor.Float32, tensor.Complex64:
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(float32(p.float(32))))
		return
	case tensor.Float64, tensor.Complex128:
		binary.LittleEndian.PutUint64(b[8*i:], math.Float64bits(p.float(64)))
		return
	}
	at := p.pos
	bits := d.Bits()
	text := p.number()
	var u uint64
	var err error
	if strings.HasPrefix(text, "-") {
		var v int64
		v, err = strconv.ParseInt(text, 10, bits)
		if u = uint64(v); !d.IsSigned() {
			err = strconv.ErrRange
		}
	} else {
		if d.IsSigned() {
			bits--
		}
		if d == tensor.Bool {
			bits = 1
		}
		u, err = strconv.ParseUint(text, 10, bits)
	}
	if err != nil {
		p.pos = min(at, p.pos)
		p.fail("%q is no %v", text, d)
		return
	}
	if w := d.Bits(); w < 8 {
		b[i*w/8] |= byte(u) & (1<<w - 1) << (i * w % 8)
	} else {
		for k := range w / 8 {
			b[i*w/8+k] = byte(u >> (8 * k))
		}
	}
}

// elided makes up the elements of a tensor, from the label alone: floats from
// a SplitMix64 sequence (Steele et al., "Fast Splittable Pseudorandom Number
// Generators", 2014) seeded with the label's FNV-1a hash.
func (p *parser) elided(d tensor.DType, dims []int) *tensor.Tensor {
	seed := uint64(14695981039346656037)
	for i := range len(p.label) {
		seed = (seed ^ uint64(p.label[i])) * 1099511628211
	}
	next := func() uint64 {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	c := tensor.New(d, dims...)
	b := c.Bytes()
	switch d {
	case tensor.Float32:
		for i := 0; i < len(b); i += 4 {
			binary.LittleEndian.PutUint32(b[i:], math.Float32bits(float32(int64(next())>>40)/(1<<23)))
		}
	case tensor.Float64:
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], math.Float64bits(float64(int64(next())>>11)/(1<<52)))
		}
	case tensor.Float16: // ±[0.5, 1)
		for i := 0; i < len(b); i += 2 {
			binary.LittleEndian.PutUint16(b[i:], 0x3800|uint16(next())&0x83ff)
		}
	case tensor.BFloat16: // ±[0.5, 1)
		for i := 0; i < len(b); i += 2 {
			binary.LittleEndian.PutUint16(b[i:], 0x3f00|uint16(next())&0x807f)
		}
	}
	return c
}
