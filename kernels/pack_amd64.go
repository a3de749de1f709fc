//go:build !noasm

package kernels

// packVec packs codes of 2, 4 or 8 bits.
func packVec(bits int, dst, src *uint8, n int, offset uint8) int {
	if level == Generic {
		return 0
	}
	n &^= 63
	wide := level != AVX2
	switch {
	case bits == 2 && wide:
		pack2AVX512(dst, src, n, offset)
	case bits == 2:
		pack2AVX2(dst, src, n, offset)
	case bits == 4 && wide:
		pack4AVX512(dst, src, n, offset)
	case bits == 4:
		pack4AVX2(dst, src, n, offset)
	case wide:
		pack8AVX512(dst, src, n, offset)
	default:
		pack8AVX2(dst, src, n, offset)
	}
	return n
}
