package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// previewDomain is the domain of operators that ONNX tries out.
const previewDomain = "ai.onnx.preview"

func flexSpecs() []Spec {
	in := func(name string) Port { return Port{Name: name, Role: Activation} }
	return []Spec{{
		Domain: previewDomain, Type: "FlexAttention", Since: 1, Flow: Compute, Pure: true,
		In: []Port{in("Q"), in("K"), in("V")}, Out: []Port{in("Y")},
		Attrs: []AttrSpec{{Name: "prob_mod", Kind: graph.AttrGraph}, {Name: "score_mod", Kind: graph.AttrGraph},
			{Name: "scale", Kind: graph.AttrFloat}, {Name: "softmax_precision", Kind: graph.AttrInt}},
		Infer: inferFlexAttention, Compile: compileFlexAttention,
	}}
}

// flexPrecision is the type that the modifying graphs see.
func flexPrecision(n *graph.Node, q tensor.DType) tensor.DType {
	d := tensor.Float32
	if q == tensor.Float64 {
		d = tensor.Float64
	}
	return tensor.DType(n.Int("softmax_precision", int64(d)))
}

func inferFlexAttention(c *Inference) error {
	q, k, v := c.Shape(0), c.Shape(1), c.Shape(2)
	y, scores := graph.UnknownShape(4), graph.UnknownShape(4)
	if len(q) == 4 {
		copy(y, bare(q[:3]))
		copy(scores, bare(q[:3]))
	}
	if len(k) == 4 {
		scores[3] = bareDim(k[2])
	}
	if len(v) == 4 {
		y[3] = bareDim(v[3])
	}
	c.Tensor(0, c.Elem(0), y)
	for _, name := range []string{"score_mod", "prob_mod"} {
		g := bodyOf(c.Node, name)
		if g == nil {
			continue
		}
		if len(g.Inputs()) != 1 || len(g.Outputs()) != 1 {
			return c.Errorf("%s has %d inputs and %d outputs", name, len(g.Inputs()), len(g.Outputs()))
		}
		bodyInput(g.Inputs()[0], graph.TensorType(flexPrecision(c.Node, c.Elem(0)), scores))
		if err := c.Graph(g); err != nil {
			return err
		}
	}
	return nil
}

// flexAttention is a FlexAttention bound to its attributes.
type flexAttention struct {
	node              *graph.Node
	scale             float64
	hasScale          bool
	scoreMod, probMod Body
}

func compileFlexAttention(s *Site) (Kernel, error) {
	a := &flexAttention{node: s.Node, scale: float64(s.Node.Float("scale", 0)), hasScale: s.Node.Attr("scale") != nil}
	modifier := func(name string) (Body, error) {
		g := bodyOf(s.Node, name)
		if g == nil {
			return nil, nil
		}
		if len(g.Inputs()) != 1 || len(g.Outputs()) != 1 {
			return nil, s.Errorf("%s has %d inputs and %d outputs", name, len(g.Inputs()), len(g.Outputs()))
		}
		return s.Body(g)
	}
	var err error
	if a.scoreMod, err = modifier("score_mod"); err != nil {
		return nil, err
	}
	if a.probMod, err = modifier("prob_mod"); err != nil {
		return nil, err
	}
	return func(c *Call) error {
		q := c.In(0)
		precision := flexPrecision(a.node, q.DType())
		if carrierOf(precision) != carryF64 && carrierOf(precision) != carryF32 {
			return fmt.Errorf("softmax_precision is %v", precision)
		}
		if carrierOf(precision) == carryF64 {
			return flexRun[float64](a, c, precision)
		}
		return byFloat(q,
			func() error { return flexRun[float32](a, c, precision) },
			func() error { return flexRun[float64](a, c, precision) })
	}, nil
}

// flexRun computes Y = prob_mod(softmax(score_mod(Q·Kᵀ·scale)))·V; query head h
// uses key head h/(query heads/key heads).
func flexRun[T floating](a *flexAttention, c *Call, precision tensor.DType) error {
	q, k, v := c.In(0), c.In(1), c.In(2)
	for _, t := range []*tensor.Tensor{q, k, v} {
		if t.Rank() != 4 || t.DType() != q.DType() || t.Shape()[0] != q.Shape()[0] {
			return fmt.Errorf("operands %v, %v and %v", q, k, v)
		}
	}
	batch, heads, length, dim := q.Shape()[0], q.Shape()[1], q.Shape()[2], q.Shape()[3]
	kv, keys, dv := k.Shape()[1], k.Shape()[2], v.Shape()[3]
	if k.Shape()[3] != dim || v.Shape()[1] != kv || v.Shape()[2] != keys || kv == 0 || heads%kv != 0 {
		return fmt.Errorf("operands %v, %v and %v", q, k, v)
	}
	scale := a.scale
	if !a.hasScale {
		scale = 1 / math.Sqrt(float64(dim))
	}
	qs, err := load[T](c, q)
	if err != nil {
		return err
	}
	ks, err := load[T](c, k)
	if err != nil {
		return err
	}
	vs, err := load[T](c, v)
	if err != nil {
		return err
	}
	y, err := newOutput[T](c, 0, -1, q.DType(), []int{batch, heads, length, dv})
	if err != nil {
		return err
	}
	n := length * keys
	scores, err := scratch[T](c, batch*heads*n)
	if err != nil {
		return err
	}
	shape := []int{batch, heads, length, keys}
	keyHead := func(i int) int { return i/heads*kv + i%heads/(heads/kv) }
	for i := range batch * heads {
		product(c, length, keys, dim, qs[i*length*dim:], dim, false, ks[keyHead(i)*keys*dim:], dim, true, scores[i*n:], keys)
	}
	for i := range scores {
		scores[i] *= T(scale)
	}
	if scores, err = modify(c, a.scoreMod, scores, shape, precision); err != nil {
		return fmt.Errorf("score_mod: %w", err)
	}
	if keys > 0 {
		if err := c.For(batch*heads*length, max(1, costlyChunk/keys), func(lo, hi int) {
			for r := lo; r < hi; r++ {
				softmaxRow(scores[r*keys:][:keys])
			}
		}); err != nil {
			return err
		}
	}
	if scores, err = modify(c, a.probMod, scores, shape, precision); err != nil {
		return fmt.Errorf("prob_mod: %w", err)
	}
	for i := range batch * heads {
		product(c, length, dv, keys, scores[i*n:], keys, false, vs[keyHead(i)*keys*dv:], dv, false, y.data[i*length*dv:], dv)
	}
	return y.store(c)
}

// modify runs body, unless it is nil, on x as a tensor of the given type, and
// returns its result, of the same shape and type. Without a body, x is only
// rounded to the type.
func modify[T floating](c *Call, body Body, x []T, shape []int, precision tensor.DType) ([]T, error) {
	if body == nil && precision == native[T]() {
		return x, nil
	}
	t, err := c.Mem.New(precision, shape)
	if err != nil {
		return nil, err
	}
	tensor.Write(t, 0, x)
	if body != nil {
		out, err := body.Run(c, []Data{t})
		if err != nil {
			return nil, err
		}
		got, ok := out[0].(*tensor.Tensor)
		if !ok || got.DType() != precision || !equalInts(got.Shape(), shape) {
			return nil, fmt.Errorf("result %v, want %v%v", out[0], precision, tensor.ShapeString(shape))
		}
		t = got
	}
	return load[T](c, t)
}
