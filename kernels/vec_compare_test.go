package kernels

import (
	"testing"
)

func TestCompare(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(7)
		tails(func(n, off int) {
			a, _ := zoned[float32](n, off)
			b, _ := zoned[float32](n, (off+1)%4)
			fill(r, a)
			fill(r, b)
			i, _ := zoned[int32](n, off)
			k, _ := zoned[int32](n, (off+2)%4)
			for j := range i {
				if r.IntN(3) == 0 {
					b[j] = a[j]
				}
				i[j], k[j] = int32(r.IntN(5))-2, int32(r.IntN(5))-2
				if r.IntN(8) == 0 {
					i[j] = -1 << 31
				}
			}
			for op := Equal; op <= GreaterEqual; op++ {
				checkCompare(t, op, a, b)
				checkCompare(t, op, i, k)
			}
		})
	})
}

// checkCompare compares the three forms of op with the relation itself.
func checkCompare[T float32 | int32](t *testing.T, op CompareOp, a, b []T) {
	t.Helper()
	dst, check := zoned[uint8](len(a), len(a)%3)
	holds := func(x, y T) bool { return [...]bool{x == y, x < y, x <= y, x > y, x >= y}[op] }
	verify := func(form string, x, y func(i int) T) {
		t.Helper()
		check(t)
		for i, v := range dst {
			if v > 1 || v == 1 != holds(x(i), y(i)) {
				t.Fatalf("n=%d, element %d, %s: relation %d of %v and %v is %d", len(dst), i, form, op, x(i), y(i), v)
			}
		}
	}
	at := func(s []T) func(int) T { return func(i int) T { return s[i] } }
	Compare(op, dst, a, b)
	verify("vectors", at(a), at(b))
	if len(a) == 0 {
		return
	}
	one := func(int) T { return a[0] }
	Compare(op, dst, b, a[:1])
	verify("right", at(b), one)
	Compare(op, dst, a[:1], b)
	verify("left", one, at(b))
}
