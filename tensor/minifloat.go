package tensor

import (
	"math"
	"sync"
)

// format describes a binary floating-point format of at most 16 bits with a
// sign bit, subnormals and rounding to nearest even (ONNX specification,
// sections "Float stored in 8 bits" and "Float4").
type format struct {
	bits, man, bias int
	max             float64 // largest finite value
	inf             uint16  // code of +infinity, 0 if there is none
	nan             uint16  // code of NaN
	unsigned        bool    // no negative zero; the NaN has one code
	clamp           bool    // overflow is clamped unless a Cast asks otherwise
}

var formats = [numDTypes]*format{
	Float16:        {bits: 16, man: 10, bias: 15, max: 65504, inf: 0x7c00, nan: 0x7e00},
	BFloat16:       {bits: 16, man: 7, bias: 127, max: 0x1.fep127, inf: 0x7f80, nan: 0x7fc0},
	Float8E4M3FN:   {bits: 8, man: 3, bias: 7, max: 448, nan: 0x7f, clamp: true},
	Float8E4M3FNUZ: {bits: 8, man: 3, bias: 8, max: 240, nan: 0x80, unsigned: true, clamp: true},
	Float8E5M2:     {bits: 8, man: 2, bias: 15, max: 57344, inf: 0x7c, nan: 0x7e, clamp: true},
	Float8E5M2FNUZ: {bits: 8, man: 2, bias: 16, max: 57344, nan: 0x80, unsigned: true, clamp: true},
}

// float4 has neither infinity nor NaN; overflow always clamps.
var float4 = &format{bits: 4, man: 1, bias: 1, max: 6, clamp: true}

func (f *format) encode(x float64, clamp bool) uint16 {
	var sign uint16
	if math.Signbit(x) {
		sign = 1 << (f.bits - 1)
	}
	if math.IsNaN(x) {
		if f.unsigned {
			return f.nan
		}
		return f.nan | sign
	}
	a := math.Abs(x)
	if a == 0 {
		if f.unsigned {
			return 0
		}
		return sign
	}
	if math.IsInf(a, 0) {
		return f.overflow(sign, clamp)
	}
	e := max(math.Ilogb(a), 1-f.bias)
	q := math.RoundToEven(math.Ldexp(a, f.man-e))
	if math.Ldexp(q, e-f.man) > f.max {
		return f.overflow(sign, clamp)
	}
	code := uint16(q) + uint16(e+f.bias-1)<<f.man
	if code == 0 && f.unsigned {
		return 0
	}
	return code | sign
}

// encode32 is encode of a float32, for formats of 8 bits, without arithmetic on
// exponents where the code is one of a finite number.
func (f *format) encode32(x float32, clamp bool) uint16 {
	u := math.Float32bits(x)
	sign, a := uint16(u>>31)<<7, u&(1<<31-1)
	if float64(math.Float32frombits(a)) > f.max || a > 0x7f800000 || a == 0 {
		return f.encode(float64(x), clamp)
	}
	var code uint16
	if e := int(a>>23) - 127; e >= 1-f.bias {
		// Half a unit is added to the bits behind the mantissa, one less where it is
		// even already; a carry goes on into the exponent.
		shift := 23 - f.man
		a += 1<<(shift-1) - 1 + a>>shift&1
		code = uint16(a>>shift) - uint16(127-f.bias)<<f.man
	} else {
		unit := math.Float64frombits(uint64(1023+f.man+f.bias-1) << 52)
		code = uint16(math.RoundToEven(float64(math.Float32frombits(a)) * unit))
	}
	if code == 0 && f.unsigned {
		return 0
	}
	return code | sign
}

func (f *format) overflow(sign uint16, clamp bool) uint16 {
	switch {
	case clamp:
		q := f.max
		e := math.Ilogb(q)
		return uint16(math.Ldexp(q, f.man-e)) + uint16(e+f.bias-1)<<f.man | sign
	case f.inf != 0:
		return f.inf | sign
	case f.unsigned:
		return f.nan
	}
	return f.nan | sign
}

func (f *format) decode(code uint16) float64 {
	sign := code >> (f.bits - 1) & 1
	mag := code & (1<<(f.bits-1) - 1)
	x := 0.0
	switch {
	case f.unsigned && code == f.nan,
		!f.unsigned && f.inf == 0 && f.nan != 0 && mag == f.nan,
		f.inf != 0 && mag > f.inf:
		return math.NaN()
	case f.inf != 0 && mag == f.inf:
		x = math.Inf(1)
	default:
		e, m := int(mag>>f.man), float64(mag&(1<<f.man-1))
		if e > 0 {
			m += float64(int(1) << f.man)
		} else {
			e = 1
		}
		x = math.Ldexp(m, e-f.bias-f.man)
	}
	if sign != 0 {
		return -x
	}
	return x
}

// byteTables holds the values of the 8-bit formats and of Float4E2M1.
var byteTables = sync.OnceValue(func() *[numDTypes][]float32 {
	var tables [numDTypes][]float32
	for d, f := range formats {
		if f != nil && f.bits == 8 {
			tables[d] = f.table()
		}
	}
	tables[Float4E2M1] = float4.table()
	e8m0 := make([]float32, 256)
	for i := range e8m0 {
		e8m0[i] = float32(math.Ldexp(1, i-127))
	}
	e8m0[255] = float32(math.NaN())
	tables[Float8E8M0] = e8m0
	return &tables
})

func (f *format) table() []float32 {
	t := make([]float32, 1<<f.bits)
	for i := range t {
		t[i] = float32(f.decode(uint16(i)))
	}
	return t
}

// RoundMode is a direction of rounding to a power of two; see
// ConvertOptions.Round.
type RoundMode uint8

// Rounding modes of Cast to Float8E8M0.
const (
	RoundUp RoundMode = iota
	RoundDown
	RoundNearest
)

// encodeE8M0 returns the code of the power of two that x > 0 rounds to. The
// specification leaves the sign open: it is ignored.
func encodeE8M0(x float64, o ConvertOptions) uint8 {
	const smallest, largest, nan = 0, 254, 255
	a := math.Abs(x)
	switch {
	case math.IsNaN(a), math.IsInf(a, 0) && o.NoSaturate:
		return nan
	case math.IsInf(a, 0):
		return largest
	case a < 0x1p-127 && o.NoSaturate:
		return nan
	case a <= 0x1p-127:
		return smallest
	}
	m, e := math.Frexp(a) // a = m * 2^e, m in [0.5, 1)
	code := e - 1 + 127
	if o.Round == RoundUp && m > 0.5 || o.Round == RoundNearest && m >= 0.75 {
		code++
	}
	switch {
	case code <= largest:
		return uint8(code)
	case o.NoSaturate:
		return nan
	}
	return largest
}

// Float16ToFloat32 returns the value of an IEEE 754 binary16 code.
func Float16ToFloat32(h uint16) float32 {
	const infinity = 0x7c00 << 13
	m := uint32(h&0x7fff) << 13
	var f float32
	switch e := m & infinity; e {
	case infinity:
		f = math.Float32frombits(m + 224<<23)
	case 0:
		f = math.Float32frombits(m+113<<23) - 0x1p-14
	default:
		f = math.Float32frombits(m + 112<<23)
	}
	return math.Float32frombits(math.Float32bits(f) | uint32(h&0x8000)<<16)
}

// Float16FromFloat32 returns the nearest binary16 code, ties to even; what is
// too large becomes infinity.
func Float16FromFloat32(x float32) uint16 {
	b := math.Float32bits(x)
	sign := uint16(b >> 16 & 0x8000)
	a := b & 0x7fffffff
	switch {
	case a > 0x7f800000:
		return sign | 0x7e00 | uint16(a>>13&0x1ff)
	case a >= 0x47800000: // 2^16
		return sign | 0x7c00
	case a < 0x38800000: // 2^-14: adding 0.5 rounds to multiples of 2^-24
		return sign | uint16(math.Float32bits(math.Float32frombits(a)+0.5)-0x3f000000)
	}
	a += 0xfff + a>>13&1
	return sign | uint16((a-112<<23)>>13)
}

// BFloat16ToFloat32 returns the value of a bfloat16 code.
func BFloat16ToFloat32(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// BFloat16FromFloat32 returns the nearest bfloat16 code, ties to even.
func BFloat16FromFloat32(x float32) uint16 {
	b := math.Float32bits(x)
	if b&0x7fffffff > 0x7f800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
