package calibration

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// The text of a sum is that of big integers, and reads back to the same sum.
func TestSumText(t *testing.T) {
	want := func(s *Sum) string {
		v := s.integer()
		if v.Sign() == 0 {
			return "0"
		}
		z := v.TrailingZeroBits()
		sign := ""
		if v.Sign() < 0 {
			sign = "-"
			v = new(big.Int).Neg(v)
		}
		return fmt.Sprintf("%s0x%xp%d", sign, new(big.Int).Rsh(v, z), int(z)+sumLow)
	}
	check := func(s Sum) {
		t.Helper()
		text := s.String()
		if text != want(&s) {
			t.Fatalf("%s, want %s", text, want(&s))
		}
		var back Sum
		if err := back.UnmarshalText([]byte(text)); err != nil || back != s {
			t.Fatalf("%s reads back as %s, %v", text, back.String(), err)
		}
	}
	r := rand.New(rand.NewPCG(1, 9))
	check(Sum{})
	for range 20000 {
		var s Sum
		for range 1 + r.IntN(4) {
			s.Add(math.Ldexp(r.NormFloat64(), r.IntN(600)-300))
		}
		check(s)
		s = Sum{}
		for k := range s.w {
			if r.IntN(2) == 0 {
				s.w[k] = r.Uint64() >> r.IntN(64) << r.IntN(64)
			}
		}
		if s.w[len(s.w)-1] != 1<<63 {
			check(s)
		}
	}
	for _, text := range []string{"", "0x", "0xp1", "0x1", "1p0", "0x1p-299", "0x1p401", "0xgp0", "0x-1p0", "0x+1p0", "0x1_1p0", "--0x1p0", "0x1p", "0x8p338", "-0x8p338", "0x\x11p0"} {
		var s Sum
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as %s", text, s.String())
		}
	}
	for text, want := range map[string]string{"0x0p0": "0", "-0x0p0": "0", "0x00Ap0": "0x5p1", "0x4p338": "0x1p340"} {
		var s Sum
		if err := s.UnmarshalText([]byte(text)); err != nil || s.String() != want {
			t.Errorf("%q was read as %s, %v", text, s.String(), err)
		}
	}
}

func BenchmarkSumText(b *testing.B) {
	var s, back Sum
	s.Add(1.234e-5)
	s.Add(7.9e3)
	for range b.N {
		text, _ := s.MarshalText()
		if back.UnmarshalText(text) != nil {
			b.Fatal()
		}
	}
}
