package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// unary is an element-wise function of one tensor. body emits what goes before
// the loop and returns what goes inside. unroll vectors are done at a time.
type unary struct {
	op     string
	unroll int
	body   func(g *gen) func(V) V
}

var unaries = []unary{
	{"Abs", 4, func(g *gen) func(V) V { return func(x V) V { return g.and(x, absMask) } }},
	{"Neg", 4, func(g *gen) func(V) V { return func(x V) V { return g.xor(x, signMask) } }},
	{"Floor", 4, func(g *gen) func(V) V { return func(x V) V { return g.round(x, down) } }},
	{"Ceil", 4, func(g *gen) func(V) V { return func(x V) V { return g.round(x, up) } }},
	{"Round", 4, func(g *gen) func(V) V { return func(x V) V { return g.round(x, nearestEven) } }},
	{"Sqrt", 4, func(g *gen) func(V) V { return g.sqrt }},
	{"Reciprocal", 4, func(g *gen) func(V) V {
		one := g.hoist(K(1))
		return func(x V) V { return g.div(one, x) }
	}},
	{"Relu", 4, func(g *gen) func(V) V {
		zero := g.zero()
		return func(x V) V { return g.max(zero, x) }
	}},
	{"Exp", 1, (*gen).exp},
	{"Log", 1, (*gen).log},
	{"Tanh", 1, (*gen).tanh},
	{"Sigmoid", 1, (*gen).sigmoid},
	{"Erf", 1, (*gen).erf},
	{"Gelu", 1, func(g *gen) func(V) V {
		erf := g.erf()
		return g.gate(func(x V) V { return erf(g.mul(x, K(0.70710677))) })
	}},
	{"GeluTanh", 1, func(g *gen) func(V) V {
		tanh := g.tanhRatio()
		return g.gate(func(x V) V {
			w := g.add(g.mul(g.mul(x, K(0.035677407)), x), K(0.7978846))
			return tanh(g.mul(x, w))
		})
	}},
	{"Silu", 1, func(g *gen) func(V) V {
		sigmoid, low := g.sigmoidRatio(), g.hoist(-maxFloat)
		return func(x V) V {
			x = g.max(low, x)
			return g.mul(x, sigmoid(x))
		}
	}},
	{"HardSwish", 4, func(g *gen) func(V) V {
		low, zero, one := g.hoist(-maxFloat), g.zero(), g.hoist(K(1))
		return func(x V) V {
			x = g.max(low, x)
			h := g.add(g.mul(x, K(1.0/6)), K(0.5))
			return g.mul(x, g.min(one, g.max(zero, h)))
		}
	}},
	{"Softplus", 1, func(g *gen) func(V) V {
		exp, log, one := g.exp(), g.log(), g.hoist(K(1))
		zero := g.zero()
		return func(x V) V {
			t := exp(g.or(x, signMask))
			u := g.add(t, one)
			rest := g.div(g.sub(t, g.sub(u, K(1))), u)
			l := g.add(log(u), rest)
			return g.add(l, g.sel(g.cmp(lt, x, K(0)), zero, x))
		}
	}},
	{"Mish", 1, func(g *gen) func(V) V {
		exp, low, high := g.exp(), g.hoist(-maxFloat), g.hoist(K(20))
		return func(x V) V {
			x = g.max(low, x)
			e := exp(g.min(high, x))
			w := g.mul(e, g.add(e, K(2)))
			return g.mul(x, g.div(w, g.add(w, K(2))))
		}
	}},
	{"SigmoidRatio", 1, (*gen).sigmoidRatio},
	{"TanhRatio", 1, (*gen).tanhRatio},
}

// binaries are the element-wise functions of two tensors.
var binaries = []struct {
	op   string
	body func(g *gen, a, b V) V
}{
	{"Add", func(g *gen, a, b V) V { return g.add(a, b) }},
	{"Sub", func(g *gen, a, b V) V { return g.sub(a, b) }},
	{"Mul", func(g *gen, a, b V) V { return g.mul(a, b) }},
	{"Div", func(g *gen, a, b V) V { return g.div(a, b) }},
	{"Min", func(g *gen, a, b V) V { return g.sel(g.cmp(un, a, a), a, g.min(a, b)) }},
	{"Max", func(g *gen, a, b V) V { return g.sel(g.cmp(un, a, a), a, g.max(a, b)) }},
	{"PRelu", func(g *gen, a, b V) V { return g.sel(g.cmp(lt, a, K(0)), g.mul(a, b), a) }},
}

// forms of a binary: both slices, b a scalar, a a scalar.
var forms = []string{"", "Right", "Left"}

const (
	signMask = KI(1 << 31)
	maxFloat = K(math.MaxFloat32)
	log2e    = K(0x1.715476p+0)
	ln2hi    = K(0x1.62e4p-1)
	ln2lo    = K(0x1.7f7d1cp-20)
	magic    = K(0x1.8p23)
)

func lower(s string) string { return strings.ToLower(s[:1]) + s[1:] }

func vec(c *build.Context) {
	levels(c, func(g *gen) {
		for _, u := range unaries {
			g.fn(lower(u.op), "func(dst, src *float32, n int)", "is Unary of "+u.op+g.multiple(8)+".")
			dst, src, n := g.param("dst"), g.param("src"), g.param("n")
			g.mapRows(u.unroll, n, dst, src, u.body(g))
			g.ret()
		}
		for _, b := range binaries {
			for _, form := range forms {
				g.binary(b.op, form, b.body)
			}
		}
		g.clip()
		g.hardSigmoid()
		g.expLinear()
		g.expSum(true)
		g.expSum(false)
		g.softmax()
		g.normalize()
		g.scaleRows()
	})
}

// mapRows stores f of n float32 of src to dst: unroll vectors at a time, one at
// a time, and at AVX-512 the rest.
func (g *gen) mapRows(unroll int, n, dst, src reg.Register, f func(V) V) {
	steps := []int{unroll, 1}
	if unroll == 1 {
		steps = steps[1:]
	}
	for _, vectors := range steps {
		g.each(n, vectors*g.lanes(), func() {
			for i := range vectors {
				g.VMOVUPS(f(g.load(g.at(src, i))), g.at(dst, i))
			}
		}, stream{src, 4}, stream{dst, 4})
	}
	g.rest(n, func(k reg.Register) {
		g.VMOVUPS(f(g.loadMasked(src, k)), k, Mem{Base: dst})
	})
}

func (g *gen) loadMasked(p, k reg.Register) V {
	v := g.ZMM()
	g.VMOVUPS_Z(Mem{Base: p}, k, v)
	return v
}

func (g *gen) binary(op, form string, f func(g *gen, a, b V) V) {
	what := map[string]string{"": "", "Right": ", b being one element", "Left": ", a being one element"}[form]
	g.fn(lower(op)+form, "func(dst, a, b *float32, n int)", "is Binary of "+op+what+g.multiple(8)+".")
	dst, a, b, n := g.param("dst"), g.param("a"), g.param("b"), g.param("n")
	streams := []stream{{dst, 4}}
	var scalar V
	switch form {
	case "Right":
		scalar = g.reg()
		g.VBROADCASTSS(Mem{Base: b}, scalar)
		streams = append(streams, stream{a, 4})
	case "Left":
		scalar = g.reg()
		g.VBROADCASTSS(Mem{Base: a}, scalar)
		streams = append(streams, stream{b, 4})
	default:
		streams = append(streams, stream{a, 4}, stream{b, 4})
	}
	step := func(load func(p reg.Register) V) V {
		x, y := scalar, scalar
		if form != "Left" {
			x = load(a)
		}
		if form != "Right" {
			y = load(b)
		}
		return f(g, x, y)
	}
	for _, vectors := range []int{4, 1} {
		g.each(n, vectors*g.lanes(), func() {
			for i := range vectors {
				r := step(func(p reg.Register) V { return g.load(g.at(p, i)) })
				g.VMOVUPS(r, g.at(dst, i))
			}
		}, streams...)
	}
	g.rest(n, func(k reg.Register) {
		r := step(func(p reg.Register) V { return g.loadMasked(p, k) })
		g.VMOVUPS(r, k, Mem{Base: dst})
	})
	g.ret()
}

// Coefficients of r^6 to r^2 of e^r.
var (
	expTerms    = []K{0x1.694p-10, 0x1.125edcp-7, 0x1.555b5ap-5, 0x1.55545p-3, 0x1.fffff6p-2}
	erfExpTerms = []K{1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1}
)

// expParts returns p and t with exp(x) = p*2^n, n = t-magic.
func (g *gen) expParts(x V, terms []K) (p, t V) {
	t = g.fma(g.hoist(log2e), x, magic)
	n := g.sub(t, magic)
	r := g.fma(g.hoist(-ln2hi), n, x)
	r = g.fma(g.hoist(-ln2lo), n, r)
	p = g.poly(r, terms...)
	g.fma(p, r, K(1))
	g.fma(p, r, K(1))
	return p, t
}

func (g *gen) exp() func(V) V {
	low, high := g.hoist(K(-104)), g.hoist(K(89))
	return func(x V) V {
		p, t := g.expParts(g.min(high, g.max(low, x)), expTerms)
		if g.z {
			g.VSCALEFPS(g.sub(t, magic), p, p)
			return p
		}
		n := g.subi(t, KI(0x4b400000))
		h := g.sra(n, 1)
		p = g.mul(p, g.shl(g.addi(h, KI(127)), 23))
		return g.mul(p, g.shl(g.addi(g.subi(n, h), KI(127)), 23))
	}
}

// expNormal is exp for results that are normal numbers.
func (g *gen) expNormal(x V, terms []K) V {
	p, t := g.expParts(x, terms)
	return g.addi(p, g.shl(t, 23))
}

func (g *gen) log() func(V) V {
	zero := g.zero()
	return func(x V) V {
		small := g.cmp(lt, x, K(0x1p-126))
		y := g.sel(small, g.mul(x, K(0x1p23)), x)
		i := g.subi(y, KI(0x3f3504f3))
		e := g.fromInt(g.addi(g.sra(i, 23), g.sel(small, KI(0xffffffe9), zero)))
		f := g.sub(g.addi(g.and(i, KI(0x7fffff)), KI(0x3f3504f3)), K(1))
		p := g.poly(f, 0.0674664, -0.11675652, 0.11888162, -0.12405589, 0.14219552, -0.16667996, 0.20002119, -0.2500001, 0.33333313)
		z := g.mul(f, f)
		v := g.fma(g.hoist(ln2lo), e, g.mul(g.mul(f, z), p))
		v = g.fma(g.hoist(K(-0.5)), z, v)
		r := g.fma(g.hoist(ln2hi), e, g.add(f, v))
		r = g.sel(g.cmp(lt, x, infinity), r, x)
		r = g.sel(g.cmp(lt, x, K(0)), KI(0x7fc00000), r)
		return g.sel(g.cmp(eq, x, K(0)), -infinity, r)
	}
}

// sign returns r with the sign bit of x set in it.
func (g *gen) sign(r, x V) V { return g.or(r, g.and(x, signMask)) }

func (g *gen) tanh() func(V) V {
	one, two := g.hoist(K(1)), g.hoist(K(2))
	return func(x V) V {
		a := g.and(x, absMask)
		large := g.cmp(ge, a, K(0.625))
		e := g.expNormal(g.min(g.add(a, a), K(20)), expTerms)
		l := g.sub(one, g.div(two, g.add(e, one)))
		z := g.mul(x, x)
		p := g.poly(z, 0.0021429618, -0.008177398, 0.021700703, -0.053946763, 0.13333206, -0.3333333)
		return g.sign(g.sel(large, l, g.fma(g.mul(p, z), x, x)), x)
	}
}

func (g *gen) sigmoid() func(V) V {
	exp, one := g.exp(), g.hoist(K(1))
	return func(x V) V {
		e := exp(g.or(x, signMask))
		n := g.sel(g.cmp(lt, x, K(0)), e, one)
		return g.div(n, g.add(e, one))
	}
}

func (g *gen) sigmoidRatio() func(V) V {
	low, high, zero, one := g.hoist(K(-18)), g.hoist(K(18)), g.zero(), g.hoist(K(1))
	return func(x V) V {
		x = g.min(high, g.max(low, x))
		z := g.mul(x, x)
		p := g.poly(z, 4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01)
		q := g.poly(z, 6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01, 9.93151921023180e-01)
		return g.min(one, g.max(zero, g.add(g.div(g.mul(p, x), q), K(0.5))))
	}
}

func (g *gen) tanhRatio() func(V) V {
	low, high := g.hoist(K(-9)), g.hoist(K(9))
	return func(x V) V {
		x = g.min(high, g.max(low, x))
		z := g.mul(x, x)
		p := g.poly(z, -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)
		q := g.poly(z, 1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
		return g.div(g.mul(p, x), q)
	}
}

func (g *gen) erf() func(V) V {
	one := g.hoist(K(1))
	return func(x V) V {
		a := g.and(x, absMask)
		large := g.cmp(ge, a, K(0.921875))
		b := g.min(a, K(3.925))
		q := g.poly(b, 1.72948930e-5, -3.83208680e-4, 3.88393435e-3, -2.42545605e-2, 1.06777847e-1, 6.34846687e-1, 1.28717512e-1)
		g.fma(q, b, b)
		l := g.sign(g.sub(one, g.expNormal(g.xor(q, signMask), erfExpTerms)), x)
		z := g.mul(x, x)
		p := g.poly(z, -5.99104969e-4, 4.99339588e-3, -2.67667342e-2, 1.12818025e-1, -3.76124859e-1, 1.28379151e-1)
		return g.sel(large, l, g.fma(p, x, x))
	}
}

// gate returns 0.5*x*(1 + f(x)).
func (g *gen) gate(f func(V) V) func(V) V {
	low := g.hoist(-maxFloat)
	return func(x V) V {
		x = g.max(low, x)
		return g.mul(g.mul(x, K(0.5)), g.add(f(x), K(1)))
	}
}

func (g *gen) clip() {
	g.fn("clip", "func(dst, src *float32, n int, lo, hi float32)", "is Clip"+g.multiple(8)+".")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	lo, hi := g.broadcast("lo"), g.broadcast("hi")
	g.mapRows(4, n, dst, src, func(x V) V { return g.min(hi, g.max(lo, x)) })
	g.ret()
}

func (g *gen) hardSigmoid() {
	g.fn("hardSigmoid", "func(dst, src *float32, n int, alpha, beta float32)", "is HardSigmoid"+g.multiple(8)+".")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	alpha, beta := g.broadcast("alpha"), g.broadcast("beta")
	zero, one := g.zero(), g.hoist(K(1))
	g.mapRows(4, n, dst, src, func(x V) V {
		return g.min(one, g.max(zero, g.add(g.mul(x, alpha), beta)))
	})
	g.ret()
}

// linear emits the function that expLinear32 specifies.
func (g *gen) linear(positive, negative, rate V) func(V) V {
	low, zero := g.hoist(K(-87)), g.zero()
	return func(x V) V {
		y := g.min(zero, g.max(low, g.div(x, rate)))
		t := g.fma(g.hoist(log2e), y, magic)
		n := g.sub(t, magic)
		r := g.fma(g.hoist(-ln2hi), n, y)
		r = g.fma(g.hoist(-ln2lo), n, r)
		p := g.poly(r, 0.00019790242, 0.0013944758, 0.008333498, 0.041666295, 0.16666666, 0.5)
		s := g.shl(g.addi(t, KI(127)), 23)
		m := g.fma(g.mul(r, r), p, r)
		m = g.fma(m, s, g.sub(s, K(1)))
		return g.sel(g.cmp(lt, x, K(0)), g.mul(negative, m), g.mul(positive, x))
	}
}

func (g *gen) expLinear() {
	g.fn("expLinear", "func(dst, src *float32, n int, positive, negative, rate float32)", "is ExpLinear"+g.multiple(8)+".")
	dst, src, n := g.param("dst"), g.param("src"), g.param("n")
	positive, negative, rate := g.broadcast("positive"), g.broadcast("negative"), g.broadcast("rate")
	g.mapRows(1, n, dst, src, g.linear(positive, negative, rate))
	g.ret()
}

// expSum takes exp(src-shift) and adds element i to lane i%16 of the sums.
func (g *gen) expSum(store bool) {
	name, sig, doc := "sumExp", "func(src *float32, n int, shift float32, sums *[16]float32)", "adds exp(src-shift)"
	var dst reg.Register
	if store {
		name, sig, doc = "expSum", "func(dst, src *float32, n int, shift float32, sums *[16]float32)", "stores and adds exp(src-shift)"
	}
	g.fn(name, sig, doc+", element i to lane i%16 of sums"+g.multiple(16)+".")
	streams := []stream{}
	if store {
		dst = g.param("dst")
		streams = append(streams, stream{dst, 4})
	}
	src, n, out := g.param("src"), g.param("n"), g.param("sums")
	streams = append(streams, stream{src, 4})
	shift, exp := g.broadcast("shift"), g.exp()
	s := make([]V, 16/g.lanes())
	for j := range s {
		s[j] = g.load(g.at(out, j))
	}
	g.each(n, 16, func() {
		for i := range 16 / g.lanes() {
			e := exp(g.sub(g.load(g.at(src, i)), shift))
			if store {
				g.VMOVUPS(e, g.at(dst, i))
			}
			g.VADDPS(e, s[i], s[i])
		}
	}, streams...)
	g.rest(n, func(k reg.Register) {
		e := exp(g.sub(g.loadMasked(src, k), shift))
		if store {
			g.VMOVUPS(e, k, Mem{Base: dst})
		}
		g.VMOVAPS_Z(e, k, e)
		g.VADDPS(e, s[0], s[0])
	})
	for j, r := range s {
		g.VMOVUPS(r, g.at(out, j))
	}
	g.ret()
}

// softmax emits Softmax of whole rows, at AVX-512 only.
func (g *gen) softmax() {
	if !g.z {
		return
	}
	g.fn("softmaxRows", "func(dst, src *float32, rows, n int)", "is Softmax of each of the rows of n elements; both numbers are at least 1.")
	dst, src, rows, n := g.param("dst"), g.param("src"), g.param("rows"), g.param("n")
	exp, one, lowest := g.exp(), g.hoist(K(1)), g.hoist(-infinity)
	// whole runs over the full vectors of a row, then part with a mask of what is left.
	whole := func(full func(), part func(k reg.Register), p ...reg.Register) {
		left := g.GP64()
		g.MOVQ(n, left)
		var streams []stream
		for _, r := range p {
			streams = append(streams, stream{r, 4})
		}
		g.each(left, 16, full, streams...)
		g.rest(left, part)
	}
	pointers := func() (q, p reg.Register) {
		q, p = g.GP64(), g.GP64()
		g.MOVQ(dst, q)
		g.MOVQ(src, p)
		return q, p
	}
	top := g.label("row")
	g.Label(top)

	_, p := pointers()
	high := g.reg()
	g.VMOVAPS(lowest, high)
	whole(func() { g.VMAXPS(Mem{Base: p}, high, high) }, func(k reg.Register) {
		g.VMAXPS(Mem{Base: p}, high, k, high)
	}, p)
	shift := g.reg()
	g.VBROADCASTSS(g.fold(g.VMAXPS, high), shift)

	q, p := pointers()
	sum := g.zero()
	whole(func() {
		e := exp(g.sub(g.load(Mem{Base: p}), shift))
		g.VMOVUPS(e, Mem{Base: q})
		g.VADDPS(e, sum, sum)
	}, func(k reg.Register) {
		e := exp(g.sub(g.loadMasked(p, k), shift))
		g.VMOVUPS(e, k, Mem{Base: q})
		g.VADDPS(e, sum, k, sum)
	}, p, q)
	a, t := g.half(sum, 64), g.YMM()
	g.VADDPS(a, sum.AsY(), a)
	g.VMOVSHDUP(a, t)
	g.VADDPS(t, a, a)
	g.VPERMILPD(U8(5), a, t)
	g.VADDPS(t, a, a)
	x := g.half(a, 32)
	g.VADDSS(x, a.AsX(), x)
	g.VDIVSS(x, one.AsX(), x)
	inverse := g.reg()
	g.VBROADCASTSS(x, inverse)

	q, _ = pointers()
	whole(func() {
		g.VMOVUPS(g.mul(inverse, Mem{Base: q}), Mem{Base: q})
	}, func(k reg.Register) {
		g.VMOVUPS(g.mul(g.loadMasked(q, k), inverse), k, Mem{Base: q})
	}, q)

	g.LEAQ(Mem{Base: src, Index: n, Scale: 4}, src)
	g.LEAQ(Mem{Base: dst, Index: n, Scale: 4}, dst)
	g.DECQ(rows)
	g.JNE(LabelRef(top))
	g.ret()
}

func (g *gen) normalize() {
	g.fn("normalize", "func(dst, src, gamma, beta *float32, n int, mean, inverse float32)",
		"stores (src-mean)*inverse*gamma + beta, the last two operations rounded once"+g.multiple(8)+".")
	dst, src, gamma, beta, n := g.param("dst"), g.param("src"), g.param("gamma"), g.param("beta"), g.param("n")
	mean, inverse := g.broadcast("mean"), g.broadcast("inverse")
	f := func(x, w, b V) V { return g.fma(g.mul(g.sub(x, mean), inverse), w, b) }
	g.each(n, g.lanes(), func() {
		g.VMOVUPS(f(g.load(Mem{Base: src}), g.load(Mem{Base: gamma}), g.load(Mem{Base: beta})), Mem{Base: dst})
	}, stream{dst, 4}, stream{src, 4}, stream{gamma, 4}, stream{beta, 4})
	g.rest(n, func(k reg.Register) {
		g.VMOVUPS(f(g.loadMasked(src, k), g.loadMasked(gamma, k), g.loadMasked(beta, k)), k, Mem{Base: dst})
	})
	g.ret()
}

func (g *gen) scaleRows() {
	g.fn("scaleBy", "func(dst, src, gamma *float32, n int, inverse float32)",
		"stores src*inverse*gamma"+g.multiple(8)+".")
	dst, src, gamma, n := g.param("dst"), g.param("src"), g.param("gamma"), g.param("n")
	inverse := g.broadcast("inverse")
	g.each(n, g.lanes(), func() {
		g.VMOVUPS(g.mul(g.mul(g.load(Mem{Base: src}), inverse), g.load(Mem{Base: gamma})), Mem{Base: dst})
	}, stream{dst, 4}, stream{src, 4}, stream{gamma, 4})
	g.rest(n, func(k reg.Register) {
		g.VMOVUPS(g.mul(g.mul(g.loadMasked(src, k), inverse), g.loadMasked(gamma, k)), k, Mem{Base: dst})
	})
	g.ret()
}

// dispatch returns the Go file that chooses the form for an operator and level.
func dispatch() string {
	var b strings.Builder
	b.WriteString("// Code generated by _gen/vec. DO NOT EDIT.\n\n//go:build !noasm\n\npackage kernels\n")
	choose := func(name, sig, args, key string, multiple int, cases []string, base func(string) string) {
		fmt.Fprintf(&b, "\nfunc %s(%s) int {\nswitch level {\ncase Generic:\nreturn 0\n", name, sig)
		for _, l := range []string{"AVX2", "AVX512"} {
			if l == "AVX2" {
				fmt.Fprintf(&b, "case AVX2:\nn &^= %d\n", multiple-1)
			} else {
				b.WriteString("default:\n")
			}
			if cases == nil {
				fmt.Fprintf(&b, "%s%s(%s)\n", base(""), l, args)
				continue
			}
			fmt.Fprintf(&b, "switch %s {\n", key)
			for _, c := range cases {
				fmt.Fprintf(&b, "case %s:\n%s%s(%s)\n", c, base(c), l, args)
			}
			b.WriteString("default:\nreturn 0\n}\n")
		}
		b.WriteString("}\nreturn n\n}\n")
	}
	var ops []string
	for _, u := range unaries {
		ops = append(ops, u.op)
	}
	choose("unaryVec", "op UnaryOp, dst, src *float32, n int", "dst, src, n", "op", 8, ops, lower)
	ops = nil
	for _, o := range binaries {
		ops = append(ops, o.op)
	}
	for _, form := range forms {
		choose("binary"+form+"Vec", "op BinaryOp, dst, a, b *float32, n int", "dst, a, b, n", "op", 8, ops,
			func(op string) string { return lower(op) + form })
	}
	for _, f := range []struct {
		base, sig, args string
		multiple        int
	}{
		{"clip", "dst, src *float32, n int, lo, hi float32", "dst, src, n, lo, hi", 8},
		{"hardSigmoid", "dst, src *float32, n int, alpha, beta float32", "dst, src, n, alpha, beta", 8},
		{"expLinear", "dst, src *float32, n int, positive, negative, rate float32", "dst, src, n, positive, negative, rate", 8},
		{"expSum", "dst, src *float32, n int, shift float32, sums *[16]float32", "dst, src, n, shift, sums", 16},
		{"sumExp", "src *float32, n int, shift float32, sums *[16]float32", "src, n, shift, sums", 16},
		{"normalize", "dst, src, gamma, beta *float32, n int, mean, inverse float32", "dst, src, gamma, beta, n, mean, inverse", 8},
		{"scaleBy", "dst, src, gamma *float32, n int, inverse float32", "dst, src, gamma, n, inverse", 8},
	} {
		choose(f.base+"Vec", f.sig, f.args, "", f.multiple, nil, func(string) string { return f.base })
	}
	return b.String()
}
