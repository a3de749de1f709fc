package kernels

import (
	"encoding/hex"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/onnxq/onnxq/internal/par"
)

func TestQTapTileLayout(t *testing.T) {
	var x qTapTile
	for i, got := range []uintptr{
		unsafe.Offsetof(x.x), unsafe.Offsetof(x.c), unsafe.Offsetof(x.w), unsafe.Offsetof(x.off), unsafe.Offsetof(x.init),
		unsafe.Offsetof(x.scale), unsafe.Offsetof(x.bias), unsafe.Offsetof(x.taps), unsafe.Offsetof(x.pitch), unsafe.Offsetof(x.columns),
		unsafe.Offsetof(x.channels), unsafe.Offsetof(x.xStep), unsafe.Offsetof(x.cStep), unsafe.Offsetof(x.mode), unsafe.Offsetof(x.lo),
		unsafe.Offsetof(x.hi), unsafe.Offsetof(x.zero), unsafe.Offsetof(x.flip), unsafe.Offsetof(x.wide), unsafe.Offsetof(x.init4),
		unsafe.Offsetof(x.scale4), unsafe.Offsetof(x.blocks), unsafe.Offsetof(x.groups), unsafe.Offsetof(x.last),
	} {
		want := []uintptr{0, 24, 48, 72, 96, 120, 144, 168, 176, 184, 192, 200, 208, 216, 224, 228, 232, 236, 240, 264, 288, 312, 320, 328}[i]
		if unsafe.Sizeof(uintptr(0)) == 8 && got != want {
			t.Errorf("field %d lies at %d; the generator says %d", i, got, want)
		}
	}
}

// qConvSums runs the float definition on the integer differences, which are
// exact in float64, and returns the sums with channels last.
func qConvSums(t *testing.T, s ConvSpec, x QMatrix, zero int32, w QMatrix, wZero []int32, n int, spatial []int) []int32 {
	t.Helper()
	c, err := newConv(s, len(w.Data), nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.out(spatial)
	if err != nil {
		t.Fatal(err)
	}
	pixels := volume(c.in(spatial))
	fx, fw := make([]float32, len(x.Data)), make([]float32, len(w.Data))
	for i, b := range x.Data {
		p := i / s.Cin
		fx[(p/pixels*s.Cin+i%s.Cin)*pixels+p%pixels] = float32(x.value(b) - zero)
	}
	for i, b := range w.Data {
		z := int32(0)
		if len(wZero) > 0 {
			z = wZero[min(i/(len(w.Data)/s.Cout), len(wZero)-1)]
		}
		fw[i] = float32(w.value(b) - z)
	}
	y, _ := refConv(c, fx, fw, n, c.in(spatial), out, nil)
	sums := make([]int32, len(y))
	size := volume(out)
	for i := range sums {
		p := i / s.Cout
		sums[i] = int32(y[(p/size*s.Cout+i%s.Cout)*size+p%size])
	}
	return sums
}

func TestQConv(t *testing.T) {
	pool := par.New(2)
	pool.Begin()
	defer pool.End()
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(31, 32))
		for range 200 {
			testRandomQConv(t, r, pool)
		}
	})
}

// testRandomQConv tests an integer convolution that r chooses.
func testRandomQConv(t *testing.T, r *rand.Rand, pool *par.Pool) {
	t.Helper()
	dims := 1 + r.IntN(3)
	s := ConvSpec{Groups: 1}
	switch r.IntN(4) {
	case 0, 1:
		s.Groups = 2 + r.IntN(150)
		if r.IntN(2) == 0 { // several pixels in 64 channels
			s.Groups = 2 << r.IntN(5)
		}
		s.Cin, s.Cout = s.Groups, s.Groups
		if dims == 3 {
			s.Groups = 1 + s.Groups%40
			s.Cin, s.Cout = s.Groups, s.Groups*(1+r.IntN(2))
		}
	case 2:
		s.Groups = 1 + r.IntN(3)
		s.Cin, s.Cout = s.Groups*(1+r.IntN(4)), s.Groups*(1+r.IntN(5))
	default:
		s.Cin, s.Cout = 1+r.IntN(40), 1+r.IntN(40)
	}
	var spatial []int
	most := []int{60, 12, 5}[dims-1]
	taps := 1
	for range dims {
		k, d, st := 1+r.IntN(4), 1+r.IntN(2), 1+r.IntN(3)
		if r.IntN(4) == 0 {
			k, d, st = 1, 1, 1
		}
		taps *= k
		s.Kernel, s.Dilation, s.Stride = append(s.Kernel, k), append(s.Dilation, d), append(s.Stride, st)
		lead, trail, size := randomAxis(r, k, d, most)
		s.PadBegin, s.PadEnd = append(s.PadBegin, lead), append(s.PadEnd, trail)
		spatial = append(spatial, size)
	}
	n, pixels := 1+r.IntN(2), 1
	for _, d := range spatial {
		pixels *= d
	}
	sx, sw := r.IntN(2) == 0, r.IntN(2) == 0
	x := qRandom(t, r, 1, n*pixels*s.Cin, sx, false)
	w := qRandom(t, r, 1, s.Cout*s.Cin/s.Groups*taps, sw, false)
	zero, wZero := qZeros(r, 1, sx)[0], qZeros(r, []int{0, 1, s.Cout}[r.IntN(3)], sw)
	sums := qConvSums(t, s, x, zero, w, wZero, n, spatial)
	c, err := NewQConv(s, w.Data, sw, wZero, false)
	if err != nil {
		t.Fatal(err)
	}
	init, bias := qZeros(r, s.Cout, true), make([]float32, s.Cout)
	scale := make([]float32, []int{1, s.Cout}[r.IntN(2)])
	for i := range scale {
		scale[i] = float32(math.Exp(r.NormFloat64() - 6))
	}
	for i := range bias {
		bias[i] = float32(r.NormFloat64())
	}
	words, floats, bytes := guarded[int32](t, len(sums)), guarded[float32](t, len(sums)), guarded[byte](t, len(sums))
	signed := r.IntN(2) == 0
	yZero := qZeros(r, 1, signed)[0]
	for _, o := range []*QOut{
		{Init: init, Words: words},
		{Init: init, Floats: floats, Scale: scale, Bias: bias},
		{Init: init, Bytes: bytes, Scale: scale, Signed: signed, Zero: yZero},
	} {
		if err := c.Run(pool, x.Data, sx, zero, n, spatial, o); err != nil {
			t.Fatal(err)
		}
	}
	lo, hi := float64(0), float64(255)
	if signed {
		lo, hi = -128, 127
	}
	for i, v := range sums {
		ch := i % s.Cout
		v += init[ch]
		f := float32(float32(v) * scale[min(ch, len(scale)-1)]) // no fused addition
		q := min(max(math.RoundToEven(float64(f))+float64(yZero), lo), hi)
		got := QMatrix{Signed: signed}.value(bytes[i])
		if words[i] != v || floats[i] != f+bias[ch] || float64(got) != q {
			t.Fatalf("%+v on %d x %v: element %d is %d %v %d, want %d %v %v", s, n, spatial, i, words[i], floats[i], got, v, f+bias[ch], q)
		}
	}
}

// Saturating convolutions are saturating products of the rows that hold, for
// each position of the output, kernel position by kernel position the channels.
func TestQConvSaturates(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(35, 36))
		for range 60 {
			g := 1 + r.IntN(3)
			s := ConvSpec{Groups: g, Cin: g * (2 + r.IntN(9)), Cout: g * (1 + r.IntN(20)), Kernel: []int{1 + r.IntN(3), 1 + r.IntN(3)}, Stride: []int{1 + r.IntN(2), 1}, PadBegin: []int{0, 0}, PadEnd: []int{0, 0}}
			if r.IntN(2) == 0 {
				s.PadBegin = []int{r.IntN(s.Kernel[0]), r.IntN(s.Kernel[1])}
			}
			spatial := []int{3 + r.IntN(6), 3 + r.IntN(6)}
			in, out, taps := s.Cin/g, s.Cout/g, s.Kernel[0]*s.Kernel[1]
			x := qRandom(t, r, 1, spatial[0]*spatial[1]*s.Cin, false, false)
			w := qRandom(t, r, 1, s.Cout*in*taps, true, false)
			zero := qZeros(r, 1, false)[0]
			c, err := NewQConv(s, w.Data, true, nil, true)
			if err != nil {
				t.Fatal(err)
			}
			osp, err := c.Out(spatial)
			if err != nil {
				t.Fatal(err)
			}
			pixels := osp[0] * osp[1]
			got := guarded[int32](t, pixels*s.Cout)
			if err := c.Run(nil, x.Data, false, zero, 1, spatial, &QOut{Words: got}); err != nil {
				t.Fatal(err)
			}
			for group := range g {
				a := QMatrix{Data: make([]byte, pixels*taps*in), Ld: taps * in}
				b := QMatrix{Data: make([]byte, taps*in*out), Ld: out, Signed: true}
				for k := range taps * in {
					ky, kx, ci := k/in/s.Kernel[1], k/in%s.Kernel[1], k%in
					for p := range pixels {
						y, xx := p/osp[1]*s.Stride[0]+ky-s.PadBegin[0], p%osp[1]+kx-s.PadBegin[1]
						a.Data[p*a.Ld+k] = byte(zero)
						if y >= 0 && y < spatial[0] && xx >= 0 && xx < spatial[1] {
							a.Data[p*a.Ld+k] = x.Data[(y*spatial[1]+xx)*s.Cin+group*in+ci]
						}
					}
					for co := range out {
						b.Data[k*out+co] = w.Data[((group*out+co)*in+ci)*taps+k/in]
					}
				}
				want := qSums(pixels, out, taps*in, a, zero, b, nil, true)
				for i, v := range want {
					if g := got[i/out*s.Cout+group*out+i%out]; g != v {
						t.Fatalf("%+v on %v: sum %d of group %d is %d, want %d", s, spatial, i, group, g, v)
					}
				}
			}
		}
	})
}

func TestTranspose8(t *testing.T) {
	r := rand.New(rand.NewPCG(33, 34))
	for rows := range 20 {
		for cols := range 20 {
			src := qRandom(t, r, 1, rows*cols, false, false).Data
			dst := guarded[byte](t, rows*cols)
			Transpose8(dst, src, rows, cols)
			for i := range src {
				if dst[i%cols*rows+i/cols] != src[i] {
					t.Fatalf("%d x %d: element %d", rows, cols, i)
				}
			}
		}
	}
}

func TestQConvErrors(t *testing.T) {
	s := ConvSpec{Cin: 2, Cout: 4, Groups: 1, Kernel: []int{3}}
	if _, err := NewQConv(s, make([]byte, 24), true, make([]int32, 3), false); err == nil {
		t.Error("zero points: no error")
	}
	c, err := NewQConv(s, make([]byte, 24), true, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	x, y := make([]byte, 10), make([]byte, 12)
	for name, o := range map[string]*QOut{
		"short":  {Bytes: y[:11], Scale: []float32{1}},
		"scale":  {Bytes: y},
		"scales": {Bytes: y, Scale: make([]float32, 3)},
		"init":   {Bytes: y, Scale: make([]float32, 1), Init: make([]int32, 3)},
	} {
		if err := c.Run(nil, x, false, 0, 1, []int{5}, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func BenchmarkQConv(b *testing.B) {
	r := rand.New(rand.NewPCG(35, 36))
	for _, c := range []struct {
		name    string
		s       ConvSpec
		spatial []int
	}{
		{"3x3_64_56", ConvSpec{Cin: 64, Cout: 64, Groups: 1, Kernel: []int{3, 3}, PadBegin: []int{1, 1}, PadEnd: []int{1, 1}}, []int{56, 56}},
		{"3x3s2_3_224", ConvSpec{Cin: 3, Cout: 32, Groups: 1, Kernel: []int{3, 3}, Stride: []int{2, 2}, PadEnd: []int{1, 1}}, []int{224, 224}},
		{"1x1_96_24_56", ConvSpec{Cin: 96, Cout: 24, Groups: 1, Kernel: []int{1, 1}}, []int{56, 56}},
		{"dw3x3_144_56", ConvSpec{Cin: 144, Cout: 144, Groups: 144, Kernel: []int{3, 3}, PadBegin: []int{1, 1}, PadEnd: []int{1, 1}}, []int{56, 56}},
	} {
		b.Run(c.name, func(b *testing.B) {
			taps := 1
			for _, k := range c.s.Kernel {
				taps *= k
			}
			w := qRandom(b, r, 1, c.s.Cin*c.s.Cout/c.s.Groups*taps, true, false).Data
			benchLevels(b, func(b *testing.B) {
				conv, err := NewQConv(c.s, w, true, nil, false)
				if err != nil {
					b.Fatal(err)
				}
				out, _ := conv.conv.out(c.spatial)
				x := qRandom(b, r, 1, c.s.Cin*volume(conv.conv.in(c.spatial)), false, false).Data
				o := &QOut{Bytes: make([]byte, c.s.Cout*volume(out)), Scale: []float32{1e-3}}
				for b.Loop() {
					if err := conv.Run(nil, x, false, 128, 1, c.spatial, o); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(2e-9*float64(len(w))*float64(volume(out))*float64(b.N)/b.Elapsed().Seconds(), "GOPS")
			})
		})
	}
}

// Results of QLinearConv of ONNX Runtime 1.32.0 (opset 13, CPU) on bytes of a
// linear congruential generator: kernel 3×3, pads 1, strides 2 and 1, input
// 6×6, sx = .03, sy = 2.5, sw[c] = (byte+1)/1024.
func TestQConvAgreesWithONNXRuntime(t *testing.T) {
	lcg := func(n int, s uint32) []byte {
		b := make([]byte, n)
		for i := range b {
			s = s*1664525 + 1013904223
			b[i] = byte(s >> 24)
		}
		return b
	}
	eachLevel(t, func(t *testing.T) {
		for _, c := range []struct {
			cin, cout, groups int
			signed            bool
			xZero, yZero      int32
			want              string
		}{
			{3, 2, 1, false, 117, 99, "807a4263515a837d3a6b373f705646825b45312d5740275f57005f8677681abc99003a5c"},
			{3, 3, 3, false, 117, 99, "6975576062666d65605c4a557e67445f5b5b7e653871493b706c038c4251303d7db48e54826f5961556c8d9761665642726054714040"},
			{4, 2, 1, true, -5, 7, "10c101ff14160106120f150ef3f82bf3222814342406beaadaf90cdbe566275c04e8bfe7"},
		} {
			s := ConvSpec{
				Cin: c.cin, Cout: c.cout, Groups: c.groups, Kernel: []int{3, 3}, Stride: []int{2, 1},
				PadBegin: []int{1, 1}, PadEnd: []int{1, 1},
			}
			conv, err := NewQConv(s, lcg(weights(s), 2), true, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			init, scale := make([]int32, c.cout), make([]float32, c.cout)
			for i, b := range lcg(c.cout, 3) {
				init[i] = (int32(b) - 128) * 16
			}
			for i, b := range lcg(c.cout, 4) {
				scale[i] = float32(float32(.03)*((float32(b)+1)/1024)) / 2.5
			}
			x := make([]byte, c.cin*36)
			Transpose8(x, lcg(len(x), 1), c.cin, 36)
			y, plain := make([]byte, c.cout*18), make([]byte, c.cout*18)
			out := &QOut{Bytes: y, Init: init, Scale: scale, Signed: c.signed, Zero: c.yZero}
			if err := conv.Run(nil, x, c.signed, c.xZero, 1, []int{6, 6}, out); err != nil {
				t.Fatal(err)
			}
			Transpose8(plain, y, 18, c.cout)
			if got := hex.EncodeToString(plain); got != c.want {
				t.Errorf("%d to %d channels: %s, want %s", c.cin, c.cout, got, c.want)
			}
		}
	})
}
