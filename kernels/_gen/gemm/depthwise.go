package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Offsets in kernels.tapTile; TestTapTileLayout compares them.
const (
	dX       = 0
	dY       = 24
	dRes     = 48
	dW       = 72
	dOff     = 96
	dTaps    = 120
	dRows    = 128
	dColumns = 136
	dXStep   = 144
	dYStep   = 152
	dBias    = 160
	dLo      = 164
	dHi      = 168
)

// depthwise writes the kernel of single output channels: the sum over taps of
// a weight times a shifted row.
func depthwise(v isa) {
	TEXT("depthwise"+v.name, NOSPLIT, "func(t *byte)")
	Doc("depthwise" + v.name + " computes the tapTile t.")
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	x, y, res := ptr(args, dX), ptr(args, dY), ptr(args, dRes)
	w, off := ptr(args, dW), ptr(args, dOff)
	rows := ptr(args, dRows)
	col, k, o := GP64(), GP64(), GP64() // bytes done in the row, tap, its offset

	wide := []int{8, 4, 2, 1}
	acc := v.regs[:8]
	bc, lo, hi, bias, mask := v.regs[8], v.regs[9], v.regs[10], v.regs[11], v.regs[12]
	VBROADCASTSS(Mem{Base: args, Disp: dLo}, lo)
	VBROADCASTSS(Mem{Base: args, Disp: dHi}, hi)
	VBROADCASTSS(Mem{Base: args, Disp: dBias}, bias)

	Label("row")
	XORQ(col, col)
	left := ptr(args, dColumns)
	for i := 0; i <= len(wide); i++ {
		vecs, tail := 1, i == len(wide)
		if !tail {
			vecs = wide[i]
		}
		l := func(s string) string {
			if tail {
				return s + "Tail"
			}
			return fmt.Sprintf("%s%d", s, vecs)
		}
		next := "rowDone"
		if !tail && i+1 < len(wide) {
			next = fmt.Sprintf("block%d", wide[i+1])
		} else if !tail {
			next = "blockTail"
		}
		Label(l("block"))
		if tail {
			TESTQ(left, left)
			JZ(LabelRef(next))
			v.setTail(left, mask)
		} else {
			CMPQ(left, Imm(uint64(vecs*v.lanes)))
			JLT(LabelRef(next))
		}
		load := func(m Mem, dst reg.VecPhysical) {
			if tail {
				v.tailLoad(m, mask, dst)
			} else {
				VMOVUPS(m, dst)
			}
		}
		for j := range vecs {
			v.zero(acc[j])
		}
		px := GP64()
		LEAQ(Mem{Base: x, Index: col, Scale: 1}, px)
		XORQ(k, k)
		Label(l("tap"))
		MOVQ(Mem{Base: off, Index: k, Scale: 8}, o)
		VBROADCASTSS(Mem{Base: w, Index: k, Scale: 4}, bc)
		for j := range vecs {
			m := Mem{Base: px, Index: o, Scale: 4, Disp: j * v.bytes()}
			if tail {
				v.tailLoad(m, mask, acc[1])
				VFMADD231PS(acc[1], bc, acc[0])
			} else {
				VFMADD231PS(m, bc, acc[j])
			}
		}
		INCQ(k)
		CMPQ(k, Mem{Base: args, Disp: dTaps})
		JLT(LabelRef(l("tap")))
		for j := range vecs {
			VADDPS(bias, acc[j], acc[j])
		}
		TESTQ(res, res)
		JZ(LabelRef(l("clamp")))
		for j := range vecs {
			load(Mem{Base: res, Index: col, Scale: 1, Disp: j * v.bytes()}, bc)
			VADDPS(bc, acc[j], acc[j])
		}
		Label(l("clamp"))
		for j := range vecs {
			v.clamp(lo, hi, acc[j])
			m := Mem{Base: y, Index: col, Scale: 1, Disp: j * v.bytes()}
			if tail {
				v.tailStore(acc[j], mask, m)
			} else {
				VMOVUPS(acc[j], m)
			}
		}
		if tail {
			continue
		}
		ADDQ(I32(int32(vecs*v.bytes())), col)
		SUBQ(Imm(uint64(vecs*v.lanes)), left)
		JMP(LabelRef(l("block")))
	}
	Label("rowDone")
	step := stride(args, dXStep)
	ADDQ(step, x)
	step = stride(args, dYStep)
	ADDQ(step, y)
	TESTQ(res, res)
	JZ(LabelRef("noRes"))
	ADDQ(step, res)
	Label("noRes")
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// setTail makes the mask of the first n lanes, n below the lane count: K1 or
// the given register.
func (v isa) setTail(n reg.GPVirtual, mask reg.VecPhysical) {
	t := GP64()
	if v.lanes == 16 {
		MOVQ(I32(-1), t)
		BZHIQ(n, t, t)
		KMOVW(t.As32(), reg.K1)
		return
	}
	m := GP64()
	MOVQ(n, m)
	SHLQ(Imm(2), m)
	LEAQ(Mem{Symbol: Symbol{Name: "tailMask", Static: true}, Base: reg.StaticBase, Disp: 64}, t)
	SUBQ(m, t)
	VMOVDQU(Mem{Base: t}, mask)
}

func (v isa) tailLoad(src Mem, mask, dst reg.VecPhysical) {
	if v.lanes == 8 {
		VMASKMOVPS(src, mask, dst)
	} else {
		VMOVUPS_Z(src, reg.K1, dst)
	}
}

func (v isa) tailStore(src, mask reg.VecPhysical, dst Mem) {
	if v.lanes == 8 {
		VMASKMOVPS(src, mask, dst)
	} else {
		VMOVUPS(src, reg.K1, dst)
	}
}
