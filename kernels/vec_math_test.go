package kernels

import (
	"math"
	"math/big"
	"testing"
)

func TestFMA(t *testing.T) {
	r := random(1)
	check := func(x, y, z float32) {
		bx, by, bz := big.NewFloat(float64(x)).SetPrec(600), big.NewFloat(float64(y)).SetPrec(600), big.NewFloat(float64(z)).SetPrec(600)
		want, _ := bx.Add(bx.Mul(bx, by), bz).Float32()
		if got := fma(x, y, z); got != want {
			t.Fatalf("fma(%g, %g, %g) = %g, want %g", x, y, z, got, want)
		}
	}
	check(1+0x1p-12, 1+0x1p-12, -1)
	check(1+0x1p-23, 0x1p-24, 1) // above half way by less than float64 can hold
	check(1-0x1p-24, 0x1p-24, 1)
	check(-1+0x1p-24, 0x1p-24, -1)
	check(1+0x1p-23, -0x1p-24-0x1p-40, 1)
	for range 200000 {
		x, y := float32(r.NormFloat64()), float32(r.NormFloat64())
		z := math.Float32frombits(math.Float32bits(x*y) + uint32(r.IntN(40)-20)<<23)
		if r.IntN(2) == 0 {
			z = -z
		}
		if r.IntN(3) == 0 { // few bits make ties likely
			x, y = float32(int(x*4096)), float32(math.Ldexp(float64(int(y*4096)), r.IntN(80)-40))
		}
		check(x, y, z)
	}
}

// ulps returns how many float32 lie between got and the float32 nearest to want.
func ulps(got float32, want float64) int64 {
	w := float32(want)
	if got != got || w != w {
		if same(got, w) {
			return 0
		}
		return math.MaxInt64
	}
	order := func(x float32) int64 {
		if b := math.Float32bits(x); b>>31 == 1 {
			return -int64(b &^ (1 << 31))
		} else {
			return int64(b)
		}
	}
	d := order(got) - order(w)
	return max(d, -d)
}

var functions = []struct {
	name string
	f    func(float32) float32
	want func(float64) float64
	ulp  int64
}{
	{"exp", exp32, math.Exp, 1},
	{"log", log32, math.Log, 1},
	{"tanh", tanh32, math.Tanh, 1},
	{"sigmoid", sigmoid32, func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }, 2},
	{"erf", erf32, math.Erf, 1},
	{"softplus", softplus32, softplus64, 2},
	{"mish", mish32, func(x float64) float64 { return x * math.Tanh(softplus64(x)) }, 4},
	{"expm1", func(x float32) float32 { return expLinear32(x, 1, 1, 1) },
		func(x float64) float64 { return max(x, 0) + math.Expm1(min(x, 0)) }, 2},
}

func softplus64(x float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }

func TestMathAccuracy(t *testing.T) {
	step := uint64(4099)
	if testing.Short() {
		step = 65537
	}
	for _, c := range functions {
		worst, at := int64(0), float32(0)
		for b := uint64(0); b < 1<<32; b += step {
			x := math.Float32frombits(uint32(b))
			if c.name == "mish" && x < -87 {
				continue // x times a subnormal number
			}
			if u := ulps(c.f(x), c.want(float64(x))); u > worst {
				worst, at = u, x
			}
		}
		t.Logf("%s: at most %d ulp, at %g", c.name, worst, at)
		if worst > c.ulp {
			t.Errorf("%s: %d ulp at %g: %g, want %g", c.name, worst, at, c.f(at), c.want(float64(at)))
		}
	}
}
