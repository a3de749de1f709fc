package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func quant(c *build.Context) {
	levels(c, func(g *gen) {
		g.quantize("quantize8", 1)
		g.quantize("quantize16", 2)
		g.fakeQuantize()
		g.dequantize("dequantizeU8", "uint8", 1, g.VPMOVZXBD)
		g.dequantize("dequantizeI8", "int8", 1, g.VPMOVSXBD)
		g.dequantize("dequantizeU16", "uint16", 2, g.VPMOVZXWD)
		g.dequantize("dequantizeI16", "int16", 2, g.VPMOVSXWD)
		g.dequantizeI32()
		g.codeSum("codeSumU8", "uint8", g.VPMOVZXBD)
		g.codeSum("codeSumI8", "int8", g.VPMOVSXBD)
		g.quantizeColumns("quantizeColumns8", "uint8", 1)
		g.quantizeColumns("quantizeColumns16", "uint16", 2)
		g.dequantizeColumns("dequantizeColumnsU8", "uint8", 1, g.VPMOVZXBD)
		g.dequantizeColumns("dequantizeColumnsI8", "int8", 1, g.VPMOVSXBD)
		g.dequantizeColumns("dequantizeColumnsU16", "uint16", 2, g.VPMOVZXWD)
		g.dequantizeColumns("dequantizeColumnsI16", "int16", 2, g.VPMOVSXWD)
		g.pack("pack4", 4)
		g.pack("pack2", 2)
		g.pack8()
	})
}

// quantAhead is how far ahead, in bytes, of what it reads the AVX-512 kernel asks
// for memory: division leaves the processor no room to run ahead by itself.
const quantAhead = 2048

// codes emits clamp(v/scale) rounded; NaN becomes lo.
func (g *gen) codes(v, scale, lo, hi V) V {
	return g.toInt(g.min(g.max(g.div(v, scale), lo), hi))
}

func (g *gen) quantize(base string, size int) {
	elem := map[int]string{1: "uint8", 2: "uint16"}[size]
	g.fn(base, "func(dst *"+elem+", src *float32, n int, scale, lo, hi float32, zero int32)",
		"stores clamp(src/scale, lo, hi) rounded half to even, plus zero"+g.multiple(32)+".")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	scale, lo, hi, zero := g.broadcast("scale"), g.broadcast("lo"), g.broadcast("hi"), g.broadcast("zero")
	code := func(m Mem) V { return g.addi(g.codes(g.load(m), scale, lo, hi), zero) }
	if g.z {
		narrow := g.VPMOVDB
		if size == 2 {
			narrow = g.VPMOVDW
		}
		step := func(vectors int) {
			g.each(n, vectors*16, func() {
				for i := range vectors {
					g.PREFETCHT0(Mem{Base: src, Disp: i*64 + quantAhead})
					narrow(code(g.at(src, i)), Mem{Base: dst, Disp: i * 16 * size})
				}
			}, stream{src, 4}, stream{dst, size})
		}
		step(4)
		step(1)
		g.rest(n, func(k reg.Register) {
			v := g.ZMM()
			g.VMOVUPS_Z(Mem{Base: src}, k, v)
			narrow(g.addi(g.codes(v, scale, lo, hi), zero), k, Mem{Base: dst})
		})
		g.ret()
		return
	}
	low := g.hoist(KI(1<<(8*size) - 1))
	words := func(i int) V { // 16 codes as words, in the order 0-3 8-11 4-7 12-15
		a, b, r := g.and(code(g.at(src, i)), low), g.and(code(g.at(src, i+1)), low), g.YMM()
		g.VPACKUSDW(b, a, r)
		return r
	}
	if size == 2 {
		g.each(n, 32, func() {
			for i := 0; i < 4; i += 2 {
				w := words(i)
				g.VPERMQ(U8(0xd8), w, w)
				g.VMOVDQU(w, Mem{Base: dst, Disp: i * 16})
			}
		}, stream{src, 4}, stream{dst, 2})
	} else {
		order := g.YMM()
		m := g.StaticGlobal("order")
		g.DataAttributes(attr.RODATA | attr.NOPTR)
		for _, d := range []uint32{0, 4, 1, 5, 2, 6, 3, 7} {
			g.AppendDatum(U32(d))
		}
		g.VMOVDQU(m, order)
		g.each(n, 32, func() {
			a, b, r := words(0), words(2), g.YMM()
			g.VPACKUSWB(b, a, r)
			g.VPERMD(r, order, r)
			g.VMOVDQU(r, Mem{Base: dst})
		}, stream{src, 4}, stream{dst, 1})
	}
	g.ret()
}

// multiple says which lengths the AVX2 form takes.
func (g *gen) multiple(n int) string {
	if g.z {
		return ""
	}
	return "; n is a multiple of " + map[int]string{8: "8", 16: "16", 32: "32"}[n]
}

func (g *gen) fakeQuantize() {
	g.fn("fakeQuantize", "func(dst, src *float32, n int, scale, lo, hi float32)",
		"stores clamp(src/scale, lo, hi) rounded half to even, times scale"+g.multiple(8)+".")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	scale, lo, hi := g.broadcast("scale"), g.broadcast("lo"), g.broadcast("hi")
	g.mapRows(4, n, dst, src, func(v V) V {
		return g.mul(g.fromInt(g.codes(v, scale, lo, hi)), scale)
	})
	g.ret()
}

func (g *gen) dequantize(base, elem string, size int, widen func(...Op)) {
	g.fn(base, "func(dst *float32, src *"+elem+", n int, scale float32, zero int32)",
		"stores (src-zero)*scale"+g.multiple(8)+".")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	scale, zero := g.broadcast("scale"), g.broadcast("zero")
	value := func(q V) V { return g.mul(g.fromInt(g.subi(q, zero)), scale) }
	for _, vectors := range []int{4, 1} {
		g.each(n, vectors*g.lanes(), func() {
			for i := range vectors {
				q := g.reg()
				widen(Mem{Base: src, Disp: i * g.lanes() * size}, q)
				g.VMOVUPS(value(q), g.at(dst, i))
			}
		}, stream{src, size}, stream{dst, 4})
	}
	g.rest(n, func(k reg.Register) {
		g.VMOVUPS(value(g.widenMasked(src, k, size, widen)), k, Mem{Base: dst})
	})
	g.ret()
}

func (g *gen) codeSum(base, elem string, widen func(...Op)) {
	g.fn(base, "func(dst *float32, a, b *"+elem+", n int, ra, rb, c float32)",
		"stores a*ra + (b*rb + c), each product with its sum rounded once"+g.multiple(8)+".")
	dst, a, b, n := g.param("dst"), g.param("a"), g.param("b"), g.param("n")
	ra, rb, fixed := g.broadcast("ra"), g.broadcast("rb"), g.broadcast("c")
	sum := func(x, y V) V { return g.fma(g.fromInt(x), ra, g.fma(g.fromInt(y), rb, fixed)) }
	for _, vectors := range []int{4, 1} {
		g.each(n, vectors*g.lanes(), func() {
			for i := range vectors {
				x, y := g.reg(), g.reg()
				widen(Mem{Base: a, Disp: i * g.lanes()}, x)
				widen(Mem{Base: b, Disp: i * g.lanes()}, y)
				g.VMOVUPS(sum(x, y), g.at(dst, i))
			}
		}, stream{a, 1}, stream{b, 1}, stream{dst, 4})
	}
	g.rest(n, func(k reg.Register) {
		g.VMOVUPS(sum(g.widenMasked(a, k, 1, widen), g.widenMasked(b, k, 1, widen)), k, Mem{Base: dst})
	})
	g.ret()
}

func (g *gen) dequantizeI32() {
	g.fn("dequantizeI32", "func(dst *float32, src *int32, n int, scale float32)",
		"stores src*scale"+g.multiple(8)+".")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	scale := g.broadcast("scale")
	g.mapRows(4, n, dst, src, func(v V) V { return g.mul(g.fromInt(v), scale) })
	g.ret()
}

// quantizeColumns has a scale and a zero point for each element.
func (g *gen) quantizeColumns(base, elem string, size int) {
	g.fn(base, "func(dst *"+elem+", src, scale *float32, zero *int32, n int, lo, hi int32)",
		"stores src/scale rounded half to even plus zero, clamped to lo and hi"+g.multiple(8)+".")
	dst, src, scale, zero, n := g.param("dst"), g.param("src"), g.param("scale"), g.param("zero"), g.param("n")
	lo, hi := g.broadcast("lo"), g.broadcast("hi")
	code := func(x, s, z V) V {
		return g.addi(g.codes(x, s, g.fromInt(g.subi(lo, z)), g.fromInt(g.subi(hi, z))), z)
	}
	g.each(n, g.lanes(), func() {
		q := code(g.load(Mem{Base: src}), g.load(Mem{Base: scale}), g.load(Mem{Base: zero}))
		switch {
		case g.z && size == 1:
			g.VPMOVDB(q, Mem{Base: dst})
		case g.z:
			g.VPMOVDW(q, Mem{Base: dst})
		default:
			q = g.and(q, KI(1<<(8*size)-1))
			g.VPACKUSDW(q, q, q)
			g.VPERMQ(U8(0xd8), q, q)
			if size == 2 {
				g.VMOVDQU(q.AsX(), Mem{Base: dst})
				return
			}
			g.VPACKUSWB(q.AsX(), q.AsX(), q.AsX())
			g.VMOVQ(q.AsX(), Mem{Base: dst})
		}
	}, stream{dst, size}, stream{src, 4}, stream{scale, 4}, stream{zero, 4})
	g.rest(n, func(k reg.Register) {
		q := code(g.loadMasked(src, k), g.loadMasked(scale, k), g.loadMasked(zero, k))
		if size == 1 {
			g.VPMOVDB(q, k, Mem{Base: dst})
		} else {
			g.VPMOVDW(q, k, Mem{Base: dst})
		}
	})
	g.ret()
}

func (g *gen) dequantizeColumns(base, elem string, size int, widen func(...Op)) {
	g.fn(base, "func(dst *float32, src *"+elem+", scale *float32, zero *int32, n int)",
		"stores (src-zero)*scale"+g.multiple(8)+".")
	dst, src, scale, zero, n := g.param("dst"), g.param("src"), g.param("scale"), g.param("zero"), g.param("n")
	value := func(q, s, z V) V { return g.mul(g.fromInt(g.subi(q, z)), s) }
	g.each(n, g.lanes(), func() {
		q := g.reg()
		widen(Mem{Base: src}, q)
		g.VMOVUPS(value(q, g.load(Mem{Base: scale}), g.load(Mem{Base: zero})), Mem{Base: dst})
	}, stream{dst, 4}, stream{src, size}, stream{scale, 4}, stream{zero, 4})
	g.rest(n, func(k reg.Register) {
		q := g.widenMasked(src, k, size, widen)
		g.VMOVUPS(value(q, g.loadMasked(scale, k), g.loadMasked(zero, k)), k, Mem{Base: dst})
	})
	g.ret()
}

// widenMasked loads the elements of the mask and widens them to int32.
func (g *gen) widenMasked(p, k reg.Register, size int, widen func(...Op)) V {
	q, x := g.ZMM(), g.YMM()
	if size == 1 {
		g.VMOVDQU8_Z(Mem{Base: p}, k, x.AsX())
		widen(x.AsX(), q)
	} else {
		g.VMOVDQU16_Z(Mem{Base: p}, k, x)
		widen(x, q)
	}
	return q
}

// pack multiplies the odd codes so that they come to lie above the even ones,
// and adds the pairs, once for 4 bits and twice for 2.
func (g *gen) pack(base string, bits int) {
	g.fn(base, "func(dst, src *uint8, n int, offset uint8)",
		fmt.Sprintf("stores the low %d bits of src+offset side by side; n is a multiple of 64.", bits))
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	offset := g.broadcastByte("offset")
	mask, pairs, quads := g.hoist(KI(0x0f0f0f0f)), g.hoist(KI(0x10011001)), V(nil)
	if bits == 2 {
		mask, pairs, quads = g.hoist(KI(0x03030303)), g.hoist(KI(0x04010401)), g.hoist(KI(0x00100001))
	}
	words := func(i int) V {
		v := g.load(g.at(src, i))
		g.VPADDB(offset, v, v)
		v = g.and(v, mask)
		g.VPMADDUBSW(pairs, v, v)
		if bits == 2 {
			g.VPMADDWD(quads, v, v)
		}
		return v
	}
	g.each(n, 64, func() {
		a := words(0)
		switch {
		case g.z && bits == 4:
			g.VPMOVWB(a, Mem{Base: dst})
		case g.z:
			g.VPMOVDB(a, Mem{Base: dst})
		case bits == 4:
			g.VPACKUSWB(words(1), a, a)
			g.VPERMQ(U8(0xd8), a, a)
			g.VMOVDQU(a, Mem{Base: dst})
		default:
			g.VPACKSSDW(words(1), a, a)
			g.VPERMQ(U8(0xd8), a, a)
			g.VPACKUSWB(a, a, a)
			g.VPERMQ(U8(0xd8), a, a)
			g.VMOVDQU(a.AsX(), Mem{Base: dst})
		}
		g.ADDQ(U32(8*uint64(bits)), dst)
	}, stream{src, 1})
	g.ret()
}

func (g *gen) pack8() {
	g.fn("pack8", "func(dst, src *uint8, n int, offset uint8)", "stores src+offset; n is a multiple of 64.")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	offset := g.broadcastByte("offset")
	g.each(n, 64, func() {
		for i := range 16 / g.lanes() {
			v := g.load(g.at(src, i))
			g.VPADDB(offset, v, v)
			g.VMOVUPS(v, g.at(dst, i))
		}
	}, stream{dst, 1}, stream{src, 1})
	g.ret()
}

// broadcastByte loads a parameter of a byte into all bytes.
func (g *gen) broadcastByte(name string) V {
	r, x := g.reg(), g.GP32()
	g.Load(g.Param(name), x.As8())
	g.VMOVD(x, r.AsX())
	g.VPBROADCASTB(r.AsX(), r)
	return r
}
