package ops

import (
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

func embedSpecs() []Spec {
	maybe := func(name string, role Role) Port { return Port{Name: name, Role: role, Optional: true} }
	return []Spec{{
		Domain: msDomain, Type: "EmbedLayerNormalization", Since: 1, Flow: Compute, Pure: true,
		In: []Port{{Name: "input_ids", Role: Index}, maybe("segment_ids", Index), {Name: "word_embedding"}, {Name: "position_embedding"},
			maybe("segment_embedding", Ignore), gain("gamma"), {Name: "beta", Role: Bias}, maybe("mask", Index), maybe("position_ids", Index)},
		Out:   []Port{{Name: "output", Role: Activation}, maybe("mask_index", Index), maybe("embedding_sum", Activation)},
		Attrs: []AttrSpec{{Name: "epsilon", Kind: graph.AttrFloat}, {Name: "mask_index_type", Kind: graph.AttrInt}},
		Infer: func(c *Inference) error {
			ids, words := c.Shape(0), c.Shape(2)
			shape := graph.UnknownShape(3)
			if len(ids) == 2 {
				copy(shape, bare(ids))
			}
			if len(words) == 2 {
				shape[2] = bareDim(words[1])
			}
			c.Tensor(0, c.Elem(2), shape)
			c.Tensor(1, tensor.Int32, graph.Shape{shape[0]})
			c.Tensor(2, c.Elem(2), shape)
			return nil
		},
		Compile: func(s *Site) (Kernel, error) {
			l := layerNorm{epsilon: s.Node.Float("epsilon", 1e-12), meanOut: -1, inverseOut: -1, stash: tensor.Float32}
			if s.Has(1) != s.Has(4) {
				return nil, s.Errorf("segment_ids and segment_embedding go together")
			}
			return func(c *Call) error {
				return byFloat(c.In(2),
					func() error { return embedRun[float32](c, &l) },
					func() error { return embedRun[float64](c, &l) })
			}, nil
		},
	}}
}

// embedding is a table of rows and which of them each position takes.
type embedding[T floating] struct {
	table []T
	ids   []int64 // of one sequence or of each; nil: 0, 1, 2, …
}

// embedRun adds the rows of the embeddings of words, positions and segments and
// normalizes the sums. mask_index counts the ones of a sequence's mask.
func embedRun[T floating](c *Call, l *layerNorm) error {
	ids := c.In(0)
	if ids.Rank() != 2 || c.In(2).Rank() != 2 {
		return fmt.Errorf("input_ids %v, word_embedding %v", ids, c.In(2))
	}
	batch, length, n := ids.Shape()[0], ids.Shape()[1], c.In(2).Shape()[1]
	var parts []embedding[T]
	for _, at := range [][2]int{{2, 0}, {3, 8}, {4, 1}} {
		t := c.In(at[0])
		if t == nil {
			continue
		}
		e := embedding[T]{}
		if t.Rank() != 2 || t.Shape()[1] != n || t.DType() != c.In(2).DType() {
			return fmt.Errorf("embedding %v, that of words is %v", t, c.In(2))
		}
		var err error
		if e.table, err = load[T](c, t); err != nil {
			return err
		}
		rows := t.Shape()[0]
		if i := c.In(at[1]); i != nil {
			if i.Rank() != 2 || i.Shape()[1] != length || i.Shape()[0] != batch && (at[1] != 8 || i.Shape()[0] != 1) {
				return fmt.Errorf("input %d is %v, input_ids %v", at[1], i, ids)
			}
			if e.ids, err = tensor.Int64s(i); err != nil {
				return err
			}
			for _, id := range e.ids {
				if id < 0 || id >= int64(rows) {
					return fmt.Errorf("input %d: row %d of %d", at[1], id, rows)
				}
			}
		} else if rows < length {
			return fmt.Errorf("%d rows for %d positions", rows, length)
		}
		parts = append(parts, e)
	}
	shape := []int{batch, length, n}
	out, err := newOutput[T](c, 0, -1, c.In(2).DType(), shape)
	if err != nil {
		return err
	}
	var sum output[T]
	if c.wants(2) {
		sum, err = newOutput[T](c, 2, -1, c.In(2).DType(), shape)
	} else {
		sum.data, err = scratch[T](c, batch*length*n)
	}
	if err != nil {
		return err
	}
	gamma, wide, err := gainOf[T](c, 5, shape, 2, n)
	if err != nil || wide || gamma == nil {
		return fmt.Errorf("gamma %v is no vector of %d", c.In(5), n)
	}
	beta, wide, err := gainOf[T](c, 6, shape, 2, n)
	if err != nil || wide {
		return fmt.Errorf("beta %v is no vector of %d", c.In(6), n)
	}
	if err := c.For(batch*length, max(1, cheapChunk/max(n, 1)), func(lo, hi int) {
		for r := lo; r < hi; r++ {
			row := sum.data[r*n:][:n]
			for i, e := range parts {
				id := r % length
				if e.ids != nil {
					id = int(e.ids[r%len(e.ids)])
				}
				from := e.table[id*n:][:n]
				if i == 0 {
					copy(row, from)
					continue
				}
				for k, v := range from {
					row[k] += v
				}
			}
		}
	}); err != nil {
		return err
	}
	if err := normalizeRows(c, l, out.data, sum.data, gamma, beta, shape, 2, n); err != nil {
		return err
	}
	if err := embedMask(c, batch, length); err != nil {
		return err
	}
	if err := sum.store(c); err != nil {
		return err
	}
	return out.store(c)
}

func embedMask(c *Call, batch, length int) error {
	if !c.wants(1) {
		return nil
	}
	y, err := c.Out(1, tensor.Int32, batch)
	if err != nil {
		return err
	}
	counts := tensor.As[int32](y)
	clear(counts)
	t := c.In(7)
	if t == nil {
		return nil
	}
	if !equalInts(t.Shape(), []int{batch, length}) {
		return fmt.Errorf("mask %v for %d sequences of %d", t, batch, length)
	}
	mask, err := tensor.Int64s(t)
	if err != nil {
		return err
	}
	for i, v := range mask {
		if v == 1 {
			counts[i/length]++
		}
	}
	return nil
}
