// Command gemmneon writes the arm64 assembly of the matrix and depthwise kernels
// of package kernels. Instructions that Go's assembler lacks are words.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"os"
)

var out bytes.Buffer

func p(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }

func ins(format string, args ...any) { p("\t"+format, args...) }

// fmla adds the product of vector b and lane of vector a to vector d.
func fmla(d, b, a, lane int) {
	l, h := lane&1, lane>>1
	w := 0x4f801000 | l<<21 | (a>>4)<<20 | (a&15)<<16 | h<<11 | b<<5 | d
	ins("WORD $%#08x // FMLA V%d.S[%d], V%d.S4, V%d.S4", w, a, lane, b, d)
}

// load1 loads one float into lane 0 of vector v from the address in r.
func load1(v, r int) { ins("FMOVS (R%d), F%d", r, v) }

const (
	vecs   = 4  // vectors in a panel of 16 columns
	bFirst = 16 // registers of B and A
	aFirst = 20
)

// tile writes the kernel for some rows at once. R1, R3 and R7 are A, C and
// the rows left; R2 is B, R4 to R6 the steps of A, B and C, R8 the depth and
// R9 whether to add to C.
func tile(rows int) {
	l := func(s string) string { return fmt.Sprintf("%s%d", s, rows) }
	a := func(i int) int { return 10 + i } // R10 to R13
	const b, k, c = 14, 15, 19
	p("")
	p("%s:", l("tile"))
	ins("CMP $%d, R7", rows)
	next := "end"
	if rows > 1 {
		next = "tile1"
	}
	ins("BLT %s", next)
	ins("MOVD R1, R%d", a(0))
	for i := 1; i < rows; i++ {
		ins("ADD R4, R%d, R%d", a(i-1), a(i))
	}
	ins("MOVD R2, R%d", b)
	ins("MOVD R8, R%d", k)
	for i := range rows * vecs {
		ins("VEOR V%d.B16, V%d.B16, V%d.B16", i, i, i)
	}
	step := func(lane int) {
		for j := range vecs {
			ins("FMOVQ %d(R%d), F%d", 16*j, b, bFirst+j)
		}
		ins("ADD R5, R%d, R%d", b, b)
		for i := range rows {
			for j := range vecs {
				fmla(vecs*i+j, bFirst+j, aFirst+i, lane)
			}
		}
	}
	p("")
	p("%s:", l("four"))
	ins("CMP $4, R%d", k)
	ins("BLT %s", l("one"))
	for i := range rows {
		ins("FMOVQ 0(R%d), F%d", a(i), aFirst+i)
		ins("ADD $16, R%d, R%d", a(i), a(i))
	}
	for lane := range 4 {
		step(lane)
	}
	ins("SUB $4, R%d, R%d", k, k)
	ins("B %s", l("four"))
	p("")
	p("%s:", l("one"))
	ins("CBZ R%d, %s", k, l("store"))
	for i := range rows {
		load1(aFirst+i, a(i))
		ins("ADD $4, R%d, R%d", a(i), a(i))
	}
	step(0)
	ins("SUB $1, R%d, R%d", k, k)
	ins("B %s", l("one"))
	p("")
	p("%s:", l("store"))
	ins("CBZ R9, %s", l("summed"))
	ins("MOVD R3, R%d", c)
	for i := range rows {
		for j := range vecs {
			ins("FMOVQ %d(R%d), F%d", 16*j, c, bFirst+j)
			vector3(0x4e20d400, "FADD", vecs*i+j, vecs*i+j, bFirst+j)
		}
		ins("ADD R6, R%d, R%d", c, c)
	}
	p("")
	p("%s:", l("summed"))
	for i := range rows {
		for j := range vecs {
			ins("FMOVQ F%d, %d(R3)", vecs*i+j, 16*j)
		}
		ins("ADD R6, R3, R3")
		ins("ADD R4, R1, R1")
	}
	ins("SUB $%d, R7, R7", rows)
	ins("B %s", l("tile"))
}

// vector3 is a three-operand instruction on four floats: d = op(n, m).
func vector3(op int, name string, d, n, m int) {
	ins("WORD $%#08x // %s V%d.S4, V%d.S4, V%d.S4", op|m<<16|n<<5|d, name, m, n, d)
}

// broadcast loads one float into all lanes of vector v from the address in r.
func broadcast(v, r int) { ins("WORD $%#08x // LD1R (R%d), [V%d.S4]", 0x4d40c800|r<<5|v, r, v) }

// depthwise writes the kernel of depthwise convolutions: the sum over taps of
// a weight times a shifted row.
func depthwise() {
	const (
		x, y, res, w, off, taps, rows, columns, xStep, yStep = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
		left, col, k, pw, po, px, o                          = 11, 12, 13, 14, 15, 19, 20
		weight, value, bias, lo, hi                          = 16, 17, 28, 29, 30
	)
	p("")
	p("// func depthwiseNEON(t *byte)")
	p("TEXT ·depthwiseNEON(SB), NOSPLIT, $0-8")
	ins("MOVD t+0(FP), R0")
	// The offsets of kernels.tapTile; TestTapTileLayout compares them.
	for i, at := range []int{0, 24, 48, 72, 96, 120, 128, 136, 144, 152} {
		ins("MOVD %d(R0), R%d", at, x+i)
	}
	ins("LSL $2, R%d, R%d", xStep, xStep)
	ins("LSL $2, R%d, R%d", yStep, yStep)
	for i, v := range []int{bias, lo, hi} {
		ins("ADD $%d, R0, R%d", 160+4*i, px)
		broadcast(v, px)
	}
	p("")
	p("row:")
	ins("MOVD R%d, R%d", columns, left)
	ins("MOVD $0, R%d", col)
	// Blocks of 16, 4 and 1 columns.
	blocks := []struct {
		vecs, lanes int
		move        string
	}{{4, 4, "FMOVQ"}, {1, 4, "FMOVQ"}, {1, 1, "FMOVS"}}
	for bi, b := range blocks {
		n := b.vecs * b.lanes
		l := func(s string) string { return fmt.Sprintf("%s%d", s, n) }
		next := "rowDone"
		if bi+1 < len(blocks) {
			next = fmt.Sprintf("block%d", blocks[bi+1].vecs*blocks[bi+1].lanes)
		}
		p("")
		p("%s:", l("block"))
		ins("CMP $%d, R%d", n, left)
		ins("BLT %s", next)
		for j := range b.vecs {
			ins("VEOR V%d.B16, V%d.B16, V%d.B16", j, j, j)
		}
		ins("MOVD R%d, R%d", taps, k)
		ins("MOVD R%d, R%d", w, pw)
		ins("MOVD R%d, R%d", off, po)
		p("")
		p("%s:", l("tap"))
		ins("MOVD (R%d), R%d", po, o)
		ins("ADD $8, R%d, R%d", po, po)
		ins("ADD R%d, R%d, R%d", x, col, px)
		ins("ADD R%d<<2, R%d, R%d", o, px, px)
		broadcast(weight, pw)
		ins("ADD $4, R%d, R%d", pw, pw)
		for j := range b.vecs {
			ins("%s %d(R%d), F%d", b.move, 16*j, px, value+j)
			vector3(0x4e20cc00, "FMLA", j, value+j, weight)
		}
		ins("SUBS $1, R%d, R%d", k, k)
		ins("BNE %s", l("tap"))
		for j := range b.vecs {
			vector3(0x4e20d400, "FADD", j, j, bias)
		}
		ins("CBZ R%d, %s", res, l("clamp"))
		ins("ADD R%d, R%d, R%d", res, col, px)
		for j := range b.vecs {
			ins("%s %d(R%d), F%d", b.move, 16*j, px, value+j)
			vector3(0x4e20d400, "FADD", j, j, value+j)
		}
		p("")
		p("%s:", l("clamp"))
		ins("ADD R%d, R%d, R%d", y, col, px)
		for j := range b.vecs {
			// Both keep a NaN.
			vector3(0x4e20f400, "FMAX", j, j, lo)
			vector3(0x4ea0f400, "FMIN", j, j, hi)
			ins("%s F%d, %d(R%d)", b.move, j, 16*j, px)
		}
		ins("ADD $%d, R%d, R%d", 4*n, col, col)
		ins("SUB $%d, R%d, R%d", n, left, left)
		ins("B %s", l("block"))
	}
	p("")
	p("rowDone:")
	ins("ADD R%d, R%d, R%d", xStep, x, x)
	ins("ADD R%d, R%d, R%d", yStep, y, y)
	ins("CBZ R%d, noRes", res)
	ins("ADD R%d, R%d, R%d", yStep, res, res)
	p("")
	p("noRes:")
	ins("SUBS $1, R%d, R%d", rows, rows)
	ins("BNE row")
	ins("RET")
}

func main() {
	file := flag.String("out", "", "assembly file to write")
	flag.Parse()
	p("// Code generated by _gen/gemmneon. DO NOT EDIT.")
	p("")
	p("//go:build !noasm")
	p("")
	p(`#include "textflag.h"`)
	p("")
	p("// func gemmRowsNEON(t *byte)")
	p("TEXT ·gemmRowsNEON(SB), NOSPLIT, $0-8")
	ins("MOVD t+0(FP), R0")
	// The offsets of kernels.gemmTile; TestGemmTileLayout compares them.
	for _, f := range []struct{ off, reg int }{{0, 1}, {24, 2}, {48, 3}, {144, 4}, {152, 5}, {168, 6}, {184, 7}, {200, 8}, {216, 9}} {
		ins("MOVD %d(R0), R%d", f.off, f.reg)
	}
	for r := 4; r <= 6; r++ {
		ins("LSL $2, R%d, R%d", r, r)
	}
	tile(4)
	tile(1)
	p("")
	p("end:")
	ins("RET")
	depthwise()
	qgemmRows(true)
	qgemmRows(false)
	qdepthwise()
	byteSum()
	if err := os.WriteFile(*file, out.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}
}
