//go:build !amd64 || noasm

package kernels

func minMaxVec(*Extrema, *float32, int) int                 { return 0 }
func minMaxColumnsVec(low, high, src *float32, n int) int   { return 0 }
func momentsVec(*float32, int, *[3][16]float64) int         { return 0 }
func binsVec(*[8]uint32, *float32, int, float32, int32) int { return 0 }
