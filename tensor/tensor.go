// Package tensor holds the dense arrays of an ONNX model: an element type, a
// shape and bytes in the layout of TensorProto.raw_data (little endian, row
// major, elements of 2 and 4 bits packed from the low bits up).
//
// A Tensor aliases the bytes it was made from, so a tensor over a mapped file
// costs nothing until it is read. All hosts that this module supports are
// little endian; typed views are slices over the same memory.
package tensor

import (
	"fmt"
	"math"
	"math/bits"
	"unsafe"
)

// Tensor is a dense array. The zero value has no element type and must not be
// used. A tensor that is an initializer or is shared between goroutines is
// never written to.
type Tensor struct {
	dtype DType
	shape []int
	data  []byte
	strs  []string
	later *deferred // makes data; nil if there is data
}

// Number lists the Go types that a tensor can be viewed as.
type Number interface {
	~float32 | ~float64 | ~int8 | ~int16 | ~int32 | ~int64 |
		~uint8 | ~uint16 | ~uint32 | ~uint64 | ~bool | ~complex64 | ~complex128
}

// NumElements returns the product of the dimensions and whether it is defined:
// every dimension at least 0 and the product within an int.
func NumElements(shape []int) (int, bool) {
	n := 1
	zero := false
	for _, d := range shape {
		switch {
		case d < 0:
			return 0, false
		case d == 0:
			zero = true
			continue
		}
		hi, lo := bits.Mul64(uint64(n), uint64(d))
		if hi != 0 || lo > math.MaxInt {
			return 0, false
		}
		n = int(lo)
	}
	if zero {
		return 0, true
	}
	return n, true
}

// New returns a zeroed tensor whose data starts on a 64-byte boundary. It
// panics if the shape or element type is invalid: callers check shapes that
// come from outside with NumElements first.
func New(dtype DType, shape ...int) *Tensor {
	n, ok := NumElements(shape)
	if !ok || !dtype.Valid() {
		panic(fmt.Sprintf("tensor: New(%v, %v)", dtype, shape))
	}
	t := &Tensor{dtype: dtype, shape: append([]int{}, shape...)}
	if dtype == String {
		t.strs = make([]string, n)
		return t
	}
	t.data = AlignedBytes(dtype.Bytes(n))
	return t
}

// AlignedBytes returns n zeroed bytes that start on a 64-byte boundary, with
// up to 64 bytes of spare capacity behind them.
func AlignedBytes(n int) []byte {
	b := make([]byte, n+128)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & 63)
	return b[off : off+n : off+n+64]
}

// FromBytes returns a tensor that aliases data. The error says what is wrong
// if the length of data does not belong to the element type and shape.
func FromBytes(dtype DType, shape []int, data []byte) (*Tensor, error) {
	if !dtype.Valid() || dtype == String {
		return nil, fmt.Errorf("element type %v has no raw form", dtype)
	}
	n, ok := NumElements(shape)
	if !ok || n > math.MaxInt/16 {
		return nil, fmt.Errorf("shape %v is negative or too large", shape)
	}
	if want := dtype.Bytes(n); len(data) != want {
		return nil, fmt.Errorf("%d bytes of data, %v%v needs %d", len(data), dtype, shape, want)
	}
	return &Tensor{dtype: dtype, shape: shape, data: data}, nil
}

// FromStrings returns a tensor of strings that aliases s. It panics if len(s)
// is not the product of the dimensions.
func FromStrings(shape []int, s []string) *Tensor {
	if n, ok := NumElements(shape); !ok || n != len(s) {
		panic(fmt.Sprintf("tensor: %d strings for shape %v", len(s), shape))
	}
	return &Tensor{dtype: String, shape: shape, strs: s}
}

// Of returns a tensor that aliases s. It panics if len(s) is not the product
// of the dimensions. With no dimensions given, the tensor is a vector.
func Of[T Number](s []T, shape ...int) *Tensor {
	if shape == nil {
		shape = []int{len(s)}
	}
	if n, ok := NumElements(shape); !ok || n != len(s) {
		panic(fmt.Sprintf("tensor: %d elements for shape %v", len(s), shape))
	}
	var z T
	return &Tensor{dtype: dtypeOf(z), shape: shape, data: asBytes(s)}
}

// Scalar returns a tensor of rank 0 that holds v.
func Scalar[T Number](v T) *Tensor {
	return &Tensor{dtype: dtypeOf(v), shape: []int{}, data: asBytes([]T{v})}
}

func dtypeOf(v any) DType {
	switch v.(type) {
	case float32:
		return Float32
	case float64:
		return Float64
	case int8:
		return Int8
	case int16:
		return Int16
	case int32:
		return Int32
	case int64:
		return Int64
	case uint8:
		return Uint8
	case uint16:
		return Uint16
	case uint32:
		return Uint32
	case uint64:
		return Uint64
	case bool:
		return Bool
	case complex64:
		return Complex64
	case complex128:
		return Complex128
	}
	panic(fmt.Sprintf("tensor: no element type for %T", v))
}

func asBytes[T any](s []T) []byte {
	var z T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(z)))
}

// DType returns the element type.
func (t *Tensor) DType() DType { return t.dtype }

// Shape returns the dimensions; the caller must not change them.
func (t *Tensor) Shape() []int { return t.shape }

// Rank returns the number of dimensions.
func (t *Tensor) Rank() int { return len(t.shape) }

// Len returns the number of elements.
func (t *Tensor) Len() int {
	n, _ := NumElements(t.shape)
	return n
}

// Bytes returns the packed elements; nil for strings. The slice aliases the
// tensor.
func (t *Tensor) Bytes() []byte {
	if t.later != nil {
		return t.later.bytes()
	}
	return t.data
}

// Size returns the length of Bytes, without making the elements of a deferred
// tensor.
func (t *Tensor) Size() int { return t.dtype.Bytes(t.Len()) }

// Strings returns the elements of a tensor of strings; the slice aliases the
// tensor.
func (t *Tensor) Strings() []string { return t.strs }

// As returns the elements of t as a slice of T, whose size must be that of
// the element type (uint16 for float16 and bfloat16, uint8 for every 8-bit
// type are allowed). The slice aliases the tensor where its memory is aligned
// for T, and is a copy otherwise, so it is for reading; a tensor from New, or
// from an executor, is always aligned. As panics if the sizes differ.
func As[T Number](t *Tensor) []T {
	var z T
	size := int(unsafe.Sizeof(z))
	if t.dtype.Bits() != size*8 {
		panic(fmt.Sprintf("tensor: %v viewed as %T", t.dtype, z))
	}
	data := t.Bytes()
	n := len(data) / size
	if n == 0 {
		return nil
	}
	p := unsafe.Pointer(&data[0])
	if uintptr(p)%unsafe.Alignof(z) != 0 {
		s := make([]T, n)
		copy(asBytes(s), data)
		return s
	}
	return unsafe.Slice((*T)(p), n)
}

// Reshape returns a tensor of the given shape over the same memory. The error
// says so if the number of elements differs.
func (t *Tensor) Reshape(shape []int) (*Tensor, error) {
	n, ok := NumElements(shape)
	if !ok || n != t.Len() {
		return nil, fmt.Errorf("%d elements do not fit shape %v", t.Len(), shape)
	}
	r := *t
	r.shape = append([]int{}, shape...)
	return &r, nil
}

// Clone returns a copy that shares no memory with t.
func (t *Tensor) Clone() *Tensor {
	c := New(t.dtype, t.shape...)
	copy(c.data, t.Bytes())
	copy(c.strs, t.strs)
	return c
}

// Equal reports whether the tensors have the same element type, shape and
// bits; NaNs with equal bits are equal.
func (t *Tensor) Equal(u *Tensor) bool {
	if t.dtype != u.dtype || len(t.shape) != len(u.shape) || len(t.strs) != len(u.strs) {
		return false
	}
	for i, d := range t.shape {
		if d != u.shape[i] {
			return false
		}
	}
	for i, s := range t.strs {
		if s != u.strs[i] {
			return false
		}
	}
	return string(t.Bytes()) == string(u.Bytes())
}

// String describes the tensor without its data, such as "float[2,3]".
func (t *Tensor) String() string { return t.dtype.String() + ShapeString(t.shape) }

// ShapeString formats dimensions as "[2,3]"; a scalar is "[]".
func ShapeString(shape []int) string {
	b := []byte{'['}
	for i, d := range shape {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "%d", d)
	}
	return string(append(b, ']'))
}
