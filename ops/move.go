package ops

import (
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// moveSpecs are the operators that rearrange, join, cut and pad tensors.
//
// The constant that Pad writes has the role Ignore: where Pad passes
// quantization parameters on, they must represent that constant too.
func moveSpecs() []Spec {
	data := func(name string) Port { return Port{Name: name, Role: Activation} }
	index := func(name string) Port { return Port{Name: name, Role: Index} }
	maybe := func(name string) Port { return Port{Name: name, Role: Index, Optional: true} }
	trilu := func(domain string, since int) Spec {
		return Spec{Domain: domain, Type: "Trilu", Since: since, Flow: Pass, Pure: true,
			In: []Port{data("input"), maybe("k")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "upper", Kind: graph.AttrInt}},
			Infer: (*Inference).Same, Compile: compileTrilu}
	}
	return []Spec{
		{Type: "Transpose", Since: 1, Flow: Pass, Pure: true,
			In: []Port{data("data")}, Out: []Port{data("transposed")},
			Attrs: []AttrSpec{{Name: "perm", Kind: graph.AttrInts}},
			Infer: inferTranspose, Compile: compileTranspose},
		{Type: "Concat", Since: 4, Flow: Join, Pure: true,
			In: []Port{{Name: "inputs", Role: Activation, Variadic: true}}, Out: []Port{data("concat_result")},
			Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt, Required: true}},
			Infer: inferConcat, Compile: compileConcat},
		{Type: "Split", Since: 2, Flow: Pass, Pure: true,
			In: []Port{data("input"), maybe("split")}, Out: []Port{{Name: "outputs", Role: Activation, Variadic: true}},
			Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt}, {Name: "split", Kind: graph.AttrInts}, {Name: "num_outputs", Kind: graph.AttrInt}},
			Infer: inferSplit, Compile: compileSplit},
		{Type: "Slice", Since: 1, Flow: Pass, Pure: true,
			In:    []Port{data("data"), maybe("starts"), maybe("ends"), maybe("axes"), maybe("steps")},
			Out:   []Port{data("output")},
			Attrs: []AttrSpec{{Name: "starts", Kind: graph.AttrInts}, {Name: "ends", Kind: graph.AttrInts}, {Name: "axes", Kind: graph.AttrInts}},
			Infer: inferSlice, Compile: compileSlice},
		{Type: "Compress", Since: 9, Flow: Pass, Pure: true,
			In: []Port{data("input"), {Name: "condition"}}, Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt}},
			Infer: inferCompress, Compile: compileCompress},
		{Type: "ReverseSequence", Since: 10, Flow: Pass, Pure: true,
			In: []Port{data("input"), index("sequence_lens")}, Out: []Port{data("Y")},
			Attrs: []AttrSpec{{Name: "batch_axis", Kind: graph.AttrInt}, {Name: "time_axis", Kind: graph.AttrInt}},
			Infer: (*Inference).Same, Compile: compileReverseSequence},
		{Type: "Pad", Since: 2, Flow: Pass, Pure: true,
			In:    []Port{data("data"), maybe("pads"), {Name: "constant_value", Optional: true}, maybe("axes")},
			Out:   []Port{data("output")},
			Attrs: []AttrSpec{{Name: "mode", Kind: graph.AttrString}, {Name: "pads", Kind: graph.AttrInts}, {Name: "value", Kind: graph.AttrFloat}},
			Infer: inferPad, Compile: compilePad},
		{Type: "DepthToSpace", Since: 1, Flow: Pass, Pure: true,
			In: []Port{data("input")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "blocksize", Kind: graph.AttrInt, Required: true}, {Name: "mode", Kind: graph.AttrString}},
			Infer: inferDepthToSpace, Compile: compileDepthToSpace},
		{Type: "SpaceToDepth", Since: 1, Flow: Pass, Pure: true,
			In: []Port{data("input")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "blocksize", Kind: graph.AttrInt, Required: true}, {Name: "mode", Kind: graph.AttrString}},
			Infer: inferSpaceToDepth, Compile: compileSpaceToDepth},
		trilu(graph.OnnxDomain, 14), trilu(msDomain, 1),
		{Type: "CenterCropPad", Since: 18, Flow: Pass, Pure: true,
			In: []Port{data("input_data"), index("shape")}, Out: []Port{data("output_data")},
			Attrs: []AttrSpec{{Name: "axes", Kind: graph.AttrInts}},
			Infer: inferCenterCropPad, Compile: compileCenterCropPad},
	}
}

// permOf returns the permutation of a Transpose for the given rank.
func permOf(n *graph.Node, rank int) ([]int, error) {
	perm := make([]int, rank)
	attr := n.Ints("perm")
	if n.Attr("perm") == nil {
		for i := range perm {
			perm[i] = rank - 1 - i
		}
		return perm, nil
	}
	if len(attr) != rank {
		return nil, fmt.Errorf("perm %v for rank %d", attr, rank)
	}
	p, err := normalAxes(attr, rank)
	if err != nil {
		return nil, fmt.Errorf("perm %v: %w", attr, err)
	}
	return p, nil
}

func inferTranspose(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		if a := c.Node.Attr("perm"); a != nil && a.RefName == "" {
			c.Tensor(0, c.Elem(0), graph.UnknownShape(len(a.Ints)))
			return nil
		}
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	perm, err := permOf(c.Node, len(in))
	if err != nil {
		return err
	}
	out := make(graph.Shape, len(in))
	for i, p := range perm {
		out[i] = graph.Dim{Size: in[p].Size, Sym: in[p].Sym, Known: in[p].Known}
	}
	c.Tensor(0, c.Elem(0), out)
	if d, shape, ok := c.contents(0); ok {
		st, src := rowMajor(shape), make([]int, len(perm))
		for i, p := range perm {
			src[i] = st[p]
		}
		c.moveDims(out, d, &strided{src: src})
	}
	return nil
}

func compileTranspose(s *Site) (Kernel, error) {
	n := s.Node
	return moving(func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		perm, err := permOf(n, len(in))
		if err != nil {
			return err
		}
		shape := make([]int, len(in))
		last, moved := -1, false
		for i, p := range perm {
			shape[i] = in[p]
			if in[p] != 1 {
				moved = moved || p < last
				last = p
			}
		}
		if !moved {
			return c.View(0, 0, shape...)
		}
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil {
			return err
		}
		return permuteTo(c, out, x, in, perm)
	}, 0, 0), nil
}

// permuteTo copies src, seen with shape in, to dst with its axes in the order
// perm.
func permuteTo(c *Call, dst, src *tensor.Tensor, in, perm []int) error {
	cp := strided{dims: make([]int, len(perm)), src: make([]int, len(perm))}
	st := rowMajor(in)
	for i, p := range perm {
		cp.dims[i], cp.src[i] = in[p], st[p]
	}
	cp.dst = rowMajor(cp.dims)
	return cp.copy(c, dst, src)
}

func inferConcat(c *Inference) error {
	n := c.Node.NumInputs()
	elem := tensor.Undefined
	var known graph.Shape
	for i := range n {
		if elem == tensor.Undefined {
			elem = c.Elem(i)
		}
		if known == nil {
			known = c.Shape(i)
		}
	}
	if known == nil {
		c.Tensor(0, elem, nil)
		return nil
	}
	axis, err := c.axis("axis", 0, len(known))
	if err != nil {
		return err
	}
	out := bare(known)
	out[axis] = graph.D(0)
	contents, ok := []graph.Dim{}, len(known) == 1 || axis == 0
	for i := range n {
		in := c.Shape(i)
		if in == nil {
			out[axis], ok = graph.Dim{}, false
			continue
		}
		if len(in) != len(known) {
			return c.Errorf("inputs have shapes %v and %v", known, in)
		}
		for k, d := range in {
			if k == axis {
				out[k] = dimAdd(out[k], d)
				continue
			}
			u, agree := unify(out[k], d)
			if !agree {
				return c.Errorf("inputs have shapes %v and %v", known, in)
			}
			out[k] = u
		}
		if ok {
			d, _, all := c.contents(i)
			if !all && len(known) == 1 {
				d, all = c.vector(i)
			}
			ok = all
			contents = append(contents, d...)
		}
	}
	c.Tensor(0, elem, out)
	if ok && (elem == tensor.Int64 || elem == tensor.Int32) {
		c.SetDims(0, contents)
	}
	return nil
}

func compileConcat(s *Site) (Kernel, error) {
	attr := s.Node.Int("axis", 0)
	return moving(func(c *Call) error { return concat(c, c.Ins, attr) }, 0, -1), nil
}

// concat joins the tensors in parts along an axis and makes the result output
// 0.
func concat(c *Call, parts []Data, attr int64) error {
	if len(parts) == 0 {
		return fmt.Errorf("nothing to join")
	}
	first, ok := parts[0].(*tensor.Tensor)
	if !ok {
		return fmt.Errorf("input 0 is missing")
	}
	axis, err := NormalAxis(attr, first.Rank())
	if err != nil {
		return err
	}
	shape := append([]int{}, first.Shape()...)
	shape[axis] = 0
	for i, p := range parts {
		t, ok := p.(*tensor.Tensor)
		if !ok || t.DType() != first.DType() || t.Rank() != first.Rank() {
			return fmt.Errorf("input %d is %v, input 0 %v", i, p, first)
		}
		for k, d := range t.Shape() {
			if k == axis {
				shape[k] += d
				if shape[k] < 0 {
					return fmt.Errorf("the sum of sizes overflows")
				}
			} else if d != shape[k] {
				return fmt.Errorf("input %d is %v, input 0 %v", i, t, first)
			}
		}
	}
	out, err := c.Out(0, first.DType(), shape...)
	if err != nil || out.Len() == 0 {
		return err
	}
	outer, inner := volume(shape[:axis]), volume(shape[axis+1:])
	row, at := shape[axis]*inner, 0
	for _, p := range parts {
		t := p.(*tensor.Tensor)
		n := t.Shape()[axis] * inner
		if n == 0 {
			continue
		}
		if err := copyRows(c, out, t, outer, n, at, row, 0, n); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// copyRows copies outer rows of n elements to dst, the first to element at and
// each further one step on, from src, likewise.
func copyRows(c *Call, dst, src *tensor.Tensor, outer, n, at, step, from, stride int) error {
	d, s := cellsOf(dst), cellsOf(src)
	switch {
	case outer*n <= pieceElems || d.w == 0:
		d.putRows(at, step, s, from, stride, n, outer)
		return nil
	case outer == 1:
		to, of := d.b[at*d.w:(at+n)*d.w], s.b[from*d.w:]
		return c.For(len(to), 8*pieceElems, func(lo, hi int) { copy(to[lo:hi], of[lo:hi]) })
	}
	return c.For(outer, max(1, pieceElems/n), func(lo, hi int) {
		d.putRows(at+lo*step, step, s, from+lo*stride, stride, n, hi-lo)
	})
}

// splitSizes returns the sizes of n parts of an axis of size d: sizes if they
// are given, else equal ones, the last being smaller if num says so.
func splitSizes(d, n int, sizes []int64, given, uneven bool) ([]int, error) {
	if given {
		out, err := sizesOf(sizes)
		if err != nil {
			return nil, err
		}
		sum := 0
		for _, k := range out {
			if sum += k; sum < 0 || k > d {
				return nil, fmt.Errorf("parts %v of an axis of size %d", sizes, d)
			}
		}
		if sum != d || len(out) != n {
			return nil, fmt.Errorf("parts %v of an axis of size %d for %d outputs", sizes, d, n)
		}
		return out, nil
	}
	if n == 0 {
		return nil, fmt.Errorf("no outputs")
	}
	if d%n != 0 && !uneven {
		return nil, fmt.Errorf("axis of size %d does not split into %d equal parts", d, n)
	}
	part := (d + n - 1) / n
	out := make([]int, n)
	for i := range out {
		out[i] = max(0, min(part, d-i*part))
	}
	return out, nil
}

func inferSplit(c *Inference) error {
	in := c.Shape(0)
	n := len(c.Node.Outputs())
	if in == nil {
		for i := range n {
			c.Tensor(i, c.Elem(0), nil)
		}
		return nil
	}
	axis, err := c.axis("axis", 0, len(in))
	if err != nil {
		return err
	}
	parts := make([]graph.Dim, n)
	sizes, given, known := c.list("split", 13, 1)
	switch {
	case given && !known:
		if d, ok := c.Dims(1); ok && len(d) == n {
			copy(parts, bare(d))
		}
	case given && !in[axis].Known:
		if len(sizes) != n {
			return c.Errorf("%d parts for %d outputs", len(sizes), n)
		}
		for i, k := range sizes {
			parts[i] = graph.D(k)
		}
	case in[axis].Known:
		s, err := splitSizes(int(in[axis].Size), n, sizes, given, c.Opset >= 18)
		if err != nil {
			return err
		}
		for i, k := range s {
			parts[i] = graph.D(int64(k))
		}
	case n == 1:
		parts[0] = graph.Dim{Sym: in[axis].Sym}
	}
	contents, follow := c.Dims(0)
	follow = follow && len(in) == 1
	for i := range n {
		out := bare(in)
		out[axis] = parts[i]
		c.Tensor(i, c.Elem(0), out)
		if k := int(parts[i].Size); follow && parts[i].Known && k <= len(contents) {
			c.SetDims(i, contents[:k])
			contents = contents[k:]
		} else {
			follow = false
		}
	}
	return nil
}

func compileSplit(s *Site) (Kernel, error) {
	attr := s.Node.Int("axis", 0)
	list := s.list("split", 13, 1)
	uneven := s.Opset >= 18
	return moving(func(c *Call) error {
		x := c.In(0)
		axis, err := NormalAxis(attr, x.Rank())
		if err != nil {
			return err
		}
		v, err := list.get(c)
		if err != nil {
			return err
		}
		parts, err := splitSizes(x.Shape()[axis], len(c.Outs), v, list.given, uneven)
		if err != nil {
			return err
		}
		if len(parts) == 1 {
			return c.View(0, 0, x.Shape()...)
		}
		shape := append([]int{}, x.Shape()...)
		outer, inner := volume(shape[:axis]), volume(shape[axis+1:])
		row, at := shape[axis]*inner, 0
		for i, k := range parts {
			if !c.Wanted[i] {
				at += k * inner
				continue
			}
			shape[axis] = k
			out, err := c.Out(i, x.DType(), shape...)
			if err != nil {
				return err
			}
			if n := k * inner; n > 0 {
				if err := copyRows(c, out, x, outer, n, 0, n, at, row); err != nil {
					return err
				}
				at += n
			}
		}
		return nil
	}, 0, 0), nil
}

// cut is what a Slice takes of one axis: n elements from start on, step apart.
type cut struct{ start, step, n int }

// sliceAxis clamps start and end as the ONNX operator Slice does and returns
// the elements taken from an axis of size d.
func sliceAxis(d int, start, end, step int64) (cut, error) {
	if step == 0 {
		return cut{}, fmt.Errorf("step is 0")
	}
	size := int64(d)
	wrap := func(v int64) int64 {
		if v < 0 {
			return v + size
		}
		return v
	}
	start, end = wrap(start), wrap(end)
	if step > 0 {
		start, end = min(max(start, 0), size), min(max(end, 0), size)
	} else {
		start, end = min(max(start, 0), size-1), min(max(end, -1), size-1)
	}
	step = min(max(step, -math.MaxInt32), math.MaxInt32)
	n := int64(0)
	switch {
	case step > 0 && end > start:
		n = (end - start + step - 1) / step
	case step < 0 && end < start:
		n = (start - end - step - 1) / -step
	}
	return cut{int(start), int(step), int(n)}, nil
}

// toTheEnd is the least bound that is taken for the end of an axis of unknown
// size; exporters write 10^9 or the largest 32- or 64-bit number.
const toTheEnd = 1e9

// wholeAxis reports whether a Slice with these bounds takes an axis of any
// size as it is (or reversed).
func wholeAxis(start, end, step int64) bool {
	return step == 1 && start == 0 && end >= toTheEnd ||
		step == -1 && (start == -1 || start >= toTheEnd) && end <= -toTheEnd
}

func inferSlice(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	var starts, ends []graph.Dim
	var axes, steps []int64
	ok0, ok1, hasAxes, hasSteps, ok2, ok3 := true, true, false, false, true, true
	if c.Opset < 10 {
		starts, ends = toDims(c.Node.Ints("starts")), toDims(c.Node.Ints("ends"))
		axes, hasAxes, ok2 = c.list("axes", 10, 3)
	} else {
		starts, ok0 = c.vector(1)
		ends, ok1 = c.vector(2)
		axes, hasAxes, ok2 = c.list("axes", 10, 3)
		steps, hasSteps, ok3 = c.list("steps", 10, 4)
	}
	if !ok2 {
		c.Tensor(0, c.Elem(0), graph.UnknownShape(len(in)))
		return nil
	}
	if !hasAxes {
		n := len(in)
		if ok0 {
			n = min(len(starts), len(in))
		}
		axes = make([]int64, n)
		for i := range axes {
			axes[i] = int64(i)
		}
	}
	ax, err := normalAxes(axes, len(in))
	if err != nil {
		return err
	}
	if ok0 && len(starts) != len(ax) || ok1 && len(ends) != len(ax) || ok3 && hasSteps && len(steps) != len(ax) {
		return c.Errorf("%d starts, %d ends and %d steps for %d axes", len(starts), len(ends), len(steps), len(ax))
	}
	out := graph.Shape(bare(in))
	contents, shape, follow := c.contents(0)
	cp := strided{src: rowMajor(shape)}
	for i, a := range ax {
		step := int64(1)
		if hasSteps && ok3 {
			step = steps[i]
		}
		switch d := in[a]; {
		case !ok0 || !ok1 || !ok3:
			out[a] = graph.Dim{}
		case starts[i].Known && ends[i].Known && d.Known:
			k, err := sliceAxis(int(d.Size), starts[i].Size, ends[i].Size, step)
			if err != nil {
				return err
			}
			out[a] = graph.D(int64(k.n))
			if follow {
				cp.so += k.start * cp.src[a]
				cp.src[a] *= k.step
			}
		case starts[i].Known && ends[i].Known && wholeAxis(starts[i].Size, ends[i].Size, step):
		case starts[i].Known && starts[i].Size == 0 && step == 1 && ends[i].Sym != "":
			// Models cut tables to the length of their input: the end is taken to
			// lie within the axis.
			out[a] = graph.Sym(ends[i].Sym)
		default:
			out[a] = graph.Dim{}
		}
	}
	c.Tensor(0, c.Elem(0), out)
	if follow {
		c.moveDims(out, contents, &cp)
	}
	return nil
}

func toDims(v []int64) []graph.Dim {
	out := make([]graph.Dim, len(v))
	for i, x := range v {
		out[i] = graph.D(x)
	}
	return out
}

func compileSlice(s *Site) (Kernel, error) {
	lists := [4]intList{s.list("starts", 10, 1), s.list("ends", 10, 2), s.list("axes", 10, 3), {}}
	lists[3].input = -1
	if s.Opset >= 10 {
		lists[3] = s.list("steps", 10, 4)
	}
	constant := s.Const(0) != nil
	return moving(func(c *Call) error {
		var v [4][]int64
		for i, l := range lists {
			var err error
			if v[i], err = l.get(c); err != nil {
				return err
			}
		}
		x := c.In(0)
		in := x.Shape()
		starts, ends, axes, steps := v[0], v[1], v[2], v[3]
		n := len(starts)
		if len(ends) != n || lists[2].given && len(axes) != n || lists[3].given && len(steps) != n || n > len(in) {
			return fmt.Errorf("%d starts, %d ends, %d axes and %d steps for rank %d", n, len(ends), len(axes), len(steps), len(in))
		}
		shape := append([]int{}, in...)
		cp := strided{src: rowMajor(in)}
		done, whole := uint64(0), true
		for i := range starts {
			a, step := int64(i), int64(1)
			if lists[2].given {
				a = axes[i]
			}
			if lists[3].given {
				step = steps[i]
			}
			k, err := NormalAxis(a, len(in))
			if err != nil {
				return err
			}
			if done>>uint(k)&1 != 0 {
				return fmt.Errorf("axis %d is given twice", k)
			}
			done |= 1 << uint(k)
			part, err := sliceAxis(in[k], starts[i], ends[i], step)
			if err != nil {
				return err
			}
			if part.n > 0 {
				cp.so += part.start * cp.src[k]
			}
			cp.src[k] *= part.step
			shape[k] = part.n
			whole = whole && part.n == in[k] && (part.step == 1 || part.n == 1)
		}
		if whole {
			return c.View(0, 0, in...)
		}
		// A view keeps all of the input alive.
		if n := volume(shape); n > 0 && (constant || 2*n >= x.Len()) && x.DType() != tensor.String && cp.so == 0 && cp.dense(shape) {
			t, err := tensor.FromBytes(x.DType(), shape, x.Bytes()[:x.DType().Bytes(n)])
			if err == nil {
				c.SetOut(0, t)
			}
			return err
		}
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil {
			return err
		}
		cp.dims, cp.dst = shape, rowMajor(shape)
		return cp.copy(c, out, x)
	}, 0, 0), nil
}

func inferCompress(c *Inference) error {
	in := c.Shape(0)
	attr := c.Node.Attr("axis")
	if attr == nil || in == nil {
		shape := graph.Shape(nil)
		if attr == nil {
			shape = graph.UnknownShape(1)
		}
		c.Tensor(0, c.Elem(0), shape)
		return nil
	}
	axis, err := c.axis("axis", 0, len(in))
	if err != nil {
		return err
	}
	out := bare(in)
	out[axis] = graph.Dim{}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileCompress(s *Site) (Kernel, error) {
	hasAxis, attr := s.Node.Attr("axis") != nil, s.Node.Int("axis", 0)
	return moving(func(c *Call) error {
		x, cond := c.In(0), c.In(1)
		if cond.DType() != tensor.Bool || cond.Rank() != 1 {
			return fmt.Errorf("condition is %v, want a bool vector", cond)
		}
		in := x.Shape()
		axis := 0
		if !hasAxis {
			in = []int{x.Len()}
		} else {
			var err error
			if axis, err = NormalAxis(attr, len(in)); err != nil {
				return err
			}
		}
		keep := nonZero(tensor.As[uint8](cond))
		for i, k := range keep {
			if k >= in[axis] {
				return fmt.Errorf("condition selects element %d of axis %d of size %d", keep[i], axis, in[axis])
			}
		}
		shape := append([]int{}, in...)
		shape[axis] = len(keep)
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil {
			return err
		}
		maps := make([][]int, len(in))
		maps[axis] = keep
		return (&lookup{maps: maps, src: in, dst: shape}).copy(c, out, x)
	}, 0, 0), nil
}

func compileReverseSequence(s *Site) (Kernel, error) {
	batchAttr, timeAttr := s.Node.Int("batch_axis", 1), s.Node.Int("time_axis", 0)
	return moving(func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		batch, err := NormalAxis(batchAttr, len(in))
		if err != nil {
			return err
		}
		time, err := NormalAxis(timeAttr, len(in))
		if err != nil {
			return err
		}
		if batch+time != 1 {
			return fmt.Errorf("axes %d and %d are not 0 and 1", batch, time)
		}
		lens, err := c.ints(1)
		if err != nil {
			return err
		}
		if len(lens) != in[batch] {
			return fmt.Errorf("%d lengths for %d sequences", len(lens), in[batch])
		}
		for _, n := range lens {
			if n < 0 || n > int64(in[time]) {
				return fmt.Errorf("length %d of %d steps", n, in[time])
			}
		}
		out, err := c.Out(0, x.DType(), in...)
		if err != nil {
			return err
		}
		dst, src, st := cellsOf(out), cellsOf(x), rowMajor(in)
		inner := volume(in[2:])
		for b, n := range lens {
			for t := range in[time] {
				from := t
				if t < int(n) {
					from = int(n) - 1 - t
				}
				dst.put(b*st[batch]+t*st[time], src, b*st[batch]+from*st[time], inner)
			}
		}
		return nil
	}, 0, 0), nil
}

// padsOf spreads pads, given for axes, over all axes of a rank: before and
// after each.
func padsOf(pads, axes []int64, hasAxes bool, rank int) (before, after []int64, err error) {
	before, after = make([]int64, rank), make([]int64, rank)
	n := rank
	ax := []int(nil)
	if hasAxes {
		if ax, err = normalAxes(axes, rank); err != nil {
			return nil, nil, err
		}
		n = len(ax)
	}
	if len(pads) != 2*n {
		return nil, nil, fmt.Errorf("%d pads for %d axes", len(pads), n)
	}
	for i := range n {
		k := i
		if hasAxes {
			k = ax[i]
		}
		before[k], after[k] = pads[i], pads[n+i]
		if max(before[k], after[k], -before[k], -after[k]) > 1<<48 {
			return nil, nil, fmt.Errorf("pads %v", pads)
		}
	}
	return before, after, nil
}

func inferPad(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	pads, given, known := c.list("pads", 11, 1)
	var axes []int64
	hasAxes, axesKnown := false, true
	if c.Opset >= 18 {
		axes, hasAxes, axesKnown = c.list("axes", 18, 3)
	}
	if !given || !known || !axesKnown {
		c.Tensor(0, c.Elem(0), graph.UnknownShape(len(in)))
		return nil
	}
	before, after, err := padsOf(pads, axes, hasAxes, len(in))
	if err != nil {
		return err
	}
	out := make(graph.Shape, len(in))
	for i, d := range in {
		out[i] = dimAdd(graph.Dim{Size: d.Size, Sym: d.Sym, Known: d.Known}, graph.D(before[i]+after[i]))
		if out[i].Known && out[i].Size < 0 {
			return c.Errorf("pads %v of shape %v", pads, in)
		}
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

// padMap returns where each element of a padded axis comes from, -1 for the
// constant. Negative pads crop, before the rest is padded.
func padMap(mode string, d int, before, after int64) ([]int, error) {
	lo, hi := int(max(0, -before)), d-int(max(0, -after))
	b, a := int(max(0, before)), int(max(0, after))
	n := hi - lo
	if n < 0 {
		return nil, fmt.Errorf("pads %d and %d of an axis of size %d", before, after, d)
	}
	if n == 0 && a+b > 0 && mode != "constant" {
		return nil, fmt.Errorf("mode %s has nothing to repeat on an empty axis", mode)
	}
	if _, ok := tensor.NumElements([]int{n + a + b, 8}); !ok || n+a+b > 1<<40 {
		return nil, fmt.Errorf("axis of size %d", n+a+b)
	}
	m := make([]int, n+a+b)
	for i := range m {
		k := i - b
		if k < 0 || k >= n {
			switch mode {
			case "constant":
				m[i] = -1
				continue
			case "edge":
				k = min(max(k, 0), n-1)
			case "wrap":
				k = (k%n + n) % n
			case "reflect":
				if n == 1 {
					k = 0
					break
				}
				period := 2 * (n - 1)
				if k = (k%period + period) % period; k >= n {
					k = period - k
				}
			default:
				return nil, fmt.Errorf("mode %q", mode)
			}
		}
		m[i] = lo + k
	}
	return m, nil
}

func compilePad(s *Site) (Kernel, error) {
	mode := s.Node.String("mode", "constant")
	if !slices.Contains([]string{"constant", "edge", "reflect", "wrap"}, mode) {
		return nil, s.Errorf("mode %q", mode)
	}
	pads := s.list("pads", 11, 1)
	axes := intList{input: -1}
	if s.Opset >= 18 {
		axes = s.list("axes", 18, 3)
	}
	value := s.Node.Float("value", 0)
	asAttr := s.Opset < 11
	return moving(func(c *Call) error {
		p, err := pads.get(c)
		if err != nil {
			return err
		}
		ax, err := axes.get(c)
		if err != nil {
			return err
		}
		x := c.In(0)
		before, after, err := padsOf(p, ax, axes.given, x.Rank())
		if err != nil {
			return err
		}
		fill := c.In(2)
		switch {
		case asAttr:
			fill = tensor.New(x.DType(), 1)
			if x.DType().Convertible() {
				tensor.Write(fill, 0, []float32{value})
			}
		case fill == nil:
			fill = tensor.New(x.DType(), 1)
		case fill.Len() != 1 || fill.DType() != x.DType():
			return fmt.Errorf("constant_value is %v for data %v", fill, x)
		}
		return pad(c, x, before, after, mode, fill)
	}, 0, 2), nil
}

// pad makes x, padded, output 0.
func pad(c *Call, x *tensor.Tensor, before, after []int64, mode string, fill *tensor.Tensor) error {
	in := x.Shape()
	shape := make([]int, len(in))
	for i, d := range in {
		n := int64(d) + before[i] + after[i]
		if n < 0 {
			return fmt.Errorf("pads %d and %d of an axis of size %d", before[i], after[i], d)
		}
		shape[i] = int(n)
	}
	if slices.Equal(in, shape) && !slices.ContainsFunc(before, func(p int64) bool { return p != 0 }) {
		return c.View(0, 0, in...)
	}
	// The memory is granted before tables of that size are made.
	out, err := c.Out(0, x.DType(), shape...)
	if err != nil {
		return err
	}
	if out.Len() == 0 {
		return nil
	}
	maps := make([][]int, len(in))
	for i, d := range in {
		if before[i] == 0 && after[i] == 0 {
			continue
		}
		if maps[i], err = padMap(mode, d, before[i], after[i]); err != nil {
			return err
		}
	}
	return (&lookup{maps: maps, src: in, dst: shape, fill: fill}).copy(c, out, x)
}

// blockSize returns attribute blocksize and whether blocks are taken column by
// column and row by row first (mode CRD).
func blockSize(n *graph.Node) (b int64, crd bool, err error) {
	b = n.Int("blocksize", 0)
	mode := n.String("mode", "DCR")
	if b <= 0 || b > 1<<20 || mode != "DCR" && mode != "CRD" {
		return 0, false, fmt.Errorf("blocksize %d, mode %q", b, mode)
	}
	return b, mode == "CRD", nil
}

func inferDepthToSpace(c *Inference) error {
	b, _, err := blockSize(c.Node)
	if err != nil {
		return err
	}
	in := c.Shape(0)
	if in == nil {
		in = graph.UnknownShape(4)
	}
	if len(in) != 4 || in[1].Known && in[1].Size%(b*b) != 0 {
		return c.Errorf("input has shape %v for blocks of %d", in, b)
	}
	depth := graph.Dim{}
	if in[1].Known {
		depth = graph.D(in[1].Size / (b * b))
	}
	c.Tensor(0, c.Elem(0), graph.Shape{bare(in)[0], depth, dimMul(in[2], graph.D(b)), dimMul(in[3], graph.D(b))})
	return nil
}

func compileDepthToSpace(s *Site) (Kernel, error) {
	block, crd, err := blockSize(s.Node)
	if err != nil {
		return nil, s.Errorf("%v", err)
	}
	b := int(block)
	return moving(func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		if len(in) != 4 || in[1]%(b*b) != 0 {
			return fmt.Errorf("input is %v for blocks of %d", x, b)
		}
		depth := in[1] / (b * b)
		h, err := mulDims(in[2], b)
		if err != nil {
			return err
		}
		w, err := mulDims(in[3], b)
		if err != nil {
			return err
		}
		out, err := c.Out(0, x.DType(), in[0], depth, h, w)
		if err != nil {
			return err
		}
		if crd {
			return permuteTo(c, out, x, []int{in[0], depth, b, b, in[2], in[3]}, []int{0, 1, 4, 2, 5, 3})
		}
		return permuteTo(c, out, x, []int{in[0], b, b, depth, in[2], in[3]}, []int{0, 3, 4, 1, 5, 2})
	}, 0, 0), nil
}

func inferSpaceToDepth(c *Inference) error {
	b, _, err := blockSize(c.Node)
	if err != nil {
		return err
	}
	in := c.Shape(0)
	if in == nil {
		in = graph.UnknownShape(4)
	}
	if len(in) != 4 {
		return c.Errorf("input has shape %v", in)
	}
	out := graph.Shape{bare(in)[0], dimMul(in[1], graph.D(b*b)), {}, {}}
	for i := 2; i < 4; i++ {
		if in[i].Known {
			if in[i].Size%b != 0 {
				return c.Errorf("input has shape %v for blocks of %d", in, b)
			}
			out[i] = graph.D(in[i].Size / b)
		} else if b == 1 {
			out[i] = graph.Sym(in[i].Sym)
		}
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileSpaceToDepth(s *Site) (Kernel, error) {
	block, crd, err := blockSize(s.Node)
	if err != nil {
		return nil, s.Errorf("%v", err)
	}
	b := int(block)
	return moving(func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		if len(in) != 4 || in[2]%b != 0 || in[3]%b != 0 {
			return fmt.Errorf("input is %v for blocks of %d", x, b)
		}
		depth, err := mulDims(in[1], b*b)
		if err != nil {
			return err
		}
		h, w := in[2]/b, in[3]/b
		out, err := c.Out(0, x.DType(), in[0], depth, h, w)
		if err != nil {
			return err
		}
		perm := []int{0, 3, 5, 1, 2, 4}
		if crd {
			perm = []int{0, 1, 3, 5, 2, 4}
		}
		return permuteTo(c, out, x, []int{in[0], in[1], h, b, w, b}, perm)
	}, 0, 0), nil
}

func compileTrilu(s *Site) (Kernel, error) {
	upper := s.Node.Int("upper", 1) != 0
	return moving(func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		if len(in) < 2 {
			return fmt.Errorf("input is %v, want matrices", x)
		}
		k, err := c.int(1, 0)
		if err != nil {
			return err
		}
		out, err := c.Out(0, x.DType(), in...)
		if err != nil {
			return err
		}
		dst, src := cellsOf(out), cellsOf(x)
		rows, cols := in[len(in)-2], in[len(in)-1]
		k = min(max(k, -int64(rows)), int64(cols))
		for r := range volume(in[:len(in)-1]) {
			at := r * cols
			// Columns below edge are left of the diagonal.
			edge := min(max(r%rows+int(k), 0), cols)
			if upper {
				dst.zero(at, edge)
				dst.put(at+edge, src, at+edge, cols-edge)
				continue
			}
			edge = min(max(r%rows+int(k)+1, 0), cols)
			dst.put(at, src, at, edge)
			dst.zero(at+edge, cols-edge)
		}
		return nil
	}, 0, 0), nil
}

func inferCenterCropPad(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	ax, err := cropAxes(c.Node, len(in))
	if err != nil {
		return err
	}
	out := bare(in)
	want, ok := c.vector(1)
	if ok && len(want) != len(ax) {
		return c.Errorf("%d sizes for %d axes", len(want), len(ax))
	}
	for i, a := range ax {
		out[a] = graph.Dim{}
		if ok {
			out[a] = bare(want)[i]
		}
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func cropAxes(n *graph.Node, rank int) ([]int, error) {
	if n.Attr("axes") != nil {
		return normalAxes(n.Ints("axes"), rank)
	}
	ax := make([]int, rank)
	for i := range ax {
		ax[i] = i
	}
	return ax, nil
}

func compileCenterCropPad(s *Site) (Kernel, error) {
	n := s.Node
	return moving(func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		ax, err := cropAxes(n, len(in))
		if err != nil {
			return err
		}
		v, err := c.ints(1)
		if err != nil {
			return err
		}
		want, err := sizesOf(v)
		if err != nil || len(want) != len(ax) {
			return fmt.Errorf("sizes %v for %d axes", v, len(ax))
		}
		before, after := make([]int64, len(in)), make([]int64, len(in))
		for i, a := range ax {
			extra := int64(want[i]) - int64(in[a])
			if extra >= 0 {
				before[a] = extra / 2
			} else {
				before[a] = -(-extra / 2)
			}
			after[a] = extra - before[a]
		}
		return pad(c, x, before, after, "constant", tensor.New(x.DType(), 1))
	}, 0, 0), nil
}
