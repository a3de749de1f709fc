package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

func attentionSpecs() []Spec {
	ints := func(names ...string) (a []AttrSpec) {
		for _, n := range names {
			a = append(a, AttrSpec{Name: n, Kind: graph.AttrInt})
		}
		return a
	}
	return []Spec{
		{
			Type: "Attention", Since: 23, Flow: Compute, Pure: true,
			In: []Port{
				{Name: "Q", Role: Activation}, {Name: "K", Role: Activation}, {Name: "V", Role: Activation},
				{Name: "attn_mask", Optional: true}, {Name: "past_key", Role: State, Optional: true},
				{Name: "past_value", Role: State, Optional: true}, {Name: "nonpad_kv_seqlen", Role: Index, Optional: true},
			},
			Out: []Port{
				{Name: "Y", Role: Activation}, {Name: "present_key", Role: State, Optional: true},
				{Name: "present_value", Role: State, Optional: true}, {Name: "qk_matmul_output", Role: Activation, Optional: true},
			},
			Attrs: append(ints("is_causal", "kv_num_heads", "left_window_size", "q_num_heads", "qk_matmul_output_mode", "right_window_size", "softmax_precision"),
				AttrSpec{Name: "scale", Kind: graph.AttrFloat}, AttrSpec{Name: "softcap", Kind: graph.AttrFloat}),
			Infer: inferAttention, Compile: compileAttention,
		},
		{
			Type: "RotaryEmbedding", Since: 23, Flow: Compute, Pure: true,
			In: []Port{
				{Name: "X", Role: Activation}, {Name: "cos_cache"}, {Name: "sin_cache"}, {Name: "position_ids", Role: Index, Optional: true},
			},
			Out: []Port{{Name: "Y", Role: Activation}}, Attrs: ints("interleaved", "num_heads", "rotary_embedding_dim"),
			Infer: (*Inference).Same, Compile: compileRotary,
		},
		{
			Domain: msDomain, Type: "RotaryEmbedding", Flow: Compute, Pure: true,
			In: []Port{
				{Name: "input", Role: Activation}, {Name: "position_ids", Role: Index}, {Name: "cos_cache"}, {Name: "sin_cache"},
			},
			Out:   []Port{{Name: "output", Role: Activation}},
			Attrs: append(ints("interleaved", "is_packed_batching", "num_heads", "rotary_embedding_dim"), AttrSpec{Name: "scale", Kind: graph.AttrFloat}),
			Infer: (*Inference).Same, Compile: compileRotary,
		},
	}
}

// heads is a tensor of attention heads: the vector of batch element b, head h
// and position s begins at element b*batch + h*head + s*row.
type heads[T float32 | float64] struct {
	data             []T
	batch, head, row int
}

// headed describes a tensor [batch, heads, length, dim], or [batch, length,
// heads*dim].
func headed[T float32 | float64](data []T, rank, n, length, dim int) heads[T] {
	if rank == 3 {
		return heads[T]{data, length * n * dim, dim, n * dim}
	}
	return heads[T]{data, n * length * dim, length * dim, dim}
}

func (h *heads[T]) at(b, n int) []T { return h.data[min(b*h.batch+n*h.head, len(h.data)):] }

// attend is scaled dot-product attention: for each batch element and query
// head y = softmax(cap(scale·q·kᵀ) + bias)·v. Query heads share key and value
// heads in groups of equal size.
type attend[T float32 | float64] struct {
	batch, qHeads, kvHeads int
	qLen, kvLen, dim, vDim int
	q, k, v, y             heads[T]
	scale, softcap         T // softcap 0: none
	// bias stores in row, of kvLen elements, what is added to the scores of
	// query i; nil for nothing. A key with -Inf takes no part, and a query
	// without any key gives 0.
	bias func(b, h, i int, row []T)
	// scores receives the scores [batch, qHeads, qLen, kvLen], if it is not
	// nil, at the stage that mode tells: 0 products, 1 capped, 2 with bias, 3
	// after softmax.
	scores []T
	mode   int64
	// sink holds, for each query head, the logarithm of what is added to the
	// denominator of softmax; nil for nothing.
	sink []T
}

func (a *attend[T]) run(c *Call) error {
	per := a.qLen * a.kvLen
	buf, err := scratch[T](c, a.batch*a.qHeads*(per+a.kvLen))
	if err != nil {
		return err
	}
	serial := *c
	serial.Pool = nil
	return c.For(a.batch*a.qHeads, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			a.head(&serial, i/a.qHeads, i%a.qHeads, buf[i*(per+a.kvLen):][:per+a.kvLen])
		}
	})
}

func (a *attend[T]) head(c *Call, b, h int, buf []T) {
	s, bias := buf[:a.qLen*a.kvLen], buf[a.qLen*a.kvLen:]
	kv := h / (a.qHeads / a.kvHeads)
	product(c, a.qLen, a.kvLen, a.dim, a.q.at(b, h), a.q.row, false, a.k.at(b, kv), a.k.row, true, s, a.kvLen)
	for i := range s {
		s[i] *= a.scale
	}
	report := func(mode int64) {
		if a.scores != nil && a.mode == mode {
			copy(a.scores[(b*a.qHeads+h)*len(s):], s)
		}
	}
	report(0)
	if a.softcap > 0 {
		for i, v := range s {
			s[i] = a.softcap * T(math.Tanh(float64(v/a.softcap)))
		}
	}
	report(1)
	inf := T(math.Inf(-1))
	if a.bias != nil {
		for i := range a.qLen {
			clear(bias)
			a.bias(b, h, i, bias)
			row := s[i*a.kvLen:][:a.kvLen]
			for j, v := range bias {
				if v == inf {
					row[j] = inf
				} else {
					row[j] += v
				}
			}
		}
	}
	report(2)
	for i := range a.qLen {
		row := s[i*a.kvLen:][:a.kvLen]
		if a.sink != nil {
			sinkRow(row, a.sink[h])
		} else {
			softmaxRow(row)
		}
	}
	report(3)
	product(c, a.qLen, a.vDim, a.kvLen, s, a.kvLen, false, a.v.at(b, kv), a.v.row, false, a.y.at(b, h), a.y.row)
}

// softmaxRow replaces x by its softmax; by zeros if all of it is -Inf.
func softmaxRow[T float32 | float64](x []T) {
	top := T(math.Inf(-1))
	for _, v := range x {
		top = max(top, v)
	}
	if math.IsInf(float64(top), -1) {
		clear(x)
		return
	}
	if x32, ok := any(x).([]float32); ok {
		kernels.Softmax(x32, x32)
		return
	}
	var sum T
	for i, v := range x {
		x[i] = T(math.Exp(float64(v - top)))
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}

// sinkRow replaces x by its softmax with exp(sink) added to the denominator.
func sinkRow[T float32 | float64](x []T, sink T) {
	top := sink
	for _, v := range x {
		top = max(top, v)
	}
	sum := T(math.Exp(float64(sink - top)))
	for i, v := range x {
		x[i] = T(math.Exp(float64(v - top)))
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}

// headShape splits the shape of a tensor of heads, [batch, heads, length, dim]
// or [batch, length, heads*dim] with the number of heads given.
func headShape(s []int, n int) (batch, heads, length, dim int, err error) {
	switch {
	case len(s) == 4:
		return s[0], s[1], s[2], s[3], nil
	case len(s) == 3 && n > 0 && s[2]%n == 0:
		return s[0], n, s[1], s[2] / n, nil
	}
	return 0, 0, 0, 0, fmt.Errorf("shape %v for %d heads", s, n)
}

// dimOf returns d, or an unknown dimension for d < 0.
func dimOf(d int64) graph.Dim {
	if d < 0 {
		return graph.Dim{}
	}
	return graph.D(d)
}

func inferAttention(c *Inference) error {
	n := c.Node
	split := func(s graph.Shape, heads int64) (b, h, l, d graph.Dim) {
		switch {
		case len(s) == 4:
			return bareDim(s[0]), bareDim(s[1]), bareDim(s[2]), bareDim(s[3])
		case len(s) == 3:
			d := graph.Dim{}
			if s[2].Known && heads > 0 {
				d = graph.D(s[2].Size / heads)
			}
			return bareDim(s[0]), dimOf(heads), bareDim(s[1]), d
		}
		return
	}
	q, k, v := c.Shape(0), c.Shape(1), c.Shape(2)
	if q == nil || k == nil || v == nil {
		return nil
	}
	qh, kh := n.Int("q_num_heads", -1), n.Int("kv_num_heads", -1)
	b, h, l, _ := split(q, qh)
	_, hk, lk, dk := split(k, kh)
	_, _, _, dv := split(v, kh)
	total := lk
	if p := c.Shape(4); n.Input(4) != nil {
		total = graph.Dim{}
		if len(p) == 4 && p[2].Known && lk.Known {
			total = graph.D(p[2].Size + lk.Size)
		}
	}
	y := graph.Shape{b, h, l, dv}
	if len(q) == 3 {
		hidden := graph.Dim{}
		if h.Known && dv.Known {
			hidden = graph.D(h.Size * dv.Size)
		}
		y = graph.Shape{b, l, hidden}
	}
	c.Tensor(0, c.Elem(0), y)
	c.Tensor(1, c.Elem(1), graph.Shape{b, hk, total, dk})
	c.Tensor(2, c.Elem(2), graph.Shape{b, hk, total, dv})
	c.Tensor(3, c.Elem(0), graph.Shape{b, h, l, total})
	return nil
}

// attentionNode is an Attention bound to its attributes.
type attentionNode struct {
	qHeads, kvHeads int
	causal          bool
	left, right     int64 // window, -1: unbounded
	scale           float64
	hasScale        bool
	softcap         float64
	mode            int64
}

func compileAttention(s *Site) (Kernel, error) {
	n := s.Node
	a := &attentionNode{
		qHeads: int(n.Int("q_num_heads", 0)), kvHeads: int(n.Int("kv_num_heads", 0)), causal: n.Int("is_causal", 0) != 0,
		left: n.Int("left_window_size", -1), right: n.Int("right_window_size", -1),
		scale: float64(n.Float("scale", 0)), hasScale: n.Attr("scale") != nil,
		softcap: float64(n.Float("softcap", 0)), mode: n.Int("qk_matmul_output_mode", 0),
	}
	if s.Has(4) != s.Has(5) {
		return nil, s.Errorf("past_key and past_value go together")
	}
	return widened(func(c *Call) error {
		switch q := c.In(0); q.DType() {
		case tensor.Float32:
			return attentionRun[float32](a, c)
		case tensor.Float64:
			return attentionRun[float64](a, c)
		default:
			return fmt.Errorf("query of type %v", q.DType())
		}
	}), nil
}

// withPast returns keys or values behind those of past, if there are any, and
// the total length. Output i, if it is wanted, receives them.
func withPast[T float32 | float64](c *Call, i int, x heads[T], past *tensor.Tensor, dtype tensor.DType, batch, n, length, dim int) (heads[T], int, error) {
	old := 0
	if past != nil {
		s := past.Shape()
		if past.Rank() != 4 || past.DType() != dtype || s[0] != batch || s[1] != n || s[3] != dim {
			return x, 0, fmt.Errorf("past state %v for %d heads of size %d", past, n, dim)
		}
		old = s[2]
	}
	if past == nil && !c.wants(i) {
		return x, length, nil
	}
	total := old + length
	var data []T
	if c.wants(i) {
		t, err := c.Out(i, dtype, batch, n, total, dim)
		if err != nil {
			return x, 0, err
		}
		data = tensor.As[T](t)
	} else {
		var err error
		if data, err = scratch[T](c, batch*n*total*dim); err != nil {
			return x, 0, err
		}
	}
	for b := range batch {
		for h := range n {
			dst := data[(b*n+h)*total*dim:]
			if old > 0 {
				copy(dst[:old*dim], tensor.As[T](past)[(b*n+h)*old*dim:])
			}
			src := x.at(b, h)
			for s := range length {
				copy(dst[(old+s)*dim:][:dim], src[s*x.row:])
			}
		}
	}
	return headed(data, 4, n, total, dim), total, nil
}

func attentionRun[T float32 | float64](n *attentionNode, c *Call) error {
	q, k, v := c.In(0), c.In(1), c.In(2)
	if k.DType() != q.DType() || v.DType() != q.DType() || q.Rank() != k.Rank() || k.Rank() != v.Rank() {
		return fmt.Errorf("operands %v, %v and %v", q, k, v)
	}
	a := &attend[T]{mode: n.mode}
	var err error
	if a.batch, a.qHeads, a.qLen, a.dim, err = headShape(q.Shape(), n.qHeads); err != nil {
		return err
	}
	kb, kh, kl, kd, err := headShape(k.Shape(), n.kvHeads)
	if err != nil {
		return err
	}
	vb, vh, vl, vd, err := headShape(v.Shape(), n.kvHeads)
	if err != nil {
		return err
	}
	if kb != a.batch || vb != a.batch || kh != vh || kl != vl || kd != a.dim || kh == 0 || a.qHeads%kh != 0 {
		return fmt.Errorf("operands %v, %v and %v", q, k, v)
	}
	a.kvHeads, a.vDim = kh, vd
	a.q = headed(tensor.As[T](q), q.Rank(), a.qHeads, a.qLen, a.dim)
	if a.k, a.kvLen, err = withPast(c, 1, headed(tensor.As[T](k), k.Rank(), kh, kl, kd), c.In(4), k.DType(), kb, kh, kl, kd); err != nil {
		return err
	}
	total := 0
	if a.v, total, err = withPast(c, 2, headed(tensor.As[T](v), v.Rank(), kh, kl, vd), c.In(5), v.DType(), kb, kh, kl, vd); err != nil {
		return err
	}
	if total != a.kvLen {
		return fmt.Errorf("past states %v and %v", c.In(4), c.In(5))
	}
	shape := []int{a.batch, a.qHeads, a.qLen, vd}
	if q.Rank() == 3 {
		shape = []int{a.batch, a.qLen, a.qHeads * vd}
	}
	y, err := c.Out(0, q.DType(), shape...)
	if err != nil {
		return err
	}
	a.y = headed(tensor.As[T](y), q.Rank(), a.qHeads, a.qLen, vd)
	a.scale, a.softcap = T(1/math.Sqrt(float64(a.dim))), T(n.softcap)
	if n.hasScale {
		a.scale = T(n.scale)
	}
	if c.wants(3) {
		t, err := c.Out(3, q.DType(), a.batch, a.qHeads, a.qLen, a.kvLen)
		if err != nil {
			return err
		}
		a.scores = tensor.As[T](t)
	}
	mask, err := newMask[T](c.In(3), a.batch, a.qHeads, a.qLen, a.kvLen)
	if err != nil {
		return err
	}
	offset := fillNew(a.batch, a.kvLen-kl)
	var valid []int64
	if t := c.In(6); t != nil {
		if valid, err = tensor.Int64s(t); err != nil || len(valid) != a.batch {
			return fmt.Errorf("nonpad_kv_seqlen %v for a batch of %d", t, a.batch)
		}
		for b, l := range valid {
			if l < 0 || l > int64(a.kvLen) {
				return fmt.Errorf("nonpad_kv_seqlen %d of %d", l, a.kvLen)
			}
			if c.In(4) == nil {
				offset[b] = int(l) - a.qLen
			}
		}
	}
	inf := T(math.Inf(-1))
	a.bias = func(b, h, i int, row []T) {
		mask.add(b, h, i, row)
		lo, hi := 0, len(row)
		p := offset[b] + i
		if n.left >= 0 {
			lo = max(p-int(min(n.left, maxExtent)), 0)
		}
		if n.right >= 0 {
			hi = min(hi, p+int(min(n.right, maxExtent))+1)
		}
		if n.causal {
			hi = min(hi, p+1)
		}
		if valid != nil {
			hi = min(hi, int(valid[b]))
		}
		hi = max(hi, 0)
		lo = min(lo, hi)
		fill(row[:lo], inf)
		fill(row[hi:], inf)
	}
	return a.run(c)
}

// scoreMask is a tensor added to scores [batch, heads, queries, keys], to
// which it broadcasts; missing keys at the end count as -Inf.
type scoreMask[T float32 | float64] struct {
	data []T
	step [3]int // of batch, head, query
	keys int
}

// newMask reads a mask: bool, where false stands for -Inf, or numbers. It is
// nil for a nil tensor.
func newMask[T float32 | float64](t *tensor.Tensor, batch, heads, queries, keys int) (*scoreMask[T], error) {
	if t == nil {
		return nil, nil
	}
	s := t.Shape()
	bad := fmt.Errorf("mask %v for scores [%d,%d,%d,%d]", t, batch, heads, queries, keys)
	if len(s) < 1 || len(s) > 4 || s[len(s)-1] > keys || !t.DType().Convertible() {
		return nil, bad
	}
	m := &scoreMask[T]{data: make([]T, t.Len()), keys: s[len(s)-1]}
	want := []int{batch, heads, queries}[4-len(s):]
	for i, d := range s[:len(s)-1] {
		if d != 1 && d != want[i] {
			return nil, bad
		}
	}
	copy(m.step[4-len(s):], steps(s, len(s))[:len(s)-1])
	if t.DType() == tensor.Bool {
		for i, on := range tensor.As[uint8](t) {
			if on == 0 {
				m.data[i] = T(math.Inf(-1))
			}
		}
		return m, nil
	}
	v, err := tensor.Float64s(t)
	if err != nil {
		return nil, err
	}
	for i, x := range v {
		m.data[i] = T(x)
	}
	return m, nil
}

func (m *scoreMask[T]) add(b, h, i int, row []T) {
	if m == nil {
		return
	}
	addInto(row[:m.keys], m.data[b*m.step[0]+h*m.step[1]+i*m.step[2]:])
	fill(row[m.keys:], T(math.Inf(-1)))
}

// rotary is a RotaryEmbedding bound to its attributes.
type rotary struct {
	interleaved     bool
	heads, dim      int // dim 0: the whole head
	cos, sin, where int // inputs
}

func compileRotary(s *Site) (Kernel, error) {
	n := s.Node
	r := &rotary{
		interleaved: n.Int("interleaved", 0) != 0, heads: int(n.Int("num_heads", 0)), dim: int(n.Int("rotary_embedding_dim", 0)),
		cos: 1, sin: 2, where: 3,
	}
	if n.Op.Domain == msDomain {
		r.cos, r.sin, r.where = 2, 3, 1
		if n.Int("is_packed_batching", 0) != 0 {
			return nil, s.Errorf("packed batches are not supported")
		}
	}
	return widened(func(c *Call) error {
		switch x := c.In(0); x.DType() {
		case tensor.Float32:
			return rotaryRun[float32](r, c)
		case tensor.Float64:
			return rotaryRun[float64](r, c)
		default:
			return fmt.Errorf("input of type %v", x.DType())
		}
	}), nil
}

func rotaryRun[T float32 | float64](r *rotary, c *Call) error {
	t, cosT, sinT := c.In(0), c.In(r.cos), c.In(r.sin)
	if cosT.DType() != t.DType() || sinT.DType() != t.DType() || cosT.Rank() < 2 || cosT.Len() != sinT.Len() {
		return fmt.Errorf("input %v, caches %v and %v", t, cosT, sinT)
	}
	half := cosT.Shape()[cosT.Rank()-1]
	n := r.heads
	if t.Rank() == 3 && n == 0 && r.dim == 0 && half > 0 {
		n = t.Shape()[2] / (2 * half) // com.microsoft: the caches tell the size of a head
	}
	batch, n, length, dim, err := headShape(t.Shape(), n)
	if err != nil {
		return err
	}
	rotated := r.dim
	if rotated == 0 {
		rotated = dim
	}
	if rotated > dim || 2*half != rotated {
		return fmt.Errorf("caches %v for a rotation of %d of %d elements", cosT, rotated, dim)
	}
	at, err := positions(c.In(r.where), cosT, batch, length, half)
	if err != nil {
		return err
	}
	y, err := c.Out(0, t.DType(), t.Shape()...)
	if err != nil {
		return err
	}
	src, dst := headed(tensor.As[T](t), t.Rank(), n, length, dim), headed(tensor.As[T](y), t.Rank(), n, length, dim)
	cos, sin := tensor.As[T](cosT), tensor.As[T](sinT)
	return c.For(batch*length, max(1, 1<<12/max(n*dim, 1)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			b, s := i/length, i%length
			for h := range n {
				rotate(dst.at(b, h)[s*dst.row:][:dim], src.at(b, h)[s*src.row:][:dim], cos[at[i]*half:][:half], sin[at[i]*half:][:half], r.interleaved)
			}
		}
	})
}

// positions returns the row of the caches for each position of each batch
// element: those that ids lists, consecutive ones from its single element on,
// or without ids the rows of caches [batch, length, half] in order.
func positions(ids, cache *tensor.Tensor, batch, length, half int) ([]int, error) {
	rows := cache.Len() / max(half, 1)
	out := make([]int, batch*length)
	if ids == nil {
		if rows != len(out) {
			return nil, fmt.Errorf("cache %v for %d times %d positions", cache, batch, length)
		}
		for i := range out {
			out[i] = i
		}
		return out, nil
	}
	v, err := tensor.Int64s(ids)
	if err != nil || len(v) != 1 && len(v) != len(out) {
		return nil, fmt.Errorf("position_ids %v for %d times %d positions", ids, batch, length)
	}
	for i := range out {
		p := v[0] + int64(i%length)
		if len(v) == len(out) && ids.Rank() > 1 || len(out) == 1 {
			p = v[i]
		}
		if p < 0 || p >= int64(rows) {
			return nil, fmt.Errorf("position %d with %d rows in the cache", p, rows)
		}
		out[i] = int(p)
	}
	return out, nil
}

// rotate turns pairs of the first elements of src by the given angles; the
// pairs are halves, or neighbours where interleaved.
func rotate[T float32 | float64](dst, src, cos, sin []T, interleaved bool) {
	n := len(cos)
	copy(dst[2*n:], src[2*n:])
	for i, k := range cos {
		p, q := i, i+n
		if interleaved {
			p, q = 2*i, 2*i+1
		}
		a, b := src[p], src[q]
		dst[p], dst[q] = T(k*a)-T(sin[i]*b), T(sin[i]*a)+T(k*b)
	}
}
