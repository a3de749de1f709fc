package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// move emits what moves or narrows elements. Rows of images are short, so most
// of it has one form of 32 bytes for all levels.
func move(c *build.Context) {
	levels(c, func(g *gen) {
		g.halfToFloat()
		g.floatToHalf()
		g.brainToFloat()
		g.floatToBrain()
		g.truncate()
		if g.z {
			return
		}
		g.transpose4()
		g.transpose1()
		for stride := 1; stride <= 2; stride++ {
			g.poolRow("maxRow", stride, func(acc, v V) V { return g.sel(g.cmp(un, v, v), v, g.max(v, acc)) })
			g.poolRow("sumRow", stride, func(acc, v V) V { return g.add(acc, v) })
		}
		g.max8("maxU8", "uint8", g.VPMAXUB)
		g.max8("maxI8", "int8", g.VPMAXSB)
	})
}

func (g *gen) halfToFloat() {
	g.fn("halfToFloat", "func(dst *float32, src *uint16, n int)", "widens float16"+g.multiple(8)+".")
	g.widen(func(m Op) V { r := g.reg(); g.VCVTPH2PS(m, r); return r })
}

func (g *gen) brainToFloat() {
	g.fn("brainToFloat", "func(dst *float32, src *uint16, n int)", "widens bfloat16"+g.multiple(8)+".")
	g.widen(func(m Op) V { r := g.reg(); g.VPMOVZXWD(m, r); return g.shl(r, 16) })
}

func (g *gen) truncate() {
	g.fn("truncate", "func(dst *int32, src *float32, n int)",
		"converts towards zero, what is out of range and NaN to the smallest int32"+g.multiple(8)+".")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	g.mapRows(4, n, dst, src, func(x V) V {
		r := g.reg()
		g.VCVTTPS2DQ(x, r)
		return r
	})
	g.ret()
}

func (g *gen) widen(f func(m Op) V) {
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	for _, vectors := range []int{4, 1} {
		g.each(n, vectors*g.lanes(), func() {
			for i := range vectors {
				g.VMOVUPS(f(Mem{Base: src, Disp: i * g.lanes() * 2}), g.at(dst, i))
			}
		}, stream{src, 2}, stream{dst, 4})
	}
	g.rest(n, func(k reg.Register) {
		x := g.YMM()
		g.VMOVDQU16_Z(Mem{Base: src}, k, x)
		g.VMOVUPS(f(x), k, Mem{Base: dst})
	})
	g.ret()
}

func (g *gen) floatToHalf() {
	g.fn("floatToHalf", "func(dst *uint16, src *float32, n int)", "rounds to float16, half to even"+g.multiple(8)+".")
	g.narrow(func(v V) V {
		if g.z {
			r := g.YMM()
			g.VCVTPS2PH(U8(0), v, r)
			return r
		}
		r := g.XMM()
		g.VCVTPS2PH(U8(0), v, r)
		return r
	})
}

func (g *gen) floatToBrain() {
	g.fn("floatToBrain", "func(dst *uint16, src *float32, n int)", "rounds to bfloat16, half to even"+g.multiple(8)+".")
	g.narrow(func(v V) V {
		b := g.brain(v)
		if g.z {
			r := g.YMM()
			g.VPMOVDW(b, r)
			return r
		}
		g.VPACKUSDW(b, b, b)
		g.VPERMQ(U8(0xd8), b, b)
		return b.AsX().(V)
	})
}

// brain returns the bfloat16 nearest to v in the low bits.
func (g *gen) brain(v V) V {
	odd := g.and(g.shr(v, 16), KI(1))
	b := g.addi(g.addi(v, KI(0x7fff)), odd)
	return g.shr(g.sel(g.cmp(un, v, v), g.or(v, KI(0x400000)), b), 16)
}

func (g *gen) narrow(f func(v V) V) {
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	for _, vectors := range []int{4, 1} {
		g.each(n, vectors*g.lanes(), func() {
			for i := range vectors {
				g.VMOVUPS(f(g.load(g.at(src, i))), Mem{Base: dst, Disp: i * g.lanes() * 2})
			}
		}, stream{src, 4}, stream{dst, 2})
	}
	g.rest(n, func(k reg.Register) {
		g.VMOVDQU16(f(g.loadMasked(src, k)), k, Mem{Base: dst})
	})
	g.ret()
}

// strides loads the byte strides ld*size of a parameter: once and three times.
func (g *gen) strides(name string, size int) (one, three reg.Register) {
	one, three = g.param(name), g.GP64()
	if size == 4 {
		g.SHLQ(U8(2), one)
	}
	g.LEAQ(Mem{Base: one, Index: one, Scale: 2}, three)
	return one, three
}

// row returns the memory of row i, 0 to 3, after p.
func row(p, one, three reg.Register, i int) Mem {
	switch i {
	case 1:
		return Mem{Base: p, Index: one, Scale: 1}
	case 2:
		return Mem{Base: p, Index: one, Scale: 2}
	case 3:
		return Mem{Base: p, Index: three, Scale: 1}
	}
	return Mem{Base: p}
}

// after returns p + 4*one.
func (g *gen) after(p, one reg.Register) reg.Register {
	r := g.GP64()
	g.LEAQ(Mem{Base: p, Index: one, Scale: 4}, r)
	return r
}

func (g *gen) transpose4() {
	g.fn("transpose4", "func(dst, src *uint32, cols, ldd, lds int)",
		"transposes 16 rows of cols elements, a multiple of 4, which lie lds apart, to rows that lie ldd apart.")
	dst, src, n := g.param("dst"), g.param("src"), g.param("cols")
	d1, d3 := g.strides("ldd", 4)
	s1, s3 := g.strides("lds", 4)
	p := []reg.Register{src}
	for i := range 3 {
		p = append(p, g.after(p[i], s1))
	}
	g.each(n, 4, func() {
		for h := range 2 {
			var a [4]V
			for i := range a {
				a[i] = g.YMM()
				g.VMOVUPS(row(p[2*h], s1, s3, i), a[i].AsX())
				g.VINSERTF128(U8(1), row(p[2*h+1], s1, s3, i), a[i], a[i])
			}
			var t, c [4]V
			for i := range t {
				t[i], c[i] = g.YMM(), g.YMM()
			}
			g.VUNPCKLPS(a[1], a[0], t[0])
			g.VUNPCKHPS(a[1], a[0], t[1])
			g.VUNPCKLPS(a[3], a[2], t[2])
			g.VUNPCKHPS(a[3], a[2], t[3])
			g.VUNPCKLPD(t[2], t[0], c[0])
			g.VUNPCKHPD(t[2], t[0], c[1])
			g.VUNPCKLPD(t[3], t[1], c[2])
			g.VUNPCKHPD(t[3], t[1], c[3])
			for i := range c {
				m := row(dst, d1, d3, i)
				m.Disp = 32 * h
				g.VMOVUPS(c[i], m)
			}
		}
		g.LEAQ(Mem{Base: dst, Index: d1, Scale: 4}, dst)
	}, stream{p[0], 4}, stream{p[1], 4}, stream{p[2], 4}, stream{p[3], 4})
	g.ret()
}

func (g *gen) transpose1() {
	g.fn("transpose1", "func(dst, src *uint8, cols, ldd, lds int)",
		"transposes 8 rows of cols elements, a multiple of 16, which lie lds apart, to rows that lie ldd apart.")
	dst, src, n := g.param("dst"), g.param("src"), g.param("cols")
	d1, d3 := g.strides("ldd", 1)
	s1, s3 := g.strides("lds", 1)
	p := []reg.Register{src, g.after(src, s1)}
	g.each(n, 16, func() {
		r := make([]V, 8)
		for i := range r {
			r[i] = g.XMM()
			g.VMOVDQU(row(p[i/4], s1, s3, i%4), r[i])
		}
		for range 3 { // each turns an index of 3 row and 4 column bits by one bit
			t := make([]V, 8)
			for i := range 4 {
				t[2*i], t[2*i+1] = g.XMM(), g.XMM()
				g.VPUNPCKLBW(r[i+4], r[i], t[2*i])
				g.VPUNPCKHBW(r[i+4], r[i], t[2*i+1])
			}
			r = t
		}
		for i, v := range r {
			g.VMOVLPS(v, row(dst, d1, d3, 2*i%4))
			g.VMOVHPS(v, row(dst, d1, d3, 2*i%4+1))
			if i%2 == 1 {
				g.LEAQ(Mem{Base: dst, Index: d1, Scale: 4}, dst)
			}
		}
	}, stream{p[0], 1}, stream{p[1], 1})
	g.ret()
}

func (g *gen) poolRow(base string, stride int, f func(acc, v V) V) {
	reads := ""
	if stride == 2 {
		reads = ", reading one more element of src"
	}
	g.fn(fmt.Sprint(base, stride), "func(dst, src *float32, n, taps, dilation int)",
		fmt.Sprintf("combines src[%d*i + k*dilation] for k < taps to dst[i]%s%s.", stride, g.multiple(8), reads))
	dst, src, n, taps, dilation := g.param("dst"), g.param("src"), g.param("n"), g.param("taps"), g.param("dilation")
	g.SHLQ(U8(2), dilation)
	load := func(p reg.Register) V {
		a := g.load(Mem{Base: p})
		if stride == 2 {
			g.VSHUFPS(U8(0x88), Mem{Base: p, Disp: 32}, a, a)
			g.VPERMPD(U8(0xd8), a, a)
		}
		return a
	}
	g.each(n, 8, func() {
		p, t := g.GP64(), g.GP64()
		g.MOVQ(src, p)
		g.MOVQ(taps, t)
		acc := load(p)
		top, end := g.label("tap"), g.label("taps")
		g.Label(top)
		g.DECQ(t)
		g.JE(LabelRef(end))
		g.ADDQ(dilation, p)
		g.VMOVAPS(f(acc, load(p)), acc)
		g.JMP(LabelRef(top))
		g.Label(end)
		g.VMOVUPS(acc, Mem{Base: dst})
	}, stream{dst, 4}, stream{src, 4 * stride})
	g.ret()
}

func (g *gen) max8(base, elem string, f func(...Op)) {
	g.fn(base, "func(dst, a, b *"+elem+", n int)", "stores the greater; n is a multiple of 32.")
	dst, a, b, n := g.param("dst"), g.param("a"), g.param("b"), g.param("n")
	g.each(n, 32, func() {
		v := g.YMM()
		g.VMOVDQU(Mem{Base: a}, v)
		f(Mem{Base: b}, v, v)
		g.VMOVDQU(v, Mem{Base: dst})
	}, stream{dst, 1}, stream{a, 1}, stream{b, 1})
	g.ret()
}
