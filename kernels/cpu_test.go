package kernels

import "testing"

// levels returns the levels that this CPU has.
func levels() []Level {
	var ls []Level
	for l := Generic; l <= detected; l++ {
		if chosen(detected, l.String()) == l {
			ls = append(ls, l)
		}
	}
	return ls
}

// eachLevel runs f as a subtest at every level that this CPU has.
func eachLevel(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	defer func(l Level) { level = l }(level)
	for _, l := range levels() {
		level = l
		t.Run(l.String(), f)
	}
}

// benchLevels runs f as a sub-benchmark at every level that this CPU has.
func benchLevels(b *testing.B, f func(b *testing.B)) {
	b.Helper()
	defer func(l Level) { level = l }(level)
	for _, l := range levels() {
		level = l
		b.Run(l.String(), f)
	}
}

func TestChosenLevel(t *testing.T) {
	for _, c := range []struct {
		have Level
		want string
		got  Level
	}{
		{AVX512, "", AVX512},
		{AVX512, "avx2", AVX2},
		{AVX512, "generic", Generic},
		{AVX2, "avx512vnni", AVX2},
		{AVX512VNNI, "avx512vnni", AVX512VNNI},
		{AVX2, "sse9", AVX2},
		{AVX2, "neon", AVX2},
		{NEON, "avx2", NEON},
		{NEON, "generic", Generic},
		{NEON, "neondot", NEON},
		{NEONDot, "neon", NEON},
		{NEONDot, "avx2", NEONDot},
		{AVX2, "neondot", AVX2},
	} {
		if got := chosen(c.have, c.want); got != c.got {
			t.Errorf("chosen(%v, %q) = %v, want %v", c.have, c.want, got, c.got)
		}
	}
	if s := Level(9).String(); s != "unknown" {
		t.Errorf("Level(9) = %q", s)
	}
}
