package tensor

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

var smallFloats = []DType{Float16, BFloat16, Float8E4M3FN, Float8E4M3FNUZ, Float8E5M2, Float8E5M2FNUZ, Float4E2M1}

func formatOf(d DType) *format {
	if d == Float4E2M1 {
		return float4
	}
	return formats[d]
}

func TestFormatsRoundTrip(t *testing.T) {
	for _, d := range smallFloats {
		f := formatOf(d)
		seen := 0.0
		for code := range 1 << f.bits {
			x := f.decode(uint16(code))
			if math.IsNaN(x) {
				if !math.IsNaN(f.decode(f.encode(x, false))) {
					t.Errorf("%v: NaN is lost", d)
				}
				continue
			}
			if got := f.encode(x, false); got != uint16(code) {
				t.Errorf("%v: code %#x = %v encodes to %#x", d, code, x, got)
			}
			if !math.IsInf(x, 0) {
				seen = max(seen, x)
			}
		}
		if seen != f.max {
			t.Errorf("%v: largest value is %v, want %v", d, seen, f.max)
		}
	}
}

// TestFormatsNearest compares encode with a search over all codes.
func TestFormatsNearest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, d := range smallFloats[2:] {
		f := formatOf(d)
		var values []float64
		for code := range 1 << f.bits {
			if x := f.decode(uint16(code)); !math.IsNaN(x) && !math.IsInf(x, 0) && x >= 0 && !math.Signbit(x) {
				values = append(values, x)
			}
		}
		slices.Sort(values)
		for range 2000 {
			x := math.Exp2(rng.Float64()*40-20) * (1 + rng.Float64())
			want := f.max
			if k, _ := slices.BinarySearch(values, x); k < len(values) && k > 0 {
				lo, hi := values[k-1], values[k]
				switch {
				case x-lo < hi-x:
					want = lo
				case x-lo > hi-x:
					want = hi
				default:
					want = lo
					if f.encode(lo, true)&1 != 0 {
						want = hi
					}
				}
			}
			if got := f.decode(f.encode(x, true)); got != want {
				t.Fatalf("%v: %v encodes as %v, want %v", d, x, got, want)
			}
			if got := f.decode(f.encode(-x, true)); got != -want {
				t.Fatalf("%v: %v encodes as %v, want %v", d, -x, got, -want)
			}
		}
	}
}

func TestFastPathsMatchFormats(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200000 {
		x := math.Float32frombits(rng.Uint32())
		if x != x {
			continue
		}
		if got, want := Float16FromFloat32(x), formats[Float16].encode(float64(x), false); got != want {
			t.Fatalf("float16 of %v: %#x, want %#x", x, got, want)
		}
		if got, want := BFloat16FromFloat32(x), formats[BFloat16].encode(float64(x), false); got != want {
			t.Fatalf("bfloat16 of %v: %#x, want %#x", x, got, want)
		}
	}
	for code := range 1 << 16 {
		got, want := Float16ToFloat32(uint16(code)), formats[Float16].decode(uint16(code))
		if float64(got) != want && !(got != got && want != want) {
			t.Fatalf("float16 code %#x: %v, want %v", code, got, want)
		}
	}
}

// The codes are from ml_dtypes and numpy 2 (astype; with np.clip to the finite
// range first for the saturating float8 rows).
func TestConvertGolden(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	xs := []float32{0.47892547, 2.5, 3.5, -2.7, 449, 465, 1e6, -1e6, 1e-7, -1e-7, 0.0009765625, 0.001, 300, 17, inf, -inf, nan}
	for _, c := range []struct {
		to   DType
		o    ConvertOptions
		want []uint8
	}{
		{Float8E4M3FN, ConvertOptions{NoSaturate: true}, []uint8{0x2f, 0x42, 0x46, 0xc3, 0x7e, 0x7f, 0x7f, 0xff, 0x0, 0x80, 0x0, 0x1, 0x79, 0x58, 0x7f, 0xff, 0x7f}},
		{Float8E4M3FN, ConvertOptions{}, []uint8{0x2f, 0x42, 0x46, 0xc3, 0x7e, 0x7e, 0x7e, 0xfe, 0x0, 0x80, 0x0, 0x1, 0x79, 0x58, 0x7e, 0xfe, 0x7f}},
		{Float8E4M3FNUZ, ConvertOptions{NoSaturate: true}, []uint8{0x37, 0x4a, 0x4e, 0xcb, 0x80, 0x80, 0x80, 0x80, 0x0, 0x0, 0x1, 0x1, 0x80, 0x60, 0x80, 0x80, 0x80}},
		{Float8E4M3FNUZ, ConvertOptions{}, []uint8{0x37, 0x4a, 0x4e, 0xcb, 0x7f, 0x7f, 0x7f, 0xff, 0x0, 0x0, 0x1, 0x1, 0x7f, 0x60, 0x7f, 0xff, 0x80}},
		{Float8E5M2, ConvertOptions{NoSaturate: true}, []uint8{0x38, 0x41, 0x43, 0xc1, 0x5f, 0x5f, 0x7c, 0xfc, 0x0, 0x80, 0x14, 0x14, 0x5d, 0x4c, 0x7c, 0xfc, 0x7e}},
		{Float8E5M2, ConvertOptions{}, []uint8{0x38, 0x41, 0x43, 0xc1, 0x5f, 0x5f, 0x7b, 0xfb, 0x0, 0x80, 0x14, 0x14, 0x5d, 0x4c, 0x7b, 0xfb, 0x7e}},
		{Float8E5M2FNUZ, ConvertOptions{NoSaturate: true}, []uint8{0x3c, 0x45, 0x47, 0xc5, 0x63, 0x63, 0x80, 0x80, 0x0, 0x0, 0x18, 0x18, 0x61, 0x50, 0x80, 0x80, 0x80}},
		{Float8E5M2FNUZ, ConvertOptions{}, []uint8{0x3c, 0x45, 0x47, 0xc5, 0x63, 0x63, 0x7f, 0xff, 0x0, 0x0, 0x18, 0x18, 0x61, 0x50, 0x7f, 0xff, 0x80}},
		{Float4E2M1, ConvertOptions{}, []uint8{0x41, 0xd6, 0x77, 0xf7, 0x80, 0x0, 0x77, 0xf7, 0x8}},
		{Float16, ConvertOptions{}, []uint8{0xaa, 0x37, 0x0, 0x41, 0x0, 0x43, 0x66, 0xc1, 0x4, 0x5f, 0x44, 0x5f, 0x0, 0x7c, 0x0, 0xfc, 0x2, 0x0, 0x2, 0x80, 0x0, 0x14, 0x19, 0x14, 0xb0, 0x5c, 0x40, 0x4c, 0x0, 0x7c, 0x0, 0xfc, 0x0, 0x7e}},
		{BFloat16, ConvertOptions{}, []uint8{0xf5, 0x3e, 0x20, 0x40, 0x60, 0x40, 0x2d, 0xc0, 0xe0, 0x43, 0xe8, 0x43, 0x74, 0x49, 0x74, 0xc9, 0xd7, 0x33, 0xd7, 0xb3, 0x80, 0x3a, 0x83, 0x3a, 0x96, 0x43, 0x88, 0x41, 0x80, 0x7f, 0x80, 0xff, 0xc0, 0x7f}},
	} {
		dst := New(c.to, len(xs))
		if err := Convert(dst, Of(xs), 0, len(xs), c.o); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(dst.Bytes(), c.want) {
			t.Errorf("%v %+v: %#x, want %#x", c.to, c.o, dst.Bytes(), c.want)
		}
	}
}

func TestConvertIntegers(t *testing.T) {
	real := Of([]float32{-3, -1.9, 0.9, 1.5, 200.7, 300, float32(math.NaN()), float32(math.Inf(1)), 3e9, -9})
	for _, c := range []struct {
		src  *Tensor
		to   DType
		want []int64
	}{
		{real, Int8, []int64{-3, -1, 0, 1, -56, 44, 0, 0, 0, -9}},
		{real, Uint8, []int64{253, 255, 0, 1, 200, 44, 0, 0, 0, 247}},
		{real, Int32, []int64{-3, -1, 0, 1, 200, 300, math.MinInt32, math.MinInt32, math.MinInt32, -9}},
		{real, Int64, []int64{-3, -1, 0, 1, 200, 300, math.MinInt64, math.MinInt64, 3e9, -9}},
		{real, Int4, []int64{-3, -1, 0, 1, -8, -4, 0, 0, 0, 7}},
		{real, Uint4, []int64{13, 15, 0, 1, 8, 12, 0, 0, 0, 7}},
		{real, Int2, []int64{1, -1, 0, 1, 0, 0, 0, 0, 0, -1}},
		{real, Uint2, []int64{1, 3, 0, 1, 0, 0, 0, 0, 0, 3}},
		{real, Bool, []int64{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
		{Of([]int16{200, -1, 0}), Int8, []int64{-56, -1, 0}},
		{Of([]int16{200, -1, 0}), Uint16, []int64{200, 65535, 0}},
		{Of([]bool{true, false}), Int32, []int64{1, 0}},
		{Of([]float64{0, math.Copysign(0, -1), math.NaN()}), Bool, []int64{0, 0, 1}},
		{FromStrings([]int{4}, []string{"12", " -7", "100.5", "1e2"}), Int32, []int64{12, -7, 100, 100}},
	} {
		dst := New(c.to, c.src.Len())
		if err := Convert(dst, c.src, 0, c.src.Len(), ConvertOptions{}); err != nil {
			t.Fatal(err)
		}
		got, err := Int64s(dst)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v to %v: %v, want %v (%v)", c.src, c.to, got, c.want, err)
		}
	}
}

func TestConvertE8M0(t *testing.T) {
	x := []float32{0, 0.124, 0.25, 0.5, 1.1, 1.5, 2, 0x1p127, 0x1.8p127, float32(math.Inf(1)), float32(math.NaN())}
	for _, c := range []struct {
		o    ConvertOptions
		want []uint8
	}{
		{ConvertOptions{}, []uint8{0, 124, 125, 126, 128, 128, 128, 254, 254, 254, 255}},
		{ConvertOptions{Round: RoundDown}, []uint8{0, 123, 125, 126, 127, 127, 128, 254, 254, 254, 255}},
		{ConvertOptions{Round: RoundNearest, NoSaturate: true}, []uint8{255, 124, 125, 126, 127, 128, 128, 254, 255, 255, 255}},
	} {
		dst := New(Float8E8M0, len(x))
		if err := Convert(dst, Of(x), 0, len(x), c.o); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(dst.Bytes(), c.want) {
			t.Errorf("%+v: %v, want %v", c.o, dst.Bytes(), c.want)
		}
	}
}

func TestConvertStrings(t *testing.T) {
	src := FromStrings([]int{5}, []string{"3.14", "1e-5", "+INF", "-inf", "NaN"})
	got := New(Float32, 5)
	if err := Convert(got, src, 0, 5, ConvertOptions{}); err != nil {
		t.Fatal(err)
	}
	f := As[float32](got)
	if f[0] != 3.14 || f[1] != 1e-5 || !math.IsInf(float64(f[2]), 1) || !math.IsInf(float64(f[3]), -1) || f[4] == f[4] {
		t.Errorf("parsed %v", f)
	}
	back := New(String, 5)
	if err := Convert(back, got, 0, 5, ConvertOptions{}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"3.14", "1e-05", "INF", "-INF", "NaN"}; !slices.Equal(back.Strings(), want) {
		t.Errorf("printed %q, want %q", back.Strings(), want)
	}
	if err := Convert(New(Int32, 1), FromStrings([]int{1}, []string{"Hello"}), 0, 1, ConvertOptions{}); err == nil {
		t.Error("a word became a number")
	}
	if err := Convert(New(Int32, 1), New(Complex64, 1), 0, 1, ConvertOptions{}); err == nil {
		t.Error("a complex number became an integer")
	}
	if _, err := Float32s(src); err == nil {
		t.Error("Float32s of strings")
	}
}

// TestConvertUnaligned reads tensors that lie at odd addresses, as in files.
func TestConvertUnaligned(t *testing.T) {
	raw := AlignedBytes(25)[1:]
	for i := range raw {
		raw[i] = byte(i)
	}
	a, err := FromBytes(Float32, []int{6}, raw)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]float32, 3)
	Read(a, 2, got)
	for i, x := range got {
		b := raw[4*(i+2):]
		if want := math.Float32frombits(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24); x != want {
			t.Errorf("element %d: %v, want %v", i+2, x, want)
		}
	}
}
