//go:build (!amd64 && !arm64) || noasm

package kernels

func minMaxVec(*Extrema, *float32, int) int         { return 0 }
func momentsVec(*float32, int, *[3][16]float64) int { return 0 }
