package graph

import "github.com/onnxq/onnxq/tensor"

// AttrKind is the kind of an attribute; the numeric values are those of
// AttributeProto.AttributeType.
type AttrKind uint8

// Attribute kinds.
const (
	AttrUndefined     AttrKind = 0
	AttrFloat         AttrKind = 1
	AttrInt           AttrKind = 2
	AttrString        AttrKind = 3
	AttrTensor        AttrKind = 4
	AttrGraph         AttrKind = 5
	AttrFloats        AttrKind = 6
	AttrInts          AttrKind = 7
	AttrStrings       AttrKind = 8
	AttrTensors       AttrKind = 9
	AttrGraphs        AttrKind = 10
	AttrSparseTensor  AttrKind = 11
	AttrSparseTensors AttrKind = 12
	AttrType          AttrKind = 13
	AttrTypes         AttrKind = 14
)

// Attr is a named attribute of a node, or the default of a function's
// attribute. Exactly the field that belongs to Kind is meaningful. With
// RefName set, the attribute stands for the calling node's attribute of that
// name, and no value field is meaningful.
type Attr struct {
	Name    string
	Kind    AttrKind
	F       float32
	I       int64
	S       string // bytes, not necessarily UTF-8
	T       *tensor.Tensor
	G       *Graph
	Sparse  *SparseTensor
	Type    *Type
	Floats  []float32
	Ints    []int64
	Strings []string
	Tensors []*tensor.Tensor
	Graphs  []*Graph
	Sparses []*SparseTensor
	Types   []Type
	RefName string
	Extra   []byte // unmodelled wire bytes

	// NoType and NoValue say that the file leaves the type or a zero value
	// out, as old and proto3 encoders do. They change nothing but what package
	// onnxfile writes; ONNX Runtime, and so package validate, refuses NoType.
	NoType, NoValue bool
}

// SparseTensor is a tensor in coordinate form (SparseTensorProto): Values
// [NNZ], Indices [NNZ] (linear) or [NNZ, rank], Dims the dense shape.
type SparseTensor struct {
	Values, Indices *tensor.Tensor
	Dims            []int64
	Extra           []byte // unmodelled wire bytes
}

// Constructors for the common attribute kinds.

// Float returns a float attribute.
func Float(name string, v float32) *Attr { return &Attr{Name: name, Kind: AttrFloat, F: v} }

// Int returns an integer attribute.
func Int(name string, v int64) *Attr { return &Attr{Name: name, Kind: AttrInt, I: v} }

// String returns a string attribute.
func String(name, v string) *Attr { return &Attr{Name: name, Kind: AttrString, S: v} }

// Ints returns a list-of-integers attribute.
func Ints(name string, v ...int64) *Attr { return &Attr{Name: name, Kind: AttrInts, Ints: v} }

// Floats returns a list-of-floats attribute.
func Floats(name string, v ...float32) *Attr { return &Attr{Name: name, Kind: AttrFloats, Floats: v} }

// TensorAttr returns a tensor attribute.
func TensorAttr(name string, t *tensor.Tensor) *Attr {
	return &Attr{Name: name, Kind: AttrTensor, T: t}
}

// Subgraphs returns the graphs that the attribute holds, if any.
func (a *Attr) Subgraphs() []*Graph {
	switch a.Kind {
	case AttrGraph:
		if a.G != nil {
			return []*Graph{a.G}
		}
	case AttrGraphs:
		return a.Graphs
	}
	return nil
}
