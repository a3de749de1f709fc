package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// bare returns a copy of dims without what only the file knows about them.
func bare(dims []graph.Dim) []graph.Dim {
	if dims == nil {
		return nil
	}
	out := make([]graph.Dim, len(dims))
	for i, d := range dims {
		d.Extra = nil
		out[i] = d
	}
	return out
}

// dimMul returns a·b as far as it is known.
func dimMul(a, b graph.Dim) graph.Dim {
	switch {
	case a.Known && b.Known:
		p := a.Size * b.Size
		if a.Size != 0 && (p/a.Size != b.Size || a.Size == -1 && b.Size == math.MinInt64) {
			return graph.Dim{}
		}
		return graph.D(p)
	case a.Known && a.Size == 1:
		return graph.Dim{Sym: b.Sym}
	case b.Known && b.Size == 1:
		return graph.Dim{Sym: a.Sym}
	case a.Known && a.Size == 0, b.Known && b.Size == 0:
		return graph.D(0)
	}
	return graph.Dim{}
}

// dimAdd returns a+b as far as it is known.
func dimAdd(a, b graph.Dim) graph.Dim {
	switch {
	case a.Known && b.Known:
		s := a.Size + b.Size
		if (s > a.Size) != (b.Size > 0) && b.Size != 0 {
			return graph.Dim{}
		}
		return graph.D(s)
	case a.Known && a.Size == 0:
		return graph.Dim{Sym: b.Sym}
	case b.Known && b.Size == 0:
		return graph.Dim{Sym: a.Sym}
	}
	return graph.Dim{}
}

// dimProduct returns the product of dims as far as it is known.
func dimProduct(dims []graph.Dim) graph.Dim {
	p := graph.D(1)
	for _, d := range dims {
		if d.Known && d.Size == 0 {
			return graph.D(0)
		}
	}
	for _, d := range dims {
		p = dimMul(p, d)
	}
	return p
}

// dimQuotient returns Π num / Π den where equal factors cancel and the rest is
// known, a symbol among the rest being kept if it stands alone.
func dimQuotient(num, den []graph.Dim) graph.Dim {
	num = append([]graph.Dim(nil), num...)
	n, d := graph.D(1), graph.D(1)
	var left []graph.Dim
	for _, x := range den {
		if x.Known {
			d = dimMul(d, x)
			continue
		}
		found := false
		for i, y := range num {
			if !y.Known && x.Same(y) {
				num = append(num[:i], num[i+1:]...)
				found = true
				break
			}
		}
		if !found {
			return graph.Dim{}
		}
	}
	for _, x := range num {
		if x.Known {
			n = dimMul(n, x)
		} else {
			left = append(left, x)
		}
	}
	if !n.Known || !d.Known || d.Size <= 0 {
		return graph.Dim{}
	}
	if len(left) == 0 || n.Size == 0 {
		if n.Size%d.Size != 0 {
			return graph.Dim{}
		}
		return graph.D(n.Size / d.Size)
	}
	if len(left) == 1 && n.Size == d.Size {
		return graph.Dim{Sym: left[0].Sym}
	}
	return graph.Dim{}
}

// unify returns what two statements about one dimension say together and
// whether they agree.
func unify(a, b graph.Dim) (graph.Dim, bool) {
	switch {
	case a.Known && b.Known:
		return graph.D(a.Size), a.Size == b.Size
	case a.Known:
		return graph.D(a.Size), true
	case b.Known:
		return graph.D(b.Size), true
	case a.Sym != "":
		return graph.Dim{Sym: a.Sym}, true
	}
	return graph.Dim{Sym: b.Sym}, true
}

// vector returns the contents of integer input i of rank 1: entries that are
// not known are empty dimensions. It is false if not even the length is
// known.
func (c *Inference) vector(i int) ([]graph.Dim, bool) {
	if d, ok := c.Dims(i); ok {
		return d, true
	}
	s := c.Shape(i)
	if len(s) == 1 && s[0].Known && s[0].Size >= 0 && s[0].Size <= maxPropagated {
		return make([]graph.Dim, s[0].Size), true
	}
	return nil, false
}

// axis returns attribute name as an axis of a tensor of the given rank.
func (c *Inference) axis(name string, def int64, rank int) (int, error) {
	return NormalAxis(c.Node.Int(name, def), rank)
}

// list returns the integers of attribute name, or, from operator set since
// on, of input i. Given tells whether the node has them at all, known whether
// their values are.
func (c *Inference) list(name string, since, i int) (v []int64, given, known bool) {
	if c.Opset < since {
		a := c.Node.Attr(name)
		return c.Node.Ints(name), a != nil, a == nil || a.RefName == ""
	}
	if c.Node.Input(i) == nil {
		return nil, false, true
	}
	v, known = c.Ints(i)
	return v, true, known
}

// passDims states that output 0 has the contents of input 0 in its own shape.
func (c *Inference) passDims() {
	if d, _, ok := c.contents(0); ok {
		c.SetDims(0, d)
	} else if d, ok := c.Dims(0); ok {
		c.SetDims(0, d)
	}
}

// moveDims states the contents of output 0, of shape out, as the elements of
// contents that cp, whose source strides and offset are set, reads.
func (c *Inference) moveDims(out graph.Shape, contents []graph.Dim, cp *strided) {
	shape, ok := out.Dims()
	if !ok {
		return
	}
	n, ok := tensor.NumElements(shape)
	if !ok || n > maxPropagated {
		return
	}
	cp.dims, cp.dst = append([]int{}, shape...), rowMajor(shape)
	dst := make([]graph.Dim, n)
	if n > 0 {
		cp.squash()
		if err := stridedCopy(nil, dst, contents, cp); err != nil {
			return
		}
	}
	c.SetDims(0, dst)
}

// intList is a list of integers that a node has in an attribute or reads from
// an input.
type intList struct {
	given bool
	value []int64
	input int // -1: value holds it
}

func (s *Site) list(name string, since, i int) intList {
	if s.Opset < since {
		return intList{given: s.Node.Attr(name) != nil, value: s.Node.Ints(name), input: -1}
	}
	return intList{given: s.Has(i), input: i}
}

// get returns the list, and nil if the node does not give it.
func (l intList) get(c *Call) ([]int64, error) {
	if l.input < 0 || !l.given {
		return l.value, nil
	}
	return c.ints(l.input)
}

// ints returns the contents of integer input i, which must be there.
func (c *Call) ints(i int) ([]int64, error) {
	t := c.In(i)
	if t == nil {
		return nil, fmt.Errorf("input %d is missing", i)
	}
	return intsOf(t)
}

// int returns the only element of integer input i, or def if it is omitted.
func (c *Call) int(i int, def int64) (int64, error) {
	if c.In(i) == nil {
		return def, nil
	}
	v, err := c.ints(i)
	if err != nil {
		return 0, err
	}
	if len(v) != 1 {
		return 0, fmt.Errorf("input %d has %d elements, want one", i, len(v))
	}
	return v[0], nil
}

// intsOf returns the elements of a tensor of any integer type.
func intsOf(t *tensor.Tensor) ([]int64, error) {
	if !t.DType().IsInt() {
		return nil, fmt.Errorf("element type %v where integers are wanted", t.DType())
	}
	return tensor.Int64s(t)
}

// realOf returns the only element of numeric input i, or def if it is omitted.
func (c *Call) realOf(i int, def float64) (float64, error) {
	t := c.In(i)
	if t == nil {
		return def, nil
	}
	if t.Len() != 1 {
		return 0, fmt.Errorf("input %d has %d elements, want one", i, t.Len())
	}
	v, err := tensor.Float64s(t)
	if err != nil {
		return 0, err
	}
	return v[0], nil
}

// sizesOf returns v as dimensions.
func sizesOf(v []int64) ([]int, error) {
	out := make([]int, len(v))
	for i, x := range v {
		if x < 0 || x > math.MaxInt {
			return nil, fmt.Errorf("size %d of axis %d", x, i)
		}
		out[i] = int(x)
	}
	return out, nil
}

// normalAxes returns axes in [0, rank), which must be distinct.
func normalAxes(axes []int64, rank int) ([]int, error) {
	out := make([]int, len(axes))
	for i, a := range axes {
		k, err := NormalAxis(a, rank)
		if err != nil {
			return nil, err
		}
		for _, b := range out[:i] {
			if b == k {
				return nil, fmt.Errorf("axis %d is given twice", k)
			}
		}
		out[i] = k
	}
	return out, nil
}
