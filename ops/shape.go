package ops

import (
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// shapeSpecs are the operators that make, read and change shapes.
func shapeSpecs() []Spec {
	data := func(name string) Port { return Port{Name: name, Role: Activation} }
	index := func(name string) Port { return Port{Name: name, Role: Index} }
	axes := Port{Name: "axes", Role: Index, Optional: true}
	return []Spec{
		{Type: "Constant", Since: 1, Flow: Opaque, Pure: true,
			Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "value", Kind: graph.AttrTensor}, {Name: "sparse_value", Kind: graph.AttrSparseTensor},
				{Name: "value_float", Kind: graph.AttrFloat}, {Name: "value_floats", Kind: graph.AttrFloats},
				{Name: "value_int", Kind: graph.AttrInt}, {Name: "value_ints", Kind: graph.AttrInts},
				{Name: "value_string", Kind: graph.AttrString}, {Name: "value_strings", Kind: graph.AttrStrings}},
			Infer: inferConstant, Compile: compileConstant},
		{Type: "ConstantOfShape", Since: 9, Flow: Opaque, Pure: true,
			In: []Port{index("input")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "value", Kind: graph.AttrTensor}},
			Infer: inferConstantOfShape, Compile: compileConstantOfShape},
		{Type: "Shape", Since: 1, Flow: Integers, Pure: true,
			In: []Port{{Name: "data"}}, Out: []Port{index("shape")},
			Attrs: []AttrSpec{{Name: "start", Kind: graph.AttrInt}, {Name: "end", Kind: graph.AttrInt}},
			Infer: inferShape, Compile: compileShape},
		{Type: "Size", Since: 1, Flow: Integers, Pure: true,
			In: []Port{{Name: "data"}}, Out: []Port{index("size")},
			Infer: inferSize, Compile: compileSize},
		{Type: "Reshape", Since: 5, Flow: Pass, Pure: true,
			In: []Port{data("data"), index("shape")}, Out: []Port{data("reshaped")},
			Attrs: []AttrSpec{{Name: "allowzero", Kind: graph.AttrInt}},
			Infer: inferReshape, Compile: compileReshape},
		{Type: "Flatten", Since: 1, Flow: Pass, Pure: true,
			In: []Port{data("input")}, Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt}},
			Infer: inferFlatten, Compile: compileFlatten},
		{Type: "Squeeze", Since: 1, Flow: Pass, Pure: true,
			In: []Port{data("data"), axes}, Out: []Port{data("squeezed")},
			Attrs: []AttrSpec{{Name: "axes", Kind: graph.AttrInts}},
			Infer: inferSqueeze, Compile: compileSqueeze},
		{Type: "Unsqueeze", Since: 1, Flow: Pass, Pure: true,
			In: []Port{data("data"), axes}, Out: []Port{data("expanded")},
			Attrs: []AttrSpec{{Name: "axes", Kind: graph.AttrInts}},
			Infer: inferUnsqueeze, Compile: compileUnsqueeze},
		{Type: "Expand", Since: 8, Flow: Pass, Pure: true,
			In: []Port{data("input"), index("shape")}, Out: []Port{data("output")},
			Infer: inferExpand, Compile: compileExpand},
		{Type: "Tile", Since: 6, Flow: Pass, Pure: true,
			In: []Port{data("input"), index("repeats")}, Out: []Port{data("output")},
			Infer: inferTile, Compile: compileTile},
		{Type: "Range", Since: 11, Flow: Integers, Pure: true,
			In: []Port{index("start"), index("limit"), index("delta")}, Out: []Port{index("output")},
			Attrs: []AttrSpec{{Name: "stash_type", Kind: graph.AttrInt}},
			Infer: inferRange, Compile: compileRange},
		{Type: "EyeLike", Since: 9, Flow: Opaque, Pure: true,
			In: []Port{{Name: "input"}}, Out: []Port{data("output")},
			Attrs: []AttrSpec{{Name: "dtype", Kind: graph.AttrInt}, {Name: "k", Kind: graph.AttrInt}},
			Infer: inferEyeLike, Compile: compileEyeLike},
		{Type: "NonZero", Since: 9, Flow: Integers, Pure: true,
			In: []Port{{Name: "X"}}, Out: []Port{index("Y")},
			Infer: inferNonZero, Compile: compileNonZero},
		{Type: "OneHot", Since: 9, Flow: Integers, Pure: true,
			In: []Port{index("indices"), index("depth"), {Name: "values"}}, Out: []Port{{Name: "output"}},
			Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt}},
			Infer: inferOneHot, Compile: compileOneHot},
	}
}

// ConstantValue returns the value of a Constant node whose attribute holds it
// in dense form, and nil for every other node.
func ConstantValue(n *graph.Node) *tensor.Tensor {
	if n == nil || n.Op.Type != "Constant" || n.Op.Domain != graph.OnnxDomain {
		return nil
	}
	for _, a := range n.Attrs {
		if a.RefName != "" {
			continue
		}
		switch a.Name {
		case "value":
			return a.T
		case "value_float":
			return tensor.Scalar(a.F)
		case "value_floats":
			return tensor.Of(a.Floats, len(a.Floats))
		case "value_int":
			return tensor.Scalar(a.I)
		case "value_ints":
			return tensor.Of(a.Ints, len(a.Ints))
		case "value_string":
			return tensor.FromStrings([]int{}, []string{a.S})
		case "value_strings":
			return tensor.FromStrings([]int{len(a.Strings)}, a.Strings)
		}
	}
	return nil
}

func sparseConstant(n *graph.Node) *graph.SparseTensor {
	if a := n.Attr("sparse_value"); a != nil && a.RefName == "" {
		return a.Sparse
	}
	return nil
}

func inferConstant(c *Inference) error {
	if t := ConstantValue(c.Node); t != nil {
		c.Out(0, graph.TypeOf(t))
		if d, ok := dimsOf(t); ok {
			c.SetDims(0, d)
		}
		return nil
	}
	if s := sparseConstant(c.Node); s != nil && s.Values != nil {
		shape := make(graph.Shape, len(s.Dims))
		for i, d := range s.Dims {
			shape[i] = graph.D(d)
		}
		c.Tensor(0, s.Values.DType(), shape)
	}
	return nil
}

func compileConstant(s *Site) (Kernel, error) {
	if t := ConstantValue(s.Node); t != nil {
		return func(c *Call) error {
			c.SetOut(0, t)
			return nil
		}, nil
	}
	sp := sparseConstant(s.Node)
	if sp == nil || sp.Values == nil || sp.Indices == nil {
		return nil, s.Errorf("no attribute holds the value")
	}
	return func(c *Call) error {
		shape, err := sizesOf(sp.Dims)
		if err != nil {
			return err
		}
		out, err := c.Out(0, sp.Values.DType(), shape...)
		if err != nil {
			return err
		}
		return scatterSparse(out, sp)
	}, nil
}

// scatterSparse writes the values of sp, and zeros elsewhere, to out.
func scatterSparse(out *tensor.Tensor, sp *graph.SparseTensor) error {
	if isPacked(out.DType()) {
		return fmt.Errorf("sparse value of element type %v", out.DType())
	}
	idx, err := intsOf(sp.Indices)
	if err != nil {
		return err
	}
	rank, nnz, size := out.Rank(), sp.Values.Len(), out.Len()
	linear := sp.Indices.Rank() < 2
	if linear && len(idx) != nnz || !linear && len(idx) != nnz*rank {
		return fmt.Errorf("%d sparse values with indices %v", nnz, sp.Indices)
	}
	dst, src, shape := cellsOf(out), cellsOf(sp.Values), out.Shape()
	dst.zero(0, size)
	for i := range nnz {
		at := int64(0)
		if linear {
			at = idx[i]
		} else {
			for k, d := range shape {
				x := idx[i*rank+k]
				if x < 0 || x >= int64(d) {
					return fmt.Errorf("sparse index %d on axis %d of size %d", x, k, d)
				}
				at = at*int64(d) + x
			}
		}
		if at < 0 || at >= int64(size) {
			return fmt.Errorf("sparse index %d of %d elements", at, size)
		}
		dst.put(int(at), src, i, 1)
	}
	return nil
}

func inferConstantOfShape(c *Inference) error {
	elem, value := tensor.Float32, (*tensor.Tensor)(nil)
	if a := c.Node.Attr("value"); a != nil && a.RefName == "" && a.T != nil {
		elem, value = a.T.DType(), a.T
	} else if a != nil && a.RefName != "" {
		elem = tensor.Undefined
	}
	dims, ok := c.vector(0)
	if !ok {
		c.Tensor(0, elem, nil)
		return nil
	}
	for _, d := range dims {
		if d.Known && d.Size < 0 {
			return c.Errorf("size %d", d.Size)
		}
	}
	c.Tensor(0, elem, bare(dims))
	if value == nil {
		return nil
	}
	if v, ok := dimsOf(value); ok && len(v) == 1 {
		c.moveDims(dims, v, &strided{src: make([]int, len(dims))})
	}
	return nil
}

func compileConstantOfShape(s *Site) (Kernel, error) {
	value := tensor.Scalar(float32(0))
	if a := s.Node.Attr("value"); a != nil {
		if a.T == nil || a.T.Len() != 1 {
			return nil, s.Errorf("attribute value must hold one element")
		}
		value = a.T
	}
	return func(c *Call) error {
		v, err := c.ints(0)
		if err != nil {
			return err
		}
		shape, err := sizesOf(v)
		if err != nil {
			return err
		}
		out, err := c.Out(0, value.DType(), shape...)
		if err != nil {
			return err
		}
		if isPacked(value.DType()) {
			return fillPacked(out, value.Bytes()[0])
		}
		cellsOf(out).fill(0, out.Len(), cellsOf(value))
		return nil
	}, nil
}

// fillPacked sets every element of a packed tensor to the code in the low bits
// of v; unused bits of the last byte are 0.
func fillPacked(t *tensor.Tensor, v byte) error {
	width := t.DType().Bits()
	v &= 1<<width - 1
	for w := width; w < 8; w *= 2 {
		v |= v << w
	}
	b := t.Bytes()
	for i := range b {
		b[i] = v
	}
	if rest := t.Len() * width % 8; rest != 0 {
		b[len(b)-1] &= 1<<rest - 1
	}
	return nil
}

// shapeRange returns the part of a shape of the given rank that node n, a
// Shape, selects.
func shapeRange(n *graph.Node, rank int) (lo, hi int) {
	at := func(name string, def int) int {
		v := n.Int(name, int64(def))
		if v < 0 {
			v += int64(rank)
		}
		return int(min(max(v, 0), int64(rank)))
	}
	lo, hi = at("start", 0), at("end", rank)
	return lo, max(lo, hi)
}

func inferShape(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, tensor.Int64, graph.UnknownShape(1))
		return nil
	}
	lo, hi := shapeRange(c.Node, len(in))
	c.Tensor(0, tensor.Int64, graph.ShapeOf(hi-lo))
	c.SetDims(0, bare(in[lo:hi]))
	return nil
}

func compileShape(s *Site) (Kernel, error) {
	n := s.Node
	return func(c *Call) error {
		in := c.In(0).Shape()
		lo, hi := shapeRange(n, len(in))
		out, err := c.Out(0, tensor.Int64, hi-lo)
		if err != nil {
			return err
		}
		for i, v := 0, tensor.As[int64](out); i < len(v); i++ {
			v[i] = int64(in[lo+i])
		}
		return nil
	}, nil
}

func inferSize(c *Inference) error {
	c.Tensor(0, tensor.Int64, graph.Shape{})
	if in := c.Shape(0); in != nil {
		c.SetDims(0, []graph.Dim{dimProduct(in)})
	}
	return nil
}

func compileSize(*Site) (Kernel, error) {
	return func(c *Call) error {
		out, err := c.Out(0, tensor.Int64)
		if err == nil {
			tensor.As[int64](out)[0] = int64(c.In(0).Len())
		}
		return err
	}, nil
}

func inferReshape(c *Inference) error {
	elem, in := c.Elem(0), c.Shape(0)
	want, ok := c.vector(1)
	if !ok {
		c.Tensor(0, elem, nil)
		return nil
	}
	allowZero := c.Opset >= 14 && c.Node.Int("allowzero", 0) != 0
	out := make(graph.Shape, len(want))
	open, nameless, minus := -1, 0, 0
	for i, d := range want {
		switch {
		case d.Known && d.Size == -1:
			if minus++; minus > 1 {
				return c.Errorf("shape has more than one -1")
			}
			open, nameless = i, nameless+1
		case d.Known && d.Size < -1:
			return c.Errorf("shape has an entry of %d", d.Size)
		case d.Known && d.Size == 0 && !allowZero:
			switch {
			case in == nil:
				nameless++
				open = i
			case i >= len(in):
				return c.Errorf("entry 0 of shape at %d, the input has rank %d", i, len(in))
			default:
				out[i] = graph.Dim{Size: in[i].Size, Sym: in[i].Sym, Known: in[i].Known}
				if !out[i].Known && out[i].Sym == "" {
					// The same unknown size on both sides: it cancels.
					out[i].Sym = sameAxis(i)
				}
			}
		case d.Known:
			out[i] = graph.D(d.Size)
		case d.Sym != "":
			out[i] = graph.Sym(d.Sym)
		default:
			open, nameless = i, nameless+1
		}
	}
	if in != nil && nameless == 1 {
		num := bare(in)
		for i, d := range num {
			if !d.Known && d.Sym == "" {
				num[i].Sym = sameAxis(i)
			}
		}
		den := append(append([]graph.Dim(nil), out[:open]...), out[open+1:]...)
		out[open] = dimQuotient(num, den)
	}
	for i := range out {
		if len(out[i].Sym) > 0 && out[i].Sym[0] == 0 {
			out[i].Sym = ""
		}
	}
	if n, m := dimProduct(in), dimProduct(out); in != nil && n.Known && m.Known && n.Size != m.Size {
		return c.Errorf("%d elements do not fit shape %v", n.Size, out)
	}
	c.Tensor(0, elem, out)
	c.passDims()
	return nil
}

// sameAxis is a symbol, local to one inference, for the unknown size of axis i.
func sameAxis(i int) string { return "\x00" + string(rune('0'+i)) }

func compileReshape(s *Site) (Kernel, error) {
	allowZero := s.Opset >= 14 && s.Node.Int("allowzero", 0) != 0
	return func(c *Call) error {
		want, err := c.ints(1)
		if err != nil {
			return err
		}
		x := c.In(0)
		in := x.Shape()
		shape := make([]int, len(want))
		open, rest := -1, 1
		for i, d := range want {
			switch {
			case d == 0 && !allowZero:
				if i >= len(in) {
					return fmt.Errorf("entry 0 of shape at %d, the input has rank %d", i, len(in))
				}
				shape[i] = in[i]
			case d == -1 && open < 0:
				open = i
				continue
			case d < 0 || d > math.MaxInt:
				return fmt.Errorf("shape %v", want)
			default:
				shape[i] = int(d)
			}
			if rest, err = mulDims(rest, shape[i]); err != nil {
				return err
			}
		}
		if open >= 0 {
			if rest == 0 {
				return fmt.Errorf("shape %v leaves the size of axis %d open", want, open)
			}
			shape[open] = x.Len() / rest
		}
		return c.View(0, 0, shape...)
	}, nil
}

func inferFlatten(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, c.Elem(0), graph.UnknownShape(2))
		return nil
	}
	axis, err := flattenAxis(c.Node, len(in))
	if err != nil {
		return err
	}
	c.Tensor(0, c.Elem(0), graph.Shape{dimProduct(in[:axis]), dimProduct(in[axis:])})
	return nil
}

func flattenAxis(n *graph.Node, rank int) (int, error) {
	axis := n.Int("axis", 1)
	if axis < -int64(rank) || axis > int64(rank) {
		return 0, fmt.Errorf("axis %d is not in [-%d, %d]", axis, rank, rank)
	}
	if axis < 0 {
		axis += int64(rank)
	}
	return int(axis), nil
}

func compileFlatten(s *Site) (Kernel, error) {
	n := s.Node
	return func(c *Call) error {
		in := c.In(0).Shape()
		axis, err := flattenAxis(n, len(in))
		if err != nil {
			return err
		}
		return c.View(0, 0, volume(in[:axis]), volume(in[axis:]))
	}, nil
}

func inferSqueeze(c *Inference) error {
	in := c.Shape(0)
	axes, given, known := c.list("axes", 13, 1)
	if in == nil || !known {
		if in != nil && c.Shape(1) != nil && len(c.Shape(1)) == 1 && c.Shape(1)[0].Known && int64(len(in)) >= c.Shape(1)[0].Size {
			c.Tensor(0, c.Elem(0), graph.UnknownShape(len(in)-int(c.Shape(1)[0].Size)))
			return nil
		}
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	drop := make([]bool, len(in))
	if given {
		ax, err := normalAxes(axes, len(in))
		if err != nil {
			return err
		}
		for _, a := range ax {
			if in[a].Known && in[a].Size != 1 {
				return c.Errorf("axis %d of %v is not 1", a, in)
			}
			drop[a] = true
		}
	} else {
		for i, d := range in {
			if !d.Known { // it may be 1
				c.Tensor(0, c.Elem(0), nil)
				return nil
			}
			drop[i] = d.Size == 1
		}
	}
	out := graph.Shape{}
	for i, d := range bare(in) {
		if !drop[i] {
			out = append(out, d)
		}
	}
	c.Tensor(0, c.Elem(0), out)
	c.passDims()
	return nil
}

func compileSqueeze(s *Site) (Kernel, error) {
	list := s.list("axes", 13, 1)
	return func(c *Call) error {
		axes, err := list.get(c)
		if err != nil {
			return err
		}
		in := c.In(0).Shape()
		shape := make([]int, 0, len(in))
		if !list.given {
			for _, d := range in {
				if d != 1 {
					shape = append(shape, d)
				}
			}
			return c.View(0, 0, shape...)
		}
		ax, err := normalAxes(axes, len(in))
		if err != nil {
			return err
		}
		for i, d := range in {
			if !slices.Contains(ax, i) {
				shape = append(shape, d)
			} else if d != 1 {
				return fmt.Errorf("axis %d of %v is not 1", i, in)
			}
		}
		return c.View(0, 0, shape...)
	}, nil
}

func inferUnsqueeze(c *Inference) error {
	in := c.Shape(0)
	axes, given, known := c.list("axes", 13, 1)
	if !given && known {
		return c.Errorf("axes are missing")
	}
	if in == nil || !known {
		if d := c.Shape(1); in != nil && len(d) == 1 && d[0].Known && d[0].Size >= 0 && d[0].Size <= maxPropagated {
			c.Tensor(0, c.Elem(0), graph.UnknownShape(len(in)+int(d[0].Size)))
			return nil
		}
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	ax, err := normalAxes(axes, len(in)+len(axes))
	if err != nil {
		return err
	}
	out := make(graph.Shape, len(in)+len(axes))
	rest := bare(in)
	for i := range out {
		if slices.Contains(ax, i) {
			out[i] = graph.D(1)
		} else {
			out[i], rest = rest[0], rest[1:]
		}
	}
	c.Tensor(0, c.Elem(0), out)
	c.passDims()
	return nil
}

func compileUnsqueeze(s *Site) (Kernel, error) {
	list := s.list("axes", 13, 1)
	if !list.given {
		return nil, s.Errorf("axes are missing")
	}
	return func(c *Call) error {
		axes, err := list.get(c)
		if err != nil {
			return err
		}
		in := c.In(0).Shape()
		ax, err := normalAxes(axes, len(in)+len(axes))
		if err != nil {
			return err
		}
		shape := make([]int, 0, len(in)+len(axes))
		for i := range len(in) + len(axes) {
			if slices.Contains(ax, i) {
				shape = append(shape, 1)
			} else {
				shape, in = append(shape, in[0]), in[1:]
			}
		}
		return c.View(0, 0, shape...)
	}, nil
}

func inferExpand(c *Inference) error {
	in := c.Shape(0)
	want, ok := c.vector(1)
	if !ok || in == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	out, err := BroadcastShapes(in, graph.Shape(want))
	if err != nil {
		return err
	}
	c.Tensor(0, c.Elem(0), out)
	d, shape, ok := c.contents(0)
	if dims, known := out.Dims(); ok && known {
		c.moveDims(out, d, &strided{src: readStrides(shape, dims)})
	}
	return nil
}

func compileExpand(*Site) (Kernel, error) {
	return moving(func(c *Call) error {
		v, err := c.ints(1)
		if err != nil {
			return err
		}
		want, err := sizesOf(v)
		if err != nil {
			return err
		}
		x := c.In(0)
		in := x.Shape()
		shape, err := BroadcastDims(in, want)
		if err != nil {
			return err
		}
		n, ok := tensor.NumElements(shape)
		if ok && n == x.Len() {
			return c.View(0, 0, shape...)
		}
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil {
			return err
		}
		cp := strided{dims: append([]int{}, shape...), dst: rowMajor(shape), src: readStrides(in, shape)}
		return cp.copy(c, out, x)
	}, 0, 0), nil
}

func inferTile(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	out := make(graph.Shape, len(in))
	if rep, ok := c.Dims(1); ok {
		if len(rep) != len(in) {
			return c.Errorf("%d repeats for rank %d", len(rep), len(in))
		}
		for i, d := range in {
			out[i] = dimMul(d, rep[i])
		}
	}
	c.Tensor(0, c.Elem(0), out)
	if d, ok := c.Dims(0); ok && len(out) == 1 && out[0].Known && out[0].Size >= 0 && out[0].Size <= maxPropagated {
		r := make([]graph.Dim, 0, out[0].Size)
		for len(d) > 0 && len(r) < int(out[0].Size) {
			r = append(r, d...)
		}
		c.SetDims(0, r)
	}
	return nil
}

func compileTile(*Site) (Kernel, error) {
	return moving(func(c *Call) error {
		v, err := c.ints(1)
		if err != nil {
			return err
		}
		rep, err := sizesOf(v)
		if err != nil {
			return err
		}
		x := c.In(0)
		in := x.Shape()
		if len(rep) != len(in) {
			return fmt.Errorf("%d repeats for rank %d", len(rep), len(in))
		}
		shape := make([]int, len(in))
		for i, d := range in {
			if shape[i], err = mulDims(d, rep[i]); err != nil {
				return err
			}
		}
		if n, ok := tensor.NumElements(shape); ok && n == x.Len() {
			return c.View(0, 0, shape...)
		}
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil {
			return err
		}
		// Each axis becomes two: repeats (stride 0 in the source), elements.
		var cp strided
		si, so := rowMajor(in), rowMajor(shape)
		for i, d := range in {
			cp.dims = append(cp.dims, rep[i], d)
			cp.src = append(cp.src, 0, si[i])
			cp.dst = append(cp.dst, so[i]*d, so[i])
		}
		return cp.copy(c, out, x)
	}, 0, 0), nil
}

func inferRange(c *Inference) error {
	elem := c.Elem(0)
	for i := 1; i < 3 && elem == tensor.Undefined; i++ {
		elem = c.Elem(i)
	}
	shape := graph.UnknownShape(1)
	start, ok0 := c.Dims(0)
	limit, ok1 := c.Dims(1)
	delta, ok2 := c.Dims(2)
	switch {
	case ok0 && ok1 && ok2 && len(start) == 1 && len(limit) == 1 && len(delta) == 1:
		a, b, d := start[0], limit[0], delta[0]
		if !d.Known {
			break
		}
		if d.Size == 0 {
			return c.Errorf("delta is 0")
		}
		if a.Known && a.Size == 0 && d.Size == 1 && !b.Known {
			shape[0] = graph.Dim{Sym: b.Sym}
		}
		if !a.Known || !b.Known {
			break
		}
		n := rangeLen(float64(a.Size), float64(b.Size), float64(d.Size))
		shape[0] = graph.D(int64(n))
		if n <= maxPropagated {
			out := make([]graph.Dim, int(n))
			for i := range out {
				out[i] = graph.D(a.Size + int64(i)*d.Size)
			}
			c.SetDims(0, out)
		}
	case elem.IsFloat():
		if v, ok := constReals(c, 3); ok && v[2] != 0 {
			if n := rangeLen(v[0], v[1], v[2]); n < 1<<53 {
				shape[0] = graph.D(int64(n))
			}
		}
	}
	c.Tensor(0, elem, shape)
	return nil
}

// constReals returns the first n inputs, all constants of one element.
func constReals(c *Inference, n int) ([]float64, bool) {
	out := make([]float64, n)
	for i := range out {
		t := c.Const(i)
		if t == nil || t.Len() != 1 {
			return nil, false
		}
		v, err := tensor.Float64s(t)
		if err != nil {
			return nil, false
		}
		out[i] = v[0]
	}
	return out, true
}

// rangeLen is the number of elements of a Range, a whole number.
func rangeLen(start, limit, delta float64) float64 {
	return max(math.Ceil((limit-start)/delta), 0)
}

func compileRange(*Site) (Kernel, error) {
	return func(c *Call) error {
		for i := range 3 {
			if t := c.In(i); t == nil || t.Len() != 1 || t.DType() != c.In(0).DType() {
				return fmt.Errorf("start, limit and delta must be single elements of one type")
			}
		}
		dtype := c.In(0).DType()
		switch dtype {
		case tensor.Int64:
			return rangeInts[int64](c)
		case tensor.Int32:
			return rangeInts[int32](c)
		case tensor.Int16:
			return rangeInts[int16](c)
		case tensor.Float64:
			return rangeFloats[float64](c)
		case tensor.Float32:
			return rangeFloats[float32](c)
		}
		var v [3]float64
		for i := range v {
			r, err := tensor.Float64s(c.In(i))
			if err != nil {
				return err
			}
			v[i] = r[0]
		}
		out, err := rangeOut(c, v[0], v[1], v[2])
		if err != nil {
			return err
		}
		r := make([]float64, out.Len())
		for i := range r {
			r[i] = float64(float32(v[0]) + float32(i)*float32(v[2]))
		}
		tensor.Write(out, 0, r)
		return nil
	}, nil
}

func rangeOut(c *Call, start, limit, delta float64) (*tensor.Tensor, error) {
	n := rangeLen(start, limit, delta)
	if delta == 0 || !(n < 1<<53) {
		return nil, fmt.Errorf("range from %v to %v by %v", start, limit, delta)
	}
	return c.Out(0, c.In(0).DType(), int(n))
}

func rangeFloats[T float32 | float64](c *Call) error {
	start, limit, delta := tensor.As[T](c.In(0))[0], tensor.As[T](c.In(1))[0], tensor.As[T](c.In(2))[0]
	out, err := rangeOut(c, float64(start), float64(limit), float64(delta))
	if err != nil {
		return err
	}
	for i, v := 0, tensor.As[T](out); i < len(v); i++ {
		v[i] = start + T(i)*delta
	}
	return nil
}

func rangeInts[T int16 | int32 | int64](c *Call) error {
	start, limit, delta := tensor.As[T](c.In(0))[0], tensor.As[T](c.In(1))[0], tensor.As[T](c.In(2))[0]
	out, err := rangeOut(c, float64(start), float64(limit), float64(delta))
	if err != nil {
		return err
	}
	for i, v := 0, tensor.As[T](out); i < len(v); i++ {
		v[i] = start + T(i)*delta
	}
	return nil
}

// dtypeAttr returns the element type in attribute name, or def if it is
// absent.
func dtypeAttr(n *graph.Node, name string, def tensor.DType) (tensor.DType, error) {
	v := n.Int(name, int64(def))
	if v == int64(def) {
		return def, nil
	}
	if v < 0 || v > 255 || !tensor.DType(v).Valid() {
		return 0, fmt.Errorf("attribute %s is %d, which is no element type", name, v)
	}
	return tensor.DType(v), nil
}

func inferEyeLike(c *Inference) error {
	elem, err := dtypeAttr(c.Node, "dtype", c.Elem(0))
	if err != nil {
		return err
	}
	in := c.Shape(0)
	if in == nil {
		in = graph.UnknownShape(2)
	}
	if len(in) != 2 {
		return c.Errorf("input has shape %v, want a matrix", in)
	}
	c.Tensor(0, elem, bare(in))
	return nil
}

func compileEyeLike(s *Site) (Kernel, error) {
	if _, err := dtypeAttr(s.Node, "dtype", tensor.Undefined); err != nil {
		return nil, s.Errorf("%v", err)
	}
	k := s.Node.Int("k", 0)
	n := s.Node
	return func(c *Call) error {
		x := c.In(0)
		dtype, err := dtypeAttr(n, "dtype", x.DType())
		if err != nil {
			return err
		}
		if x.Rank() != 2 {
			return fmt.Errorf("input is %v, want a matrix", x)
		}
		rows, cols := x.Shape()[0], x.Shape()[1]
		one := tensor.New(dtype, 1)
		if !dtype.Convertible() || isPacked(dtype) {
			return fmt.Errorf("element type %v has no 1", dtype)
		}
		tensor.Write(one, 0, []float64{1})
		out, err := c.Out(0, dtype, rows, cols)
		if err != nil {
			return err
		}
		dst, v := cellsOf(out), cellsOf(one)
		dst.zero(0, out.Len())
		for i := range rows {
			if j := int64(i) + k; j >= 0 && j < int64(cols) {
				dst.put(i*cols+int(j), v, 0, 1)
			}
		}
		return nil
	}, nil
}

func inferNonZero(c *Inference) error {
	shape := graph.UnknownShape(2)
	if in := c.Shape(0); in != nil {
		shape[0] = graph.D(int64(len(in)))
	}
	c.Tensor(0, tensor.Int64, shape)
	return nil
}

func compileNonZero(*Site) (Kernel, error) {
	return func(c *Call) error {
		x := c.In(0)
		at, err := nonZeros(x)
		if err != nil {
			return err
		}
		shape := x.Shape()
		out, err := c.Out(0, tensor.Int64, len(shape), len(at))
		if err != nil {
			return err
		}
		v := tensor.As[int64](out)
		for k := len(shape) - 1; k >= 0; k-- {
			row := v[k*len(at) : (k+1)*len(at)]
			for i, p := range at {
				row[i] = int64(p % shape[k])
				at[i] = p / shape[k]
			}
		}
		return nil
	}, nil
}

// nonZeros returns the positions of the elements of t that are not zero.
func nonZeros(t *tensor.Tensor) ([]int, error) {
	switch d := t.DType(); d {
	case tensor.Float32:
		return nonZero(tensor.As[float32](t)), nil
	case tensor.Float64:
		return nonZero(tensor.As[float64](t)), nil
	case tensor.Complex64:
		return nonZero(tensor.As[complex64](t)), nil
	case tensor.Complex128:
		return nonZero(tensor.As[complex128](t)), nil
	case tensor.Float16, tensor.BFloat16:
		s := tensor.As[uint16](t)
		var at []int
		for i, v := range s {
			if v&0x7fff != 0 {
				at = append(at, i)
			}
		}
		return at, nil
	case tensor.String:
		return nonZero(t.Strings()), nil
	default:
		switch {
		case !d.IsInt() && d != tensor.Bool:
		case d.Bits() == 8:
			return nonZero(tensor.As[uint8](t)), nil
		case d.Bits() == 16:
			return nonZero(tensor.As[uint16](t)), nil
		case d.Bits() == 32:
			return nonZero(tensor.As[uint32](t)), nil
		case d.Bits() == 64:
			return nonZero(tensor.As[uint64](t)), nil
		}
		return nil, fmt.Errorf("element type %v", d)
	}
}

func nonZero[T comparable](s []T) []int {
	var zero T
	n := 0
	for _, v := range s {
		if v != zero {
			n++
		}
	}
	at := make([]int, 0, n)
	for i, v := range s {
		if v != zero {
			at = append(at, i)
		}
	}
	return at
}

func inferOneHot(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, c.Elem(2), nil)
		return nil
	}
	axis, err := c.axis("axis", -1, len(in)+1)
	if err != nil {
		return err
	}
	depth := graph.Dim{}
	if d, ok := c.Dims(1); ok && len(d) == 1 {
		depth = graph.Dim{Size: d[0].Size, Sym: d[0].Sym, Known: d[0].Known}
	} else if t := c.Const(1); t != nil && t.Len() == 1 {
		if v, err := tensor.Float64s(t); err == nil {
			depth = graph.D(int64(v[0]))
		}
	}
	if depth.Known && depth.Size < 0 {
		return c.Errorf("depth is %d", depth.Size)
	}
	out := append(append(append(graph.Shape{}, bare(in[:axis])...), depth), bare(in[axis:])...)
	c.Tensor(0, c.Elem(2), out)
	return nil
}

func compileOneHot(s *Site) (Kernel, error) {
	attr := s.Node.Int("axis", -1)
	return func(c *Call) error {
		x, values := c.In(0), c.In(2)
		axis, err := NormalAxis(attr, x.Rank()+1)
		if err != nil {
			return err
		}
		d, err := c.realOf(1, 0)
		if err != nil {
			return err
		}
		if !(d >= 0 && d < 1<<53) || values.Len() != 2 || isPacked(values.DType()) {
			return fmt.Errorf("depth %v with values %v", d, values)
		}
		depth := int(d)
		in := x.Shape()
		shape := append(append(append([]int{}, in[:axis]...), depth), in[axis:]...)
		idx, err := intsOf(x)
		if err != nil {
			r, err := tensor.Float64s(x)
			if err != nil {
				return err
			}
			idx = make([]int64, len(r))
			for i, v := range r {
				idx[i] = int64(v)
			}
		}
		out, err := c.Out(0, values.DType(), shape...)
		if err != nil {
			return err
		}
		dst, v := cellsOf(out), cellsOf(values)
		dst.fill(0, out.Len(), v)
		inner := volume(in[axis:])
		for i, k := range idx {
			if k < 0 {
				k += int64(depth)
			}
			if k >= 0 && k < int64(depth) {
				dst.put((i/inner*depth+int(k))*inner+i%inner, v, 1, 1)
			}
		}
		return nil
	}, nil
}
