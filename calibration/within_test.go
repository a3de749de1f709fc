package calibration

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/quant"
)

// Ranges follow from clamped statistics as from those of the clamped elements, to
// within a bin.
func TestWithin(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	const rows, columns = 500, 4
	of := func(clamp func(float32) float32, x []float32) *Stats {
		o := NewObserver(0, 1)
		for i := range 2 {
			part := slices.Clone(x[i*len(x)/2 : (i+1)*len(x)/2])
			for k := range part {
				part[k] = clamp(part[k])
			}
			if err := o.Update(i, []int{rows / 2, columns}, part); err != nil {
				t.Fatal(err)
			}
		}
		return o.Stats()
	}
	x := make([]float32, rows*columns)
	for i := range x {
		x[i] = float32(r.NormFloat64() * []float64{1, 2, 5, 9}[i%columns])
	}
	whole := of(func(v float32) float32 { return v }, x)
	for _, b := range [][2]float64{{-3, math.Inf(1)}, {-3, 3}, {math.Inf(-1), 0}, {-50, 50}, {100, 200}} {
		got := whole.Within(b[0], b[1])
		want := of(func(v float32) float32 { return float32(min(max(float64(v), b[0]), b[1])) }, x)
		if got.Count != want.Count || got.Min != want.Min || got.Max != want.Max || !slices.Equal(got.Samples, want.Samples) ||
			!slices.Equal(got.Channels.Min, want.Channels.Min) || !slices.Equal(got.Channels.Max, want.Channels.Max) || !slices.Equal(got.Channels.Count, want.Channels.Count) {
			t.Errorf("%v: %+v, want %+v", b, got, want)
		}
		width := max(got.Hist.Width(), want.Hist.Width())
		for _, m := range Methods() {
			a, err := Range(got, m, MethodOptions{Sensitivity: []float64{1, 1, 2, 1}})
			if err != nil {
				t.Fatalf("%v %s: %v", b, m, err)
			}
			if a.Min < b[0] || a.Max > b[1] {
				t.Errorf("%v %s: %v", b, m, a)
			}
			// The others search on the histogram, whose bins are of other widths.
			if m != MinMax && m != MovingAverage && m != Percentile {
				continue
			}
			w, err := Range(want, m, MethodOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if math.Abs(a.Min-w.Min) > width || math.Abs(a.Max-w.Max) > width {
				t.Errorf("%v %s: %v, want %v", b, m, a, w)
			}
		}
	}
	if got := whole.Within(-50, 50); got != whole {
		t.Error("bounds beyond all elements made other statistics")
	}
	if r, err := Range(new(Stats).Within(-1, 1), MinMax, MethodOptions{}); err != ErrNoElements || r != (quant.Range{}) {
		t.Errorf("no elements: %v, %v", r, err)
	}
}
