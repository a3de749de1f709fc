package calibration

import (
	"errors"
	"math"
	"math/big"
	"math/bits"
	"strconv"
	"strings"
)

// Sum adds float64 numbers exactly, so that it does not depend on their order
// or grouping: a fixed-point number whose lowest bit is 2^-298 (the square of
// the smallest float32) in two's complement, which holds magnitudes below
// 2^341. Smaller bits of a number are dropped. The zero value is 0.
type Sum struct{ w [sumWords]uint64 }

const (
	sumLow   = -298
	sumWords = 10
)

// Add adds x, which is finite.
func (s *Sum) Add(x float64) {
	b := math.Float64bits(x)
	e := int(b >> 52 & 0x7ff)
	m := b & (1<<52 - 1)
	if e > 0 {
		m |= 1 << 52
		e--
	}
	p := e - 1074 - sumLow
	if p < 0 {
		m >>= min(-p, 63)
		p = 0
	}
	i, off := p/64, p%64
	var part [2]uint64
	part[0] = m << off
	if off > 0 {
		part[1] = m >> (64 - off)
	}
	var c uint64
	for k := i; k < len(s.w); k++ {
		var v uint64
		if k-i < 2 {
			v = part[k-i]
		} else if c == 0 {
			return
		}
		if b>>63 == 0 {
			s.w[k], c = bits.Add64(s.w[k], v, c)
		} else {
			s.w[k], c = bits.Sub64(s.w[k], v, c)
		}
	}
}

// Merge adds another sum.
func (s *Sum) Merge(o Sum) {
	var c uint64
	for k := range s.w {
		s.w[k], c = bits.Add64(s.w[k], o.w[k], c)
	}
}

// integer returns the sum in units of 2^sumLow.
func (s *Sum) integer() *big.Int {
	v := new(big.Int)
	for k := len(s.w) - 1; k >= 0; k-- {
		v.Lsh(v, 64).Or(v, new(big.Int).SetUint64(s.w[k]))
	}
	if s.w[len(s.w)-1]>>63 == 1 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(64*len(s.w))))
	}
	return v
}

// Float64 returns the nearest float64.
func (s *Sum) Float64() float64 {
	f := new(big.Float).SetInt(s.integer())
	v, _ := f.SetMantExp(f, sumLow).Float64()
	return v
}

const hexDigits = "0123456789abcdef"

// magnitude returns the sum without its sign, in units of 2^sumLow.
func (s *Sum) magnitude() (w [sumWords]uint64, negative bool) {
	w = s.w
	if negative = w[len(w)-1]>>63 == 1; negative {
		w = negated(w)
	}
	return w, negative
}

// negated returns -w.
func negated(w [sumWords]uint64) [sumWords]uint64 {
	c := uint64(1)
	for k := range w {
		w[k], c = bits.Add64(^w[k], 0, c)
	}
	return w
}

// String returns the exact sum as "0x1ap-12", 26 times 2^-12.
func (s *Sum) String() string { return string(s.appendText(nil)) }

func (s *Sum) appendText(b []byte) []byte {
	w, negative := s.magnitude()
	low, high := 0, len(w)-1
	for low < len(w) && w[low] == 0 {
		low++
	}
	if low == len(w) {
		return append(b, '0')
	}
	for w[high] == 0 {
		high--
	}
	z := bits.TrailingZeros64(w[low])
	if negative {
		b = append(b, '-')
	}
	b = append(b, "0x"...)
	begin := len(b)
	for k := high; k >= low; k-- {
		v := w[k] >> z
		if k < high {
			v |= w[k+1] << (64 - z) // nothing for a z of 0
		}
		if len(b) == begin {
			if v > 0 {
				b = strconv.AppendUint(b, v, 16)
			}
			continue
		}
		for at := 60; at >= 0; at -= 4 {
			b = append(b, hexDigits[v>>at&15])
		}
	}
	b = append(b, 'p')
	return strconv.AppendInt(b, int64(64*low+z+sumLow), 10)
}

// MarshalText writes the form of String.
func (s Sum) MarshalText() ([]byte, error) { return s.appendText(nil), nil }

// UnmarshalText reads the form of String.
func (s *Sum) UnmarshalText(b []byte) error {
	*s = Sum{}
	text := string(b)
	if text == "0" {
		return nil
	}
	bad := errors.New("not an exact sum, such as 0x1ap-12")
	body, negative := strings.CutPrefix(text, "-")
	body, hex := strings.CutPrefix(body, "0x")
	mant, exp, ok := strings.Cut(body, "p")
	e, err := strconv.Atoi(exp)
	if !ok || !hex || err != nil || mant == "" || len(mant) > 160 || e < sumLow || e > 400 {
		return bad
	}
	var w [sumWords]uint64
	for i := range len(mant) {
		v := uint64(strings.IndexByte(hexDigits, mant[i]|0x20)) // -1 is large
		if v > 15 || mant[i] < '0' {
			return bad
		}
		if v == 0 {
			continue
		}
		p := e - sumLow + 4*(len(mant)-1-i)
		if p+bits.Len64(v) >= 64*len(w) {
			return bad
		}
		w[p/64] |= v << (p % 64)
		if p/64+1 < len(w) {
			w[p/64+1] |= v >> (64 - p%64) // nothing within the word
		}
	}
	if negative {
		w = negated(w)
	}
	s.w = w
	return nil
}
