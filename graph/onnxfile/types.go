package onnxfile

import (
	"bytes"
	"errors"
	"fmt"
	"unicode"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// typeField is the field of TypeProto's oneof that each kind stands for.
var typeField = [...]protowire.Number{
	graph.KindTensor: 1, graph.KindSequence: 4, graph.KindMap: 5, graph.KindOpaque: 7,
	graph.KindSparseTensor: 8, graph.KindOptional: 9,
}

// typeExtra is the content of graph.Type.Extra: unmodelled fields of TypeProto,
// of the message in its oneof, and of TensorShapeProto. It is packed as a
// message with the fields 1 to 3, and 4 if there is a TypeProto although its
// kind is unknown.
type typeExtra struct {
	typ, inner, shape []byte
	empty             bool
}

func (x typeExtra) pack() []byte {
	var b []byte
	for i, p := range [][]byte{x.typ, x.inner, x.shape} {
		if p != nil {
			b = protowire.AppendTag(b, protowire.Number(i+1), protowire.BytesType)
			b = protowire.AppendBytes(b, p)
		}
	}
	if x.empty {
		b = protowire.AppendTag(b, 4, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	return b
}

func unpackTypeExtra(b []byte) (x typeExtra) {
	s := scan(b)
	for s.next() {
		switch s.tag {
		case 1<<3 | blob:
			x.typ = s.b
		case 2<<3 | blob:
			x.inner = s.b
		case 3<<3 | blob:
			x.shape = s.b
		case 4<<3 | vint:
			x.empty = true
		}
	}
	return x
}

// typ decodes a TypeProto.
func (l *loader) typ(b []byte) (graph.Type, error) {
	var t graph.Type
	if err := l.enter(); err != nil {
		return t, err
	}
	defer l.leave()
	if err := l.charge(1); err != nil {
		return t, err
	}
	var x typeExtra
	var inner []byte
	s := scan(b)
	for s.next() {
		kind := graph.KindUnknown
		if s.tag&7 == blob {
			for k, f := range typeField {
				if f != 0 && f == s.num() {
					kind = graph.Kind(k)
				}
			}
		}
		switch {
		case kind == graph.KindUnknown:
			s.keep()
		case t.Kind != graph.KindUnknown:
			return t, errors.New("a type that is two things at once")
		default:
			t.Kind, inner = kind, s.b
		}
	}
	if s.err != nil {
		return t, s.err
	}
	x.typ = s.extra()
	x.empty = t.Kind == graph.KindUnknown

	var shape []byte
	hasShape := false
	elem := func(u uint64) error {
		if int64(u) < 0 || u > 255 {
			return fmt.Errorf("unknown element type %d", int64(u))
		}
		t.Elem = tensor.DType(u)
		return nil
	}
	nested := func(b []byte) error {
		if t.Inner != nil {
			return errors.New("two element types")
		}
		in, err := l.typ(b)
		t.Inner = &in
		return err
	}
	var err error
	s = scan(inner)
	for s.next() && err == nil {
		isTensor := t.Kind == graph.KindTensor || t.Kind == graph.KindSparseTensor
		switch {
		case (isTensor || t.Kind == graph.KindMap) && s.tag == 1<<3|vint:
			if err = elem(s.u); s.u == 0 {
				s.keep()
			}
		case isTensor && s.tag == 2<<3|blob:
			if hasShape {
				err = errors.New("two shapes")
			}
			shape, hasShape = s.b, true
		case t.Kind == graph.KindMap && s.tag == 2<<3|blob:
			err = nested(s.b)
		case (t.Kind == graph.KindSequence || t.Kind == graph.KindOptional) && s.tag == 1<<3|blob:
			err = nested(s.b)
		default:
			s.keep()
		}
	}
	if err == nil {
		err = s.err
	}
	if err != nil {
		return t, err
	}
	x.inner = s.extra()
	if hasShape {
		if t.Shape, x.shape, err = l.shape(shape); err != nil {
			return t, err
		}
	}
	t.Extra = x.pack()
	return t, nil
}

func (l *loader) shape(b []byte) (graph.Shape, []byte, error) {
	shape := graph.Shape{}
	s := scan(b)
	for s.next() {
		if s.tag != 1<<3|blob {
			s.keep()
			continue
		}
		if len(shape) >= l.limits.Rank {
			return nil, nil, &LimitError{"rank", int64(l.limits.Rank)}
		}
		if err := l.charge(1); err != nil {
			return nil, nil, err
		}
		var d graph.Dim
		f := scan(s.b)
		for f.next() {
			switch {
			case f.tag == 1<<3|vint:
				// Negative sizes occur for "unknown".
				d.Sym = ""
				if d.Known = int64(f.u) >= 0; d.Known {
					d.Size = int64(f.u)
				} else {
					f.keep()
				}
			case f.tag == 2<<3|blob:
				d.Known, d.Size = false, 0
				// "?" and the like occur for several sizes at once.
				if d.Sym = ""; bytes.ContainsFunc(f.b, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) {
					d.Sym = l.intern(f.b)
				} else {
					f.keep()
				}
			default:
				f.keep()
			}
		}
		if f.err != nil {
			return nil, nil, f.err
		}
		d.Extra = f.extra()
		shape = append(shape, d)
	}
	return shape, s.extra(), s.err
}

type valueInfo struct {
	name, doc string
	typ       graph.Type
	extra     []byte
}

func (l *loader) valueInfo(b []byte) (vi valueInfo, err error) {
	s := scan(b)
	hasType := false
	for s.next() && err == nil {
		switch s.tag {
		case 1<<3 | blob:
			vi.name = string(s.b)
		case 2<<3 | blob:
			if hasType {
				err = errors.New("two types")
			} else {
				vi.typ, err = l.typ(s.b)
				hasType = true
			}
		case 3<<3 | blob:
			s.str(&vi.doc)
		default:
			s.keep()
		}
	}
	if err == nil {
		err = s.err
	}
	vi.extra = s.extra()
	if err != nil {
		return vi, l.fail(vi.name, err)
	}
	return vi, nil
}
