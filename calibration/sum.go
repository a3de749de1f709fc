package calibration

import (
	"errors"
	"fmt"
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
type Sum struct{ w [10]uint64 }

const sumLow = -298

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

// String returns the exact sum as "0x1ap-12", 26 times 2^-12.
func (s *Sum) String() string {
	v := s.integer()
	if v.Sign() == 0 {
		return "0"
	}
	z := v.TrailingZeroBits()
	sign := ""
	if v.Sign() < 0 {
		sign = "-"
		v.Neg(v)
	}
	return fmt.Sprintf("%s0x%xp%d", sign, v.Rsh(v, z), int(z)+sumLow)
}

// MarshalText writes the form of String.
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the form of String.
func (s *Sum) UnmarshalText(b []byte) error {
	*s = Sum{}
	text := string(b)
	if text == "0" {
		return nil
	}
	bad := errors.New("not an exact sum, such as 0x1ap-12")
	body, negative := strings.CutPrefix(text, "-")
	mant, exp, ok := strings.Cut(strings.TrimPrefix(body, "0x"), "p")
	if !ok || len(mant) > 160 || !strings.HasPrefix(body, "0x") || strings.HasPrefix(mant, "-") || strings.HasPrefix(mant, "+") {
		return bad
	}
	e, err := strconv.Atoi(exp)
	v, ok := new(big.Int).SetString(mant, 16)
	if err != nil || !ok || e < sumLow || e > 400 {
		return bad
	}
	v.Lsh(v, uint(e-sumLow))
	if v.BitLen() >= 64*len(s.w) {
		return bad
	}
	if negative {
		v.Neg(v).Add(v, new(big.Int).Lsh(big.NewInt(1), uint(64*len(s.w))))
	}
	mask := new(big.Int).SetUint64(math.MaxUint64)
	for k := range s.w {
		s.w[k] = new(big.Int).And(v, mask).Uint64()
		v.Rsh(v, 64)
	}
	return nil
}
