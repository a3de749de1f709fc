package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

const guardLen = 96

// zoned returns a slice of n elements that starts off elements after an
// aligned address, inside guard zones, and a function that reports writes to
// the zones.
func zoned[T any](n, off int) ([]T, func(t *testing.T)) {
	buf := make([]T, guardLen+off+n+guardLen)
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), len(buf)*int(unsafe.Sizeof(buf[0])))
	size := int(unsafe.Sizeof(buf[0]))
	for i := range raw {
		raw[i] = 0xa5
	}
	return buf[guardLen+off:][:n:n], func(t *testing.T) {
		t.Helper()
		for i, b := range raw {
			if e := i/size - guardLen - off; b != 0xa5 && (e < 0 || e >= n) {
				t.Fatalf("n=%d off=%d: write outside, element %d", n, off, e)
			}
		}
	}
}

var nan, inf = float32(math.NaN()), float32(math.Inf(1))

// specials are float32 values at which kernels go wrong.
var specials = []float32{
	nan, -nan, inf, -inf, 0, float32(math.Copysign(0, -1)),
	0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.5, 128.5, -128.5, 254.5, 255.5, 65534.5, -32768.5,
	math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, -math.SmallestNonzeroFloat32,
	1e-39, -1e-39, 0x1p-126, -0x1p-126, 1e30, -1e30, 0x1p31, -0x1p31, 0x1p32, 0x1p22, 0x1p23, 0x1p24 + 2, 8388607.5,
	0.49999997, 0.50000006, 1, -1, 2, 88.7, 89, -87.3, -103, -104,
}

// fill puts random numbers of mixed magnitude and specials into x.
func fill(r *rand.Rand, x []float32) {
	for i := range x {
		switch r.IntN(8) {
		case 0:
			x[i] = specials[r.IntN(len(specials))]
		case 1:
			x[i] = math.Float32frombits(r.Uint32())
		case 2:
			x[i] = float32(r.IntN(600)-300) / 2
		default:
			x[i] = float32(r.NormFloat64() * 60)
		}
	}
}

// finite puts normal random numbers into x.
func finite(r *rand.Rand, x []float32) {
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
}

// tails calls f for the lengths 0 to 259 and a few longer ones, each with an
// offset from an aligned address of 0 to 4 elements.
func tails(f func(n, off int)) {
	for n := range 260 {
		f(n, n%5)
		if n < 70 {
			f(n, (n+1)%5)
		}
	}
	f(1000, 1)
	f(4099, 3)
}

func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// wantSame fails where got and want differ, NaN being equal to NaN.
func wantSame(t *testing.T, what string, got, want []float32, in ...[]float32) {
	t.Helper()
	for i := range want {
		if !same(got[i], want[i]) {
			at := ""
			for _, x := range in {
				at += fmt.Sprintf(" %g (%08x)", x[i], math.Float32bits(x[i]))
			}
			t.Fatalf("%s: element %d of %d:%s: got %g (%08x), want %g (%08x)", what, i, len(want), at,
				got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
		}
	}
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }
