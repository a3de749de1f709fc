//go:build !noasm

package kernels

import "unsafe"

// gemmKernel computes t with the kernel of level l, wide for the one that
// takes gemmWide panels.
func gemmKernel(l Level, t *gemmTile, wide bool) {
	p := (*byte)(unsafe.Pointer(t))
	switch {
	case l == Generic:
		gemmTileGo(t)
	case l == AVX2 && wide:
		gemmWideAVX2(p)
	case l == AVX2:
		gemmRowsAVX2(p)
	case wide:
		gemmWideAVX512(p)
	default:
		gemmRowsAVX512(p)
	}
}

// tapKernel computes t with the kernel of level l.
func tapKernel(l Level, t *tapTile) {
	p := (*byte)(unsafe.Pointer(t))
	switch {
	case l == Generic:
		tapTileGo(t)
	case l == AVX2:
		depthwiseAVX2(p)
	default:
		depthwiseAVX512(p)
	}
}
