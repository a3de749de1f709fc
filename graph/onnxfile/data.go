package onnxfile

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Datum is a value outside of a model, such as an input or output of a test
// data set. Which fields count depends on Kind, which is a tensor, sparse
// tensor, sequence, map or optional.
type Datum struct {
	Name   string
	Kind   graph.Kind
	Tensor *tensor.Tensor
	Sparse *graph.SparseTensor
	Elem   graph.Kind     // of the items of a sequence or optional; may be unknown where there are none
	Items  []*Datum       // of a sequence; none or one of an optional; the values of a map, by key
	Keys   *tensor.Tensor // of a map: a vector of integers or strings
}

// The numbers of SequenceProto.DataType and OptionalProto.DataType are the
// indices of this list, and the fields that hold items of a kind follow them
// in the same order from 3 on (onnx-data.proto).
var itemKinds = [...]graph.Kind{graph.KindUnknown, graph.KindTensor, graph.KindSparseTensor, graph.KindSequence, graph.KindMap, graph.KindOptional}

func itemNumber(k graph.Kind) int {
	for i, o := range itemKinds {
		if o == k {
			return i
		}
	}
	return 0
}

// DecodeDatum decodes the protobuf message that holds a value of the given
// kind: TensorProto, SparseTensorProto, SequenceProto, MapProto or
// OptionalProto. Tensors alias b where they can; external data is an error.
func DecodeDatum(kind graph.Kind, b []byte) (*Datum, error) {
	d, err := newLoader(nil).datum(kind, b)
	if err != nil {
		return nil, classify("", err)
	}
	return d, nil
}

func (l *loader) datum(kind graph.Kind, b []byte) (*Datum, error) {
	if err := l.enter(); err != nil {
		return nil, err
	}
	defer l.leave()
	d := &Datum{Kind: kind}
	switch kind {
	case graph.KindTensor:
		t, st, err := l.tensor(b)
		if err != nil {
			return nil, err
		}
		d.Tensor, d.Name = t, st.name
		return d, nil
	case graph.KindSparseTensor:
		t, name, err := l.sparse(b)
		d.Sparse, d.Name = t, name
		return d, err
	case graph.KindSequence, graph.KindOptional:
		return d, l.items(d, b)
	case graph.KindMap:
		return d, l.mapDatum(d, b)
	}
	return nil, fmt.Errorf("values of kind %d have no file form", kind)
}

func (l *loader) items(d *Datum, b []byte) error {
	if err := l.charge(1); err != nil {
		return err
	}
	s := scan(b)
	for s.next() {
		switch n := int(s.num()); {
		case s.tag == 1<<3|blob:
			d.Name = string(s.b)
		case s.tag == 2<<3|vint:
			if s.u >= uint64(len(itemKinds)) {
				return fmt.Errorf("unknown kind %d of elements", s.u)
			}
			d.Elem = itemKinds[s.u]
		case s.tag&7 == blob && n >= 3 && n < 3+len(itemKinds)-1:
			item, err := l.datum(itemKinds[n-2], s.b)
			if err != nil {
				return fmt.Errorf("element %d: %w", len(d.Items), err)
			}
			d.Items = append(d.Items, item)
		}
	}
	if s.err != nil {
		return s.err
	}
	for _, item := range d.Items {
		if d.Elem == graph.KindUnknown {
			d.Elem = item.Kind
		}
		if item.Kind != d.Elem {
			return errors.New("elements of a kind other than declared")
		}
	}
	if d.Kind == graph.KindOptional && len(d.Items) > 1 {
		return errors.New("an optional with more than one value")
	}
	return nil
}

func (l *loader) mapDatum(d *Datum, b []byte) error {
	var ints []int64
	var strs []string
	var values *Datum
	keyType := tensor.Undefined
	var err error
	s := scan(b)
	for s.next() && err == nil {
		switch s.tag {
		case 1<<3 | blob:
			d.Name = string(s.b)
		case 2<<3 | vint:
			keyType = tensor.DType(min(s.u, 255))
		case 3<<3 | vint:
			ints = append(ints, int64(s.u))
		case 3<<3 | blob:
			ints, err = varints(ints, s.b)
		case 4<<3 | blob:
			strs = append(strs, string(s.b))
		case 5<<3 | blob:
			values, err = l.datum(graph.KindSequence, s.b)
		}
	}
	if err == nil {
		err = s.err
	}
	if err != nil {
		return err
	}
	if keyType == tensor.String {
		d.Keys = tensor.FromStrings([]int{len(strs)}, strs)
	} else {
		if !keyType.IsInt() {
			return fmt.Errorf("keys of type %v", keyType)
		}
		bits := keyType.Bits()
		d.Keys = tensor.New(keyType, len(ints))
		for i, v := range ints {
			if bits < 8 || bits < 64 && (v < -1<<(bits-1) || v >= 1<<bits) {
				return fmt.Errorf("key %d is out of the range of %v", v, keyType)
			}
			for k := range bits / 8 {
				d.Keys.Bytes()[i*bits/8+k] = byte(v >> (8 * k))
			}
		}
	}
	if values != nil {
		d.Items, d.Elem = values.Items, values.Elem
	}
	if len(d.Items) != d.Keys.Len() {
		return fmt.Errorf("%d keys and %d values", d.Keys.Len(), len(d.Items))
	}
	return nil
}

// EncodeDatum encodes d as the message that DecodeDatum reads.
func EncodeDatum(d *Datum) []byte {
	return encodeBytes(func(e *encoder) { e.datum(d) })
}

func (e *encoder) datum(d *Datum) {
	switch d.Kind {
	case graph.KindTensor:
		e.freshTensor(d.Tensor, d.Name, nil)
	case graph.KindSparseTensor:
		e.sparse(d.Sparse, &d.Name)
	case graph.KindSequence, graph.KindOptional:
		e.items(d)
	case graph.KindMap:
		if d.Name != "" {
			e.string(1, d.Name)
		}
		e.varint(2, int64(d.Keys.DType()))
		item, n := intElements(d.Keys)
		for i := range n {
			e.varint(3, item(i))
		}
		for _, s := range d.Keys.Strings() {
			e.string(4, s)
		}
		e.message(5, func() { e.items(d) })
	}
}

// intElements returns a function that returns an element of an integer
// tensor, and how many there are; none of strings.
func intElements(t *tensor.Tensor) (func(i int) int64, int) {
	d := t.DType()
	if d == tensor.String {
		return nil, 0
	}
	bits, b := d.Bits(), t.Bytes()
	return func(i int) int64 {
		var u uint64
		for k := bits/8 - 1; k >= 0; k-- {
			u = u<<8 | uint64(b[i*bits/8+k])
		}
		if d.IsSigned() {
			return int64(u<<(64-bits)) >> (64 - bits)
		}
		return int64(u)
	}, t.Len()
}

func (e *encoder) items(d *Datum) {
	if d.Name != "" && d.Kind != graph.KindMap {
		e.string(1, d.Name)
	}
	n := itemNumber(d.Elem)
	e.varint(2, int64(n))
	for _, item := range d.Items {
		e.message(protowire.Number(n+2), func() { e.datum(item) })
	}
}
