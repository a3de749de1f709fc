//go:build !noasm

package kernels

// The functions ending in Vec do the first elements of their work in assembly and
// return how many; the portable form does the rest.

func quantize8Vec(dst *uint8, src *float32, n int, scale, lo, hi float32, zero int32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 31
		quantize8AVX2(dst, src, n, scale, lo, hi, zero)
	default:
		quantize8AVX512(dst, src, n, scale, lo, hi, zero)
	}
	return n
}

func quantize16Vec(dst *uint16, src *float32, n int, scale, lo, hi float32, zero int32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 31
		quantize16AVX2(dst, src, n, scale, lo, hi, zero)
	default:
		quantize16AVX512(dst, src, n, scale, lo, hi, zero)
	}
	return n
}

func fakeQuantizeVec(dst, src *float32, n int, scale, lo, hi float32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		fakeQuantizeAVX2(dst, src, n, scale, lo, hi)
	default:
		fakeQuantizeAVX512(dst, src, n, scale, lo, hi)
	}
	return n
}

func dequantizeU8Vec(dst *float32, src *uint8, n int, scale float32, zero int32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeU8AVX2(dst, src, n, scale, zero)
	default:
		dequantizeU8AVX512(dst, src, n, scale, zero)
	}
	return n
}

func dequantizeI8Vec(dst *float32, src *int8, n int, scale float32, zero int32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeI8AVX2(dst, src, n, scale, zero)
	default:
		dequantizeI8AVX512(dst, src, n, scale, zero)
	}
	return n
}

func codeSumU8Vec(dst *float32, a, b *uint8, n int, ra, rb, c float32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		codeSumU8AVX2(dst, a, b, n, ra, rb, c)
	default:
		codeSumU8AVX512(dst, a, b, n, ra, rb, c)
	}
	return n
}

func codeSumI8Vec(dst *float32, a, b *int8, n int, ra, rb, c float32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		codeSumI8AVX2(dst, a, b, n, ra, rb, c)
	default:
		codeSumI8AVX512(dst, a, b, n, ra, rb, c)
	}
	return n
}

func dequantizeU16Vec(dst *float32, src *uint16, n int, scale float32, zero int32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeU16AVX2(dst, src, n, scale, zero)
	default:
		dequantizeU16AVX512(dst, src, n, scale, zero)
	}
	return n
}

func dequantizeI16Vec(dst *float32, src *int16, n int, scale float32, zero int32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeI16AVX2(dst, src, n, scale, zero)
	default:
		dequantizeI16AVX512(dst, src, n, scale, zero)
	}
	return n
}

func dequantizeI32Vec(dst *float32, src *int32, n int, scale float32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeI32AVX2(dst, src, n, scale)
	default:
		dequantizeI32AVX512(dst, src, n, scale)
	}
	return n
}

func quantizeColumns8Vec(dst *uint8, src, scale *float32, zero *int32, n int, lo, hi int32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		quantizeColumns8AVX2(dst, src, scale, zero, n, lo, hi)
	default:
		quantizeColumns8AVX512(dst, src, scale, zero, n, lo, hi)
	}
	return n
}

func quantizeColumns16Vec(dst *uint16, src, scale *float32, zero *int32, n int, lo, hi int32) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		quantizeColumns16AVX2(dst, src, scale, zero, n, lo, hi)
	default:
		quantizeColumns16AVX512(dst, src, scale, zero, n, lo, hi)
	}
	return n
}

func dequantizeColumnsU8Vec(dst *float32, src *uint8, scale *float32, zero *int32, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeColumnsU8AVX2(dst, src, scale, zero, n)
	default:
		dequantizeColumnsU8AVX512(dst, src, scale, zero, n)
	}
	return n
}

func dequantizeColumnsI8Vec(dst *float32, src *int8, scale *float32, zero *int32, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeColumnsI8AVX2(dst, src, scale, zero, n)
	default:
		dequantizeColumnsI8AVX512(dst, src, scale, zero, n)
	}
	return n
}

func dequantizeColumnsU16Vec(dst *float32, src *uint16, scale *float32, zero *int32, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeColumnsU16AVX2(dst, src, scale, zero, n)
	default:
		dequantizeColumnsU16AVX512(dst, src, scale, zero, n)
	}
	return n
}

func dequantizeColumnsI16Vec(dst *float32, src *int16, scale *float32, zero *int32, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		dequantizeColumnsI16AVX2(dst, src, scale, zero, n)
	default:
		dequantizeColumnsI16AVX512(dst, src, scale, zero, n)
	}
	return n
}
