package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// msAttentionSpecs returns com.microsoft's attention operators.
func msAttentionSpecs() []Spec {
	attrs := func(kind graph.AttrKind, names ...string) (a []AttrSpec) {
		for _, n := range names {
			a = append(a, AttrSpec{Name: n, Kind: kind})
		}
		return a
	}
	state := func(name string) Port { return Port{Name: name, Role: State, Optional: true} }
	optional := func(name string, role Role) Port { return Port{Name: name, Role: role, Optional: true} }
	floats := attrs(graph.AttrFloat, "mask_filter_value", "scale")
	return []Spec{
		{
			Domain: msDomain, Type: "Attention", Flow: Compute, Pure: true,
			In: []Port{
				{Name: "input", Role: Activation}, {Name: "weights", Role: Weight, Axis: 1}, optional("bias", Bias),
				optional("mask_index", Index), state("past"), optional("attention_bias", Ignore), optional("past_sequence_length", Index),
			},
			Out: []Port{{Name: "output", Role: Activation}, state("present")},
			Attrs: append(append(attrs(graph.AttrInt, "do_rotary", "num_heads", "past_present_share_buffer", "rotary_embedding_dim", "unidirectional"),
				attrs(graph.AttrInts, "qkv_hidden_sizes")...), floats...),
			Infer: inferMSAttention, Compile: compileMSAttention,
		},
		{
			Domain: msDomain, Type: "QAttention", Flow: Opaque, Pure: true,
			In: []Port{
				{Name: "input"}, {Name: "weight"}, {Name: "bias"}, {Name: "input_scale"}, {Name: "weight_scale"}, optional("mask_index", Index),
				optional("input_zero_point", Ignore), optional("weight_zero_point", Ignore), state("past"),
			},
			Out:   []Port{{Name: "output", Role: Activation}, state("present")},
			Attrs: append(attrs(graph.AttrInt, "do_rotary", "num_heads", "past_present_share_buffer", "unidirectional"), floats...),
			Infer: inferMSAttention, Compile: compileQAttention,
		},
		{
			Domain: msDomain, Type: "MultiHeadAttention", Flow: Compute, Pure: true,
			In: []Port{
				{Name: "query", Role: Activation}, optional("key", Activation), optional("value", Activation), optional("bias", Bias),
				optional("key_padding_mask", Index), optional("attention_bias", Ignore), state("past_key"), state("past_value"),
				optional("past_sequence_length", Index), optional("cache_indirection", Index),
			},
			Out:   []Port{{Name: "output", Role: Activation}, state("present_key"), state("present_value"), optional("qk", Activation)},
			Attrs: append(attrs(graph.AttrInt, "num_heads", "unidirectional"), floats...),
			Infer: inferHeads, Compile: compileMultiHead,
		},
		{
			Domain: msDomain, Type: "GroupQueryAttention", Flow: Compute, Pure: true,
			In: []Port{
				{Name: "query", Role: Activation}, optional("key", Activation), optional("value", Activation), state("past_key"), state("past_value"),
				{Name: "seqlens_k", Role: Index}, {Name: "total_sequence_length", Role: Index}, optional("cos_cache", Ignore), optional("sin_cache", Ignore),
				optional("position_ids", Index), optional("attention_bias", Ignore), optional("head_sink", Ignore),
			},
			Out: []Port{{Name: "output", Role: Activation}, state("present_key"), state("present_value")},
			Attrs: append(attrs(graph.AttrInt, "causal", "do_rotary", "kv_num_heads", "local_window_size", "num_heads", "rotary_interleaved", "smooth_softmax"),
				attrs(graph.AttrFloat, "scale", "softcap")...),
			Infer: inferHeads, Compile: compileGroupQuery,
		},
	}
}

func inferMSAttention(c *Inference) error {
	x, w := c.Shape(0), c.Shape(1)
	if x == nil {
		return nil
	}
	if len(x) != 3 {
		return c.Errorf("input of shape %v", x)
	}
	hidden := graph.Dim{}
	if sizes := c.Node.Ints("qkv_hidden_sizes"); len(sizes) == 3 {
		hidden = dimOf(sizes[2])
	} else if len(w) == 2 && w[1].Known {
		hidden = graph.D(w[1].Size / 3)
	}
	t := c.Elem(0)
	if c.Node.Op.Type == "QAttention" {
		t = c.Elem(2)
	}
	c.Tensor(0, t, graph.Shape{bareDim(x[0]), bareDim(x[1]), hidden})
	return nil
}

func inferHeads(c *Inference) error {
	q, v := c.Shape(0), c.Shape(2)
	if len(q) == 3 {
		hidden := graph.Dim{}
		switch {
		case c.Node.Op.Type == "GroupQueryAttention" && c.Node.Input(1) != nil:
			hidden = bareDim(q[2])
		case c.Node.Op.Type == "MultiHeadAttention" && len(v) == 3:
			hidden = bareDim(v[2])
		}
		c.Tensor(0, c.Elem(0), graph.Shape{bareDim(q[0]), bareDim(q[1]), hidden})
	}
	return nil
}

// padding is the mask over keys of com.microsoft's operators: what it forbids
// gets filter added, a finite number.
type padding struct {
	data       []int64
	batch, row int  // distances, per element
	lengths    bool // data holds the ends of the sequences, and the starts behind them
	count      int
	filter     float32
}

// newPadding reads a mask: the number of keys [batch], ends and starts
// [2*batch], or flags [batch, keys] or [batch, queries, keys].
func newPadding(t *tensor.Tensor, batch, queries, keys int, filter float32) (*padding, error) {
	p := &padding{filter: filter, count: batch}
	if t == nil {
		return p, nil
	}
	var err error
	if p.data, err = tensor.Int64s(t); err != nil {
		return nil, err
	}
	s := t.Shape()
	switch {
	case len(s) == 1 && (s[0] == batch || s[0] == 2*batch):
		p.lengths = true
	case len(s) == 2 && s[0] == batch && s[1] == keys:
		p.batch = keys
	case len(s) == 3 && s[0] == batch && s[1] == queries && s[2] == keys:
		p.batch, p.row = queries*keys, keys
	default:
		return nil, fmt.Errorf("mask %v for %d sequences, %d queries and %d keys", t, batch, queries, keys)
	}
	return p, nil
}

func (p *padding) add(b, i int, row []float32) {
	switch {
	case p.data == nil:
	case p.lengths:
		end, start := int(min(p.data[b], int64(len(row)))), 0
		if len(p.data) == 2*p.count {
			start = int(min(max(p.data[p.count+b], 0), int64(len(row))))
		}
		for j := range row {
			if j < start || j >= end {
				row[j] += p.filter
			}
		}
	default:
		for j, on := range p.data[b*p.batch+i*p.row:][:len(row)] {
			if on <= 0 {
				row[j] += p.filter
			}
		}
	}
}

// maskSum returns the sum of the masks of an operator for attend. With causal,
// query i sees the keys up to past+i.
func maskSum(p *padding, extra *scoreMask[float32], causal bool, past int) func(b, h, i int, row []float32) {
	return func(b, h, i int, row []float32) {
		extra.add(b, h, i, row)
		p.add(b, i, row)
		if causal {
			fill(row[min(past+i+1, len(row)):], float32(math.Inf(-1)))
		}
	}
}

func compileMSAttention(s *Site) (Kernel, error) {
	p, err := newProjected(s)
	if err != nil {
		return nil, err
	}
	heads, sizes := p.heads, s.Node.Ints("qkv_hidden_sizes")
	if sizes != nil && len(sizes) != 3 {
		return nil, s.Errorf("qkv_hidden_sizes is %v", sizes)
	}
	var packed *kernels.PackedB
	if w := s.Const(1); w != nil && w.Rank() == 2 && isFloat32ish(w.DType()) {
		packed = packMatrix(w, false, 1)
	}
	return widened(func(c *Call) error {
		x, w := c.In(0), c.In(1)
		if x.DType() != tensor.Float32 || w.DType() != tensor.Float32 || x.Rank() != 3 || w.Rank() != 2 || w.Shape()[0] != x.Shape()[2] {
			return fmt.Errorf("input %v, weights %v", x, w)
		}
		batch, length, in, cols := x.Shape()[0], x.Shape()[1], x.Shape()[2], w.Shape()[1]
		size := [3]int{cols / 3, cols / 3, cols / 3}
		for i, v := range sizes {
			size[i] = int(v)
		}
		if size[0] < 1 || size[0] != size[1] || size[2] < 1 || size[0]+size[1]+size[2] != cols || size[0]%heads != 0 || size[2]%heads != 0 {
			return fmt.Errorf("weights %v for %d heads, hidden sizes %v", w, heads, size)
		}
		ep := &kernels.Epilogue{}
		var err error
		if ep.ColBias, err = optional[float32](c, 2, cols); err != nil {
			return err
		}
		qkv, err := c.Floats(batch * length * cols)
		if err != nil {
			return err
		}
		a := kernels.Matrix{Data: tensor.As[float32](x), Ld: in}
		if packed != nil {
			kernels.GemmPacked(c.Pool, batch*length, a, packed, qkv, cols, ep)
		} else {
			kernels.Gemm(c.Pool, batch*length, cols, in, a, kernels.Matrix{Data: tensor.As[float32](w), Ld: cols}, qkv, cols, ep)
		}
		return p.attend(c, qkv, batch, length, size, 3, 4, 5)
	}), nil
}

// projected is an attention whose query, key and value are one product.
type projected struct {
	heads         int
	causal        bool
	filter, scale float32
}

func newProjected(s *Site) (*projected, error) {
	n := s.Node
	p := &projected{
		heads: int(n.Int("num_heads", 0)), causal: n.Int("unidirectional", 0) != 0,
		filter: n.Float("mask_filter_value", -10000), scale: n.Float("scale", 0),
	}
	if p.heads < 1 {
		return nil, s.Errorf("num_heads is %d", p.heads)
	}
	if n.Int("do_rotary", 0) != 0 || n.Int("past_present_share_buffer", 0) != 0 {
		return nil, s.Errorf("do_rotary and past_present_share_buffer are not supported")
	}
	return p, nil
}

// attend computes the outputs from qkv, rows of query, key and value of the
// given sizes. The last arguments are the indices of inputs.
func (p *projected) attend(c *Call, qkv []float32, batch, length int, size [3]int, mask, past, extra int) error {
	cols := size[0] + size[1] + size[2]
	a := &attend[float32]{
		batch: batch, qHeads: p.heads, kvHeads: p.heads, qLen: length, kvLen: length,
		dim: size[0] / p.heads, vDim: size[2] / p.heads, scale: p.scale,
	}
	view := func(off, dim int) headsOf { return headsOf{qkv[min(off, len(qkv)):], length * cols, dim, cols} }
	a.q, a.k, a.v = view(0, a.dim), view(size[0], a.dim), view(2*size[0], a.vDim)
	if t := c.In(past); t != nil || c.wants(1) {
		if err := presentPair(c, a, t); err != nil {
			return err
		}
	}
	return finishAttention(c, a, mask, extra, -1, p.filter, p.causal)
}

// compileQAttention compiles a QAttention: the projection is a product of
// codes.
func compileQAttention(s *Site) (Kernel, error) {
	p, err := newProjected(s)
	if err != nil {
		return nil, err
	}
	q := &intMatMul{op: s.Node.Op.Type, ports: intPortsOf(s.Node.Op.Type), alpha: 1, saturate: s.Saturate}
	if err := q.pack(s); err != nil {
		return nil, err
	}
	return func(c *Call) error {
		x, w := c.In(0), c.In(1)
		if x.Rank() != 3 || w.Rank() != 2 || w.Shape()[1]%(3*p.heads) != 0 {
			return fmt.Errorf("input %v, weights %v", x, w)
		}
		sub := *c
		sub.Mem, sub.Outs = freshMemory{c.Mem}, make([]Data, 1)
		if err := q.run(&sub); err != nil {
			return err
		}
		qkv, hidden := sub.Outs[0].(*tensor.Tensor), w.Shape()[1]/3
		return p.attend(c, tensor.As[float32](qkv), x.Shape()[0], x.Shape()[1], [3]int{hidden, hidden, hidden}, 5, 8, -1)
	}, nil
}

// headsOf are heads in float32.
type headsOf = heads[float32]

// presentPair puts keys and values behind those of past [2, batch, heads,
// length, dim], which may be nil, and makes all of them output 1.
func presentPair(c *Call, a *attend[float32], past *tensor.Tensor) error {
	old := 0
	if past != nil {
		s := past.Shape()
		if past.Rank() != 5 || s[0] != 2 || s[1] != a.batch || s[2] != a.kvHeads || s[4] != a.dim || a.dim != a.vDim || past.DType() != tensor.Float32 {
			return fmt.Errorf("past state %v for %d heads of size %d", past, a.kvHeads, a.dim)
		}
		old = s[3]
	}
	if a.dim != a.vDim {
		return fmt.Errorf("a present state needs keys and values of equal size, they have %d and %d", a.dim, a.vDim)
	}
	total, n := old+a.kvLen, a.batch*a.kvHeads
	var data []float32
	if c.wants(1) {
		t, err := c.Out(1, tensor.Float32, 2, a.batch, a.kvHeads, total, a.dim)
		if err != nil {
			return err
		}
		data = tensor.As[float32](t)
	} else {
		var err error
		if data, err = c.Floats(2 * n * total * a.dim); err != nil {
			return err
		}
	}
	for kind, src := range []*headsOf{&a.k, &a.v} {
		for i := range n {
			dst := data[(kind*n+i)*total*a.dim:]
			if old > 0 {
				copy(dst[:old*a.dim], tensor.As[float32](past)[(kind*n+i)*old*a.dim:])
			}
			rows := src.at(i/a.kvHeads, i%a.kvHeads)
			for s := range a.kvLen {
				copy(dst[(old+s)*a.dim:][:a.dim], rows[s*src.row:])
			}
		}
	}
	a.k = headed(data[:n*total*a.dim], 4, a.kvHeads, total, a.dim)
	a.v = headed(data[n*total*a.dim:], 4, a.kvHeads, total, a.dim)
	a.kvLen = total
	return nil
}

// finishAttention runs an attention whose operands are set: mask and extra are
// the indices of inputs, scores that of an output, -1 for none.
func finishAttention(c *Call, a *attend[float32], mask, extra, scores int, filter float32, causal bool) error {
	p, err := newPadding(c.In(mask), a.batch, a.qLen, a.kvLen, filter)
	if err != nil {
		return err
	}
	m, err := newMask[float32](c.In(extra), a.batch, a.qHeads, a.qLen, a.kvLen)
	if err != nil {
		return err
	}
	if a.scale == 0 {
		a.scale = float32(1 / math.Sqrt(float64(a.dim)))
	}
	y, err := c.Out(0, tensor.Float32, a.batch, a.qLen, a.qHeads*a.vDim)
	if err != nil {
		return err
	}
	a.y = headed(tensor.As[float32](y), 3, a.qHeads, a.qLen, a.vDim)
	if scores >= 0 && c.wants(scores) {
		t, err := c.Out(scores, tensor.Float32, a.batch, a.qHeads, a.qLen, a.kvLen)
		if err != nil {
			return err
		}
		a.scores, a.mode = tensor.As[float32](t), 3
	}
	a.bias = maskSum(p, m, causal, a.kvLen-a.qLen)
	return a.run(c)
}

func compileMultiHead(s *Site) (Kernel, error) {
	n := s.Node
	heads, causal := int(n.Int("num_heads", 0)), n.Int("unidirectional", 0) != 0
	if heads < 1 {
		return nil, s.Errorf("num_heads is %d", heads)
	}
	if s.Has(8) || s.Has(9) || s.Has(6) != s.Has(7) {
		return nil, s.Errorf("shared buffers and beam search are not supported, and past_key and past_value go together")
	}
	filter, scale := n.Float("mask_filter_value", -10000), n.Float("scale", 0)
	return widened(func(c *Call) error {
		a, err := multiHeadOperands(c, heads)
		if err != nil {
			return err
		}
		a.scale = scale
		total := 0
		if c.In(6) != nil || c.wants(1) || c.wants(2) {
			length := a.kvLen
			if a.k, total, err = withPast(c, 1, a.k, c.In(6), tensor.Float32, a.batch, heads, length, a.dim); err != nil {
				return err
			}
			if a.v, a.kvLen, err = withPast(c, 2, a.v, c.In(7), tensor.Float32, a.batch, heads, length, a.vDim); err != nil {
				return err
			}
			if total != a.kvLen {
				return fmt.Errorf("past states %v and %v", c.In(6), c.In(7))
			}
		}
		return finishAttention(c, a, 4, 5, 3, filter, causal)
	}), nil
}

// multiHeadOperands finds query, key and value in the layouts that
// MultiHeadAttention takes, and adds the bias.
func multiHeadOperands(c *Call, n int) (*attend[float32], error) {
	q, k, v := c.In(0), c.In(1), c.In(2)
	for _, t := range []*tensor.Tensor{q, k, v} {
		if t != nil && t.DType() != tensor.Float32 {
			return nil, fmt.Errorf("operand %v", t)
		}
	}
	s := q.Shape()
	a := &attend[float32]{qHeads: n, kvHeads: n}
	// packed views tensors [batch, length, heads, parts, dim].
	packed := func(t *tensor.Tensor, part int) headsOf {
		s := t.Shape()
		row := n * s[3] * s[4]
		data := tensor.As[float32](t)
		return headsOf{data[min(part*s[4], len(data)):], s[1] * row, s[3] * s[4], row}
	}
	bad := fmt.Errorf("operands %v, %v and %v for %d heads", q, k, v, n)
	switch {
	case len(s) == 5 && k == nil && v == nil && s[2] == n && s[3] == 3:
		a.batch, a.qLen, a.kvLen, a.dim, a.vDim = s[0], s[1], s[1], s[4], s[4]
		a.q, a.k, a.v = packed(q, 0), packed(q, 1), packed(q, 2)
	case len(s) != 3 || k == nil || s[2]%n != 0:
		return nil, bad
	default:
		a.batch, a.qLen, a.dim = s[0], s[1], s[2]/n
		a.q = headed(tensor.As[float32](q), 3, n, a.qLen, a.dim)
		ks := k.Shape()
		if len(ks) == 5 && v == nil && ks[0] == a.batch && ks[2] == n && ks[3] == 2 && ks[4] == a.dim {
			a.kvLen, a.vDim = ks[1], a.dim
			a.k, a.v = packed(k, 0), packed(k, 1)
			break
		}
		if v == nil {
			return nil, bad
		}
		kb, kh, kl, kd, err := headShape(ks, n)
		if err != nil {
			return nil, err
		}
		vb, vh, vl, vd, err := headShape(v.Shape(), n)
		if err != nil {
			return nil, err
		}
		if kb != a.batch || vb != a.batch || kh != n || vh != n || kl != vl || kd != a.dim {
			return nil, bad
		}
		a.kvLen, a.vDim = kl, vd
		a.k, a.v = headed(tensor.As[float32](k), len(ks), n, kl, kd), headed(tensor.As[float32](v), v.Rank(), n, vl, vd)
	}
	bias, err := optional[float32](c, 3, n*(2*a.dim+a.vDim))
	if err != nil || bias == nil {
		return a, err
	}
	off := 0
	for i, h := range []*headsOf{&a.q, &a.k, &a.v} {
		length, dim := a.kvLen, a.dim
		if i == 0 {
			length = a.qLen
		} else if i == 2 {
			dim = a.vDim
		}
		if err := shift(c, h, bias[off:], a.batch, n, length, dim); err != nil {
			return nil, err
		}
		off += n * dim
	}
	return a, nil
}

// shift replaces h by a copy with bias [heads, dim] added.
func shift(c *Call, h *headsOf, bias []float32, batch, n, length, dim int) error {
	data, err := c.Floats(batch * n * length * dim)
	if err != nil {
		return err
	}
	out := headed(data, 4, n, length, dim)
	for b := range batch {
		for k := range n {
			src, dst := h.at(b, k), out.at(b, k)
			for s := range length {
				row := dst[s*dim:][:dim]
				copy(row, src[s*h.row:])
				addInto(row, bias[k*dim:])
			}
		}
	}
	*h = out
	return nil
}

// groupQuery is a GroupQueryAttention bound to its attributes.
type groupQuery struct {
	heads, kvHeads      int
	rotary, interleaved bool
	causal, smooth      bool
	window              int // keys that a query sees, its own included; not positive: all
	scale, softcap      float32
}

func compileGroupQuery(s *Site) (Kernel, error) {
	n := s.Node
	g := &groupQuery{
		heads: int(n.Int("num_heads", 0)), kvHeads: int(n.Int("kv_num_heads", 0)), rotary: n.Int("do_rotary", 0) != 0,
		interleaved: n.Int("rotary_interleaved", 0) != 0, causal: n.Int("causal", 1) != 0, smooth: n.Int("smooth_softmax", 0) > 0,
		window: int(min(n.Int("local_window_size", -1), maxExtent)), scale: n.Float("scale", 0), softcap: n.Float("softcap", 0),
	}
	if g.heads < 1 || g.kvHeads < 1 || g.heads%g.kvHeads != 0 {
		return nil, s.Errorf("num_heads is %d, kv_num_heads %d", g.heads, g.kvHeads)
	}
	if n.Int("kv_cache_bit_width", 0) != 0 || n.Int("sliding_window_cache", 0) != 0 || n.Int("qk_output", 0) != 0 {
		return nil, s.Errorf("quantized or sliding caches and the output of scores are not supported")
	}
	for i := 12; i < n.NumInputs(); i++ {
		if s.Has(i) {
			return nil, s.Errorf("input %d is not supported", i)
		}
	}
	if s.Has(3) != s.Has(4) || s.Has(1) != s.Has(2) || g.rotary && !(s.Has(7) && s.Has(8)) {
		return nil, s.Errorf("inputs that belong together are missing")
	}
	return widened(g.run), nil
}

func (g *groupQuery) run(c *Call) error {
	q, k, v := c.In(0), c.In(1), c.In(2)
	if q.DType() != tensor.Float32 || q.Rank() != 3 {
		return fmt.Errorf("query %v", q)
	}
	batch, length, width := q.Shape()[0], q.Shape()[1], q.Shape()[2]
	dim := width / g.heads
	a := &attend[float32]{batch: batch, qHeads: g.heads, kvHeads: g.kvHeads, qLen: length, scale: g.scale, softcap: g.softcap}
	if k == nil {
		dim = width / (g.heads + 2*g.kvHeads)
		data := tensor.As[float32](q)
		view := func(head int) headsOf {
			return headsOf{data[min(head*dim, len(data)):], length * width, dim, width}
		}
		if dim*(g.heads+2*g.kvHeads) != width {
			return fmt.Errorf("packed query %v for %d and %d heads", q, g.heads, g.kvHeads)
		}
		a.q, a.k, a.v = view(0), view(g.heads), view(g.heads+g.kvHeads)
	} else {
		if dim*g.heads != width || k.Rank() != 3 || k.DType() != q.DType() || v.DType() != q.DType() ||
			tensor.ShapeString(k.Shape()) != tensor.ShapeString([]int{batch, length, g.kvHeads * dim}) || tensor.ShapeString(v.Shape()) != tensor.ShapeString(k.Shape()) {
			return fmt.Errorf("operands %v, %v and %v for %d and %d heads", q, k, v, g.heads, g.kvHeads)
		}
		a.q = headed(tensor.As[float32](q), 3, g.heads, length, dim)
		a.k, a.v = headed(tensor.As[float32](k), 3, g.kvHeads, length, dim), headed(tensor.As[float32](v), 3, g.kvHeads, length, dim)
	}
	a.dim, a.vDim = dim, dim
	if a.scale == 0 {
		a.scale = float32(1 / math.Sqrt(float64(dim)))
	}
	lens, err := tensor.Int64s(c.In(5))
	if err != nil || len(lens) != batch {
		return fmt.Errorf("seqlens_k %v for a batch of %d", c.In(5), batch)
	}
	totals, err := tensor.Int64s(c.In(6))
	if err != nil || len(totals) != 1 {
		return fmt.Errorf("total_sequence_length %v", c.In(6))
	}
	old := 0
	if p := c.In(3); p != nil {
		if p.Rank() != 4 || p.DType() != tensor.Float32 || p.Shape()[0] != batch || p.Shape()[1] != g.kvHeads || p.Shape()[3] != dim ||
			c.In(4).DType() != tensor.Float32 || tensor.ShapeString(c.In(4).Shape()) != tensor.ShapeString(p.Shape()) {
			return fmt.Errorf("past states %v and %v", p, c.In(4))
		}
		old = p.Shape()[2]
	}
	// past holds how many keys precede the new ones; a first prompt has none.
	past := make([]int, batch)
	for b, l := range lens {
		if totals[0] != int64(length) {
			past[b] = int(l) + 1 - length
		}
		if past[b] < 0 || past[b] > old || l < 0 || totals[0] > maxExtent || l >= totals[0] {
			return fmt.Errorf("seqlens_k %d with %d new and %d past keys, total_sequence_length %d", l, length, old, totals[0])
		}
	}
	a.kvLen = max(old, int(totals[0]))
	if err := g.rotate(c, a, past); err != nil {
		return err
	}
	for i, src := range []*headsOf{&a.k, &a.v} {
		if *src, err = g.present(c, i, *src, past, old, a); err != nil {
			return err
		}
	}
	extra, err := newMask[float32](c.In(10), batch, g.heads, length, a.kvLen)
	if err != nil {
		return err
	}
	if a.sink, err = optional[float32](c, 11, g.heads); err != nil {
		return err
	}
	if a.sink == nil && g.smooth {
		a.sink = make([]float32, g.heads)
	}
	inf := float32(math.Inf(-1))
	a.bias = func(b, h, i int, row []float32) {
		extra.add(b, h, i, row)
		lo, hi := 0, past[b]+length
		if g.causal {
			hi = past[b] + i + 1
			if g.window > 0 {
				lo = max(hi-g.window, 0)
			}
		}
		fill(row[:min(lo, len(row))], inf)
		fill(row[min(hi, len(row)):], inf)
	}
	y, err := c.Out(0, tensor.Float32, batch, length, g.heads*dim)
	if err != nil {
		return err
	}
	a.y = headed(tensor.As[float32](y), 3, g.heads, length, dim)
	return a.run(c)
}

// rotate turns queries and keys by their positions if the operator says so.
func (g *groupQuery) rotate(c *Call, a *attend[float32], past []int) error {
	if !g.rotary {
		return nil
	}
	cos, sin := c.In(7), c.In(8)
	if cos.DType() != tensor.Float32 || sin.DType() != tensor.Float32 || cos.Rank() != 2 || cos.Len() != sin.Len() || 2*cos.Shape()[1] > a.dim {
		return fmt.Errorf("caches %v and %v for heads of size %d", cos, sin, a.dim)
	}
	rows, half := cos.Shape()[0], cos.Shape()[1]
	var ids []int64
	if t := c.In(9); t != nil {
		var err error
		if ids, err = tensor.Int64s(t); err != nil || len(ids) != a.batch*a.qLen {
			return fmt.Errorf("position_ids %v", t)
		}
	}
	for _, set := range []struct {
		h *headsOf
		n int
	}{{&a.q, g.heads}, {&a.k, g.kvHeads}} {
		data, err := scratch[float32](c, a.batch*set.n*a.qLen*a.dim)
		if err != nil {
			return err
		}
		out := headed(data, 4, set.n, a.qLen, a.dim)
		for b := range a.batch {
			for s := range a.qLen {
				p := int64(past[b] + s)
				if ids != nil {
					p = ids[b*a.qLen+s]
				}
				if p < 0 || p >= int64(rows) {
					return fmt.Errorf("position %d with %d rows in the cache", p, rows)
				}
				at := int(p) * half
				for h := range set.n {
					rotate(out.at(b, h)[s*a.dim:][:a.dim], set.h.at(b, h)[s*set.h.row:][:a.dim],
						tensor.As[float32](cos)[at:][:half], tensor.As[float32](sin)[at:][:half], g.interleaved)
				}
			}
		}
		*set.h = out
	}
	return nil
}

// present puts the new keys (i = 0) or values (i = 1) behind the past ones of
// each sequence; the rest of the buffer is 0.
func (g *groupQuery) present(c *Call, i int, src headsOf, past []int, old int, a *attend[float32]) (headsOf, error) {
	var data []float32
	var err error
	if c.wants(1 + i) {
		var t *tensor.Tensor
		if t, err = c.Out(1+i, tensor.Float32, a.batch, g.kvHeads, a.kvLen, a.dim); err == nil {
			data = tensor.As[float32](t)
		}
	} else {
		data, err = scratch[float32](c, a.batch*g.kvHeads*a.kvLen*a.dim)
	}
	if err != nil {
		return src, err
	}
	clear(data)
	out := headed(data, 4, g.kvHeads, a.kvLen, a.dim)
	for b := range a.batch {
		if past[b]+a.qLen > a.kvLen {
			return src, fmt.Errorf("%d past and %d new keys in a buffer of %d", past[b], a.qLen, a.kvLen)
		}
		for h := range g.kvHeads {
			dst, from := out.at(b, h), src.at(b, h)
			if n := past[b] * a.dim; n > 0 {
				copy(dst[:n], tensor.As[float32](c.In(3 + i))[(b*g.kvHeads+h)*old*a.dim:])
			}
			for s := range a.qLen {
				copy(dst[(past[b]+s)*a.dim:][:a.dim], from[s*src.row:])
			}
		}
	}
	return out, nil
}
