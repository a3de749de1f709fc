package tensor

import "fmt"

// DType is an element type. The numeric values are those of
// TensorProto.DataType in the ONNX specification, so that a DType is what the
// file holds.
type DType uint8

// Element types of the ONNX specification up to opset 28.
const (
	Undefined      DType = 0
	Float32        DType = 1
	Uint8          DType = 2
	Int8           DType = 3
	Uint16         DType = 4
	Int16          DType = 5
	Int32          DType = 6
	Int64          DType = 7
	String         DType = 8
	Bool           DType = 9
	Float16        DType = 10
	Float64        DType = 11
	Uint32         DType = 12
	Uint64         DType = 13
	Complex64      DType = 14
	Complex128     DType = 15
	BFloat16       DType = 16
	Float8E4M3FN   DType = 17
	Float8E4M3FNUZ DType = 18
	Float8E5M2     DType = 19
	Float8E5M2FNUZ DType = 20
	Uint4          DType = 21
	Int4           DType = 22
	Float4E2M1     DType = 23
	Float8E8M0     DType = 24
	Uint2          DType = 25
	Int2           DType = 26

	numDTypes = 27
)

type class uint8

const (
	classNone class = iota
	classFloat
	classInt
	classUint
	classBool
	classComplex
	classString
)

type dtypeInfo struct {
	name  string
	bits  int
	class class
}

// The names are those of the ONNX textual syntax.
var dtypes = [numDTypes]dtypeInfo{
	Undefined:      {"undefined", 0, classNone},
	Float32:        {"float", 32, classFloat},
	Uint8:          {"uint8", 8, classUint},
	Int8:           {"int8", 8, classInt},
	Uint16:         {"uint16", 16, classUint},
	Int16:          {"int16", 16, classInt},
	Int32:          {"int32", 32, classInt},
	Int64:          {"int64", 64, classInt},
	String:         {"string", 0, classString},
	Bool:           {"bool", 8, classBool},
	Float16:        {"float16", 16, classFloat},
	Float64:        {"double", 64, classFloat},
	Uint32:         {"uint32", 32, classUint},
	Uint64:         {"uint64", 64, classUint},
	Complex64:      {"complex64", 64, classComplex},
	Complex128:     {"complex128", 128, classComplex},
	BFloat16:       {"bfloat16", 16, classFloat},
	Float8E4M3FN:   {"float8e4m3fn", 8, classFloat},
	Float8E4M3FNUZ: {"float8e4m3fnuz", 8, classFloat},
	Float8E5M2:     {"float8e5m2", 8, classFloat},
	Float8E5M2FNUZ: {"float8e5m2fnuz", 8, classFloat},
	Uint4:          {"uint4", 4, classUint},
	Int4:           {"int4", 4, classInt},
	Float4E2M1:     {"float4e2m1", 4, classFloat},
	Float8E8M0:     {"float8e8m0", 8, classFloat},
	Uint2:          {"uint2", 2, classUint},
	Int2:           {"int2", 2, classInt},
}

// Valid reports whether d is an element type that this package knows and that
// a tensor can have.
func (d DType) Valid() bool { return d > Undefined && d < numDTypes }

// String returns the name of d in the ONNX textual syntax, such as "float" or
// "int8".
func (d DType) String() string {
	if d < numDTypes {
		return dtypes[d].name
	}
	return fmt.Sprintf("dtype(%d)", uint8(d))
}

// ParseDType returns the element type with the given name in the ONNX textual
// syntax and whether there is one.
func ParseDType(name string) (DType, bool) {
	for d := Float32; d < numDTypes; d++ {
		if dtypes[d].name == name {
			return d, true
		}
	}
	return Undefined, false
}

// Bits returns the width of one element in bits: 2 and 4 for packed types, 0
// for strings and unknown types.
func (d DType) Bits() int {
	if d < numDTypes {
		return dtypes[d].bits
	}
	return 0
}

// IsFloat reports whether d is a floating-point type of any width.
func (d DType) IsFloat() bool { return d < numDTypes && dtypes[d].class == classFloat }

// IsInt reports whether d is a signed or unsigned integer type; bool is not.
func (d DType) IsInt() bool {
	return d < numDTypes && (dtypes[d].class == classInt || dtypes[d].class == classUint)
}

// IsSigned reports whether d is a signed integer type.
func (d DType) IsSigned() bool { return d < numDTypes && dtypes[d].class == classInt }

// IntRange returns the smallest and largest value of an integer type of at
// most 32 bits, and false for every other type.
func (d DType) IntRange() (lo, hi int64, ok bool) {
	if !d.IsInt() || d.Bits() > 32 {
		return 0, 0, false
	}
	if d.IsSigned() {
		return -1 << (d.Bits() - 1), 1<<(d.Bits()-1) - 1, true
	}
	return 0, 1<<d.Bits() - 1, true
}

// Bytes returns the number of bytes that n elements of type d take when
// packed as in TensorProto.raw_data: elements of 2 and 4 bits share bytes,
// first element in the low bits.
func (d DType) Bytes(n int) int { return (n*d.Bits() + 7) / 8 }
