//go:build (!amd64 && !arm64) || noasm

package kernels

func minMaxVec(*Extrema, *float32, int) int         { return 0 }
func momentsVec(*float32, int, *[3][16]float64) int { return 0 }
func sumsVec(*float32, int, *[16]float64) int       { return 0 }
func laneSumsVec(*float32, int, *[8]float32) int    { return 0 }

func laneSquaresVec(*float32, int, float32, *[8]float32) int { return 0 }

func minMaxColumnsVec(low, high, src *float32, n int) int { return 0 }

func addColumnsVec(*float64, *float32, int) int { return 0 }
