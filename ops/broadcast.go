package ops

import (
	"fmt"
	"sync"

	"github.com/onnxq/onnxq/tensor"
)

// Lengths of the pieces that element-wise loops are divided into. They are
// part of the results of nothing, but fixed all the same.
const (
	cheapChunk  = 16384 // elements per piece of a loop that only moves and adds
	costlyChunk = 2048  // … that evaluates a transcendental function
)

// lanes is a run of rows of a broadcast loop over up to three operands: row r,
// element k of the output is at out + r*n + k, that of operand i at
// at[i] + r*skip[i] + k*step[i]. A step is 0 or 1.
type lanes struct {
	out, rows, n   int
	at, skip, step [3]int
}

// walk describes a loop over an output and operands that broadcast to it, with
// axes joined as far as all operands allow.
type walk struct {
	dims    []int
	strides [][3]int // per axis; 0 where an operand is repeated
	ops     int
}

// newWalk returns the loop over an output of shape out; each shape broadcasts
// to it.
func newWalk(out []int, shapes ...[]int) *walk {
	w := &walk{ops: len(shapes), dims: make([]int, 0, len(out)), strides: make([][3]int, 0, len(out))}
	var dense [3]int // stride of the axis that comes next, from the last on
	for i := range shapes {
		dense[i] = 1
	}
	for axis := len(out) - 1; axis >= 0; axis-- {
		d := out[axis]
		if d == 1 {
			continue
		}
		var s [3]int
		for i, shape := range shapes {
			k := axis - (len(out) - len(shape))
			if k >= 0 && shape[k] != 1 {
				s[i] = dense[i]
				dense[i] *= shape[k]
			}
		}
		if last := len(w.dims) - 1; last >= 0 {
			joins := true
			for i := range shapes {
				joins = joins && s[i] == w.strides[last][i]*w.dims[last]
			}
			if joins {
				w.dims[last] *= d
				continue
			}
		}
		w.dims = append(w.dims, d)
		w.strides = append(w.strides, s)
	}
	if len(w.dims) == 0 {
		w.dims, w.strides = append(w.dims, 1), append(w.strides, [3]int{})
	}
	return w // axes from the last to the first
}

// visit calls f for the rows that cover elements [lo, hi) of the output.
func (w *walk) visit(lo, hi int, f func(l *lanes)) {
	if lo >= hi {
		return
	}
	n := w.dims[0]
	row, col := lo/n, lo%n
	pos := make([]int, len(w.dims)) // of each axis but the last
	var at [3]int
	for axis, r := 1, row; axis < len(w.dims); axis++ {
		pos[axis] = r % w.dims[axis]
		r /= w.dims[axis]
		for i := range w.ops {
			at[i] += pos[axis] * w.strides[axis][i]
		}
	}
	var l lanes
	l.step = w.strides[0]
	if len(w.dims) > 1 {
		l.skip = w.strides[1]
	}
	for lo < hi {
		l.out, l.rows, l.n, l.at = lo, 1, n, at
		if col > 0 || hi-lo < n {
			l.n = min(n-col, hi-lo)
			for i := range w.ops {
				l.at[i] += col * l.step[i]
			}
			col = 0
		} else if len(w.dims) > 1 {
			l.rows = min((hi-lo)/n, w.dims[1]-pos[1])
		}
		f(&l)
		lo += l.rows * l.n
		if lo >= hi {
			return
		}
		for i := range w.ops {
			at[i] += l.rows * l.skip[i]
		}
		pos[1] += l.rows
		for axis := 1; pos[axis] == w.dims[axis]; axis++ {
			pos[axis] = 0
			pos[axis+1]++
			for i := range w.ops {
				at[i] += w.strides[axis+1][i] - w.dims[axis]*w.strides[axis][i]
			}
		}
	}
}

// binary is an element-wise function of two operands as loops over rows. dst
// may be one of the operands. Where vs (second operand one number) or sv
// (first) is nil, f is applied element by element.
type binary[T, R any] struct {
	f    func(a, b T) R
	vv   func(dst []R, a, b []T)
	vs   func(dst []R, a []T, b T)
	sv   func(dst []R, a T, b []T)
	room sync.Pool // of *[2][tileElems]T, for tiles
}

// apply2 computes dst = op(a, b) with the operands broadcast to shape out.
func apply2[T, R any](c *Call, dst []R, out []int, a, b []T, shapeA, shapeB []int, op *binary[T, R]) error {
	n := len(dst)
	if n == 0 {
		return nil
	}
	if n <= smallLoop && len(a) == n && len(b) == n {
		op.vector(dst, a, b)
		return nil
	}
	switch {
	case len(a) == n && len(b) == n:
		return c.For(n, cheapChunk, func(lo, hi int) { op.vector(dst[lo:hi], a[lo:hi], b[lo:hi]) })
	case len(a) == n && len(b) == 1:
		return c.For(n, cheapChunk, func(lo, hi int) { op.right(dst[lo:hi], a[lo:hi], b[0]) })
	case len(b) == n && len(a) == 1:
		return c.For(n, cheapChunk, func(lo, hi int) { op.left(dst[lo:hi], a[0], b[lo:hi]) })
	}
	w := newWalk(out, shapeA, shapeB)
	if w.dims[0] < tileRow {
		return c.For(n, cheapChunk, func(lo, hi int) { op.tiles(w, dst, a, b, lo, hi) })
	}
	return c.For(n, cheapChunk, func(lo, hi int) {
		w.visit(lo, hi, func(l *lanes) { op.lanes(dst, a, b, l) })
	})
}

// smallLoop is the number of elements below which a loop is not worth a
// closure.
const smallLoop = 256

func (op *binary[T, R]) vector(dst []R, a, b []T) {
	if op.vv != nil {
		op.vv(dst, a, b)
		return
	}
	for i := range dst {
		dst[i] = op.f(a[i], b[i])
	}
}

func (op *binary[T, R]) right(dst []R, a []T, b T) {
	if op.vs != nil {
		op.vs(dst, a, b)
		return
	}
	for i := range dst {
		dst[i] = op.f(a[i], b)
	}
}

func (op *binary[T, R]) left(dst []R, a T, b []T) {
	if op.sv != nil {
		op.sv(dst, a, b)
		return
	}
	for i := range dst {
		dst[i] = op.f(a, b[i])
	}
}

const (
	shortRow  = 8    // length of rows that are not worth a loop each
	tileRow   = 32   // length below which the operands of a row are spread over a tile
	tileElems = 1024 // elements of a tile
)

// tiles computes elements [lo, hi) of an output whose rows are short: operands
// that are not as large as the output are spread over pieces of it.
func (op *binary[T, R]) tiles(w *walk, dst []R, a, b []T, lo, hi int) {
	room, _ := op.room.Get().(*[2][tileElems]T)
	if room == nil {
		room = new([2][tileElems]T)
	}
	defer op.room.Put(room)
	src := [2][]T{a, b}
	for ; lo < hi; lo += tileElems {
		n := min(tileElems, hi-lo)
		var of [2][]T
		for i := range of {
			if len(src[i]) == len(dst) {
				of[i] = src[i][lo : lo+n]
				continue
			}
			of[i] = room[i][:n]
			w.visit(lo, lo+n, func(l *lanes) { spreadRows(of[i][l.out-lo:], src[i], l, i) })
		}
		op.vector(dst[lo:lo+n], of[0], of[1])
	}
}

// spreadRows writes the rows of operand i to dst, one behind the other.
func spreadRows[T any](dst, src []T, l *lanes, i int) {
	n, at, skip := l.n, l.at[i], l.skip[i]
	dst = dst[:l.rows*n]
	switch {
	case l.step[i] == 0:
		for o := 0; o < len(dst); o += n {
			row, v := dst[o:o+n], src[at]
			for k := range row {
				row[k] = v
			}
			at += skip
		}
	case skip == n || l.rows == 1:
		copy(dst, src[at:at+len(dst)])
	case skip == 0:
		row := src[at : at+n]
		switch n {
		case 2:
			repeat2(dst, [2]T(row))
			return
		case 4:
			repeat4(dst, [4]T(row))
			return
		}
		for done := copy(dst, row); done < len(dst); done *= 2 {
			copy(dst[done:], dst[:done])
		}
	default:
		for o := 0; o < len(dst); o += n {
			copy(dst[o:o+n], src[at:at+n])
			at += skip
		}
	}
}

func repeat2[T any](dst []T, row [2]T) {
	for ; len(dst) >= 2; dst = dst[2:] {
		*(*[2]T)(dst) = row
	}
}

func repeat4[T any](dst []T, row [4]T) {
	for ; len(dst) >= 4; dst = dst[4:] {
		*(*[4]T)(dst) = row
	}
}

func (op *binary[T, R]) lanes(dst []R, a, b []T, l *lanes) {
	for r := range l.rows {
		d := dst[l.out+r*l.n:][:l.n]
		pa, pb := l.at[0]+r*l.skip[0], l.at[1]+r*l.skip[1]
		switch {
		case l.step[0] == 1 && l.step[1] == 1:
			op.vector(d, a[pa:pa+l.n], b[pb:pb+l.n])
		case l.step[0] == 1:
			op.right(d, a[pa:pa+l.n], b[pb])
		case l.step[1] == 1:
			op.left(d, a[pa], b[pb:pb+l.n])
		default:
			v := op.f(a[pa], b[pb])
			for k := range d {
				d[k] = v
			}
		}
	}
}

// carrier is the Go type that the elements of a type are computed in.
type carrier uint8

const (
	noCarrier carrier = iota
	carryF32          // float32, float16, bfloat16
	carryF64
	carryI64 // every integer type but uint64; what overflows loses its high bits
	carryU64
)

func carrierOf(d tensor.DType) carrier {
	switch {
	case d == tensor.Float32, d == tensor.Float16, d == tensor.BFloat16:
		return carryF32
	case d == tensor.Float64:
		return carryF64
	case d == tensor.Uint64:
		return carryU64
	case d.IsInt():
		return carryI64
	}
	return noCarrier
}

// native is the element type whose memory layout is []T.
func native[T tensor.Real]() tensor.DType {
	var z T
	switch any(z).(type) {
	case float32:
		return tensor.Float32
	case float64:
		return tensor.Float64
	case uint64:
		return tensor.Uint64
	}
	return tensor.Int64
}

// load returns the elements of t as T, in t's own memory where it is of that
// type.
func load[T tensor.Real](c *Call, t *tensor.Tensor) ([]T, error) {
	if t.DType() == native[T]() {
		return tensor.As[T](t), nil
	}
	if !t.DType().Convertible() {
		return nil, fmt.Errorf("not defined for %v", t.DType())
	}
	buf, err := scratch[T](c, t.Len())
	if err != nil {
		return nil, err
	}
	err = c.For(len(buf), cheapChunk, func(lo, hi int) { tensor.Read(t, lo, buf[lo:hi]) })
	return buf, err
}

// output is a result that is computed as []T and stored as the type it was
// asked for.
type output[T tensor.Real] struct {
	data []T
	t    *tensor.Tensor
}

// newOutput allocates output i; like is the input whose memory it may take
// over, or -1.
func newOutput[T tensor.Real](c *Call, i, like int, dtype tensor.DType, shape []int) (output[T], error) {
	if dtype == native[T]() {
		var t *tensor.Tensor
		var err error
		if like >= 0 {
			t, err = c.OutLike(i, like, dtype, shape...)
		} else {
			t, err = c.Out(i, dtype, shape...)
		}
		if err != nil {
			return output[T]{}, err
		}
		return output[T]{data: tensor.As[T](t)}, nil
	}
	t, err := c.Out(i, dtype, shape...)
	if err != nil {
		return output[T]{}, err
	}
	data, err := scratch[T](c, t.Len())
	return output[T]{data: data, t: t}, err
}

// store converts what was computed to the type of the output.
func (o output[T]) store(c *Call) error {
	if o.t == nil {
		return nil
	}
	return c.For(len(o.data), cheapChunk, func(lo, hi int) { tensor.Write(o.t, lo, o.data[lo:hi]) })
}
