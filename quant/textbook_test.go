package quant

import (
	"context"
	"math"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/tensor"
)

// encode quantizes all lines along the last axis.
func encode(t *testing.T, b Blocks, x *tensor.Tensor) *Coded {
	t.Helper()
	b, err := b.Complete()
	if err != nil {
		t.Fatal(err)
	}
	l, err := LinesOf(x, x.Rank()-1)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := b.Share(nil, l)
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Encode(context.Background(), nil, l, shared, 0, l.N(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func storage(t testing.TB, name string) Storage {
	t.Helper()
	s, err := ParseStorage(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func near(a, b, tolerance float64) bool { return math.Abs(a-b) <= tolerance*math.Abs(b) }

// TestTextbookRows has the matrices that courses quantize by hand.
func TestTextbookRows(t *testing.T) {
	for _, c := range []struct {
		name  string
		b     Blocks
		x     *tensor.Tensor
		scale []float64
		codes []int
	}{
		{"asymmetric, range extended to 0", Blocks{Storage: storage(t, "u8"), Zero: Asymmetric},
			tensor.Of([]float32{2.158, 19.568, 20.41, 44.25, 0.142, 0.45, 2.158, 0.37, 99.14, 18.56, 45.25, 0.25, 10.2, 9.45, 6.57, 7.85}, 4, 4),
			[]float64{.173529, .00846275, .388784, .04},
			[]int{12, 113, 118, 255, 17, 53, 255, 44, 255, 48, 116, 1, 255, 236, 164, 196}},
		{"symmetric", Blocks{Storage: storage(t, "i8"), Zero: Symmetric},
			tensor.Of([]float32{43.91, -44.93, 0, 22.99, -43.93, -11.35, 38.48, -20.49, -38.61, -28.02,
				56.45, 0, 125, 22, 154, 0.15, -125, 256, 36, -365}, 2, 10),
			[]float64{.353780, 2.874016},
			[]int{124, -127, 0, 65, -124, -32, 109, -58, -109, -79, 20, 0, 43, 8, 54, 0, -43, 89, 13, -127}},
	} {
		got := encode(t, c.b, c.x)
		for i, want := range c.scale {
			if !near(float64(got.Scale[i]), want, 1e-5) {
				t.Errorf("%s: scale %d is %v, want %v", c.name, i, got.Scale[i], want)
			}
		}
		for i, z := range got.Zero {
			if z != 0 {
				t.Errorf("%s: zero point %d is %d", c.name, i, z)
			}
		}
		for i, want := range c.codes {
			if q := got.Code(i); q != want {
				t.Errorf("%s: code %d is %d, want %d", c.name, i, q, want)
			}
		}
	}
}

// TestTextbookRange has the ranges that explain zero points. Of the codes of
// [40, 1000], which is extended to 0, the lowest ten serve nothing.
func TestTextbookRange(t *testing.T) {
	for _, c := range []struct {
		storage string
		x       []float32
		scale   float64
		zero    int32
		lowest  int
	}{
		{"u8", []float32{0, 1000}, 1000. / 255, 0, 0},
		{"u8", []float32{-20, 1000}, 4, 5, 0},
		{"i8", []float32{-20, 1000}, 4, -123, -128},
		{"u8", []float32{40, 1000}, 1000. / 255, 0, 10},
	} {
		got := encode(t, Blocks{Storage: storage(t, c.storage), Zero: Asymmetric}, tensor.Of(c.x, 1, 2))
		if !near(float64(got.Scale[0]), c.scale, 1e-6) || got.Zero[0] != c.zero || got.Code(0) != c.lowest {
			t.Errorf("%v to %s: scale %v zero %d lowest code %d, want %v %d %d", c.x, c.storage, got.Scale[0], got.Zero[0], got.Code(0), c.scale, c.zero, c.lowest)
		}
	}
}

// TestTextbookErrors compares the squared errors of a symmetric and an
// asymmetric scheme for a whole tensor.
func TestTextbookErrors(t *testing.T) {
	x := []float32{-2.1104, 1.0370, -0.1524, 1.5283, -0.5803, 0.4747, -0.0349, -0.4250, 1.0839, 0.2665, -0.3881, 1.3272}
	for _, c := range []struct {
		b    Blocks
		sse  float64
		zero []int32
	}{
		{Blocks{Storage: storage(t, "i8"), Zero: Symmetric}, .000214, nil},
		{Blocks{Storage: storage(t, "u8"), Zero: Asymmetric}, .000164, []int32{148}},
	} {
		got := encode(t, c.b, tensor.Of(x, 1, len(x)))
		back := make([]float32, len(x))
		got.Decode(back, 0)
		sse := 0.0
		for i, v := range x {
			sse += float64(v-back[i]) * float64(v-back[i])
		}
		if math.Abs(sse-c.sse) > 5e-7 || !slices.Equal(got.Zero, c.zero) {
			t.Errorf("%s: squared error %.6f, zero %v, want %.6f %v", c.b.Zero, sse, got.Zero, c.sse, c.zero)
		}
	}
}
