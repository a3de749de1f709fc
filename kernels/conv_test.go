package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"github.com/onnxq/onnxq/internal/par"
)

func TestTapTileLayout(t *testing.T) {
	var x tapTile
	for i, got := range []uintptr{
		unsafe.Offsetof(x.x), unsafe.Offsetof(x.y), unsafe.Offsetof(x.res), unsafe.Offsetof(x.w), unsafe.Offsetof(x.off),
		unsafe.Offsetof(x.taps), unsafe.Offsetof(x.rows), unsafe.Offsetof(x.columns), unsafe.Offsetof(x.xStep),
		unsafe.Offsetof(x.yStep), unsafe.Offsetof(x.bias), unsafe.Offsetof(x.lo), unsafe.Offsetof(x.hi),
	} {
		want := []uintptr{0, 24, 48, 72, 96, 120, 128, 136, 144, 152, 160, 164, 168}[i]
		if unsafe.Sizeof(uintptr(0)) == 8 && got != want {
			t.Errorf("field %d lies at %d; the generator says %d", i, got, want)
		}
	}
}

// refConv is the definition of Conv and ConvTranspose in float64, and the sum
// of the absolute products for the error bound.
func refConv(c *Conv, x, w []float32, n int, in, out [3]int, residual []float32) (y, size []float64) {
	s := c.spec
	cin, cout := s.Cin/s.Groups, s.Cout/s.Groups
	y, size = make([]float64, n*s.Cout*volume(out)), make([]float64, n*s.Cout*volume(out))
	from, to := in, out // the side that is stepped by 1 and the one by the stride
	if !c.transposed {
		from, to = out, in
	}
	for img := range n {
		for co := range s.Cout {
			g := co / cout
			for p := range volume(from) {
				for tap := range c.taps {
					var at [3]int
					ok := true
					pp, kk := p, tap
					for i := 2; i >= 0; i-- {
						a := c.axes[i]
						at[i] = pp%from[i]*a.stride + kk%a.kernel*a.dilation - a.begin
						pp /= from[i]
						kk /= a.kernel
						ok = ok && at[i] >= 0 && at[i] < to[i]
					}
					if !ok {
						continue
					}
					q := (at[0]*to[1]+at[1])*to[2] + at[2]
					for ci := range cin {
						xi, yi, wi := q, p, (co*cin+ci)*c.taps+tap
						if c.transposed {
							xi, yi, wi = p, q, ((g*cin+ci)*cout+co%cout)*c.taps+tap
						}
						v := float64(x[(img*s.Cin+g*cin+ci)*volume(in)+xi]) * float64(w[wi])
						yi += (img*s.Cout + co) * volume(out)
						y[yi] += v
						size[yi] += math.Abs(v)
					}
				}
			}
			for p := range volume(out) {
				i := (img*s.Cout+co)*volume(out) + p
				for _, v := range []float64{pick(c.bias, co), pick(residual, i)} {
					y[i] += v
					size[i] += math.Abs(v)
				}
				y[i] = min(max(y[i], float64(c.lo)), float64(c.hi))
			}
		}
	}
	return y, size
}

func testConv(t *testing.T, r *rand.Rand, pool *par.Pool, s ConvSpec, spatial []int, transposed bool) {
	t.Helper()
	taps := 1
	for _, k := range s.Kernel {
		taps *= k
	}
	w := randoms(t, r, s.Cin*s.Cout/s.Groups*taps)
	var bias []float32
	if r.IntN(3) > 0 {
		bias = randoms(t, r, s.Cout)
	}
	build := NewConv
	if transposed {
		build = NewConvTranspose
	}
	c, err := build(s, w, bias)
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.out(spatial)
	if err != nil {
		t.Fatalf("%+v on %v: %v", s, spatial, err)
	}
	n := 1 + r.IntN(2)
	x := randoms(t, r, n*s.Cin*volume(c.in(spatial)))
	y := randoms(t, r, n*s.Cout*volume(out))
	var residual []float32
	if r.IntN(2) == 0 {
		residual = randoms(t, r, len(y))
	}
	if err := c.Run(pool, x, n, spatial, y, residual); err != nil {
		t.Fatal(err)
	}
	want, size := refConv(c, x, w, n, c.in(spatial), out, residual)
	k := s.Cin / s.Groups * c.taps
	for i := range y {
		if !(math.Abs(float64(y[i])-want[i]) <= float64(k+4)*0x1p-23*size[i]) {
			t.Fatalf("%+v transposed %v on %d x %v: element %d is %v, want %v", s, transposed, n, spatial, i, y[i], want[i])
		}
	}
}

func TestConvRandomShapes(t *testing.T) {
	pool := par.New(2)
	pool.Begin()
	defer pool.End()
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(11, 12))
		for range 250 {
			testRandomConv(t, r, pool)
		}
	})
}

// randomAxis returns the padding and the size of an axis of an input under a
// kernel of k elements: at times windows lie wholly in the padding, or the input
// is smaller than the kernel.
func randomAxis(r *rand.Rand, k, dilation, most int) (lead, trail, size int) {
	extent := (k-1)*dilation + 1
	lead, trail, size = r.IntN(k), r.IntN(k), extent+r.IntN(most)
	if r.IntN(4) == 0 {
		lead, trail = r.IntN(extent+5), r.IntN(extent+5)
	}
	if r.IntN(4) == 0 {
		size = max(1, extent-lead-trail) + r.IntN(2)
	}
	return lead, trail, size
}

// testRandomConv tests a convolution, at times a transposed one, that r chooses.
func testRandomConv(t *testing.T, r *rand.Rand, pool *par.Pool) {
	t.Helper()
	dims := 1 + r.IntN(3)
	s := ConvSpec{Groups: 1}
	transposed := r.IntN(4) == 0
	switch r.IntN(4) {
	case 0: // depthwise, with a multiplier at times
		s.Groups = 2 + r.IntN(20)
		s.Cin, s.Cout = s.Groups, s.Groups*(1+r.IntN(2))
	case 1:
		s.Groups = 1 + r.IntN(3)
		s.Cin, s.Cout = s.Groups*(1+r.IntN(4)), s.Groups*(1+r.IntN(5))
	default:
		s.Cin, s.Cout = 1+r.IntN(40), 1+r.IntN(40)
	}
	var spatial []int
	most := []int{200, 20, 5}[dims-1]
	for range dims {
		k := 1 + r.IntN([]int{4, 4, 3}[dims-1])
		d := 1 + r.IntN(2)
		st := 1 + r.IntN(3)
		if r.IntN(4) == 0 {
			k, d, st = 1, 1, 1
		}
		s.Kernel, s.Dilation, s.Stride = append(s.Kernel, k), append(s.Dilation, d), append(s.Stride, st)
		lead, trail, size := randomAxis(r, k, d, most)
		if transposed {
			s.OutPad = append(s.OutPad, r.IntN(st))
			lead, trail, size = min(lead, k-1)/2, min(trail, k-1)/2, max(size, (k-1)*d+1)
		}
		s.PadBegin, s.PadEnd = append(s.PadBegin, lead), append(s.PadEnd, trail)
		spatial = append(spatial, size)
	}
	work := 1 // multiply-adds for a pair of channels, as many as the definition takes
	for i, n := range spatial {
		work *= s.Kernel[i] * n
	}
	for s.Groups == 1 && work*s.Cin*s.Cout > 1<<20 {
		s.Cin, s.Cout = (s.Cin+1)/2, (s.Cout+1)/2
	}
	if r.IntN(3) == 0 {
		s.Clip, s.Min, s.Max = true, 0, 6
	}
	testConv(t, r, pool, s, spatial, transposed)
}

func TestConvTails(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(13, 14))
		for w := 1; w <= 4*32+3; w++ {
			for _, s := range []ConvSpec{
				{Cin: 2, Cout: 2, Groups: 2, Kernel: []int{2, 3}, PadBegin: []int{0, 1}, PadEnd: []int{1, 1}},
				{Cin: 2, Cout: 2, Groups: 2, Kernel: []int{1, 3}, Stride: []int{1, 2}, PadBegin: []int{0, 2}, PadEnd: []int{0, 2}},
				{Cin: 2, Cout: 5, Groups: 1, Kernel: []int{3, 3}, PadBegin: []int{1, 1}, PadEnd: []int{1, 1}},
				{Cin: 3, Cout: 2, Groups: 1, Kernel: []int{1, 1}},
				{Cin: 34, Cout: 41, Groups: 1, Kernel: []int{1, 1}},
			} {
				testConv(t, r, nil, s, []int{2, w}, false)
			}
		}
	})
}

// Few output channels over images that need several bands of rows.
func TestConvBands(t *testing.T) {
	pool := par.New(2)
	pool.Begin()
	defer pool.End()
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(17, 18))
		for _, s := range []ConvSpec{
			{Cin: 3, Cout: 1, Groups: 1, Kernel: []int{3, 5}, PadBegin: []int{1, 2}, PadEnd: []int{1, 2}},
			{Cin: 3, Cout: 2, Groups: 1, Kernel: []int{3, 3}, Stride: []int{2, 2}, PadBegin: []int{0, 1}, PadEnd: []int{2, 1}},
			{Cin: 4, Cout: 2, Groups: 2, Kernel: []int{5, 1}, Dilation: []int{2, 1}},
			{Cin: 2, Cout: 6, Groups: 2, Kernel: []int{3, 60}},
			{Cin: 5, Cout: 3, Groups: 1, Kernel: []int{1, 1}},
		} {
			testConv(t, r, pool, s, []int{301, 131}, false)
		}
	})
}

// Pads and dilations far larger than the image are legal and must not ask for
// memory in proportion.
func TestConvHugePads(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	testConv(t, r, nil, ConvSpec{
		Cin: 2, Cout: 2, Groups: 2, Kernel: []int{2, 2}, Dilation: []int{1 << 20, 1 << 20},
		PadBegin: []int{1 << 20, 1 << 20}, PadEnd: []int{0, 0},
	}, []int{3, 3}, false)
}

func TestConvSpecials(t *testing.T) {
	nan := float32(math.NaN())
	eachLevel(t, func(t *testing.T) {
		for _, s := range []ConvSpec{
			{Cin: 1, Cout: 1, Groups: 1, Kernel: []int{3}},
			{Cin: 2, Cout: 2, Groups: 2, Kernel: []int{3}},
		} {
			s.Clip, s.Max = true, 6
			w := []float32{1, 1, 1, 1, 1, 1}[:3*s.Cout]
			c, err := NewConv(s, w, nil)
			if err != nil {
				t.Fatal(err)
			}
			x := make([]float32, 50*s.Cin)
			x[7], x[30], x[40] = nan, float32(math.Inf(1)), float32(math.Inf(-1))
			y := make([]float32, 48*s.Cout)
			if err := c.Run(nil, x, 1, []int{50}, y, nil); err != nil {
				t.Fatal(err)
			}
			for i := range 48 {
				var want float32
				switch {
				case i >= 5 && i <= 7:
					want = nan
				case i >= 28 && i <= 30:
					want = 6
				}
				if y[i] != want && !(y[i] != y[i] && want != want) {
					t.Errorf("groups %d: y[%d] = %v, want %v", s.Groups, i, y[i], want)
				}
			}
		}
	})
}

func TestConvErrors(t *testing.T) {
	ok := ConvSpec{Cin: 4, Cout: 6, Groups: 2, Kernel: []int{3, 3}}
	for name, f := range map[string]func(s *ConvSpec) (weights, bias int){
		"groups":    func(s *ConvSpec) (int, int) { s.Groups = 3; return 108, 6 },
		"weights":   func(s *ConvSpec) (int, int) { return 107, 6 },
		"bias":      func(s *ConvSpec) (int, int) { return 108, 5 },
		"axes":      func(s *ConvSpec) (int, int) { s.Kernel = []int{1, 1, 1, 1}; return 12, 6 },
		"strides":   func(s *ConvSpec) (int, int) { s.Stride = []int{1}; return 108, 6 },
		"stride 0":  func(s *ConvSpec) (int, int) { s.Stride = []int{1, 0}; return 108, 6 },
		"pads":      func(s *ConvSpec) (int, int) { s.PadBegin = []int{-1, 0}; return 108, 6 },
		"dilations": func(s *ConvSpec) (int, int) { s.Dilation = []int{1, math.MaxInt}; return 108, 6 },
	} {
		s := ok
		weights, bias := f(&s)
		if _, err := NewConv(s, make([]float32, weights), make([]float32, bias)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c, err := NewConv(ok, make([]float32, 108), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, spatial := range [][]int{{5}, {2, 5}, {0, 5}, {math.MaxInt, 5}} {
		if _, err := c.Out(spatial); err == nil {
			t.Errorf("%v: no error", spatial)
		}
	}
	long, err := NewConvTranspose(ConvSpec{Cin: 1, Cout: 1, Groups: 1, Kernel: []int{1}, Stride: []int{1 << 20}}, make([]float32, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := long.Out([]int{math.MaxInt >> 10}); err == nil {
		t.Error("long output: no error")
	}
	if out, err := c.Out([]int{5, 4}); err != nil || fmt.Sprint(out) != "[3 2]" {
		t.Errorf("Out = %v, %v", out, err)
	}
	if err := c.Run(nil, make([]float32, 79), 1, []int{5, 4}, make([]float32, 36), nil); err == nil {
		t.Error("short input: no error")
	}
}

var convBenchmarks = []struct {
	name    string
	s       ConvSpec
	spatial []int
}{
	{"3x3_64_56", ConvSpec{Cin: 64, Cout: 64, Groups: 1, Kernel: []int{3, 3}, PadBegin: []int{1, 1}, PadEnd: []int{1, 1}}, []int{56, 56}},
	{"3x3_256_14", ConvSpec{Cin: 256, Cout: 256, Groups: 1, Kernel: []int{3, 3}, PadBegin: []int{1, 1}, PadEnd: []int{1, 1}}, []int{14, 14}},
	{"3x3_16_32", ConvSpec{Cin: 16, Cout: 16, Groups: 1, Kernel: []int{3, 3}, PadBegin: []int{1, 1}, PadEnd: []int{1, 1}}, []int{32, 32}},
	{"3x3s2_3_224", ConvSpec{Cin: 3, Cout: 32, Groups: 1, Kernel: []int{3, 3}, Stride: []int{2, 2}, PadBegin: []int{0, 0}, PadEnd: []int{1, 1}}, []int{224, 224}},
	{"1x1_96_24_56", ConvSpec{Cin: 96, Cout: 24, Groups: 1, Kernel: []int{1, 1}}, []int{56, 56}},
	{"1x1_320_1280_7", ConvSpec{Cin: 320, Cout: 1280, Groups: 1, Kernel: []int{1, 1}}, []int{7, 7}},
	{"dw3x3_144_56", ConvSpec{Cin: 144, Cout: 144, Groups: 144, Kernel: []int{3, 3}, PadBegin: []int{1, 1}, PadEnd: []int{1, 1}}, []int{56, 56}},
	{"dw5x5s2_240_28", ConvSpec{Cin: 240, Cout: 240, Groups: 240, Kernel: []int{5, 5}, Stride: []int{2, 2}, PadBegin: []int{1, 1}, PadEnd: []int{2, 2}}, []int{28, 28}},
	{"1d_64_k9", ConvSpec{Cin: 64, Cout: 64, Groups: 1, Kernel: []int{9}, PadBegin: []int{4}, PadEnd: []int{4}}, []int{1000}},
	{"column_64_k64", ConvSpec{Cin: 128, Cout: 128, Groups: 1, Kernel: []int{64, 1}, PadBegin: []int{31, 0}, PadEnd: []int{32, 0}}, []int{64, 1}},
}

func BenchmarkConv(b *testing.B) {
	r := rand.New(rand.NewPCG(17, 18))
	for _, c := range convBenchmarks {
		b.Run(c.name, func(b *testing.B) {
			taps := 1
			for _, k := range c.s.Kernel {
				taps *= k
			}
			w := randoms(b, r, c.s.Cin*c.s.Cout/c.s.Groups*taps)
			benchLevels(b, func(b *testing.B) {
				conv, err := NewConv(c.s, w, nil)
				if err != nil {
					b.Fatal(err)
				}
				out, _ := conv.out(c.spatial)
				x := randoms(b, r, c.s.Cin*volume(conv.in(c.spatial)))
				y := make([]float32, c.s.Cout*volume(out))
				for b.Loop() {
					if err := conv.Run(nil, x, 1, c.spatial, y, nil); err != nil {
						b.Fatal(err)
					}
				}
				flops := 2 * float64(len(w)) * float64(volume(out))
				b.ReportMetric(1e-9*flops*float64(b.N)/b.Elapsed().Seconds(), "GFLOPS")
			})
		})
	}
}

// One prepared convolution serves several goroutines at a time.
func TestConvShared(t *testing.T) {
	r := rand.New(rand.NewPCG(19, 20))
	for _, s := range []ConvSpec{
		{Cin: 20, Cout: 20, Groups: 1, Kernel: []int{3, 3}},
		{Cin: 20, Cout: 20, Groups: 20, Kernel: []int{3, 3}},
		{Cin: 20, Cout: 20, Groups: 5, Kernel: []int{3, 3}},
	} {
		c, err := NewConv(s, randoms(t, r, weights(s)), nil)
		if err != nil {
			t.Fatal(err)
		}
		q, err := NewQConv(s, qRandom(t, r, 1, weights(s), true, false).Data, true, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		x, qx := randoms(t, r, 2*20*100), qRandom(t, r, 1, 2*20*100, false, false).Data
		var wg sync.WaitGroup
		results := make([][]float32, 4)
		for i := range results {
			results[i] = make([]float32, 2*2*20*64)
			wg.Go(func() {
				for range 5 {
					half := len(results[i]) / 2
					if err := c.Run(nil, x, 2, []int{10, 10}, results[i][:half], nil); err != nil {
						t.Error(err)
					}
					if err := q.Run(nil, qx, false, 3, 2, []int{10, 10}, &QOut{Floats: results[i][half:], Scale: []float32{.5}}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for _, y := range results[1:] {
			if !slices.Equal(y, results[0]) {
				t.Errorf("%+v: results differ", s)
			}
		}
	}
}
