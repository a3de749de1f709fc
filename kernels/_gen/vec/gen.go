package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// V is a vector register of the width of the level: ymm or zmm.
type V = reg.VecVirtual

// gen emits one function for one level. Its methods named after arithmetic
// take vector registers or constants (K) and return new registers, so that the
// body of a kernel is written once for both widths.
type gen struct {
	*build.Context
	z      bool  // AVX-512
	n      *neon // arm64, in place of the above
	consts map[uint32]Mem
	labels int
}

// K is a float32 constant in all lanes, KI the same by its bits.
type (
	K  float32
	KI uint32
)

// levels calls f with a generator for AVX2 and one for AVX-512.
func levels(c *build.Context, f func(g *gen)) {
	consts := map[uint32]Mem{}
	f(&gen{Context: c, consts: consts})
	f(&gen{Context: c, consts: consts, z: true})
}

func (g *gen) name(base string) string {
	if g.z {
		return base + "AVX512"
	}
	return base + "AVX2"
}

// fn starts the function base+level with the given signature.
func (g *gen) fn(base, sig, doc string) {
	g.Function(g.name(base))
	g.Attributes(attr.NOSPLIT)
	g.Pragma("noescape")
	g.SignatureExpr(sig)
	g.Doc(g.name(base) + " " + doc)
}

func (g *gen) ret() {
	g.VZEROUPPER()
	g.RET()
}

// lanes is the number of float32 in a register.
func (g *gen) lanes() int {
	if g.z {
		return 16
	}
	return 8
}

func (g *gen) reg() V {
	if g.n != nil {
		return g.n.value()
	}
	if g.z {
		return g.ZMM()
	}
	return g.YMM()
}

func (g *gen) param(name string) reg.Register { return g.Load(g.Param(name), g.GP64()) }

// broadcast loads a 4-byte parameter into all lanes.
func (g *gen) broadcast(name string) V {
	r := g.reg()
	a, err := g.Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	g.VBROADCASTSS(a.Addr, r)
	return r
}

func (g *gen) label(s string) string {
	g.labels++
	return fmt.Sprintf("%s%d", s, g.labels)
}

// konst returns the memory that holds the constant, 32 bytes of it.
func (g *gen) konst(bits uint32) Mem {
	if m, ok := g.consts[bits]; ok {
		return m
	}
	m := g.StaticGlobal(fmt.Sprintf("k%08x", bits))
	g.DataAttributes(attr.RODATA | attr.NOPTR)
	for range 4 {
		g.AppendDatum(U64(uint64(bits)<<32 | uint64(bits)))
	}
	g.consts[bits] = m
	return m
}

// hoist loads a constant into a register.
func (g *gen) hoist(x Op) V {
	if g.n != nil {
		return g.n.hoist(x)
	}
	r := g.reg()
	if bits, ok := bitsOf(x); ok {
		g.VBROADCASTSS(g.konst(bits), r)
	} else {
		g.VMOVAPS(x, r)
	}
	return r
}

// Asm makes K an operand.
func (k K) Asm() string { return fmt.Sprint(float32(k)) }

// Asm makes KI an operand.
func (k KI) Asm() string { return fmt.Sprint(uint32(k)) }

func bitsOf(x Op) (uint32, bool) {
	switch k := x.(type) {
	case K:
		return math.Float32bits(float32(k)), true
	case KI:
		return uint32(k), true
	}
	return 0, false
}

// op emits f(x, more..., r) for a new register r; a constant x becomes a memory
// operand, broadcast (fb) at AVX-512.
func (g *gen) op(f, fb func(...Op), x Op, more ...Op) V {
	r := g.reg()
	g.into(f, fb, x, append(more, r)...)
	return r
}

func (g *gen) into(f, fb func(...Op), x Op, more ...Op) {
	if bits, ok := bitsOf(x); ok {
		x = g.konst(bits)
		if g.z {
			f = fb
		}
	}
	f(append([]Op{x}, more...)...)
}

func (g *gen) add(a V, b Op) V {
	if g.n != nil {
		return g.n.three(fadd, a, b)
	}
	return g.op(g.VADDPS, g.VADDPS_BCST, b, a)
}

func (g *gen) sub(a V, b Op) V {
	if g.n != nil {
		return g.n.three(fsub, a, b)
	}
	return g.op(g.VSUBPS, g.VSUBPS_BCST, b, a)
}

func (g *gen) mul(a V, b Op) V {
	if g.n != nil {
		return g.n.three(fmul, a, b)
	}
	return g.op(g.VMULPS, g.VMULPS_BCST, b, a)
}

func (g *gen) div(a V, b Op) V {
	if g.n != nil {
		return g.n.three(fdiv, a, b)
	}
	return g.op(g.VDIVPS, g.VDIVPS_BCST, b, a)
}

// min and max return b where either is NaN or both are zero.
func (g *gen) min(a V, b Op) V {
	if g.n != nil {
		return g.n.pick(fcmgt, b, a, a, b)
	}
	return g.op(g.VMINPS, g.VMINPS_BCST, b, a)
}

func (g *gen) max(a V, b Op) V {
	if g.n != nil {
		return g.n.pick(fcmgt, a, b, a, b)
	}
	return g.op(g.VMAXPS, g.VMAXPS_BCST, b, a)
}

// Bitwise operations.
func (g *gen) and(a V, b Op) V {
	if g.n != nil {
		return g.n.three(vand, a, b)
	}
	return g.op(g.VANDPS, g.VANDPS_BCST, b, a)
}

func (g *gen) or(a V, b Op) V {
	if g.n != nil {
		return g.n.three(vorr, a, b)
	}
	return g.op(g.VORPS, g.VORPS_BCST, b, a)
}

func (g *gen) xor(a V, b Op) V {
	if g.n != nil {
		return g.n.three(veor, a, b)
	}
	return g.op(g.VXORPS, g.VXORPS_BCST, b, a)
}

func (g *gen) addi(a V, b Op) V {
	if g.n != nil {
		return g.n.three(iadd, a, b)
	}
	return g.op(g.VPADDD, g.VPADDD_BCST, b, a)
}

func (g *gen) subi(a V, b Op) V {
	if g.n != nil {
		return g.n.three(isub, a, b)
	}
	return g.op(g.VPSUBD, g.VPSUBD_BCST, b, a)
}

// fma sets p = p*x + c in place and returns p.
func (g *gen) fma(p, x V, c Op) V {
	if g.n != nil {
		return g.n.fma(p, x, c)
	}
	g.into(g.VFMADD213PS, g.VFMADD213PS_BCST, c, x, p)
	return p
}

// poly returns the polynomial in x with coefficients c, highest first.
func (g *gen) poly(x V, c ...K) V {
	p := g.hoist(c[0])
	for _, k := range c[1:] {
		g.fma(p, x, k)
	}
	return p
}

// Rounding modes of round.
const (
	nearestEven = 0
	down        = 1
	up          = 2
)

func (g *gen) round(a V, mode uint64) V {
	if g.n != nil {
		return g.n.two(map[uint64]int{nearestEven: frintn, down: frintm, up: frintp}[mode], a)
	}
	r := g.reg()
	if g.z {
		g.VRNDSCALEPS(U8(mode), a, r)
	} else {
		g.VROUNDPS(U8(8|mode), a, r)
	}
	return r
}

// toInt rounds half to even to int32.
func (g *gen) toInt(a V) V {
	if g.n != nil {
		return g.n.two(fcvtns, a)
	}
	r := g.reg()
	g.VCVTPS2DQ(a, r)
	return r
}

func (g *gen) fromInt(a V) V {
	if g.n != nil {
		return g.n.two(scvtf, a)
	}
	r := g.reg()
	g.VCVTDQ2PS(a, r)
	return r
}

func (g *gen) sqrt(a V) V {
	if g.n != nil {
		return g.n.two(fsqrt, a)
	}
	r := g.reg()
	g.VSQRTPS(a, r)
	return r
}

// shl, shr and sra shift int32 lanes to the left, to the right with zeros
// and with the sign.
func (g *gen) shl(a V, n uint64) V {
	if g.n != nil {
		return g.n.shift("shl", a, int(n))
	}
	r := g.reg()
	g.VPSLLD(U8(n), a, r)
	return r
}

func (g *gen) shr(a V, n uint64) V {
	if g.n != nil {
		return g.n.shift("shr", a, int(n))
	}
	r := g.reg()
	g.VPSRLD(U8(n), a, r)
	return r
}

func (g *gen) sra(a V, n uint64) V {
	if g.n != nil {
		return g.n.shift("sra", a, int(n))
	}
	r := g.reg()
	g.VPSRAD(U8(n), a, r)
	return r
}

// at returns the memory of vector i after p, of lanes float32 each.
func (g *gen) at(p reg.Register, i int) Mem {
	return Mem{Base: p, Disp: i * g.lanes() * 4}
}

func (g *gen) load(m Mem) V { r := g.reg(); g.VMOVUPS(m, r); return r }

// stream is a pointer that a loop moves by size bytes an element.
type stream struct {
	p    reg.Register
	size int
}

// each emits a loop that runs body while n >= step and moves the streams.
func (g *gen) each(n reg.Register, step int, body func(), s ...stream) {
	top, end := g.label("loop"), g.label("end")
	g.Label(top)
	g.CMPQ(n, U32(uint64(step)))
	g.JL(LabelRef(end))
	body()
	for _, s := range s {
		g.ADDQ(U32(uint64(step*s.size)), s.p)
	}
	g.SUBQ(U32(uint64(step)), n)
	g.JMP(LabelRef(top))
	g.Label(end)
}

// rest emits, at AVX-512, body for the last n < lanes elements with a mask of
// them; n == 0 skips it.
func (g *gen) rest(n reg.Register, body func(k reg.Register)) {
	if !g.z {
		return
	}
	done := g.label("done")
	g.TESTQ(n, n)
	g.JE(LabelRef(done))
	m, k := g.GP32(), g.K()
	g.MOVL(U32(0xffff), m)
	g.BZHIL(n.(reg.GP).As32(), m, m)
	g.KMOVW(m, k)
	body(k)
	g.Label(done)
}

// Predicates of cmp.
const (
	eq = 0  // equal, false for NaN
	lt = 17 // a < b, false for NaN
	ge = 29 // a >= b, false for NaN
	un = 3  // either is NaN
	ne = 4  // a != b, true for NaN
)

// mask is the result of cmp: a K register at AVX-512, else a vector.
type mask = reg.Register

// cmp compares a with b.
func (g *gen) cmp(pred uint64, a V, b Op) mask {
	if g.n != nil {
		return g.n.cmp(pred, a, b)
	}
	var r reg.Register = g.reg()
	if g.z {
		r = g.K()
	}
	g.into(
		func(o ...Op) { g.VCMPPS(append([]Op{U8(pred)}, o...)...) },
		func(o ...Op) { g.VCMPPS_BCST(append([]Op{U8(pred)}, o...)...) },
		b, a, r)
	return r
}

// sel returns a where m is set, else b.
func (g *gen) sel(m mask, a Op, b V) V {
	if g.n != nil {
		return g.n.sel(m, a, b)
	}
	r := g.reg()
	if g.z {
		g.into(g.VBLENDMPS, g.VBLENDMPS_BCST, a, b, m, r)
	} else {
		if bits, ok := bitsOf(a); ok {
			a = g.konst(bits)
		}
		g.VBLENDVPS(m, a, b, r)
	}
	return r
}

// count adds 1 to the int32 lanes of c where m is set.
func (g *gen) count(m mask, c V) {
	if g.z {
		g.VPSUBD_BCST(g.konst(math.MaxUint32), c, m, c)
	} else {
		g.VPSUBD(m, c, c)
	}
}

// zero returns a register of zeros.
func (g *gen) zero() V {
	if g.n != nil {
		return g.n.of(K(0))
	}
	r := g.reg()
	g.VXORPS(r, r, r)
	return r
}

// half returns the upper half of a register of the given width in bytes.
func (g *gen) half(v V, width int) V {
	switch width {
	case 64:
		r := g.YMM()
		g.VEXTRACTF64X4(U8(1), v, r)
		return r
	case 32:
		r := g.XMM()
		g.VEXTRACTF128(U8(1), v.AsY(), r)
		return r
	}
	panic("width")
}

func (g *gen) width() int { return 4 * g.lanes() }

// fold reduces all float32 lanes of v with f, halves first, to the lowest lane.
func (g *gen) fold(f func(...Op), v V) reg.Register {
	for w := g.width(); w > 16; w /= 2 {
		h := g.half(v, w)
		if w == 64 {
			f(v.AsY(), h.AsY(), h.AsY())
		} else {
			f(v.AsX(), h.AsX(), h.AsX())
		}
		v = h
	}
	h := g.XMM()
	g.VPSHUFD(U8(0x4e), v.AsX(), h)
	f(v.AsX(), h, h)
	l := g.XMM()
	g.VPSHUFD(U8(0xb1), h, l)
	f(h, l, l)
	return l
}
