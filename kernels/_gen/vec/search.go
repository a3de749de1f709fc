package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
)

// search emits the kernels of range searches, on four float64 lanes.
func search(c *build.Context) {
	g := &gen{Context: c, consts: map[uint32]Mem{}}
	d := &doubles{gen: g, known: map[uint64]Mem{}}
	d.logs()
	d.quantCost("quantCostSquares", "squares")
	d.quantCost("quantCostMagnitudes", "magnitudes")
}

// doubles emits arithmetic on float64 lanes.
type doubles struct {
	*gen
	known map[uint64]Mem
}

// bits returns the memory that holds the bits in all lanes.
func (d *doubles) bits(bits uint64) Mem {
	if m, ok := d.known[bits]; ok {
		return m
	}
	m := d.StaticGlobal(fmt.Sprintf("k%016x", bits))
	d.DataAttributes(attr.RODATA | attr.NOPTR)
	for range 4 {
		d.AppendDatum(U64(bits))
	}
	d.known[bits] = m
	return m
}

func (d *doubles) num(x float64) Mem { return d.bits(math.Float64bits(x)) }

func (d *doubles) broadcast64(name string) V {
	r := d.reg()
	a, err := d.Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	d.VBROADCASTSD(a.Addr, r)
	return r
}

func (d *doubles) loadPD(m Op) V { r := d.reg(); d.VMOVUPD(m, r); return r }

// two returns f(a, b) in the order of the text: a - b, a / b.
func (d *doubles) two(f func(...Op), a V, b Op) V {
	r := d.reg()
	f(b, a, r)
	return r
}

func (d *doubles) logs() {
	d.fn("logs", "func(dst, src *float64, count int)", "is logs; count is a positive multiple of 4.")
	dst, src, count := d.param("dst"), d.param("src"), d.param("count")
	d.each(count, 4, func() {
		d.VMOVUPD(d.log(d.loadPD(Mem{Base: src})), Mem{Base: dst})
	}, stream{dst, 8}, stream{src, 8})
	d.ret()
}

// log returns the natural logarithm of normal positive x; see log64 of package
// kernels, which has the same steps.
func (d *doubles) log(x V) V {
	e := d.reg()
	d.VPSRLQ(U8(52), x, e)
	d.VPOR(d.num(1<<52), e, e)
	d.VSUBPD(d.num(1<<52+1023), e, e)
	m := d.reg()
	d.VANDPD(d.bits(1<<52-1), x, m)
	d.VORPD(d.num(1), m, m)
	large := d.reg()
	d.VCMPPD(U8(14+16), d.num(math.Sqrt2), m, large) // m > √2
	half := d.two(d.VMULPD, m, d.num(0.5))
	d.VBLENDVPD(large, half, m, m)
	up := d.reg()
	d.VANDPD(d.num(1), large, up)
	d.VADDPD(up, e, e)
	f := d.two(d.VSUBPD, m, d.num(1))
	s := d.two(d.VDIVPD, f, d.two(d.VADDPD, f, d.num(2)))
	z := d.two(d.VMULPD, s, s)
	r := d.loadPD(d.num(logTerms[len(logTerms)-1]))
	for i := len(logTerms) - 2; i >= 0; i-- {
		d.VMULPD(z, r, r)
		d.VADDPD(d.num(logTerms[i]), r, r)
	}
	d.VMULPD(z, r, r)
	h := d.two(d.VMULPD, d.two(d.VMULPD, f, f), d.num(0.5))
	// e*hi - ((h - (s*(h+r) + e*lo)) - f)
	t := d.two(d.VMULPD, d.two(d.VADDPD, r, h), s)
	d.VADDPD(d.two(d.VMULPD, e, d.num(ln2Low)), t, t)
	t = d.two(d.VSUBPD, h, t)
	t = d.two(d.VSUBPD, t, f)
	return d.two(d.VSUBPD, d.two(d.VMULPD, e, d.num(ln2High)), t)
}

// The constants of log64.
const (
	ln2High = 6.93147180369123816490e-01
	ln2Low  = 1.90821492927058770002e-10
)

var logTerms = []float64{
	6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01,
	1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01,
}

func (d *doubles) quantCost(name, what string) {
	d.fn(name, "func(sums *[4]float64, x, n *float64, count int, step, lo, hi float64)",
		"is quantCost of "+what+"; count is a positive multiple of 4.")
	sums, x, n, count := d.param("sums"), d.param("x"), d.param("n"), d.param("count")
	step, lo, hi := d.broadcast64("step"), d.broadcast64("lo"), d.broadcast64("hi")
	acc := d.loadPD(Mem{Base: sums})
	abs := d.loadPD(d.bits(1<<63 - 1))
	d.each(count, 4, func() {
		v := d.loadPD(Mem{Base: x})
		q := d.two(d.VDIVPD, v, step)
		d.VROUNDPD(U8(8|nearestEven), q, q)
		d.VMULPD(step, q, q)
		d.VMAXPD(lo, q, q)
		d.VMINPD(hi, q, q)
		d.VSUBPD(q, v, v)
		if what == "squares" {
			d.VMULPD(v, v, v)
		} else {
			d.VANDPD(abs, v, v)
		}
		d.VMULPD(Mem{Base: n}, v, v)
		d.VADDPD(v, acc, acc)
	}, stream{x, 8}, stream{n, 8})
	d.VMOVUPD(acc, Mem{Base: sums})
	d.ret()
}
