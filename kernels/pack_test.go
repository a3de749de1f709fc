package kernels

import (
	"slices"
	"testing"
)

func TestPack(t *testing.T) {
	r := random(3)
	for n := range 40 {
		u4, u2, i4, i2 := make([]uint8, n), make([]uint8, n), make([]int8, n), make([]int8, n)
		for i := range n {
			u4[i], u2[i], i4[i], i2[i] = uint8(r.IntN(16)), uint8(r.IntN(4)), int8(r.IntN(16)-8), int8(r.IntN(4)-2)
		}
		p4, check4 := zoned[byte]((n+1)/2, 0)
		p2, check2 := zoned[byte]((n+3)/4, 0)
		u, i := make([]uint8, n), make([]int8, n)
		for _, c := range []struct {
			name string
			ok   func() bool
		}{
			{"uint4", func() bool { Pack4(p4, u4, 0); Unpack4(u, p4); return slices.Equal(u, u4) }},
			{"int4", func() bool { Pack4(p4, i4, 0); Unpack4(i, p4); return slices.Equal(i, i4) }},
			{"uint2", func() bool { Pack2(p2, u2, 0); Unpack2(u, p2); return slices.Equal(u, u2) }},
			{"int2", func() bool { Pack2(p2, i2, 0); Unpack2(i, p2); return slices.Equal(i, i2) }},
		} {
			if !c.ok() {
				t.Errorf("%s of %d elements does not come back", c.name, n)
			}
		}
		check4(t)
		check2(t)
	}
	b := make([]byte, 2)
	if Pack4(b, []int8{1, -2, 7}, 0); b[0] != 0xe1 || b[1] != 0x07 {
		t.Errorf("Pack4 = %#x", b)
	}
	if Pack2(b, []int8{1, -2, 0, -1, 1}, 0); b[0] != 0b11001001 || b[1] != 1 {
		t.Errorf("Pack2 = %#b", b)
	}
}

func TestPackWithOffset(t *testing.T) {
	r := random(5)
	eachLevel(t, func(t *testing.T) {
		tails(func(n, off int) {
			for _, offset := range []byte{0, 1, 2, 4, 8, 255} {
				src, _ := zoned[uint8](n, off)
				eight, four, two := make([]byte, n), make([]byte, (n+1)/2), make([]byte, (n+3)/4)
				for i := range src {
					src[i] = byte(r.Uint32())
					q := src[i] + offset
					eight[i] = q
					four[i/2] |= q & 15 << (i % 2 * 4)
					two[i/4] |= q & 3 << (i % 4 * 2)
				}
				dst, check := zoned[byte](n, (off+2)%4)
				Pack8(dst, src, offset)
				check(t)
				if !slices.Equal(dst, eight) {
					t.Fatalf("Pack8 of %d, offset %d: %x, want %x", n, offset, dst, eight)
				}
				dst, check = zoned[byte](len(four), (off+3)%4)
				Pack4(dst, src, offset)
				check(t)
				if !slices.Equal(dst, four) {
					t.Fatalf("Pack4 of %d, offset %d: %x, want %x", n, offset, dst, four)
				}
				dst, check = zoned[byte](len(two), (off+1)%4)
				Pack2(dst, src, offset)
				check(t)
				if !slices.Equal(dst, two) {
					t.Fatalf("Pack2 of %d, offset %d: %x, want %x", n, offset, dst, two)
				}
			}
		})
	})
}

func BenchmarkPack(b *testing.B) {
	src := make([]uint8, 1<<12)
	dst := make([]byte, len(src)/2)
	benchLevels(b, func(b *testing.B) {
		b.SetBytes(int64(len(src)))
		for b.Loop() {
			Pack4(dst, src, 8)
		}
	})
}
