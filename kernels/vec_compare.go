package kernels

// CompareOp is a relation of two numbers; none holds where one is NaN.
type CompareOp uint8

// The relations of Compare.
const (
	Equal        CompareOp = iota // a == b
	Less                          // a < b
	LessEqual                     // a <= b
	Greater                       // a > b
	GreaterEqual                  // a >= b
)

// Compare stores 1 in dst where op holds for the elements of a and b, else 0. a
// and b have len(dst) elements, or one of them has one element, which stands
// for all.
func Compare[T float32 | int32](op CompareOp, dst []uint8, a, b []T) {
	if len(dst) == 0 {
		return
	}
	if len(a) == 1 && len(dst) > 1 {
		a, b, op = b, a, op.mirrored()
	} else if op >= Greater && len(b) > 1 {
		a, b, op = b, a, op.mirrored()
	}
	a = a[:len(dst)]
	n, right := 0, len(b) == 1
	if !right {
		b = b[:len(dst)]
	}
	switch a := any(a).(type) {
	case []float32:
		b := any(b).([]float32)
		if right {
			n = compareF32RightVec(op, ptr(dst), ptr(a), ptr(b), len(dst))
		} else {
			n = compareF32Vec(op, ptr(dst), ptr(a), ptr(b), len(dst))
		}
	case []int32:
		b := any(b).([]int32)
		if right {
			n = compareI32RightVec(op, ptr(dst), ptr(a), ptr(b), len(dst))
		} else {
			n = compareI32Vec(op, ptr(dst), ptr(a), ptr(b), len(dst))
		}
	}
	for i := n; i < len(dst); i++ {
		x, y := a[i], b[0]
		if !right {
			y = b[i]
		}
		var holds bool
		switch op {
		case Equal:
			holds = x == y
		case Less:
			holds = x < y
		case LessEqual:
			holds = x <= y
		case Greater:
			holds = x > y
		default:
			holds = x >= y
		}
		dst[i] = 0
		if holds {
			dst[i] = 1
		}
	}
}

// mirrored is the relation of b and a where op is that of a and b.
func (op CompareOp) mirrored() CompareOp {
	return [...]CompareOp{Equal: Equal, Less: Greater, LessEqual: GreaterEqual, Greater: Less, GreaterEqual: LessEqual}[op]
}
