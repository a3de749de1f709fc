//go:build !amd64 || noasm

package kernels

func transpose4Vec(dst, src *uint32, rows, cols, ldd, lds int) (r, c int) { return 0, 0 }

func transpose1Vec(dst, src *uint8, rows, cols, ldd, lds int) (r, c int) { return 0, 0 }

func poolRowLevel(op int, dst, src *float32, n, taps, dilation, stride int) int { return 0 }
