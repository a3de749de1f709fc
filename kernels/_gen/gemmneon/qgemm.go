package main

import "fmt"

// Encodings of instructions of three registers and, with none for the third, of
// two.
const (
	sdotLane              = 0x4f80e000             // four bytes times four, into words
	smull8, smull8High    = 0x0e20c000, 0x4e20c000 // bytes to 16 bits
	smlal16, smlal16High  = 0x0e608000, 0x4e608000 // 16 bits, added to words
	sadalp16              = 0x4e606800             // pairs of 16 bits, added to words
	uaddlp8, uadalp16     = 0x6e202800, 0x6e606800
	addp32, addv32, mls32 = 0x4ea0bc00, 0x4eb1b800, 0x6ea09400
	uxtl8, uxtl8High      = 0x2f08a400, 0x6f08a400
	uzp8, uzp16           = 0x4e001800, 0x4e401800
	scvtf, fcvtns         = 0x4e21d800, 0x4e21a800
	fmul, fadd            = 0x6e20dc00, 0x4e20d400
	fmaxnm, fminnm        = 0x4e20c400, 0x4ea0c400 // of a number and a NaN the number
	dupWord               = 0x4e040400
	load1Bytes            = 0x4d40c000 // one element in all lanes
	none                  = 0
)

// code is an instruction on vectors: d = name(n, m).
func code(op int, name string, d, n, m int) {
	ins("WORD $%#08x // %s V%d, V%d, V%d", op|m<<16|n<<5|d, name, m, n, d)
}

// loadPairs loads vecs vectors, an even number, from disp(r).
func loadPairs(first, vecs, r, disp int) {
	for j := 0; j < vecs; j += 2 {
		ins("FLDPQ %d(R%d), (F%d, F%d)", disp+16*j, r, first+j, first+j+1)
	}
}

// Registers that the integer kernels share. The others are given per kernel.
const (
	qTile    = 0
	qPointer = 22 // for a moment
	qB       = 16 // vectors 16 to 19
	qSpare   = 20 // vectors 20 to 27
	qLo      = 28
	qHi      = 29
	qZero    = 30
	qFlip    = 31
	qVecs    = 4 // of 16 columns or channels
)

// qEpilogue writes rows of 16 sums, of which acc gives the registers, as the mode
// in register mode says. Fields of the tile lie at scale and bias, those of a
// pointer in a register are given as such. next goes to the next row of out.
func qEpilogue(l func(string) string, rows int, acc func(i, j int) int, mode, out int, load func(field string, r int), next func(r int)) {
	each := func(f func(v, j int)) {
		for i := range rows {
			for j := range qVecs {
				f(acc(i, j), j)
			}
		}
	}
	ins("MOVD R%d, R%d", out, qPointer+1)
	out = qPointer + 1
	ins("CBZ R%d, %s", mode, l("words"))
	load("scale", qPointer)
	loadPairs(qB, qVecs, qPointer, 0)
	each(func(v, j int) {
		code(scvtf, "SCVTF", v, v, none)
		code(fmul, "FMUL", v, v, qB+j)
	})
	ins("CMP $1, R%d", mode)
	ins("BEQ %s", l("bytes"))
	load("bias", qPointer)
	loadPairs(qB, qVecs, qPointer, 0)
	each(func(v, j int) { code(fadd, "FADD", v, v, qB+j) })
	p("")
	p("%s:", l("words"))
	for i := range rows {
		for j := range qVecs {
			ins("FMOVQ F%d, %d(R%d)", acc(i, j), 16*j, out)
		}
		next(out)
	}
	ins("B %s", l("stored"))
	p("")
	p("%s:", l("bytes"))
	each(func(v, _ int) {
		code(fmaxnm, "FMAXNM", v, v, qLo)
		code(fminnm, "FMINNM", v, v, qHi)
		code(fcvtns, "FCVTNS", v, v, none)
		ins("VADD V%d.S4, V%d.S4, V%d.S4", qZero, v, v)
	})
	for i := range rows {
		a, b, c, d := acc(i, 0), acc(i, 1), acc(i, 2), acc(i, 3)
		code(uzp16, "UZP1.8H", a, a, b)
		code(uzp16, "UZP1.8H", c, c, d)
		code(uzp8, "UZP1.16B", a, a, c)
		ins("FMOVQ F%d, (R%d)", a, out)
		next(out)
	}
	p("")
	p("%s:", l("stored"))
}

// qgemmRows writes the kernel that multiplies rows of bytes by a panel of 16
// packed columns and applies the epilogue, by dot products or by products of 16
// bits. Once flipped the bytes of A are signed.
func qgemmRows(dot bool) {
	const (
		a, c, rowSum, lda, ldc, rows, mode = 1, 2, 3, 4, 5, 6, 7
		ptr                                = 8 // to 11
		b, k, run, runs, off               = 12, 13, 14, 15, 16
	)
	name, sizes, per := "SDOT", []int{4, 3, 2, 1}, qVecs
	if !dot {
		name, sizes, per = "SMULL", []int{2, 1}, 2*qVecs
	}
	p("")
	p("// func qgemmRows%s(t *byte)", name)
	p("TEXT ·qgemmRows%s(SB), NOSPLIT, $0-8", name)
	ins("MOVD t+0(FP), R%d", qTile)
	// The offsets of kernels.qTile; TestQTileLayout compares them.
	for _, f := range []struct{ off, reg int }{{0, a}, {48, c}, {96, rowSum}, {192, lda}, {200, ldc}, {208, rows}, {232, mode}} {
		ins("MOVD %d(R%d), R%d", f.off, qTile, f.reg)
	}
	fields := map[string]int{"scale": 144, "bias": 168}
	for i, v := range []int{qLo, qHi, qZero} {
		ins("ADD $%d, R%d, R%d", 240+4*i, qTile, qPointer)
		broadcast(v, qPointer)
	}
	ins("FMOVQ 256(R%d), F%d", qTile, qFlip)
	for s, mr := range sizes {
		l := func(s string) string { return fmt.Sprintf("%s%d", s, mr) }
		next := "end"
		if s+1 < len(sizes) {
			next = fmt.Sprintf("tile%d", sizes[s+1])
		}
		p("")
		p("%s:", l("tile"))
		ins("CMP $%d, R%d", mr, rows)
		ins("BLT %s", next)
		for v := range mr * per {
			ins("VEOR V%d.B16, V%d.B16, V%d.B16", v, v, v)
		}
		ins("MOVD 24(R%d), R%d", qTile, b)
		ins("MOVD 320(R%d), R%d", qTile, run)
		ins("MOVD 344(R%d), R%d", qTile, runs)
		p("")
		p("%s:", l("run"))
		ins("LDP (R%d), (R%d, R%d)", run, off, k)
		ins("ADD $16, R%d, R%d", run, run)
		ins("ADD R%d, R%d, R%d", off, a, ptr)
		for i := 1; i < mr; i++ {
			ins("ADD R%d, R%d, R%d", lda, ptr+i-1, ptr+i)
		}
		// step multiplies unit u of B by lane lane of the rows.
		step := func(u, lane int) {
			loadPairs(qB, qVecs, b, 64*u)
			for i := range mr {
				if dot {
					for j := range qVecs {
						op := sdotLane | (lane&1)<<21 | (lane>>1)<<11
						code(op, fmt.Sprintf("SDOT[%d]", lane), per*i+j, qB+j, qSpare+i)
					}
					continue
				}
				factor := qSpare + 2 + i
				code(dupWord|lane<<19, fmt.Sprintf("DUP[%d]", lane), factor, qSpare+i, none)
				for j := range qVecs {
					low, high := qSpare+4+j%2*2, qSpare+5+j%2*2
					code(smull8, "SMULL", low, qB+j, factor)
					code(smull8High, "SMULL2", high, qB+j, factor)
					code(sadalp16, "SADALP", per*i+2*j, low, none)
					code(sadalp16, "SADALP", per*i+2*j+1, high, none)
				}
			}
		}
		factors := func(move string, bytes int) {
			for i := range mr {
				ins("%s (R%d), F%d", move, ptr+i, qSpare+i)
				ins("ADD $%d, R%d, R%d", bytes, ptr+i, ptr+i)
				ins("VEOR V%d.B16, V%d.B16, V%d.B16", qFlip, qSpare+i, qSpare+i)
			}
		}
		ins("SUBS $4, R%d, R%d", k, k)
		ins("BLT %s", l("rest"))
		p("")
		p("%s:", l("four"))
		factors("FMOVQ", 16)
		for u := range 4 {
			step(u, u)
		}
		ins("ADD $256, R%d, R%d", b, b)
		ins("SUBS $4, R%d, R%d", k, k)
		ins("BGE %s", l("four"))
		p("")
		p("%s:", l("rest"))
		ins("ADDS $4, R%d, R%d", k, k)
		ins("BEQ %s", l("ran"))
		p("")
		p("%s:", l("one"))
		factors("FMOVS", 4)
		step(0, 0)
		ins("ADD $64, R%d, R%d", b, b)
		ins("SUBS $1, R%d, R%d", k, k)
		ins("BNE %s", l("one"))
		p("")
		p("%s:", l("ran"))
		ins("SUBS $1, R%d, R%d", runs, runs)
		ins("BNE %s", l("run"))
		acc := func(i, j int) int { return per*i + j }
		if !dot {
			// Sums of pairs lie side by side.
			for i := range mr {
				for j := range qVecs {
					code(addp32, "ADDP", acc(i, j), acc(i, 2*j), acc(i, 2*j+1))
				}
			}
		}
		ins("MOVD 72(R%d), R%d", qTile, qPointer)
		loadPairs(qB, qVecs, qPointer, 0)
		for i := range mr {
			for j := range qVecs {
				ins("VADD V%d.S4, V%d.S4, V%d.S4", qB+j, acc(i, j), acc(i, j))
			}
		}
		ins("CBZ R%d, %s", rowSum, l("summed"))
		ins("MOVD 120(R%d), R%d", qTile, qPointer)
		loadPairs(qB, qVecs, qPointer, 0)
		for i := range mr {
			broadcast(qSpare, rowSum)
			ins("ADD $4, R%d, R%d", rowSum, rowSum)
			for j := range qVecs {
				code(mls32, "MLS", acc(i, j), qB+j, qSpare)
			}
		}
		p("")
		p("%s:", l("summed"))
		qEpilogue(l, mr, acc, mode, c,
			func(field string, r int) { ins("MOVD %d(R%d), R%d", fields[field], qTile, r) },
			func(r int) { ins("ADD R%d, R%d, R%d", ldc, r, r) })
		ins("MOVD R%d, R%d", qPointer+1, c)
		for range mr {
			ins("ADD R%d, R%d, R%d", lda, a, a)
		}
		ins("SUB $%d, R%d, R%d", mr, rows, rows)
		ins("B tile%d", sizes[0])
	}
	p("")
	p("end:")
	ins("RET")
}

// byteSum writes the sum of bytes, 16 at a time, after an exclusive or.
func byteSum() {
	p("")
	p("// func byteSumNEON(p *byte, n int, flip byte) int32")
	p("TEXT ·byteSumNEON(SB), NOSPLIT, $0-28")
	ins("MOVD p+0(FP), R0")
	ins("MOVD n+8(FP), R1")
	ins("MOVBU flip+16(FP), R2")
	ins("VDUP R2, V0.B16")
	ins("VEOR V1.B16, V1.B16, V1.B16")
	p("")
	p("loop:")
	ins("SUBS $16, R1, R1")
	ins("BLT end")
	ins("FMOVQ (R0), F2")
	ins("ADD $16, R0, R0")
	ins("VEOR V0.B16, V2.B16, V2.B16")
	code(uaddlp8, "UADDLP", 2, 2, none)
	code(uadalp16, "UADALP", 1, 2, none)
	ins("B loop")
	p("")
	p("end:")
	code(addv32, "ADDV", 1, 1, none)
	ins("FMOVS F1, R0")
	ins("MOVW R0, ret+24(FP)")
	ins("RET")
}

// qdepthwise writes the kernel of depthwise integer convolutions, 16 channels
// of up to four positions at a time. The last channels may be computed twice.
func qdepthwise() {
	const (
		x, c, w, offs, init, scale, bias, taps, pitch = 1, 2, 3, 4, 5, 6, 7, 8, 9
		columns, channels, xStep, cStep, mode         = 10, 11, 12, 13, 14
		left, px, pc, tap, pw, po, at                 = 15, 16, 17, 19, 20, 21, 24
	)
	p("")
	p("// func qdepthwiseNEON(t *byte)")
	p("TEXT ·qdepthwiseNEON(SB), NOSPLIT, $0-8")
	ins("MOVD t+0(FP), R%d", qTile)
	// The offsets of kernels.qTapTile; TestQTapTileLayout compares them.
	for i, f := range []int{0, 24, 48, 72, 96, 120, 144, 168, 176, 184, 192, 200, 208, 216} {
		ins("MOVD %d(R%d), R%d", f, qTile, x+i)
	}
	ins("LSL $2, R%d, R%d", pitch, pitch)
	for i, v := range []int{qLo, qHi, qZero} {
		ins("ADD $%d, R%d, R%d", 224+4*i, qTile, qPointer)
		broadcast(v, qPointer)
	}
	ins("ADD $236, R%d, R%d", qTile, qPointer)
	code(load1Bytes, "LD1R", qFlip, qPointer, none)
	p("")
	p("channels:")
	ins("MOVD R%d, R%d", columns, left)
	ins("MOVD R%d, R%d", x, px)
	ins("MOVD R%d, R%d", c, pc)
	sizes := []int{4, 1}
	for s, n := range sizes {
		l := func(s string) string { return fmt.Sprintf("%s%d", s, n) }
		next := "row"
		if s+1 < len(sizes) {
			next = fmt.Sprintf("block%d", sizes[s+1])
		}
		p("")
		p("%s:", l("block"))
		ins("CMP $%d, R%d", n, left)
		ins("BLT %s", next)
		acc := func(i, j int) int { return qVecs*i + j }
		for i := range n {
			loadPairs(acc(i, 0), qVecs, init, 0)
		}
		ins("MOVD R%d, R%d", taps, tap)
		ins("MOVD R%d, R%d", w, pw)
		ins("MOVD R%d, R%d", offs, po)
		p("")
		p("%s:", l("tap"))
		ins("MOVD (R%d), R%d", po, at)
		ins("ADD $8, R%d, R%d", po, po)
		ins("ADD R%d, R%d, R%d", px, at, at)
		loadPairs(qB, qVecs, pw, 0)
		ins("ADD R%d, R%d, R%d", pitch, pw, pw)
		// Weights have 9 bits.
		code(uzp16, "UZP1.8H", qB, qB, qB+1)
		code(uzp16, "UZP1.8H", qB+1, qB+2, qB+3)
		for i := range n {
			low, high := qSpare+i%2*2, qSpare+1+i%2*2
			ins("FMOVQ (R%d), F%d", at, low)
			if i < n-1 {
				ins("ADD R%d, R%d, R%d", xStep, at, at)
			}
			ins("VEOR V%d.B16, V%d.B16, V%d.B16", qFlip, low, low)
			code(uxtl8High, "UXTL2", high, low, none)
			code(uxtl8, "UXTL", low, low, none)
			for j, v := range []int{low, high} {
				code(smlal16, "SMLAL", acc(i, 2*j), v, qB+j)
				code(smlal16High, "SMLAL2", acc(i, 2*j+1), v, qB+j)
			}
		}
		ins("SUBS $1, R%d, R%d", tap, tap)
		ins("BNE %s", l("tap"))
		qEpilogue(l, n, acc, mode, pc,
			func(field string, r int) {
				ins("MOVD R%d, R%d", map[string]int{"scale": scale, "bias": bias}[field], r)
			},
			func(r int) { ins("ADD R%d, R%d, R%d", cStep, r, r) })
		ins("MOVD R%d, R%d", qPointer+1, pc)
		for range n {
			ins("ADD R%d, R%d, R%d", xStep, px, px)
		}
		ins("SUB $%d, R%d, R%d", n, left, left)
		ins("B %s", l("block"))
	}
	p("")
	p("row:")
	ins("SUBS $16, R%d, R%d", channels, channels)
	ins("BEQ end")
	ins("MOVD $16, R%d", at)
	ins("CMP R%d, R%d", at, channels)
	ins("CSEL LT, R%d, R%d, R%d", channels, at, at)
	ins("ADD R%d, R%d, R%d", at, x, x)
	// Channels left count from the start of the block.
	ins("SUB R%d, R%d, R%d", at, channels, channels)
	ins("ADD $16, R%d, R%d", channels, channels)
	for _, r := range []int{w, init, scale, bias} {
		ins("ADD R%d<<2, R%d, R%d", at, r, r)
	}
	ins("CMP $1, R%d", mode)
	ins("BEQ narrow")
	ins("LSL $2, R%d, R%d", at, at)
	p("")
	p("narrow:")
	ins("ADD R%d, R%d, R%d", at, c, c)
	ins("B channels")
	p("")
	p("end:")
	ins("RET")
}
