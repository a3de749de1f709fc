package graph

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

// Fprint writes the model in ONNX's textual syntax (onnx docs/Syntax.md), every
// element of every tensor included. The text leaves out what that syntax has
// no place for: documentation and metadata of graphs and nodes, denotations,
// NaN payloads, and Extra everywhere. Sparse tensors, quoted attribute and
// operator names, and lists of tensors, graphs and types, which the syntax
// lacks or its own parser drops, are written in its spirit; Parse reads them.
func Fprint(w io.Writer, m *Model) error {
	p := printer{w: bufio.NewWriter(w), limit: -1}
	p.model(m)
	return p.w.Flush()
}

// Text returns the model as Fprint writes it, but with the elements of
// tensors that have more than limit of them written as "{...}".
func Text(m *Model, limit int) string {
	var b strings.Builder
	p := printer{w: bufio.NewWriter(&b), limit: limit}
	p.model(m)
	p.w.Flush() // a strings.Builder does not fail
	return b.String()
}

type printer struct {
	w      *bufio.Writer
	limit  int // of elements of a tensor; negative for none
	indent int
}

func (p *printer) str(parts ...string) {
	for _, s := range parts {
		p.w.WriteString(s) // the error stays in the writer until Flush
	}
}

func (p *printer) line() { p.str("\n", strings.Repeat("   ", p.indent)) }

func quoteText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func isIdent(s string) bool {
	for i := range len(s) {
		if !identByte(s[i], i > 0) {
			return false
		}
	}
	return s != ""
}

// ident returns s, in quotes unless it is a plain identifier that can not be
// taken for a type.
func ident(s string) string {
	if isIdent(s) && !isTypeName(s) {
		return s
	}
	return quoteText(s)
}

// list writes n items with a separator between them.
func (p *printer) list(n int, sep string, item func(i int)) {
	for i := range n {
		if i > 0 {
			p.str(sep)
		}
		item(i)
	}
}

func (p *printer) model(m *Model) {
	p.header(func(kv func(key, value string)) {
		kv("ir_version", strconv.FormatInt(m.IRVersion, 10))
		kv("opset_import", opsetText(m.Opsets))
		for _, e := range []Property{{Key: "producer_name", Value: m.ProducerName}, {Key: "producer_version", Value: m.ProducerVersion}, {Key: "domain", Value: m.Domain}} {
			if e.Value != "" {
				kv(e.Key, quoteText(e.Value))
			}
		}
		if m.ModelVersion != 0 {
			kv("model_version", strconv.FormatInt(m.ModelVersion, 10))
		}
		if m.Doc != "" {
			kv("doc_string", quoteText(m.Doc))
		}
		if len(m.Metadata) > 0 {
			kv("metadata_props", propsText(m.Metadata))
		}
	})
	p.graph(m.Graph)
	p.str("\n")
	for _, f := range m.Functions {
		p.str("\n")
		p.function(f)
		p.str("\n")
	}
}

func (p *printer) header(body func(kv func(key, value string))) {
	p.str("<")
	sep := ""
	body(func(key, value string) {
		p.str(sep, "\n   ", key, ": ", value)
		sep = ","
	})
	p.str("\n>\n")
}

func opsetText(list []Opset) string {
	parts := make([]string, len(list))
	for i, o := range list {
		parts[i] = quoteText(o.Domain) + " : " + strconv.FormatInt(o.Version, 10)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

func propsText(list []Property) string {
	parts := make([]string, len(list))
	for i, e := range list {
		parts[i] = quoteText(e.Key) + " : " + quoteText(e.Value)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

func (p *printer) graph(g *Graph) {
	p.str(ident(g.Name), " ")
	p.values(g.inputs)
	p.str(" => ")
	p.values(g.outputs)
	p.locals(g)
	p.nodes(g)
}

func (p *printer) values(list []*Value) {
	p.str("(")
	p.list(len(list), ", ", func(i int) { p.value(list[i]) })
	p.str(")")
}

func (p *printer) value(v *Value) {
	if v.Type.Kind != KindUnknown {
		p.str(typeText(v.Type), " ")
	}
	p.str(ident(v.name))
}

// locals writes the initializers and the types of inner values.
func (p *printer) locals(g *Graph) {
	n := 0
	item := func(write func()) {
		if n++; n == 1 {
			p.indent++
			p.line()
			p.str("<")
		} else {
			p.str(",")
			p.line()
		}
		write()
	}
	for _, v := range g.inits {
		item(func() {
			if v.Sparse != nil {
				p.sparse(v.Sparse, ident(v.name)+" =")
			} else {
				p.tensor(v.Const, ident(v.name)+" =")
			}
		})
	}
	for _, v := range g.ValueInfo {
		if v.graph == g {
			item(func() { p.value(v) })
		}
	}
	if n > 0 {
		p.str(">")
		p.indent--
	}
}

func (p *printer) nodes(g *Graph) {
	p.line()
	p.str("{")
	p.indent++
	for n := g.first; n != nil; n = n.next {
		p.line()
		p.node(n)
	}
	p.indent--
	p.line()
	p.str("}")
}

func (p *printer) names(list []*Value) {
	p.list(len(list), ", ", func(i int) {
		if list[i] == nil {
			p.str(`""`)
			return
		}
		p.str(ident(list[i].name))
	})
}

func (p *printer) node(n *Node) {
	if n.Name != "" {
		p.str("[", ident(n.Name), "] ")
	}
	p.names(n.outputs)
	p.str(" = ")
	domain := n.Op.Domain
	if n.DomainAlias && domain == OnnxDomain {
		domain = "ai.onnx"
	}
	if domain != "" {
		parts := strings.Split(domain, ".")
		for _, s := range parts {
			if !isIdent(s) {
				parts = []string{quoteText(domain)}
				break
			}
		}
		p.str(strings.Join(parts, "."), ".")
	}
	p.str(plain(n.Op.Type))
	if n.Op.Overload != "" {
		p.str(":", plain(n.Op.Overload))
	}
	nested := false
	for _, a := range n.Attrs {
		nested = nested || len(a.Subgraphs()) > 0
	}
	if !nested {
		p.attrs(n.Attrs)
	}
	p.str(" (")
	p.names(n.inputs)
	p.str(")")
	if nested {
		p.attrs(n.Attrs)
	}
}

// plain returns s, in quotes unless it is an identifier.
func plain(s string) string {
	if isIdent(s) {
		return s
	}
	return quoteText(s)
}

func (p *printer) attrs(list []*Attr) {
	if len(list) == 0 {
		return
	}
	p.str(" <")
	p.list(len(list), ", ", func(i int) { p.attr(list[i]) })
	p.str(">")
}

// attrKinds are the names of attribute kinds in the textual syntax.
var attrKinds = [...]string{
	AttrUndefined: "undefined", AttrFloat: "float", AttrInt: "int", AttrString: "string", AttrTensor: "tensor",
	AttrGraph: "graph", AttrFloats: "floats", AttrInts: "ints", AttrStrings: "strings", AttrTensors: "tensors",
	AttrGraphs: "graphs", AttrSparseTensor: "sparse_tensor", AttrSparseTensors: "sparse_tensors",
	AttrType: "type_proto", AttrTypes: "type_protos",
}

func (p *printer) attr(a *Attr) {
	p.str(plain(a.Name), ": ", attrKinds[a.Kind], " = ")
	if a.RefName != "" {
		p.str("@", plain(a.RefName))
		return
	}
	items := func(n int, item func(i int)) {
		p.str("[")
		p.list(n, ", ", item)
		p.str("]")
	}
	graph := func(g *Graph) {
		p.indent++
		p.graph(g)
		p.indent--
	}
	switch a.Kind {
	case AttrUndefined:
		p.str("[]")
	case AttrFloat:
		p.str(floatText(float64(a.F), 32))
	case AttrInt:
		p.str(strconv.FormatInt(a.I, 10))
	case AttrString:
		p.str(quoteText(a.S))
	case AttrTensor:
		p.tensor(a.T, "")
	case AttrGraph:
		graph(a.G)
	case AttrSparseTensor:
		p.sparse(a.Sparse, "")
	case AttrType:
		p.str(typeText(*a.Type))
	case AttrFloats:
		items(len(a.Floats), func(i int) { p.str(floatText(float64(a.Floats[i]), 32)) })
	case AttrInts:
		items(len(a.Ints), func(i int) { p.str(strconv.FormatInt(a.Ints[i], 10)) })
	case AttrStrings:
		items(len(a.Strings), func(i int) { p.str(quoteText(a.Strings[i])) })
	case AttrTensors:
		items(len(a.Tensors), func(i int) { p.tensor(a.Tensors[i], "") })
	case AttrGraphs:
		items(len(a.Graphs), func(i int) { graph(a.Graphs[i]) })
	case AttrSparseTensors:
		items(len(a.Sparses), func(i int) { p.sparse(a.Sparses[i], "") })
	case AttrTypes:
		items(len(a.Types), func(i int) { p.str(typeText(a.Types[i])) })
	}
}

func (p *printer) function(f *Function) {
	p.header(func(kv func(key, value string)) {
		kv("domain", quoteText(f.Domain))
		if f.Overload != "" {
			kv("overload", quoteText(f.Overload))
		}
		kv("opset_import", opsetText(f.Opsets))
		if f.Doc != "" {
			kv("doc_string", quoteText(f.Doc))
		}
	})
	p.str(ident(f.Name))
	if n := len(f.Attrs); n+len(f.AttrDefaults) > 0 {
		p.str(" <")
		p.list(n+len(f.AttrDefaults), ", ", func(i int) {
			if i < n {
				p.str(plain(f.Attrs[i]))
			} else {
				p.attr(f.AttrDefaults[i-n])
			}
		})
		p.str(">")
	}
	p.str(" (")
	p.names(f.Body.inputs)
	p.str(") => (")
	p.names(f.Body.outputs)
	p.str(")")
	p.locals(f.Body)
	p.nodes(f.Body)
}

// typeText formats a type as the textual syntax has it: without brackets for
// a scalar, with empty ones for an unknown rank.
func typeText(t Type) string {
	inner := ""
	if t.Inner != nil {
		inner = typeText(*t.Inner)
	}
	switch t.Kind {
	case KindTensor:
		return elemText(t)
	case KindSparseTensor:
		return "sparse_tensor(" + elemText(t) + ")"
	case KindSequence:
		return "seq(" + inner + ")"
	case KindMap:
		return "map(" + t.Elem.String() + ", " + inner + ")"
	case KindOptional:
		return "optional(" + inner + ")"
	case KindOpaque:
		return "opaque()"
	}
	return ""
}

func elemText(t Type) string {
	elem := t.Elem.String()
	if _, ok := tensor.ParseDType(elem); !ok {
		elem = "undefined"
	}
	switch {
	case t.Shape == nil:
		return elem + "[]"
	case len(t.Shape) == 0:
		return elem
	}
	dims := make([]string, len(t.Shape))
	for i, d := range t.Shape {
		dims[i] = d.String()
		if !d.Known && d.Sym != "" {
			dims[i] = plain(d.Sym)
		}
	}
	return elem + "[" + strings.Join(dims, ",") + "]"
}

func floatText(f float64, bits int) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	}
	return strconv.FormatFloat(f, 'g', -1, bits)
}

func dimsText(dims []int64) string {
	if len(dims) == 0 {
		return ""
	}
	return strings.ReplaceAll(fmt.Sprint(dims), " ", ",")
}

// sparse writes a sparse tensor as its dense type, the name, and its values
// and indices.
func (p *printer) sparse(t *SparseTensor, name string) {
	p.str("sparse_tensor(", t.Values.DType().String(), dimsText(t.Dims), ") ", name)
	if name != "" {
		p.str(" ")
	}
	p.str("{")
	p.tensor(t.Values, "")
	if t.Indices != nil {
		p.str(", ")
		p.tensor(t.Indices, "")
	}
	p.str("}")
}

// tensor writes the elements as the textual syntax has them: floats of up to
// 16 bits as bit patterns, complex numbers as two reals.
func (p *printer) tensor(t *tensor.Tensor, name string) {
	p.str(t.DType().String())
	if t.Rank() > 0 {
		p.str(tensor.ShapeString(t.Shape()))
	}
	p.str(" ")
	if name != "" {
		p.str(name, " ")
	}
	if p.limit >= 0 && t.Len() > p.limit {
		p.str("{...}")
		return
	}
	p.str("{")
	item, n := element(t)
	p.list(n, ",", func(i int) { p.str(item(i)) })
	p.str("}")
}

// element returns a function that formats an element, and how many there are.
func element(t *tensor.Tensor) (func(i int) string, int) {
	d := t.DType()
	n := t.Len()
	switch d {
	case tensor.String:
		return func(i int) string { return quoteText(t.Strings()[i]) }, n
	case tensor.Float32, tensor.Complex64:
		s := viewAs[float32](t.Bytes(), tensor.Float32)
		return func(i int) string { return floatText(float64(s[i]), 32) }, len(s)
	case tensor.Float64, tensor.Complex128:
		s := viewAs[float64](t.Bytes(), tensor.Float64)
		return func(i int) string { return floatText(s[i], 64) }, len(s)
	}
	b := t.Bytes()
	bits := d.Bits()
	return func(i int) string {
		var u uint64
		if bits < 8 {
			u = uint64(b[i*bits/8]) >> (i * bits % 8) & (1<<bits - 1)
		} else {
			for k := bits/8 - 1; k >= 0; k-- {
				u = u<<8 | uint64(b[i*bits/8+k])
			}
		}
		if d.IsSigned() {
			return strconv.FormatInt(int64(u<<(64-bits))>>(64-bits), 10)
		}
		return strconv.FormatUint(u, 10)
	}, n
}

func viewAs[T tensor.Number](b []byte, d tensor.DType) []T {
	t, err := tensor.FromBytes(d, []int{len(b) * 8 / d.Bits()}, b)
	if err != nil {
		return nil
	}
	return tensor.As[T](t)
}
