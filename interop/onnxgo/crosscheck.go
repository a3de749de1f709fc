//go:build !noonnxgo

package onnxgo

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
	"github.com/owulveryck/onnx-go"
	gorgonia "gorgonia.org/tensor"
)

// Version is the version of onnx-go that the decoder is from.
const Version = "v0.5.0"

// Report is what CrossCheck found: how many things of each kind were compared,
// where the decoders differ, and what onnx-go's cannot read. Names are quoted.
type Report struct {
	Nodes        int `json:"nodes"`
	Edges        int `json:"edges"` // inputs and outputs of nodes, omitted ones included
	Attributes   int `json:"attributes"`
	Initializers int `json:"initializers"`
	// Differences are in the order of nodes, then of initializers; "here" is
	// what onnxfile has read.
	Differences []string `json:"differences"`
	// Unread is in the order of the file.
	Unread []Unread `json:"unread"`
}

// Unread is something that onnx-go cannot read, and its reason.
type Unread struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// CrossCheck decodes data, a serialized ModelProto, with onnx-go and compares
// the main graph with that of m, which our loader has read from the same bytes:
// nodes in order with operator type, inputs, outputs and attributes, and
// initializers with element type, shape and bits. What onnx-go cannot read is
// left out and listed; if that is the whole model, nothing is compared. Of
// inputs and outputs of the graph, onnx-go is asked only whether it knows their
// type: for each it would allocate memory of the size that the file declares.
//
// onnx-go copies and appends: this takes memory of up to eight times the size of
// data.
func CrossCheck(data []byte, m *graph.Model) *Report {
	r := &Report{Differences: []string{}, Unread: []Unread{}}
	s := stripper{report: r, types: map[int64]string{}}
	stripped, err := s.model(data)
	if err != nil {
		r.unread("model", err)
		return r
	}
	b, err := decode(stripped)
	if err != nil {
		s.probe, r.Unread = true, r.Unread[:0]
		if stripped, err = s.model(data); err == nil {
			b, err = decode(stripped)
		}
		if err != nil {
			r.unread("model", err)
			return r
		}
	}
	r.nodes(m, b, s.attrs)
	r.initializers(m, b, s.tensors)
	return r
}

func (r *Report) unread(what string, err error) {
	r.Unread = append(r.Unread, Unread{what, err.Error()})
}

func (r *Report) differ(format string, args ...any) {
	r.Differences = append(r.Differences, fmt.Sprintf(format, args...))
}

// decode runs onnx-go's decoder, whose panics become errors.
func decode(data []byte) (b *Backend, err error) {
	defer recovered(&err)
	b = New()
	if err := onnx.NewModel(b).UnmarshalBinary(data); err != nil {
		return nil, err
	}
	return b, b.err
}

func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("onnx-go panics: %v", r)
	}
}

func (r *Report) nodes(m *graph.Model, b *Backend, dropped map[attrKey]bool) {
	i := 0
	for n := range m.Graph.Nodes() {
		if i == len(b.ops) {
			break
		}
		r.node(i, n, b.ops[i], dropped)
		i++
	}
	if m.Graph.NumNodes() != len(b.ops) {
		r.differ("%d nodes here, %d there", m.Graph.NumNodes(), len(b.ops))
	}
	r.Nodes = i
}

func (r *Report) node(i int, n *graph.Node, op operation, dropped map[attrKey]bool) {
	place := nodePlace(i, n.Label())
	if n.Op.Type != op.Name {
		r.differ("%s: operator %q here, %q there", place, n.Op.Type, op.Name)
	}
	var ins, outs []string
	for _, v := range op.ins {
		ins = append(ins, v.label())
	}
	for _, v := range op.outs {
		outs = append(outs, v.label())
	}
	if n.NumInputs() == 0 && len(ins) == 1 && ins[0] == n.Name+"/input" {
		ins = nil // the decoder's own invention
	}
	r.edges(place, "input", labels(n.Inputs()), ins)
	r.edges(place, "output", labels(n.Outputs()), outs)
	here := map[string]*graph.Attr{}
	for _, a := range n.Attrs {
		here[a.Name] = a
	}
	names := maps.Clone(op.Attributes)
	if names == nil {
		names = map[string]interface{}{}
	}
	for name := range here {
		names[name] = op.Attributes[name]
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, there := here[name], names[name]
		if dropped[attrKey{i, name}] {
			continue
		}
		r.Attributes++
		switch {
		case a == nil:
			r.differ("%s: attribute %q only there", place, name)
		case there == nil:
			r.differ("%s: attribute %q only here", place, name)
		default:
			b, err := attribute(name, there)
			if err != nil {
				r.unread(fmt.Sprintf("%s: attribute %q", place, name), err)
				r.Attributes--
			} else if diff := attrDiff(a, b); diff != "" {
				r.differ("%s: attribute %q: %s", place, name, diff)
			}
		}
	}
}

func (v *value) label() string {
	if v == nil {
		return ""
	}
	return v.name
}

func labels(vs []*graph.Value) []string {
	list := make([]string, len(vs))
	for i, v := range vs {
		if v != nil {
			list[i] = v.Name()
		}
	}
	return list
}

func (r *Report) edges(place, kind string, here, there []string) {
	if len(here) != len(there) {
		r.differ("%s: %d %ss here, %d there", place, len(here), kind, len(there))
	}
	for i := range min(len(here), len(there)) {
		r.Edges++
		if here[i] != there[i] {
			r.differ("%s: %s %d is %q here, %q there", place, kind, i, here[i], there[i])
		}
	}
}

// attrDiff says how a and b differ, if they do.
func attrDiff(a, b *graph.Attr) string {
	if a.Kind != b.Kind {
		return fmt.Sprintf("kind %d here, %d there", a.Kind, b.Kind)
	}
	same := true
	switch a.Kind {
	case graph.AttrFloat:
		same = math.Float32bits(a.F) == math.Float32bits(b.F)
	case graph.AttrInt:
		same = a.I == b.I
	case graph.AttrString:
		same = a.S == b.S
	case graph.AttrFloats:
		same = slices.EqualFunc(a.Floats, b.Floats, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
	case graph.AttrInts:
		same = slices.Equal(a.Ints, b.Ints)
	case graph.AttrStrings:
		same = slices.Equal(a.Strings, b.Strings)
	case graph.AttrTensor:
		return tensorDiff(a.T, b.T)
	}
	if !same {
		return "another value"
	}
	return ""
}

func tensorDiff(a, b *tensor.Tensor) string {
	if a == nil {
		return "no tensor here"
	}
	if a.DType() != b.DType() || tensor.ShapeString(a.Shape()) != tensor.ShapeString(b.Shape()) {
		return fmt.Sprintf("%v here, %v there", a, b)
	}
	if !a.Equal(b) {
		return "another value"
	}
	return ""
}

func (r *Report) initializers(m *graph.Model, b *Backend, dropped map[string]bool) {
	there := map[string]gorgonia.Tensor{}
	for _, n := range b.nodes {
		if n.declared != nil {
			there[n.v.name] = n.declared
		}
	}
	for _, v := range m.Graph.Initializers() {
		t := there[v.Name()]
		delete(there, v.Name())
		if dropped[v.Name()] || v.Sparse != nil {
			continue
		}
		r.Initializers++
		if t == nil {
			r.differ("initializer %q only here", v.Name())
			continue
		}
		c, err := fromGorgonia(t)
		if err != nil {
			r.unread(fmt.Sprintf("initializer %q", v.Name()), err)
			r.Initializers--
		} else if diff := tensorDiff(v.Const, c); diff != "" {
			r.differ("initializer %q: %s", v.Name(), diff)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		r.differ("initializer %q only there", name)
	}
}

// stripper takes out of a serialized model what makes onnx-go's decoder fail or
// allocate at the file's word, and lists it. It reads the wire format by itself,
// so that the check does not depend on our loader. Field numbers are those of
// onnx.proto.
type stripper struct {
	report  *Report
	probe   bool             // decode each tensor to see whether onnx-go can
	types   map[int64]string // what is wrong with an element type
	tensors map[string]bool  // initializers that were dropped
	attrs   map[attrKey]bool // attributes that were dropped
	nodes   int
}

// attrKey is an attribute of the node of that index.
type attrKey struct {
	node int
	name string
}

func nodePlace(i int, label string) string {
	return fmt.Sprintf("node %d (%s)", i, strconv.Quote(label))
}

func (s *stripper) model(data []byte) ([]byte, error) {
	s.tensors, s.attrs, s.nodes = map[string]bool{}, map[attrKey]bool{}, 0
	return rewrite(data, func(f field) ([]byte, bool, error) {
		switch f.num {
		case 7: // graph
			g, err := s.graph(f.data)
			return g, true, err
		case 25: // functions
			s.drop("function "+strconv.Quote(f.text(1)), "onnx-go knows no functions")
		}
		return nil, false, nil
	})
}

func (s *stripper) drop(what, why string) {
	s.report.Unread = append(s.report.Unread, Unread{what, why})
}

func (s *stripper) graph(data []byte) ([]byte, error) {
	return rewrite(data, func(f field) ([]byte, bool, error) {
		switch f.num {
		case 1: // node
			n, err := s.node(f)
			s.nodes++
			return n, true, err
		case 5: // initializer
			name := f.text(8)
			if why := s.unreadable(f.data); why != "" {
				s.drop("initializer "+strconv.Quote(name), why)
				s.tensors[name] = true
				return nil, true, nil
			}
		case 11:
			v, err := s.interfaceValue("input", f)
			return v, true, err
		case 12:
			v, err := s.interfaceValue("output", f)
			return v, true, err
		case 13: // value_info
			return nil, true, nil
		case 15:
			s.drop("sparse initializer", "onnx-go knows none")
		}
		return nil, false, nil
	})
}

// interfaceValue takes the type out of an input or output.
func (s *stripper) interfaceValue(kind string, v field) ([]byte, error) {
	if why := s.unknownType(v); why != "" {
		s.drop(kind+" "+strconv.Quote(v.text(1)), why)
	}
	return rewrite(v.data, func(f field) ([]byte, bool, error) { return nil, f.num == 2, nil })
}

// unreadable says why onnx-go cannot read a TensorProto, if it is to be tried.
func (s *stripper) unreadable(data []byte) string {
	if !s.probe {
		return ""
	}
	if err := try(data); err != nil {
		return strings.TrimPrefix(err.Error(), "<nil>: ")
	}
	return ""
}

func try(data []byte) (err error) {
	defer recovered(&err)
	_, err = onnx.NewTensor(data)
	return err
}

func (s *stripper) node(n field) ([]byte, error) {
	label := n.text(3)
	for f := range fields(n.data) {
		if f.num == 2 && label == "" {
			label = string(f.data) // of its first output that is not omitted
		}
	}
	return rewrite(n.data, func(f field) ([]byte, bool, error) {
		if f.num != 5 { // attribute
			return nil, false, nil
		}
		name, why := f.text(1), ""
		switch kind := f.int(20); kind {
		case 0:
			why = "its type is left out"
			if f.text(21) != "" {
				why = "onnx-go knows no references to attributes of functions"
			}
		case 4: // tensor
			for sub := range fields(f.data) {
				if sub.num == 5 {
					why = s.unreadable(sub.data)
				}
			}
		case 1, 2, 3, 6, 7, 8:
		case 5, 10:
			why = "onnx-go reads no nested graphs"
		default:
			why = fmt.Sprintf("onnx-go reads no attributes of kind %d", kind)
		}
		if why == "" {
			return nil, false, nil
		}
		s.drop(fmt.Sprintf("%s: attribute %q", nodePlace(s.nodes, label), name), why)
		s.attrs[attrKey{s.nodes, name}] = true
		return nil, true, nil
	})
}

// unknownType says what onnx-go's decoder has against the type of a
// ValueInfoProto, by handing it a model of one node whose output has that type.
func (s *stripper) unknownType(v field) string {
	typ, ok := v.sub(2)
	if !ok {
		return ""
	}
	elem := int64(0)
	if t, ok := typ.sub(1); ok {
		elem = t.int(1)
	}
	why, ok := s.types[elem]
	if !ok {
		tensorType := append([]byte{1 << 3}, binary.AppendUvarint(nil, uint64(elem))...)
		info := message(message(nil, 1, []byte("y")), 2, message(nil, 1, tensorType))
		node := message(message(message(nil, 1, []byte("x")), 2, []byte("y")), 4, []byte("Identity"))
		if _, err := decode(message(nil, 7, message(message(nil, 1, node), 12, info))); err != nil {
			why = fmt.Sprintf("no type of onnx-go: %s", tensor.DType(elem))
			if elem == 0 {
				why = "no tensor, and onnx-go has nothing else"
			}
		}
		s.types[elem] = why
	}
	return why
}

// message appends a length-delimited field.
func message(to []byte, num uint64, data []byte) []byte {
	return append(binary.AppendUvarint(binary.AppendUvarint(to, num<<3|2), uint64(len(data))), data...)
}

// field is one field of a message in protobuf's wire format.
type field struct {
	num   uint64
	value uint64 // of a varint
	data  []byte // of a length-delimited field
	raw   []byte // with the tag
}

// fields yields the fields of a message up to the end or the first damage,
// which it yields as a field of number 0 with the rest of the message.
func fields(b []byte) func(yield func(field) bool) {
	return func(yield func(field) bool) {
		for len(b) > 0 {
			tag, n := binary.Uvarint(b)
			f := field{num: tag >> 3}
			end := n
			if n > 0 {
				rest := b[n:]
				switch tag & 7 {
				case 0:
					v, k := binary.Uvarint(rest)
					f.value, end = v, n+k
					if k <= 0 {
						end = 0
					}
				case 1:
					end = n + 8
				case 2:
					size, k := binary.Uvarint(rest)
					if k <= 0 || size > uint64(len(rest)-k) {
						end = 0
						break
					}
					end = n + k + int(size)
					f.data = b[n+k : end : end]
				case 5:
					end = n + 4
				default:
					end = 0
				}
			}
			if end <= 0 || end > len(b) || f.num == 0 {
				yield(field{raw: b})
				return
			}
			f.raw, b = b[:end:end], b[end:]
			if !yield(f) {
				return
			}
		}
	}
}

// sub returns the last length-delimited field of that number.
func (f field) sub(num uint64) (last field, ok bool) {
	for s := range fields(f.data) {
		if s.num == num && s.data != nil {
			last, ok = s, true
		}
	}
	return last, ok
}

func (f field) text(num uint64) string {
	s, _ := f.sub(num)
	return string(s.data)
}

func (f field) int(num uint64) (v int64) {
	for s := range fields(f.data) {
		if s.num == num {
			v = int64(s.value)
		}
	}
	return v
}

// rewrite returns the message with the fields for which edit returns true
// replaced by its data, or dropped where that is nil.
func rewrite(msg []byte, edit func(field) (data []byte, replace bool, err error)) ([]byte, error) {
	out := make([]byte, 0, len(msg))
	for f := range fields(msg) {
		if f.num == 0 {
			return nil, fmt.Errorf("damaged at byte %d from the end of a message of %d", len(f.raw), len(msg))
		}
		data, replace, err := edit(f)
		switch {
		case err != nil:
			return nil, err
		case !replace:
			out = append(out, f.raw...)
		case data != nil:
			out = message(out, f.num, data)
		}
	}
	return out, nil
}

// String says in one line how much was compared and what came of it.
func (r *Report) String() string {
	return fmt.Sprintf("%d nodes, %d edges, %d attributes and %d initializers compared: %d differences; %d things that onnx-go cannot read",
		r.Nodes, r.Edges, r.Attributes, r.Initializers, len(r.Differences), len(r.Unread))
}
