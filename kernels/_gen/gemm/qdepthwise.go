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
// lower half of its word is one exact VPMADDWD. At AVX2 only whole vectors of
// channels are computed.
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
	if v.lanes == 8 {
		VPCMPEQD(v.regs[12], v.regs[12], v.regs[12])
		VPSRLW(Imm(8), v.regs[12], v.regs[12])
	}
	const full, tail = 4, 0
	blocks := []int{full, 1}
	if v.lanes == 16 {
		blocks = append(blocks, tail)
	}
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
			if v.lanes == 16 {
				VPXORD(flip, tmp[j], tmp[j])
			} else {
				VPXOR(flip, tmp[j], tmp[j])
			}
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
			switch {
			case isTail:
				VPMOVDB(a, reg.K1, m)
			case v.lanes == 16:
				VPMOVDB(a, m)
			default:
				VPACKSSDW(a, a, a)
				VPERMQ(Imm(0xd8), a, a)
				VPAND(v.regs[12], a, a)
				VPACKUSWB(xmm[j], xmm[j], xmm[j])
				VMOVQ(xmm[j], m)
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
