//go:build !amd64 || noasm

package kernels

func quantizeColumns8Vec(dst *uint8, src, scale *float32, zero *int32, n int, lo, hi int32) int {
	return 0
}

func quantizeColumns16Vec(dst *uint16, src, scale *float32, zero *int32, n int, lo, hi int32) int {
	return 0
}

func dequantizeColumnsU8Vec(dst *float32, src *uint8, scale *float32, zero *int32, n int) int {
	return 0
}

func dequantizeColumnsI8Vec(dst *float32, src *int8, scale *float32, zero *int32, n int) int {
	return 0
}

func dequantizeColumnsU16Vec(dst *float32, src *uint16, scale *float32, zero *int32, n int) int {
	return 0
}

func dequantizeColumnsI16Vec(dst *float32, src *int16, scale *float32, zero *int32, n int) int {
	return 0
}
