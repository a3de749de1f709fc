//go:build !amd64 || noasm

package kernels

func logsVec(dst, src []float64) int { return 0 }

func quantCostVec(sums *Lanes, x, n []float64, step, lo, hi float64, magnitudes bool) int { return 0 }
