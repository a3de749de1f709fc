package quant

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/tensor"
)

// correlated returns the second moment of k inputs that have much in common.
func correlated(r *rand.Rand, k int) []float32 {
	h := make([]float32, k*k)
	x := make([]float32, k)
	for range 3 * k {
		common, other := r.NormFloat64(), r.NormFloat64()
		for i := range x {
			x[i] = float32(r.NormFloat64()*0.4 + common*float64(1+i%5)/3 + other*float64(i%3))
		}
		for a := range k {
			for b := range k {
				h[a*k+b] += x[a] * x[b]
			}
		}
	}
	return h
}

func normal(r *rand.Rand, n, k int) Lines {
	t := tensor.New(tensor.Float32, n, k)
	for i := range tensor.As[float32](t) {
		tensor.As[float32](t)[i] = float32(r.NormFloat64())
	}
	l, _ := LinesOf(t, 1)
	return l
}

// quadratic returns Σ eᵀ·h·e over the errors of all lines, by its definition.
func quadratic(l Lines, c *Coded, h []float32) float64 {
	sum := 0.0
	x, back := make([]float32, l.K), make([]float32, l.K)
	for i := range l.N() {
		l.Read(x, i, i+1)
		c.Decode(back, i)
		for a := range x {
			for b := range x {
				sum += float64(x[a]-back[a]) * float64(h[a*l.K+b]) * float64(x[b]-back[b])
			}
		}
	}
	return sum
}

// TestCompensate finds codes whose errors cancel, for blocks of every kind, and
// reports their error.
func TestCompensate(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	const k, n = 150, 70
	h := correlated(r, k)
	l := normal(r, n, k)
	for _, name := range []string{"i2", "u4", "i4", "i8"} {
		for _, size := range []int{0, 16, 32, 128} {
			for _, zero := range []Zeros{Symmetric, Full, Asymmetric} {
				s, err := ParseStorage(name)
				if err != nil {
					t.Fatal(err)
				}
				b, err := Blocks{Storage: s, Size: size, Zero: zero, ScaleType: tensor.Float16, Fit: Clip}.Complete()
				if err != nil {
					t.Fatal(err)
				}
				var first *Coded
				for _, threads := range []int{1, 3} {
					pool := par.New(threads)
					pool.Begin()
					m, err := NewMoment(t.Context(), pool, h, nil, k, size, 0.01)
					if err != nil {
						t.Fatal(err)
					}
					c, losses, err := b.Compensate(t.Context(), pool, l, Shared{Global: 1}, []*Moment{m})
					pool.End()
					if err != nil {
						t.Fatal(err)
					}
					if first == nil {
						first = c
						if got := quadratic(l, c, h); math.Abs(got/losses.Chosen-1) > 0.02 {
							t.Errorf("%v: error %g, reported %g", b, got, losses.Chosen)
						}
						if !(losses.Chosen < 0.5*losses.Nearest) || !(losses.Nearest < losses.Signal) {
							t.Errorf("%v: error %g, nearest %g, signal %g", b, losses.Chosen, losses.Nearest, losses.Signal)
						}
						lo, hi, _ := b.codeRange()
						for i := range c.Codes {
							if q := int32(c.Code(i)); q < lo || q > hi {
								t.Fatalf("%v: code %d", b, q)
							}
						}
					} else if !bytes.Equal(first.Codes, c.Codes) {
						t.Errorf("%v: %d threads give other codes", b, threads)
					}
				}
			}
		}
	}
}

// TestCompensateShift makes up for what inputs lack: with h and cross = A·h the
// codes stand for w + w·A.
func TestCompensateShift(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, k := range []int{7, 64, 150} {
		h := correlated(r, k)
		for i := range k {
			h[i*k+i] += float32(8 * k)
		}
		a, cross := make([]float32, k*k), make([]float32, k*k)
		for i := range k {
			a[i*k+(i+1)%k] = 0.3
			for j := range k {
				cross[i*k+j] = 0.3 * h[(i+1)%k*k+j]
			}
		}
		m, err := NewMoment(t.Context(), nil, h, cross, k, 0, 1e-6)
		if err != nil {
			t.Fatal(err)
		}
		s, _ := ParseStorage("i8")
		b, err := Blocks{Storage: s}.Complete()
		if err != nil {
			t.Fatal(err)
		}
		l := normal(r, 5, k)
		c, _, err := b.Compensate(t.Context(), nil, l, Shared{Global: 1}, []*Moment{m})
		if err != nil {
			t.Fatal(err)
		}
		x, back := make([]float32, k), make([]float32, k)
		power, noise := 0.0, 0.0
		for i := range 5 {
			l.Read(x, i, i+1)
			c.Decode(back, i)
			for j, got := range back {
				want := float64(x[j]) + 0.3*float64(x[(j+k-1)%k])
				power += want * want
				noise += (want - float64(got)) * (want - float64(got))
			}
		}
		if noise > 1e-2*power {
			t.Errorf("%d inputs: error %g of %g", k, noise, power)
		}
	}
}

// Inputs that say nothing, and values that are no numbers, leave the nearest
// codes; a context that has ended is the error.
func TestCompensateDegenerate(t *testing.T) {
	const k, n = 70, 3
	r := rand.New(rand.NewPCG(11, 12))
	l := normal(r, n, k)
	s, _ := ParseStorage("i4")
	b, err := Blocks{Storage: s, Size: 32}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	near, err := b.Encode(t.Context(), nil, l, Shared{Global: 1}, 0, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]float32{"nothing": 0, "NaN": float32(math.NaN()), "infinite": float32(math.Inf(1))} {
		h := make([]float32, k*k)
		for i := range h {
			h[i] = x
		}
		m, err := NewMoment(t.Context(), nil, h, nil, k, 32, 0.01)
		if err != nil {
			t.Fatal(err)
		}
		c, _, err := b.Compensate(t.Context(), nil, l, Shared{Global: 1}, []*Moment{m})
		if err != nil {
			t.Fatal(err)
		}
		sse := func(c *Coded) float64 {
			one := make([]float32, k*k)
			for i := range k {
				one[i*k+i] = 1
			}
			return quadratic(l, c, one)
		}
		// Without a word on the inputs, the weight alone counts.
		if name != "nothing" && !bytes.Equal(c.Codes, near.Codes) || !(sse(c) <= sse(near)) {
			t.Errorf("%s: squared error %g, the nearest codes have %g", name, sse(c), sse(near))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewMoment(ctx, nil, make([]float32, k*k), nil, k, 32, 0.01); !errors.Is(err, context.Canceled) {
		t.Errorf("NewMoment: %v", err)
	}
}
