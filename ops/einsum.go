package ops

import (
	"fmt"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

func einsumSpecs() []Spec {
	return []Spec{{
		Type: "Einsum", Since: 12, Flow: Compute, Pure: true,
		In:      []Port{{Name: "Inputs", Role: Activation, Variadic: true}},
		Out:     []Port{{Name: "Output", Role: Activation}},
		Attrs:   []AttrSpec{{Name: "equation", Kind: graph.AttrString, Required: true}},
		Infer:   inferEinsum,
		Compile: compileEinsum,
	}}
}

// label names an index of an equation: a letter, or, from ellipsis on, an axis
// that an ellipsis stands for, counted from its last.
type label int

const ellipsis label = 256

// equation is a parsed Einsum equation; "…" in a term is the label ellipsis.
type equation struct {
	terms    [][]label
	out      []label
	explicit bool
}

func parseEquation(text string) (*equation, error) {
	text = strings.ReplaceAll(text, " ", "")
	left, right, explicit := strings.Cut(text, "->")
	e := &equation{explicit: explicit}
	for _, t := range strings.Split(left, ",") {
		term, err := parseTerm(t)
		if err != nil {
			return nil, fmt.Errorf("equation %.100q: %w", text, err)
		}
		e.terms = append(e.terms, term)
	}
	out, err := parseTerm(right)
	if err != nil {
		return nil, fmt.Errorf("equation %.100q: %w", text, err)
	}
	e.out = out
	if !explicit {
		e.out = e.implicit()
	}
	for i, l := range e.out {
		if slices.Contains(e.out[:i], l) {
			return nil, fmt.Errorf("equation %.100q: an index of the output is repeated", text)
		}
		if l != ellipsis && !slices.ContainsFunc(e.terms, func(t []label) bool { return slices.Contains(t, l) }) {
			return nil, fmt.Errorf("equation %.100q: an index of the output is in no term", text)
		}
	}
	return e, nil
}

func parseTerm(s string) ([]label, error) {
	term := []label{}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			term = append(term, label(c))
		case strings.HasPrefix(s[i:], "...") && !slices.Contains(term, ellipsis):
			term = append(term, ellipsis)
			i += 2
		default:
			return nil, fmt.Errorf("unexpected %.20q", s[i:])
		}
	}
	return term, nil
}

// implicit returns the output of an equation without arrow: the ellipsis, then
// the letters that occur once, in alphabetical order.
func (e *equation) implicit() []label {
	count := map[label]int{}
	for _, t := range e.terms {
		for _, l := range t {
			count[l]++
		}
	}
	out := []label{}
	if count[ellipsis] > 0 {
		out = append(out, ellipsis)
	}
	for l := label('A'); l <= 'z'; l++ {
		if count[l] == 1 {
			out = append(out, l)
		}
	}
	return out
}

// expand returns the labels of term i for an operand of the given rank.
func (e *equation) expand(i, rank int) ([]label, error) {
	term := e.terms[i]
	at := slices.Index(term, ellipsis)
	if at < 0 {
		if len(term) != rank {
			return nil, fmt.Errorf("operand %d has rank %d, its term has %d indices", i, rank, len(term))
		}
		return term, nil
	}
	n := rank - len(term) + 1
	if n < 0 {
		return nil, fmt.Errorf("operand %d has rank %d, its term has %d indices", i, rank, len(term)-1)
	}
	return unfoldEllipsis(term, at, n), nil
}

// unfoldEllipsis replaces the ellipsis at place at by n labels.
func unfoldEllipsis(term []label, at, n int) []label {
	out := append([]label{}, term[:at]...)
	for k := n; k > 0; k-- {
		out = append(out, ellipsis+label(k))
	}
	return append(out, term[at+1:]...)
}

// output returns the labels of the output, given those of the operands.
func (e *equation) output(terms [][]label) []label {
	at := slices.Index(e.out, ellipsis)
	if at < 0 {
		return e.out
	}
	n := 0
	for _, t := range terms {
		for _, l := range t {
			n = max(n, int(l-ellipsis))
		}
	}
	return unfoldEllipsis(e.out, at, n)
}

func inferEinsum(c *Inference) error {
	e, err := parseEquation(c.Node.String("equation", ""))
	if err != nil {
		return err
	}
	n := c.Node.NumInputs()
	if n != len(e.terms) {
		return c.Errorf("%d operands for an equation of %d terms", n, len(e.terms))
	}
	c.Tensor(0, c.Elem(0), nil)
	size := map[label]graph.Dim{}
	terms := make([][]label, n)
	for i := range terms {
		shape := c.Shape(i)
		if shape == nil {
			return nil
		}
		if terms[i], err = e.expand(i, len(shape)); err != nil {
			return err
		}
		for k, l := range terms[i] {
			d := shape[k]
			d.Extra = nil
			old, seen := size[l]
			switch {
			case !seen, old.Known && old.Size == 1:
				size[l] = d
			case d.Known && d.Size == 1:
			default:
				u, ok := unify(old, d)
				if !ok {
					return c.Errorf("operand %d: an index of size %v has size %v", i, old, d)
				}
				size[l] = u
			}
		}
	}
	labels := e.output(terms)
	out := make(graph.Shape, len(labels))
	for i, l := range labels {
		out[i] = size[l]
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileEinsum(s *Site) (Kernel, error) {
	e, err := parseEquation(s.Node.String("equation", ""))
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	return func(c *Call) error {
		if c.NumIn() != len(e.terms) {
			return fmt.Errorf("%d operands for an equation of %d terms", c.NumIn(), len(e.terms))
		}
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		for i := range c.Ins {
			if t := c.In(i); t == nil || t.DType() != x.DType() {
				return fmt.Errorf("operand %d does not have the type of operand 0", i)
			}
		}
		switch carrierOf(x.DType()) {
		case carryF32:
			return einsum[float32](c, e, x.DType())
		case carryF64:
			return einsum[float64](c, e, x.DType())
		case carryI64:
			return einsum[int64](c, e, x.DType())
		case carryU64:
			return einsum[uint64](c, e, x.DType())
		}
		return fmt.Errorf("not defined for %v", x.DType())
	}, nil
}

// factor is an operand of a product over labelled indices.
type factor[T tensor.Real] struct {
	data   []T
	labels []label
	stride map[label]int
}

// einsum multiplies the operands from the left, two at a time, and sums over
// each index as soon as nothing behind needs it.
func einsum[T tensor.Real](c *Call, e *equation, d tensor.DType) error {
	size := map[label]int{}
	terms := make([][]label, len(e.terms))
	factors := make([]factor[T], len(e.terms))
	for i := range terms {
		t := c.In(i)
		labels, err := e.expand(i, t.Rank())
		if err != nil {
			return err
		}
		terms[i] = labels
		f := factor[T]{stride: map[label]int{}}
		if f.data, err = load[T](c, t); err != nil {
			return err
		}
		stride := 1
		for k := t.Rank() - 1; k >= 0; k-- {
			l, n := labels[k], t.Shape()[k]
			switch old, seen := size[l]; {
			case !seen || old == 1:
				size[l] = n
			case n != old && n != 1:
				return fmt.Errorf("operand %d: an index of size %d has size %d", i, old, n)
			}
			if !slices.Contains(f.labels, l) {
				f.labels = append(f.labels, l)
			}
			if n != 1 { // an index of size 1 is repeated
				f.stride[l] += stride
			}
			stride *= n
		}
		slices.Reverse(f.labels)
		factors[i] = f
	}
	labels := e.output(terms)
	shape := make([]int, len(labels))
	for i, l := range labels {
		shape[i] = size[l]
	}
	out, err := newOutput[T](c, 0, -1, d, shape)
	if err != nil {
		return err
	}
	left := factors[0]
	for i, f := range factors[1:] {
		needed := func(l label) bool {
			return slices.Contains(labels, l) || slices.ContainsFunc(factors[i+2:], func(g factor[T]) bool { return slices.Contains(g.labels, l) })
		}
		if left, err = multiply(c, left, f, size, needed); err != nil {
			return err
		}
	}
	if left, err = sumOver(c, left, size, func(l label) bool { return slices.Contains(labels, l) }); err != nil {
		return err
	}
	if err := left.gather(c, out.data, labels, size); err != nil {
		return err
	}
	return out.store(c)
}

// gather stores f in dst, a dense array over labels.
func (f factor[T]) gather(c *Call, dst []T, labels []label, size map[label]int) error {
	w := &walk{ops: 1}
	for i := len(labels) - 1; i >= 0; i-- {
		n, s := size[labels[i]], f.stride[labels[i]]
		if last := len(w.dims) - 1; last >= 0 && s == w.strides[last][0]*w.dims[last] {
			w.dims[last] *= n
			continue
		}
		w.dims = append(w.dims, n)
		w.strides = append(w.strides, [3]int{s})
	}
	if len(w.dims) == 0 {
		w.dims, w.strides = []int{1}, [][3]int{{}}
	}
	if len(dst) == 0 {
		return nil
	}
	return c.For(len(dst), cheapChunk, func(lo, hi int) {
		w.visit(lo, hi, func(l *lanes) {
			for r := range l.rows {
				d := dst[l.out+r*l.n:][:l.n]
				at := l.at[0] + r*l.skip[0]
				if l.step[0] == 1 {
					copy(d, f.data[at:at+l.n])
					continue
				}
				for k := range d {
					d[k] = f.data[at]
					at += l.step[0]
				}
			}
		})
	})
}

// dense returns f as a dense array over labels, in its own memory where it is
// one already.
func (f factor[T]) dense(c *Call, labels []label, size map[label]int) ([]T, error) {
	n, already := 1, true
	for i := len(labels) - 1; i >= 0; i-- {
		already = already && (f.stride[labels[i]] == n || size[labels[i]] == 1)
		n *= size[labels[i]]
	}
	if already && n == len(f.data) {
		return f.data, nil
	}
	buf, err := scratch[T](c, n)
	if err != nil {
		return nil, err
	}
	return buf, f.gather(c, buf, labels, size)
}

func newFactor[T tensor.Real](data []T, labels []label, size map[label]int) factor[T] {
	f := factor[T]{data: data, labels: labels, stride: map[label]int{}}
	n := 1
	for i := len(labels) - 1; i >= 0; i-- {
		f.stride[labels[i]] = n
		n *= size[labels[i]]
	}
	return f
}

// sumOver adds up f over the indices that are not kept.
func sumOver[T tensor.Real](c *Call, f factor[T], size map[label]int, keep func(label) bool) (factor[T], error) {
	var kept, gone []label
	outer, inner := 1, 1
	for _, l := range f.labels {
		if keep(l) {
			kept = append(kept, l)
			outer *= size[l]
		} else {
			gone = append(gone, l)
			inner *= size[l]
		}
	}
	if len(gone) == 0 {
		return f, nil
	}
	src, err := f.dense(c, append(slices.Clone(kept), gone...), size)
	if err != nil {
		return f, err
	}
	dst, err := scratch[T](c, outer)
	if err != nil {
		return f, err
	}
	err = c.For(outer, max(1, reduceWork/max(inner, 1)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			dst[i] = total(src[i*inner : (i+1)*inner])
		}
	})
	return newFactor(dst, kept, size), err
}

func total[T tensor.Real](x []T) T {
	if x32, ok := any(x).([]float32); ok {
		return T(kernels.ReduceSum(x32))
	}
	var sum T
	for _, v := range x {
		sum += v
	}
	return sum
}

// multiply returns the product of a and b, summed over the indices that are
// not needed, as a batch of matrix products.
func multiply[T tensor.Real](c *Call, a, b factor[T], size map[label]int, needed func(label) bool) (factor[T], error) {
	var err error
	if a, err = sumOver(c, a, size, func(l label) bool { return needed(l) || slices.Contains(b.labels, l) }); err != nil {
		return a, err
	}
	if b, err = sumOver(c, b, size, func(l label) bool { return needed(l) || slices.Contains(a.labels, l) }); err != nil {
		return a, err
	}
	var batch, rows, cols, deep []label
	nb, m, n, k := 1, 1, 1, 1
	for _, l := range a.labels {
		switch in := slices.Contains(b.labels, l); {
		case in && needed(l):
			batch = append(batch, l)
			nb *= size[l]
		case in:
			deep = append(deep, l)
			k *= size[l]
		default:
			rows = append(rows, l)
			m *= size[l]
		}
	}
	for _, l := range b.labels {
		if !slices.Contains(a.labels, l) {
			cols = append(cols, l)
			n *= size[l]
		}
	}
	join := func(lists ...[]label) []label { return slices.Concat(lists...) }
	x, err := a.dense(c, join(batch, rows, deep), size)
	if err != nil {
		return a, err
	}
	y, err := b.dense(c, join(batch, deep, cols), size)
	if err != nil {
		return a, err
	}
	z, err := scratch[T](c, nb*m*n)
	if err != nil {
		return a, err
	}
	batchProduct(c, nb, m, n, k, x, y, z)
	return newFactor(z, join(batch, rows, cols), size), c.Ctx.Err()
}

// batchProduct computes z[i] = x[i]·y[i] for dense m×k and k×n matrices.
func batchProduct[T tensor.Real](c *Call, batch, m, n, k int, x, y, z []T) {
	if x32, ok := any(x).([]float32); ok {
		kernels.GemmBatch(c.Pool, batch, m, n, k, kernels.Matrix{Data: x32, Ld: k}, m*k,
			kernels.Matrix{Data: any(y).([]float32), Ld: n}, k*n, any(z).([]float32), n, m*n)
		return
	}
	c.Pool.For(batch*m, max(1, reduceWork/max(n*k, 1)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			row := z[i*n:][:n]
			clear(row)
			right := y[i/m*k*n:]
			for d, v := range x[i*k:][:k] {
				for j, w := range right[d*n:][:n] {
					row[j] += T(v * w)
				}
			}
		}
	})
}
