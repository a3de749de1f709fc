package quant

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/tensor"
	"pgregory.net/rapid"
)

func TestScalar(t *testing.T) {
	u8, i8 := Scheme{Type: U8, Axis: -1}, Scheme{Type: I8, Axis: -1}
	sym := Scheme{Type: I8.Narrow(), Symmetric: true, Axis: -1}
	for _, c := range []struct {
		name  string
		s     Scheme
		r     Range
		scale float32
		zero  int32
	}{
		{"one sided", u8, Range{0, 1000}, float32(1000.0 / 255), 0},
		{"two sided", u8, Range{-20, 1000}, 4, 5},
		{"signed", i8, Range{-20, 1000}, 4, -123},
		{"away from zero", u8, Range{40, 1000}, float32(1000.0 / 255), 0},
		{"negative", u8, Range{-1000, -40}, float32(1000.0 / 255), 255},
		{"empty", u8, Range{0, 0}, 1, 0},
		{"symmetric", sym, Range{-254, 127}, 2, 0},
		{"symmetric empty", sym, Range{0, 0}, 1, 0},
		{"tiny", u8, Range{0, 1e-44}, 0x1p-126, 0},
		{"power of two", Scheme{Type: U8, Axis: -1, PowerOfTwo: true}, Range{0, 300}, 2, 0},
		{"whole float range", u8, Range{-math.MaxFloat32, math.MaxFloat32}, float32(2 * math.MaxFloat32 / 255.0), 128},
	} {
		scale, zero, err := c.s.Scalar(c.r)
		if err != nil || scale != c.scale || zero != c.zero {
			t.Errorf("%s: scale %v zero %v err %v, want %v %v", c.name, scale, zero, err, c.scale, c.zero)
		}
	}
	for _, r := range []Range{{math.NaN(), 1}, {0, math.Inf(1)}, {2, 1}} {
		if _, _, err := u8.Scalar(r); err == nil {
			t.Errorf("range %v accepted", r)
		}
	}
}

func TestScalarContainsRangeAndZero(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Float32Range(-1e30, 1e30).Draw(t, "a"), rapid.Float32Range(-1e30, 1e30).Draw(t, "b")
		s := Scheme{
			Type:      rapid.SampledFrom([]Type{U8, I8, I8.Narrow(), U16, I16, U8.Reduced()}).Draw(t, "type"),
			Symmetric: rapid.Bool().Draw(t, "symmetric"),
			Axis:      -1,
		}
		p, err := s.Tensor(Range{math.Min(float64(a), float64(b)), math.Max(float64(a), float64(b))})
		if err != nil {
			t.Fatal(err)
		}
		step := float64(p.Scale[0])
		for _, x := range []float32{a, b, 0} {
			if v := float64(x); s.Type.Min < 0 || !s.Symmetric {
				if v < p.Lo(0)-step || v > p.Hi(0)+step {
					t.Fatalf("%v outside [%v, %v] of %+v", x, p.Lo(0), p.Hi(0), p)
				}
			}
		}
		if got := p.Value(p.Code(0, 0), 0); got != 0 {
			t.Fatalf("0 becomes %v", got)
		}
	})
}

func TestQuantizeRoundTrip(t *testing.T) {
	for _, axis := range []int{-1, 0, 1, 2} {
		w := tensor.New(tensor.Float32, 3, 5, 4)
		for i := range tensor.As[float32](w) {
			tensor.As[float32](w)[i] = float32(math.Sin(float64(i*i))) * float32(1+i%7)
		}
		p, err := Scheme{Type: I8.Narrow(), Symmetric: true, Axis: axis}.Weights(w)
		if err != nil {
			t.Fatal(err)
		}
		codes, err := p.Quantize(nil, w)
		if err != nil {
			t.Fatal(err)
		}
		back := tensor.As[float32](p.Dequantize(codes))
		_, channels, inner := split(w.Shape(), axis)
		for i, x := range tensor.As[float32](w) {
			c := i / inner % channels
			if d := math.Abs(float64(back[i] - x)); d > float64(p.Scale[c])*0.50001 {
				t.Fatalf("axis %d: element %d off by %v, scale %v", axis, i, d, p.Scale[c])
			}
			if got := int32(tensor.As[int8](codes)[i]); got != p.Code(x, c) {
				t.Fatalf("axis %d: code %d, want %d", axis, got, p.Code(x, c))
			}
		}
	}
}

func TestQuantizeRefusesNaN(t *testing.T) {
	w := tensor.Of([]float32{1, float32(math.NaN())})
	if _, err := (Scheme{Type: I8.Narrow(), Symmetric: true, Axis: -1}).Weights(w); err == nil {
		t.Fatal("NaN accepted")
	}
}

func TestBiasOverflowRaisesWeightScale(t *testing.T) {
	p := Params{Type: I8.Narrow(), Axis: 0, Scale: []float32{1e-3, 1e-9}, Zero: []int32{0, 0}}
	codes, scale, raised, err := p.Bias([]float32{1, 5}, 1e-3)
	if err != nil {
		t.Fatal(err)
	}
	if len(raised) != 1 || raised[0] != 1 {
		t.Fatalf("raised %v", raised)
	}
	for i, b := range []float64{1, 5} {
		if got := float64(codes[i]) * float64(scale[i]); math.Abs(got-b) > 1e-6*b {
			t.Errorf("bias %d becomes %v", i, got)
		}
	}
}

// Codes that were chosen stay where the scale does: only the slices named get the
// nearest codes for the scale that they have now.
func TestRecode(t *testing.T) {
	w := tensor.Of([]float32{.3, .7, 3, 7, 30, 70}, 3, 2)
	p := Params{Type: I8.Narrow(), Axis: 0, Scale: []float32{.1, 1, 10}, Zero: []int32{0, 0, 0}, Codes: tensor.Of([]int8{2, 8, 2, 8, 2, 8}, 3, 2)}
	p.Scale[1] = .5
	chosen := p.Codes
	got, err := p.Recode(w, []int{1})
	if err != nil {
		t.Fatal(err)
	}
	if want := []int8{2, 8, 6, 14, 2, 8}; !slices.Equal(tensor.As[int8](got), want) {
		t.Errorf("%v, want %v", tensor.As[int8](got), want)
	}
	if tensor.As[int8](chosen)[2] != 2 {
		t.Error("the codes given were changed")
	}
	if p.Axis, p.Scale, p.Zero = -1, p.Scale[:1], p.Zero[:1]; true {
		if got, err = p.Recode(w, []int{0}); err != nil || tensor.As[int8](got)[0] != 3 || tensor.As[int8](got)[5] != 127 {
			t.Errorf("one scale: %v, %v", got, err)
		}
	}
}

// Codes of 4 bits have 8 in memory and are packed for a file, two a byte, the
// first in the lower half.
func TestFewBits(t *testing.T) {
	w := tensor.Of([]float32{-7, 3, 0.4, 7, -2.6, 7, 14, -14, 100}, 3, 3)
	p, err := Scheme{Type: I4.Narrow(), Symmetric: true, Axis: 0}.Weights(w)
	if err != nil {
		t.Fatal(err)
	}
	if want := []float32{1, 1, 100.0 / 7}; !slices.Equal(p.Scale, want) {
		t.Errorf("scales %v, want %v", p.Scale, want)
	}
	codes, err := p.Quantize(nil, w)
	if err != nil {
		t.Fatal(err)
	}
	if want := []int8{-7, 3, 0, 7, -3, 7, 1, -1, 7}; !slices.Equal(tensor.As[int8](codes), want) {
		t.Errorf("codes %v, want %v", tensor.As[int8](codes), want)
	}
	packed := p.Type.Pack(codes)
	if want := []byte{0x39, 0x70, 0x7d, 0xf1, 0x07}; packed.DType() != tensor.Int4 || !bytes.Equal(packed.Bytes(), want) {
		t.Errorf("packed %v % x, want % x", packed, packed.Bytes(), want)
	}
	if z := p.ZeroTensor(); z.DType() != tensor.Int4 || z.Len() != 3 || !bytes.Equal(z.Bytes(), []byte{0, 0}) {
		t.Errorf("zero points %v % x", z, z.Bytes())
	}
	if back := tensor.As[float32](p.Dequantize(codes)); back[0] != -7 || back[8] != 100 {
		t.Errorf("values %v", back)
	}
	if n := I8.Narrow(); n.Min != -127 || U8.Narrow() != U8 || n.Narrow() != n {
		t.Errorf("%v, %v", n, U8.Narrow())
	}
}

// Codes of float8 are the nearest ones of values over the scale, within its bounds.
func TestFloat8(t *testing.T) {
	w := tensor.Of([]float32{-448, 17, 0.0009765625, 449, 30, -1, 896, 27, 0}, 3, 3)
	for _, axis := range []int{-1, 0, 1} {
		p, err := Scheme{Type: F8E4M3.Narrow(), Symmetric: true, Axis: axis}.Weights(w)
		if err != nil {
			t.Fatal(err)
		}
		codes, err := p.Quantize(nil, w)
		if err != nil {
			t.Fatal(err)
		}
		if codes.DType() != tensor.Float8E4M3FN || !slices.Equal(codes.Shape(), w.Shape()) {
			t.Fatalf("codes %v", codes)
		}
		if z := p.ZeroTensor(); z.DType() != tensor.Float8E4M3FN || z.Len() != len(p.Scale) || slices.ContainsFunc(z.Bytes(), func(b byte) bool { return b != 0 }) {
			t.Errorf("zero points %v", z)
		}
		back := tensor.As[float32](p.Dequantize(codes))
		for i, x := range tensor.As[float32](w) {
			c := 0
			if axis == 0 {
				c = i / 3
			} else if axis == 1 {
				c = i % 3
			}
			s := float64(p.Scale[c])
			// Half a step: of 3 bits behind the first, or of the subnormal numbers.
			if off := math.Abs(float64(x - back[i])); off > math.Max(math.Abs(float64(x))/16, s/1024)*(1+1e-6) {
				t.Errorf("axis %d: %v became %v, scale %v", axis, x, back[i], s)
			}
		}
	}
	p := Params{Type: F8E4M3, Axis: -1, Scale: []float32{0.5}, Zero: []int32{0}}
	codes, err := p.Quantize(nil, tensor.Of([]float32{1e9, -300}, 2))
	if err != nil {
		t.Fatal(err)
	}
	if back := tensor.As[float32](p.Dequantize(codes)); back[0] != 224 || back[1] != -224 {
		t.Errorf("out of bounds: %v", back)
	}
}
