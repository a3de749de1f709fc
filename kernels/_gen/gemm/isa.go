package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// isa describes one width of vector registers.
type isa struct {
	name  string
	lanes int
	regs  []reg.VecPhysical
	rows  int // rows of the widest micro-kernel
}

var (
	ymm = []reg.VecPhysical{
		reg.Y0, reg.Y1, reg.Y2, reg.Y3, reg.Y4, reg.Y5, reg.Y6, reg.Y7,
		reg.Y8, reg.Y9, reg.Y10, reg.Y11, reg.Y12, reg.Y13, reg.Y14, reg.Y15,
	}
	zmm = []reg.VecPhysical{
		reg.Z0, reg.Z1, reg.Z2, reg.Z3, reg.Z4, reg.Z5, reg.Z6, reg.Z7,
		reg.Z8, reg.Z9, reg.Z10, reg.Z11, reg.Z12, reg.Z13, reg.Z14, reg.Z15,
		reg.Z16, reg.Z17, reg.Z18, reg.Z19, reg.Z20, reg.Z21, reg.Z22, reg.Z23,
		reg.Z24, reg.Z25, reg.Z26, reg.Z27, reg.Z28, reg.Z29, reg.Z30, reg.Z31,
	}
	avx2 = isa{name: "AVX2", lanes: 8, regs: ymm, rows: 6}
	// One vector of columns leaves registers for more rows.
	avx2Narrow = isa{name: "AVX2", lanes: 8, regs: ymm, rows: 12}
	avx512     = isa{name: "AVX512", lanes: 16, regs: zmm, rows: 12}
)

func (v isa) bytes() int { return v.lanes * 4 }

// zero clears a register.
func (v isa) zero(r reg.VecPhysical) {
	if v.lanes == 16 {
		VPXORD(r, r, r)
	} else {
		VPXOR(r, r, r)
	}
}

// masks writes the table whose 16 words from word 16-n on are n words of all
// ones and then zeros, for VMASKMOVPS, and a vector of 16-bit ones.
func masks() {
	GLOBL("wordOnes", RODATA|NOPTR)
	for i := range 8 {
		DATA(4*i, U32(0x00010001))
	}
	GLOBL("tailMask", RODATA|NOPTR)
	for i := range 32 {
		w := U32(0)
		if i < 16 {
			w = 0xffffffff
		}
		DATA(4*i, w)
	}
}

// ptr reads a word of the argument structure into a fresh register.
func ptr(args reg.Register, off int) reg.GPVirtual {
	r := GP64()
	MOVQ(Mem{Base: args, Disp: off}, r)
	return r
}

// stride reads a number of float32 and turns it into bytes.
func stride(args reg.Register, off int) reg.GPVirtual {
	r := ptr(args, off)
	SHLQ(Imm(2), r)
	return r
}
