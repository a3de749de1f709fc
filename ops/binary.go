package ops

import (
	endian "encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// arith is an element-wise function of two operands of one type, in the types
// that it is defined for. check refuses second operands that integers do not
// allow.
type arith struct {
	f32   *binary[float32, float32]
	f64   *binary[float64, float64]
	i64   *binary[int64, int64]
	u64   *binary[uint64, uint64]
	i32   *binary[int32, int32] // of int32 in place of i64, or nil
	b8    *binary[uint8, uint8] // bool
	check func(b []int64) error
	// scale multiplies the result of a variadic operator of that many inputs.
	scale func(inputs int) float64
}

func add[T tensor.Real](a, b T) T      { return a + b }
func subtract[T tensor.Real](a, b T) T { return a - b }
func times[T tensor.Real](a, b T) T    { return a * b }
func over[T tensor.Real](a, b T) T     { return a / b }
func lesser[T tensor.Real](a, b T) T   { return min(a, b) }
func larger[T tensor.Real](a, b T) T   { return max(a, b) }
func left[T tensor.Real](a, _ T) T     { return a }

// vectorized returns an arith whose float32 loops are those of package
// kernels.
func vectorized(op kernels.BinaryOp, f32 func(a, b float32) float32, f64 func(a, b float64) float64,
	i64 func(a, b int64) int64, u64 func(a, b uint64) uint64) arith {
	return arith{
		f32: &binary[float32, float32]{
			f:  f32,
			vv: func(dst, a, b []float32) { kernels.Binary(op, dst, a, b) },
			vs: func(dst, a []float32, b float32) { kernels.Binary(op, dst, a, []float32{b}) },
			sv: func(dst []float32, a float32, b []float32) { kernels.Binary(op, dst, []float32{a}, b) },
		},
		f64: scalarOp(f64), i64: scalarOp(i64), u64: scalarOp(u64),
	}
}

// whole returns a with loops for the signed integers of 32 and 64 bits.
func whole(a arith, i64 *binary[int64, int64], i32 *binary[int32, int32]) arith {
	a.i64, a.i32 = i64, i32
	return a
}

func addRows[T int32 | int64](dst, a, b []T) {
	dst, b = dst[:len(a)], b[:len(a)]
	for i, x := range a {
		dst[i] = x + b[i]
	}
}

func addRow[T int32 | int64](dst, a []T, b T) {
	dst = dst[:len(a)]
	for i, x := range a {
		dst[i] = x + b
	}
}

func subRows[T int32 | int64](dst, a, b []T) {
	dst, b = dst[:len(a)], b[:len(a)]
	for i, x := range a {
		dst[i] = x - b[i]
	}
}

func subFrom[T int32 | int64](dst []T, a T, b []T) {
	dst = dst[:len(b)]
	for i, x := range b {
		dst[i] = a - x
	}
}

func mulRows[T int32 | int64](dst, a, b []T) {
	dst, b = dst[:len(a)], b[:len(a)]
	for i, x := range a {
		dst[i] = x * b[i]
	}
}

func mulRow[T int32 | int64](dst, a []T, b T) {
	dst = dst[:len(a)]
	for i, x := range a {
		dst[i] = x * b
	}
}

func adding[T int32 | int64]() *binary[T, T] {
	return &binary[T, T]{f: func(a, b T) T { return a + b }, vv: addRows[T], vs: addRow[T], sv: func(dst []T, a T, b []T) { addRow(dst, b, a) }}
}

func subtracting[T int32 | int64]() *binary[T, T] {
	return &binary[T, T]{f: func(a, b T) T { return a - b }, vv: subRows[T], vs: func(dst, a []T, b T) { addRow(dst, a, -b) }, sv: subFrom[T]}
}

func multiplying[T int32 | int64]() *binary[T, T] {
	return &binary[T, T]{f: func(a, b T) T { return a * b }, vv: mulRows[T], vs: mulRow[T], sv: func(dst []T, a T, b []T) { mulRow(dst, b, a) }}
}

var (
	addition       = whole(vectorized(kernels.Add, add[float32], add[float64], nil, add[uint64]), adding[int64](), adding[int32]())
	difference     = whole(vectorized(kernels.Sub, subtract[float32], subtract[float64], nil, subtract[uint64]), subtracting[int64](), subtracting[int32]())
	multiplication = whole(vectorized(kernels.Mul, times[float32], times[float64], nil, times[uint64]), multiplying[int64](), multiplying[int32]())
	division       = func() arith {
		a := vectorized(kernels.Div, over[float32], over[float64], over[int64], over[uint64])
		a.check = noZero
		return a
	}()
)

func scalarOp[T any](f func(a, b T) T) *binary[T, T] { return &binary[T, T]{f: f} }

// arithOp is an entry of the table of functions of two operands, or of any
// number where they are folded from the left.
type arithOp struct {
	name     string
	since    int
	flow     Flow
	variadic bool
	attrs    []AttrSpec
	dims     func(a, b graph.Dim) graph.Dim // on propagated dimensions
	build    func(s *Site) (arith, error)
}

func fixed(a arith) func(*Site) (arith, error) {
	return func(*Site) (arith, error) { return a, nil }
}

var arithOps = []arithOp{
	{name: "Add", since: 7, flow: Compute, dims: dimAdd, build: fixed(addition)},
	{name: "Sub", since: 7, flow: Compute, dims: dimSub, build: fixed(difference)},
	{name: "Mul", since: 7, flow: Compute, dims: dimMul, build: fixed(multiplication)},
	{name: "Div", since: 7, flow: Compute, dims: dimDiv, build: fixed(division)},
	{name: "Mod", since: 10, flow: Compute, attrs: []AttrSpec{{Name: "fmod", Kind: graph.AttrInt}}, build: buildMod},
	{name: "Max", since: 6, flow: Compute, variadic: true, dims: dimMax, build: fixed(
		vectorized(kernels.Max, larger[float32], larger[float64], larger[int64], larger[uint64]))},
	{name: "Min", since: 6, flow: Compute, variadic: true, dims: dimMin, build: fixed(
		vectorized(kernels.Min, lesser[float32], lesser[float64], lesser[int64], lesser[uint64]))},
	{name: "Sum", since: 6, flow: Compute, variadic: true, build: fixed(arith{f32: addition.f32, f64: addition.f64})},
	{name: "Mean", since: 6, flow: Compute, variadic: true, build: fixed(arith{f32: addition.f32, f64: addition.f64,
		scale: func(n int) float64 { return 1 / float64(n) }})},
	{name: "BitShift", since: 11, flow: Integers,
		attrs: []AttrSpec{{Name: "direction", Kind: graph.AttrString, Required: true}}, build: buildShift},
	{name: "BitwiseAnd", since: 18, flow: Integers, build: fixed(arith{
		i64: scalarOp(func(a, b int64) int64 { return a & b }), u64: scalarOp(func(a, b uint64) uint64 { return a & b })})},
	{name: "BitwiseOr", since: 18, flow: Integers, build: fixed(arith{
		i64: scalarOp(func(a, b int64) int64 { return a | b }), u64: scalarOp(func(a, b uint64) uint64 { return a | b })})},
	{name: "BitwiseXor", since: 18, flow: Integers, build: fixed(arith{
		i64: scalarOp(func(a, b int64) int64 { return a ^ b }), u64: scalarOp(func(a, b uint64) uint64 { return a ^ b })})},
	{name: "And", since: 7, flow: Integers, dims: dimLogic(func(a, b bool) bool { return a && b }),
		build: fixed(arith{b8: logic(func(a, b uint8) uint8 { return a & b }, andWords)})},
	{name: "Or", since: 7, flow: Integers, dims: dimLogic(func(a, b bool) bool { return a || b }),
		build: fixed(arith{b8: logic(func(a, b uint8) uint8 { return a | b }, orWords)})},
	{name: "Xor", since: 7, flow: Integers, dims: dimLogic(func(a, b bool) bool { return a != b }),
		build: fixed(arith{b8: logic(func(a, b uint8) uint8 { return a ^ b }, xorWords)})},
	{name: "PRelu", since: 7, flow: Compute, build: fixed(
		vectorized(kernels.PRelu, prelu[float32], prelu[float64], prelu[int64], left[uint64]))},
}

func prelu[T tensor.Real](x, slope T) T {
	if x < 0 {
		return x * slope
	}
	return x
}

func noZero(b []int64) error {
	for _, x := range b {
		if x == 0 {
			return errors.New("integer division by zero")
		}
	}
	return nil
}

// buildMod is the remainder: with the sign of the divisor, or with that of the
// dividend if fmod is set.
func buildMod(s *Site) (arith, error) {
	a := arith{check: noZero, u64: scalarOp(func(a, b uint64) uint64 { return a % b })}
	if s.Node.Int("fmod", 0) != 0 {
		a.i64 = scalarOp(func(a, b int64) int64 { return a % b })
		a.f64 = scalarOp(math.Mod)
	} else {
		a.i64 = scalarOp(floorModInt)
		a.f64 = scalarOp(floorMod)
	}
	f := a.f64.f
	a.f32 = scalarOp(func(a, b float32) float32 { return float32(f(float64(a), float64(b))) })
	return a, nil
}

func floorModInt(a, b int64) int64 {
	r := a % b
	if r != 0 && (r < 0) != (b < 0) {
		r += b
	}
	return r
}

func floorMod(a, b float64) float64 {
	r := math.Mod(a, b)
	switch {
	case r == 0:
		return math.Copysign(0, b)
	case (r < 0) != (b < 0):
		return r + b
	}
	return r
}

func buildShift(s *Site) (arith, error) {
	switch d := s.Node.String("direction", ""); d {
	case "LEFT":
		return arith{
			i64: scalarOp(func(a, b int64) int64 { return a << uint64(b) }),
			u64: scalarOp(func(a, b uint64) uint64 { return a << b })}, nil
	case "RIGHT":
		return arith{
			i64: scalarOp(func(a, b int64) int64 { return a >> uint64(b) }),
			u64: scalarOp(func(a, b uint64) uint64 { return a >> b })}, nil
	default:
		return arith{}, s.Errorf("direction %q is neither LEFT nor RIGHT", d)
	}
}

func (op *arithOp) spec() Spec {
	role := Activation
	if op.flow == Integers {
		role = Index
	}
	in := []Port{{Name: "A", Role: role}, {Name: "B", Role: role}}
	if op.variadic {
		in = []Port{{Name: "data_0", Role: role, Variadic: true}}
	}
	return Spec{
		Type: op.name, Since: op.since, Flow: op.flow, Pure: true, Attrs: op.attrs,
		In: in, Out: []Port{{Name: "C", Role: role}},
		Infer: func(c *Inference) error {
			return inferBroadcast(c, c.Elem(0), op.dims)
		},
		Compile: func(s *Site) (Kernel, error) {
			a, err := op.build(s)
			if err != nil {
				return nil, err
			}
			return a.kernel, nil
		},
	}
}

func (a *arith) kernel(c *Call) error {
	x, err := c.tensor(0)
	if err != nil {
		return err
	}
	d := x.DType()
	for i := 1; i < c.NumIn(); i++ {
		t, err := c.tensor(i)
		if err != nil {
			return err
		}
		if t.DType() != d {
			return fmt.Errorf("operands of type %v and %v", d, t.DType())
		}
		if a.check != nil && d.IsInt() {
			if err := checkZero(t, a.check); err != nil {
				return err
			}
		}
	}
	switch k := carrierOf(d); {
	case d == tensor.Bool && a.b8 != nil:
		return foldPair(c, d, a.b8)
	case d == tensor.Int32 && a.i32 != nil:
		return foldPair(c, d, a.i32)
	case k == carryF32 && a.f32 != nil:
		return foldAll(c, d, a.f32, a.scale)
	case k == carryF64 && a.f64 != nil:
		return foldAll(c, d, a.f64, a.scale)
	case k == carryI64 && a.i64 != nil:
		return foldAll(c, d, a.i64, nil)
	case k == carryU64 && a.u64 != nil:
		return foldAll(c, d, a.u64, nil)
	}
	return fmt.Errorf("not defined for %v", d)
}

func checkZero(t *tensor.Tensor, check func([]int64) error) error {
	var buf [256]int64
	for from := 0; from < t.Len(); from += len(buf) {
		b := buf[:min(len(buf), t.Len()-from)]
		tensor.Read(t, from, b)
		if err := check(b); err != nil {
			return err
		}
	}
	return nil
}

// operandShape returns the shape that the inputs broadcast to.
func operandShape(c *Call) ([]int, error) {
	first := c.In(0).Shape()
	if len(c.Ins) == 2 {
		second := c.In(1).Shape()
		if equalInts(first, second) || c.In(1).Len() == 1 && len(second) <= len(first) {
			return first, nil
		}
		return BroadcastDims(first, second)
	}
	shapes := make([][]int, len(c.Ins))
	for i := range c.Ins {
		shapes[i] = c.In(i).Shape()
	}
	return BroadcastDims(shapes...)
}

func equalInts(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// reusable returns the first input that has as many elements as the output,
// or -1.
func reusable(c *Call, shape []int) int {
	n, _ := tensor.NumElements(shape)
	for i := range c.Ins {
		if t := c.In(i); t != nil && t.Len() == n {
			return i
		}
	}
	return -1
}

// foldAll computes output 0 = op(…op(input 0, input 1)…, input n-1) in T.
func foldAll[T tensor.Real](c *Call, d tensor.DType, op *binary[T, T], scale func(int) float64) error {
	shape, err := operandShape(c)
	if err != nil {
		return err
	}
	if len(c.Ins) == 1 {
		c.SetOut(0, c.In(0))
		return nil
	}
	like := -1
	if len(c.Ins) == 2 { // with more, an operand may be read after the output is begun
		like = reusable(c, shape)
	}
	out, err := newOutput[T](c, 0, like, d, shape)
	if err != nil {
		return err
	}
	a, err := load[T](c, c.In(0))
	if err != nil {
		return err
	}
	shapeA := c.In(0).Shape()
	for i := 1; i < len(c.Ins); i++ {
		b, err := load[T](c, c.In(i))
		if err != nil {
			return err
		}
		if err := apply2(c, out.data, shape, a, b, shapeA, c.In(i).Shape(), op); err != nil {
			return err
		}
		a, shapeA = out.data, shape
	}
	if scale != nil {
		by := T(scale(len(c.Ins)))
		if err := c.For(len(out.data), cheapChunk, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				out.data[i] *= by
			}
		}); err != nil {
			return err
		}
	}
	return out.store(c)
}

// foldPair computes output 0 = op(input 0, input 1) in T, the Go type of d.
func foldPair[T uint8 | int32](c *Call, d tensor.DType, op *binary[T, T]) error {
	shape, err := operandShape(c)
	if err != nil {
		return err
	}
	out, err := c.OutLike(0, max(reusable(c, shape), 0), d, shape...)
	if err != nil {
		return err
	}
	x, y := c.In(0), c.In(1)
	return apply2(c, tensor.As[T](out), shape, tensor.As[T](x), tensor.As[T](y), x.Shape(), y.Shape(), op)
}

// logic is And, Or or Xor of bytes, with loops of eight at a time.
func logic(f func(a, b uint8) uint8, words func(dst, a, b []uint8)) *binary[uint8, uint8] {
	return &binary[uint8, uint8]{f: f, vv: func(dst, a, b []uint8) {
		n := len(dst) &^ 7
		words(dst[:n], a[:n], b[:n])
		for i := n; i < len(dst); i++ {
			dst[i] = f(a[i], b[i])
		}
	}}
}

var word = endian.LittleEndian

func andWords(dst, a, b []uint8) {
	for ; len(dst) >= 8 && len(a) >= 8 && len(b) >= 8; dst, a, b = dst[8:], a[8:], b[8:] {
		word.PutUint64(dst, word.Uint64(a)&word.Uint64(b))
	}
}

func orWords(dst, a, b []uint8) {
	for ; len(dst) >= 8 && len(a) >= 8 && len(b) >= 8; dst, a, b = dst[8:], a[8:], b[8:] {
		word.PutUint64(dst, word.Uint64(a)|word.Uint64(b))
	}
}

func xorWords(dst, a, b []uint8) {
	for ; len(dst) >= 8 && len(a) >= 8 && len(b) >= 8; dst, a, b = dst[8:], a[8:], b[8:] {
		word.PutUint64(dst, word.Uint64(a)^word.Uint64(b))
	}
}

// compareOp is an entry of the table of comparisons.
type compareOp struct {
	name  string
	since int
	f32   *binary[float32, uint8]
	f64   *binary[float64, uint8]
	i64   *binary[int64, uint8]
	u64   *binary[uint64, uint8]
	i32   *binary[int32, uint8] // of int32 in place of i64
	b8    *binary[uint8, uint8]
	str   *binary[string, uint8]
	dims  func(a, b graph.Dim) graph.Dim
}

func comparison(name string, since int, op kernels.CompareOp, f64 *binary[float64, uint8],
	i64 *binary[int64, uint8], u64 *binary[uint64, uint8]) compareOp {
	return compareOp{name: name, since: since, f32: relation[float32](op), f64: f64, i64: i64, u64: u64, i32: relation[int32](op),
		dims: func(a, b graph.Dim) graph.Dim {
			if a.Known && b.Known {
				return graph.D(int64(i64.f(a.Size, b.Size)))
			}
			return graph.Dim{}
		}}
}

// relation returns op with the loops of package kernels.
func relation[T float32 | int32](op kernels.CompareOp) *binary[T, uint8] {
	return &binary[T, uint8]{
		f: func(a, b T) uint8 {
			var r [1]uint8
			kernels.Compare(op, r[:], []T{a}, []T{b})
			return r[0]
		},
		vv: func(dst []uint8, a, b []T) { kernels.Compare(op, dst, a, b) },
		vs: func(dst []uint8, a []T, b T) { kernels.Compare(op, dst, a, []T{b}) },
		sv: func(dst []uint8, a T, b []T) { kernels.Compare(op, dst, []T{a}, b) },
	}
}

// less, lessEq and equal have loops of their own: a call for each element would
// take most of the time.
func less[T tensor.Real]() *binary[T, uint8] {
	return &binary[T, uint8]{f: func(a, b T) uint8 { return truth(a < b) }, vv: lessRows[T], vs: belowRow[T], sv: aboveRow[T]}
}

func lessEq[T tensor.Real]() *binary[T, uint8] {
	return &binary[T, uint8]{f: func(a, b T) uint8 { return truth(a <= b) }, vv: lessEqRows[T], vs: notAboveRow[T], sv: notBelowRow[T]}
}

func equal[T comparable]() *binary[T, uint8] {
	return &binary[T, uint8]{
		f:  func(a, b T) uint8 { return truth(a == b) },
		vv: equalRows[T],
		vs: equalRow[T],
		sv: func(dst []uint8, a T, b []T) { equalRow(dst, b, a) },
	}
}

func lessRows[T tensor.Real](dst []uint8, a, b []T) {
	dst, b = dst[:len(a)], b[:len(a)]
	for i, x := range a {
		dst[i] = truth(x < b[i])
	}
}

func lessEqRows[T tensor.Real](dst []uint8, a, b []T) {
	dst, b = dst[:len(a)], b[:len(a)]
	for i, x := range a {
		dst[i] = truth(x <= b[i])
	}
}

func belowRow[T tensor.Real](dst []uint8, a []T, b T) {
	dst = dst[:len(a)]
	for i, x := range a {
		dst[i] = truth(x < b)
	}
}

func notAboveRow[T tensor.Real](dst []uint8, a []T, b T) {
	dst = dst[:len(a)]
	for i, x := range a {
		dst[i] = truth(x <= b)
	}
}

func aboveRow[T tensor.Real](dst []uint8, a T, b []T) {
	dst = dst[:len(b)]
	for i, x := range b {
		dst[i] = truth(a < x)
	}
}

func notBelowRow[T tensor.Real](dst []uint8, a T, b []T) {
	dst = dst[:len(b)]
	for i, x := range b {
		dst[i] = truth(a <= x)
	}
}

func equalRows[T comparable](dst []uint8, a, b []T) {
	dst, b = dst[:len(a)], b[:len(a)]
	for i, x := range a {
		dst[i] = truth(x == b[i])
	}
}

func equalRow[T comparable](dst []uint8, a []T, b T) {
	dst = dst[:len(a)]
	for i, x := range a {
		dst[i] = truth(x == b)
	}
}

// flipped returns op(b, a).
func flipped[T any](op *binary[T, uint8]) *binary[T, uint8] {
	return &binary[T, uint8]{
		f:  func(a, b T) uint8 { return op.f(b, a) },
		vv: func(dst []uint8, a, b []T) { op.vv(dst, b, a) },
		vs: func(dst []uint8, a []T, b T) { op.sv(dst, b, a) },
		sv: func(dst []uint8, a T, b []T) { op.vs(dst, b, a) },
	}
}

var compareOps = []compareOp{
	comparison("Less", 7, kernels.Less, less[float64](), less[int64](), less[uint64]()),
	comparison("LessOrEqual", 12, kernels.LessEqual, lessEq[float64](), lessEq[int64](), lessEq[uint64]()),
	comparison("Greater", 7, kernels.Greater, flipped(less[float64]()), flipped(less[int64]()), flipped(less[uint64]())),
	comparison("GreaterOrEqual", 12, kernels.GreaterEqual, flipped(lessEq[float64]()), flipped(lessEq[int64]()), flipped(lessEq[uint64]())),
	equalOp(),
}

func equalOp() compareOp {
	op := comparison("Equal", 7, kernels.Equal, equal[float64](), equal[int64](), equal[uint64]())
	op.b8, op.str = equal[uint8](), equal[string]()
	op.dims = func(a, b graph.Dim) graph.Dim {
		switch {
		case a.Known && b.Known:
			return graph.D(int64(truth(a.Size == b.Size)))
		case a.Same(b):
			return graph.D(1)
		// A size is never negative, whatever its symbol stands for.
		case a.Sym != "" && b.Known && b.Size < 0, b.Sym != "" && a.Known && a.Size < 0:
			return graph.D(0)
		}
		return graph.Dim{}
	}
	return op
}

func (op *compareOp) spec() Spec {
	return Spec{
		Type: op.name, Since: op.since, Flow: Integers, Pure: true,
		In:  []Port{{Name: "A"}, {Name: "B"}},
		Out: []Port{{Name: "C"}},
		Infer: func(c *Inference) error {
			return inferBroadcast(c, tensor.Bool, op.dims)
		},
		Compile: func(*Site) (Kernel, error) { return op.kernel, nil },
	}
}

func (op *compareOp) kernel(c *Call) error {
	x, err := c.tensor(0)
	if err != nil {
		return err
	}
	y, err := c.tensor(1)
	if err != nil {
		return err
	}
	d := x.DType()
	if d != y.DType() {
		return fmt.Errorf("operands of type %v and %v", d, y.DType())
	}
	shape, err := operandShape(c)
	if err != nil {
		return err
	}
	out, err := c.Out(0, tensor.Bool, shape...)
	if err != nil {
		return err
	}
	dst := tensor.As[uint8](out)
	switch k := carrierOf(d); {
	case d == tensor.Int32:
		return apply2(c, dst, shape, tensor.As[int32](x), tensor.As[int32](y), x.Shape(), y.Shape(), op.i32)
	case k == carryF32:
		return compare(c, dst, shape, op.f32)
	case k == carryF64:
		return compare(c, dst, shape, op.f64)
	case k == carryI64:
		return compare(c, dst, shape, op.i64)
	case k == carryU64:
		return compare(c, dst, shape, op.u64)
	case d == tensor.Bool && op.b8 != nil:
		return apply2(c, dst, shape, tensor.As[uint8](x), tensor.As[uint8](y), x.Shape(), y.Shape(), op.b8)
	case d == tensor.String && op.str != nil:
		return apply2(c, dst, shape, x.Strings(), y.Strings(), x.Shape(), y.Shape(), op.str)
	}
	return fmt.Errorf("not defined for %v", d)
}

func compare[T tensor.Real](c *Call, dst []uint8, shape []int, op *binary[T, uint8]) error {
	a, err := load[T](c, c.In(0))
	if err != nil {
		return err
	}
	b, err := load[T](c, c.In(1))
	if err != nil {
		return err
	}
	return apply2(c, dst, shape, a, b, c.In(0).Shape(), c.In(1).Shape(), op)
}

// inferBroadcast states the type of output 0 of an operator whose inputs
// broadcast, and its contents where dims follows them.
func inferBroadcast(c *Inference, elem tensor.DType, dims func(a, b graph.Dim) graph.Dim) error {
	n := c.Node.NumInputs()
	shapes := make([]graph.Shape, n)
	for i := range n {
		shapes[i] = c.Shape(i)
	}
	shape, err := BroadcastShapes(shapes...)
	if err != nil {
		return err
	}
	if n == 0 {
		return c.Errorf("no inputs")
	}
	c.Tensor(0, elem, shape)
	if dims == nil || shape == nil || len(shape) > 1 {
		return nil
	}
	acc, ok := c.Dims(0)
	for i := 1; ok && i < n; i++ {
		var b []graph.Dim
		if b, ok = c.Dims(i); ok {
			acc, ok = zipDims(acc, b, dims)
		}
	}
	if ok {
		c.SetDims(0, acc)
	}
	return nil
}

// zipDims applies f to the contents of two vectors or scalars.
func zipDims(a, b []graph.Dim, f func(a, b graph.Dim) graph.Dim) ([]graph.Dim, bool) {
	n := max(len(a), len(b))
	if len(a) == 0 || len(b) == 0 {
		n = 0
	}
	if len(a) != n && len(a) != 1 && n > 0 || len(b) != n && len(b) != 1 && n > 0 {
		return nil, false
	}
	out := make([]graph.Dim, n)
	for i := range out {
		out[i] = f(a[min(i, len(a)-1)], b[min(i, len(b)-1)])
		out[i].Extra = nil
	}
	return out, true
}

// mapDims applies f to the known entries; the others become unknown.
func mapDims(dims []graph.Dim, f func(int64) int64) []graph.Dim {
	out := make([]graph.Dim, len(dims))
	for i, d := range dims {
		if d.Known {
			out[i] = graph.D(f(d.Size))
		}
	}
	return out
}

func dimSub(a, b graph.Dim) graph.Dim {
	switch {
	case b.Known && b.Size != math.MinInt64:
		return dimAdd(a, graph.D(-b.Size))
	case a.Same(b):
		return graph.D(0)
	}
	return graph.Dim{}
}

func dimDiv(a, b graph.Dim) graph.Dim {
	switch {
	case !b.Known || b.Size == 0:
	case a.Known:
		return graph.D(a.Size / b.Size)
	case b.Size == 1:
		return graph.Dim{Sym: a.Sym}
	}
	return graph.Dim{}
}

func dimMax(a, b graph.Dim) graph.Dim {
	switch {
	case a.Known && b.Known:
		return graph.D(max(a.Size, b.Size))
	case a.Same(b), b.Known && b.Size <= 0 && a.Sym != "": // a size is at least 0
		return graph.Dim{Sym: a.Sym}
	case a.Known && a.Size <= 0 && b.Sym != "":
		return graph.Dim{Sym: b.Sym}
	}
	return graph.Dim{}
}

func dimMin(a, b graph.Dim) graph.Dim {
	switch {
	case a.Known && b.Known:
		return graph.D(min(a.Size, b.Size))
	case a.Same(b):
		return graph.Dim{Sym: a.Sym}
	}
	return graph.Dim{}
}

func dimLogic(f func(a, b bool) bool) func(a, b graph.Dim) graph.Dim {
	return func(a, b graph.Dim) graph.Dim {
		if !a.Known || !b.Known {
			return graph.Dim{}
		}
		return graph.D(int64(truth(f(a.Size != 0, b.Size != 0))))
	}
}
