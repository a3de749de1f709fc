package graph

import (
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

// Kind is the kind of an ONNX type (TypeProto's oneof).
type Kind uint8

// Kinds of types. KindUnknown is a type that the file does not state and
// inference has not found.
const (
	KindUnknown Kind = iota
	KindTensor
	KindSparseTensor
	KindSequence
	KindMap
	KindOptional
	KindOpaque
)

// Type is the type of a value. The zero Type is unknown. Types are values:
// copy them freely, never change a Shape or Inner in place.
type Type struct {
	Kind  Kind
	Elem  tensor.DType // of tensors; the key type of a map
	Shape Shape        // of tensors; nil when even the rank is unknown
	Inner *Type        // of sequences, optionals and map values
	// Extra holds the wire bytes of TypeProto and its parts that the fields
	// above do not model; meaningful to package onnxfile only.
	Extra []byte
}

// Shape is a list of dimensions; nil means that the rank is unknown, an empty
// non-nil Shape is that of a scalar.
type Shape []Dim

// Dim is one dimension: a size, a symbol that stands for the same size
// wherever it occurs in the model, or unknown.
type Dim struct {
	Size  int64  // meaningful if Known
	Sym   string // symbol, or "" if the dimension is known or nameless
	Known bool
	Extra []byte // unmodelled wire bytes (denotation)
}

// D returns a dimension of known size.
func D(n int64) Dim { return Dim{Size: n, Known: true} }

// Sym returns a symbolic dimension; an empty name is an unknown dimension.
func Sym(name string) Dim { return Dim{Sym: name} }

// Same reports whether a and b are certainly equal: the same size, or the
// same symbol.
func (a Dim) Same(b Dim) bool {
	if a.Known || b.Known {
		return a.Known && b.Known && a.Size == b.Size
	}
	return a.Sym != "" && a.Sym == b.Sym
}

// String returns the size, the symbol, or "?".
func (a Dim) String() string {
	switch {
	case a.Known:
		return strconv.FormatInt(a.Size, 10)
	case a.Sym != "":
		return a.Sym
	}
	return "?"
}

// ShapeOf returns a shape of known dimensions; without arguments, a scalar's.
func ShapeOf(dims ...int) Shape {
	s := make(Shape, len(dims))
	for i, d := range dims {
		s[i] = D(int64(d))
	}
	return s
}

// UnknownShape returns a shape of the given rank with unknown dimensions.
func UnknownShape(rank int) Shape { return make(Shape, rank) }

// Dims returns the sizes and true if every dimension is known.
func (s Shape) Dims() ([]int, bool) {
	if s == nil {
		return nil, false
	}
	dims := make([]int, len(s))
	for i, d := range s {
		if !d.Known {
			return nil, false
		}
		dims[i] = int(d.Size)
	}
	return dims, true
}

// Contradicts reports whether s and t cannot be shapes of one value: where both ranks
// are known, these or two known sizes of one axis differ.
func (s Shape) Contradicts(t Shape) bool {
	if s == nil || t == nil {
		return false
	}
	if len(s) != len(t) {
		return true
	}
	for i, d := range s {
		if e := t[i]; d.Known && e.Known && d.Size != e.Size {
			return true
		}
	}
	return false
}

// String formats the shape as "[N,3,224,224]"; an unknown rank is "[...]".
func (s Shape) String() string {
	if s == nil {
		return "[...]"
	}
	parts := make([]string, len(s))
	for i, d := range s {
		parts[i] = d.String()
	}
	return "[" + strings.Join(parts, ",") + "]"
}

// TensorType returns the type of a tensor.
func TensorType(elem tensor.DType, shape Shape) Type {
	return Type{Kind: KindTensor, Elem: elem, Shape: shape}
}

// TypeOf returns the type of t.
func TypeOf(t *tensor.Tensor) Type { return TensorType(t.DType(), ShapeOf(t.Shape()...)) }

// IsTensor reports whether t is a dense tensor type.
func (t Type) IsTensor() bool { return t.Kind == KindTensor }

// String formats the type in the manner of the ONNX textual syntax.
func (t Type) String() string {
	inner := "?"
	if t.Inner != nil {
		inner = t.Inner.String()
	}
	switch t.Kind {
	case KindTensor:
		return t.Elem.String() + t.Shape.String()
	case KindSparseTensor:
		return "sparse_tensor(" + t.Elem.String() + t.Shape.String() + ")"
	case KindSequence:
		return "seq(" + inner + ")"
	case KindMap:
		return "map(" + t.Elem.String() + ", " + inner + ")"
	case KindOptional:
		return "optional(" + inner + ")"
	case KindOpaque:
		return "opaque"
	}
	return "?"
}
