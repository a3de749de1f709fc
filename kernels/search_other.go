//go:build !amd64 || noasm

package kernels

func groupMeansVec(means, weights []Lanes, counts, filled []float64, width int, less *Lanes, smooth float64, total *[2]Lanes) bool {
	return false
}

func crossLogsVec(sums *Lanes, means, weights []Lanes, less *Lanes, smooth float64) bool {
	return false
}

func quantCostVec(sums *Lanes, x, n []float64, step, lo, hi float64, magnitudes bool) int { return 0 }
