package kernels

import "math"

// UnaryOp is an element-wise function of one tensor.
type UnaryOp uint8

// The functions of Unary. The exponential, the logarithm, the hyperbolic
// tangent and the error function are within 1 ulp of the correctly rounded
// float32 and the logistic function within 2, for all arguments. SigmoidRatio
// and TanhRatio are ONNX Runtime's forms, ratios of polynomials of which the
// absolute error is below 1e-7; GeluTanh and Silu are made of them.
const (
	Abs          UnaryOp = iota
	Neg                  // -x
	Floor                // greatest integer not above x
	Ceil                 // least integer not below x
	Round                // nearest integer, half to even
	Sqrt                 // square root, NaN below 0
	Reciprocal           // 1/x
	Relu                 // max(x, 0), NaN for NaN
	Exp                  // e^x
	Log                  // natural logarithm, NaN below 0
	Tanh                 // hyperbolic tangent
	Sigmoid              // 1/(1+e^-x)
	Erf                  // error function
	Gelu                 // x/2*(1+erf(x/sqrt(2)))
	GeluTanh             // x/2*(1+tanh(sqrt(2/pi)*(x+0.044715x^3)))
	Silu                 // x/(1+e^-x)
	HardSwish            // x*max(0, min(1, x/6+1/2))
	Softplus             // log(1+e^x)
	Mish                 // x*tanh(Softplus(x))
	SigmoidRatio         // 1/(1+e^-x), 0 below -18
	TanhRatio            // hyperbolic tangent
	unaryOps
)

// BinaryOp is an element-wise function of two tensors.
type BinaryOp uint8

// The functions of Binary. Min and Max are NaN where a or b is.
const (
	Add   BinaryOp = iota
	Sub            // a-b
	Mul            // a*b
	Div            // a/b
	Min            // the lesser
	Max            // the greater
	PRelu          // a, or a*b where a < 0
	binaryOps
)

// Unary stores op of the elements of src in dst, the same bits at every level.
// The gated functions (Gelu, GeluTanh, Silu, HardSwish, Mish) give their limit 0 for
// -Inf. dst is at least as long as src and may be src.
func Unary(op UnaryOp, dst, src []float32) {
	dst = dst[:len(src)]
	n := unaryVec(op, ptr(dst), ptr(src), len(src))
	dst, src = dst[n:], src[n:]
	if level != Generic && len(src) > 0 {
		var buf [8]float32
		copy(buf[:], src)
		unaryVec(op, &buf[0], &buf[0], len(buf)) // all of it, at every level
		copy(dst, buf[:])
		return
	}
	f := unaryTwins[op]
	for i, x := range src {
		dst[i] = f(x)
	}
}

var unaryTwins = [unaryOps]func(float32) float32{
	Abs:        abs32,
	Neg:        func(x float32) float32 { return math.Float32frombits(math.Float32bits(x) ^ 1<<31) },
	Floor:      func(x float32) float32 { return float32(math.Floor(float64(x))) },
	Ceil:       func(x float32) float32 { return float32(math.Ceil(float64(x))) },
	Round:      func(x float32) float32 { return float32(math.RoundToEven(float64(x))) },
	Sqrt:       func(x float32) float32 { return float32(math.Sqrt(float64(x))) },
	Reciprocal: func(x float32) float32 { return 1 / x },
	Relu: func(x float32) float32 {
		if 0 > x {
			return 0
		}
		return x
	},
	Exp: exp32, Log: log32, Tanh: tanh32, Sigmoid: sigmoid32, Erf: erf32,
	Gelu: gelu32, GeluTanh: geluTanh32, Silu: silu32, HardSwish: hardSwish32,
	Softplus: softplus32, Mish: mish32, SigmoidRatio: sigmoidRatio32, TanhRatio: tanhRatio32,
}

// Binary stores op of the elements of a and b in dst, the same bits at every
// level. a and b have len(dst) elements, or one of them has one element, which
// stands for all. dst may be a or b.
func Binary(op BinaryOp, dst, a, b []float32) {
	n, l := 0, len(dst)
	f := binaryTwins[op]
	switch {
	case len(b) == 1:
		a, y := a[:l], b[0]
		n = binaryRightVec(op, ptr(dst), ptr(a), &y, l)
		for i := n; i < l; i++ {
			dst[i] = f(a[i], y)
		}
	case len(a) == 1:
		b, x := b[:l], a[0]
		n = binaryLeftVec(op, ptr(dst), &x, ptr(b), l)
		for i := n; i < l; i++ {
			dst[i] = f(x, b[i])
		}
	default:
		a, b := a[:l], b[:l]
		n = binaryVec(op, ptr(dst), ptr(a), ptr(b), l)
		for i := n; i < l; i++ {
			dst[i] = f(a[i], b[i])
		}
	}
}

var binaryTwins = [binaryOps]func(a, b float32) float32{
	Add: func(a, b float32) float32 { return a + b },
	Sub: func(a, b float32) float32 { return a - b },
	Mul: func(a, b float32) float32 { return a * b },
	Div: func(a, b float32) float32 { return a / b },
	Min: func(a, b float32) float32 {
		if a != a || a < b {
			return a
		}
		return b
	},
	Max: func(a, b float32) float32 {
		if a != a || a > b {
			return a
		}
		return b
	},
	PRelu: func(a, b float32) float32 {
		if a < 0 {
			return a * b
		}
		return a
	},
}

// Swish stores x/(1+e^-(alpha*x)), with SigmoidRatio, for the elements of src,
// and its limit 0 where x is infinite and the denominator too.
// dst is at least as long as src and may be src.
func Swish(dst, src []float32, alpha float32) {
	if alpha == 1 {
		Unary(Silu, dst, src)
		return
	}
	factor := []float32{alpha}
	low, high := float32(-math.MaxFloat32), float32(math.Inf(1))
	if alpha < 0 {
		low, high = -high, -low
	}
	var buf [256]float32
	for len(src) > 0 {
		n := min(len(src), len(buf))
		Binary(Mul, buf[:n], src[:n], factor)
		Unary(SigmoidRatio, buf[:n], buf[:n])
		Clip(dst[:n], src[:n], low, high)
		Binary(Mul, dst[:n], dst[:n], buf[:n])
		dst, src = dst[n:], src[n:]
	}
}

// LeakyRelu stores x, or alpha*x where x < 0, for the elements of src. dst is at
// least as long as src and may be src.
func LeakyRelu(dst, src []float32, alpha float32) {
	Binary(PRelu, dst[:len(src)], src, []float32{alpha})
}

// Clip stores min(hi, max(lo, x)), and NaN for NaN, for the elements of src. dst
// is at least as long as src and may be src.
func Clip(dst, src []float32, lo, hi float32) {
	dst = dst[:len(src)]
	n := clipVec(ptr(dst), ptr(src), len(src), lo, hi)
	dst = dst[n:]
	for i, x := range src[n:] {
		dst[i] = clip32(x, lo, hi)
	}
}

// HardSigmoid stores max(0, min(1, alpha*x+beta)), and NaN for NaN, for the
// elements of src. dst is at least as long as src and may be src.
func HardSigmoid(dst, src []float32, alpha, beta float32) {
	dst = dst[:len(src)]
	n := hardSigmoidVec(ptr(dst), ptr(src), len(src), alpha, beta)
	dst = dst[n:]
	for i, x := range src[n:] {
		dst[i] = hardSigmoid32(x, alpha, beta)
	}
}

// ExpLinear stores positive*x, or negative*(e^(x/rate)-1) where x < 0, for the
// elements of src: Elu is (1, alpha, 1), Selu (gamma, gamma*alpha, 1) and Celu
// (1, alpha, alpha) with alpha > 0. dst is at least as long as src and may be
// src.
func ExpLinear(dst, src []float32, positive, negative, rate float32) {
	dst = dst[:len(src)]
	n := expLinearVec(ptr(dst), ptr(src), len(src), positive, negative, rate)
	dst = dst[n:]
	for i, x := range src[n:] {
		dst[i] = expLinear32(x, positive, negative, rate)
	}
}

// ReduceSum returns the sum of src, as Moments adds it up.
func ReduceSum(src []float32) float64 {
	var s [16]float64
	n := sumsVec(ptr(src), len(src), &s)
	for i, x := range src[n:] {
		s[i%16] += float64(x)
	}
	return foldLanes(&s)
}

// LineSum returns the float32 sum of src, which begins offset elements behind a
// border of 16 bytes, in the order in which ONNX Runtime adds a line: vectors of
// four elements at such borders go to two sums in turn, which are added, and a
// last odd vector to that; then its lanes 0 and 2, 1 and 3, and these; then what
// is before the first and behind the last vector, one by one.
func LineSum(src []float32, offset int) float32 {
	head := src[:min(-offset&3, len(src))]
	src = src[len(head):]
	if len(src) < 4 {
		var s float32
		if len(head) > 0 {
			s, head = head[0], head[1:]
		} else if len(src) > 0 {
			s, src = src[0], src[1:]
		}
		return sumOn(sumOn(s, head), src)
	}
	var l [8]float32
	n := len(src) &^ 7
	for i, x := range src[laneSumsVec(ptr(src), n, &l):n] {
		l[i%8] += x
	}
	for j := range 4 {
		l[j] += l[j+4]
		if len(src)&4 != 0 {
			l[j] += src[n+j]
		}
	}
	n = len(src) &^ 3
	return sumOn(sumOn((l[0]+l[2])+(l[1]+l[3]), head), src[n:])
}

func sumOn(s float32, src []float32) float32 {
	for _, x := range src {
		s += x
	}
	return s
}

// squares returns the sum of the squares of src-mean in float32: of eight lanes
// for what fills them, which are added in pairs j and j+4, then j+2, j+1, and of
// the rest one by one. A square is added with one rounding, except for the first
// four of a rest of four or more.
func squares(src []float32, mean float32) float32 {
	var l [8]float32
	n := len(src) &^ 7
	done := laneSquaresVec(ptr(src), n, mean, &l)
	for i, x := range src[done:n] {
		d := x - mean
		l[i%8] = fma(d, d, l[i%8])
	}
	s := ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
	if src = src[n:]; len(src) >= 4 {
		for _, x := range src[:4] {
			d := x - mean
			s += float32(d * d)
		}
		src = src[4:]
	}
	for _, x := range src {
		d := x - mean
		s = fma(d, d, s)
	}
	return s
}

// ReduceSumSquares returns the sum of the squares of src, as Moments adds it up.
func ReduceSumSquares(src []float32) float64 {
	_, squares, _ := Moments(src)
	return squares
}

// ReduceMin returns the least element of src, NaN where one is NaN, and +Inf for
// none. A zero has no sign.
func ReduceMin(src []float32) float32 {
	low, _ := reduceMinMax(src)
	return low
}

// ReduceMax returns the greatest element of src, NaN where one is NaN, and -Inf
// for none. A zero has no sign.
func ReduceMax(src []float32) float32 {
	_, high := reduceMinMax(src)
	return high
}

func reduceMinMax(src []float32) (low, high float32) {
	e := MinMax(src)
	if e.NaN > 0 {
		nan := float32(math.NaN())
		return nan, nan
	}
	if e.Inf > 0 {
		for _, x := range src {
			if x < e.Min {
				e.Min = x
			}
			if x > e.Max {
				e.Max = x
			}
		}
	}
	return e.Min, e.Max
}

// Softmax stores exp(x-max) * (1/sum(exp(x-max))) for the elements of the row
// src. Element i of the sum goes to lane i%16 of float32 sums, which are added in
// pairs j and j+8, then j+1, j+2, j+4. dst is at least as long as src and may be
// src.
func Softmax(dst, src []float32) {
	dst = dst[:len(src)]
	if len(src) > 0 && softmaxRowsVec(ptr(dst), ptr(src), 1, len(src)) {
		return
	}
	shift := ReduceMax(src)
	var sums [16]float32
	n := expSumVec(ptr(dst), ptr(src), len(src), shift, &sums)
	if level != Generic && n < len(src) {
		buf := padded(src[n:])
		expSumVec(&buf[0], &buf[0], len(buf), shift, &sums)
		copy(dst[n:], buf[:])
		n = len(src)
	}
	tail := dst[n:]
	for i, x := range src[n:] {
		e := exp32(x - shift)
		tail[i] = e
		sums[i%16] += e
	}
	Binary(Mul, dst, dst, []float32{1 / foldExp(&sums)})
}

// SoftmaxRows stores Softmax of each of the rows of n elements of src, whose
// length is a multiple of n. dst is at least as long as src and may be src.
func SoftmaxRows(dst, src []float32, n int) {
	dst = dst[:len(src)]
	if len(src) > 0 && softmaxRowsVec(ptr(dst), ptr(src), len(src)/n, n) {
		return
	}
	for i := 0; i < len(src); i += n {
		Softmax(dst[i:i+n], src[i:i+n])
	}
}

// foldExp adds lanes j and j+8, then j+1, j+2, j+4.
func foldExp(s *[16]float32) float32 {
	var a [8]float32
	for j := range a {
		a[j] = s[j] + s[j+8]
	}
	return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]))
}

// padded returns src, of at most 16 elements, followed by -Inf.
func padded(src []float32) (buf [16]float32) {
	for i := copy(buf[:], src); i < len(buf); i++ {
		buf[i] = float32(math.Inf(-1))
	}
	return buf
}

// LogSoftmax stores x - max - log(sum(exp(x-max))) for the elements of the row
// src, the sum being that of Softmax. dst is at least as long as src and may be
// src.
func LogSoftmax(dst, src []float32) {
	dst = dst[:len(src)]
	shift := ReduceMax(src)
	var sums [16]float32
	n := sumExpVec(ptr(src), len(src), shift, &sums)
	if level != Generic && n < len(src) {
		buf := padded(src[n:])
		n = len(src)
		sumExpVec(&buf[0], len(buf), shift, &sums)
	}
	for i, x := range src[n:] {
		sums[i%16] += exp32(x - shift)
	}
	Binary(Sub, dst, src, []float32{shift})
	Binary(Sub, dst, dst, []float32{float32(math.Log(float64(foldExp(&sums))))})
}

// LayerNorm stores (x-mean)*inverse*gamma + beta for the elements of the row
// src, inverse being 1/sqrt(variance+epsilon), and returns mean and inverse, the
// optional outputs of LayerNormalization in the ONNX operator specification.
// The mean is computed in float64, then the mean square of what differs from it
// in float32, and *gamma + beta is rounded once: ONNX Runtime's arithmetic. gamma
// has the length of src; beta too, or it is nil. dst is at least as long as src
// and may be src.
func LayerNorm(dst, src, gamma, beta []float32, epsilon float32) (mean, inverse float32) {
	dst, gamma = dst[:len(src)], gamma[:len(src)]
	mean = float32(ReduceSum(src) / float64(len(src)))
	inverse = 1 / sqrt32(squares(src, mean)/float32(len(src))+epsilon)
	if beta == nil {
		Binary(Sub, dst, src, []float32{mean})
		scaleBy(dst, dst, gamma, inverse)
		return mean, inverse
	}
	beta = beta[:len(src)]
	done := normalizeVec(ptr(dst), ptr(src), ptr(gamma), ptr(beta), len(src), mean, inverse)
	for i := done; i < len(src); i++ {
		dst[i] = fma(float32((src[i]-mean)*inverse), gamma[i], beta[i])
	}
	return mean, inverse
}

// RMSNorm stores x*inverse*gamma for the elements of the row src, inverse being
// 1/sqrt(mean of x^2 + epsilon), and returns inverse: RMSNormalization in the
// ONNX operator specification. gamma has the length of src. dst is at least as
// long as src and may be src.
func RMSNorm(dst, src, gamma []float32, epsilon float32) (inverse float32) {
	inverse = 1 / sqrt32(squares(src, 0)/float32(len(src))+epsilon)
	scaleBy(dst[:len(src)], src, gamma[:len(src)], inverse)
	return inverse
}

func sqrt32(x float32) float32 { return float32(math.Sqrt(float64(x))) }

func scaleBy(dst, src, gamma []float32, inverse float32) {
	n := scaleByVec(ptr(dst), ptr(src), ptr(gamma), len(src), inverse)
	for i := n; i < len(src); i++ {
		dst[i] = float32(src[i]*inverse) * gamma[i]
	}
}
