package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Offsets in kernels.blockTile; TestBlockTileLayout compares them.
const (
	kX     = 0
	kW     = 24
	kY0    = 48
	kY1    = 72
	kR0    = 96
	kR1    = 120
	kBias  = 144
	kRuns  = 168
	kCount = 192
	kLda   = 200
	kRows  = 208
	kPer   = 216
	kLo    = 224
	kHi    = 228
	kWork  = 232 // as words: X, Y0, Y1, R0, R1 and rows left
	kStep  = 280
)

// pixelBytes is the size of 16 channels of a pixel.
const pixelBytes = 64

// blockRows writes the direct convolution kernel: pixels of an output row
// times vecs vectors of output channels. The input of one pixel is a list of
// runs of consecutive floats, the weights are [k][vecs*lanes]. With 8 channels,
// the other half of the block becomes zero.
func blockRows(v isa, vecs int) {
	name := fmt.Sprintf("block%d%s", vecs*v.lanes, v.name)
	TEXT(name, NOSPLIT, "func(t *byte)")
	Doc(fmt.Sprintf("%s computes the blockTile t of %d channels.", name, vecs*v.lanes))
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	lda := stride(args, kLda)
	const wX, wY0, wY1, wR0, wR1, wM = kWork, kWork + 8, kWork + 16, kWork + 24, kWork + 32, kWork + 40
	for _, w := range [][2]int{{kX, wX}, {kY0, wY0}, {kY1, wY1}, {kR0, wR0}, {kR1, wR1}, {kRows, wM}} {
		MOVQ(ptr(args, w[0]), Mem{Base: args, Disp: w[1]})
	}
	// With AVX2 the second vector is the other half of the same block.
	split := v.lanes == 16 && vecs == 2
	at := func(p []reg.GPVirtual, j int) Mem {
		if split {
			return Mem{Base: p[j]}
		}
		return Mem{Base: p[0], Disp: j * v.bytes()}
	}
	// pixels calls f for each pixel of a tile with p at it, and keeps where p
	// ends in the words from offset word on.
	pixels := func(mr int, p []reg.GPVirtual, word int, f func(i int)) {
		step := stride(args, kStep)
		for i := range mr {
			f(i)
			for _, q := range p {
				ADDQ(step, q)
			}
		}
		for j, q := range p {
			MOVQ(q, Mem{Base: args, Disp: word + 8*j})
		}
	}

	rowsLoop(v, args, wM, kPer)

	for mr := 1; mr <= v.rows; mr++ {
		l := func(s string) string { return fmt.Sprintf("%s%d", s, mr) }
		acc := func(i, j int) reg.VecPhysical { return v.regs[vecs*i+j] }
		b := v.regs[vecs*v.rows : vecs*v.rows+vecs]
		spare := v.regs[vecs*v.rows+vecs:]

		Label(l("tile"))
		for i := range mr {
			for j := range vecs {
				v.zero(acc(i, j))
			}
		}
		kb, run, runs := ptr(args, kW), ptr(args, kRuns), ptr(args, kCount)
		Label(l("run"))
		off, k := GP64(), GP64()
		MOVQ(Mem{Base: run}, off)
		MOVQ(Mem{Base: run, Disp: 8}, k)
		ADDQ(Imm(16), run)
		ptrs := []reg.GPVirtual{ptr(args, wX)}
		LEAQ(Mem{Base: ptrs[0], Index: off, Scale: 4}, ptrs[0])
		for i := 3; i < mr; i += 3 {
			p := GP64()
			LEAQ(Mem{Base: ptrs[len(ptrs)-1], Index: lda, Scale: 2}, p)
			ADDQ(lda, p)
			ptrs = append(ptrs, p)
		}
		step := func(u int) {
			for j := range vecs {
				VMOVUPS(Mem{Base: kb, Disp: (u*vecs + j) * v.bytes()}, b[j])
			}
			for i := range mr {
				s := spare[i%len(spare)]
				VBROADCASTSS(rowAddr(ptrs, lda, i, 4*u), s)
				for j := range vecs {
					VFMADD231PS(b[j], s, acc(i, j))
				}
			}
		}
		SUBQ(Imm(4), k)
		JLT(LabelRef(l("rest")))
		Label(l("four"))
		for u := range 4 {
			step(u)
		}
		ADDQ(I32(int32(4*vecs*v.bytes())), kb)
		for _, p := range ptrs {
			ADDQ(Imm(16), p)
		}
		SUBQ(Imm(4), k)
		JGE(LabelRef(l("four")))
		Label(l("rest"))
		ADDQ(Imm(4), k)
		JZ(LabelRef(l("ran")))
		Label(l("one"))
		step(0)
		ADDQ(I32(int32(vecs*v.bytes())), kb)
		for _, p := range ptrs {
			ADDQ(Imm(4), p)
		}
		DECQ(k)
		JNZ(LabelRef(l("one")))
		Label(l("ran"))
		DECQ(runs)
		JNZ(LabelRef(l("run")))

		r := []reg.GPVirtual{ptr(args, wR0)}
		TESTQ(r[0], r[0])
		JZ(LabelRef(l("bias")))
		if split {
			r = append(r, ptr(args, wR1))
		}
		pixels(mr, r, wR0, func(i int) {
			for j := range vecs {
				VADDPS(at(r, j), acc(i, j), acc(i, j))
			}
		})
		Label(l("bias"))
		v.addBias(ptr(args, kBias), mr, b, acc)
		VBROADCASTSS(Mem{Base: args, Disp: kLo}, b[0])
		VBROADCASTSS(Mem{Base: args, Disp: kHi}, spare[0])
		y := []reg.GPVirtual{ptr(args, wY0)}
		if split {
			y = append(y, ptr(args, wY1))
		}
		half := vecs*v.bytes() < pixelBytes
		if half {
			v.zero(spare[1])
		}
		pixels(mr, y, wY0, func(i int) {
			for j := range vecs {
				v.clamp(b[0], spare[0], acc(i, j))
				VMOVUPS(acc(i, j), at(y, j))
			}
			if half {
				VMOVUPS(spare[1], at(y, vecs))
			}
		})
		x := ptr(args, wX)
		for range mr / 2 {
			LEAQ(Mem{Base: x, Index: lda, Scale: 2}, x)
		}
		if mr%2 == 1 {
			ADDQ(lda, x)
		}
		MOVQ(x, Mem{Base: args, Disp: wX})
		SUBQ(Imm(uint64(mr)), Mem{Base: args, Disp: wM})
		JMP(LabelRef("rows"))
	}
	Label("done")
	VZEROUPPER()
	RET()
}

// Offsets in kernels.blockWindows and kernels.windowRun; TestBlockTileLayout
// compares them.
const (
	gX       = 0
	gW       = 24
	gY       = 48
	gR       = 72
	gBias    = 96
	gRuns    = 120
	gCount   = 144
	gLda     = 152
	gRowStep = 160
	gTapStep = 168
	gWStep   = 176
	gLo      = 184
	gHi      = 188
	gWork    = 192

	uX       = 0
	uW       = 8
	uY       = 16
	uPixels  = 24
	uRows    = 32
	uColumns = 40
	uCount   = 48
	uSize    = 56
)

// blockWindow writes the kernel for one block of 16 channels that takes in the
// pixels under a kernel by op: Taps, Max or Mean.
func blockWindow(v isa, op string) {
	vecs := 16 / v.lanes
	TEXT("block"+op+v.name, NOSPLIT, "func(t *byte)")
	Doc("block" + op + v.name + " computes the blockWindows t.")
	Pragma("noescape")
	args := Load(Param("t"), GP64()).(reg.GPVirtual)
	seg := ptr(args, gRuns)
	lda, tap := stride(args, gLda), stride(args, gTapStep)
	lda3 := GP64()
	LEAQ(Mem{Base: lda, Index: lda, Scale: 2}, lda3)
	t := stride(args, gRowStep)
	MOVQ(t, Mem{Base: args, Disp: gWork})
	left := Mem{Base: args, Disp: gWork + 8} // pixels
	w, lo, hi := v.regs[8:10], v.regs[14], v.regs[15]
	VBROADCASTSS(Mem{Base: args, Disp: gLo}, lo)
	VBROADCASTSS(Mem{Base: args, Disp: gHi}, hi)
	sizes := []int{8 / vecs, 4 / vecs, 2 / vecs, 1}
	if vecs == 2 {
		sizes = sizes[:3]
	}

	Label("run")
	x, y := ptr(args, gX), ptr(args, gY)
	for _, p := range []struct {
		r   reg.GPVirtual
		off int
	}{{x, uX}, {y, uY}} {
		t := ptr(seg, p.off)
		LEAQ(Mem{Base: p.r, Index: t, Scale: 4}, p.r)
	}
	pixels := ptr(seg, uPixels)
	MOVQ(pixels, left)
	for si, mr := range sizes {
		l := func(s string) string { return fmt.Sprintf("%s%d", s, mr) }
		next := "ran"
		if si+1 < len(sizes) {
			next = fmt.Sprintf("block%d", sizes[si+1])
		}
		acc := func(i, j int) reg.VecPhysical { return v.regs[vecs*i+j] }
		Label(l("block"))
		CMPQ(left, Imm(uint64(mr)))
		JLT(LabelRef(next))
		for i := range mr {
			for j := range vecs {
				if op == "Max" {
					VMOVAPS(lo, acc(i, j))
				} else {
					v.zero(acc(i, j))
				}
			}
		}
		ky, row := GP64(), GP64()
		MOVQ(Mem{Base: seg, Disp: uRows}, ky)
		MOVQ(x, row)
		var pw, wRow reg.GPVirtual
		if op == "Taps" {
			wRow = ptr(args, gW)
			t := ptr(seg, uW)
			LEAQ(Mem{Base: wRow, Index: t, Scale: 4}, wRow)
		}
		TESTQ(ky, ky)
		JZ(LabelRef(l("taken")))
		Label(l("row"))
		p := []reg.GPVirtual{GP64(), GP64()}
		kx := GP64()
		MOVQ(Mem{Base: seg, Disp: uColumns}, kx)
		MOVQ(row, p[0])
		if mr > 4 {
			LEAQ(Mem{Base: row, Index: lda, Scale: 4}, p[1])
		}
		if op == "Taps" {
			pw = GP64()
			MOVQ(wRow, pw)
		}
		Label(l("tap"))
		if op == "Taps" {
			for j := range vecs {
				VMOVUPS(Mem{Base: pw, Disp: j * v.bytes()}, w[j])
			}
		}
		for i := range mr {
			for j := range vecs {
				m := Mem{Base: p[i/4], Disp: j * v.bytes()}
				switch i % 4 {
				case 1, 2:
					m.Index, m.Scale = lda, uint8(i%4)
				case 3:
					m.Index, m.Scale = lda3, 1
				}
				switch op {
				case "Taps":
					VFMADD231PS(m, w[j], acc(i, j))
				case "Mean":
					VADDPS(m, acc(i, j), acc(i, j))
				case "Max":
					v.maxNaN(m, w[0], w[1], acc(i, j))
				}
			}
		}
		ADDQ(tap, p[0])
		if mr > 4 {
			ADDQ(tap, p[1])
		}
		if op == "Taps" {
			ADDQ(Imm(pixelBytes), pw)
		}
		DECQ(kx)
		JNZ(LabelRef(l("tap")))
		ADDQ(Mem{Base: args, Disp: gWork}, row)
		if op == "Taps" {
			t := stride(args, gWStep)
			ADDQ(t, wRow)
		}
		DECQ(ky)
		JNZ(LabelRef(l("row")))
		Label(l("taken"))
		switch op {
		case "Taps":
			// The residual lies as far from r as the output from y.
			r := ptr(args, gR)
			TESTQ(r, r)
			JZ(LabelRef(l("bias")))
			SUBQ(Mem{Base: args, Disp: gY}, r)
			for i := range mr {
				for j := range vecs {
					VADDPS(Mem{Base: y, Index: r, Scale: 1, Disp: i*pixelBytes + j*v.bytes()}, acc(i, j), acc(i, j))
				}
			}
			Label(l("bias"))
			v.addBias(ptr(args, gBias), mr, w[:vecs], acc)
			for i := range mr {
				for j := range vecs {
					v.clamp(lo, hi, acc(i, j))
				}
			}
		case "Mean":
			VBROADCASTSS(Mem{Base: seg, Disp: uCount}, w[0])
			for i := range mr {
				for j := range vecs {
					VDIVPS(w[0], acc(i, j), acc(i, j))
				}
			}
		}
		for i := range mr {
			for j := range vecs {
				VMOVUPS(acc(i, j), Mem{Base: y, Disp: i*pixelBytes + j*v.bytes()})
			}
		}
		ADDQ(I32(int32(mr*pixelBytes)), y)
		for range mr / 2 {
			LEAQ(Mem{Base: x, Index: lda, Scale: 2}, x)
		}
		if mr%2 == 1 {
			ADDQ(lda, x)
		}
		SUBQ(Imm(uint64(mr)), left)
		JMP(LabelRef(l("block")))
	}
	Label("ran")
	ADDQ(Imm(uSize), seg)
	DECQ(Mem{Base: args, Disp: gCount})
	JNZ(LabelRef("run"))
	VZEROUPPER()
	RET()
}

// maxNaN raises acc to the vector at m, and makes it NaN where that is; x and
// mask are spare.
func (v isa) maxNaN(m Mem, x, mask, acc reg.VecPhysical) {
	VMOVUPS(m, x)
	// VMAXPS gives acc, its second source, where one is NaN.
	if v.lanes == 16 {
		VCMPPS(Imm(3), x, x, reg.K1)
		VMAXPS(acc, x, acc)
		VMOVAPS(x, reg.K1, acc)
		return
	}
	VCMPPS(Imm(3), x, x, mask)
	VMAXPS(acc, x, acc)
	VBLENDVPS(mask, x, acc, acc)
}

// transpose8 writes the kernel that transposes squares of 8×8 words.
func transpose8() {
	TEXT("transpose8AVX2", NOSPLIT, "func(dst *float32, dstStep int, dstNext int, src *float32, srcStep int, srcNext int, n int)")
	Doc("transpose8AVX2 transposes n squares of 8×8 floats. Steps from row to row and",
		"from square to square are in bytes.")
	Pragma("noescape")
	dst := Load(Param("dst"), GP64()).(reg.GPVirtual)
	ds := Load(Param("dstStep"), GP64()).(reg.GPVirtual)
	src := Load(Param("src"), GP64()).(reg.GPVirtual)
	ss := Load(Param("srcStep"), GP64()).(reg.GPVirtual)
	n := Load(Param("n"), GP64()).(reg.GPVirtual)
	ds3, ss3 := GP64(), GP64()
	LEAQ(Mem{Base: ds, Index: ds, Scale: 2}, ds3)
	LEAQ(Mem{Base: ss, Index: ss, Scale: 2}, ss3)
	row := func(p, p4, s, s3 reg.GPVirtual, i int) Mem {
		m := Mem{Base: []reg.GPVirtual{p, p4}[i/4]}
		switch i % 4 {
		case 1, 2:
			m.Index, m.Scale = s, uint8(i%4)
		case 3:
			m.Index, m.Scale = s3, 1
		}
		return m
	}
	Label("square")
	src4, dst4 := GP64(), GP64()
	LEAQ(Mem{Base: src, Index: ss, Scale: 4}, src4)
	LEAQ(Mem{Base: dst, Index: ds, Scale: 4}, dst4)
	y := ymm
	for i := range 8 {
		VMOVUPS(row(src, src4, ss, ss3, i), y[i])
	}
	// Pairs of rows, then quadruples, then halves of registers.
	for i := 0; i < 8; i += 2 {
		VUNPCKLPS(y[i+1], y[i], y[8+i])
		VUNPCKHPS(y[i+1], y[i], y[9+i])
	}
	for i := 0; i < 8; i += 4 {
		VUNPCKLPD(y[10+i], y[8+i], y[i])
		VUNPCKHPD(y[10+i], y[8+i], y[i+1])
		VUNPCKLPD(y[11+i], y[9+i], y[i+2])
		VUNPCKHPD(y[11+i], y[9+i], y[i+3])
	}
	for i := range 4 {
		VPERM2F128(Imm(0x20), y[4+i], y[i], y[8+i])
		VPERM2F128(Imm(0x31), y[4+i], y[i], y[12+i])
	}
	for i := range 8 {
		VMOVUPS(y[8+i], row(dst, dst4, ds, ds3, i))
	}
	step := Load(Param("srcNext"), GP64()).(reg.GPVirtual)
	ADDQ(step, src)
	step = Load(Param("dstNext"), GP64()).(reg.GPVirtual)
	ADDQ(step, dst)
	DECQ(n)
	JNZ(LabelRef("square"))
	VZEROUPPER()
	RET()
}

// rowsLoop starts the loop over the rows left, a word at offset left of the
// arguments: tiles of as many rows as the word at offset per says, which is at
// most v.rows, and one of the rest. Tiles jump back to the label rows; those
// of one row follow.
func rowsLoop(v isa, args reg.Register, left, per int) {
	Label("rows")
	m := ptr(args, left)
	CMPQ(m, Mem{Base: args, Disp: per})
	JGE(LabelRef("choose"))
	for i := v.rows - 1; i >= 1; i-- {
		CMPQ(m, Imm(uint64(i)))
		JEQ(LabelRef(fmt.Sprintf("tile%d", i)))
	}
	JMP(LabelRef("done"))
	Label("choose")
	m = ptr(args, per)
	for i := v.rows; i >= 2; i-- {
		CMPQ(m, Imm(uint64(i)))
		JEQ(LabelRef(fmt.Sprintf("tile%d", i)))
	}
}
