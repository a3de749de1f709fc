package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Offsets in kernels.winogradTile; TestBlockTileLayout compares them.
const (
	oSrc  = 0
	oDst  = 24
	oR    = 48
	oBias = 72
	oRow  = 96
	oRRow = 104
	oStep = 112
	oN    = 120
	oLo   = 128
	oHi   = 132
)

// sum does dst = a + b or a - b of a vector at a and one at b.
func sum(a, b Mem, minus bool, dst reg.VecPhysical) {
	VMOVUPS(a, dst)
	if minus {
		VSUBPS(b, dst, dst)
	} else {
		VADDPS(b, dst, dst)
	}
}

// times3 returns a register with three times s.
func times3(s reg.GPVirtual) reg.GPVirtual {
	t := GP64()
	LEAQ(Mem{Base: s, Index: s, Scale: 2}, t)
	return t
}

// line returns the address i strides from p on, i below 4.
func line(p, s, s3 reg.GPVirtual, i, disp int) Mem {
	m := Mem{Base: p, Disp: disp}
	switch i {
	case 1, 2:
		m.Index, m.Scale = s, uint8(i)
	case 3:
		m.Index, m.Scale = s3, 1
	}
	return m
}

// winogradIn writes the transform of tiles of 4×4 pixels.
func winogradIn(v isa) {
	TEXT("winogradIn"+v.name, NOSPLIT, "func(t *byte)")
	Doc("winogradIn" + v.name + " transforms the input tiles of the winogradTile t.")
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	src, dst, n := ptr(args, oSrc), ptr(args, oDst), ptr(args, oN)
	row, step := stride(args, oRow), stride(args, oStep)
	row3, step3 := times3(row), times3(step)
	Label("tile")
	for part := range 16 / v.lanes {
		to := GP64()
		LEAQ(Mem{Base: dst, Disp: part * v.bytes()}, to)
		for y, r := range []struct {
			a, b  int
			minus bool
		}{{0, 2, true}, {1, 2, false}, {2, 1, true}, {1, 3, true}} {
			s := v.regs[8*(y%2)%len(v.regs):]
			for x := range 4 {
				disp := x*pixelBytes + part*v.bytes()
				sum(line(src, row, row3, r.a, disp), line(src, row, row3, r.b, disp), r.minus, s[x])
			}
			VSUBPS(s[2], s[0], s[0])
			VADDPS(s[1], s[2], s[4])
			VSUBPS(s[1], s[2], s[5])
			VSUBPS(s[3], s[1], s[3])
			for x, k := range []int{0, 4, 5, 3} {
				VMOVUPS(s[k], line(to, step, step3, x, 0))
			}
			if y < 3 {
				LEAQ(Mem{Base: to, Index: step, Scale: 4}, to)
			}
		}
	}
	ADDQ(Imm(2*pixelBytes), src)
	ADDQ(Imm(pixelBytes), dst)
	DECQ(n)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
}

// winogradOut writes the transform of products to tiles of 2×2 pixels.
func winogradOut(v isa) {
	TEXT("winogradOut"+v.name, NOSPLIT, "func(t *byte)")
	Doc("winogradOut" + v.name + " transforms the products of the winogradTile t to pixels.")
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	src, dst, r, n := ptr(args, oSrc), ptr(args, oDst), ptr(args, oR), ptr(args, oN)
	bias := ptr(args, oBias)
	row, rRow, step := stride(args, oRow), stride(args, oRRow), stride(args, oStep)
	step3 := times3(step)
	lo, hi := v.regs[14], v.regs[15]
	VBROADCASTSS(Mem{Base: args, Disp: oLo}, lo)
	VBROADCASTSS(Mem{Base: args, Disp: oHi}, hi)
	Label("tile")
	for part := range 16 / v.lanes {
		label := func(s string) string { return s + string(rune('0'+part)) }
		disp := part * v.bytes()
		m := []reg.GPVirtual{src, GP64(), GP64(), GP64()}
		for y := 1; y < 4; y++ {
			LEAQ(Mem{Base: m[y-1], Index: step, Scale: 4}, m[y])
		}
		// Sums of the rows for each column, and differences.
		s, d := v.regs[0:4], v.regs[4:8]
		for x := range 4 {
			at := func(y int) Mem { return line(m[y], step, step3, x, disp) }
			one, two := v.regs[8], v.regs[9]
			VMOVUPS(at(1), one)
			VMOVUPS(at(2), two)
			VADDPS(at(0), one, s[x])
			VADDPS(two, s[x], s[x])
			VSUBPS(two, one, d[x])
			VSUBPS(at(3), d[x], d[x])
		}
		b := v.regs[10]
		VMOVUPS(Mem{Base: bias, Disp: disp}, b)
		for _, s := range [][]reg.VecPhysical{s, d} {
			VADDPS(s[1], s[0], s[0])
			VADDPS(s[2], s[0], s[0])
			VSUBPS(s[2], s[1], s[1])
			VSUBPS(s[3], s[1], s[1])
			VADDPS(b, s[0], s[0])
			VADDPS(b, s[1], s[1])
		}
		TESTQ(r, r)
		JZ(LabelRef(label("clamp")))
		for y, s := range [][]reg.VecPhysical{s, d} {
			for x := range 2 {
				VADDPS(line(r, rRow, rRow, y, x*pixelBytes+disp), s[x], s[x])
			}
		}
		Label(label("clamp"))
		for y, s := range [][]reg.VecPhysical{s, d} {
			for x := range 2 {
				v.clamp(lo, hi, s[x])
				VMOVUPS(s[x], line(dst, row, row, y, x*pixelBytes+disp))
			}
		}
	}
	ADDQ(Imm(pixelBytes), src)
	ADDQ(Imm(2*pixelBytes), dst)
	TESTQ(r, r)
	JZ(LabelRef("next"))
	ADDQ(Imm(2*pixelBytes), r)
	Label("next")
	DECQ(n)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
}
