package calibration

import (
	"bytes"
	"math"
	"math/big"
	"math/rand/v2"
	"reflect"
	"testing"
)

// part is what one sample gives a value.
type part struct {
	sample int
	x      []float32
}

// randomParts makes data of wildly different sizes, with masks and zeros.
func randomParts(r *rand.Rand, samples int) []part {
	var parts []part
	for i := range samples {
		x := make([]float32, 12*(1+r.IntN(40)))
		size := math.Ldexp(1, r.IntN(60)-40)
		for k := range x {
			x[k] = float32(r.NormFloat64() * size)
			switch r.IntN(40) {
			case 0:
				x[k] = 0
			case 1:
				x[k] = float32(math.Inf(-1))
			case 2:
				x[k] = -math.MaxFloat32
			case 3:
				x[k] = float32(math.Copysign(0, -1))
			}
		}
		parts = append(parts, part{i, x})
	}
	return parts
}

func gather(t *testing.T, parts []part) *Stats {
	t.Helper()
	o := NewObserver(64, 1)
	for _, p := range parts {
		if err := o.Update(p.sample, []int{len(p.x) / 12, 4, 3}, p.x); err != nil {
			t.Fatal(err)
		}
	}
	return o.Stats()
}

// TestMerge: any order of samples and any grouping give the same statistics.
func TestMerge(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 60 {
		parts := randomParts(r, 1+r.IntN(12))
		want := gather(t, parts)
		mixed := append([]part{}, parts...)
		r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		groups := make([]*Stats, 1+r.IntN(4))
		for g := range groups {
			var own []part
			for i, p := range mixed {
				if i%len(groups) == g {
					own = append(own, p)
				}
			}
			groups[g] = gather(t, own)
		}
		for len(groups) > 1 {
			i := r.IntN(len(groups) - 1)
			before := groups[i+1].Clone()
			if err := groups[i].Merge(groups[i+1]); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(before, groups[i+1]) {
				t.Fatal("Merge changed its argument")
			}
			groups = append(groups[:i+1], groups[i+2:]...)
		}
		if !reflect.DeepEqual(groups[0], want) {
			t.Fatalf("merged %+v\nat once %+v", groups[0], want)
		}
	}
}

// TestObserver compares with a direct count.
func TestObserver(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 40 {
		parts := randomParts(r, 1+r.IntN(6))
		s := gather(t, parts)
		counts := make([]uint64, len(s.Hist.Counts))
		var n, masked uint64
		lo, hi := float32(math.Inf(1)), float32(math.Inf(-1))
		exact, exact2 := new(big.Rat), new(big.Rat)
		chans := make([]*big.Rat, 4)
		for i := range chans {
			chans[i] = new(big.Rat)
		}
		for _, p := range parts {
			for i, v := range p.x {
				if v <= -1e30 {
					masked++
					continue
				}
				n++
				lo, hi = min(lo, v), max(hi, v)
				counts[int(math.Floor(math.Ldexp(float64(v), -s.Hist.Exp)))+len(counts)/2]++
				q := new(big.Rat).SetFloat64(float64(v))
				exact.Add(exact, q)
				exact2.Add(exact2, new(big.Rat).Mul(q, q))
				chans[i/3%4].Add(chans[i/3%4], q)
			}
		}
		if s.Count != n || s.Masked != masked || s.Min != lo || s.Max != hi || !reflect.DeepEqual(s.Hist.Counts, counts) {
			t.Fatalf("count %d masked %d [%v, %v], want %d %d [%v, %v], or histograms differ", s.Count, s.Masked, s.Min, s.Max, n, masked, lo, hi)
		}
		if s.Hist.Exp > minExp && s.Hist.fits(lo, hi, s.Hist.Exp-1) {
			t.Fatalf("bins of 2^%d are too wide for [%v, %v]", s.Hist.Exp, lo, hi)
		}
		near := func(what string, got float64, want *big.Rat) {
			w, _ := want.Float64()
			if math.Abs(got-w) > 1e-12*math.Sqrt(float64(n))*max(-float64(lo), float64(hi), 1e-30) && math.Abs(got-w) > 1e-12*math.Abs(w) {
				t.Fatalf("%s %v, exactly %v", what, got, w)
			}
		}
		near("sum", s.Sum.Float64(), exact)
		near("squares", s.Squares.Float64(), exact2)
		for c := range 4 {
			near("channel sum", s.Channels.Sum[c].Float64(), chans[c])
		}
	}
}

func TestSamplesAndChannels(t *testing.T) {
	o := NewObserver(8, 1)
	inf := float32(math.Inf(1))
	for _, u := range []struct {
		sample int
		x      []float32
	}{{3, []float32{1, -2, 3, 4}}, {1, []float32{-inf, 5, -6, 5}}, {3, []float32{9, 0, 0, 0}}} {
		if err := o.Update(u.sample, []int{2, 2}, u.x); err != nil {
			t.Fatal(err)
		}
	}
	s := o.Stats()
	if want := []SampleRange{{1, -6, 5}, {3, -2, 9}}; !reflect.DeepEqual(s.Samples, want) {
		t.Errorf("samples %v, want %v", s.Samples, want)
	}
	c := s.Channels
	if !reflect.DeepEqual(c.Min, []float32{-6, -2}) || !reflect.DeepEqual(c.Max, []float32{9, 5}) ||
		!reflect.DeepEqual(c.Mean(), []float64{7.0 / 5, 12.0 / 6}) {
		t.Errorf("channels %+v, means %v", c, c.Mean())
	}
	if s.Mean() != 19.0/11 || s.MeanSquare() != (1+4+9+16+25+36+25+81)/11.0 {
		t.Errorf("mean %v, of squares %v", s.Mean(), s.MeanSquare())
	}
	if err := o.Update(4, []int{1, 3}, []float32{1, 2, 3}); err == nil {
		t.Error("another number of channels was taken")
	}
	if err := o.Update(4, []int{3}, []float32{1, 2, 3}); err == nil {
		t.Error("a shape without the axis was taken")
	}
	if err := o.Update(4, []int{2, 2}, []float32{1, 2, 3}); err == nil {
		t.Error("too few elements were taken")
	}
	if err := o.Merge(NewObserver(16, 1)); err == nil {
		t.Error("different histograms were merged")
	}
	if err := o.Merge(NewObserver(8, 0)); err == nil {
		t.Error("different axes were merged")
	}
}

func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 1))
	for range 200 {
		var s Sum
		exact := new(big.Rat)
		for range r.IntN(30) {
			v := r.NormFloat64() * math.Ldexp(1, r.IntN(500)-200)
			q, _ := new(big.Rat).SetString("0")
			q.SetFloat64(v)
			// What lies below 2^-298 is dropped.
			unit := new(big.Rat).SetFloat64(0x1p-298)
			k := new(big.Rat).Quo(q, unit)
			i := new(big.Int).Quo(k.Num(), k.Denom())
			exact.Add(exact, new(big.Rat).Mul(new(big.Rat).SetInt(i), unit))
			s.Add(v)
		}
		want, _ := exact.Float64()
		if got := s.Float64(); got != want {
			t.Fatalf("%v, exactly %v", got, want)
		}
		text, _ := s.MarshalText()
		var u Sum
		if err := u.UnmarshalText(text); err != nil || u != s {
			t.Fatalf("%s read back: %v, %v", text, u.String(), err)
		}
	}
	var s Sum
	s.Add(math.SmallestNonzeroFloat32)
	s.Add(-26)
	s.Add(26)
	if s.Float64() != math.SmallestNonzeroFloat32 || s.String() != "0x1p-149" {
		t.Errorf("%v %s", s.Float64(), s.String())
	}
	for _, text := range []string{"", "1", "0x", "0xp1", "0x1p", "0x1p-299", "0x1p400", "0x-1p1", "--0x1p1", "0xgp1", "0x1p1000000000", "0x" + string(make([]byte, 300)) + "p1"} {
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as %v", text, s.String())
		}
	}
}

func BenchmarkObserver(b *testing.B) {
	x := make([]float32, 1<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for name, axis := range map[string]int{"tensor": -1, "channels": 1} {
		b.Run(name, func(b *testing.B) {
			o := NewObserver(0, axis)
			b.SetBytes(int64(4 * len(x)))
			for b.Loop() {
				if err := o.Update(0, []int{1, 64, 1 << 14}, x); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestRangesOfSamples: of many samples the last are kept, in any order and
// grouping.
func TestRangesOfSamples(t *testing.T) {
	n := maxRanges + 500
	at := func(i int) []float32 { return []float32{float32(-i), float32(i)} }
	order := rand.New(rand.NewPCG(9, 9)).Perm(n)
	var parts [3]*Observer
	for k := range parts {
		parts[k] = NewObserver(4, -1)
	}
	for _, i := range order {
		if err := parts[i%3].Update(i, []int{2}, at(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range parts[1:] {
		if err := parts[0].Merge(p); err != nil {
			t.Fatal(err)
		}
	}
	got := parts[0].Stats().Samples
	if len(got) != maxRanges {
		t.Fatalf("%d ranges", len(got))
	}
	for k, r := range got {
		if i := n - maxRanges + k; r != (SampleRange{i, float32(-i), float32(i)}) {
			t.Fatalf("range %d is %v", k, r)
		}
	}
}

// TestBlocks: values in blocks of channels give the statistics of the same
// values channel by channel; what is behind the last channel does not enter.
func TestBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 7))
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct{ n, channels, inner int }{{1, 16, 5}, {2, 40, 49}, {3, 3, 7}, {1, 64, 3000}, {2, 17, 2100}, {1, 32, 1}} {
		for _, rare := range []bool{false, true} {
			for _, axis := range []int{-1, 1} {
				up := (c.channels + 15) / 16 * 16
				plain := make([]float32, c.n*c.channels*c.inner)
				blocks := make([]float32, c.n*up*c.inner)
				for i := range blocks {
					blocks[i] = nan
				}
				for i := range plain {
					v := float32(r.IntN(2000)-700) / 64 // sums are exact in any order
					if rare && r.IntN(50) == 0 {
						v = []float32{nan, inf, -inf, -3e38}[r.IntN(4)]
					}
					plain[i] = v
					image, ch, at := i/(c.channels*c.inner), i/c.inner%c.channels, i%c.inner
					blocks[((image*up/16+ch/16)*c.inner+at)*16+ch%16] = v
				}
				a, b := NewObserver(64, axis), NewObserver(64, axis)
				if err := a.Update(3, []int{c.n, c.channels, c.inner}, plain); err != nil {
					t.Fatal(err)
				}
				if err := b.UpdateBlocks(3, []int{c.n, up, c.inner}, c.channels, blocks); err != nil {
					t.Fatal(err)
				}
				got, err1 := new(writer).stats(b.Stats())
				want, err2 := new(writer).stats(a.Stats())
				if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
					t.Errorf("%v, rare values %v, axis %d:\n%s\nchannel by channel:\n%s", c, rare, axis, got, want)
				}
			}
		}
	}
	if err := NewObserver(64, 2).UpdateBlocks(0, []int{1, 16, 1}, 16, make([]float32, 16)); err == nil {
		t.Error("another axis of channels is accepted")
	}
}
