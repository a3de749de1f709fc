package calibration

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/quant"
)

// uniform is splitmix64, of which the upper 32 bits count.
func uniform(seed uint64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		z := seed + uint64(i+1)*0x9E3779B97F4A7C15
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		out[i] = float64((z^z>>31)>>32) / (1 << 32)
	}
	return out
}

// distribution makes the data of testdata/make.py.
func distribution(name string) []float32 {
	const n = 200000
	u, twelve := uniform(1, n), uniform(2, 12*n)
	x := make([]float64, n)
	top := 0.0
	for i := range x {
		for _, v := range twelve[12*i : 12*i+12] {
			x[i] += v
		}
		v := x[i] - 6
		switch name {
		case "uniform":
			v = 2*u[i] - 1
		case "relu":
			v = max(v, 0)
		case "heavy":
			v = v * math.Abs(v) * math.Abs(v)
		case "outliers":
			if u[i] < 0.0001 {
				v *= 8
			}
		case "shifted":
			v += 2
		case "clipped":
			v = min(max(v+1, 0), 2)
		}
		x[i] = v
		top = max(top, math.Abs(v))
	}
	out := make([]float32, 0, n+2)
	for _, v := range x {
		out = append(out, float32(v/top*0.999))
	}
	return append(out, -1, 0)
}

func observe(t testing.TB, x []float32) *Stats {
	t.Helper()
	o := NewObserver(0, -1)
	if err := o.Update(0, []int{len(x)}, x); err != nil {
		t.Fatal(err)
	}
	return o.Stats()
}

// TestAgainstONNXRuntime compares with ranges recorded by testdata/make.py:
// they agree within the width of a bin, but for the shorter side of its
// symmetric ranges, which it clips to the elements.
func TestAgainstONNXRuntime(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "onnxruntime.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Cases []struct {
			Data, Method string
			Percentile   float64
			Symmetric    bool
			Levels       int
			Range        [2]float64
		}
	}
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	stats := map[string]*Stats{}
	for _, c := range golden.Cases {
		if stats[c.Data] == nil {
			stats[c.Data] = observe(t, distribution(c.Data))
			if w := stats[c.Data].Hist.Width(); w != 1.0/2048 {
				t.Fatalf("%s: bins of width %v", c.Data, w)
			}
		}
		o := MethodOptions{Percentile: c.Percentile, Levels: c.Levels, Scheme: quant.Scheme{Type: quant.U8, Symmetric: c.Symmetric}}
		r, err := Range(stats[c.Data], Method(c.Method), o)
		if err != nil {
			t.Fatal(err)
		}
		const bin = 1.0/2048 + 1e-7 // float32 rounding of the recorded edges
		if c.Symmetric {
			top := max(-c.Range[0], c.Range[1])
			c.Range = [2]float64{-top, top}
		}
		if math.Abs(r.Min-c.Range[0]) > bin || math.Abs(r.Max-c.Range[1]) > bin {
			t.Errorf("%s %s %v%% %d levels, symmetric %v: [%v, %v], onnxruntime has %v",
				c.Data, c.Method, c.Percentile, c.Levels, c.Symmetric, r.Min, r.Max, c.Range)
		}
	}
}

// slowDivergence is the definition, bin by bin.
func slowDivergence(counts []uint64, lo, hi, levels int, even bool) float64 {
	n := hi - lo
	p := make([]float64, n)
	for i, c := range counts {
		p[min(max(i-lo, 0), n-1)] += float64(c)
	}
	q := make([]float64, n)
	for j := range levels {
		a, b := j*(n/levels), (j+1)*(n/levels)
		if even {
			a, b = j*n/levels, (j+1)*n/levels
		}
		end := b
		if j == levels-1 {
			end = n
		}
		var sum, fill uint64
		for i := a; i < end; i++ {
			sum += counts[lo+i]
			if i < b && p[i] > 0 {
				fill++
			}
		}
		for i := a; i < b && fill > 0; i++ {
			q[i] = float64(sum / fill)
		}
	}
	smooth := func(d []float64) (total float64) {
		zeros := 0.0
		for _, v := range d {
			if v == 0 {
				zeros++
			}
		}
		less := smoothing * zeros / (float64(len(d)) - zeros)
		for i, v := range d {
			if d[i] = v - less; v == 0 {
				d[i] = smoothing
			}
			total += d[i]
		}
		return total
	}
	sp, sq := smooth(p), smooth(q)
	kl := 0.0
	for i := range p {
		kl += p[i] / sp * math.Log(p[i]/sp*sq/q[i])
	}
	return kl
}

func TestDivergence(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		const half = 32
		counts := make([]uint64, 2*half)
		for i := range counts {
			if r.IntN(3) > 0 {
				counts[i] = uint64(r.IntN(1000))
			}
		}
		counts[30+r.IntN(4)] += 100000
		levels := 2 + r.IntN(8)
		e := newDivergences(counts, levels)
		check := func(what string, w span, even bool, got float64) {
			t.Helper()
			want := slowDivergence(counts, w.lo, w.hi, levels, even)
			if !(math.Abs(got-want) <= 1e-8*(1+math.Abs(want))) {
				t.Fatalf("%s [%d, %d) in %d: %v, by definition %v", what, w.lo, w.hi, levels, got, want)
			}
		}
		for i := max(levels/2, 4); i <= half; i++ { // bins 30 to 33 are inside, so that a group is filled
			w := window(half, i)
			check("centered", w, false, e.of(w, false))
		}
		for range 4 {
			lo := r.IntN(30)
			w := span{lo, min(64, max(lo+levels, 35+r.IntN(30)))}
			check("even", w, true, e.of(w, true))
		}
	}
}

// TestEntropySearch tries all windows one by one.
func TestEntropySearch(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 4))
	for k := range 300 {
		bins, levels := 4+r.IntN(40), 2+r.IntN(3)
		o := NewObserver(bins, -1)
		x := make([]float32, 300)
		for i := range x {
			if x[i] = float32(r.NormFloat64()); k%2 == 0 {
				x[i] *= x[i] * x[i]
			}
		}
		if err := o.Update(0, []int{len(x)}, x); err != nil {
			t.Fatal(err)
		}
		s := o.Stats()
		got, err := Range(s, Entropy, MethodOptions{Levels: levels})
		if err != nil {
			t.Fatal(err)
		}
		half := len(s.Hist.Counts) / 2
		used := int(max(math.Floor(float64(s.Max)/s.Hist.Width())+1, -math.Floor(float64(s.Min)/s.Hist.Width())))
		best, all := math.Inf(1), map[quant.Range]float64{}
		for i := levels / 2; i <= used; i++ {
			w := window(half, i)
			d := slowDivergence(s.Hist.Counts, w.lo, w.hi, levels, false)
			rg := quant.Range{Min: math.Max(s.Hist.Edge(w.lo), float64(s.Min)), Max: math.Min(s.Hist.Edge(w.hi), float64(s.Max))}
			if old, ok := all[rg]; !ok || d < old {
				all[rg] = d
			}
			if d < best {
				best = d
			}
		}
		if d, ok := all[got]; !ok || !(d <= best+1e-9) {
			t.Fatalf("%d bins, %d levels: %v has %v, the best %v", bins, levels, got, d, best)
		}
	}
}

func TestEntropyOneSided(t *testing.T) {
	x := distribution("relu")
	for i := range x {
		x[i] = max(x[i], 0)
	}
	r, err := Range(observe(t, x), Entropy, MethodOptions{})
	if err != nil || r.Min != 0 || r.Max < 0.3 || r.Max > 1 {
		t.Errorf("positive: %v, %v", r, err)
	}
	for i := range x {
		x[i] = -x[i]
	}
	s, err := Range(observe(t, x), Entropy, MethodOptions{})
	if err != nil || s.Max != 0 || math.Abs(s.Min+r.Max) > 0.1 {
		t.Errorf("negative: %v, %v; the other side %v", s, err, r)
	}
	// However many zeros there are, the range is that of the rest.
	for _, sign := range []float32{1, -1} {
		x := distribution("normal")
		for i := range x {
			x[i] = sign * float32(math.Abs(float64(x[i])))
		}
		few, err := Range(observe(t, x), Entropy, MethodOptions{})
		if err != nil {
			t.Fatal(err)
		}
		many, err := Range(observe(t, append(x, make([]float32, 4*len(x))...)), Entropy, MethodOptions{})
		if err != nil || math.Abs(many.Max-few.Max)+math.Abs(many.Min-few.Min) > .1*(few.Max-few.Min) {
			t.Errorf("sign %v: %v with zeros, %v without; %v", sign, many, few, err)
		}
	}
}

// trueCost is the squared error of quantizing the data itself.
func trueCost(t *testing.T, x []float32, s quant.Scheme, r quant.Range) float64 {
	t.Helper()
	p, err := s.Tensor(r)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, v := range x {
		d := float64(v) - float64(p.Value(p.Code(v, 0), 0))
		sum += d * d
	}
	return sum
}

func TestSearches(t *testing.T) {
	for _, name := range []string{"normal", "relu", "heavy", "outliers", "shifted", "uniform"} {
		x := distribution(name)
		s := observe(t, x)
		for _, scheme := range []quant.Scheme{{Type: quant.U8, Axis: -1}, {Type: quant.I8, Symmetric: true, Axis: -1}, {Type: quant.U16, Axis: -1}} {
			full, _ := Range(s, MinMax, MethodOptions{Scheme: scheme})
			whole := trueCost(t, x, scheme, full)
			var costs [2]float64
			for i, m := range []Method{MSE, HistogramSearch} {
				r, err := Range(s, m, MethodOptions{Scheme: scheme})
				if err != nil {
					t.Fatal(err)
				}
				costs[i] = trueCost(t, x, scheme, r)
				if costs[i] > whole*1.01 {
					t.Errorf("%s %v %s: cost %v, %v without clipping", name, scheme, m, costs[i], whole)
				}
			}
			if costs[0] > costs[1]*1.01 {
				t.Errorf("%s %v: mse costs %v, the greedy search %v", name, scheme, costs[0], costs[1])
			}
		}
		scheme := quant.Scheme{Type: quant.U8, Axis: -1}
		r, _ := Range(s, MSE, MethodOptions{})
		got := trueCost(t, x, scheme, r)
		for lo := 0.1; lo <= 1; lo += 0.1 {
			for hi := 0.1; hi <= 1; hi += 0.1 {
				alt := quant.Range{Min: float64(s.Min) * lo, Max: float64(s.Max) * hi}
				if c := trueCost(t, x, scheme, alt); c < got*0.98 {
					t.Errorf("%s: [%v, %v] costs %v, but [%v, %v] %v", name, r.Min, r.Max, got, alt.Min, alt.Max, c)
				}
			}
		}
	}
}

func TestMovingAverage(t *testing.T) {
	o := NewObserver(0, -1)
	for _, i := range []int{2, 0, 1} {
		v := []float32{float32(-i), float32(10 * i)}
		if err := o.Update(i, []int{2}, v); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Range(o.Stats(), MovingAverage, MethodOptions{Average: 0.5})
	if want := (quant.Range{Min: -1.25, Max: 12.5}); err != nil || r != want {
		t.Errorf("%v, %v; want %v", r, err, want)
	}
}

func TestRangeEdges(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, m := range Methods() {
		if got, err := ParseMethod(string(m)); err != nil || got != m {
			t.Errorf("%s: %v", m, err)
		}
		for name, x := range map[string][]float32{
			"zeros": make([]float32, 100), "one": {3}, "negative": {-3}, "tiny": {1e-45, -1e-45}, "huge": {3e38, -1e29, 3.4e38},
			"constant": {2.5, 2.5, 2.5}, "masked": {1, -inf, 2, -1e30, 3},
		} {
			s := observe(t, x)
			for _, scheme := range []quant.Scheme{{Type: quant.U8, Axis: -1}, {Type: quant.I8.Narrow(), Symmetric: true, Axis: -1}} {
				r, err := Range(s, m, MethodOptions{Scheme: scheme})
				if err != nil {
					t.Errorf("%s of %s: %v", m, name, err)
					continue
				}
				top := max(-float64(s.Min), float64(s.Max))
				inside := r.Min >= float64(s.Min) && r.Max <= float64(s.Max)
				if scheme.Symmetric {
					inside = r.Min == -r.Max && r.Max <= top
				}
				if !inside || r.Min > r.Max {
					t.Errorf("%s of %s: %v of [%v, %v]", m, name, r, s.Min, s.Max)
				}
			}
		}
		if _, err := Range(observe(t, nil), m, MethodOptions{}); !errors.Is(err, ErrNoElements) {
			t.Errorf("%s of nothing: %v", m, err)
		}
		if _, err := Range(observe(t, []float32{1, nan, inf}), m, MethodOptions{}); err == nil || !strings.Contains(err.Error(), "1 NaN and 1 infinite") {
			t.Errorf("%s of NaN: %v", m, err)
		}
	}
	s := observe(t, []float32{1, 2})
	for _, c := range []struct {
		m Method
		o MethodOptions
	}{{"best", MethodOptions{}}, {Percentile, MethodOptions{Percentile: 101}}, {Percentile, MethodOptions{Percentile: -1}},
		{MovingAverage, MethodOptions{Average: 2}}, {Entropy, MethodOptions{Levels: 5000}}, {Entropy, MethodOptions{Levels: 1}}} {
		if _, err := Range(s, c.m, c.o); err == nil {
			t.Errorf("%s with %+v gives no error", c.m, c.o)
		}
	}
}

func BenchmarkMethods(b *testing.B) {
	s := observe(b, distribution("heavy"))
	for _, m := range Methods() {
		b.Run(string(m), func(b *testing.B) {
			for b.Loop() {
				if _, err := Range(s, m, MethodOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestEntropyBound: bounds of divergences hold, most are close, and the range is
// that of the narrowest window of the least divergence.
func TestEntropyBound(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	makers := map[string]func() float64{
		"normal":  r.NormFloat64,
		"rectify": func() float64 { return max(r.NormFloat64(), 0) },
		"heavy":   func() float64 { return r.NormFloat64() / (0.01 + r.Float64()) },
		"uniform": func() float64 { return r.Float64() - 0.3 },
		"few":     func() float64 { return float64(r.IntN(5)) },
		"outlier": func() float64 { return float64(r.IntN(1000)/999)*1000 + r.NormFloat64() },
	}
	told, all := 0, 0
	for _, name := range slices.Sorted(mapKeys(makers)) {
		for _, n := range []int{3, 100, 5000, 200000} {
			x := make([]float32, n)
			for i := range x {
				x[i] = float32(makers[name]())
			}
			o := NewObserver(512, -1)
			if err := o.Update(0, []int{n}, x); err != nil {
				t.Fatal(err)
			}
			h := &o.Stats().Hist
			half, levels := len(h.Counts)/2, 128
			e := newDivergences(h.Counts, levels)
			best, from := math.Inf(1), 0
			used := 0
			for i, c := range h.Counts {
				if c > 0 {
					used = max(used, half-i, i-half+1)
				}
			}
			to := min(max(used, levels/2), half)
			lower, most := e.bounds(levels/2, to)
			for i := levels / 2; i <= to; i++ {
				w := window(half, i)
				d, bound := e.of(w, false), lower[i-levels/2]
				if bound > d {
					t.Errorf("%s, %d elements, window %v: bound %v, divergence %v", name, n, w, bound, d)
				}
				if d < best {
					best, from = d, w.lo
				}
				all++
				if bound > d-1e-3 {
					told++
				}
			}
			if best > most {
				t.Errorf("%s, %d elements: at most %v, found %v", name, n, most, best)
			}
			for n := levels; n <= half; n += 7 {
				w := span{half, half + n}
				d := e.of(w, true)
				if bound := e.atLeast(w); bound > d {
					t.Errorf("%s, %d elements, window %v: bound %v, divergence %v", name, n, w, bound, d)
				}
			}
			got, err := entropyRange(o.Stats(), levels, true)
			if err != nil || got.Min != h.Edge(from) {
				t.Errorf("%s, %d elements: from %v, want %v (%v)", name, n, got.Min, h.Edge(from), err)
			}
		}
	}
	if told < all/2 {
		t.Errorf("the bounds are close for %d windows of %d", told, all)
	}
}
