//go:build (!amd64 && !arm64) || noasm

package kernels

func quantize8Vec(dst *uint8, src *float32, n int, scale, lo, hi float32, zero int32) int { return 0 }

func codeSumU8Vec(dst *float32, a, b *uint8, n int, ra, rb, c float32) int { return 0 }

func codeSumI8Vec(dst *float32, a, b *int8, n int, ra, rb, c float32) int { return 0 }

func quantize16Vec(dst *uint16, src *float32, n int, scale, lo, hi float32, zero int32) int { return 0 }

func fakeQuantizeVec(dst, src *float32, n int, scale, lo, hi float32) int { return 0 }

func dequantizeU8Vec(dst *float32, src *uint8, n int, scale float32, zero int32) int { return 0 }

func dequantizeI8Vec(dst *float32, src *int8, n int, scale float32, zero int32) int { return 0 }

func dequantizeU16Vec(dst *float32, src *uint16, n int, scale float32, zero int32) int { return 0 }

func dequantizeI16Vec(dst *float32, src *int16, n int, scale float32, zero int32) int { return 0 }

func dequantizeI32Vec(dst *float32, src *int32, n int, scale float32) int { return 0 }

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
