package kernels

import (
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/onnxq/onnxq/internal/par"
)

func TestBlockTileLayout(t *testing.T) {
	var x blockTile
	var y blockWindows
	var z windowRun
	var v winogradTile
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the assembly is for 64 bits")
	}
	for i, got := range []uintptr{
		unsafe.Offsetof(x.x), unsafe.Offsetof(x.w), unsafe.Offsetof(x.y0), unsafe.Offsetof(x.y1), unsafe.Offsetof(x.r0), unsafe.Offsetof(x.r1),
		unsafe.Offsetof(x.bias), unsafe.Offsetof(x.runs), unsafe.Offsetof(x.count), unsafe.Offsetof(x.lda), unsafe.Offsetof(x.rows),
		unsafe.Offsetof(x.per), unsafe.Offsetof(x.lo), unsafe.Offsetof(x.hi), unsafe.Offsetof(x.work), unsafe.Offsetof(x.step),
	} {
		if want := []uintptr{0, 24, 48, 72, 96, 120, 144, 168, 192, 200, 208, 216, 224, 228, 232, 280}[i]; got != want {
			t.Errorf("blockTile field %d lies at %d; the generator says %d", i, got, want)
		}
	}
	for i, got := range []uintptr{
		unsafe.Offsetof(y.x), unsafe.Offsetof(y.w), unsafe.Offsetof(y.y), unsafe.Offsetof(y.r), unsafe.Offsetof(y.bias),
		unsafe.Offsetof(y.runs), unsafe.Offsetof(y.count), unsafe.Offsetof(y.lda), unsafe.Offsetof(y.rowStep), unsafe.Offsetof(y.tapStep),
		unsafe.Offsetof(y.wStep), unsafe.Offsetof(y.lo), unsafe.Offsetof(y.hi), unsafe.Offsetof(y.work),
	} {
		if want := []uintptr{0, 24, 48, 72, 96, 120, 144, 152, 160, 168, 176, 184, 188, 192}[i]; got != want {
			t.Errorf("blockWindows field %d lies at %d; the generator says %d", i, got, want)
		}
	}
	for i, got := range []uintptr{
		unsafe.Offsetof(z.x), unsafe.Offsetof(z.w), unsafe.Offsetof(z.y), unsafe.Offsetof(z.pixels), unsafe.Offsetof(z.rows),
		unsafe.Offsetof(z.columns), unsafe.Offsetof(z.count), unsafe.Sizeof(z),
	} {
		if want := []uintptr{0, 8, 16, 24, 32, 40, 48, 56}[i]; got != want {
			t.Errorf("windowRun field %d lies at %d; the generator says %d", i, got, want)
		}
	}
	for i, got := range []uintptr{
		unsafe.Offsetof(v.src), unsafe.Offsetof(v.dst), unsafe.Offsetof(v.r), unsafe.Offsetof(v.bias), unsafe.Offsetof(v.row),
		unsafe.Offsetof(v.rRow), unsafe.Offsetof(v.step), unsafe.Offsetof(v.n), unsafe.Offsetof(v.lo), unsafe.Offsetof(v.hi),
	} {
		if want := []uintptr{0, 24, 48, 72, 96, 104, 112, 120, 128, 132}[i]; got != want {
			t.Errorf("winogradTile field %d lies at %d; the generator says %d", i, got, want)
		}
	}
}

// A 3×3 convolution in the domain of Winograd, with tiles that reach over every
// side.
func TestWinograd(t *testing.T) {
	pool := par.New(2)
	pool.Begin()
	defer pool.End()
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(71, 72))
		for range 12 {
			s := ConvSpec{Cin: winogradChannels + r.IntN(40), Cout: winogradChannels + r.IntN(40), Groups: 1, Kernel: []int{3, 3}}
			for range 2 {
				s.PadBegin, s.PadEnd = append(s.PadBegin, r.IntN(4)), append(s.PadEnd, r.IntN(4))
			}
			if r.IntN(3) == 0 {
				s.Clip, s.Min, s.Max = true, -1, 6
			}
			spatial := []int{3 + r.IntN(12), 3 + r.IntN(12)}
			if r.IntN(5) == 0 {
				spatial[r.IntN(2)] += 50
			}
			testBlockConv(t, r, pool, s, spatial, false, false)
			testConv(t, r, pool, s, spatial, false)
		}
	})
}

// randomBorder widens the border of an image here and there.
func randomBorder(r *rand.Rand, m Image) Image {
	if r.IntN(2) == 0 {
		m.Top, m.Left, m.Bottom, m.Right = m.Top+r.IntN(2), m.Left+r.IntN(3), m.Bottom+r.IntN(2), m.Right+r.IntN(2)
	}
	return m
}

func testBlockConv(t *testing.T, r *rand.Rand, pool *par.Pool, s ConvSpec, spatial []int, planar, transposed bool) {
	t.Helper()
	c, err := newConv(s, weights(s), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := randoms(t, r, weights(s))
	if r.IntN(3) > 0 {
		c.bias = randoms(t, r, s.Cout)
	}
	build := NewBlockConv
	if c.transposed = transposed; transposed {
		build = NewBlockConvTranspose
	}
	b, err := build(s, w, c.bias, planar)
	if err != nil {
		t.Fatal(err)
	}
	if b == nil {
		t.Fatalf("%+v is not served", s)
	}
	in := c.in(spatial)
	xm, err := b.Border(Image{C: s.Cin, H: in[1], W: in[2], Planar: planar})
	if err != nil {
		t.Fatal(err)
	}
	ym, err := b.Out(xm)
	if err != nil {
		t.Fatal(err)
	}
	n := 1 + r.IntN(2)
	rm := randomBorder(r, ym)
	xm, ym = randomBorder(r, xm), randomBorder(r, ym)
	plain := randoms(t, r, n*s.Cin*volume(in))
	x, y := randoms(t, r, n*xm.Len()), randoms(t, r, n*ym.Len())
	for i := range y {
		y[i] = 77
	}
	xm.ClearBorder(n, x)
	xm.ToImage(pool, n, x, plain)
	var residual, rPlain []float32
	if r.IntN(2) == 0 {
		residual, rPlain = randoms(t, r, n*rm.Len()), randoms(t, r, n*s.Cout*ym.H*ym.W)
		rm.ToImage(pool, n, residual, rPlain)
	}
	if err := b.Run(pool, n, x, xm, y, ym, residual, rm); err != nil {
		t.Fatal(err)
	}
	out, err := c.out(spatial)
	if err != nil {
		t.Fatal(err)
	}
	got := guarded[float32](t, n*s.Cout*ym.H*ym.W)
	ym.FromImage(pool, n, got, y)
	want, size := refConv(c, plain, w, n, in, out, rPlain)
	for i := range got {
		if !(math.Abs(float64(got[i])-want[i]) <= float64(s.Cin/s.Groups*c.taps+4)*0x1p-23*size[i]) {
			t.Fatalf("%+v planar %v transposed %v on %d x %+v to %+v: element %d is %v, want %v", s, planar, transposed, n, xm, ym, i, got[i], want[i])
		}
	}
	// The border stays, and lanes past the last channel hold a clamped zero.
	ym.FromImage(nil, n, make([]float32, len(got)), y)
	border := 0
	for _, v := range y {
		if v == 77 {
			border++
		}
	}
	blocks := (s.Cout + 15) / 16
	if want := n * blocks * 16 * ((ym.Top+ym.H+ym.Bottom)*(ym.Left+ym.W+ym.Right) - ym.H*ym.W); border != want {
		t.Fatalf("%+v: %d elements of the border are left of %d", ym, border, want)
	}
}

func weights(s ConvSpec) int {
	n := s.Cout * s.Cin / s.Groups
	for _, k := range s.Kernel {
		n *= k
	}
	return n
}

func TestBlockConv(t *testing.T) {
	pool := par.New(2)
	pool.Begin()
	defer pool.End()
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(41, 42))
		for range 150 {
			testRandomBlockConv(t, r, pool)
		}
	})
}

// testRandomBlockConv tests a convolution in blocks that r chooses.
func testRandomBlockConv(t *testing.T, r *rand.Rand, pool *par.Pool) {
	t.Helper()
	dims := 1 + r.IntN(2)
	s := ConvSpec{Groups: 1}
	planar, transposed := false, false
	switch r.IntN(5) {
	case 0:
		s.Groups = 2 + r.IntN(60)
		s.Cin, s.Cout = s.Groups, s.Groups
	case 1:
		s.Groups = 2 + r.IntN(2)
		s.Cin, s.Cout = s.Groups*16*(1+r.IntN(2)), s.Groups*16*(1+r.IntN(3))
	case 2:
		s.Cin, s.Cout = 1+r.IntN(5), 1+r.IntN(70)
		planar = true
	default:
		s.Cin, s.Cout = 1+r.IntN(70), 1+r.IntN(100)
	}
	var spatial []int
	most := []int{100, 15}[dims-1]
	for range dims {
		k, d, st := 1+r.IntN(4), 1+r.IntN(2), 1+r.IntN(3)
		if r.IntN(3) == 0 {
			k, d, st = 1, 1, 1
		}
		s.Kernel, s.Dilation, s.Stride = append(s.Kernel, k), append(s.Dilation, d), append(s.Stride, st)
		lead, trail, size := randomAxis(r, k, d, most)
		s.PadBegin, s.PadEnd = append(s.PadBegin, lead), append(s.PadEnd, trail)
		spatial = append(spatial, size)
	}
	if r.IntN(3) == 0 {
		s.Clip, s.Min, s.Max = true, 0, 6
	}
	if dims == 2 && r.IntN(4) == 0 { // one column
		s.Kernel[1], s.Stride[1], s.PadBegin[1], s.PadEnd[1], spatial[1] = 1, 1, 0, 0, 1
	}
	if s.Groups == 1 || s.Cin > s.Groups {
		transposed = r.IntN(3) == 0
	}
	for i, k := range s.Kernel {
		if transposed {
			s.PadBegin[i], s.PadEnd[i], spatial[i] = min(s.PadBegin[i], k-1), min(s.PadEnd[i], k-1), max(spatial[i], (k-1)*s.Dilation[i]+1)
		}
	}
	testBlockConv(t, r, pool, s, spatial, planar, transposed)
}

func TestBlockConvTails(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(43, 44))
		for w := 1; w <= 4*16+3; w++ {
			pad := []int{1}
			testBlockConv(t, r, nil, ConvSpec{Cin: 20, Cout: 33, Groups: 1, Kernel: []int{3}, PadBegin: pad, PadEnd: pad}, []int{w}, false, false)
			testBlockConv(t, r, nil, ConvSpec{Cin: 17, Cout: 16, Groups: 1, Kernel: []int{1}}, []int{w * 7}, false, false)
			testBlockConv(t, r, nil, ConvSpec{Cin: 18, Cout: 18, Groups: 18, Kernel: []int{3}, PadBegin: pad, PadEnd: pad}, []int{w}, false, false)
		}
	})
}

// The result of a convolution does not depend on threads, nor on which of the
// fused levels computes it.
func TestBlockConvSameBits(t *testing.T) {
	r := rand.New(rand.NewPCG(45, 46))
	for _, kernel := range []int{1, 3} {
		pad := []int{kernel / 2, kernel / 2}
		s := ConvSpec{Cin: 40, Cout: 72, Groups: 1, Kernel: []int{kernel, kernel}, PadBegin: pad, PadEnd: pad}
		w := randoms(t, r, weights(s))
		b, err := NewBlockConv(s, w, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		xm, err := b.Border(Image{C: 40, H: 37, W: 29})
		if err != nil {
			t.Fatal(err)
		}
		x := randoms(t, r, xm.Len())
		xm.ClearBorder(1, x)
		var first []float32
		eachLevel(t, func(t *testing.T) {
			b, err := NewBlockConv(s, w, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			ym, _ := b.Out(xm)
			var one []float32
			for _, threads := range []int{1, 2, 3} {
				pool := par.New(threads)
				pool.Begin()
				y := make([]float32, ym.Len())
				err := b.Run(pool, 1, x, xm, y, ym, nil, Image{})
				pool.End()
				if err != nil {
					t.Fatal(err)
				}
				if one == nil {
					one = y
				}
				if first == nil && level >= AVX2 {
					first = y
				}
				for i := range y {
					if y[i] != one[i] || level >= AVX2 && y[i] != first[i] {
						t.Fatalf("threads %d: element %d differs", threads, i)
					}
				}
			}
		})
	}
}

func TestBlockConvSpecials(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for _, groups := range []int{1, 16} {
			s := ConvSpec{Cin: 16, Cout: 16, Groups: groups, Kernel: []int{1}, Clip: true, Max: 6}
			w := make([]float32, weights(s))
			for i := range w {
				w[i] = 1
			}
			b, err := NewBlockConv(s, w, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			m := Image{C: 16, H: 1, W: 20}
			x, y := make([]float32, m.Len()), make([]float32, m.Len())
			x[2*16], x[7*16], x[19*16] = float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))
			if err := b.Run(nil, 1, x, m, y, m, nil, Image{}); err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				got := y[i*16]
				if ok := map[int]bool{2: got != got, 7: got == 6}; i == 2 || i == 7 {
					if !ok[i] {
						t.Errorf("groups %d: pixel %d is %v", groups, i, got)
					}
				} else if got != 0 {
					t.Errorf("groups %d: pixel %d is %v", groups, i, got)
				}
			}
		}
	})
}

func TestBlockConvErrors(t *testing.T) {
	three := []int{1, 1, 1}
	if b, err := NewBlockConv(ConvSpec{Cin: 2, Cout: 2, Groups: 1, Kernel: three}, make([]float32, 4), nil, false); b != nil || err != nil {
		t.Errorf("three axes: %v, %v", b, err)
	}
	if _, err := NewBlockConv(ConvSpec{Cin: 2, Cout: 2, Groups: 1, Kernel: []int{3}}, make([]float32, 4), nil, false); err == nil {
		t.Error("weights: no error")
	}
	b, err := NewBlockConv(ConvSpec{Cin: 2, Cout: 2, Groups: 1, Kernel: []int{3, 3}, PadBegin: []int{1, 1}, PadEnd: []int{1, 1}}, make([]float32, 36), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	bare := Image{C: 2, H: 4, W: 4}
	m, err := b.Border(bare)
	if err != nil || m.Top != 1 || m.Left != 1 || m.Bottom != 1 || m.Right != 1 {
		t.Fatalf("Border = %+v, %v", m, err)
	}
	x, y := make([]float32, m.Len()), make([]float32, bare.Len())
	if err := b.Run(nil, 1, x, m, y, bare, nil, Image{}); err != nil {
		t.Error(err)
	}
	if err := b.Run(nil, 1, x, bare, y, bare, nil, Image{}); err == nil {
		t.Error("no border: no error")
	}
	if err := b.Run(nil, 2, x, m, y, bare, nil, Image{}); err == nil {
		t.Error("short input: no error")
	}
	if _, err := b.Out(Image{C: 3, H: 4, W: 4}); err == nil {
		t.Error("channels: no error")
	}
}

func BenchmarkBlockConv(b *testing.B) {
	r := rand.New(rand.NewPCG(47, 48))
	for _, c := range convBenchmarks {
		b.Run(c.name, func(b *testing.B) {
			w := randoms(b, r, weights(c.s))
			benchLevels(b, func(b *testing.B) {
				planar := c.s.Cin < 16
				conv, err := NewBlockConv(c.s, w, nil, planar)
				if err != nil {
					b.Fatal(err)
				}
				in := conv.conv.in(c.spatial)
				xm, err := conv.Border(Image{C: c.s.Cin, H: in[1], W: in[2], Planar: planar})
				if err != nil {
					b.Fatal(err)
				}
				ym, _ := conv.Out(xm)
				x, y := randoms(b, r, xm.Len()), make([]float32, ym.Len())
				for b.Loop() {
					if err := conv.Run(nil, 1, x, xm, y, ym, nil, Image{}); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(2e-9*float64(len(w))*float64(ym.H*ym.W)*float64(b.N)/b.Elapsed().Seconds(), "GFLOPS")
			})
		})
	}
}

func BenchmarkToImage(b *testing.B) {
	m := Image{C: 64, H: 56, W: 56, Top: 1, Left: 1, Bottom: 1, Right: 1}
	x, plain := make([]float32, m.Len()), make([]float32, m.C*m.H*m.W)
	benchLevels(b, func(b *testing.B) {
		b.SetBytes(int64(4 * len(plain)))
		for b.Loop() {
			m.ToImage(nil, 1, x, plain)
		}
	})
}
