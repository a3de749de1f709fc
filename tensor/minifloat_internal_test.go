package tensor

import (
	"math"
	"testing"
)

// TestEncode32 holds encode32 against encode for every exponent, at mantissas around
// those where codes change.
func TestEncode32(t *testing.T) {
	for d, f := range formats {
		if f == nil || f.bits != 8 {
			continue
		}
		try := func(u uint32) {
			x := math.Float32frombits(u)
			for _, clamp := range []bool{false, true} {
				if got, want := f.encode32(x, clamp), f.encode(float64(x), clamp); got != want {
					t.Fatalf("%v: %g (%#x) is %#x, want %#x", DType(d), x, u, got, want)
				}
			}
		}
		for top := range uint32(1 << 16) { // sign, exponent and 7 bits of the mantissa
			for _, low := range []uint32{0, 1, 0x7fff, 0x8000, 0x8001, 0xffff} {
				try(top<<16 | low)
			}
		}
	}
}
