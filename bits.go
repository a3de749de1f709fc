package onnxq

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
)

// widths are the bits that weights can be given one by one, rising.
var widths = []int{2, 4, 8}

// choice is what storing one weight in one of the widths takes and costs.
type choice struct {
	b     quant.Blocks
	bytes int64
	noise float64
}

// allocation divides bits among weights. The noise of a weight is its squared
// error relative to its power or, with samples, about what that does to the
// outputs.
type allocation struct {
	order    []int            // value IDs
	choices  map[int][]choice // by value ID, rising bytes
	elements int
}

// allocation finds out what each weight costs in each width from the least one
// on.
func (q *quantization) allocation(ctx context.Context, qo qdq.Options, least int) (*allocation, error) {
	kind := "i"
	if !qo.Blocks.Signed() {
		kind = "u"
	}
	if qo.Blocks.Kind != quant.Integer {
		return nil, optionErrorf("bits are spread over weights of integers, not %s", qo.Blocks.Name)
	}
	a := &allocation{choices: map[int][]choice{}}
	pool := par.New(q.o.Threads)
	pool.Begin()
	defer pool.End()
	var lowest *qdq.Plan
	var ids []int // of the weights of lowest
	for _, w := range widths {
		if w < least {
			continue
		}
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
		if lowest == nil {
			lowest = plan
			for _, v := range values {
				ids = append(ids, v.ID)
			}
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
			if a.choices[v.ID] == nil {
				a.order = append(a.order, v.ID)
				a.elements += v.Const.Len()
			}
			a.choices[v.ID] = append(a.choices[v.ID], choice{one, e.StoredBytes(v.Const), noise})
		}
	}
	if q.calib == nil || q.calib.Len() == 0 || len(a.order) < 2 {
		return a, nil
	}
	effect, err := q.sensitivity(ctx, lowest)
	if err != nil {
		return nil, err
	}
	for i, id := range ids {
		list := a.choices[id]
		if len(list) == 0 || !(list[0].noise > 0) {
			continue
		}
		factor := effect[i] / list[0].noise
		for k := range list {
			list[k].noise *= factor
		}
	}
	return a, nil
}

// sensitivityRuns is the number of times that the model runs, at least twice for
// each weight, to find out what errors of single weights do.
const sensitivityRuns = 256

// sensitivity returns what storing each weight of plan does to the outputs.
func (q *quantization) sensitivity(ctx context.Context, plan *qdq.Plan) ([]float64, error) {
	n := max(2, min(measureOn, sensitivityRuns/max(len(plan.Tensors), 1)))
	var samples []map[string]ops.Data
	err := q.spread(ctx, q.calib, n, func(in map[string]ops.Data) error {
		samples = append(samples, in)
		return nil
	})
	if err != nil {
		return nil, suggest(q.original, err)
	}
	return auto.Sensitivity(ctx, q.prepared, plan, q.o.engine(), q.o.session(), samples)
}

// bounds returns the least and the most bytes that all weights can take.
func (a *allocation) bounds() (least, most int64) {
	for _, list := range a.choices {
		least += list[0].bytes
		most += list[len(list)-1].bytes
	}
	return least, most
}

// spread gives each weight, by value ID, a width so that all together take at
// most budget bytes, scales and zero points included: each step gives more bits
// to the weight whose noise falls most for the bytes. It returns the bytes too.
func (a *allocation) spread(budget int64) (map[int]quant.Blocks, int64) {
	size, _ := a.bounds()
	at := map[int]int{}
	for {
		best, gain := -1, 0.0
		for _, id := range a.order {
			list, k := a.choices[id], at[id]
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
		list := a.choices[best]
		size += list[at[best]+1].bytes - list[at[best]].bytes
		at[best]++
	}
	out := map[int]quant.Blocks{}
	for _, id := range a.order {
		out[id] = a.choices[id][at[id]].b
	}
	return out, size
}

// bits returns how many bits a weight takes if all take so many bytes.
func (a *allocation) bits(bytes int64) float64 { return 8 * float64(bytes) / float64(a.elements) }

// spreadBits chooses the width of each weight so that all together take at most
// o.BitsPerWeight.
func (q *quantization) spreadBits(ctx context.Context, qo qdq.Options) (map[int]quant.Blocks, error) {
	a, err := q.allocation(ctx, qo, 0)
	if err != nil || a.elements == 0 {
		return nil, err
	}
	budget := int64(q.o.BitsPerWeight * float64(a.elements) / 8)
	if size, _ := a.bounds(); size > budget {
		return nil, optionErrorf("the weights take at least %.3f bits each with their scales, not %g; larger blocks or scales in f16 take less", a.bits(size), q.o.BitsPerWeight)
	}
	out, _ := a.spread(budget)
	return out, nil
}

// spreads reports whether weights get as few bits, one by one, as the demands on
// the outputs allow.
func (o *Options) spreads() bool {
	if o.Mode != Weights || o.unasked || o.BitsPerWeight > 0 || o.MaxDrop == nil && o.MinSQNR == nil && o.Eval == "" {
		return false
	}
	if o.Weights == "" {
		return true
	}
	s, err := quant.ParseStorage(o.Weights)
	return err == nil && slices.Contains(widths, s.Bits) && s.Bits < widths[len(widths)-1] && (o.Weights == "i"+strconv.Itoa(s.Bits) || o.Weights == "u"+strconv.Itoa(s.Bits))
}

// spreadSteps is the number of times that the bytes which are left to choose from
// are halved.
const spreadSteps = 5

// asNeeded gives the weights as few bits as the demands on the outputs allow, at
// least those of Options.Weights.
func (q *quantization) asNeeded(ctx context.Context, qo qdq.Options) (*auto.Result, error) {
	least := 0
	if q.o.Weights != "" {
		least = qo.Blocks.Bits
	}
	a, err := q.allocation(ctx, qo, least)
	if err != nil {
		return nil, err
	}
	if len(a.order) == 0 {
		return q.coded(ctx, qo)
	}
	var best *auto.Result
	short := "" // what the last try misses
	try := func(budget int64) (bytes int64, err error) {
		qo.BlocksOf, bytes = a.spread(budget)
		res, err := q.coded(ctx, qo)
		if err != nil || res.Model == nil {
			best = res
			return bytes, err
		}
		v, err := q.judge(ctx, res.Model)
		if err != nil {
			return bytes, err
		}
		if short = v.short.Text; short != "" {
			delete(q.verdicts, res.Model)
			if best == nil && budget == math.MaxInt64 {
				best = res
			}
			return bytes, nil
		}
		if best != nil {
			delete(q.verdicts, best.Model)
		}
		counts := map[int]int{}
		for _, b := range qo.BlocksOf {
			counts[b.Bits]++
		}
		text := ""
		for _, w := range widths {
			if counts[w] > 0 {
				text += fmt.Sprintf(", %d in %d bits", counts[w], w)
			}
		}
		res.Notes = append(res.Notes, fmt.Sprintf("as few bits as the demands allow: %.2f a weight with scales%s", a.bits(bytes), text))
		best = res
		return bytes, nil
	}
	low, high := a.bounds()
	q.o.progress("bits", 0, spreadSteps+2)
	if _, err := try(low); err != nil || best != nil {
		return best, err
	}
	for i := range spreadSteps {
		q.o.progress("bits", i+1, spreadSteps+2)
		middle := (low + high) / 2
		bytes, err := try(middle)
		if err != nil {
			return nil, err
		}
		if short == "" {
			high = bytes
		} else {
			low = middle
		}
	}
	if best == nil {
		_, err = try(math.MaxInt64)
	}
	q.o.progress("bits", spreadSteps+2, spreadSteps+2)
	return best, err
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
