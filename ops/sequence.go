package ops

import (
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// sequenceSpecs are the operators on sequences and optional values.
func sequenceSpecs() []Spec {
	data := func(name string) Port { return Port{Name: name, Role: Activation} }
	seq := Port{Name: "input_sequence"}
	position := Port{Name: "position", Role: Index, Optional: true}
	return []Spec{
		{Type: "SequenceConstruct", Since: 11, Flow: Opaque, Pure: true,
			In: []Port{{Name: "inputs", Variadic: true}}, Out: []Port{{Name: "output_sequence"}},
			Infer: inferSequenceConstruct,
			Compile: func(*Site) (Kernel, error) {
				return func(c *Call) error {
					c.Outs[0] = Sequence(slices.Clone(c.Ins))
					return nil
				}, nil
			}},
		{Type: "SequenceEmpty", Since: 11, Flow: Opaque, Pure: true,
			Out: []Port{{Name: "output"}}, Attrs: []AttrSpec{{Name: "dtype", Kind: graph.AttrInt}},
			Infer: inferSequenceEmpty,
			Compile: func(*Site) (Kernel, error) {
				return func(c *Call) error {
					c.Outs[0] = Sequence{}
					return nil
				}, nil
			}},
		{Type: "SequenceAt", Since: 11, Flow: Opaque, Pure: true,
			In: []Port{seq, position}, Out: []Port{{Name: "tensor"}},
			Infer: inferElement, Compile: compileSequenceAt},
		{Type: "SequenceInsert", Since: 11, Flow: Opaque, Pure: true,
			In: []Port{seq, {Name: "tensor"}, position}, Out: []Port{{Name: "output_sequence"}},
			Infer: inferSequenceInsert, Compile: compileSequenceInsert},
		{Type: "SequenceErase", Since: 11, Flow: Opaque, Pure: true,
			In: []Port{seq, position}, Out: []Port{{Name: "output_sequence"}},
			Infer: (*Inference).Same, Compile: compileSequenceErase},
		{Type: "SequenceLength", Since: 11, Flow: Integers, Pure: true,
			In: []Port{seq}, Out: []Port{{Name: "length", Role: Index}},
			Infer: func(c *Inference) error {
				c.Tensor(0, tensor.Int64, graph.Shape{})
				return nil
			},
			Compile: compileSequenceLength},
		{Type: "SplitToSequence", Since: 11, Flow: Opaque, Pure: true,
			In:    []Port{data("input"), {Name: "split", Role: Index, Optional: true}},
			Out:   []Port{{Name: "output_sequence"}},
			Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt}, {Name: "keepdims", Kind: graph.AttrInt}},
			Infer: inferSplitToSequence, Compile: compileSplitToSequence},
		{Type: "ConcatFromSequence", Since: 11, Flow: Opaque, Pure: true,
			In: []Port{seq}, Out: []Port{data("concat_result")},
			Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt, Required: true}, {Name: "new_axis", Kind: graph.AttrInt}},
			Infer: inferConcatFromSequence, Compile: compileConcatFromSequence},
		{Type: "Optional", Since: 15, Flow: Opaque, Pure: true,
			In: []Port{{Name: "input", Optional: true}}, Out: []Port{{Name: "output"}},
			Attrs: []AttrSpec{{Name: "type", Kind: graph.AttrType}},
			Infer: inferOptional,
			Compile: func(*Site) (Kernel, error) {
				return func(c *Call) error {
					o := &Optional{}
					if len(c.Ins) > 0 {
						o.Elem = c.Ins[0]
					}
					c.Outs[0] = o
					return nil
				}, nil
			}},
		{Type: "OptionalGetElement", Since: 15, Flow: Opaque, Pure: true,
			In: []Port{{Name: "input"}}, Out: []Port{{Name: "output"}},
			Infer: inferOptionalGetElement,
			Compile: func(*Site) (Kernel, error) {
				return func(c *Call) error {
					e := elementOf(c.Ins[0])
					if e == nil {
						return fmt.Errorf("the optional is empty")
					}
					c.Outs[0] = e
					return nil
				}, nil
			}},
		{Type: "OptionalHasElement", Since: 15, Flow: Integers, Pure: true,
			In: []Port{{Name: "input", Optional: true}}, Out: []Port{{Name: "output"}},
			Infer: func(c *Inference) error {
				c.Tensor(0, tensor.Bool, graph.Shape{})
				return nil
			},
			Compile: func(*Site) (Kernel, error) {
				return func(c *Call) error {
					out, err := c.Out(0, tensor.Bool)
					if err == nil {
						tensor.As[bool](out)[0] = len(c.Ins) > 0 && elementOf(c.Ins[0]) != nil
					}
					return err
				}, nil
			}},
	}
}

// elementOf returns what an optional holds; any other value is its own
// element.
func elementOf(d Data) Data {
	if o, ok := d.(*Optional); ok {
		if o == nil {
			return nil
		}
		return o.Elem
	}
	return d
}

// sequence returns input i as a sequence.
func (c *Call) sequence(i int) (Sequence, error) {
	if i < len(c.Ins) {
		if s, ok := c.Ins[i].(Sequence); ok {
			return s, nil
		}
	}
	return nil, fmt.Errorf("input %d is no sequence", i)
}

// position returns the index that input i holds, def if it is omitted, in
// [0, n], where n itself stands for the end.
func (c *Call) position(i, n int, def int64, end bool) (int, error) {
	k, err := c.int(i, def)
	if err != nil {
		return 0, err
	}
	last := n - 1
	if end {
		last = n
	}
	if k < -int64(n) || k > int64(last) {
		return 0, fmt.Errorf("position %d in a sequence of %d", k, n)
	}
	if k < 0 {
		k += int64(n)
	}
	return int(k), nil
}

// sequenceOf returns the type of a sequence of elements of type t.
func sequenceOf(t graph.Type) graph.Type {
	t.Extra, t.Shape = nil, bare(t.Shape)
	return graph.Type{Kind: graph.KindSequence, Inner: &t}
}

func inferSequenceConstruct(c *Inference) error {
	t := c.In(0)
	for i := 1; i < c.Node.NumInputs(); i++ {
		t = joinTypes(t, c.In(i))
	}
	c.Out(0, sequenceOf(t))
	return nil
}

func inferSequenceEmpty(c *Inference) error {
	elem, err := dtypeAttr(c.Node, "dtype", tensor.Float32)
	if err != nil {
		return err
	}
	c.Out(0, sequenceOf(graph.TensorType(elem, nil)))
	return nil
}

// inferElement gives output 0 the element type of input 0.
func inferElement(c *Inference) error {
	if t := c.In(0); t.Inner != nil {
		c.Out(0, *t.Inner)
	}
	return nil
}

func compileSequenceAt(*Site) (Kernel, error) {
	return func(c *Call) error {
		s, err := c.sequence(0)
		if err != nil {
			return err
		}
		k, err := c.position(1, len(s), 0, false)
		if err != nil {
			return err
		}
		c.Outs[0] = s[k]
		return nil
	}, nil
}

func inferSequenceInsert(c *Inference) error {
	t := c.In(0)
	if t.Inner == nil {
		c.Out(0, sequenceOf(anyShape(c.In(1))))
		return nil
	}
	// An empty sequence says nothing about the shapes of its elements.
	c.Out(0, sequenceOf(joinTypes(*t.Inner, c.In(1))))
	return nil
}

func compileSequenceInsert(*Site) (Kernel, error) {
	return func(c *Call) error {
		s, err := c.sequence(0)
		if err != nil {
			return err
		}
		k, err := c.position(2, len(s), int64(len(s)), true)
		if err != nil {
			return err
		}
		c.Outs[0] = slices.Insert(slices.Clone(s), k, c.Ins[1])
		return nil
	}, nil
}

func compileSequenceErase(*Site) (Kernel, error) {
	return func(c *Call) error {
		s, err := c.sequence(0)
		if err != nil {
			return err
		}
		k, err := c.position(1, len(s), int64(len(s))-1, false)
		if err != nil {
			return err
		}
		c.Outs[0] = slices.Delete(slices.Clone(s), k, k+1)
		return nil
	}, nil
}

func compileSequenceLength(*Site) (Kernel, error) {
	return func(c *Call) error {
		s, err := c.sequence(0)
		if err != nil {
			return err
		}
		out, err := c.Out(0, tensor.Int64)
		if err == nil {
			tensor.As[int64](out)[0] = int64(len(s))
		}
		return err
	}, nil
}

func inferSplitToSequence(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Out(0, sequenceOf(graph.TensorType(c.Elem(0), nil)))
		return nil
	}
	axis, err := c.axis("axis", 0, len(in))
	if err != nil {
		return err
	}
	out := graph.Shape(bare(in))
	switch {
	case c.Node.Input(1) != nil:
		out[axis] = graph.Dim{}
	case c.Node.Int("keepdims", 1) != 0:
		out[axis] = graph.D(1)
	default:
		out = slices.Delete(out, axis, axis+1)
	}
	c.Out(0, sequenceOf(graph.TensorType(c.Elem(0), out)))
	return nil
}

func compileSplitToSequence(s *Site) (Kernel, error) {
	attr := s.Node.Int("axis", 0)
	keep := s.Node.Int("keepdims", 1) != 0
	return func(c *Call) error {
		x := c.In(0)
		axis, err := NormalAxis(attr, x.Rank())
		if err != nil {
			return err
		}
		if isPacked(x.DType()) {
			return fmt.Errorf("element type %v", x.DType())
		}
		shape := append([]int{}, x.Shape()...)
		d := shape[axis]
		var parts []int
		sizes := c.In(1)
		switch {
		case sizes == nil || sizes.Rank() == 0:
			size, err := c.int(1, 1)
			if err != nil {
				return err
			}
			if size < 1 {
				return fmt.Errorf("parts of %d elements", size)
			}
			for at := 0; at < d; at += parts[len(parts)-1] {
				parts = append(parts, int(min(size, int64(d-at))))
			}
		default:
			v, err := c.ints(1)
			if err != nil {
				return err
			}
			if parts, err = splitSizes(d, len(v), v, true, false); err != nil {
				return err
			}
		}
		outer, inner := volume(shape[:axis]), volume(shape[axis+1:])
		src, at := cellsOf(x), 0
		out := make(Sequence, len(parts))
		for i, k := range parts {
			shape[axis] = k
			t, err := c.Mem.New(x.DType(), shape)
			if err != nil {
				return err
			}
			dst := cellsOf(t)
			for o := range outer {
				dst.put(o*k*inner, src, (o*d+at)*inner, k*inner)
			}
			at += k
			if sizes == nil && !keep {
				if t, err = t.Reshape(slices.Delete(slices.Clone(shape), axis, axis+1)); err != nil {
					return err
				}
			}
			out[i] = t
		}
		c.Outs[0] = out
		return nil
	}, nil
}

func inferConcatFromSequence(c *Inference) error {
	t := c.In(0).Inner
	if t == nil {
		return nil
	}
	shape := graph.Shape(nil)
	if t.Shape != nil {
		rank := len(t.Shape)
		if c.Node.Int("new_axis", 0) != 0 {
			rank++
		}
		shape = graph.UnknownShape(rank)
	}
	c.Tensor(0, t.Elem, shape)
	return nil
}

func compileConcatFromSequence(s *Site) (Kernel, error) {
	axis, fresh := s.Node.Int("axis", 0), s.Node.Int("new_axis", 0) != 0
	return func(c *Call) error {
		seq, err := c.sequence(0)
		if err != nil {
			return err
		}
		if len(seq) == 0 {
			return fmt.Errorf("the sequence is empty")
		}
		if !fresh {
			return concat(c, seq, axis)
		}
		t, err := stack(c, seq, axis, false, graph.Type{})
		if err == nil {
			c.Outs[0] = t
		}
		return err
	}, nil
}

func inferOptional(c *Inference) error {
	t := c.In(0)
	if a := c.Node.Attr("type"); a != nil && a.Type != nil && c.Node.Input(0) == nil {
		t = *a.Type
	}
	t.Extra, t.Shape = nil, bare(t.Shape)
	c.Out(0, graph.Type{Kind: graph.KindOptional, Inner: &t})
	return nil
}

func inferOptionalGetElement(c *Inference) error {
	t := c.In(0)
	if t.Kind == graph.KindOptional {
		return inferElement(c)
	}
	c.Out(0, t)
	return nil
}
