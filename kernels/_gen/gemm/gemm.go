package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Offsets in kernels.gemmTile; TestGemmTileLayout compares them.
const (
	tA       = 0
	tB       = 24
	tC       = 48
	tRes     = 72
	tRowBias = 96
	tColBias = 120
	tLda     = 144
	tBStep   = 152
	tPStep   = 160
	tLdc     = 168
	tLdr     = 176
	tM       = 184
	tN       = 192
	tK       = 200
	tLo      = 208
	tHi      = 212
	tAcc     = 216
	tWork    = 224 // as words: A, C, residual, row bias and M of the rows left
	wA       = tWork
	wC       = tWork + 8
	wRes     = tWork + 16
	wRowBias = tWork + 24
	wM       = tWork + 32
)

// rowAddr gives the address of row i of a block whose every third row has a
// pointer.
func rowAddr(ptrs []reg.GPVirtual, ld reg.GPVirtual, i, disp int) Mem {
	m := Mem{Base: ptrs[i/3], Disp: disp}
	if s := i % 3; s > 0 {
		m.Index, m.Scale = ld, uint8(s)
	}
	return m
}

// gemmAhead is how far ahead, in bytes, of what it reads of B gemmRows asks for
// memory: packed weights come from far away where A has few rows.
const gemmAhead = 4096

// gemmRows writes the kernel that multiplies any number of rows of A by one
// panel of B, and applies the epilogue. A panel is two vectors of columns; that
// of gemmHalf is one, of which it reads no more than there are columns.
func gemmRows(v isa, vecs int) {
	name := map[int]string{1: "gemmHalf", 2: "gemmRows"}[vecs] + v.name
	TEXT(name, NOSPLIT, "func(t *byte)")
	Doc(name + " computes t, which has at most " + fmt.Sprint(vecs*v.lanes) + " columns.")
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	lda, bstep := stride(args, tLda), stride(args, tBStep)

	for _, w := range [][2]int{{tA, wA}, {tC, wC}, {tRes, wRes}, {tRowBias, wRowBias}, {tM, wM}} {
		MOVQ(ptr(args, w[0]), Mem{Base: args, Disp: w[1]})
	}
	mask := GP64()
	n := ptr(args, tN)
	if v.lanes == 16 {
		ones := GP64()
		MOVQ(I32(-1), ones)
		BZHIQ(n, ones, ones)
		KMOVW(ones.As32(), reg.K1)
		SHRQ(Imm(16), ones)
		KMOVW(ones.As32(), reg.K2)
	} else {
		LEAQ(Mem{Symbol: Symbol{Name: "tailMask", Static: true}, Base: reg.StaticBase, Disp: 64}, mask)
		SHLQ(Imm(2), n)
		SUBQ(n, mask)
	}

	Label("rows")
	m := ptr(args, wM)
	CMPQ(m, Imm(uint64(v.rows)))
	JGE(LabelRef(fmt.Sprintf("tile%d", v.rows)))
	for i := v.rows - 1; i >= 1; i-- {
		CMPQ(m, Imm(uint64(i)))
		JEQ(LabelRef(fmt.Sprintf("tile%d", i)))
	}
	JMP(LabelRef("done"))

	for mr := v.rows; mr >= 1; mr-- {
		l := func(s string) string { return fmt.Sprintf("%s%d", s, mr) }
		acc := func(i, j int) reg.VecPhysical { return v.regs[vecs*i+j] }
		bs := v.regs[vecs*v.rows:][:2]
		spare := v.regs[vecs*v.rows+2:]

		Label(l("tile"))
		ptrs := []reg.GPVirtual{ptr(args, wA)}
		for i := 3; i < mr; i += 3 {
			p := GP64()
			LEAQ(Mem{Base: ptrs[len(ptrs)-1], Index: lda, Scale: 2}, p)
			ADDQ(lda, p)
			ptrs = append(ptrs, p)
		}
		kb, k := ptr(args, tB), ptr(args, tK)
		if mr == v.rows && vecs == 2 {
			// What the next tile starts from comes while this one is computed.
			next, ldc := ptr(args, wC), stride(args, tLdc)
			for range mr / 4 {
				LEAQ(Mem{Base: next, Index: ldc, Scale: 4}, next)
			}
			for range mr % 4 {
				ADDQ(ldc, next)
			}
			for range mr {
				for d := 0; d < 2*v.bytes(); d += 64 {
					PREFETCHT0(Mem{Base: next, Disp: d})
				}
				ADDQ(ldc, next)
			}
		}

		for i := range mr {
			for j := range vecs {
				v.zero(acc(i, j))
			}
		}

		step := func(u int) {
			if vecs == 1 {
				v.maskLoad(Mem{Base: kb}, 0, nil, bs[0])
			} else {
				VMOVUPS(Mem{Base: kb}, bs[0])
				VMOVUPS(Mem{Base: kb, Disp: v.bytes()}, bs[1])
				for d := 0; d < 2*v.bytes(); d += 64 {
					PREFETCHT0(Mem{Base: kb, Disp: gemmAhead + d})
				}
			}
			ADDQ(bstep, kb)
			for i := range mr {
				s := spare[i%len(spare)]
				VBROADCASTSS(rowAddr(ptrs, lda, i, 4*u), s)
				for j := range vecs {
					VFMADD231PS(bs[j], s, acc(i, j))
				}
			}
		}
		Label(l("loop"))
		SUBQ(Imm(4), k)
		JLT(LabelRef(l("rest")))
		Label(l("four"))
		for u := range 4 {
			step(u)
		}
		for _, p := range ptrs {
			ADDQ(Imm(16), p)
		}
		SUBQ(Imm(4), k)
		JGE(LabelRef(l("four")))
		Label(l("rest"))
		ADDQ(Imm(4), k)
		JZ(LabelRef(l("end")))
		Label(l("one"))
		step(0)
		for _, p := range ptrs {
			ADDQ(Imm(4), p)
		}
		DECQ(k)
		JNZ(LabelRef(l("one")))

		Label(l("end"))
		// Three registers are free for the epilogue at the least: b0, b1 and
		// spare[0]; AVX2 has one more.
		loadMasks(v, mask, bs[0], bs[1])
		ldc := stride(args, tLdc)
		CMPQ(Mem{Base: args, Disp: tAcc}, Imm(0))
		JEQ(LabelRef(l("summed")))
		earlier := ptr(args, wC)
		for i := range mr {
			for j := range vecs {
				v.maskLoad(Mem{Base: earlier, Disp: j * v.bytes()}, j, bs[j], spare[j])
				VADDPS(spare[j], acc(i, j), acc(i, j))
			}
			if i < mr-1 {
				ADDQ(ldc, earlier)
			}
		}
		Label(l("summed"))
		cb := ptr(args, tColBias)
		TESTQ(cb, cb)
		JZ(LabelRef(l("residual")))
		for j := range vecs {
			v.maskLoad(Mem{Base: cb, Disp: j * v.bytes()}, j, bs[j], spare[j])
		}
		for i := range mr {
			for j := range vecs {
				VADDPS(spare[j], acc(i, j), acc(i, j))
			}
		}
		Label(l("residual"))
		r := ptr(args, wRes)
		TESTQ(r, r)
		JZ(LabelRef(l("rowbias")))
		ldr := stride(args, tLdr)
		for i := range mr {
			for j := range vecs {
				v.maskLoad(Mem{Base: r, Disp: j * v.bytes()}, j, bs[j], spare[j])
				VADDPS(spare[j], acc(i, j), acc(i, j))
			}
			if i < mr-1 {
				ADDQ(ldr, r)
			}
		}
		Label(l("rowbias"))
		addRowBias(ptr(args, wRowBias), l("clamp"), mr, vecs, spare[0], acc)
		Label(l("clamp"))
		VBROADCASTSS(Mem{Base: args, Disp: tLo}, spare[0])
		VBROADCASTSS(Mem{Base: args, Disp: tHi}, spare[1])
		out := ptr(args, wC)
		ldc = stride(args, tLdc)
		for i := range mr {
			for j := range vecs {
				v.clamp(spare[0], spare[1], acc(i, j))
			}
		}
		if v.lanes == 8 {
			// A masked store is slow on some CPUs even where the mask is full.
			CMPQ(Mem{Base: args, Disp: tN}, Imm(uint64(2*v.lanes)))
			JEQ(LabelRef(l("full")))
		}
		for i := range mr {
			for j := range vecs {
				v.maskStore(acc(i, j), j, bs[j], Mem{Base: out, Disp: j * v.bytes()})
			}
			if i < mr-1 {
				ADDQ(ldc, out)
			}
		}
		if v.lanes == 8 {
			JMP(LabelRef(l("stored")))
			Label(l("full"))
			for i := range mr {
				VMOVUPS(acc(i, 0), Mem{Base: out})
				VMOVUPS(acc(i, 1), Mem{Base: out, Disp: v.bytes()})
				if i < mr-1 {
					ADDQ(ldc, out)
				}
			}
			Label(l("stored"))
		}
		if mr < v.rows {
			JMP(LabelRef("done"))
			continue
		}
		ADDQ(ldc, out)
		MOVQ(out, Mem{Base: args, Disp: wC})
		a := ptr(args, wA)
		for range mr / 2 {
			LEAQ(Mem{Base: a, Index: lda, Scale: 2}, a)
		}
		MOVQ(a, Mem{Base: args, Disp: wA})
		rowBias := ptr(args, wRowBias)
		TESTQ(rowBias, rowBias)
		JZ(LabelRef("nextRes"))
		ADDQ(Imm(uint64(4*mr)), Mem{Base: args, Disp: wRowBias})
		Label("nextRes")
		r = ptr(args, wRes)
		TESTQ(r, r)
		JZ(LabelRef("next"))
		ldr = stride(args, tLdr)
		for range mr / 2 {
			LEAQ(Mem{Base: r, Index: ldr, Scale: 2}, r)
		}
		MOVQ(r, Mem{Base: args, Disp: wRes})
		Label("next")
		SUBQ(Imm(uint64(mr)), Mem{Base: args, Disp: wM})
		JMP(LabelRef("rows"))
	}
	Label("done")
	VZEROUPPER()
	RET()
}

// addRowBias adds the value of each row that bias points to, or jumps to done
// where that is nil.
func addRowBias(bias reg.GPVirtual, done string, rows, vecs int, room reg.VecPhysical, acc func(i, j int) reg.VecPhysical) {
	TESTQ(bias, bias)
	JZ(LabelRef(done))
	for i := range rows {
		VBROADCASTSS(Mem{Base: bias, Disp: 4 * i}, room)
		for j := range vecs {
			VADDPS(room, acc(i, j), acc(i, j))
		}
	}
}

// addBias adds to all rows the vectors that bias points to, which room[j] takes.
func (v isa) addBias(bias reg.GPVirtual, rows int, room []reg.VecPhysical, acc func(i, j int) reg.VecPhysical) {
	for j, r := range room {
		VMOVUPS(Mem{Base: bias, Disp: j * v.bytes()}, r)
		for i := range rows {
			VADDPS(r, acc(i, j), acc(i, j))
		}
	}
}

// clamp keeps x in [lo, hi] and a NaN as it is: VMAXPS and VMINPS return their
// second source, which Go's syntax puts first, where one is NaN.
func (v isa) clamp(lo, hi, x reg.VecPhysical) {
	VMAXPS(x, lo, x)
	VMINPS(x, hi, x)
}

// loadMasks puts the column masks of AVX2 into two registers; AVX-512 keeps
// them in K1 and K2.
func loadMasks(v isa, mask reg.GPVirtual, m0, m1 reg.VecPhysical) {
	if v.lanes == 8 {
		VMOVDQU(Mem{Base: mask}, m0)
		VMOVDQU(Mem{Base: mask, Disp: 32}, m1)
	}
}

func (v isa) maskLoad(src Mem, half int, m, dst reg.VecPhysical) {
	if v.lanes == 8 {
		VMASKMOVPS(src, m, dst)
	} else {
		VMOVUPS_Z(src, []reg.OpmaskPhysical{reg.K1, reg.K2}[half], dst)
	}
}

func (v isa) maskStore(src reg.VecPhysical, half int, m reg.VecPhysical, dst Mem) {
	if v.lanes == 8 {
		VMASKMOVPS(src, m, dst)
	} else {
		VMOVUPS(src, []reg.OpmaskPhysical{reg.K1, reg.K2}[half], dst)
	}
}

// widePanels is the number of panels of B that gemmWide multiplies at once.
const widePanels = 4

// gemmWide writes the kernel for one to three rows of A (one at AVX2), which
// takes four panels of B at once so that there are enough independent sums.
func gemmWide(v isa) {
	rows := 3
	if v.lanes == 8 {
		rows = 1
	}
	TEXT("gemmWide"+v.name, NOSPLIT, "func(t *byte)")
	Doc(fmt.Sprintf("gemmWide%s computes t, which has %d columns and at most %d rows.", v.name, 2*widePanels*v.lanes, rows))
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	a, b, c := ptr(args, tA), ptr(args, tB), ptr(args, tC)
	lda, bstep, pstep, ldc := stride(args, tLda), stride(args, tBStep), stride(args, tPStep), stride(args, tLdc)
	m := ptr(args, tM)
	for i := rows; i >= 1; i-- {
		CMPQ(m, Imm(uint64(i)))
		JEQ(LabelRef(fmt.Sprintf("tile%d", i)))
	}
	JMP(LabelRef("done"))
	vecs := 2 * widePanels
	for mr := rows; mr >= 1; mr-- {
		l := func(s string) string { return fmt.Sprintf("%s%d", s, mr) }
		acc := func(i, j int) reg.VecPhysical { return v.regs[vecs*i+j] }
		spare := v.regs[vecs*rows:]

		Label(l("tile"))
		k := ptr(args, tK)
		pa := GP64()
		MOVQ(a, pa)
		pb := []reg.GPVirtual{GP64()}
		MOVQ(b, pb[0])
		for p := 1; p < widePanels; p++ {
			pb = append(pb, GP64())
			LEAQ(Mem{Base: pb[p-1], Index: pstep, Scale: 1}, pb[p])
		}
		for i := range mr {
			for j := range vecs {
				v.zero(acc(i, j))
			}
		}
		TESTQ(k, k)
		JZ(LabelRef(l("end")))
		Label(l("one"))
		for i := range mr {
			mem := Mem{Base: pa}
			if i > 0 {
				mem.Index, mem.Scale = lda, uint8(i)
			}
			VBROADCASTSS(mem, spare[i])
		}
		for j := range vecs {
			mem := Mem{Base: pb[j/2], Disp: j % 2 * v.bytes()}
			if mr == 1 {
				VFMADD231PS(mem, spare[0], acc(0, j))
				continue
			}
			x := spare[mr+j%2]
			VMOVUPS(mem, x)
			for i := range mr {
				VFMADD231PS(x, spare[i], acc(i, j))
			}
		}
		ADDQ(Imm(4), pa)
		for _, p := range pb {
			ADDQ(bstep, p)
		}
		DECQ(k)
		JNZ(LabelRef(l("one")))
		Label(l("end"))

		CMPQ(Mem{Base: args, Disp: tAcc}, Imm(0))
		JEQ(LabelRef(l("summed")))
		earlier := GP64()
		MOVQ(c, earlier)
		for i := range mr {
			for j := range vecs {
				VADDPS(Mem{Base: earlier, Disp: j * v.bytes()}, acc(i, j), acc(i, j))
			}
			if i < mr-1 {
				ADDQ(ldc, earlier)
			}
		}
		Label(l("summed"))
		cb := ptr(args, tColBias)
		TESTQ(cb, cb)
		JZ(LabelRef(l("residual")))
		for j := range vecs {
			VMOVUPS(Mem{Base: cb, Disp: j * v.bytes()}, spare[0])
			for i := range mr {
				VADDPS(spare[0], acc(i, j), acc(i, j))
			}
		}
		Label(l("residual"))
		r := ptr(args, tRes)
		TESTQ(r, r)
		JZ(LabelRef(l("rowbias")))
		ldr := stride(args, tLdr)
		for i := range mr {
			for j := range vecs {
				VADDPS(Mem{Base: r, Disp: j * v.bytes()}, acc(i, j), acc(i, j))
			}
			if i < mr-1 {
				ADDQ(ldr, r)
			}
		}
		Label(l("rowbias"))
		addRowBias(ptr(args, tRowBias), l("clamp"), mr, vecs, spare[0], acc)
		Label(l("clamp"))
		VBROADCASTSS(Mem{Base: args, Disp: tLo}, spare[0])
		VBROADCASTSS(Mem{Base: args, Disp: tHi}, spare[1])
		for i := range mr {
			for j := range vecs {
				v.clamp(spare[0], spare[1], acc(i, j))
				VMOVUPS(acc(i, j), Mem{Base: c, Disp: j * v.bytes()})
			}
			if i < mr-1 {
				ADDQ(ldc, c)
			}
		}
		JMP(LabelRef("done"))
	}
	Label("done")
	VZEROUPPER()
	RET()
}

// packRows writes the kernel that copies rows of columns into a panel.
func packRows(v isa) {
	TEXT("packRows"+v.name, NOSPLIT, "func(dst *float32, src *float32, step int, k int, n int)")
	Doc(fmt.Sprintf("packRows%s copies k rows of n floats, step bytes apart, to dst as rows of %d", v.name, 2*v.lanes),
		"with zeros from n on.")
	Pragma("noescape")
	dst := Load(Param("dst"), GP64()).(reg.GPVirtual)
	src := Load(Param("src"), GP64()).(reg.GPVirtual)
	step := Load(Param("step"), GP64()).(reg.GPVirtual)
	k := Load(Param("k"), GP64()).(reg.GPVirtual)
	n := Load(Param("n"), GP64()).(reg.GPVirtual)
	m0, m1 := v.regs[4], v.regs[5]
	if v.lanes == 16 {
		ones := GP64()
		MOVQ(I32(-1), ones)
		BZHIQ(n, ones, ones)
		KMOVW(ones.As32(), reg.K1)
		SHRQ(Imm(16), ones)
		KMOVW(ones.As32(), reg.K2)
	} else {
		mask := GP64()
		LEAQ(Mem{Symbol: Symbol{Name: "tailMask", Static: true}, Base: reg.StaticBase, Disp: 64}, mask)
		SHLQ(Imm(2), n)
		SUBQ(n, mask)
		loadMasks(v, mask, m0, m1)
	}
	ahead := GP64()
	LEAQ(Mem{Base: src, Index: step, Scale: 8}, ahead)
	Label("row")
	PREFETCHT0(Mem{Base: ahead})
	PREFETCHT0(Mem{Base: ahead, Disp: 2*v.bytes() - 4})
	v.maskLoad(Mem{Base: src}, 0, m0, v.regs[0])
	v.maskLoad(Mem{Base: src, Disp: v.bytes()}, 1, m1, v.regs[1])
	VMOVUPS(v.regs[0], Mem{Base: dst})
	VMOVUPS(v.regs[1], Mem{Base: dst, Disp: v.bytes()})
	ADDQ(step, src)
	ADDQ(step, ahead)
	ADDQ(I32(int32(2*v.bytes())), dst)
	DECQ(k)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}
