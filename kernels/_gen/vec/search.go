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
	d.groupMeans()
	d.crossLogs()
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

func (d *doubles) groupMeans() {
	d.fn("groupMeans", "func(means, weights *[4]float64, counts, filled *float64, groups, width int, less *[4]float64, smooth float64, total *[2][4]float64)",
		"is groupMeans of groups > 0.")
	means, weights := d.param("means"), d.param("weights")
	counts, filled := d.param("counts"), d.param("filled")
	groups, width := d.param("groups"), d.param("width")
	less := d.loadPD(Mem{Base: d.param("less")})
	smooth := d.broadcast64("smooth")
	total := d.param("total")
	bins, one := d.reg(), d.loadPD(d.num(1))
	x := d.XMM()
	d.VXORPD(x, x, x)
	d.VCVTSI2SDQ(width, x, x)
	d.VBROADCASTSD(x, bins)
	d.SHLQ(U8(3), width)
	zero := d.zero()
	sum, some := d.zero(), d.zero()
	c0, k0 := d.loadPD(Mem{Base: counts}), d.loadPD(Mem{Base: filled})
	top := d.label("loop")
	d.Label(top)
	d.ADDQ(width, counts)
	d.ADDQ(width, filled)
	c1, k1 := d.loadPD(Mem{Base: counts}), d.loadPD(Mem{Base: filled})
	c, k := d.two(d.VSUBPD, c1, c0), d.two(d.VSUBPD, k1, k0)
	d.VMOVAPD(c1, c0)
	d.VMOVAPD(k1, k0)
	q := d.two(d.VDIVPD, c, k)
	d.VROUNDPD(U8(8|down), q, q)
	full := d.reg()
	d.VCMPPD(U8(lt), k, zero, full) // 0 < k
	d.VANDPD(full, q, q)
	positive := d.reg()
	d.VCMPPD(U8(lt), q, zero, positive)
	d.VANDPD(one, positive, positive)
	d.VADDPD(q, sum, sum)
	d.VADDPD(positive, some, some)
	d.VMOVUPD(q, Mem{Base: means})
	w := d.two(d.VSUBPD, c, d.two(d.VMULPD, k, less))
	none := d.two(d.VMULPD, d.two(d.VSUBPD, bins, k), smooth)
	d.VADDPD(none, w, w)
	d.VMOVUPD(w, Mem{Base: weights})
	d.ADDQ(U32(32), means)
	d.ADDQ(U32(32), weights)
	d.DECQ(groups)
	d.JNE(LabelRef(top))
	d.VMOVUPD(sum, Mem{Base: total})
	d.VMOVUPD(some, Mem{Base: total, Disp: 32})
	d.ret()
}

func (d *doubles) crossLogs() {
	d.fn("crossLogs", "func(sums *[4]float64, means, weights *[4]float64, groups int, less *[4]float64, smooth float64)",
		"is crossLogs of groups > 0.")
	sums, means, weights := d.param("sums"), d.param("means"), d.param("weights")
	groups := d.param("groups")
	less := d.loadPD(Mem{Base: d.param("less")})
	smooth := d.broadcast64("smooth")
	acc := d.loadPD(Mem{Base: sums})
	top := d.label("loop")
	d.Label(top)
	q := d.loadPD(Mem{Base: means})
	x := d.two(d.VMAXPD, d.two(d.VSUBPD, q, less), smooth)
	l := d.log(x)
	d.VMULPD(Mem{Base: weights}, l, l)
	d.VADDPD(l, acc, acc)
	d.ADDQ(U32(32), means)
	d.ADDQ(U32(32), weights)
	d.DECQ(groups)
	d.JNE(LabelRef(top))
	d.VMOVUPD(acc, Mem{Base: sums})
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
