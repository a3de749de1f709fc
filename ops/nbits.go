package ops

import (
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// nbitsSpecs returns com.microsoft's operators on weights of few bits in
// blocks.
func nbitsSpecs() []Spec {
	ints := func(names ...string) (a []AttrSpec) {
		for _, n := range names {
			a = append(a, AttrSpec{Name: n, Kind: graph.AttrInt})
		}
		return a
	}
	return []Spec{
		{
			Domain: msDomain, Type: "MatMulNBits", Flow: Opaque, Pure: true,
			In: []Port{
				{Name: "A", Role: Activation}, {Name: "B"}, {Name: "scales"}, {Name: "zero_points", Optional: true},
				{Name: "g_idx", Role: Index, Optional: true}, {Name: "bias", Role: Bias, Optional: true},
			},
			Out:   []Port{{Name: "Y", Role: Activation}},
			Attrs: ints("K", "N", "accuracy_level", "bits", "block_size", "weight_prepacked"),
			Infer: inferNBits, Compile: compileNBits,
		},
		{
			Domain: msDomain, Type: "GatherBlockQuantized", Flow: Opaque, Pure: true,
			In:    []Port{{Name: "data"}, {Name: "indices", Role: Index}, {Name: "scales"}, {Name: "zero_points", Optional: true}},
			Out:   []Port{{Name: "output", Role: Activation}},
			Attrs: ints("bits", "block_size", "gather_axis", "quantize_axis"),
			Infer: inferGatherBlocks, Compile: compileGatherBlocks,
		},
	}
}

func inferNBits(c *Inference) error {
	x := c.Shape(0)
	var out graph.Shape
	if len(x) > 0 {
		for _, d := range x[:len(x)-1] {
			out = append(out, bareDim(d))
		}
		out = append(out, dimOf(c.Node.Int("N", -1)))
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

// bitMatrix is the right operand of a MatMulNBits: n columns of k values in
// blocks along k.
type bitMatrix struct{ n, k, bits, block int }

func compileNBits(s *Site) (Kernel, error) {
	a := s.Node
	m := bitMatrix{n: int(a.Int("N", 0)), k: int(a.Int("K", 0)), bits: int(a.Int("bits", 4)), block: int(a.Int("block_size", 0))}
	if m.n < 1 || m.k < 1 || m.n > maxExtent || m.k > maxExtent || m.bits != 2 && m.bits != 4 && m.bits != 8 || m.block < 1 || m.block > maxExtent || m.block*m.bits%8 != 0 {
		return nil, s.Errorf("N %d, K %d, bits %d, block_size %d", m.n, m.k, m.bits, m.block)
	}
	if a.Int("weight_prepacked", 0) != 0 {
		return nil, s.Errorf("weights in the layout of another provider")
	}
	var packed *kernels.PackedB
	if b, scale := s.Const(1), s.Const(2); b != nil && scale != nil && (s.Const(3) != nil || !s.Has(3)) && (s.Const(4) != nil || !s.Has(4)) {
		var err error
		if packed, err = m.pack(b, scale, s.Const(3), s.Const(4)); err != nil {
			return nil, s.Errorf("%w", err)
		}
	}
	return widened(func(c *Call) error {
		x := c.In(0)
		if x.DType() != tensor.Float32 || x.Rank() == 0 || x.Shape()[x.Rank()-1] != m.k {
			return fmt.Errorf("input %v for K %d", x, m.k)
		}
		p := packed
		if p == nil {
			var err error
			if p, err = m.pack(c.In(1), c.In(2), c.In(3), c.In(4)); err != nil {
				return err
			}
		}
		shape := append([]int{}, x.Shape()...)
		shape[len(shape)-1] = m.n
		y, err := c.Out(0, tensor.Float32, shape...)
		if err != nil || y.Len() == 0 {
			return err
		}
		ep := &kernels.Epilogue{}
		if ep.ColBias, err = optional[float32](c, 5, m.n); err != nil {
			return err
		}
		kernels.GemmPacked(c.Pool, x.Len()/m.k, kernels.Matrix{Data: tensor.As[float32](x), Ld: m.k}, p, tensor.As[float32](y), m.n, ep)
		return c.Ctx.Err()
	}), nil
}

// pack dequantizes the weights for the float kernel.
func (m *bitMatrix) pack(b, scale, zero, group *tensor.Tensor) (*kernels.PackedB, error) {
	blocks := (m.k + m.block - 1) / m.block
	blob := m.block * m.bits / 8
	if b.DType() != tensor.Uint8 || b.Len() != m.n*blocks*blob || scale.Len() != m.n*blocks {
		return nil, fmt.Errorf("weights %v, scales %v for N %d, K %d, bits %d, block_size %d", b, scale, m.n, m.k, m.bits, m.block)
	}
	s, err := tensor.Float32s(scale)
	if err != nil {
		return nil, err
	}
	zeros, err := m.zeros(zero, blocks)
	if err != nil {
		return nil, err
	}
	var order []int64
	if group != nil {
		if order, err = tensor.Int64s(group); err != nil || len(order) < m.k {
			return nil, fmt.Errorf("g_idx %v for K %d", group, m.k)
		}
		for _, g := range order[:m.k] {
			if g < 0 || g >= int64(blocks) {
				return nil, fmt.Errorf("g_idx holds %d, there are %d blocks", g, blocks)
			}
		}
	}
	w := make([]float32, m.n*m.k)
	per, mask := 8/m.bits, byte(1<<m.bits-1)
	for n := range m.n {
		column, codes := w[n*m.k:][:m.k], b.Bytes()[n*blocks*blob:]
		for k := range column {
			g := n*blocks + k/m.block
			if order != nil {
				g = n*blocks + int(order[k])
			}
			q := codes[k/per] >> (k % per * m.bits) & mask
			column[k] = (float32(q) - zeros[g]) * s[g]
		}
	}
	return kernels.PackB(m.k, m.n, kernels.Matrix{Data: w, Ld: m.k, Trans: true}), nil
}

// zeros returns the zero point of each block: those of t, packed codes or
// numbers, or the middle of the range.
func (m *bitMatrix) zeros(t *tensor.Tensor, blocks int) ([]float32, error) {
	if t == nil {
		return fillNew(m.n*blocks, float32(int(1)<<(m.bits-1))), nil
	}
	if t.DType() != tensor.Uint8 {
		v, err := tensor.Float32s(t)
		if err == nil && len(v) != m.n*blocks {
			err = fmt.Errorf("zero points %v for %d blocks", t, m.n*blocks)
		}
		return v, err
	}
	row := (blocks*m.bits + 7) / 8
	if t.Len() != m.n*row {
		return nil, fmt.Errorf("zero points %v for %d times %d blocks", t, m.n, blocks)
	}
	out := make([]float32, 0, m.n*blocks)
	per, mask := 8/m.bits, byte(1<<m.bits-1)
	for n := range m.n {
		for b := range blocks {
			out = append(out, float32(t.Bytes()[n*row+b/per]>>(b%per*m.bits)&mask))
		}
	}
	return out, nil
}

// blockTable is a GatherBlockQuantized bound to its attributes.
type blockTable struct {
	bits, block              int
	gatherAxis, quantizeAxis int64
}

// shape returns the shape of the table in elements.
func (t *blockTable) shape(d tensor.DType, s []int) []int {
	s = append([]int{}, s...)
	if d == tensor.Uint8 && len(s) > 0 {
		s[len(s)-1] *= 8 / t.bits
	}
	return s
}

func newBlockTable(n *graph.Node) (*blockTable, error) {
	t := &blockTable{
		bits: int(n.Int("bits", 4)), block: int(n.Int("block_size", 128)),
		gatherAxis: n.Int("gather_axis", 0), quantizeAxis: n.Int("quantize_axis", 1),
	}
	if t.bits != 2 && t.bits != 4 && t.bits != 8 || t.block < 0 || t.block > maxExtent {
		return nil, fmt.Errorf("bits %d, block_size %d", t.bits, t.block)
	}
	return t, nil
}

func inferGatherBlocks(c *Inference) error {
	t, err := newBlockTable(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	data, idx := c.Shape(0), c.Shape(1)
	dims, known := data.Dims()
	if !known || idx == nil || c.Elem(0) == tensor.Undefined {
		c.Tensor(0, c.Elem(2), nil)
		return nil
	}
	axis, err := NormalAxis(t.gatherAxis, len(dims))
	if err != nil {
		return c.Errorf("%w", err)
	}
	full := graph.ShapeOf(t.shape(c.Elem(0), dims)...)
	out := append(graph.Shape{}, full[:axis]...)
	for _, d := range idx {
		out = append(out, bareDim(d))
	}
	c.Tensor(0, c.Elem(2), append(out, full[axis+1:]...))
	return nil
}

func compileGatherBlocks(s *Site) (Kernel, error) {
	t, err := newBlockTable(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	return t.run, nil
}

func (t *blockTable) run(c *Call) error {
	data, scale, zero := c.In(0), c.In(2), c.In(3)
	shape := t.shape(data.DType(), data.Shape())
	rank := len(shape)
	g, err := NormalAxis(t.gatherAxis, rank)
	if err != nil {
		return err
	}
	q, err := NormalAxis(t.quantizeAxis, rank)
	if err != nil {
		return err
	}
	packed := data.DType() == tensor.Uint8
	if !data.DType().Convertible() || scale.Rank() != rank || packed && t.bits < 8 && q != rank-1 {
		return fmt.Errorf("data %v, scales %v, quantize_axis %d", data, scale, q)
	}
	block := t.block
	if block == 0 {
		block = max(shape[q], 1)
	}
	want := append([]int{}, shape...)
	want[q] = (shape[q] + block - 1) / block
	st := steps(scale.Shape(), rank)
	for i, d := range scale.Shape() {
		if d != want[i] && d != 1 {
			return fmt.Errorf("scales %v for data of shape %v in blocks of %d", scale, shape, block)
		}
	}
	s, err := tensor.Float32s(scale)
	if err != nil {
		return err
	}
	// Zero points lie like the scales, packed along the last axis as data is.
	zeroAt := func(int) float32 { return 0 }
	if packed {
		middle := float32(int(1) << (t.bits - 1))
		zeroAt = func(int) float32 { return middle }
	}
	if zero != nil {
		last := scale.Shape()[rank-1]
		if packed {
			per, row, mask := 8/t.bits, (last*t.bits+7)/8, byte(1<<t.bits-1)
			if zero.DType() != tensor.Uint8 || zero.Len() != scale.Len()/max(last, 1)*row {
				return fmt.Errorf("zero points %v for scales %v", zero, scale)
			}
			zeroAt = func(i int) float32 {
				k := i % last
				return float32(zero.Bytes()[i/last*row+k/per] >> (k % per * t.bits) & mask)
			}
		} else {
			z, err := tensor.Float32s(zero)
			if err != nil || len(z) != len(s) {
				return fmt.Errorf("zero points %v for scales %v", zero, scale)
			}
			zeroAt = func(i int) float32 { return z[i] }
		}
	}
	idx, err := tensor.Int64s(c.In(1))
	if err != nil {
		return err
	}
	out := append([]int{}, shape[:g]...)
	out = append(append(out, c.In(1).Shape()...), shape[g+1:]...)
	y, err := c.Out(0, scale.DType(), out...)
	if err != nil || y.Len() == 0 {
		return err
	}
	outer, inner := 1, 1
	for i, d := range shape {
		if i < g {
			outer *= d
		} else if i > g {
			inner *= d
		}
	}
	return c.For(outer*len(idx), max(1, 1<<12/inner), func(lo, hi int) {
		row := make([]float32, inner)
		for i := lo; i < hi; i++ {
			k := idx[i%len(idx)]
			if k < 0 {
				k += int64(shape[g])
			}
			if k < 0 || k >= int64(shape[g]) {
				clear(row) // com.microsoft: an index out of range gives zeros
				tensor.Write(y, i*inner, row)
				continue
			}
			from := (i/len(idx)*shape[g] + int(k)) * inner
			if packed {
				per, mask := 8/t.bits, byte(1<<t.bits-1)
				for j := range row {
					e := from + j
					row[j] = float32(data.Bytes()[e/per] >> (e % per * t.bits) & mask)
				}
			} else {
				tensor.Read(data, from, row)
			}
			for j := range row {
				at, rest := 0, from+j
				for d := rank - 1; d >= 0; d-- {
					p := rest % shape[d]
					rest /= shape[d]
					if d == q {
						p /= block
					}
					at += p * st[d]
				}
				row[j] = (row[j] - zeroAt(at)) * s[at]
			}
			tensor.Write(y, i*inner, row)
		}
	})
}
