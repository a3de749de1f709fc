package accuracy

import (
	"context"
	"math"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
)

// BlockError is what storing a weight in blocks does to the products with it.
type BlockError struct {
	Tensor int // index in plan.Tensors
	// Nearest and Chosen are Σ (Wq·x - W·x)² over the samples with the nearest
	// codes and with those that GPTQ chose, Signal is Σ (W·x)².
	Nearest, Chosen, Signal float64
}

// GPTQ chooses codes and parameters of the weights that the plan stores in
// blocks and that one Conv, Gemm or MatMul of m reads. Parameters fit the
// weights with the mean squares of their inputs as importance; then, unless
// nearest is set, inputs are rounded one after the other, the strongest first,
// as Round does. Codes that do not lower the error are left at the nearest ones.
// It sets Coded in params, those of Resolve for plan. Of these weights only
// layers are taken, unless that is nil; see Layers.
func GPTQ(ctx context.Context, m *graph.Model, plan *qdq.Plan, params []quant.Params, layers []int, samples Samples, count int, nearest bool, o exec.SessionOptions) ([]BlockError, error) {
	list, err := productsOf(m, plan, true, layers)
	if err != nil || len(list) == 0 || count == 0 {
		return nil, err
	}
	var errs []BlockError
	err = inTurn(ctx, m, list, samples, count, o, func(pool *par.Pool, p *product, sums moments) error {
		e := &plan.Tensors[p.tensor]
		b, err := e.Blocks()
		if err != nil || b.Kind != quant.Integer && !nearest || p.groups != 1 || e.Whole {
			return err // nothing to choose: the nearest codes are taken
		}
		l, err := e.Lines(p.weight.Const)
		if err != nil || l.K != p.k || l.N() != p.n {
			return err
		}
		coded, found, err := p.blocks(ctx, pool, b, l, sums[0], nearest)
		if err != nil {
			return err
		}
		found.Tensor = p.tensor
		params[p.tensor].Coded = coded
		errs = append(errs, found)
		return nil
	})
	return errs, err
}

// blocks chooses the codes of a product.
func (p *product) blocks(ctx context.Context, pool *par.Pool, b quant.Blocks, l quant.Lines, h []float32, nearest bool) (*quant.Coded, BlockError, error) {
	k, n := p.k, p.n
	shared, err := b.Share(pool, l)
	if err != nil {
		return nil, BlockError{}, err
	}
	plain, err := b.Encode(ctx, pool, l, shared, 0, n, nil)
	if err != nil {
		return nil, BlockError{}, err
	}
	lines := make([]float32, n*k)
	l.Read(lines, 0, n)
	e := BlockError{Signal: quadratic(pool, lines, h, k, n)}
	best := plain
	e.Nearest = lossOf(pool, lines, plain, h, k, n)
	e.Chosen = e.Nearest
	take := func(c *quant.Coded) {
		if loss := lossOf(pool, lines, c, h, k, n); loss < e.Chosen {
			best, e.Chosen = c, loss
		}
	}
	starts := []*quant.Coded{plain}
	if b.Fit != quant.Cover {
		fitted, err := b.Encode(ctx, pool, l, shared, 0, n, diagonal(h, k))
		if err != nil {
			return nil, BlockError{}, err
		}
		take(fitted)
		starts = append(starts, fitted)
	}
	if nearest {
		return best, e, nil
	}
	order, u := factor(pool, h, k)
	columns := make([]float32, k*n)
	for r, i := range order {
		for o := range n {
			columns[r*n+o] = lines[o*k+i]
		}
	}
	lo, hi := b.Codes()
	for _, start := range starts {
		c := *start
		c.Codes = make([]byte, n*k)
		size := b.Size
		if size == 0 {
			size = k
		}
		blocks := len(c.Scale) / n
		scale, zero := make([]float32, n), make([]int32, n)
		out := feedback(pool, columns, u, func(r int) ([]float32, []int32) {
			at := order[r] / size
			for o := range n {
				scale[o], zero[o] = c.Scale[o*blocks+at], b.Middle()
				if c.Zero != nil {
					zero[o] = c.Zero[o*blocks+at]
				}
			}
			return scale, zero
		}, float32(lo), float32(hi), k, n)
		for r, i := range order {
			for o := range n {
				c.Codes[o*k+i] = byte(out[r*n+o])
			}
		}
		take(&c)
	}
	return best, e, nil
}

// diagonal returns the mean squares of the inputs relative to their mean, with
// damping so that none counts for nothing.
func diagonal(h []float32, k int) []float32 {
	d := make([]float32, k)
	mean := 0.0
	for i := range d {
		mean += float64(h[i*k+i]) / float64(k)
	}
	if !(mean > 0) || math.IsInf(mean, 0) {
		for i := range d {
			d[i] = 1
		}
		return d
	}
	for i := range d {
		d[i] = float32(float64(h[i*k+i])/mean + damping)
	}
	return d
}

// lossOf returns the sum of eᵀ·h·e over the errors e of all lines.
func lossOf(pool *par.Pool, lines []float32, c *quant.Coded, h []float32, k, n int) float64 {
	errs := make([]float32, n*k)
	pool.For(n, 16, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			row := errs[i*k:][:k]
			c.Decode(row, i)
			kernels.Binary(kernels.Sub, row, lines[i*k:][:k], row)
		}
	})
	return quadratic(pool, errs, h, k, n)
}

// quadratic returns the sum of eᵀ·h·e over the n rows e of a matrix.
func quadratic(pool *par.Pool, e, h []float32, k, n int) float64 {
	out := make([]float32, n*k)
	kernels.Gemm(pool, n, k, k, kernels.Matrix{Data: e, Ld: k}, kernels.Matrix{Data: h, Ld: k}, out, k, nil)
	sum := 0.0
	for i, x := range e {
		sum += float64(x) * float64(out[i])
	}
	return sum
}
