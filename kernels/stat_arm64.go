//go:build !noasm

package kernels

func minMaxVec(e *Extrema, src *float32, n int) int {
	n &^= 7
	if level == Generic || n == 0 {
		return 0
	}
	low, high, zero := minMaxNEON(src, n)
	if zero != 0 {
		return 0
	}
	e.Min, e.Max = low, high
	return n
}
