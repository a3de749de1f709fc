package onnxq

import (
	"context"
	"strconv"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
)

// widths are the bits that weights can be given one by one, rising.
var widths = []int{2, 4, 8}

// choice is what storing one weight in one of the widths takes and costs.
type choice struct {
	b     quant.Blocks
	bytes int64
	noise float64 // squared error relative to the power of the weight
}

// spreadBits chooses the width of each weight so that all together take at most
// o.BitsPerWeight, scales and zero points included: each step gives more bits
// to the weight whose noise falls most for the bytes. A weight counts by its
// noise relative to its power, as its share of the noise of a product is.
func (q *quantization) spreadBits(ctx context.Context, qo qdq.Options) (map[int]quant.Blocks, error) {
	kind := "i"
	if !qo.Blocks.Signed() {
		kind = "u"
	}
	if qo.Blocks.Kind != quant.Integer {
		return nil, optionErrorf("bits are spread over weights of integers, not %s", qo.Blocks.Name)
	}
	choices := map[int][]choice{} // by value ID, rising bytes
	elements := map[int]int{}
	var order []int
	pool := par.New(q.o.Threads)
	pool.Begin()
	defer pool.End()
	for _, w := range widths {
		s, err := quant.ParseStorage(kind + strconv.Itoa(w))
		if err != nil {
			return nil, err
		}
		one := *qo.Blocks
		one.Storage = s
		each := qo
		each.Blocks = &one
		plan, err := qdq.Annotate(q.prepared, q.o.target(), each)
		if err != nil {
			return nil, err
		}
		values, err := plan.Values(q.prepared)
		if err != nil {
			return nil, err
		}
		for i, v := range values {
			e := &plan.Tensors[i]
			if e.Form == "" {
				continue
			}
			l, err := e.Lines(v.Const)
			if err != nil {
				return nil, err
			}
			b, err := e.Blocks()
			if err != nil {
				return nil, err
			}
			noise, err := noiseOf(ctx, pool, l, b)
			if err != nil {
				return nil, err
			}
			if choices[v.ID] == nil {
				order = append(order, v.ID)
				elements[v.ID] = v.Const.Len()
			}
			choices[v.ID] = append(choices[v.ID], choice{one, e.StoredBytes(v.Const), noise})
		}
	}
	total := 0
	size := int64(0)
	at := map[int]int{}
	for _, id := range order {
		total += elements[id]
		size += choices[id][0].bytes
	}
	budget := int64(q.o.BitsPerWeight * float64(total) / 8)
	if size > budget && total > 0 {
		return nil, optionErrorf("the weights take at least %.3f bits each with their scales, not %g; larger blocks or scales in f16 take less", 8*float64(size)/float64(total), q.o.BitsPerWeight)
	}
	for {
		best, gain := -1, 0.0
		for _, id := range order {
			list, k := choices[id], at[id]
			if k+1 == len(list) {
				continue
			}
			more := list[k+1].bytes - list[k].bytes
			if size+more > budget {
				continue
			}
			if g := (list[k].noise - list[k+1].noise) / float64(max(more, 1)); g > gain {
				best, gain = id, g
			}
		}
		if best < 0 {
			break
		}
		list := choices[best]
		size += list[at[best]+1].bytes - list[at[best]].bytes
		at[best]++
	}
	out := map[int]quant.Blocks{}
	for _, id := range order {
		out[id] = choices[id][at[id]].b
	}
	return out, nil
}

// Lines that noise is measured on: so many groups of so many.
const (
	noiseGroups = 16
	noiseLines  = 8
)

// noiseOf returns the squared error of some lines relative to their power.
func noiseOf(ctx context.Context, pool *par.Pool, l quant.Lines, b quant.Blocks) (float64, error) {
	shared, err := b.Share(pool, l)
	if err != nil {
		return 0, err
	}
	var sse, power float64
	x, back := make([]float32, l.K), make([]float32, l.K)
	step := max(noiseLines, (l.N()+noiseGroups-1)/noiseGroups)
	for from := 0; from < l.N(); from += step {
		to := min(from+noiseLines, l.N())
		c, err := b.Encode(ctx, pool, l, shared, from, to, nil)
		if err != nil {
			return 0, err
		}
		for i := range c.Lines {
			l.Read(x, from+i, from+i+1)
			c.Decode(back, i)
			for k, v := range x {
				d := float64(v) - float64(back[k])
				sse += d * d
				power += float64(v) * float64(v)
			}
		}
	}
	if power == 0 {
		return 0, nil
	}
	return sse / power, nil
}
