package ops

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// indexSpecs are the operators that read and write places that other tensors
// name.
//
// The data of Gather is a Weight: where it is constant it is an embedding
// table, whose last axis runs over the features.
func indexSpecs() []Spec {
	data := func(name string) Port { return Port{Name: name, Role: Activation} }
	index := func(name string) Port { return Port{Name: name, Role: Index} }
	axis := AttrSpec{Name: "axis", Kind: graph.AttrInt}
	reduction := AttrSpec{Name: "reduction", Kind: graph.AttrString}
	return []Spec{
		{Type: "Gather", Since: 1, Flow: Pass, Pure: true,
			In: []Port{{Name: "data", Role: Weight, Axis: -1}, index("indices")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{axis},
			Infer: inferGather, Compile: compileGather},
		{Type: "GatherElements", Since: 11, Flow: Pass, Pure: true,
			In: []Port{data("data"), index("indices")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{axis},
			Infer: inferGatherElements, Compile: compileGatherElements},
		{Type: "GatherND", Since: 11, Flow: Pass, Pure: true,
			In: []Port{data("data"), index("indices")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "batch_dims", Kind: graph.AttrInt}},
			Infer: inferGatherND, Compile: compileGatherND},
		{Type: "Scatter", Since: 9, Flow: Join, Pure: true,
			In: []Port{data("data"), index("indices"), data("updates")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{axis},
			Infer: (*Inference).Same, Compile: compileScatterElements},
		{Type: "ScatterElements", Since: 11, Flow: Join, Pure: true,
			In: []Port{data("data"), index("indices"), data("updates")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{axis, reduction},
			Infer: (*Inference).Same, Compile: compileScatterElements},
		{Type: "ScatterND", Since: 11, Flow: Join, Pure: true,
			In: []Port{data("data"), index("indices"), data("updates")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{reduction},
			Infer: (*Inference).Same, Compile: compileScatterND},
		{Type: "TensorScatter", Since: 24, Flow: Join, Pure: true,
			In:    []Port{data("past_cache"), data("update"), {Name: "write_indices", Role: Index, Optional: true}},
			Out:   []Port{data("present_cache")},
			Attrs: []AttrSpec{axis, {Name: "mode", Kind: graph.AttrString}},
			Infer: (*Inference).Same, Compile: compileTensorScatter},
		{Type: "Unique", Since: 11, Flow: Pass, Pure: true,
			In: []Port{data("X")},
			Out: []Port{data("Y"), {Name: "indices", Role: Index, Optional: true},
				{Name: "inverse_indices", Role: Index, Optional: true}, {Name: "counts", Role: Index, Optional: true}},
			Attrs: []AttrSpec{axis, {Name: "sorted", Kind: graph.AttrInt}},
			Infer: inferUnique, Compile: compileUnique},
	}
}

func inferGather(c *Inference) error {
	in, idx := c.Shape(0), c.Shape(1)
	if in == nil || idx == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	axis, err := c.axis("axis", 0, len(in))
	if err != nil {
		return err
	}
	out := append(append(append(graph.Shape{}, bare(in[:axis])...), bare(idx)...), bare(in[axis+1:])...)
	c.Tensor(0, c.Elem(0), out)
	contents, shape, ok := c.contents(0)
	picks, _, ok1 := c.contents(1)
	if !ok || !ok1 {
		return nil
	}
	outer, inner, d := volume(shape[:axis]), volume(shape[axis+1:]), shape[axis]
	if outer*len(picks)*inner > maxPropagated {
		return nil
	}
	var part []graph.Dim
	for o := range outer {
		for _, k := range picks {
			if !k.Known {
				return nil
			}
			at, err := place(k.Size, d)
			if err != nil {
				return err
			}
			part = append(part, contents[(o*d+at)*inner:][:inner]...)
		}
	}
	c.SetDims(0, part)
	return nil
}

// place returns index i of an axis of size d in [0, d).
func place(i int64, d int) (int, error) {
	if i < -int64(d) || i >= int64(d) {
		return 0, fmt.Errorf("index %d is not in [-%d, %d)", i, d, d)
	}
	if i < 0 {
		i += int64(d)
	}
	return int(i), nil
}

func compileGather(s *Site) (Kernel, error) {
	attr := s.Node.Int("axis", 0)
	return moving(func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		axis, err := NormalAxis(attr, len(in))
		if err != nil {
			return err
		}
		idx, err := c.ints(1)
		if err != nil {
			return err
		}
		at := make([]int, len(idx))
		for i, k := range idx {
			if at[i], err = place(k, in[axis]); err != nil {
				return err
			}
		}
		where := c.In(1).Shape()
		shape := make([]int, 0, len(in)+len(where))
		shape = append(append(append(shape, in[:axis]...), where...), in[axis+1:]...)
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil || out.Len() == 0 {
			return err
		}
		outer, inner, d, n := volume(in[:axis]), volume(in[axis+1:]), in[axis], len(at)
		dst, src := cellsOf(out), cellsOf(x)
		if outer > n { // few indices
			for k, j := range at {
				if err := copyRows(c, out, x, outer, inner, k*inner, n*inner, j*inner, d*inner); err != nil {
					return err
				}
			}
			return nil
		}
		move := func(lo, hi int) {
			for lo < hi {
				o, k := lo/n, lo%n
				for ; k < n && lo < hi; k++ {
					dst.put(lo*inner, src, (o*d+at[k])*inner, inner)
					lo++
				}
			}
		}
		if out.Len() <= pieceElems {
			move(0, outer*n)
			return nil
		}
		return c.For(outer*n, max(1, pieceElems/inner), move)
	}, 0, 0), nil
}

func inferGatherElements(c *Inference) error {
	if in, idx := c.Shape(0), c.Shape(1); in != nil && idx != nil && len(in) != len(idx) {
		return c.Errorf("data has shape %v, indices %v", in, idx)
	}
	c.Tensor(0, c.Elem(0), bare(c.Shape(1)))
	return nil
}

// elementwiseIndex calls f for every element of an index tensor of shape at,
// with its position and the offset in a tensor of shape in that it names on
// the given axis, in order.
func elementwiseIndex(idx []int64, at, in []int, axis int, f func(i, offset int)) error {
	if len(at) != len(in) {
		return fmt.Errorf("indices of shape %v for data of shape %v", at, in)
	}
	for k, d := range at {
		if k != axis && d > in[k] {
			return fmt.Errorf("indices of shape %v for data of shape %v", at, in)
		}
	}
	if len(idx) == 0 {
		return nil
	}
	st := rowMajor(in)
	step := st[axis]
	st[axis] = 0
	last := len(at) - 1
	if last < 0 {
		p, err := place(idx[0], in[axis])
		if err != nil {
			return err
		}
		f(0, p*step)
		return nil
	}
	walk, each, d := newStepper(at[:last], st[:last], st[:last], 0), st[last], in[axis]
	for i := 0; i < len(idx); walk.next() {
		base := walk.oa
		for range at[last] {
			k := int(idx[i])
			if uint(k) >= uint(d) {
				p, err := place(idx[i], d)
				if err != nil {
					return err
				}
				k = p
			}
			f(i, base+k*step)
			base += each
			i++
		}
	}
	return nil
}

func compileGatherElements(s *Site) (Kernel, error) {
	attr := s.Node.Int("axis", 0)
	return moving(func(c *Call) error {
		x := c.In(0)
		axis, err := NormalAxis(attr, x.Rank())
		if err != nil {
			return err
		}
		idx, err := c.ints(1)
		if err != nil {
			return err
		}
		shape := c.In(1).Shape()
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil {
			return err
		}
		if x.DType().Bits() == 32 {
			dst, src := tensor.As[uint32](out), tensor.As[uint32](x)
			return elementwiseIndex(idx, shape, x.Shape(), axis, func(i, offset int) { dst[i] = src[offset] })
		}
		dst, src := cellsOf(out), cellsOf(x)
		return elementwiseIndex(idx, shape, x.Shape(), axis, func(i, offset int) { dst.put(i, src, offset, 1) })
	}, 0, 0), nil
}

func inferGatherND(c *Inference) error {
	in, idx := c.Shape(0), c.Shape(1)
	if in == nil || len(idx) == 0 || !idx[len(idx)-1].Known {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	batch := c.Node.Int("batch_dims", 0)
	k := idx[len(idx)-1].Size
	if batch < 0 || batch >= int64(len(idx)) || k < 1 || batch+k > int64(len(in)) {
		return c.Errorf("indices of shape %v for data of shape %v with %d batch axes", idx, in, batch)
	}
	c.Tensor(0, c.Elem(0), append(graph.Shape(bare(idx[:len(idx)-1])), bare(in[batch+k:])...))
	return nil
}

// tuples resolves an index tensor whose last axis holds index tuples into the
// axes of in behind the first batch ones. It returns the offset of each block
// and the blocks' size.
func tuples(idx []int64, at, in []int, batch int) (offsets []int, block int, err error) {
	if len(at) == 0 || batch < 0 || batch >= len(at) || batch+at[len(at)-1] > len(in) {
		return nil, 0, fmt.Errorf("indices of shape %v for data of shape %v with %d batch axes", at, in, batch)
	}
	k := at[len(at)-1]
	for i := range batch {
		if at[i] != in[i] {
			return nil, 0, fmt.Errorf("indices of shape %v for data of shape %v with %d batch axes", at, in, batch)
		}
	}
	st := rowMajor(in)
	block = volume(in[batch+k:])
	n, per := volume(at[:len(at)-1]), volume(at[batch:len(at)-1])
	size := volume(in[batch:])
	offsets = make([]int, n)
	for i := range offsets {
		p := i / max(per, 1) * size
		for j := range k {
			x, err := place(idx[i*k+j], in[batch+j])
			if err != nil {
				return nil, 0, err
			}
			p += x * st[batch+j]
		}
		offsets[i] = p
	}
	return offsets, block, nil
}

func compileGatherND(s *Site) (Kernel, error) {
	batch := s.Node.Int("batch_dims", 0)
	return moving(func(c *Call) error {
		x := c.In(0)
		idx, err := c.ints(1)
		if err != nil {
			return err
		}
		at, in := c.In(1).Shape(), x.Shape()
		if batch < 0 || batch > int64(len(in)) {
			return fmt.Errorf("batch_dims is %d for data %v", batch, x)
		}
		offsets, block, err := tuples(idx, at, in, int(batch))
		if err != nil {
			return err
		}
		shape := append(append([]int{}, at[:len(at)-1]...), in[int(batch)+at[len(at)-1]:]...)
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil {
			return err
		}
		dst, src := cellsOf(out), cellsOf(x)
		for i, p := range offsets {
			dst.put(i*block, src, p, block)
		}
		return nil
	}, 0, 0), nil
}

// copyOut makes a copy of input 0, in its memory if possible, output 0.
func copyOut(c *Call) (*tensor.Tensor, error) {
	x := c.In(0)
	out, err := c.OutLike(0, 0, x.DType(), x.Shape()...)
	if err != nil {
		return nil, err
	}
	if b := out.Bytes(); len(b) > 0 && &b[0] == &x.Bytes()[0] {
		return out, nil
	}
	return out, copyAll(c, out, x)
}

// reducer returns the function that combines n elements of src from index
// from into dst at index at.
func reducer(reduction string, dst, src *tensor.Tensor) (func(at, from, n int), error) {
	if reduction == "none" || reduction == "" {
		d, s := cellsOf(dst), cellsOf(src)
		return func(at, from, n int) { d.put(at, s, from, n) }, nil
	}
	if !slices.Contains([]string{"add", "mul", "min", "max"}, reduction) {
		return nil, fmt.Errorf("reduction %q", reduction)
	}
	switch dst.DType() {
	case tensor.Float32:
		return reduce[float32](reduction, dst, src), nil
	case tensor.Float64:
		return reduce[float64](reduction, dst, src), nil
	case tensor.Int8:
		return reduce[int8](reduction, dst, src), nil
	case tensor.Int16:
		return reduce[int16](reduction, dst, src), nil
	case tensor.Int32:
		return reduce[int32](reduction, dst, src), nil
	case tensor.Int64:
		return reduce[int64](reduction, dst, src), nil
	case tensor.Uint8:
		return reduce[uint8](reduction, dst, src), nil
	case tensor.Uint16:
		return reduce[uint16](reduction, dst, src), nil
	case tensor.Uint32:
		return reduce[uint32](reduction, dst, src), nil
	case tensor.Uint64:
		return reduce[uint64](reduction, dst, src), nil
	case tensor.Bool:
		d, s := tensor.As[bool](dst), tensor.As[bool](src)
		and := reduction == "mul" || reduction == "min"
		return func(at, from, n int) {
			for i := range n {
				if and {
					d[at+i] = d[at+i] && s[from+i]
				} else {
					d[at+i] = d[at+i] || s[from+i]
				}
			}
		}, nil
	case tensor.Float16, tensor.BFloat16:
		return func(at, from, n int) {
			var a, b [1]float32
			for i := range n {
				tensor.Read(dst, at+i, a[:])
				tensor.Read(src, from+i, b[:])
				a[0] = combine(reduction, a[0], b[0])
				tensor.Write(dst, at+i, a[:])
			}
		}, nil
	}
	return nil, fmt.Errorf("reduction %s of element type %v", reduction, dst.DType())
}

func reduce[T realType](reduction string, dst, src *tensor.Tensor) func(at, from, n int) {
	d, s := tensor.As[T](dst), tensor.As[T](src)
	return func(at, from, n int) {
		a, b := d[at:at+n], s[from:from+n]
		for i, v := range b {
			a[i] = combine(reduction, a[i], v)
		}
	}
}

// realType lists the Go types of real numbers.
type realType interface {
	float32 | float64 | int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64
}

func combine[T realType](reduction string, a, b T) T {
	switch reduction {
	case "add":
		return a + b
	case "mul":
		return a * b
	case "min":
		return min(a, b)
	}
	return max(a, b)
}

func compileScatterElements(s *Site) (Kernel, error) {
	attr, reduction := s.Node.Int("axis", 0), s.Node.String("reduction", "none")
	return moving(func(c *Call) error {
		x, updates := c.In(0), c.In(2)
		axis, err := NormalAxis(attr, x.Rank())
		if err != nil {
			return err
		}
		idx, err := c.ints(1)
		if err != nil {
			return err
		}
		at := c.In(1).Shape()
		if !slices.Equal(at, updates.Shape()) || updates.DType() != x.DType() {
			return fmt.Errorf("updates are %v for data %v and indices %v", updates, x, c.In(1))
		}
		out, err := copyOut(c)
		if err != nil {
			return err
		}
		put, err := reducer(reduction, out, updates)
		if err != nil {
			return err
		}
		return elementwiseIndex(idx, at, x.Shape(), axis, func(i, offset int) { put(offset, i, 1) })
	}, 0, -1), nil
}

func compileScatterND(s *Site) (Kernel, error) {
	reduction := s.Node.String("reduction", "none")
	return moving(func(c *Call) error {
		x, updates := c.In(0), c.In(2)
		idx, err := c.ints(1)
		if err != nil {
			return err
		}
		offsets, block, err := tuples(idx, c.In(1).Shape(), x.Shape(), 0)
		if err != nil {
			return err
		}
		if updates.Len() != len(offsets)*block || updates.DType() != x.DType() {
			return fmt.Errorf("updates are %v for data %v and indices %v", updates, x, c.In(1))
		}
		out, err := copyOut(c)
		if err != nil {
			return err
		}
		put, err := reducer(reduction, out, updates)
		if err != nil {
			return err
		}
		for i, p := range offsets {
			put(p, i*block, block)
		}
		return nil
	}, 0, -1), nil
}

func compileTensorScatter(s *Site) (Kernel, error) {
	attr := s.Node.Int("axis", -2)
	mode := s.Node.String("mode", "linear")
	if mode != "linear" && mode != "circular" {
		return nil, s.Errorf("mode %q", mode)
	}
	return moving(func(c *Call) error {
		x, u := c.In(0), c.In(1)
		in := x.Shape()
		axis, err := NormalAxis(attr, len(in))
		if err != nil {
			return err
		}
		if axis == 0 || u.Rank() != len(in) || u.DType() != x.DType() {
			return fmt.Errorf("update is %v for cache %v on axis %d", u, x, axis)
		}
		for k, d := range u.Shape() {
			if d > in[k] || k != axis && d != in[k] {
				return fmt.Errorf("update is %v for cache %v on axis %d", u, x, axis)
			}
		}
		starts := make([]int64, in[0])
		if c.In(2) != nil {
			if starts, err = c.ints(2); err != nil {
				return err
			}
			if len(starts) != in[0] {
				return fmt.Errorf("%d write indices for a batch of %d", len(starts), in[0])
			}
		}
		steps, size := u.Shape()[axis], in[axis]
		for _, p := range starts {
			if p < 0 || mode == "linear" && p > int64(size-steps) {
				return fmt.Errorf("write index %d for %d of %d steps", p, steps, size)
			}
		}
		out, err := copyOut(c)
		if err != nil {
			return err
		}
		dst, src := cellsOf(out), cellsOf(u)
		inner, per := volume(in[axis+1:]), volume(in[1:axis])
		for i := range in[0] * per {
			p := int(starts[i/per] % int64(max(size, 1)))
			for k := range steps {
				dst.put((i*size+(p+k)%size)*inner, src, (i*steps+k)*inner, inner)
			}
		}
		return nil
	}, 0, 1), nil
}

func inferUnique(c *Inference) error {
	in := c.Shape(0)
	out := graph.UnknownShape(1)
	if c.Node.Attr("axis") != nil {
		if out = bare(in); in != nil {
			axis, err := c.axis("axis", 0, len(in))
			if err != nil {
				return err
			}
			out[axis] = graph.Dim{}
		}
	}
	c.Tensor(0, c.Elem(0), out)
	for i := 1; i < 4; i++ {
		c.Tensor(i, tensor.Int64, graph.UnknownShape(1))
	}
	return nil
}

func compileUnique(s *Site) (Kernel, error) {
	hasAxis, attr := s.Node.Attr("axis") != nil, s.Node.Int("axis", 0)
	ordered := s.Node.Int("sorted", 1) != 0
	return func(c *Call) error {
		x := c.In(0)
		in, axis := []int{x.Len()}, 0
		if hasAxis {
			in = x.Shape()
			var err error
			if axis, err = NormalAxis(attr, len(in)); err != nil {
				return err
			}
		}
		outer, n, inner := volume(in[:axis]), in[axis], volume(in[axis+1:])
		less, err := elementOrder(x)
		if err != nil {
			return err
		}
		compare := func(a, b int) int {
			for o := range outer {
				p, q := (o*n+a)*inner, (o*n+b)*inner
				for i := range inner {
					if k := less(p+i, q+i); k != 0 {
						return k
					}
				}
			}
			return 0
		}
		order := make([]int, n)
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, compare)
		// groups are runs of equal subtensors, each in order of appearance.
		var groups [][]int
		for i := 0; i < n; {
			j := i + 1
			for j < n && compare(order[i], order[j]) == 0 {
				j++
			}
			groups = append(groups, order[i:j])
			i = j
		}
		if !ordered {
			slices.SortFunc(groups, func(a, b []int) int { return cmp.Compare(a[0], b[0]) })
		}
		shape := append([]int{}, in...)
		shape[axis] = len(groups)
		var lists [4][]int64
		lists[2] = make([]int64, n)
		first := make([]int, len(groups))
		for g, members := range groups {
			first[g] = members[0]
			lists[1] = append(lists[1], int64(members[0]))
			lists[3] = append(lists[3], int64(len(members)))
			for _, m := range members {
				lists[2][m] = int64(g)
			}
		}
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil {
			return err
		}
		for i := 1; i < len(c.Outs); i++ {
			if !c.Wanted[i] {
				continue
			}
			t, err := c.Out(i, tensor.Int64, len(lists[i]))
			if err != nil {
				return err
			}
			copy(tensor.As[int64](t), lists[i])
		}
		maps := make([][]int, len(in))
		maps[axis] = first
		return (&lookup{maps: maps, src: in, dst: shape}).copy(c, out, x)
	}, nil
}

// elementOrder returns the order of two elements of t by position: numbers by
// value with NaN first, strings by bytes, false before true.
func elementOrder(t *tensor.Tensor) (func(a, b int) int, error) {
	switch t.DType() {
	case tensor.String:
		s := t.Strings()
		return func(a, b int) int { return strings.Compare(s[a], s[b]) }, nil
	case tensor.Int64:
		return orderOf(tensor.As[int64](t)), nil
	case tensor.Uint64:
		return orderOf(tensor.As[uint64](t)), nil
	case tensor.Float32:
		return orderOf(tensor.As[float32](t)), nil
	case tensor.Uint8, tensor.Bool:
		return orderOf(tensor.As[uint8](t)), nil
	case tensor.Complex64:
		return complexOrder(tensor.As[complex64](t)), nil
	case tensor.Complex128:
		return complexOrder(tensor.As[complex128](t)), nil
	}
	v, err := tensor.Float64s(t)
	if err != nil {
		return nil, err
	}
	return orderOf(v), nil
}

func orderOf[T cmp.Ordered](s []T) func(a, b int) int {
	return func(a, b int) int { return cmp.Compare(s[a], s[b]) }
}

// complexOrder orders by real, then by imaginary part.
func complexOrder[T complex64 | complex128](s []T) func(a, b int) int {
	return func(a, b int) int {
		x, y := complex128(s[a]), complex128(s[b])
		return cmp.Or(cmp.Compare(real(x), real(y)), cmp.Compare(imag(x), imag(y)))
	}
}
