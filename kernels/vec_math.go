package kernels

import "math"

// The functions below are the specification of the vector forms, operation by
// operation: each fma is one rounding, and all else rounds after every
// operation. The polynomials are minimax fits of relative error below 2^-27. The
// exponential, the error function and what is made of them (Gelu, Softmax) have
// the coefficients and the order of operations of ONNX Runtime's CPU kernels, so
// that a value next to a border of two codes falls on the same side.

const (
	log2e = 0x1.715476p+0
	ln2hi = 0x1.62e4p-1 // times an integer of 8 bits exact
	ln2lo = 0x1.7f7d1cp-20
	magic = 0x1.8p23 // adding it rounds to an integer, held in the low bits
)

// FMA returns x·y + z rounded once.
func FMA(x, y, z float32) float32 { return fma(x, y, z) }

// fma is FMA.
func fma(x, y, z float32) float32 {
	p := float64(x) * float64(y) // exact
	s := p + float64(z)
	// Where s lies half way between two float32 and is itself rounded, its
	// error decides.
	if b := math.Float64bits(s); b&(1<<29-1) == 1<<28 {
		t := s - p
		if e := (p - (s - t)) + (float64(z) - t); e != 0 {
			if (e > 0) == (s > 0) {
				b++
			} else {
				b--
			}
			s = math.Float64frombits(b)
		}
	}
	return float32(s)
}

// expSeries are the coefficients of r^6 to r^2 of e^r.
type expSeries [5]float32

var (
	expTerms    = expSeries{0x1.694p-10, 0x1.125edcp-7, 0x1.555b5ap-5, 0x1.55545p-3, 0x1.fffff6p-2}
	erfExpTerms = expSeries{1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1}
)

// expParts returns p in [0.7, 1.42] and the bits of magic+n, exp(x) = p*2^n,
// for |x| <= 104.
func expParts(x float32, c *expSeries) (float32, uint32) {
	t := fma(x, log2e, magic)
	n := t - magic
	r := fma(n, -ln2lo, fma(n, -ln2hi, x))
	p := fma(fma(fma(fma(c[0], r, c[1]), r, c[2]), r, c[3]), r, c[4])
	return fma(fma(p, r, 1), r, 1), math.Float32bits(t)
}

func exp32(x float32) float32 {
	if -104 > x {
		x = -104
	}
	if 89 < x {
		x = 89
	}
	p, t := expParts(x, &expTerms)
	n := int32(t) - 0x4b400000
	h := n >> 1
	p *= math.Float32frombits(uint32(h+127) << 23)
	return float32(p * math.Float32frombits(uint32(n-h+127)<<23))
}

// expNormal is exp32 for results between 2^-126 and 2^127.
func expNormal(x float32, c *expSeries) float32 {
	p, t := expParts(x, c)
	return math.Float32frombits(math.Float32bits(p) + t<<23)
}

func log32(x float32) float32 {
	switch {
	case x == 0:
		return float32(math.Inf(-1))
	case x < 0:
		return float32(math.NaN())
	case !(x <= math.MaxFloat32):
		return x
	}
	exponent := int32(0)
	if x < 0x1p-126 {
		x *= 0x1p23
		exponent = -23
	}
	const sqrtHalf = 0x3f3504f3
	i := int32(math.Float32bits(x)) - sqrtHalf
	e := float32(i>>23 + exponent)
	f := math.Float32frombits(uint32(i&0x7fffff)+sqrtHalf) - 1
	p := float32(0.0674664)
	for _, c := range [...]float32{-0.11675652, 0.11888162, -0.12405589, 0.14219552, -0.16667996, 0.20002119, -0.2500001, 0.33333313} {
		p = fma(p, f, c)
	}
	z := float32(f * f)
	y := fma(e, ln2lo, float32(float32(f*z)*p))
	y = fma(-0.5, z, y)
	return fma(e, ln2hi, float32(f+y))
}

// softplus32 is max(x, 0) + log(1+t), t = e^-|x|; t-(u-1) is what rounding took
// from u = 1+t.
func softplus32(x float32) float32 {
	t := exp32(-abs32(x))
	u := float32(1 + t)
	l := float32(log32(u) + float32(float32(t-float32(u-1))/u))
	if x < 0 {
		return l
	}
	return float32(x + l)
}

// mish32 is x*tanh(softplus(x)) = x*w/(w+2), w = e^x*(e^x+2).
func mish32(x float32) float32 {
	x = lowest(x)
	e := x
	if 20 < e {
		e = 20
	}
	e = exp32(e)
	w := float32(e * float32(e+2))
	return float32(x * float32(w/float32(w+2)))
}

// expm1Negative returns e^x-1 for x <= 0, and for others the value at 0.
func expm1Negative(x float32) float32 {
	if -87 > x {
		x = -87
	}
	if 0 < x {
		x = 0
	}
	t := fma(x, log2e, magic)
	n := t - magic
	r := fma(n, -ln2lo, fma(n, -ln2hi, x))
	p := fma(fma(fma(fma(fma(0.00019790242, r, 0.0013944758), r, 0.008333498), r, 0.041666295), r, 0.16666666), r, 0.5)
	s := math.Float32frombits((math.Float32bits(t) + 127) << 23)
	return fma(s, fma(float32(r*r), p, r), float32(s-1))
}

func expLinear32(x, positive, negative, rate float32) float32 {
	if x < 0 {
		return float32(negative * expm1Negative(float32(x/rate)))
	}
	return float32(positive * x)
}

func tanh32(x float32) float32 {
	a := abs32(x)
	if a >= 0.625 {
		a = float32(a + a)
		if 20 < a {
			a = 20
		}
		return copysign32(float32(1-float32(2/float32(expNormal(a, &expTerms)+1))), x)
	}
	z := float32(x * x)
	p := fma(fma(fma(fma(fma(0.0021429618, z, -0.008177398), z, 0.021700703), z, -0.053946763), z, 0.13333206), z, -0.3333333)
	return copysign32(fma(float32(p*z), x, x), x)
}

func sigmoid32(x float32) float32 {
	e := exp32(-abs32(x))
	n := float32(1)
	if x < 0 {
		n = e
	}
	return float32(n / float32(1+e))
}

// horner returns the polynomial in z with coefficients c, highest first.
func horner(z float32, c ...float32) float32 {
	p := c[0]
	for _, k := range c[1:] {
		p = fma(p, z, k)
	}
	return p
}

func sigmoidRatio32(x float32) float32 {
	x = clip32(x, -18, 18)
	z := float32(x * x)
	p := float32(horner(z, 4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01) * x)
	q := horner(z, 6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01, 9.93151921023180e-01)
	return clip32(float32(p/q)+0.5, 0, 1)
}

func tanhRatio32(x float32) float32 {
	x = clip32(x, -9, 9)
	z := float32(x * x)
	p := float32(horner(z, -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03) * x)
	q := horner(z, 1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
	return p / q
}

func erf32(x float32) float32 {
	a := abs32(x)
	if a >= 0.921875 {
		if 3.925 < a {
			a = 3.925
		}
		p := float32(1.72948930e-5)
		for _, c := range [...]float32{-3.83208680e-4, 3.88393435e-3, -2.42545605e-2, 1.06777847e-1, 6.34846687e-1, 1.28717512e-1} {
			p = fma(p, a, c)
		}
		return copysign32(float32(1-expNormal(-fma(p, a, a), &erfExpTerms)), x)
	}
	z := float32(x * x)
	p := float32(-5.99104969e-4)
	for _, c := range [...]float32{4.99339588e-3, -2.67667342e-2, 1.12818025e-1, -3.76124859e-1, 1.28379151e-1} {
		p = fma(p, z, c)
	}
	return fma(p, x, x)
}

// lowest returns x, with the lowest finite number for -Inf.
func lowest(x float32) float32 {
	if -math.MaxFloat32 > x {
		return -math.MaxFloat32
	}
	return x
}

func gelu32(x float32) float32 {
	x = lowest(x)
	return float32(float32(0.5*x) * float32(1+erf32(float32(x*0.70710677))))
}

func geluTanh32(x float32) float32 {
	x = lowest(x)
	u := float32(x * float32(float32(float32(0.035677407*x)*x)+0.7978846))
	return float32(float32(0.5*x) * float32(1+tanhRatio32(u)))
}

func silu32(x float32) float32 {
	x = lowest(x)
	return float32(x * sigmoidRatio32(x))
}

func hardSigmoid32(x, alpha, beta float32) float32 {
	return clip32(float32(float32(x*alpha)+beta), 0, 1)
}

func hardSwish32(x float32) float32 {
	x = lowest(x)
	return float32(x * hardSigmoid32(x, 1.0/6, 0.5))
}

// clip32 returns NaN for NaN.
func clip32(x, lo, hi float32) float32 {
	if lo > x {
		x = lo
	}
	if hi < x {
		x = hi
	}
	return x
}

func abs32(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ (1 << 31)) }

func copysign32(x, sign float32) float32 {
	return math.Float32frombits(math.Float32bits(x) | math.Float32bits(sign)&(1<<31))
}
