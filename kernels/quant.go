package kernels

import "unsafe"

//go:generate go run -C _gen ./vec -dir ..

// QuantizeU8 stores clamp(roundHalfEven(src[i]/scale) + zero, 0, 255) in
// dst[i], the uint8 form of QuantizeLinear in the ONNX operator specification.
// The division is a true one, and no value of src overflows on the way. NaN
// gives the lowest code, +Inf the highest and -Inf the lowest, as in ONNX
// Runtime's CPU provider on x86. dst is at least as long as src.
func QuantizeU8(dst []uint8, src []float32, scale float32, zero uint8) {
	QuantizeRangeU8(dst, src, scale, zero, 0, 255)
}

// QuantizeI8 is QuantizeU8 for int8: the codes are clamped to [-128, 127].
func QuantizeI8(dst []int8, src []float32, scale float32, zero int8) {
	QuantizeRangeI8(dst, src, scale, zero, -128, 127)
}

// QuantizeU16 is QuantizeU8 for uint16: the codes are clamped to [0, 65535].
func QuantizeU16(dst []uint16, src []float32, scale float32, zero uint16) {
	QuantizeRangeU16(dst, src, scale, zero, 0, 65535)
}

// QuantizeI16 is QuantizeU8 for int16: the codes are clamped to
// [-32768, 32767].
func QuantizeI16(dst []int16, src []float32, scale float32, zero int16) {
	QuantizeRangeI16(dst, src, scale, zero, -32768, 32767)
}

// QuantizeRangeU8 is QuantizeU8 with codes clamped to [lo, hi], for narrow
// ranges and for types of fewer than 8 bits. NaN gives lo. lo <= hi.
func QuantizeRangeU8(dst []uint8, src []float32, scale float32, zero, lo, hi uint8) {
	dst = dst[:len(src)]
	l, h := bounds(zero, lo, hi)
	n := quantize8Vec(ptr(dst), ptr(src), len(src), scale, l, h, int32(zero))
	quantizeTwin(dst[n:], src[n:], scale, l, h, int32(zero))
}

// QuantizeRangeI8 is QuantizeRangeU8 for int8.
func QuantizeRangeI8(dst []int8, src []float32, scale float32, zero, lo, hi int8) {
	dst = dst[:len(src)]
	l, h := bounds(zero, lo, hi)
	n := quantize8Vec(cast[uint8](dst), ptr(src), len(src), scale, l, h, int32(zero))
	quantizeTwin(dst[n:], src[n:], scale, l, h, int32(zero))
}

// QuantizeRangeU16 is QuantizeRangeU8 for uint16.
func QuantizeRangeU16(dst []uint16, src []float32, scale float32, zero, lo, hi uint16) {
	dst = dst[:len(src)]
	l, h := bounds(zero, lo, hi)
	n := quantize16Vec(ptr(dst), ptr(src), len(src), scale, l, h, int32(zero))
	quantizeTwin(dst[n:], src[n:], scale, l, h, int32(zero))
}

// QuantizeRangeI16 is QuantizeRangeU8 for int16.
func QuantizeRangeI16(dst []int16, src []float32, scale float32, zero, lo, hi int16) {
	dst = dst[:len(src)]
	l, h := bounds(zero, lo, hi)
	n := quantize16Vec(cast[uint16](dst), ptr(src), len(src), scale, l, h, int32(zero))
	quantizeTwin(dst[n:], src[n:], scale, l, h, int32(zero))
}

// FakeQuantize stores in dst[i] the value that src[i] has after quantization to
// codes in [lo, hi] and back: the same bits as QuantizeRange* followed by
// Dequantize*, for any integer type of up to 16 bits. lo-zero and hi-zero have
// magnitudes of at most 65535. dst is at least as long as src and may be src.
func FakeQuantize(dst, src []float32, scale float32, zero, lo, hi int32) {
	dst = dst[:len(src)]
	l, h := bounds(zero, lo, hi)
	n := fakeQuantizeVec(ptr(dst), ptr(src), len(src), scale, l, h)
	dst = dst[n:]
	for i, x := range src[n:] {
		dst[i] = float32(code(x, scale, l, h)) * scale
	}
}

// DequantizeU8 stores (src[i]-zero)*scale in dst[i], DequantizeLinear of the
// ONNX operator specification. dst is at least as long as src.
func DequantizeU8(dst []float32, src []uint8, scale float32, zero uint8) {
	dst = dst[:len(src)]
	n := dequantizeU8Vec(ptr(dst), ptr(src), len(src), scale, int32(zero))
	dequantizeTwin(dst[n:], src[n:], scale, int32(zero))
}

// DequantizeI8 is DequantizeU8 for int8.
func DequantizeI8(dst []float32, src []int8, scale float32, zero int8) {
	dst = dst[:len(src)]
	n := dequantizeI8Vec(ptr(dst), ptr(src), len(src), scale, int32(zero))
	dequantizeTwin(dst[n:], src[n:], scale, int32(zero))
}

// DequantizeU16 is DequantizeU8 for uint16.
func DequantizeU16(dst []float32, src []uint16, scale float32, zero uint16) {
	dst = dst[:len(src)]
	n := dequantizeU16Vec(ptr(dst), ptr(src), len(src), scale, int32(zero))
	dequantizeTwin(dst[n:], src[n:], scale, int32(zero))
}

// DequantizeI16 is DequantizeU8 for int16.
func DequantizeI16(dst []float32, src []int16, scale float32, zero int16) {
	dst = dst[:len(src)]
	n := dequantizeI16Vec(ptr(dst), ptr(src), len(src), scale, int32(zero))
	dequantizeTwin(dst[n:], src[n:], scale, int32(zero))
}

// CodeSum stores a·ra + (b·rb + c) in dst, each product with its sum rounded
// once, the same bits at every level. dst, a and b have the same length.
func CodeSum[T uint8 | int8](dst []float32, a, b []T, ra, rb, c float32) {
	a, b = a[:len(dst)], b[:len(dst)]
	if len(dst) == 0 {
		return
	}
	n := 0
	switch x := any(&a[0]).(type) {
	case *uint8:
		n = codeSumU8Vec(&dst[0], x, any(&b[0]).(*uint8), len(dst), ra, rb, c)
	case *int8:
		n = codeSumI8Vec(&dst[0], x, any(&b[0]).(*int8), len(dst), ra, rb, c)
	}
	for i := n; i < len(dst); i++ {
		dst[i] = fma(float32(a[i]), ra, fma(float32(b[i]), rb, c))
	}
}

// DequantizeI32 stores float32(src[i])*scale in dst[i]; the zero point of int32
// is 0 by the specification. dst is at least as long as src.
func DequantizeI32(dst []float32, src []int32, scale float32) {
	dst = dst[:len(src)]
	n := dequantizeI32Vec(ptr(dst), ptr(src), len(src), scale)
	dequantizeTwin(dst[n:], src[n:], scale, 0)
}

// QuantizeColumns stores clamp(roundHalfEven(src[i]/scale[i]) + zero[i], lo, hi)
// in dst[i], as QuantizeRangeU8 does with one scale: a row of a matrix with a
// scale per column. lo-zero[i] and hi-zero[i] have magnitudes of at most 65535.
// dst, scale and zero are at least as long as src.
func QuantizeColumns[T uint8 | int8 | uint16 | int16](dst []T, src, scale []float32, zero []int32, lo, hi T) {
	dst, scale, zero = dst[:len(src)], scale[:len(src)], zero[:len(src)]
	l, h := int32(lo), int32(hi)
	n := 0
	if unsafe.Sizeof(lo) == 1 {
		n = quantizeColumns8Vec(cast[uint8](dst), ptr(src), ptr(scale), ptr(zero), len(src), l, h)
	} else {
		n = quantizeColumns16Vec(cast[uint16](dst), ptr(src), ptr(scale), ptr(zero), len(src), l, h)
	}
	for i := n; i < len(src); i++ {
		z := zero[i]
		dst[i] = T(code(src[i], scale[i], float32(l-z), float32(h-z)) + z)
	}
}

// DequantizeColumns stores (src[i]-zero[i])*scale[i] in dst[i]. dst, scale and
// zero are at least as long as src.
func DequantizeColumns[T uint8 | int8 | uint16 | int16 | int32](dst []float32, src []T, scale []float32, zero []int32) {
	dst, scale, zero = dst[:len(src)], scale[:len(src)], zero[:len(src)]
	var t T
	n := 0
	switch d, s, z := ptr(dst), ptr(scale), ptr(zero); any(t).(type) {
	case uint8:
		n = dequantizeColumnsU8Vec(d, cast[uint8](src), s, z, len(src))
	case int8:
		n = dequantizeColumnsI8Vec(d, cast[int8](src), s, z, len(src))
	case uint16:
		n = dequantizeColumnsU16Vec(d, cast[uint16](src), s, z, len(src))
	case int16:
		n = dequantizeColumnsI16Vec(d, cast[int16](src), s, z, len(src))
	}
	for i := n; i < len(src); i++ {
		dst[i] = float32(int32(src[i])-zero[i]) * scale[i]
	}
}

// bounds returns the clamp of src/scale that keeps the codes in [lo, hi].
func bounds[T uint8 | int8 | uint16 | int16 | int32](zero, lo, hi T) (float32, float32) {
	return float32(int32(lo) - int32(zero)), float32(int32(hi) - int32(zero))
}

// code returns clamp(x/scale, lo, hi) rounded half to even, and lo for NaN.
// |lo| and |hi| are below 1<<22, so adding and subtracting 3<<22 rounds.
func code(x, scale, lo, hi float32) int32 {
	d := x / scale
	if !(d > lo) {
		d = lo
	}
	if !(d < hi) {
		d = hi
	}
	return int32(float32(d+3<<22) - 3<<22)
}

func quantizeTwin[T uint8 | int8 | uint16 | int16](dst []T, src []float32, scale, lo, hi float32, zero int32) {
	for i, x := range src {
		dst[i] = T(code(x, scale, lo, hi) + zero)
	}
}

func dequantizeTwin[T uint8 | int8 | uint16 | int16 | int32](dst []float32, src []T, scale float32, zero int32) {
	for i, q := range src {
		dst[i] = float32(int32(q)-zero) * scale
	}
}
