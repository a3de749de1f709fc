//go:build !noasm

package kernels

func groupMeansVec(means, weights []Lanes, counts, filled []float64, width int, less *Lanes, smooth float64, total *[2]Lanes) bool {
	if level == Generic {
		return false
	}
	groupMeansAVX2(&means[0], &weights[0], &counts[0], &filled[0], len(means), width, less, smooth, total)
	return true
}

func crossLogsVec(sums *Lanes, means, weights []Lanes, less *Lanes, smooth float64) bool {
	if level == Generic {
		return false
	}
	crossLogsAVX2(sums, &means[0], &weights[0], len(means), less, smooth)
	return true
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
