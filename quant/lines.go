package quant

import (
	"fmt"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// Lines is a weight taken apart along an axis: Outer·Inner lines of K elements,
// line o·Inner+i being T[o, :, i] of a tensor of shape [Outer, K, Inner].
type Lines struct {
	T               *tensor.Tensor
	Outer, K, Inner int
}

// LinesOf takes t apart along an axis from 0 to its rank - 1. A scalar is one
// line. The elements have to be real numbers.
func LinesOf(t *tensor.Tensor, axis int) (Lines, error) {
	if !t.DType().IsFloat() || !t.DType().Convertible() {
		return Lines{}, fmt.Errorf("%v holds no real numbers", t)
	}
	if t.Rank() == 0 {
		return Lines{t, 1, 1, 1}, nil
	}
	if axis < 0 || axis >= t.Rank() {
		return Lines{}, fmt.Errorf("axis %d of %v", axis, t)
	}
	outer, k, inner := split(t.Shape(), axis)
	return Lines{t, outer, k, inner}, nil
}

// N returns the number of lines.
func (l Lines) N() int { return l.Outer * l.Inner }

// Read stores the lines [from, to) in dst, one behind the other.
func (l Lines) Read(dst []float32, from, to int) {
	if l.Inner == 1 {
		l.elements(dst[:(to-from)*l.K], from*l.K)
		return
	}
	var block []float32 // [slab][n]
	for from < to {
		o, i := from/l.Inner, from%l.Inner
		n := min(to-from, l.Inner-i)
		at := o*l.K*l.Inner + i
		if cap(block) < n*slab {
			block = make([]float32, n*slab)
		}
		for k := 0; k < l.K; k += slab {
			rows := min(slab, l.K-k)
			for r := range rows {
				l.elements(block[r*n:][:n], at+(k+r)*l.Inner)
			}
			kernels.Transpose(dst[k:], l.K, block, n, rows, n)
		}
		dst, from = dst[n*l.K:], from+n
	}
}

// elements reads consecutive elements of the tensor.
func (l Lines) elements(dst []float32, from int) {
	switch l.T.DType() {
	case tensor.Float16:
		if x, ok := tensor.View[uint16](l.T, from, len(dst)); ok {
			kernels.Float16ToFloat32(dst, x)
			return
		}
	case tensor.BFloat16:
		if x, ok := tensor.View[uint16](l.T, from, len(dst)); ok {
			kernels.BFloat16ToFloat32(dst, x)
			return
		}
	}
	tensor.Read(l.T, from, dst)
}

// reader reads elements of a tensor of real numbers as float32, in the memory of
// the tensor where that holds them so, aligned.
type reader struct {
	t    *tensor.Tensor
	room []float32
}

// floats returns the elements [from, from+n), which are valid until the next call.
func (r *reader) floats(from, n int) []float32 {
	if r.t.DType() == tensor.Float32 {
		if x, ok := tensor.View[float32](r.t, from, n); ok {
			return x
		}
	}
	if cap(r.room) < n {
		r.room = make([]float32, n)
	}
	x := r.room[:n]
	Lines{T: r.t}.elements(x, from)
	return x
}

// panel is the number of elements that are read together at most.
const panel = 1 << 18

// each calls f with consecutive lines in parallel, x holding the lines from to
// to-1. pool may be nil.
func (l Lines) each(pool *par.Pool, from, to int, f func(from, to int, x []float32)) {
	step := max(1, min(panel/max(l.K, 1), (to-from+15)/16))
	pool.For(to-from, step, func(lo, hi int) {
		x := make([]float32, (hi-lo)*l.K)
		l.Read(x, from+lo, from+hi)
		f(from+lo, from+hi, x)
	})
}

// Extrema returns the least and greatest element and the number of those that
// are not finite. pool may be nil.
func (l Lines) Extrema(pool *par.Pool) kernels.Extrema {
	// The order of elements does not matter here: flat pieces are read fastest.
	n := l.T.Len()
	pieces := (n + panel - 1) / panel
	found := make([]kernels.Extrema, pieces)
	pool.For(pieces, 1, func(i, _ int) {
		r, e := reader{t: l.T}, kernels.NoExtrema()
		for at, end := i*panel, min((i+1)*panel, n); at < end; at += panel / 16 {
			e = e.Merge(kernels.MinMax(r.floats(at, min(panel/16, end-at))))
		}
		found[i] = e
	})
	e := kernels.NoExtrema()
	for _, x := range found {
		e = e.Merge(x)
	}
	return e
}

// Finite returns an error if an element is NaN or infinite.
func (l Lines) Finite(pool *par.Pool) error {
	if e := l.Extrema(pool); e.NaN+e.Inf > 0 {
		return fmt.Errorf("%w (%d of %d elements)", ErrNotFinite, e.NaN+e.Inf, l.T.Len())
	}
	return nil
}

// Values returns the tensor that l is of with its lines replaced by what c
// stands for, in the same element type. pool may be nil.
func (c *Coded) Values(pool *par.Pool, l Lines) *tensor.Tensor {
	values := make([]float32, l.T.Len())
	step := max(1, panel/max(l.K, 1))
	pool.For(l.N(), step, func(lo, hi int) {
		if l.Inner == 1 {
			for i := lo; i < hi; i++ {
				c.Decode(values[i*l.K:][:l.K], i)
			}
			return
		}
		line := make([]float32, l.K)
		for i := lo; i < hi; i++ {
			c.Decode(line, i)
			at := i/l.Inner*l.K*l.Inner + i%l.Inner
			for k, x := range line {
				values[at+k*l.Inner] = x
			}
		}
	})
	if l.T.DType() == tensor.Float32 {
		return tensor.Of(values, l.T.Shape()...)
	}
	t := tensor.New(l.T.DType(), l.T.Shape()...)
	tensor.Write(t, 0, values)
	return t
}
