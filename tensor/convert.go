package tensor

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unsafe"
)

// Real lists the Go types that the elements of every real, integer or boolean
// tensor can be read as and written from.
type Real interface {
	float32 | float64 | int64 | uint64
}

// ConvertOptions choose between the variants of the ONNX operator Cast; the
// zero value is the operator's default.
type ConvertOptions struct {
	// NoSaturate makes float8 values out of range NaN or infinite, as far as
	// the type has them, instead of the largest finite value.
	NoSaturate bool
	// Round is how to round to a power of two; Float8E8M0 only.
	Round RoundMode
}

// Float32s returns the elements of t as float32, each rounded to nearest. The
// slice aliases t where t is Float32. The error says so if t holds strings or
// complex numbers.
func Float32s(t *Tensor) ([]float32, error) {
	if t.dtype == Float32 {
		return As[float32](t), nil
	}
	return readAll[float32](t)
}

// Float64s is Float32s for float64; it is exact except for integers beyond
// 2^53.
func Float64s(t *Tensor) ([]float64, error) {
	if t.dtype == Float64 {
		return As[float64](t), nil
	}
	return readAll[float64](t)
}

// Int64s is Float32s for int64; real numbers are truncated towards zero, and
// those out of range become the smallest int64.
func Int64s(t *Tensor) ([]int64, error) {
	if t.dtype == Int64 {
		return As[int64](t), nil
	}
	return readAll[int64](t)
}

func readAll[T Real](t *Tensor) ([]T, error) {
	if !t.dtype.Convertible() {
		return nil, fmt.Errorf("%v has no elements of type %T", t, *new(T))
	}
	dst := make([]T, t.Len())
	Read(t, 0, dst)
	return dst, nil
}

// Convertible reports whether Read and Write serve the type: all but strings
// and complex numbers.
func (d DType) Convertible() bool {
	if d >= numDTypes {
		return false
	}
	c := dtypes[d].class
	return c == classFloat || c == classInt || c == classUint || c == classBool
}

// Read stores the elements [from, from+len(dst)) of t in dst, converted as
// Cast does. It panics if t is not Convertible or does not have those
// elements.
func Read[T Real](t *Tensor, from int, dst []T) {
	n := len(dst)
	switch t.dtype {
	case Float32:
		if f, ok := any(dst).([]float32); ok {
			copy(asBytes(f), t.Bytes()[4*from:4*(from+n)])
			return
		}
		convert(dst, view[float32](t, from, n))
	case Float64:
		convert(dst, view[float64](t, from, n))
	case Int8:
		convert(dst, view[int8](t, from, n))
	case Int16:
		convert(dst, view[int16](t, from, n))
	case Int32:
		convert(dst, view[int32](t, from, n))
	case Int64:
		convert(dst, view[int64](t, from, n))
	case Uint8, Bool:
		convert(dst, view[uint8](t, from, n))
	case Uint16:
		convert(dst, view[uint16](t, from, n))
	case Uint32:
		convert(dst, view[uint32](t, from, n))
	case Uint64:
		convert(dst, view[uint64](t, from, n))
	case Float16, BFloat16, Float8E4M3FN, Float8E4M3FNUZ, Float8E5M2, Float8E5M2FNUZ, Float8E8M0, Float4E2M1:
		if f, ok := any(dst).([]float32); ok {
			t.readSmall(f, from)
			return
		}
		var buf [256]float32
		for len(dst) > 0 {
			f := buf[:min(len(dst), len(buf))]
			t.readSmall(f, from)
			convert(dst, f)
			dst, from = dst[len(f):], from+len(f)
		}
	case Uint4, Uint2, Int4, Int2:
		var buf [256]int8
		for len(dst) > 0 {
			codes := buf[:min(len(dst), len(buf))]
			t.unpack(codes, from)
			convert(dst, codes)
			dst, from = dst[len(codes):], from+len(codes)
		}
	default:
		panic(fmt.Sprintf("tensor: Read of %v", t))
	}
}

// readSmall reads a floating-point type of at most 16 bits.
func (t *Tensor) readSmall(dst []float32, from int) {
	switch t.dtype {
	case Float16:
		for i, h := range view[uint16](t, from, len(dst)) {
			dst[i] = Float16ToFloat32(h)
		}
	case BFloat16:
		for i, h := range view[uint16](t, from, len(dst)) {
			dst[i] = BFloat16ToFloat32(h)
		}
	case Float4E2M1:
		table, data := byteTables()[Float4E2M1], t.Bytes()
		for i := range dst {
			dst[i] = table[data[(from+i)/2]>>((from+i)%2*4)&15]
		}
	default:
		table := byteTables()[t.dtype]
		for i, b := range t.Bytes()[from : from+len(dst)] {
			dst[i] = table[b]
		}
	}
}

// unpack reads an integer type of 2 or 4 bits.
func (t *Tensor) unpack(dst []int8, from int) {
	signed, data := t.dtype.IsSigned(), t.Bytes()
	if t.dtype.Bits() == 4 {
		for i := range dst {
			dst[i] = int8(data[(from+i)/2] >> ((from + i) % 2 * 4) & 15)
			if signed {
				dst[i] = dst[i] << 4 >> 4
			}
		}
		return
	}
	for i := range dst {
		dst[i] = int8(data[(from+i)/4] >> ((from + i) % 4 * 2) & 3)
		if signed {
			dst[i] = dst[i] << 6 >> 6
		}
	}
}

// Write stores src in the elements [from, from+len(src)) of t, converted as
// Cast does: to integers by truncation, what is out of range losing its high
// bits; to floating point by rounding to nearest even, clamped for types of
// at most 8 bits. Goroutines may write disjoint parts of t at the same time if
// the parts of a packed type start at multiples of 8. It panics if t is not
// Convertible or does not have those elements.
func Write[T Real](t *Tensor, from int, src []T) { write(t, from, src, ConvertOptions{}) }

func write[T Real](t *Tensor, from int, src []T, o ConvertOptions) {
	n := len(src)
	switch t.dtype {
	case Float32:
		convert(view[float32](t, from, n), src)
	case Float64:
		convert(view[float64](t, from, n), src)
	case Int8:
		convert(view[int8](t, from, n), src)
	case Int16:
		convert(view[int16](t, from, n), src)
	case Int32:
		convert(view[int32](t, from, n), src)
	case Int64:
		convert(view[int64](t, from, n), src)
	case Uint8:
		convert(view[uint8](t, from, n), src)
	case Uint16:
		convert(view[uint16](t, from, n), src)
	case Uint32:
		convert(view[uint32](t, from, n), src)
	case Uint64:
		convert(view[uint64](t, from, n), src)
	case Bool:
		dst := view[uint8](t, from, n)
		for i, x := range src {
			dst[i] = 0
			if x != 0 {
				dst[i] = 1
			}
		}
	case Float16:
		dst := view[uint16](t, from, n)
		if f, ok := any(src).([]float32); ok {
			for i, x := range f {
				dst[i] = Float16FromFloat32(x)
			}
			return
		}
		for i, x := range src {
			if f := float32(x); T(f) == x {
				dst[i] = Float16FromFloat32(f)
			} else {
				dst[i] = formats[Float16].encode(float64(x), false)
			}
		}
	case BFloat16:
		dst := view[uint16](t, from, n)
		if f, ok := any(src).([]float32); ok {
			for i, x := range f {
				dst[i] = BFloat16FromFloat32(x)
			}
			return
		}
		for i, x := range src {
			if f := float32(x); T(f) == x {
				dst[i] = BFloat16FromFloat32(f)
			} else {
				dst[i] = formats[BFloat16].encode(float64(x), false)
			}
		}
	case Float8E4M3FN, Float8E4M3FNUZ, Float8E5M2, Float8E5M2FNUZ:
		dst, f := view[uint8](t, from, n), formats[t.dtype]
		if s, ok := any(src).([]float32); ok {
			for i, x := range s {
				dst[i] = uint8(f.encode32(x, !o.NoSaturate))
			}
			return
		}
		for i, x := range src {
			dst[i] = uint8(f.encode(float64(x), !o.NoSaturate))
		}
	case Float8E8M0:
		dst := view[uint8](t, from, n)
		for i, x := range src {
			dst[i] = encodeE8M0(float64(x), o)
		}
	case Float4E2M1:
		for i, x := range src {
			t.setPacked(from+i, float4Code(float64(x)))
		}
	case Uint4, Int4, Uint2, Int2:
		for i, x := range src {
			t.setPacked(from+i, uint8(integer(x)))
		}
	default:
		panic(fmt.Sprintf("tensor: Write to %v", t))
	}
}

// float4Code encodes x; NaN, which the type lacks, becomes negative zero.
func float4Code(x float64) uint8 {
	if math.IsNaN(x) {
		return 8
	}
	return uint8(float4.encode(x, true))
}

// setPacked stores element i of a type of 2 or 4 bits.
func (t *Tensor) setPacked(i int, code uint8) {
	at, shift, mask := i/2, i%2*4, uint8(15)
	if t.dtype.Bits() == 2 {
		at, shift, mask = i/4, i%4*2, 3
	}
	t.data[at] = t.data[at]&^(mask<<shift) | code&mask<<shift
}

// View returns the elements [from, from+n) of t, whose element type has the size
// of S, in the memory of t. ok is false where that is not aligned for S, as may
// be in a file.
func View[S Number](t *Tensor, from, n int) (s []S, ok bool) {
	if n == 0 {
		return nil, true
	}
	var z S
	size := int(unsafe.Sizeof(z))
	b := t.Bytes()[from*size : (from+n)*size]
	p := unsafe.Pointer(&b[0])
	if uintptr(p)%unsafe.Alignof(z) != 0 {
		return nil, false
	}
	return unsafe.Slice((*S)(p), n), true
}

// view is View with a copy where the memory is not aligned.
func view[S Number](t *Tensor, from, n int) []S {
	s, ok := View[S](t, from, n)
	if !ok {
		s = make([]S, n)
		size := int(unsafe.Sizeof(s[0]))
		copy(asBytes(s), t.Bytes()[from*size:(from+n)*size])
	}
	return s
}

type arithmetic interface {
	float32 | float64 | int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64
}

func isReal[T arithmetic]() bool { return T(1)/T(2) != 0 }

func convert[D, S arithmetic](dst []D, src []S) {
	switch {
	case !isReal[S]() || isReal[D]():
		for i, x := range src {
			dst[i] = D(x)
		}
	default:
		for i, x := range src {
			dst[i] = number[D](x)
		}
	}
}

// number converts x to D, with defined results where Go's conversion from
// floating point to integers leaves them to the hardware.
func number[D, S arithmetic](x S) D {
	if isReal[D]() || !isReal[S]() {
		return D(x)
	}
	var d D
	f := float64(x)
	switch any(d).(type) {
	case uint64:
		if f >= 1<<63 && f < 1<<64 {
			return D(uint64(f))
		}
	case int32:
		if !(f > math.MinInt32-1 && f < 1<<31) {
			low := int64(math.MinInt32)
			return D(low)
		}
	}
	return D(integer(f))
}

// integer truncates x towards zero; what is out of range, and NaN, becomes the
// smallest int64.
func integer[S arithmetic](x S) int64 {
	if !isReal[S]() {
		return int64(x)
	}
	if f := float64(x); f >= -1<<63 && f < 1<<63 {
		return int64(f)
	}
	return math.MinInt64
}

// Convert stores the elements [lo, hi) of src, converted as the ONNX operator
// Cast does, in those of dst. Strings are parsed and printed; the error names
// the first one that is no number, or says that there is no such conversion.
// What Write says about goroutines holds here too.
func Convert(dst, src *Tensor, lo, hi int, o ConvertOptions) error {
	d, s := dst.dtype, src.dtype
	switch {
	case d == s && d == String:
		copy(dst.strs[lo:hi], src.strs[lo:hi])
	case d == s && d.Bits() >= 8:
		size := d.Bits() / 8
		copy(dst.data[lo*size:hi*size], src.Bytes()[lo*size:hi*size])
	case s == String && d.Convertible():
		return parse(dst, src.strs, lo, hi, o)
	case d == String && s.Convertible():
		format1 := formatter(s)
		for i := lo; i < hi; i++ {
			dst.strs[i] = format1(src, i)
		}
	case !d.Convertible() || !s.Convertible():
		return fmt.Errorf("no conversion from %v to %v", s, d)
	case d == Float32:
		Read(src, lo, view[float32](dst, lo, hi-lo))
	case d == Float64:
		Read(src, lo, view[float64](dst, lo, hi-lo))
	case d == Int64:
		Read(src, lo, view[int64](dst, lo, hi-lo))
	case s == Float64:
		convertVia[float64](dst, src, lo, hi, o)
	case s.IsFloat():
		convertVia[float32](dst, src, lo, hi, o)
	case s == Uint64:
		convertVia[uint64](dst, src, lo, hi, o)
	default:
		convertVia[int64](dst, src, lo, hi, o)
	}
	return nil
}

func convertVia[T Real](dst, src *Tensor, lo, hi int, o ConvertOptions) {
	var buf [256]T
	for lo < hi {
		b := buf[:min(hi-lo, len(buf))]
		Read(src, lo, b)
		write(dst, lo, b, o)
		lo += len(b)
	}
}

func parse(dst *Tensor, strs []string, lo, hi int, o ConvertOptions) error {
	for i := lo; i < hi; i++ {
		s := strings.TrimSpace(strs[i])
		if !dst.dtype.IsFloat() {
			if v, err := strconv.ParseInt(s, 10, 64); err == nil {
				write(dst, i, []int64{v}, o)
				continue
			}
			if v, err := strconv.ParseUint(s, 10, 64); err == nil {
				write(dst, i, []uint64{v}, o)
				continue
			}
		}
		bits := 64
		if dst.dtype == Float32 {
			bits = 32
		}
		v, err := strconv.ParseFloat(s, bits)
		if err != nil && !math.IsInf(v, 0) {
			return fmt.Errorf("string %.64q is not a number", strs[i])
		}
		write(dst, i, []float64{v}, o)
	}
	return nil
}

// formatter returns the function that prints an element of type d: integers in
// decimal, real numbers with the fewest digits that tell them apart.
func formatter(d DType) func(t *Tensor, i int) string {
	switch {
	case d.IsFloat():
		bits := 32
		if d == Float64 {
			bits = 64
		}
		return func(t *Tensor, i int) string {
			var x [1]float64
			Read(t, i, x[:])
			return formatFloat(x[0], bits)
		}
	case d == Uint64:
		return func(t *Tensor, i int) string {
			var x [1]uint64
			Read(t, i, x[:])
			return strconv.FormatUint(x[0], 10)
		}
	}
	return func(t *Tensor, i int) string {
		var x [1]int64
		Read(t, i, x[:])
		return strconv.FormatInt(x[0], 10)
	}
}

func formatFloat(x float64, bits int) string {
	switch a := math.Abs(x); {
	case math.IsNaN(x):
		return "NaN"
	case math.IsInf(x, 1):
		return "INF"
	case math.IsInf(x, -1):
		return "-INF"
	case a != 0 && (a < 1e-4 || a >= 1e16):
		return strconv.FormatFloat(x, 'e', -1, bits)
	}
	return strconv.FormatFloat(x, 'f', -1, bits)
}
