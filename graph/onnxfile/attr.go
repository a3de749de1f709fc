package onnxfile

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// attrField is the field of AttributeProto that holds the value of each kind.
var attrField = [...]protowire.Number{
	graph.AttrFloat: 2, graph.AttrInt: 3, graph.AttrString: 4, graph.AttrTensor: 5, graph.AttrGraph: 6,
	graph.AttrFloats: 7, graph.AttrInts: 8, graph.AttrStrings: 9, graph.AttrTensors: 10, graph.AttrGraphs: 11,
	graph.AttrSparseTensor: 22, graph.AttrSparseTensors: 23, graph.AttrType: 14, graph.AttrTypes: 15,
}

// attrKind returns the kind whose value the field with the given tag holds.
func attrKind(tag uint64) graph.AttrKind {
	for k, f := range attrField {
		if f == 0 || uint64(f) != tag>>3 {
			continue
		}
		ok := tag&7 == blob
		switch k := graph.AttrKind(k); k {
		case graph.AttrFloat:
			ok = tag&7 == fx32
		case graph.AttrInt:
			ok = tag&7 == vint
		case graph.AttrFloats:
			ok = ok || tag&7 == fx32
		case graph.AttrInts:
			ok = ok || tag&7 == vint
		}
		if ok {
			return graph.AttrKind(k)
		}
	}
	return graph.AttrUndefined
}

func (l *loader) attrs(list [][]byte, sc *scope) ([]*graph.Attr, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make([]*graph.Attr, len(list))
	var seen map[string]bool
	if len(list) > 16 {
		seen = make(map[string]bool, len(list))
	}
	for i, b := range list {
		a, err := l.attr(b, sc)
		if err != nil {
			return nil, err
		}
		dup := seen[a.Name]
		if seen != nil {
			seen[a.Name] = true
		} else {
			dup = slices.ContainsFunc(out[:i], func(o *graph.Attr) bool { return o.Name == a.Name })
		}
		if dup {
			return nil, l.errorf("", "attribute %q is given twice", a.Name)
		}
		out[i] = a
	}
	return out, nil
}

// attr decodes an AttributeProto. Subgraphs see the names of sc. A value field
// that does not belong to the attribute's type is kept in Extra.
func (l *loader) attr(b []byte, sc *scope) (*graph.Attr, error) {
	if err := l.enter(); err != nil {
		return nil, l.fail("", err)
	}
	defer l.leave()
	a := &graph.Attr{}
	var lowest graph.AttrKind // of the value field of the lowest number, for files that leave the type out
	var kind int64
	s := scan(b)
	for s.next() {
		switch s.tag {
		case 1<<3 | blob:
			a.Name = l.intern(s.b)
		case 20<<3 | vint:
			kind = int64(int32(s.u))
		case 21<<3 | blob:
			a.RefName = l.intern(s.b)
		default:
			if k := attrKind(s.tag); k != graph.AttrUndefined && (lowest == graph.AttrUndefined || attrField[k] < attrField[lowest]) {
				lowest = k
			}
		}
	}
	err := s.err
	switch {
	case err != nil:
	case a.Name == "":
		err = errors.New("it has no name")
	case kind < 0 || kind >= int64(len(attrField)):
		err = fmt.Errorf("unknown type %d", kind)
	case kind != 0:
		a.Kind = graph.AttrKind(kind)
	default:
		a.Kind, a.NoType = lowest, true
	}
	if err == nil {
		err = l.charge(attrCost)
	}
	if err == nil {
		err = l.attrValue(a, b, sc)
	}
	if err != nil {
		if ge := new(graph.Error); errors.As(err, &ge) {
			return nil, err
		}
		return nil, l.fail("", fmt.Errorf("attribute %q: %w", a.Name, err))
	}
	return a, nil
}

func (l *loader) attrValue(a *graph.Attr, b []byte, sc *scope) error {
	own := attrField[a.Kind]
	if a.RefName != "" {
		own = 0
	}
	values := 0
	var err error
	s := scan(b)
	for s.next() && err == nil {
		if own != 0 && s.num() == own {
			var ok bool
			if ok, err = l.attrField(a, &s, sc); ok {
				values++
				continue
			}
		}
		switch {
		case s.tag == 1<<3|blob && len(s.b) > 0:
		case s.tag == 20<<3|vint && uint32(s.u) != 0:
		case s.tag == 21<<3|blob && len(s.b) > 0:
		default:
			s.keep()
		}
	}
	if err == nil {
		err = s.err
	}
	a.Extra = s.extra()
	a.NoValue = values == 0
	if err != nil {
		return err
	}
	switch a.Kind {
	case graph.AttrTensor, graph.AttrGraph, graph.AttrSparseTensor, graph.AttrType:
		if values > 1 {
			return errors.New("it holds two values")
		}
		if values == 0 && a.RefName == "" {
			return errors.New("it has no value")
		}
	}
	return nil
}

// attrField takes the current field of s as a value of a, or an element of
// it, and reports whether its wire type fits.
func (l *loader) attrField(a *graph.Attr, s *scanner, sc *scope) (bool, error) {
	typ := s.tag & 7
	var err error
	switch {
	case a.Kind == graph.AttrFloat && typ == fx32:
		a.F = math.Float32frombits(uint32(s.u))
	case a.Kind == graph.AttrInt && typ == vint:
		a.I = int64(s.u)
	case a.Kind == graph.AttrString && typ == blob:
		a.S = string(s.b)
	case a.Kind == graph.AttrFloats && typ == fx32:
		a.Floats = append(a.Floats, math.Float32frombits(uint32(s.u)))
	case a.Kind == graph.AttrFloats && typ == blob:
		a.Floats, err = fixed32s(a.Floats, s.b)
	case a.Kind == graph.AttrInts && typ == vint:
		a.Ints = append(a.Ints, int64(s.u))
	case a.Kind == graph.AttrInts && typ == blob:
		a.Ints, err = varints(a.Ints, s.b)
	case typ != blob:
		return false, nil
	case a.Kind == graph.AttrStrings:
		a.Strings = append(a.Strings, string(s.b))
		err = l.charge(1)
	case a.Kind == graph.AttrTensor:
		a.T, err = l.ownTensor(s.b)
	case a.Kind == graph.AttrTensors:
		var t *tensor.Tensor
		t, err = l.ownTensor(s.b)
		a.Tensors = append(a.Tensors, t)
	case a.Kind == graph.AttrSparseTensor:
		a.Sparse, _, err = l.sparse(s.b)
	case a.Kind == graph.AttrSparseTensors:
		var t *graph.SparseTensor
		t, _, err = l.sparse(s.b)
		a.Sparses = append(a.Sparses, t)
	case a.Kind == graph.AttrType:
		var t graph.Type
		t, err = l.typ(s.b)
		a.Type = &t
	case a.Kind == graph.AttrTypes:
		var t graph.Type
		t, err = l.typ(s.b)
		a.Types = append(a.Types, t)
	case a.Kind == graph.AttrGraph || a.Kind == graph.AttrGraphs:
		here := l.node
		l.places = append(l.places, place{here.label, here.op, a.Name})
		l.node = place{}
		g := l.model.NewGraph()
		err = l.graph(g, s.b, sc)
		l.places = l.places[:len(l.places)-1]
		l.node = here
		if a.Kind == graph.AttrGraph {
			a.G = g
		} else {
			a.Graphs = append(a.Graphs, g)
		}
	default:
		return false, nil
	}
	return true, err
}

// ownTensor decodes a tensor that is not an initializer.
func (l *loader) ownTensor(b []byte) (*tensor.Tensor, error) {
	t, st, err := l.tensor(b)
	if err != nil {
		if st != nil && st.name != "" {
			return nil, fmt.Errorf("tensor %q: %w", st.name, err)
		}
		return nil, err
	}
	l.origin.tensors[t] = st
	return t, nil
}

// sparse decodes a SparseTensorProto and returns the name of its values,
// which is that of a sparse initializer. Indices are checked against the
// dense shape.
func (l *loader) sparse(b []byte) (*graph.SparseTensor, string, error) {
	t := &graph.SparseTensor{}
	var name string
	var err error
	s := scan(b)
	for s.next() && err == nil {
		switch s.tag {
		case 1<<3 | blob:
			if t.Values != nil {
				return nil, name, errors.New("sparse tensor: two values")
			}
			if t.Values, err = l.ownTensor(s.b); err == nil {
				name = l.origin.tensors[t.Values].name
			}
		case 2<<3 | blob:
			if t.Indices != nil {
				return nil, name, errors.New("sparse tensor: two indices")
			}
			t.Indices, err = l.ownTensor(s.b)
		case 3<<3 | vint, 3<<3 | blob:
			t.Dims, err = l.dims(t.Dims, &s)
		default:
			s.keep()
		}
	}
	if err == nil {
		err = s.err
	}
	if err == nil {
		t.Extra = s.extra()
		err = checkSparse(t)
	}
	if err != nil {
		return nil, name, fmt.Errorf("sparse tensor: %w", err)
	}
	return t, name, nil
}

func checkSparse(t *graph.SparseTensor) error {
	if t.Values == nil || t.Indices == nil && t.Values.Len() > 0 {
		return errors.New("values or indices are missing")
	}
	dims := make([]int, len(t.Dims))
	for i, d := range t.Dims {
		if d < 0 || d > math.MaxInt {
			return fmt.Errorf("dimension %d of shape %v is negative or too large", i, t.Dims)
		}
		dims[i] = int(d)
	}
	total, ok := tensor.NumElements(dims)
	if !ok {
		return fmt.Errorf("shape %v has too many elements", t.Dims)
	}
	if t.Values.Rank() != 1 {
		return fmt.Errorf("values of rank %d, 1 needed", t.Values.Rank())
	}
	nnz := t.Values.Len()
	if t.Indices == nil {
		return nil
	}
	if t.Indices.DType() != tensor.Int64 {
		return fmt.Errorf("indices of type %v, int64 needed", t.Indices.DType())
	}
	idx := tensor.As[int64](t.Indices)
	shape := t.Indices.Shape()
	switch {
	case len(shape) == 1 && shape[0] == nnz:
		for i, v := range idx {
			if v < 0 || v >= int64(total) {
				return fmt.Errorf("index %d is %d, out of range for shape %v", i, v, t.Dims)
			}
		}
	case len(shape) == 2 && shape[0] == nnz && shape[1] == len(dims):
		for i, v := range idx {
			if k := i % len(dims); v < 0 || v >= t.Dims[k] {
				return fmt.Errorf("index %d is %d, out of range for dimension %d of shape %v", i/len(dims), v, k, t.Dims)
			}
		}
	default:
		return fmt.Errorf("indices of shape %v for %d values and shape %v", shape, nnz, t.Dims)
	}
	return nil
}
