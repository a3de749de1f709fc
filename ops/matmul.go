package ops

import (
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

func matmulSpecs() []Spec {
	y := []Port{{Name: "Y", Role: Activation}}
	ab := []Port{{Name: "A", Role: Activation}, {Name: "B", Role: Weight, Axis: -1}}
	abc := append(ab[:2:2], Port{Name: "C", Role: Bias, Optional: true})
	gemm := []AttrSpec{
		{Name: "alpha", Kind: graph.AttrFloat}, {Name: "beta", Kind: graph.AttrFloat},
		{Name: "transA", Kind: graph.AttrInt}, {Name: "transB", Kind: graph.AttrInt},
	}
	columns := func(n *graph.Node, _ int) int {
		if n.Int("transB", 0) != 0 {
			return -2
		}
		return -1
	}
	fused := func(name string, attrs ...AttrSpec) Spec {
		return Spec{Domain: msDomain, Type: name, Flow: Compute, Pure: true, In: ab, Out: y,
			Attrs:      append([]AttrSpec{{Name: "alpha", Kind: graph.AttrFloat}, {Name: "transA", Kind: graph.AttrInt}, {Name: "transB", Kind: graph.AttrInt}}, attrs...),
			WeightAxis: columns, Infer: inferMatMul, Compile: compileMatMul}
	}
	return []Spec{
		{Type: "MatMul", Flow: Compute, Pure: true, In: ab, Out: y, Infer: inferMatMul, Compile: compileMatMul},
		fused("FusedMatMul", AttrSpec{Name: "transBatchA", Kind: graph.AttrInt}, AttrSpec{Name: "transBatchB", Kind: graph.AttrInt}),
		fused("TransposeMatMul"),
		{
			Type: "Gemm", Flow: Compute, Pure: true, In: abc, Out: y, Attrs: gemm,
			WeightAxis: columns, Infer: inferGemm, Compile: compileGemm,
		},
		{
			Domain: msDomain, Type: "FusedGemm", Flow: Compute, Pure: true, In: abc, Out: y,
			Attrs: append(gemm[:4:4],
				AttrSpec{Name: "activation", Kind: graph.AttrString}, AttrSpec{Name: "activation_alpha", Kind: graph.AttrFloat},
				AttrSpec{Name: "activation_beta", Kind: graph.AttrFloat}, AttrSpec{Name: "activation_gamma", Kind: graph.AttrFloat}),
			WeightAxis: columns, Infer: inferGemm, Compile: compileGemm,
		},
	}
}

// operandOrder says how the dimensions of an operand [batch..., rows, columns]
// are arranged in its tensor.
type operandOrder struct{ trans, transBatch bool }

// permute returns dims [batch..., rows, columns] for a tensor of shape s: with
// transBatch the first axis is that of the rows and the batch axes follow,
// and with trans the last two are swapped after that.
func permute[D any](o operandOrder, s []D) []D {
	s = append([]D{}, s...)
	n := len(s)
	if o.transBatch && n > 2 {
		first := s[0]
		copy(s, s[1:n-1])
		s[n-2] = first
	}
	if o.trans && n > 1 {
		s[n-2], s[n-1] = s[n-1], s[n-2]
	}
	return s
}

func orders(n *graph.Node) (a, b operandOrder) {
	return operandOrder{n.Int("transA", 0) != 0, n.Int("transBatchA", 0) != 0},
		operandOrder{n.Int("transB", 0) != 0, n.Int("transBatchB", 0) != 0}
}

func inferMatMul(c *Inference) error {
	oa, ob := orders(c.Node)
	out, err := matmulShape(permuteShape(oa, c.Shape(0)), permuteShape(ob, c.Shape(1)))
	if err != nil {
		return c.Errorf("%w", err)
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func permuteShape(o operandOrder, s graph.Shape) graph.Shape {
	if s == nil {
		return nil
	}
	return permute(o, s)
}

// matmulShape returns the shape of the product of tensors of shapes a and b
// under the rules of numpy.matmul.
func matmulShape(a, b graph.Shape) (graph.Shape, error) {
	if a == nil || b == nil {
		return nil, nil
	}
	if len(a) == 0 || len(b) == 0 {
		return nil, fmt.Errorf("product of shapes %v and %v", a, b)
	}
	ka, kb := a[len(a)-1], b[max(len(b)-2, 0)]
	if ka.Known && kb.Known && ka.Size != kb.Size {
		return nil, fmt.Errorf("product of shapes %v and %v", a, b)
	}
	out, err := BroadcastShapes(a[:max(len(a)-2, 0)], b[:max(len(b)-2, 0)])
	if err != nil {
		return nil, err
	}
	if len(a) > 1 {
		out = append(out, bareDim(a[len(a)-2]))
	}
	if len(b) > 1 {
		out = append(out, bareDim(b[len(b)-1]))
	}
	return out, nil
}

// matmul is a MatMul or FusedMatMul bound to its attributes and constants.
type matmul struct {
	a, b   operandOrder
	alpha  float32
	packed *kernels.PackedB // of a constant matrix B, times alpha
	fused  *Fusion
}

func compileMatMul(s *Site) (Kernel, error) {
	m := &matmul{alpha: s.Node.Float("alpha", 1), fused: s.Fused}
	m.a, m.b = orders(s.Node)
	if b := s.Const(1); b != nil && b.Rank() == 2 && (b.DType() == tensor.Float32 || isHalf(b.DType())) {
		m.packed = packMatrix(b, m.b.trans, m.alpha)
	}
	return widened(m.run), nil
}

// packMatrix packs a constant float matrix times alpha.
func packMatrix(t *tensor.Tensor, trans bool, alpha float32) *kernels.PackedB {
	data, _ := tensor.Float32s(t) // a float type always converts
	if alpha != 1 {
		data = append([]float32(nil), data...)
		for i := range data {
			data[i] *= alpha
		}
	}
	k, n := t.Shape()[0], t.Shape()[1]
	ld := n
	if trans {
		k, n = n, k
	}
	return kernels.PackB(k, n, kernels.Matrix{Data: data, Ld: ld, Trans: trans})
}

func (m *matmul) run(c *Call) error {
	switch x := c.In(0); x.DType() {
	case tensor.Float32:
		return matmulRun[float32](m, c)
	case tensor.Float64:
		return matmulRun[float64](m, c)
	case tensor.Int32:
		return matmulRun[int32](m, c)
	case tensor.Int64:
		return matmulRun[int64](m, c)
	case tensor.Uint32:
		return matmulRun[uint32](m, c)
	case tensor.Uint64:
		return matmulRun[uint64](m, c)
	default:
		return fmt.Errorf("operand of type %v", x.DType())
	}
}

// operand is one side of a batched product: the dimensions of its batch and
// the layout of each matrix.
type operand struct {
	batch      []int
	step       []int // elements between matrices along each batch axis
	rows, cols int
	ld         int
	trans      bool
}

// newOperand describes a tensor of shape s, a vector being a row (left) or a
// column.
func newOperand(s []int, o operandOrder, left bool) operand {
	if len(s) == 1 {
		if left {
			return operand{rows: 1, cols: s[0], ld: s[0]}
		}
		return operand{rows: s[0], cols: 1, ld: 1}
	}
	strides := make([]int, len(s))
	n := 1
	for i := len(s) - 1; i >= 0; i-- {
		strides[i] = n
		n *= s[i]
	}
	dims, st := permute(o, s), permute(o, strides)
	r := len(s) - 2
	p := operand{batch: dims[:r], step: st[:r], rows: dims[r], cols: dims[r+1], trans: o.trans}
	p.ld = st[r]
	if o.trans {
		p.ld = st[r+1]
	}
	return p
}

// offset returns where the matrix begins that broadcasting pairs with index
// at of batch shape.
func (p *operand) offset(at int, shape []int) int {
	off := 0
	for i := len(shape) - 1; i >= 0; i-- {
		k := at % shape[i]
		at /= shape[i]
		if j := i - (len(shape) - len(p.batch)); j >= 0 && p.batch[j] > 1 {
			off += k * p.step[j]
		}
	}
	return off
}

func matmulRun[T float32 | float64 | int32 | int64 | uint32 | uint64](m *matmul, c *Call) error {
	ta, tb := c.In(0), c.In(1)
	if ta.DType() != tb.DType() || ta.Rank() == 0 || tb.Rank() == 0 {
		return fmt.Errorf("product of %v and %v", ta, tb)
	}
	a, b := newOperand(ta.Shape(), m.a, true), newOperand(tb.Shape(), m.b, false)
	if a.cols != b.rows {
		return fmt.Errorf("product of %v and %v", ta, tb)
	}
	batch, err := BroadcastDims(a.batch, b.batch)
	if err != nil {
		return err
	}
	count, _ := tensor.NumElements(batch)
	shape := append([]int{}, batch...)
	if ta.Rank() > 1 {
		shape = append(shape, a.rows)
	}
	if tb.Rank() > 1 {
		shape = append(shape, b.cols)
	}
	out, err := c.Out(0, ta.DType(), shape...)
	if err != nil {
		return err
	}
	x, y := tensor.As[T](ta), tensor.As[T](out)
	if len(y) == 0 {
		return nil
	}
	rows, n, k := a.rows, b.cols, a.cols
	// With one matrix on the right, the batch of the left side is only more
	// rows.
	if len(b.batch) == 0 && !m.a.trans && !m.a.transBatch {
		rows, count = rows*count, 1
		a.batch, batch = nil, nil
	}
	var w []T
	if m.packed == nil || count > 1 {
		w = tensor.As[T](tb) // a copy where a file holds it unaligned
	}
	if y32, ok := any(y).([]float32); ok {
		return m.run32(c, any(x).([]float32), any(w).([]float32), y32, out, &a, &b, batch, count, rows, n, k)
	}
	for i := range count {
		product(c, rows, n, k, x[a.offset(i, batch):], a.ld, a.trans, w[b.offset(i, batch):], b.ld, b.trans, y[i*rows*n:], n)
		if err := c.Ctx.Err(); err != nil {
			return err
		}
	}
	if m.alpha != 1 {
		for i := range y {
			y[i] = T(float64(y[i]) * float64(m.alpha))
		}
	}
	if y64, ok := any(y).([]float64); ok && m.fused != nil {
		var res []float64
		if m.fused.Residual > 0 {
			if res, err = residual[float64](c, m.fused.Residual, out); err != nil {
				return err
			}
		}
		return finishColumns(c, y64, n, m.fused, res)
	}
	return nil
}

// run32 computes the product of float32 operands.
func (m *matmul) run32(c *Call, x, w, y []float32, out *tensor.Tensor, a, b *operand, batch []int, count, rows, n, k int) error {
	ep, err := columnEpilogue(c, m.fused, out, n)
	if err != nil {
		return err
	}
	switch {
	case m.packed != nil && count == 1:
		kernels.GemmPacked(c.Pool, rows, kernels.Matrix{Data: x, Ld: a.ld, Trans: a.trans}, m.packed, y, n, ep)
		return c.Ctx.Err()
	case m.alpha == 1 && count == 1:
		kernels.Gemm(c.Pool, rows, n, k, kernels.Matrix{Data: x, Ld: a.ld, Trans: a.trans},
			kernels.Matrix{Data: w, Ld: b.ld, Trans: b.trans}, y, n, ep)
		return c.Ctx.Err()
	}
	sa, oka := a.uniform(batch)
	sb, okb := b.uniform(batch)
	if oka && okb {
		kernels.GemmBatch(c.Pool, count, rows, n, k, kernels.Matrix{Data: x, Ld: a.ld, Trans: a.trans}, sa,
			kernels.Matrix{Data: w, Ld: b.ld, Trans: b.trans}, sb, y, n, rows*n)
	} else {
		for i := range count {
			if err := c.Ctx.Err(); err != nil {
				return err
			}
			product(c, rows, n, k, x[a.offset(i, batch):], a.ld, a.trans, w[b.offset(i, batch):], b.ld, b.trans, y[i*rows*n:], n)
		}
	}
	if m.alpha != 1 {
		if err := c.For(len(y), 1<<14, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				y[i] *= m.alpha
			}
		}); err != nil {
			return err
		}
	}
	if ep != nil {
		return finishColumns(c, y, n, m.fused, ep.Residual)
	}
	return c.Ctx.Err()
}

// uniform returns the distance of consecutive matrices over the batch shape
// and whether there is one.
func (p *operand) uniform(batch []int) (int, bool) {
	if n, _ := tensor.NumElements(p.batch); n == 1 {
		return 0, true
	}
	step, next := 0, 0
	for i := len(batch) - 1; i >= 0; i-- {
		if batch[i] == 1 {
			continue
		}
		j := i - (len(batch) - len(p.batch))
		if j < 0 || p.batch[j] != batch[i] || next != 0 && p.step[j] != next {
			return 0, false
		}
		if step == 0 {
			step = p.step[j]
		}
		next = p.step[j] * batch[i]
	}
	return step, true
}

// columnEpilogue returns what f means for a product with n columns; nil for
// nothing.
func columnEpilogue(c *Call, f *Fusion, out *tensor.Tensor, n int) (*kernels.Epilogue, error) {
	if f == nil {
		return nil, nil
	}
	if f.Bias != nil && len(f.Bias) != n {
		return nil, fmt.Errorf("fused bias of %d values for %d columns", len(f.Bias), n)
	}
	ep := &kernels.Epilogue{ColBias: f.Bias, Clip: f.Clip, Min: f.Min, Max: f.Max, LdRes: n}
	if f.Residual > 0 {
		var err error
		if ep.Residual, err = residual[float32](c, f.Residual, out); err != nil {
			return nil, err
		}
	}
	return ep, nil
}

// finishColumns applies f to y, whose rows have n elements.
func finishColumns[T float32 | float64](c *Call, y []T, n int, f *Fusion, res []T) error {
	return c.For(len(y)/n, max(1, 1<<14/n), func(lo, hi int) {
		for r := lo; r < hi; r++ {
			row := y[r*n:][:n]
			for i, b := range f.Bias {
				row[i] += T(b)
			}
			if res != nil {
				for i, v := range res[r*n:][:n] {
					row[i] += v
				}
			}
			if f.Clip {
				clip(row, T(f.Min), T(f.Max))
			}
		}
	})
}

func inferGemm(c *Inference) error {
	oa, ob := orders(c.Node)
	a, b := permuteShape(oa, c.Shape(0)), permuteShape(ob, c.Shape(1))
	if a != nil && len(a) != 2 || b != nil && len(b) != 2 {
		return c.Errorf("operands of shapes %v and %v", c.Shape(0), c.Shape(1))
	}
	out := graph.UnknownShape(2)
	if a != nil {
		out[0] = bareDim(a[0])
	}
	if b != nil {
		out[1] = bareDim(b[1])
	}
	if a != nil && b != nil {
		if _, err := matmulShape(a, b); err != nil {
			return c.Errorf("%w", err)
		}
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

// gemm is a Gemm bound to its attributes and constants.
type gemm struct {
	a, b        operandOrder
	alpha, beta float32
	packed      *kernels.PackedB // constant B, times alpha
	fused       *Fusion
	bias        []float32 // constant C times beta plus the fused bias, if C is per column
	folded      bool      // bias includes C and the fused bias
	act         *activation
}

func compileGemm(s *Site) (Kernel, error) {
	n := s.Node
	g := &gemm{alpha: n.Float("alpha", 1), beta: n.Float("beta", 1), fused: s.Fused}
	g.a, g.b = orders(n)
	if n.Op.Type == "FusedGemm" {
		var params []float32
		for _, name := range []string{"activation_alpha", "activation_beta"} {
			if n.Attr(name) != nil {
				params = append(params, n.Float(name, 0))
			}
		}
		if name := n.String("activation", ""); name != "" {
			var err error
			if g.act, err = newActivation(name, params); err != nil {
				return nil, s.Errorf("%w", err)
			}
		}
	}
	if b := s.Const(1); b != nil && b.Rank() == 2 && (b.DType() == tensor.Float32 || isHalf(b.DType())) {
		g.packed = packMatrix(b, g.b.trans, g.alpha)
		cols := b.Shape()[1]
		if g.b.trans {
			cols = b.Shape()[0]
		}
		g.foldBias(s, cols)
	}
	return widened(func(c *Call) error {
		switch x := c.In(0); x.DType() {
		case tensor.Float32:
			return g.run32(c)
		case tensor.Float64:
			return gemmRun[float64](g, c)
		case tensor.Int32:
			return gemmRun[int32](g, c)
		case tensor.Int64:
			return gemmRun[int64](g, c)
		case tensor.Uint32:
			return gemmRun[uint32](g, c)
		case tensor.Uint64:
			return gemmRun[uint64](g, c)
		default:
			return fmt.Errorf("operand of type %v", x.DType())
		}
	}), nil
}

// foldBias computes the bias of each column at compile time where it can.
func (g *gemm) foldBias(s *Site, cols int) {
	var fused []float32
	if g.fused != nil {
		fused = g.fused.Bias
	}
	t := s.Const(2)
	if s.Has(2) && (t == nil || !t.DType().IsFloat() || !perColumn(t.Shape(), cols)) || fused != nil && len(fused) != cols {
		return
	}
	g.folded = true
	if t == nil && fused == nil {
		return
	}
	g.bias = make([]float32, cols)
	copy(g.bias, fused)
	if t != nil {
		v, _ := tensor.Float32s(t)
		for i := range g.bias {
			g.bias[i] += g.beta * v[min(i, len(v)-1)]
		}
	}
}

// perColumn reports whether a tensor of the given shape, broadcast to rows of
// cols elements, is the same in every row.
func perColumn(s []int, cols int) bool {
	n, _ := tensor.NumElements(s)
	return n == 1 || n == cols && len(s) > 0 && s[len(s)-1] == cols
}

// operands checks the shapes and returns those of the product.
func (g *gemm) operands(c *Call) (m, n, k int, err error) {
	a, b, t := c.In(0), c.In(1), c.In(2)
	if a.Rank() != 2 || b.Rank() != 2 || a.DType() != b.DType() || t != nil && t.DType() != a.DType() {
		return 0, 0, 0, fmt.Errorf("operands %v and %v", a, b)
	}
	sa, sb := permute(g.a, a.Shape()), permute(g.b, b.Shape())
	if sa[1] != sb[0] {
		return 0, 0, 0, fmt.Errorf("operands %v and %v", a, b)
	}
	m, n, k = sa[0], sb[1], sa[1]
	if t != nil {
		if s, err := BroadcastDims([]int{m, n}, t.Shape()); err != nil || len(s) != 2 || s[0] != m || s[1] != n {
			return 0, 0, 0, fmt.Errorf("input C is %v for an output of %dx%d", t, m, n)
		}
	}
	return m, n, k, nil
}

func (g *gemm) run32(c *Call) error {
	if g.packed == nil || !g.folded {
		return gemmRun[float32](g, c)
	}
	m, n, _, err := g.operands(c)
	if err != nil {
		return err
	}
	out, err := c.Out(0, tensor.Float32, m, n)
	if err != nil {
		return err
	}
	ep := &kernels.Epilogue{}
	if g.fused != nil {
		if ep, err = columnEpilogue(c, g.fused, out, n); err != nil {
			return err
		}
	}
	ep.ColBias = g.bias
	a := c.In(0)
	y := tensor.As[float32](out)
	kernels.GemmPacked(c.Pool, m, kernels.Matrix{Data: tensor.As[float32](a), Ld: a.Shape()[1], Trans: g.a.trans}, g.packed, y, n, ep)
	if g.act != nil {
		activate(g.act, y)
	}
	return c.Ctx.Err()
}

func gemmRun[T float32 | float64 | int32 | int64 | uint32 | uint64](g *gemm, c *Call) error {
	m, n, k, err := g.operands(c)
	if err != nil {
		return err
	}
	a, b, t := c.In(0), c.In(1), c.In(2)
	out, err := c.Out(0, a.DType(), m, n)
	if err != nil {
		return err
	}
	y := tensor.As[T](out)
	if len(y) == 0 {
		return nil
	}
	product(c, m, n, k, tensor.As[T](a), a.Shape()[1], g.a.trans, tensor.As[T](b), b.Shape()[1], g.b.trans, y, n)
	if g.alpha != 1 {
		for i := range y {
			y[i] = T(float64(y[i]) * float64(g.alpha))
		}
	}
	if t != nil {
		v := tensor.As[T](t)
		rows, cols := broadcastSteps(t.Shape())
		beta := float64(g.beta)
		for i := range m {
			for j := range y[i*n:][:n] {
				w := v[i*rows+j*cols]
				if beta != 1 {
					w = T(beta * float64(w))
				}
				y[i*n+j] += w
			}
		}
	}
	switch y := any(y).(type) {
	case []float32:
		return finishGemm(g, c, y, n, out)
	case []float64:
		return finishGemm(g, c, y, n, out)
	}
	return c.Ctx.Err()
}

func finishGemm[T float32 | float64](g *gemm, c *Call, y []T, n int, out *tensor.Tensor) error {
	if f := g.fused; f != nil {
		if f.Bias != nil && len(f.Bias) != n {
			return fmt.Errorf("fused bias of %d values for %d columns", len(f.Bias), n)
		}
		var res []T
		if f.Residual > 0 {
			var err error
			if res, err = residual[T](c, f.Residual, out); err != nil {
				return err
			}
		}
		if err := finishColumns(c, y, n, f, res); err != nil {
			return err
		}
	}
	if g.act != nil {
		activate(g.act, y)
	}
	return c.Ctx.Err()
}

// broadcastSteps returns the distances of elements in successive rows and
// columns of a matrix that a tensor of shape s, of rank at most 2, broadcasts
// to.
func broadcastSteps(s []int) (rows, cols int) {
	if n := len(s); n > 0 {
		if s[n-1] > 1 {
			cols = 1
		}
		if n > 1 && s[0] > 1 {
			rows = s[n-1]
		}
	}
	return rows, cols
}
