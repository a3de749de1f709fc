//go:build !noasm

package kernels

// logsVec computes the first logarithms and returns how many they are.
func logsVec(dst, src []float64) int {
	count := len(dst) &^ 3
	if level == Generic || count == 0 {
		return 0
	}
	logsAVX2(&dst[0], &src[0], count)
	return count
}

// quantCostVec adds what the first elements cost and returns how many they are.
func quantCostVec(sums *Lanes, x, n []float64, step, lo, hi float64, magnitudes bool) int {
	count := len(x) &^ 3
	switch {
	case level == Generic || count == 0:
		return 0
	case magnitudes:
		quantCostMagnitudesAVX2(sums, &x[0], &n[0], count, step, lo, hi)
	default:
		quantCostSquaresAVX2(sums, &x[0], &n[0], count, step, lo, hi)
	}
	return count
}
