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

func blockExtremaVec(low, high *[BlockSize]float32, src []float32) (done, finite bool) {
	var zero float32
	switch level {
	case Generic:
		return false, false
	case AVX2:
		zero = blockExtremaAVX2(low, high, &src[0], len(src))
	default:
		zero = blockExtremaAVX512(low, high, &src[0], len(src))
	}
	return true, zero == 0
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

// binsVec counts elements from the first one on in private counters, or in the
// counts themselves, and returns how many.
func binsVec(counts []uint64, private [][8]uint16, src []float32, inverse float32, offset int) int {
	n := len(src) &^ 15
	switch level {
	case Generic:
		return 0
	case AVX2:
		binsAVX2(&private[0], ptr(src), n, inverse, int32(offset))
	default:
		var list [1024]int32
		for rest := src[:n]; len(rest) > 0; {
			part := rest[:min(len(rest), len(list))]
			rest = rest[len(part):]
			k := binsListAVX512(&list[0], &part[0], len(part), inverse, int32(offset))
			if k < len(part) {
				counts[-offset] += uint64(len(part) - k)
			}
			countListAVX2(&private[0], &list[0], k&^7)
			for _, b := range list[k&^7 : k] {
				private[b/16][0]++
			}
		}
	}
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
