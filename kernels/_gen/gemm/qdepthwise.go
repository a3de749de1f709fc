package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Offsets in kernels.qTapTile; TestQTapTileLayout compares them.
const (
	pX        = 0
	pC        = 24
	pW        = 48
	pOff      = 72
	pInit     = 96
	pScale    = 120
	pBias     = 144
	pTaps     = 168
	pPitch    = 176
	pColumns  = 184
	pChannels = 192
	pXStep    = 200
	pCStep    = 208
	pMode     = 216
	pLo       = 224
	pHi       = 228
	pZero     = 232
	pFlip     = 236
)

// qdepthwise writes the kernel of depthwise integer convolutions. A byte of
// the input, widened to a word whose upper half is zero, times a weight in the
// lower half of its word is one exact VPMADDWD.
func qdepthwise(v isa) {
	TEXT("qdepthwise"+v.name, NOSPLIT, "func(t *byte)")
	Doc("qdepthwise" + v.name + " computes the qTapTile t.")
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	off, pitch := ptr(args, pOff), stride(args, pPitch)
	ch, left := GP64(), ptr(args, pChannels)
	XORQ(ch, ch)
	flip, zero, lo, hi := v.regs[8], v.regs[9], v.regs[10], v.regs[11]
	VPBROADCASTD(Mem{Base: args, Disp: pFlip}, flip)
	VPBROADCASTD(Mem{Base: args, Disp: pZero}, zero)
	VBROADCASTSS(Mem{Base: args, Disp: pLo}, lo)
	VBROADCASTSS(Mem{Base: args, Disp: pHi}, hi)
	const full, tail = 4, 0
	blocks := []int{full, 1, tail}
	for bi, vecs := range blocks {
		isTail := vecs == tail
		id := vecs
		l := func(s string) string { return fmt.Sprintf("%s%d", s, id) }
		next := "done"
		if bi+1 < len(blocks) {
			next = fmt.Sprintf("block%d", blocks[bi+1])
		}
		if isTail {
			vecs = 1
		}
		Label(l("block"))
		if isTail {
			TESTQ(left, left)
			JZ(LabelRef(next))
			v.setTail(left, nil)
		} else {
			CMPQ(left, Imm(uint64(vecs*v.lanes)))
			JLT(LabelRef(next))
		}
		acc, tmp := v.regs[0:4], v.regs[4:8]
		x, out := ptr(args, pX), ptr(args, pC)
		ADDQ(ch, x)
		esize := GP64()
		MOVQ(ch, esize)
		CMPQ(Mem{Base: args, Disp: pMode}, Imm(1))
		JEQ(LabelRef(l("sized")))
		SHLQ(Imm(2), esize)
		Label(l("sized"))
		ADDQ(esize, out)
		columns := ptr(args, pColumns)
		Label(l("column"))
		p := ptr(args, pInit)
		for j := range vecs {
			VMOVUPS(Mem{Base: p, Index: ch, Scale: 4, Disp: j * v.bytes()}, acc[j])
		}
		w := ptr(args, pW)
		LEAQ(Mem{Base: w, Index: ch, Scale: 4}, w)
		k, o := GP64(), GP64()
		XORQ(k, k)
		Label(l("tap"))
		MOVQ(Mem{Base: off, Index: k, Scale: 8}, o)
		for j := range vecs {
			m := Mem{Base: x, Index: o, Scale: 1, Disp: j * v.lanes}
			if isTail {
				VPMOVZXBD_Z(m, reg.K1, tmp[j])
			} else {
				VPMOVZXBD(m, tmp[j])
			}
			VPXORD(flip, tmp[j], tmp[j])
			VPMADDWD(Mem{Base: w, Disp: j * v.bytes()}, tmp[j], tmp[j])
			VPADDD(tmp[j], acc[j], acc[j])
		}
		ADDQ(pitch, w)
		INCQ(k)
		CMPQ(k, Mem{Base: args, Disp: pTaps})
		JLT(LabelRef(l("tap")))

		CMPQ(Mem{Base: args, Disp: pMode}, Imm(0))
		JEQ(LabelRef(l("words")))
		p = ptr(args, pScale)
		for j := range vecs {
			VCVTDQ2PS(acc[j], acc[j])
			VMULPS(Mem{Base: p, Index: ch, Scale: 4, Disp: j * v.bytes()}, acc[j], acc[j])
		}
		CMPQ(Mem{Base: args, Disp: pMode}, Imm(1))
		JEQ(LabelRef(l("bytes")))
		p = ptr(args, pBias)
		for j := range vecs {
			VADDPS(Mem{Base: p, Index: ch, Scale: 4, Disp: j * v.bytes()}, acc[j], acc[j])
		}
		Label(l("words"))
		for j := range vecs {
			m := Mem{Base: out, Disp: j * v.bytes()}
			if isTail {
				VMOVUPS(acc[j], reg.K1, m)
			} else {
				VMOVUPS(acc[j], m)
			}
		}
		JMP(LabelRef(l("stored")))
		Label(l("bytes"))
		for j := range vecs {
			a := acc[j]
			VMAXPS(lo, a, a) // a NaN becomes the lower bound
			VMINPS(hi, a, a)
			VCVTPS2DQ(a, a)
			VPADDD(zero, a, a)
			m := Mem{Base: out, Disp: j * v.lanes}
			if isTail {
				VPMOVDB(a, reg.K1, m)
			} else {
				VPMOVDB(a, m)
			}
		}
		Label(l("stored"))
		step := ptr(args, pXStep)
		ADDQ(step, x)
		step = ptr(args, pCStep)
		ADDQ(step, out)
		DECQ(columns)
		JNZ(LabelRef(l("column")))
		if isTail {
			continue
		}
		ADDQ(I32(int32(vecs*v.lanes)), ch)
		SUBQ(Imm(uint64(vecs*v.lanes)), left)
		JMP(LabelRef(l("block")))
	}
	Label("done")
	VZEROUPPER()
	RET()
}

// qdepthwisePairs writes the kernel of depthwise integer convolutions for words:
// VPMADDWD takes two kernel positions at once, whose words unpacking brings side
// by side. That leaves channels 0 to 3 and 8 to 11 of each 16 in one sum and the
// others in the next.
func qdepthwisePairs() {
	TEXT("qdepthwiseAVX2", NOSPLIT, "func(t *byte)")
	Doc("qdepthwiseAVX2 computes the qTapTile t, whose input is words.")
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	y := ymm
	lo, hi, zero, low := y[12], y[13], y[14], y[15]
	VBROADCASTSS(Mem{Base: args, Disp: pLo}, lo)
	VBROADCASTSS(Mem{Base: args, Disp: pHi}, hi)
	VPBROADCASTW(Mem{Base: args, Disp: pZero}, zero)
	VPCMPEQD(low, low, low)
	VPSRLW(Imm(8), low, low)
	w, left, ch := ptr(args, pW), ptr(args, pChannels), GP64()
	XORQ(ch, ch)
	pw := GP64()
	Label("block")
	x, out, columns := ptr(args, pX), ptr(args, pC), ptr(args, pColumns)
	LEAQ(Mem{Base: x, Index: ch, Scale: 2}, x)
	t := GP64()
	MOVQ(ch, t)
	CMPQ(Mem{Base: args, Disp: pMode}, Imm(1))
	JEQ(LabelRef("sized"))
	SHLQ(Imm(2), t)
	Label("sized")
	ADDQ(t, out)
	for _, pixels := range []int{2, 1} {
		l := func(s string, p int) string { return fmt.Sprintf("%s%d_%d", s, pixels, p) }
		next := "one"
		if pixels == 1 {
			next = "next"
			Label("one")
		} else {
			Label("two")
		}
		CMPQ(columns, Imm(uint64(pixels)))
		JLT(LabelRef(next))
		acc, tmp := y[0:4], y[4:10]
		for i := range 2 * pixels {
			VPXOR(acc[i], acc[i], acc[i])
		}
		xs := []reg.GPVirtual{x}
		if pixels == 2 {
			xs = append(xs, ptr(args, pXStep))
			ADDQ(x, xs[1])
		}
		off, pairs := ptr(args, pOff), ptr(args, pGroups)
		MOVQ(w, pw)
		Label(l("pair", 0))
		o0, o1 := GP64(), GP64()
		MOVQ(Mem{Base: off}, o0)
		MOVQ(Mem{Base: off, Disp: 8}, o1)
		VMOVDQU(Mem{Base: pw}, tmp[4])
		VMOVDQU(Mem{Base: pw, Disp: 32}, tmp[5])
		for p, x := range xs {
			a, b := tmp[2*p], tmp[2*p+1]
			VMOVDQU(Mem{Base: x, Index: o0, Scale: 1}, a)
			VMOVDQU(Mem{Base: x, Index: o1, Scale: 1}, b)
			c := y[10+p]
			VPUNPCKLWD(b, a, c)
			VPUNPCKHWD(b, a, a)
			VPMADDWD(tmp[4], c, c)
			VPMADDWD(tmp[5], a, a)
			VPADDD(c, acc[2*p], acc[2*p])
			VPADDD(a, acc[2*p+1], acc[2*p+1])
		}
		ADDQ(Imm(64), pw)
		ADDQ(Imm(16), off)
		DECQ(pairs)
		JNZ(LabelRef(l("pair", 0)))
		for p := range pixels {
			even, odd, first, second := acc[2*p], acc[2*p+1], tmp[0], tmp[1]
			VPERM2I128(Imm(0x20), odd, even, first)
			VPERM2I128(Imm(0x31), odd, even, second)
			vector := func(off int) [2]Mem {
				r := ptr(args, off)
				return [2]Mem{{Base: r, Index: ch, Scale: 4}, {Base: r, Index: ch, Scale: 4, Disp: 32}}
			}
			both := []reg.VecPhysical{first, second}
			m := vector(pInit)
			for i, a := range both {
				VPADDD(m[i], a, a)
			}
			CMPQ(Mem{Base: args, Disp: pMode}, Imm(0))
			JEQ(LabelRef(l("words", p)))
			m = vector(pScale)
			for i, a := range both {
				VCVTDQ2PS(a, a)
				VMULPS(m[i], a, a)
			}
			CMPQ(Mem{Base: args, Disp: pMode}, Imm(1))
			JEQ(LabelRef(l("bytes", p)))
			m = vector(pBias)
			for i, a := range both {
				VADDPS(m[i], a, a)
			}
			Label(l("words", p))
			// Whole vectors of 8, then one under a mask.
			at, n := GP64(), GP64()
			MOVQ(out, at)
			MOVQ(left, n)
			for i, a := range both {
				CMPQ(n, Imm(8))
				JLT(LabelRef(l(fmt.Sprintf("mask%d", i), p)))
				VMOVDQU(a, Mem{Base: at})
				ADDQ(Imm(32), at)
				SUBQ(Imm(8), n)
				JZ(LabelRef(l("stored", p)))
			}
			JMP(LabelRef(l("stored", p)))
			for i := range both {
				Label(l(fmt.Sprintf("mask%d", i), p))
				if i == 0 {
					VMOVDQA(first, second)
				}
			}
			avx2.setTail(n, tmp[3])
			VMASKMOVPS(second, tmp[3], Mem{Base: at})
			JMP(LabelRef(l("stored", p)))

			Label(l("bytes", p))
			for _, a := range both {
				VMAXPS(lo, a, a) // a NaN becomes the lower bound
				VMINPS(hi, a, a)
				VCVTPS2DQ(a, a)
			}
			VPACKSSDW(second, first, first)
			VPADDW(zero, first, first)
			VPERMQ(Imm(0xd8), first, first)
			VPAND(low, first, first)
			VEXTRACTI128(Imm(1), first, xmm[5])
			VPACKUSWB(xmm[5], xmm[4], xmm[4])
			CMPQ(left, Imm(16))
			JLT(LabelRef(l("some", p)))
			VMOVDQU(xmm[4], Mem{Base: out})
			JMP(LabelRef(l("stored", p)))
			Label(l("some", p))
			n = GP64()
			MOVQ(left, n)
			storeBytes(l("", p), xmm[4], out, n)
			Label(l("stored", p))
			step := ptr(args, pXStep)
			ADDQ(step, x)
			step = ptr(args, pCStep)
			ADDQ(step, out)
		}
		SUBQ(Imm(uint64(pixels)), columns)
		if pixels == 2 {
			JMP(LabelRef("two"))
		}
	}
	Label("next")
	MOVQ(pw, w)
	ADDQ(Imm(16), ch)
	SUBQ(Imm(16), left)
	JG(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// Offsets in kernels.qTapTile of what not all kernels read.
const (
	pWide   = 240
	pInit4  = 264
	pScale4 = 288
	pBlocks = 312
	pGroups = 320
	pLast   = 328
)

// qdepthwiseVNNI writes the kernel of depthwise convolutions with weights of 8
// bits and results of 8 bits for blocks of 64 channels. It interleaves
// the bytes of four kernel positions, which leaves words 4j to 4j+3 of each
// 16 channels in sum j; packing the results brings them back into order.
func qdepthwiseVNNI() {
	TEXT("qdepthwiseVNNI", NOSPLIT, "func(t *byte)")
	Doc("qdepthwiseVNNI computes the qTapTile t in blocks of 64 channels.")
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	z := zmm
	flip, zero, lo, hi, low := z[16], z[17], z[18], z[19], z[20]
	VPBROADCASTB(Mem{Base: args, Disp: pFlip}, flip)
	VPBROADCASTD(Mem{Base: args, Disp: pZero}, zero)
	VBROADCASTSS(Mem{Base: args, Disp: pLo}, lo)
	VBROADCASTSS(Mem{Base: args, Disp: pHi}, hi)
	VPTERNLOGD(Imm(0xff), low, low, low)
	VPSRLW(Imm(8), low, low)
	w, blocks, done := ptr(args, pWide), ptr(args, pBlocks), GP64()
	XORQ(done, done)
	mask := GP64()
	MOVQ(I32(-1), mask)
	KMOVQ(mask, reg.K1)
	Label("block")
	CMPQ(blocks, Imm(1))
	JNE(LabelRef("whole"))
	mask = ptr(args, pLast)
	KMOVQ(mask, reg.K1)
	Label("whole")
	x, out, columns := ptr(args, pX), ptr(args, pC), ptr(args, pColumns)
	ADDQ(done, x)
	ADDQ(done, out)
	init, scale := ptr(args, pInit4), ptr(args, pScale4)
	LEAQ(Mem{Base: init, Index: done, Scale: 4}, init)
	LEAQ(Mem{Base: scale, Index: done, Scale: 4}, scale)
	pw := GP64()
	Label("column")
	for j := range 4 {
		VMOVUPS(Mem{Base: init, Disp: 64 * j}, z[j])
	}
	off, groups := ptr(args, pOff), ptr(args, pGroups)
	MOVQ(w, pw)
	Label("group")
	for i := range 4 {
		o := GP64()
		MOVQ(Mem{Base: off, Disp: 8 * i}, o)
		VMOVDQU8_Z(Mem{Base: x, Index: o, Scale: 1}, reg.K1, z[4+i])
		VPXORD(flip, z[4+i], z[4+i])
	}
	VPUNPCKLBW(z[5], z[4], z[8])
	VPUNPCKHBW(z[5], z[4], z[9])
	VPUNPCKLBW(z[7], z[6], z[10])
	VPUNPCKHBW(z[7], z[6], z[11])
	VPUNPCKLWD(z[10], z[8], z[12])
	VPUNPCKHWD(z[10], z[8], z[13])
	VPUNPCKLWD(z[11], z[9], z[14])
	VPUNPCKHWD(z[11], z[9], z[15])
	for j := range 4 {
		VMOVUPS(Mem{Base: pw, Disp: 64 * j}, z[21+j])
		vpdpbusd(z[21+j], z[12+j], z[j])
	}
	ADDQ(I32(256), pw)
	ADDQ(Imm(32), off)
	DECQ(groups)
	JNZ(LabelRef("group"))
	for j := range 4 {
		VCVTDQ2PS(z[j], z[j])
		VMULPS(Mem{Base: scale, Disp: 64 * j}, z[j], z[j])
		VMAXPS(lo, z[j], z[j]) // a NaN becomes the lower bound
		VMINPS(hi, z[j], z[j])
		VCVTPS2DQ(z[j], z[j])
		VPADDD(zero, z[j], z[j])
	}
	VPACKSSDW(z[1], z[0], z[0])
	VPACKSSDW(z[3], z[2], z[2])
	VPANDD(low, z[0], z[0])
	VPANDD(low, z[2], z[2])
	VPACKUSWB(z[2], z[0], z[0])
	VMOVDQU8(z[0], reg.K1, Mem{Base: out})
	step := ptr(args, pXStep)
	ADDQ(step, x)
	step = ptr(args, pCStep)
	ADDQ(step, out)
	DECQ(columns)
	JNZ(LabelRef("column"))
	MOVQ(pw, w)
	ADDQ(Imm(64), done)
	DECQ(blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}
