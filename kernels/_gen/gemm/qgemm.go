package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Offsets in kernels.qTile; TestQTileLayout compares them.
const (
	qA       = 0
	qB       = 24
	qC       = 48
	qInit    = 72
	qRowSum  = 96
	qZb      = 120
	qScale   = 144
	qBias    = 168
	qLda     = 192
	qLdc     = 200
	qRows    = 208
	qColumns = 216
	qPer     = 224
	qMode    = 232
	qLo      = 240
	qHi      = 244
	qZero    = 248
	qFlip    = 256
	qWork    = 272 // as words: A, C, row sums and rows left
	qBuf     = 304
	qRuns    = 320
	qCount   = 344
)

var xmm = []reg.VecPhysical{
	reg.X0, reg.X1, reg.X2, reg.X3, reg.X4, reg.X5, reg.X6, reg.X7,
	reg.X8, reg.X9, reg.X10, reg.X11, reg.X12, reg.X13, reg.X14, reg.X15,
}

var ymmHigh = []reg.VecPhysical{reg.Y26, reg.Y27, reg.Y28, reg.Y29, reg.Y30, reg.Y31}

// vpdpbusd adds to each word of dst four products of a byte of a, unsigned,
// and one of b, signed. The generator's own table lacks it.
func vpdpbusd(b, a, dst reg.VecPhysical) {
	Instruction(&ir.Instruction{
		Opcode:   "VPDPBUSD",
		Operands: []Op{b, a, dst},
		Inputs:   []Op{b, a, dst},
		Outputs:  []Op{dst},
	})
}

// wordOnes is the table of 16-bit ones.
var wordOnes = Mem{Symbol: Symbol{Name: "wordOnes", Static: true}, Base: reg.StaticBase}

// How a kernel of qgemmRows multiplies.
const (
	qPairs      = iota // units of two factors, 16 bits wide in B, or, at AVX2, in A
	qQuads             // units of four bytes, by VNNI
	qSaturating        // units of four bytes, pairs of which are added in 16 bits
)

// qgemmAhead is how far ahead, in bytes, of what it reads of B the AVX2 kernel
// asks for memory: panels of deep products do not stay in the first cache.
const qgemmAhead = 1024

// qgemmRows writes the kernel that multiplies rows of bytes by one panel of
// packed bytes and applies the epilogue.
func qgemmRows(v isa, how int) {
	name := v.name
	unit := 4 // in bytes of A
	switch how {
	case qPairs:
		if v.lanes == 16 {
			unit = 2
		}
	case qQuads:
		name = "VNNI"
	case qSaturating:
		name = "Saturating" + name
	}
	unitB := 2 * v.bytes()                  // bytes of a unit of the panel
	signed := how == qPairs && v.lanes == 8 // B is bytes, of which the kernel makes words
	if signed {
		unitB /= 2
	}
	TEXT("qgemmRows"+name, NOSPLIT, "func(t *byte)")
	Doc(fmt.Sprintf("qgemmRows%s computes the qTile t of at most %d columns.", name, 2*v.lanes))
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	lda := ptr(args, qLda)
	for i, off := range []int{qA, qC, qRowSum, qRows} {
		MOVQ(ptr(args, off), Mem{Base: args, Disp: qWork + 8*i})
	}
	const wA, wC, wRowSum, wM = qWork, qWork + 8, qWork + 16, qWork + 24
	mask := GP64()
	n := ptr(args, qColumns)
	if v.lanes == 16 {
		ones := GP64()
		MOVQ(I32(-1), ones)
		BZHIQ(n, ones, ones)
		KMOVW(ones.As32(), reg.K1)
		SHRQ(Imm(16), ones)
		KMOVW(ones.As32(), reg.K2)
		VPBROADCASTD(Mem{Base: args, Disp: qFlip}, reg.Z31)
		if how == qSaturating {
			VPBROADCASTD(wordOnes, reg.Z30)
		}
	} else {
		LEAQ(Mem{Symbol: Symbol{Name: "tailMask", Static: true}, Base: reg.StaticBase, Disp: 64}, mask)
		SHLQ(Imm(2), n)
		SUBQ(n, mask)
	}
	add := func(m Op, x reg.VecPhysical) { VPADDD(m, x, x) }

	rowsLoop(v, args, wM, qPer)

	for mr := 1; mr <= v.rows; mr++ {
		l := func(s string) string { return fmt.Sprintf("%s%d", s, mr) }
		acc := func(i, j int) reg.VecPhysical { return v.regs[2*i+j] }
		each := func(f func(i, j int)) {
			for i := range mr {
				f(i, 0)
				f(i, 1)
			}
		}
		b0, b1 := v.regs[2*v.rows], v.regs[2*v.rows+1]
		spare := v.regs[2*v.rows+2:]

		Label(l("tile"))
		each(func(i, j int) { v.zero(acc(i, j)) })
		kb, run, runs := ptr(args, qB), ptr(args, qRuns), ptr(args, qCount)
		Label(l("run"))
		off, k := GP64(), GP64()
		MOVQ(Mem{Base: run}, off)
		MOVQ(Mem{Base: run, Disp: 8}, k)
		ADDQ(Imm(16), run)
		ptrs := []reg.GPVirtual{ptr(args, wA)}
		ADDQ(off, ptrs[0])
		for i := 3; i < mr; i += 3 {
			p := GP64()
			LEAQ(Mem{Base: ptrs[len(ptrs)-1], Index: lda, Scale: 2}, p)
			ADDQ(lda, p)
			ptrs = append(ptrs, p)
		}

		step := func(u int, flips bool) {
			at := Mem{Base: kb, Disp: u * unitB}
			for _, b := range []reg.VecPhysical{b0, b1} {
				if signed {
					VPMOVSXBW(at, b)
				} else {
					VMOVUPS(at, b)
				}
				at.Disp += unitB / 2
			}
			if v.lanes == 8 {
				PREFETCHT0(Mem{Base: kb, Disp: u*unitB + qgemmAhead})
			}
			for i := range mr {
				a := rowAddr(ptrs, lda, i, unit*u)
				switch {
				case how == qSaturating:
					ones, s, t := Op(wordOnes), spare[0], []reg.VecPhysical{spare[1], spare[1]}
					if v.lanes == 16 {
						ones, s, t = reg.Z30, spare[i%2], []reg.VecPhysical{spare[2], spare[3]}
					}
					VPBROADCASTD(a, s)
					for j, b := range []reg.VecPhysical{b0, b1} {
						VPMADDUBSW(b, s, t[j])
						VPMADDWD(ones, t[j], t[j])
						VPADDD(t[j], acc(i, j), acc(i, j))
					}
				case how == qQuads:
					s := spare[i%5]
					if flips {
						VPXORD_BCST(a, reg.Z31, s)
					} else {
						VPBROADCASTD(a, s)
					}
					vpdpbusd(b0, s, acc(i, 0))
					vpdpbusd(b1, s, acc(i, 1))
				case v.lanes == 16:
					s, h, t0, t1 := spare[i%2], ymmHigh[i%2], spare[2+i%2], spare[4]
					VPBROADCASTW(a, h)
					VPXORD(reg.Y31, h, h)
					VPMOVZXBW(h, s)
					VPMADDWD(b0, s, t0)
					VPMADDWD(b1, s, t1)
					VPADDD(t0, acc(i, 0), acc(i, 0))
					VPADDD(t1, acc(i, 1), acc(i, 1))
				default:
					VPBROADCASTD(a, spare[0])
					VPMADDWD(b0, spare[0], spare[1])
					VPMADDWD(b1, spare[0], spare[0])
					VPADDD(spare[1], acc(i, 0), acc(i, 0))
					VPADDD(spare[0], acc(i, 1), acc(i, 1))
				}
			}
		}
		SUBQ(Imm(4), k)
		JLT(LabelRef(l("rest")))
		four := func(name string, flips bool) {
			Label(l(name))
			for u := range 4 {
				step(u, flips)
			}
			ADDQ(I32(int32(4*unitB)), kb)
			for _, p := range ptrs {
				ADDQ(Imm(uint64(4*unit)), p)
			}
			SUBQ(Imm(4), k)
			JGE(LabelRef(l(name)))
		}
		if how == qQuads {
			// An exclusive or takes a port that a multiplication could have.
			CMPL(Mem{Base: args, Disp: qFlip}, Imm(0))
			JNE(LabelRef(l("four")))
			four("plain", false)
			JMP(LabelRef(l("rest")))
		}
		four("four", true)
		Label(l("rest"))
		ADDQ(Imm(4), k)
		JZ(LabelRef(l("ran")))
		Label(l("one"))
		step(0, true)
		ADDQ(Imm(uint64(unitB)), kb)
		for _, p := range ptrs {
			ADDQ(Imm(uint64(unit)), p)
		}
		DECQ(k)
		JNZ(LabelRef(l("one")))
		Label(l("ran"))
		DECQ(runs)
		JNZ(LabelRef(l("run")))

		p := ptr(args, qInit)
		VMOVUPS(Mem{Base: p}, b0)
		VMOVUPS(Mem{Base: p, Disp: v.bytes()}, b1)
		each(func(i, j int) { add([]reg.VecPhysical{b0, b1}[j], acc(i, j)) })
		sums := ptr(args, wRowSum)
		TESTQ(sums, sums)
		JZ(LabelRef(l("summed")))
		p = ptr(args, qZb)
		VMOVUPS(Mem{Base: p}, b0)
		VMOVUPS(Mem{Base: p, Disp: v.bytes()}, b1)
		for i := range mr {
			VPBROADCASTD(Mem{Base: sums, Disp: 4 * i}, spare[0])
			for j, b := range []reg.VecPhysical{b0, b1} {
				VPMULLD(b, spare[0], spare[1])
				VPSUBD(spare[1], acc(i, j), acc(i, j))
			}
		}
		Label(l("summed"))
		out, ldc := ptr(args, wC), ptr(args, qLdc)
		nextRow := func(i int) {
			if i < mr-1 {
				ADDQ(ldc, out)
			}
		}
		CMPQ(Mem{Base: args, Disp: qMode}, Imm(0))
		JEQ(LabelRef(l("words")))
		p = ptr(args, qScale)
		VMOVUPS(Mem{Base: p}, b0)
		VMOVUPS(Mem{Base: p, Disp: v.bytes()}, b1)
		each(func(i, j int) {
			VCVTDQ2PS(acc(i, j), acc(i, j))
			VMULPS([]reg.VecPhysical{b0, b1}[j], acc(i, j), acc(i, j))
		})
		CMPQ(Mem{Base: args, Disp: qMode}, Imm(1))
		JEQ(LabelRef(l("bytes")))
		p = ptr(args, qBias)
		VMOVUPS(Mem{Base: p}, b0)
		VMOVUPS(Mem{Base: p, Disp: v.bytes()}, b1)
		each(func(i, j int) { VADDPS([]reg.VecPhysical{b0, b1}[j], acc(i, j), acc(i, j)) })

		Label(l("words"))
		if v.lanes == 8 {
			// A masked store is slow on some CPUs even where the mask is full.
			CMPQ(Mem{Base: args, Disp: qColumns}, Imm(16))
			JNE(LabelRef(l("masked")))
			for i := range mr {
				VMOVUPS(acc(i, 0), Mem{Base: out})
				VMOVUPS(acc(i, 1), Mem{Base: out, Disp: v.bytes()})
				nextRow(i)
			}
			JMP(LabelRef(l("stored")))
			Label(l("masked"))
		}
		loadMasks(v, mask, b0, b1)
		for i := range mr {
			v.maskStore(acc(i, 0), 0, b0, Mem{Base: out})
			v.maskStore(acc(i, 1), 1, b1, Mem{Base: out, Disp: v.bytes()})
			nextRow(i)
		}
		JMP(LabelRef(l("stored")))

		Label(l("bytes"))
		VBROADCASTSS(Mem{Base: args, Disp: qLo}, b0)
		VBROADCASTSS(Mem{Base: args, Disp: qHi}, b1)
		VPBROADCASTD(Mem{Base: args, Disp: qZero}, spare[0])
		each(func(i, j int) {
			x := acc(i, j)
			VMAXPS(b0, x, x) // a NaN becomes the lower bound
			VMINPS(b1, x, x)
			VCVTPS2DQ(x, x)
			VPADDD(spare[0], x, x)
		})
		if v.lanes == 16 {
			for i := range mr {
				VPMOVDB(acc(i, 0), reg.K1, Mem{Base: out})
				VPMOVDB(acc(i, 1), reg.K2, Mem{Base: out, Disp: 16})
				nextRow(i)
			}
		} else {
			VPCMPEQD(spare[1], spare[1], spare[1])
			VPSRLW(Imm(8), spare[1], spare[1])
			for i := range mr {
				x := acc(i, 0)
				VPACKSSDW(acc(i, 1), x, x)
				VPERMQ(Imm(0xd8), x, x)
				VPAND(spare[1], x, x)
				VEXTRACTI128(Imm(1), x, xmm[12])
				VPACKUSWB(xmm[12], xmm[2*i], xmm[2*i])
			}
			CMPQ(Mem{Base: args, Disp: qColumns}, Imm(16))
			JEQ(LabelRef(l("full")))
			for i := range mr {
				storeBytes(fmt.Sprintf("%d_%d", mr, i), xmm[2*i], out, ptr(args, qColumns))
				nextRow(i)
			}
			JMP(LabelRef(l("stored")))
			Label(l("full"))
			for i := range mr {
				VMOVDQU(xmm[2*i], Mem{Base: out})
				nextRow(i)
			}
		}
		Label(l("stored"))
		ADDQ(ldc, out)
		MOVQ(out, Mem{Base: args, Disp: wC})
		a := ptr(args, wA)
		for range mr / 2 {
			LEAQ(Mem{Base: a, Index: lda, Scale: 2}, a)
		}
		if mr%2 == 1 {
			ADDQ(lda, a)
		}
		MOVQ(a, Mem{Base: args, Disp: wA})
		sums = ptr(args, wRowSum)
		TESTQ(sums, sums)
		JZ(LabelRef(l("next")))
		ADDQ(Imm(uint64(4*mr)), Mem{Base: args, Disp: wRowSum})
		Label(l("next"))
		SUBQ(Imm(uint64(mr)), Mem{Base: args, Disp: wM})
		JMP(LabelRef("rows"))
	}
	Label("done")
	VZEROUPPER()
	RET()
}

// storeBytes writes the first n bytes of x, n below 16, to out. It changes x and
// n; id makes its labels unique.
func storeBytes(id string, x reg.VecPhysical, out, n reg.GPVirtual) {
	to := GP64()
	MOVQ(out, to)
	for size := 8; size >= 1; size /= 2 {
		next := fmt.Sprintf("below%d_%s", size, id)
		TESTQ(U32(uint32(size)), n)
		JZ(LabelRef(next))
		switch m := (Mem{Base: to}); size {
		case 8:
			VMOVQ(x, m)
		case 4:
			VMOVD(x, m)
		case 2:
			VPEXTRW(Imm(0), x, m)
		case 1:
			VPEXTRB(Imm(0), x, m)
		}
		if size > 1 {
			ADDQ(Imm(uint64(size)), to)
			VPSRLDQ(Imm(uint64(size)), x, x)
		}
		Label(next)
	}
}

// widen writes the kernel that makes words of bytes.
func widen() {
	TEXT("widenAVX2", NOSPLIT, "func(dst *byte, src *byte, n int, flip byte)")
	Doc("widenAVX2 writes src[i], i below n, as 16 bits each, exclusive-ored with flip.")
	Pragma("noescape")
	dst := Load(Param("dst"), GP64()).(reg.GPVirtual)
	src := Load(Param("src"), GP64()).(reg.GPVirtual)
	n := Load(Param("n"), GP64()).(reg.GPVirtual)
	flip, b := GP32(), GP32()
	Load(Param("flip"), flip.As8())
	MOVBLZX(flip.As8(), flip)
	VMOVD(flip, reg.X3)
	VPBROADCASTW(reg.X3, reg.Y3)
	for _, vecs := range []int{4, 1} {
		l, end := fmt.Sprintf("loop%d", vecs), fmt.Sprintf("end%d", vecs)
		SUBQ(I32(int32(16*vecs)), n)
		JLT(LabelRef(end))
		Label(l)
		for i := range vecs {
			y := ymm[4+i]
			VPMOVZXBW(Mem{Base: src, Disp: 16 * i}, y)
			VPXOR(reg.Y3, y, y)
			VMOVDQU(y, Mem{Base: dst, Disp: 32 * i})
		}
		ADDQ(I32(int32(16*vecs)), src)
		ADDQ(I32(int32(32*vecs)), dst)
		SUBQ(I32(int32(16*vecs)), n)
		JGE(LabelRef(l))
		Label(end)
		ADDQ(I32(int32(16*vecs)), n)
	}
	TESTQ(n, n)
	JZ(LabelRef("done"))
	Label("one")
	MOVBLZX(Mem{Base: src}, b)
	XORL(flip, b)
	MOVW(b.As16(), Mem{Base: dst})
	INCQ(src)
	ADDQ(Imm(2), dst)
	DECQ(n)
	JNZ(LabelRef("one"))
	Label("done")
	VZEROUPPER()
	RET()
}

// byteSum writes the sum of bytes after an exclusive or with a mask.
func byteSum() {
	TEXT("byteSumAVX2", NOSPLIT, "func(p *byte, n int, flip byte) int64")
	Doc("byteSumAVX2 returns the sum of p[i]^flip over n bytes.")
	Pragma("noescape")
	p := Load(Param("p"), GP64()).(reg.GPVirtual)
	n := Load(Param("n"), GP64()).(reg.GPVirtual)
	flip := GP32()
	Load(Param("flip"), flip.As8())
	MOVBLZX(flip.As8(), flip)
	VMOVD(flip, reg.X3)
	VPBROADCASTB(reg.X3, reg.Y3)
	VPXOR(reg.Y0, reg.Y0, reg.Y0)
	VPXOR(reg.Y1, reg.Y1, reg.Y1)
	Label("loop")
	SUBQ(Imm(32), n)
	JLT(LabelRef("rest"))
	VPXOR(Mem{Base: p}, reg.Y3, reg.Y2)
	VPSADBW(reg.Y1, reg.Y2, reg.Y2)
	VPADDQ(reg.Y2, reg.Y0, reg.Y0)
	ADDQ(Imm(32), p)
	JMP(LabelRef("loop"))
	Label("rest")
	VEXTRACTI128(Imm(1), reg.Y0, reg.X2)
	VPADDQ(reg.X2, reg.X0, reg.X0)
	VPSRLDQ(Imm(8), reg.X0, reg.X2)
	VPADDQ(reg.X2, reg.X0, reg.X0)
	sum, b := GP64(), GP32()
	VMOVQ(reg.X0, sum)
	ADDQ(Imm(32), n)
	JZ(LabelRef("end"))
	Label("one")
	MOVBLZX(Mem{Base: p}, b)
	XORL(flip, b)
	ADDQ(b.As64(), sum)
	INCQ(p)
	DECQ(n)
	JNZ(LabelRef("one"))
	Label("end")
	VZEROUPPER()
	Store(sum, ReturnIndex(0))
	RET()
}
