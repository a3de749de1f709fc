package eval

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

var (
	nan = float32(math.NaN())
	inf = float32(math.Inf(1))
)

func f32(shape []int, v ...float32) ops.Data { return tensor.Of(v, shape...) }

func half(v ...float32) ops.Data {
	t := tensor.New(tensor.Float16, 1, len(v))
	tensor.Write(t, 0, v)
	return t
}

func near(p *float64, want float64) bool {
	if p == nil || math.IsNaN(want) {
		return p == nil && math.IsNaN(want)
	}
	return math.Abs(*p-want) < 1e-6
}

// The figures are worked out by hand; NaN stands for none.
func TestComparison(t *testing.T) {
	none := math.NaN()
	for _, c := range []struct {
		name                 string
		ref, got             ops.Data
		sqnr, cosine, argmax float64
		different            int
	}{
		{"equal", f32([]int{1, 2}, 3, 4), f32([]int{1, 2}, 3, 4), none, 1, 1, 0},
		// 25 / (0.25 + 0.25) = 50; (3·3.5 + 4·4.5)/(5·√(3.5²+4.5²)) = 28.5/28.504386
		{"noise", f32([]int{1, 2}, 3, 4), f32([]int{1, 2}, 3.5, 4.5), 16.9897000, 0.99984615, 1, 0},
		{"opposite", f32([]int{1, 2}, 3, 4), f32([]int{1, 2}, -3, -4), -6.0205999, -1, 0, 0},
		{"orthogonal", f32([]int{2}, 1, 0), f32([]int{2}, 0, 1), -3.0103000, 0, none, 0},
		{"half of the rows", f32([]int{2, 2}, 0, 1, 1, 0), f32([]int{2, 2}, 0, 1, 0, 1), 0, 0.5, 0.5, 0},
		{"one class", f32([]int{2, 1}, 1, 2), f32([]int{2, 1}, 1, 2), none, 1, none, 0},
		{"no signal", f32([]int{2}, 0, 0), f32([]int{2}, 0, 1), Lost, none, none, 0},
		{"silence", f32([]int{2}, 0, 0), f32([]int{2}, 0, 0), none, none, none, 0},
		{"lost", f32([]int{2}, 1, 1), f32([]int{2}, 0, 0), 0, none, none, 0},
		{"same NaN and Inf", f32([]int{3}, nan, inf, 1), f32([]int{3}, nan, inf, 1), none, 1, none, 0},
		{"NaN appears", f32([]int{2}, 2, 1), f32([]int{2}, nan, 1), Lost, 1, none, 1},
		{"infinity appears", f32([]int{2}, 2, 1), f32([]int{2}, 2, -inf), Lost, 1, none, 1},
		{"NaN disappears", f32([]int{2}, nan, 1), f32([]int{2}, 2, 1), none, 1, none, 1},
		{"Inf changes its sign", f32([]int{2}, inf, 1), f32([]int{2}, -inf, 1), none, 1, none, 1},
		{"another length", f32([]int{2}, 3, 4), f32([]int{3}, 3, 4, 5), 0, none, none, 3},
		{"another length of integers", tensor.Of([]int64{1, 2, 3}), tensor.Of([]int64{1, 2}), none, none, none, 3},
		{"integers", tensor.Of([]int64{1, 2, 3}), tensor.Of([]int64{1, 2, 4}), none, none, none, 1},
		{"equal integers", tensor.Of([]int64{1, 2, 3}), tensor.Of([]int64{1, 2, 3}), none, none, none, 0},
		{"doubles", tensor.Of([]float64{3, 4}, 1, 2), tensor.Of([]float64{3.5, 4.5}, 1, 2), 16.9897000, 0.99984615, 1, 0},
		{"halves", half(3, 4), half(3.5, 4.5), 16.9897000, 0.99984615, 1, 0},
		{"empty", f32([]int{0, 2}), f32([]int{0, 2}), none, none, none, 0},
		{"scalar", tensor.Scalar[float32](2), tensor.Scalar[float32](1), 6.0205999, 1, none, 0},
	} {
		cmp := NewComparison([]string{"y"})
		if err := cmp.Add([]ops.Data{c.ref}, []ops.Data{c.got}); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		o := cmp.Outputs()[0]
		show := func(p *float64) any {
			if p == nil {
				return "none"
			}
			return *p
		}
		if !near(o.SQNR, c.sqnr) || !near(o.Cosine, c.cosine) || !near(o.Argmax, c.argmax) || o.Different != c.different {
			t.Errorf("%s: SQNR %v, cosine %v, argmax %v, %d different", c.name, show(o.SQNR), show(o.Cosine), show(o.Argmax), o.Different)
		}
	}
}

// Sums run over samples before they are divided: 100/1 and 1/1 make 101/2.
func TestComparisonOverSamples(t *testing.T) {
	c := NewComparison([]string{"y"})
	for _, s := range [][2]float32{{10, 9}, {1, 2}} {
		if err := c.Add([]ops.Data{f32([]int{1}, s[0])}, []ops.Data{f32([]int{1}, s[1])}); err != nil {
			t.Fatal(err)
		}
	}
	if o := c.Outputs()[0]; !near(o.SQNR, 10*math.Log10(50.5)) || c.Samples() != 2 {
		t.Errorf("SQNR %v over %d samples", *o.SQNR, c.Samples())
	}
}

func TestComparisonErrors(t *testing.T) {
	for _, c := range []struct {
		ref, got []ops.Data
		want     string
	}{
		{[]ops.Data{f32([]int{2}, 1, 2)}, []ops.Data{f32([]int{1, 2}, 1, 2)}, `output "y" is float[1,2], the reference float[2]`},
		{[]ops.Data{f32([]int{2}, 1, 2)}, []ops.Data{tensor.Of([]int32{1, 2})}, `output "y"`},
		{nil, []ops.Data{f32([]int{1}, 1)}, "0 and 1 outputs, want 1"},
	} {
		if err := NewComparison([]string{"y"}).Add(c.ref, c.got); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}

func TestWorst(t *testing.T) {
	a, b := 20., 10.
	if w := Worst([]Output{{SQNR: &a}, {}, {SQNR: &b}}); w == nil || *w != 10 {
		t.Error(w)
	}
	if w := Worst([]Output{{}, {}}); w != nil {
		t.Error(*w)
	}
}

// The figures are worked out by hand.
// Outputs of other widths count as those of float32 do.
func TestScoreWidths(t *testing.T) {
	score := func(ref, got ops.Data) float64 {
		s := NewScore(1)
		if err := s.Add([]ops.Data{ref}, []ops.Data{got}); err != nil {
			t.Fatal(err)
		}
		return s.DB()
	}
	want := score(f32([]int{1, 2}, 3, 4), f32([]int{1, 2}, 3.5, 4.5))
	if got := score(half(3, 4), half(3.5, 4.5)); got != want {
		t.Errorf("float16: %g dB, want %g", got, want)
	}
	if got := score(tensor.Of([]float64{3, 4}, 1, 2), tensor.Of([]float64{3.5, 4.5}, 1, 2)); got != want {
		t.Errorf("float64: %g dB, want %g", got, want)
	}
}

func TestScore(t *testing.T) {
	for _, c := range []struct {
		name     string
		ref, got ops.Data
		want     float64
	}{
		{"equal", f32([]int{1, 2}, 3, 4), f32([]int{1, 2}, 3, 4), math.Inf(1)},
		// One channel: values 0, 2, 0, 2 have Σ(x-1)² = 4; the noise is 0.04.
		{"one channel", f32([]int{4, 1}, 0, 2, 0, 2), f32([]int{4, 1}, 0.1, 2.1, 0.1, 2.1), 20},
		// The quiet channel counts as much as the loud one: noise to variance is
		// 0 in one, 4·0.01²/(4·0.1²) = 0.01 in the other.
		{"quiet beside loud", f32([]int{4, 2}, 100, 0.1, -100, -0.1, 100, 0.1, -100, -0.1), f32([]int{4, 2}, 100, 0.11, -100, -0.11, 100, 0.11, -100, -0.11), 10 * math.Log10(2/0.01)},
		// Channels seen once have no variance; together, 1, 2, 3, 4 have 5.
		{"one sample", f32([]int{1, 4}, 1, 2, 3, 4), f32([]int{1, 4}, 1.1, 2.1, 3.1, 4.1), 10 * math.Log10(5/0.04)},
		{"one element", f32([]int{1}, 10), f32([]int{1}, 10.1), 40},
		{"another shape", f32([]int{1, 4}, 1, 1, -1, -1), f32([]int{1, 3}, 1, 1, -1), 0},
		{"lost", f32([]int{2, 1}, 1, -1), f32([]int{2, 1}, 0, 0), 0},
		// A channel is no worse than lost.
		{"worse than lost", f32([]int{2, 1}, 1, -1), f32([]int{2, 1}, -9, 9), 0},
		{"NaN appears", f32([]int{2, 1}, 1, -1), f32([]int{2, 1}, nan, -1), math.Inf(-1)},
		{"Inf appears", f32([]int{2, 1}, 1, -1), f32([]int{2, 1}, inf, -1), math.Inf(-1)},
		{"same NaN and Inf", f32([]int{4, 1}, 1, nan, -1, inf), f32([]int{4, 1}, 1, nan, -1, inf), math.Inf(1)},
		{"NaN disappears", f32([]int{3, 1}, 1, nan, -1), f32([]int{3, 1}, 1, 0, -1), math.Inf(-1)},
		{"integers do not count", tensor.Of([]int64{1}), tensor.Of([]int64{2}), math.Inf(1)},
		{"silent", f32([]int{2, 1}, 0, 0), f32([]int{2, 1}, 0, 0), math.Inf(1)},
		{"noise where silence was", f32([]int{2, 1}, 0, 0), f32([]int{2, 1}, 1, 1), 0},
		{"NaN where silence was", f32([]int{2, 1}, 0, 0), f32([]int{2, 1}, nan, 0), math.Inf(-1)},
	} {
		s := NewScore(1)
		if err := s.Add([]ops.Data{c.ref}, []ops.Data{c.got}); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := s.DB(); got != c.want && !(math.Abs(got-c.want) < 1e-4) {
			t.Errorf("%s: %g dB, want %g", c.name, got, c.want)
		}
	}
}

// The worst output and the worse of the two axes count. Along axis 1 of
// [4,2,2] noise lies in one of two channels, along the last axis in both.
func TestScoreAxes(t *testing.T) {
	ref := f32([]int{4, 2, 2}, slices.Repeat([]float32{1, -1, 1, -1}, 4)...)
	got := f32([]int{4, 2, 2}, slices.Repeat([]float32{1.1, -1.1, 1, -1}, 4)...)
	s := NewScore(2)
	if err := s.Add([]ops.Data{ref, ref}, []ops.Data{ref, got}); err != nil {
		t.Fatal(err)
	}
	// Axis 1: mean of 0.02/2 and 0. Last axis: both channels are constant, so
	// they are measured against 1e-6 of the power, and are lost.
	if db := s.DB(); db != 0 {
		t.Errorf("%g dB", db)
	}
	if err := NewScore(1).Add(nil, nil); err == nil {
		t.Error("no error for a missing output")
	}
}

// Rows and columns of images are no channels: the figure of a map whose first column
// hardly moves is that of the map, in either layout; where the lengths do not tell, both
// axes count.
func TestScoreSpatial(t *testing.T) {
	for _, c := range []struct {
		shape []int
		want  [2]bool
	}{
		{[]int{1, 1, 480, 640}, [2]bool{false, true}},
		{[]int{1, 257, 257, 21}, [2]bool{true, false}},
		{[]int{1, 64, 80, 80}, [2]bool{false, true}},
		{[]int{1, 21, 20, 30}, [2]bool{}},
		{[]int{8, 20, 20, 20}, [2]bool{}},
		{[]int{1, 1, 1, 1000}, [2]bool{true, false}},
		{[]int{1, 1000, 1, 1}, [2]bool{false, true}},
		{[]int{1, 4, 16, 16, 16}, [2]bool{false, true}},
		{[]int{1, 0, 0, 3}, [2]bool{true, false}},
		{[]int{1, 6300, 85}, [2]bool{}},
		{[]int{1, 10}, [2]bool{}},
		{nil, [2]bool{}},
	} {
		if got := spatial(c.shape); got != c.want {
			t.Errorf("%v: %v, want %v", c.shape, got, c.want)
		}
	}
	// Rows of 0, 1, -1, 0 around a column of zeros, and noise of 0.1 everywhere.
	x := []float32{0, 1, -1, 0, 0, -1, 1, 0, 0, 1, -1, 0, 0, -1, 1, 0}
	y := slices.Clone(x)
	for i := range y {
		y[i] += 0.1
	}
	for _, shape := range [][]int{{1, 1, 4, 4}, {1, 4, 4, 1}} {
		s := NewScore(1)
		if err := s.Add([]ops.Data{f32(shape, x...)}, []ops.Data{f32(shape, y...)}); err != nil {
			t.Fatal(err)
		}
		if got, want := s.DB(), 10*math.Log10(8/0.16); math.Abs(got-want) > 1e-4 {
			t.Errorf("%v: %g dB, want %g", shape, got, want)
		}
	}
}

// A sequence of maps is compared row by row, as the matrix it was made from.
func TestMaps(t *testing.T) {
	keys := tensor.Of([]int64{3, 5})
	maps := func(keys *tensor.Tensor, rows ...[]float32) ops.Sequence {
		var s ops.Sequence
		for _, r := range rows {
			s = append(s, &ops.Map{Keys: keys, Values: tensor.Of(r)})
		}
		return s
	}
	ref := maps(keys, []float32{1, 0}, []float32{0.25, 0.75})
	got := maps(keys, []float32{0.5, 0}, []float32{0.75, 0.25})
	c, m := NewComparison([]string{"a", "b", "c"}), NewComparison([]string{"m"})
	other := maps(tensor.Of([]int64{3, 6}), []float32{1, 0}, []float32{0.25, 0.75})
	if err := c.Add([]ops.Data{ref, ref, &ops.Optional{Elem: ref}}, []ops.Data{got, other, &ops.Optional{Elem: ref}}); err != nil {
		t.Fatal(err)
	}
	if err := m.Add([]ops.Data{f32([]int{2, 2}, 1, 0, 0.25, 0.75)}, []ops.Data{f32([]int{2, 2}, 0.5, 0, 0.75, 0.25)}); err != nil {
		t.Fatal(err)
	}
	a, b, opt, want := c.Outputs()[0], c.Outputs()[1], c.Outputs()[2], m.Outputs()[0]
	if *a.SQNR != *want.SQNR || *a.Cosine != *want.Cosine || *a.Argmax != *want.Argmax || a.Different != 0 {
		t.Errorf("%+v, want %+v", a, want)
	}
	if b.SQNR != nil || b.Different != 2 {
		t.Errorf("other keys: %+v", b)
	}
	if opt.SQNR != nil || opt.Different != 0 || *opt.Argmax != 1 {
		t.Errorf("optional: %+v", opt)
	}
	if err := c.Add([]ops.Data{ref, ref, ref}, []ops.Data{ref[:1], ref, ref}); err == nil {
		t.Error("no error for fewer maps")
	}
	s := NewScore(1)
	if err := s.Add([]ops.Data{ref}, []ops.Data{ref}); err != nil || !math.IsInf(s.DB(), 1) {
		t.Error(err, s.DB())
	}
	if err := s.Add([]ops.Data{ref}, []ops.Data{got}); err != nil || math.IsInf(s.DB(), 1) {
		t.Error(err, s.DB())
	}
}
