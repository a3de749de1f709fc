//go:build (!amd64 && !arm64) || noasm

package kernels

func halfToFloatVec(dst *float32, src *uint16, n int) int { return 0 }

func brainToFloatVec(dst *float32, src *uint16, n int) int { return 0 }

func floatToHalfVec(dst *uint16, src *float32, n int) int { return 0 }

func floatToBrainVec(dst *uint16, src *float32, n int) int { return 0 }

func max8Vec(dst, a, b *uint8, n int) int { return 0 }

func max8SignedVec(dst, a, b *int8, n int) int { return 0 }
