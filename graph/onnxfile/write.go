package onnxfile

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// maxMessage is the largest protobuf message that readers accept.
const maxMessage = math.MaxInt32

// chunk is how much is written between looks at the context.
const chunk = 4 << 20

// encoder writes messages in field-number order. The same code runs twice:
// first with a nil writer, to find the sizes of all messages in the order in
// which they begin, then for real.
type encoder struct {
	ctx    context.Context
	origin *origin
	ext    *externalPlan // where tensors go outside of the file; nil for nowhere
	places bool          // write the places of what lies in a file of origin, not its contents

	w     *bufio.Writer // nil while counting
	n     int64         // bytes so far
	sizes []int64
	next  int
	buf   []byte
	err   error
}

// run counts and then writes what body encodes.
func (e *encoder) run(w io.Writer, body func(*encoder)) error {
	e.w, e.n, e.sizes = nil, 0, e.sizes[:0]
	body(e)
	e.w, e.next = bufio.NewWriterSize(w, 64<<10), 0
	total := e.n
	e.n = 0
	body(e)
	if e.err == nil {
		e.err = e.w.Flush()
	}
	if e.err == nil && e.n != total {
		e.err = fmt.Errorf("the model changed while it was written: %d bytes, %d expected", e.n, total)
	}
	return e.err
}

// encodeBytes returns what body encodes. body must not need an origin.
func encodeBytes(body func(*encoder)) []byte {
	var b bytes.Buffer
	e := encoder{ctx: context.Background()}
	e.run(&b, body) // a bytes.Buffer does not fail
	return b.Bytes()
}

// put writes small bytes.
func (e *encoder) put(b []byte) {
	e.n += int64(len(b))
	if e.w != nil && e.err == nil {
		_, e.err = e.w.Write(b)
	}
}

// bulk writes what may be large.
func (e *encoder) bulk(b []byte) {
	if e.w == nil {
		e.n += int64(len(b))
		return
	}
	if e.places {
		for i, m := range e.origin.mappings() {
			if off, ok := offsetIn(m.data, b); ok && len(b) > 0 {
				fmt.Fprintln(e.w, i, off, len(b))
				e.n += int64(len(b))
				return
			}
		}
	}
	for len(b) > 0 && e.err == nil {
		if e.err = e.ctx.Err(); e.err != nil {
			return
		}
		k := min(len(b), chunk)
		e.put(b[:k])
		e.origin.release(b[:k])
		b = b[k:]
	}
}

func (e *encoder) header(num protowire.Number, typ protowire.Type, u uint64) {
	e.buf = protowire.AppendTag(e.buf[:0], num, typ)
	e.buf = protowire.AppendVarint(e.buf, u)
	e.put(e.buf)
}

func (e *encoder) varint(num protowire.Number, v int64) {
	e.header(num, protowire.VarintType, uint64(v))
}

func (e *encoder) float(num protowire.Number, f float32) {
	e.buf = protowire.AppendTag(e.buf[:0], num, protowire.Fixed32Type)
	e.buf = protowire.AppendFixed32(e.buf, math.Float32bits(f))
	e.put(e.buf)
}

func (e *encoder) string(num protowire.Number, s string) {
	e.header(num, protowire.BytesType, uint64(len(s)))
	e.n += int64(len(s))
	if e.w != nil && e.err == nil {
		_, e.err = e.w.WriteString(s)
	}
}

func (e *encoder) blob(num protowire.Number, b []byte) {
	e.header(num, protowire.BytesType, uint64(len(b)))
	e.bulk(b)
}

func (e *encoder) message(num protowire.Number, body func()) {
	if e.w == nil {
		i, start := len(e.sizes), e.n
		e.sizes = append(e.sizes, 0)
		body()
		size := e.n - start
		e.sizes[i] = size
		e.n += int64(protowire.SizeTag(num) + protowire.SizeVarint(uint64(size)))
		return
	}
	size := e.sizes[e.next]
	e.next++
	if e.err == nil && e.next&1023 == 0 {
		e.err = e.ctx.Err()
	}
	e.header(num, protowire.BytesType, uint64(size))
	body()
}

// merger writes the fields of one message, those of extra at their places. A
// singular field in extra gives way where the representation has a value.
type merger struct {
	e    *encoder
	rest []rawField
}

type rawField struct {
	num protowire.Number
	tag uint64
	raw []byte
}

func rawFields(b []byte) []rawField {
	if len(b) == 0 {
		return nil
	}
	var list []rawField
	s := scan(b)
	for s.next() {
		list = append(list, rawField{s.num(), s.tag, s.raw()})
	}
	slices.SortStableFunc(list, func(a, b rawField) int { return int(a.num) - int(b.num) })
	return list
}

func (e *encoder) merge(extra []byte) *merger { return &merger{e, rawFields(extra)} }

// to writes what extra has up to field num, inclusively.
func (m *merger) to(num protowire.Number) { m.over(num, 0) }

// over does the same but drops what has the given tag: the representation has
// a value for that.
func (m *merger) over(num protowire.Number, drop uint64) {
	for len(m.rest) > 0 && m.rest[0].num <= num {
		if m.rest[0].tag != drop {
			m.e.bulk(m.rest[0].raw)
		}
		m.rest = m.rest[1:]
	}
}

func (m *merger) end() {
	for _, f := range m.rest {
		m.e.bulk(f.raw)
	}
}

func (m *merger) string(num protowire.Number, s string) {
	if s == "" {
		m.to(num)
		return
	}
	m.over(num, uint64(num)<<3|blob)
	m.e.string(num, s)
}

func (m *merger) varint(num protowire.Number, v int64) {
	if v == 0 {
		m.to(num)
		return
	}
	m.over(num, uint64(num)<<3|vint)
	m.e.varint(num, v)
}

func (m *merger) properties(num protowire.Number, list []graph.Property) {
	m.to(num)
	for _, p := range list {
		m.e.message(num, func() {
			x := m.e.merge(p.Extra)
			x.string(1, p.Key)
			x.string(2, p.Value)
			x.end()
		})
	}
}

func (m *merger) opsets(num protowire.Number, list []graph.Opset) {
	m.to(num)
	for _, o := range list {
		m.e.message(num, func() {
			x := m.e.merge(o.Extra)
			x.string(1, o.Domain)
			x.varint(2, o.Version)
			x.end()
		})
	}
}

func (e *encoder) model(m *graph.Model) {
	x := e.merge(m.Extra)
	x.varint(1, m.IRVersion)
	x.string(2, m.ProducerName)
	x.string(3, m.ProducerVersion)
	x.string(4, m.Domain)
	x.varint(5, m.ModelVersion)
	x.string(6, m.Doc)
	x.to(7)
	e.message(7, func() { e.graph(m.Graph) })
	x.opsets(8, m.Opsets)
	x.properties(14, m.Metadata)
	x.to(25)
	for _, f := range m.Functions {
		e.message(25, func() { e.function(f) })
	}
	x.end()
}

func (e *encoder) graph(g *graph.Graph) {
	x := e.merge(g.Extra)
	x.to(1)
	e.nodes(1, g)
	x.string(2, g.Name)
	x.to(5)
	for _, v := range g.Initializers() {
		if v.Const != nil {
			name := v.Name()
			e.message(5, func() { e.tensor(v.Const, &name) })
		}
	}
	x.string(10, g.Doc)
	x.to(11)
	for _, v := range g.Inputs() {
		e.info(11, v, infoKey{11, v.ID, 0})
	}
	x.to(12)
	for i, v := range g.Outputs() {
		e.info(12, v, infoKey{12, v.ID, i})
	}
	e.valueInfos(13, g, x)
	x.to(15)
	for _, v := range g.Initializers() {
		if v.Sparse != nil {
			name := v.Name()
			e.message(15, func() { e.sparse(v.Sparse, &name) })
		}
	}
	x.properties(16, g.Metadata)
	x.end()
}

func (e *encoder) nodes(num protowire.Number, g *graph.Graph) {
	for n := g.First(); n != nil; n = n.Next() {
		e.message(num, func() { e.node(n) })
	}
}

// valueInfos writes the types of inner values. Entries of extra that have no
// value come where the file had them.
func (e *encoder) valueInfos(num protowire.Number, g *graph.Graph, x *merger) {
	var at []int
	loose := func() bool { return len(x.rest) > 0 && x.rest[0].num == 13 }
	if e.origin != nil && loose() {
		at = e.origin.dangling[g.Scope()]
	}
	i := 0
	put := func() {
		f := x.rest[0]
		x.rest = x.rest[1:]
		if f.tag&7 != blob {
			e.bulk(f.raw)
			return
		}
		s := scan(f.raw)
		s.next()
		e.blob(num, s.b)
		i++
	}
	for _, v := range g.ValueInfo {
		if v.Graph() != g {
			continue
		}
		for loose() && (len(at) == 0 || at[0] <= i) {
			put()
			at = at[min(1, len(at)):]
		}
		e.info(num, v, infoKey{13, v.ID, 0})
		i++
	}
	for loose() {
		put()
	}
}

// info writes what the file says about a value: as it stood there, if it says
// more than the value does and the value is still the same.
func (e *encoder) info(num protowire.Number, v *graph.Value, key infoKey) {
	if e.origin != nil {
		if i, ok := e.origin.infos[key]; ok && i.name == v.Name() && reflect.DeepEqual(i.typ, v.Type) {
			e.blob(num, i.wire)
			return
		}
	}
	e.message(num, func() { e.valueInfo(v) })
}

func (e *encoder) valueInfo(v *graph.Value) {
	x := e.merge(v.Extra)
	x.to(1)
	e.string(1, v.Name())
	x.to(2)
	if hasType(v.Type) {
		e.message(2, func() { e.typ(v.Type) })
	}
	x.string(3, v.Doc)
	x.end()
}

func hasType(t graph.Type) bool {
	return t.Kind != graph.KindUnknown || unpackTypeExtra(t.Extra).empty
}

func (e *encoder) typ(t graph.Type) {
	extra := unpackTypeExtra(t.Extra)
	x := e.merge(extra.typ)
	if t.Kind != graph.KindUnknown {
		num := typeField[t.Kind]
		x.to(num)
		e.message(num, func() { e.typeBody(t, extra) })
	}
	x.end()
}

func (e *encoder) typeBody(t graph.Type, extra typeExtra) {
	x := e.merge(extra.inner)
	switch t.Kind {
	case graph.KindTensor, graph.KindSparseTensor:
		x.varint(1, int64(t.Elem))
		x.to(2)
		if t.Shape != nil {
			e.message(2, func() { e.shape(t.Shape, extra.shape) })
		}
	case graph.KindMap:
		x.varint(1, int64(t.Elem))
		x.to(2)
		if t.Inner != nil {
			e.message(2, func() { e.typ(*t.Inner) })
		}
	case graph.KindSequence, graph.KindOptional:
		x.to(1)
		if t.Inner != nil {
			e.message(1, func() { e.typ(*t.Inner) })
		}
	}
	x.end()
}

func (e *encoder) shape(s graph.Shape, extra []byte) {
	x := e.merge(extra)
	x.to(1)
	for _, d := range s {
		e.message(1, func() {
			y := e.merge(d.Extra)
			switch {
			case d.Known:
				y.over(1, 1<<3|vint)
				e.varint(1, d.Size)
				y.over(2, 2<<3|blob)
			case d.Sym != "":
				y.over(1, 1<<3|vint)
				y.string(2, d.Sym)
			}
			y.end()
		})
	}
	x.end()
}

func (e *encoder) function(f *graph.Function) {
	x := e.merge(f.Extra)
	g := f.Body
	x.string(1, f.Name)
	x.to(4)
	for _, v := range g.Inputs() {
		e.string(4, v.Name())
	}
	x.to(5)
	for _, v := range g.Outputs() {
		e.string(5, v.Name())
	}
	x.to(6)
	for _, a := range f.Attrs {
		e.string(6, a)
	}
	x.to(7)
	e.nodes(7, g)
	x.string(8, f.Doc)
	x.opsets(9, f.Opsets)
	x.string(10, f.Domain)
	x.to(11)
	for _, a := range f.AttrDefaults {
		e.message(11, func() { e.attr(a) })
	}
	x.to(12)
	e.valueInfos(12, g, e.merge(g.Extra))
	x.string(13, f.Overload)
	x.properties(14, f.Metadata)
	x.end()
}

func (e *encoder) node(n *graph.Node) {
	x := e.merge(n.Extra)
	name := func(v *graph.Value) string {
		if v == nil {
			return ""
		}
		return v.Name()
	}
	x.to(1)
	for _, v := range n.Inputs() {
		e.string(1, name(v))
	}
	x.to(2)
	for _, v := range n.Outputs() {
		e.string(2, name(v))
	}
	x.string(3, n.Name)
	x.string(4, n.Op.Type)
	x.to(5)
	for _, a := range n.Attrs {
		e.message(5, func() { e.attr(a) })
	}
	x.string(6, n.Doc)
	domain := n.Op.Domain
	if n.DomainAlias && domain == graph.OnnxDomain {
		domain = "ai.onnx"
	}
	x.string(7, domain)
	x.string(8, n.Op.Overload)
	x.properties(9, n.Metadata)
	x.end()
}

func (e *encoder) attr(a *graph.Attr) {
	x := e.merge(a.Extra)
	own := protowire.Number(0)
	if a.RefName == "" && int(a.Kind) < len(attrField) {
		own = attrField[a.Kind]
	}
	// Field numbers rise: name 1, values 2 to 15, type 20, reference 21,
	// values 22 and 23.
	x.string(1, a.Name)
	if own > 0 && own < 20 {
		x.to(own)
		e.attrValue(a, own)
	}
	kind := int64(a.Kind)
	if a.NoType {
		kind = 0
	}
	x.varint(20, kind)
	x.string(21, a.RefName)
	if own > 20 {
		x.to(own)
		e.attrValue(a, own)
	}
	x.end()
}

func (e *encoder) attrValue(a *graph.Attr, num protowire.Number) {
	switch a.Kind {
	case graph.AttrFloat:
		if a.F != 0 || math.Signbit(float64(a.F)) || !a.NoValue {
			e.float(num, a.F)
		}
	case graph.AttrInt:
		if a.I != 0 || !a.NoValue {
			e.varint(num, a.I)
		}
	case graph.AttrString:
		if a.S != "" || !a.NoValue {
			e.string(num, a.S)
		}
	case graph.AttrTensor:
		e.message(num, func() { e.tensor(a.T, nil) })
	case graph.AttrGraph:
		e.message(num, func() { e.graph(a.G) })
	case graph.AttrFloats:
		for _, f := range a.Floats {
			e.float(num, f)
		}
	case graph.AttrInts:
		for _, i := range a.Ints {
			e.varint(num, i)
		}
	case graph.AttrStrings:
		for _, s := range a.Strings {
			e.string(num, s)
		}
	case graph.AttrTensors:
		for _, t := range a.Tensors {
			e.message(num, func() { e.tensor(t, nil) })
		}
	case graph.AttrGraphs:
		for _, g := range a.Graphs {
			e.message(num, func() { e.graph(g) })
		}
	case graph.AttrSparseTensor:
		e.message(num, func() { e.sparse(a.Sparse, nil) })
	case graph.AttrSparseTensors:
		for _, t := range a.Sparses {
			e.message(num, func() { e.sparse(t, nil) })
		}
	case graph.AttrType:
		e.message(num, func() { e.typ(*a.Type) })
	case graph.AttrTypes:
		for _, t := range a.Types {
			e.message(num, func() { e.typ(t) })
		}
	}
}

func (e *encoder) sparse(t *graph.SparseTensor, name *string) {
	x := e.merge(t.Extra)
	if x.to(1); t.Values != nil {
		e.message(1, func() { e.tensor(t.Values, name) })
	}
	if x.to(2); t.Indices != nil {
		e.message(2, func() { e.tensor(t.Indices, nil) })
	}
	x.to(3)
	for _, d := range t.Dims {
		e.varint(3, d)
	}
	x.end()
}

// tensor writes a TensorProto. One that comes from a file is written as it
// was, except for the name, if name is given, and for where its elements lie.
func (e *encoder) tensor(t *tensor.Tensor, name *string) {
	var st *stored
	if e.origin != nil {
		st = e.origin.tensors[t]
	}
	place := e.ext.place(t)
	switch {
	case st == nil:
		n := ""
		if name != nil {
			n = *name
		}
		e.freshTensor(t, n, place)
	case !st.external && place == nil && (name == nil || *name == st.name):
		e.bulk(st.wire)
	default:
		rename := name != nil && *name != st.name
		move := st.external || place != nil
		x := &merger{e: e}
		for _, f := range rawFields(st.wire) {
			switch f.num {
			case 8:
				if rename {
					continue
				}
			case fieldFloat, fieldInt32, fieldString, fieldInt64, fieldRaw, fieldDouble, fieldUint64, 13, 14:
				if move {
					continue
				}
			}
			x.rest = append(x.rest, f)
		}
		if rename {
			x.string(8, *name)
		}
		if move {
			x.to(fieldRaw)
			if place == nil {
				e.elements(t)
			}
			x.to(14)
			e.place(place)
		}
		x.end()
	}
}

func (e *encoder) freshTensor(t *tensor.Tensor, name string, place *placement) {
	for _, d := range t.Shape() {
		e.varint(1, int64(d))
	}
	e.varint(2, int64(t.DType()))
	for _, s := range t.Strings() {
		e.string(fieldString, s)
	}
	if name != "" {
		e.string(8, name)
	}
	if t.DType() != tensor.String && place == nil {
		e.elements(t)
	}
	e.place(place)
}

// elements writes those of a tensor, which are made only then if it is deferred.
func (e *encoder) elements(t *tensor.Tensor) {
	e.header(fieldRaw, protowire.BytesType, uint64(t.Size()))
	if e.w == nil {
		e.n += int64(t.Size())
		return
	}
	if e.err == nil {
		e.bulk(t.Bytes())
	}
}

// placement is where a tensor lies in the file of external data.
type placement struct{ offset, length int64 }

// externalPlan says which tensors go to a file of external data, and where.
type externalPlan struct {
	location string
	places   map[*tensor.Tensor]*placement
	order    []*tensor.Tensor
	size     int64
}

func (p *externalPlan) place(t *tensor.Tensor) *placement {
	if p == nil {
		return nil
	}
	return p.places[t]
}

func (e *encoder) place(p *placement) {
	if p == nil {
		return
	}
	for _, kv := range []property{
		{"location", e.ext.location},
		{"offset", strconv.FormatInt(p.offset, 10)},
		{"length", strconv.FormatInt(p.length, 10)},
	} {
		e.message(13, func() {
			e.string(1, kv.key)
			e.string(2, kv.value)
		})
	}
	e.varint(14, 1)
}

// Write writes the model as one message, tensors inside. The error says so if
// that would be larger than the 2 GiB - 1 that readers accept.
func Write(ctx context.Context, w io.Writer, m *graph.Model) error {
	e := &encoder{ctx: ctx, origin: originOf(m)}
	return e.sourceError(Guard(func() error {
		if e.model(m); e.n > maxMessage {
			return tooLarge(e.n)
		}
		return e.run(w, func(e *encoder) { e.model(m) })
	}))
}

func tooLarge(n int64) error { return &sizeError{n, "and a file without external data"} }

// sizeError says that a file would be larger than readers of protobuf accept.
type sizeError struct {
	bytes int64
	of    string
}

func (e *sizeError) Error() string {
	return fmt.Sprintf("the model takes %d bytes, %s can have 2 GiB at most", e.bytes, e.of)
}
