//go:build !noasm

package kernels

func pack4Vec(dst, src *uint8, n int, offset uint8) int {
	n &^= 63
	switch level {
	case Generic:
		return 0
	case AVX2:
		pack4AVX2(dst, src, n, offset)
	default:
		pack4AVX512(dst, src, n, offset)
	}
	return n
}

func pack2Vec(dst, src *uint8, n int, offset uint8) int {
	n &^= 63
	switch level {
	case Generic:
		return 0
	case AVX2:
		pack2AVX2(dst, src, n, offset)
	default:
		pack2AVX512(dst, src, n, offset)
	}
	return n
}

func pack8Vec(dst, src *uint8, n int, offset uint8) int {
	n &^= 63
	switch level {
	case Generic:
		return 0
	case AVX2:
		pack8AVX2(dst, src, n, offset)
	default:
		pack8AVX512(dst, src, n, offset)
	}
	return n
}
