package kernels

import "math"

// Lanes are four numbers that are computed together.
type Lanes = [4]float64

// Logs sets dst[i] to the natural logarithm of src[i], which is a normal number
// above 0; dst may be src.
func Logs(dst, src []float64) {
	src = src[:len(dst)]
	for i := logsVec(dst, src); i < len(dst); i++ {
		dst[i] = log64(src[i])
	}
}

// log64 returns the natural logarithm of a normal number above 0, by the method
// of FreeBSD's e_log.c: with x = 2^e*m, √½ < m <= √2, f = m-1 and s = f/(2+f),
// log(m) = f - f²/2 + s*(f²/2+R(s²)). Its error is below 1 ulp.
func log64(x float64) float64 {
	b := math.Float64bits(x)
	e := float64(int(b>>52) - 1023)
	m := math.Float64frombits(b&(1<<52-1) | 1023<<52)
	if m > math.Sqrt2 {
		m *= 0.5
		e++
	}
	f := m - 1
	s := f / (f + 2)
	z := float64(s * s)
	r := 1.479819860511658591e-01
	for _, c := range [...]float64{
		1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
		2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01,
	} {
		r = float64(r*z) + c
	}
	r = float64(r * z)
	h := float64(float64(f*f) * 0.5)
	t := float64((r+h)*s) + float64(e*1.90821492927058770002e-10)
	return float64(e*6.93147180369123816490e-01) - ((h - t) - f)
}

// QuantCost returns the sum of n[i]*d(x[i]), where d(x) is the square of the
// difference between x and its nearest multiple of step from lo to hi, or,
// with magnitudes set, its magnitude. Ties go to the even multiple. Element i
// goes to lane i%4, and the lanes are added in pairs j and j+2, then the two.
func QuantCost(x, n []float64, step, lo, hi float64, magnitudes bool) float64 {
	n = n[:len(x)]
	var s Lanes
	done := quantCostVec(&s, x, n, step, lo, hi, magnitudes)
	for i := done; i < len(x); i++ {
		d := x[i] - min(max(float64(math.RoundToEven(x[i]/step)*step), lo), hi)
		if magnitudes {
			d = math.Abs(d)
		} else {
			d = float64(d * d)
		}
		s[i%4] += float64(d * n[i])
	}
	return (s[0] + s[2]) + (s[1] + s[3])
}
