package ops

import (
	"math"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// TestRandomMoments checks mean and deviation of what is drawn, that a seed
// decides, and that every run draws the same.
func TestRandomMoments(t *testing.T) {
	shape := graph.Ints("shape", 100, 100)
	like := counted(tensor.Float16, 100, 100)
	half := tensor.New(tensor.Float32, 100, 100)
	for i := range half.Len() {
		tensor.As[float32](half)[i] = 0.25
	}
	cases := []struct {
		name      string
		ins       []Data
		attrs     []*graph.Attr
		dtype     tensor.DType
		mean, dev float64
	}{
		{"RandomNormal", nil, []*graph.Attr{shape, graph.Float("mean", 3), graph.Float("scale", 2)}, tensor.Float32, 3, 2},
		{"RandomUniform", nil, []*graph.Attr{shape, graph.Float("low", -1), graph.Float("high", 3), graph.Int("dtype", 11)}, tensor.Float64, 1, 4 / math.Sqrt(12)},
		{"RandomNormalLike", []Data{like}, nil, tensor.Float16, 0, 1},
		{"RandomUniformLike", []Data{like}, []*graph.Attr{graph.Int("dtype", 1)}, tensor.Float32, 0.5, 1 / math.Sqrt(12)},
		{"Bernoulli", []Data{half}, []*graph.Attr{graph.Int("dtype", 7)}, tensor.Int64, 0.25, math.Sqrt(0.25 * 0.75)},
	}
	for _, c := range cases {
		draw := func(seed float32) []float64 {
			got, err := single{op: op(c.name), opset: 22, ins: c.ins, attrs: append([]*graph.Attr{graph.Float("seed", seed)}, c.attrs...)}.run()
			if err != nil {
				t.Fatal(err)
			}
			y := got[0].(*tensor.Tensor)
			if y.DType() != c.dtype {
				t.Errorf("%s draws %v, want %v", c.name, y, c.dtype)
			}
			v, _ := tensor.Float64s(y)
			return v
		}
		a, b, other := draw(1), draw(1), draw(2)
		sum, squares, equal := 0.0, 0.0, 0
		for i, v := range a {
			sum += v
			squares += v * v
			if v != b[i] {
				t.Fatalf("%s: two runs differ", c.name)
			}
			if v == other[i] {
				equal++
			}
		}
		n := float64(len(a))
		mean := sum / n
		dev := math.Sqrt(squares/n - mean*mean)
		if math.Abs(mean-c.mean) > 5*c.dev/math.Sqrt(n) || math.Abs(dev-c.dev) > 0.05*c.dev {
			t.Errorf("%s: mean %v, deviation %v, want %v and %v", c.name, mean, dev, c.mean, c.dev)
		}
		if equal == len(a) {
			t.Errorf("%s: the seed does not matter", c.name)
		}
	}
}

// TestMultinomial counts the outcomes of a distribution.
func TestMultinomial(t *testing.T) {
	logits := tensor.Of([]float32{float32(math.Log(1)), float32(math.Log(2)), float32(math.Log(5))}, 1, 3)
	got, err := single{op: op("Multinomial"), opset: 7, ins: []Data{logits}, attrs: []*graph.Attr{graph.Int("sample_size", 8000)}}.run()
	if err != nil {
		t.Fatal(err)
	}
	var counts [3]int
	for _, v := range tensor.As[int32](got[0].(*tensor.Tensor)) {
		counts[v]++
	}
	for i, want := range []float64{1000, 2000, 5000} {
		if math.Abs(float64(counts[i])-want) > 200 {
			t.Errorf("outcome %d comes up %d times, want about %v", i, counts[i], want)
		}
	}
}

// TestFourier compares transforms of all small lengths, and some long ones,
// with the definition.
func TestFourier(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 30, 97, 128, 400, 1023} {
		x := make([]complex128, n)
		for i := range x {
			x[i] = complex(math.Sin(float64(i*i)), math.Cos(float64(3*i)))
		}
		y := append([]complex128{}, x...)
		f := newFFT(n)
		f.transform(y)
		for k := range y {
			want := complex128(0)
			for i, v := range x {
				a := -2 * math.Pi * float64(i*k%n) / float64(n)
				want += v * complex(math.Cos(a), math.Sin(a))
			}
			if d := y[k] - want; math.Hypot(real(d), imag(d)) > 1e-10*float64(n) {
				t.Fatalf("%d points: element %d is %v, want %v", n, k, y[k], want)
			}
		}
		f.inverse(y)
		for k := range y {
			if d := y[k] - x[k]; math.Hypot(real(d), imag(d)) > 1e-12*float64(n) {
				t.Fatalf("%d points: inverse of element %d is %v, want %v", n, k, y[k], x[k])
			}
		}
	}
}

// TestGenerator compares with numpy: RandomState(42).uniform(size=700).
func TestGenerator(t *testing.T) {
	n := single{op: graph.OpKey{Type: "RandomUniform"}, opset: 13, attrs: []*graph.Attr{graph.Float("seed", 42)}}.node()
	g := newGenerator(n)
	var u [700]float64
	for i := range u {
		u[i] = g.uniform()
	}
	if u[0] != 0.3745401188473625 || u[1] != 0.9507143064099162 || u[699] != 0.4811401018548175 {
		t.Errorf("drew %v, %v … %v", u[0], u[1], u[699])
	}
}
