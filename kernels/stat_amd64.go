//go:build !noasm

package kernels

func minMaxVec(e *Extrema, src *float32, n int) int {
	if level == Generic || n < 16 {
		return 0
	}
	n &^= 15
	var zero float32
	if level == AVX2 {
		e.Min, e.Max, zero = minMaxAVX2(src, n)
	} else {
		e.Min, e.Max, zero = minMaxAVX512(src, n)
	}
	if zero == 0 {
		return n
	}
	n = min(n, 1<<30)
	if level == AVX2 {
		e.Min, e.Max, e.NaN, e.Inf = minMaxFiniteAVX2(src, n)
	} else {
		e.Min, e.Max, e.NaN, e.Inf = minMaxFiniteAVX512(src, n)
	}
	return n
}

func minMaxColumnsVec(low, high, src *float32, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		minMaxColumnsAVX2(low, high, src, n)
	default:
		n &^= 15
		minMaxColumnsAVX512(low, high, src, n)
	}
	return n
}

func momentsVec(src *float32, n int, sums *[3][16]float64) int {
	n &^= 15
	switch level {
	case Generic:
		return 0
	case AVX2:
		momentsAVX2(src, n, sums)
	default:
		momentsAVX512(src, n, sums)
	}
	return n
}

func sumsVec(src *float32, n int, sums *[16]float64) int {
	n &^= 15
	switch level {
	case Generic:
		return 0
	case AVX2:
		sumsAVX2(src, n, sums)
	default:
		sumsAVX512(src, n, sums)
	}
	return n
}

func laneSumsVec(src *float32, n int, sums *[8]float32) int {
	if level == Generic {
		return 0
	}
	n &^= 7
	laneSumsAVX2(src, n, sums)
	return n
}

func laneSquaresVec(src *float32, n int, mean float32, sums *[8]float32) int {
	if level == Generic {
		return 0
	}
	n &^= 7
	laneSquaresAVX2(src, n, mean, sums)
	return n
}

// canBin reports whether binsVec does anything.
func canBin() bool { return level != Generic }

func binsVec(counts *[8]uint16, src *float32, n int, inverse float32, offset int32) int {
	if !canBin() {
		return 0
	}
	n &^= 15
	binsAVX2(counts, src, n, inverse, offset)
	return n
}

func foldBinsVec(counts *uint64, private *[8]uint16, n int) int {
	if !canBin() {
		return 0
	}
	n &^= 3
	foldBinsAVX2(counts, private, n)
	return n
}

func addColumnsVec(sums *float64, row *float32, n int) int {
	if level == Generic {
		return 0
	}
	n &^= 3
	addColumnsAVX2(sums, row, n)
	return n
}
