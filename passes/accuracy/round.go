package accuracy

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// damping is what is added to the diagonal of a second moment, as a share of
// its mean, where rowsPerInput rows are known for each input.
const damping = 0.01

// minRows is the number of rows that are drawn at least for weights of 8 bits.
const minRows = 1024

// solveBlock is the number of columns that are factored or rounded together.
const solveBlock = 64

// Round chooses the codes of the weights that Conv, Gemm and MatMul nodes of m
// multiply their inputs with, so that the errors of a channel's weights cancel
// on the inputs x that the samples give: it lowers Σ (Wq·x - W·x)² for given
// scales. Weights are rounded one input after the other, the strongest first,
// each one taking over what the rounding of those before it has done to the
// output (C. Frantar et al., "GPTQ", 2022; in the form of J. Chee et al.,
// "QuIP", 2023, section 3, with the factors of the second moment of x). It sets
// Codes of those of layers, some of the list of Layers, in params, which are those
// of Resolve for plan.
func Round(ctx context.Context, m *graph.Model, plan *qdq.Plan, params []quant.Params, layers []int, samples Samples, count int, o exec.SessionOptions) error {
	all, err := products(m, plan, false)
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(slices.Clone(all), func(p product) bool { return !slices.Contains(layers, p.tensor) })
	return inTurn(ctx, m, nil, all, list, drawn{rows: minRows}, samples, count, o, func(first int, sums [][]*moments) error {
		return each(o.Threads, len(sums), func(i int) int { return list[first+i].work() }, func(i int) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := &list[first+i]
			return p.round(ctx, &params[p.tensor], sums[i][0])
		})
	})
}

// each calls f for all i of [0, n) on the given number of threads, those of the
// most work first, and returns the error of the least i.
func each(threads, n int, work func(i int) int, f func(i int) error) error {
	order, errs := make([]int, n), make([]error, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(work(b), work(a)) })
	par.Each(threads, n, func(k int) { errs[order[k]] = f(order[k]) })
	return cmp.Or(errs...)
}

// work is about what rounding p takes, in multiply-adds.
func (p *product) work() int { return p.groups * p.k * p.k * (p.k + p.n) }

// Layers lists the weights that Round chooses codes for, by their index in
// plan.Tensors. Each is rounded by itself.
func Layers(m *graph.Model, plan *qdq.Plan) ([]int, error) {
	list, err := products(m, plan, false)
	out := make([]int, len(list))
	for i, p := range list {
		out[i] = p.tensor
	}
	return out, err
}

// drawn says what inTurn draws: at least so many rows, and whether the moments of
// half of them are wanted as well.
type drawn struct {
	rows   int
	halves bool
}

// inTurn calls f with the second moments of the inputs of products of list, from
// the first on, of as many at a time as memory allows; see collectMoments. What is
// wanted is drawn from the samples, if there are as many rows. What is
// drawn of some products out of all is what is drawn of them with all others, to
// the last bit.
func inTurn(ctx context.Context, m, other *graph.Model, all, list []product, want drawn, samples Samples, count int, o exec.SessionOptions, f func(first int, sums [][]*moments) error) error {
	if len(list) == 0 {
		return nil
	}
	own, err := newDrawer(m, all, o)
	if err != nil {
		return err
	}
	var second *drawer
	if other != nil {
		if second, err = newDrawer(other, all, o); err != nil {
			return err
		}
	}
	done := 0
	for len(list) > 0 {
		var together []*moments
		var of [][]*moments // by product
		bytes := 0
		for _, p := range list {
			if len(of) > 0 && bytes >= momentsMemory {
				break
			}
			var sums []*moments
			for _, s := range p.inputs {
				i := slices.IndexFunc(together, func(a *moments) bool { return a.equal(&s) && a.k == p.k && a.groups == p.groups })
				if i < 0 {
					i = len(together)
					limit := max(1, min(max(rowsPerInput*p.k, want.rows), maxRows)/count)
					together = append(together, &moments{origin: s, groups: p.groups, k: p.k, limit: limit, halves: want.halves, middle: (count + 1) / 2})
					bytes += 4 * p.groups * p.k * p.k
				}
				sums = append(sums, together[i])
			}
			of = append(of, sums)
		}
		if err := collectMoments(ctx, own, second, together, samples, o); err != nil {
			return err
		}
		if err := f(done, of); err != nil {
			return err
		}
		done += len(of)
		list = list[len(of):]
	}
	return nil
}

// oneByOne makes an f of inTurn from one of a single product.
func oneByOne(ctx context.Context, f func(i int, sums []*moments) error) func(first int, sums [][]*moments) error {
	return func(first int, sums [][]*moments) error {
		for i := range sums {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(first+i, sums[i]); err != nil {
				return err
			}
		}
		return nil
	}
}

// round sets the codes of the weight of p.
func (p *product) round(ctx context.Context, q *quant.Params, sums *moments) error {
	w := tensor.As[float32](p.weight.Const)
	codes := tensor.New(q.Type.Held(), p.weight.Const.Shape()...)
	k, n := p.k, p.n
	columns := make([]float32, k*n) // [k][n], inputs in the order of rounding
	scale, zero := make([]float32, n), make([]int32, n)
	for g := range p.groups {
		order, factor, err := factor(ctx, sums.sums[g], k, sums.count)
		if err != nil {
			return err
		}
		index := func(i, o int) int { // of input i of output channel o
			if p.byColumn {
				return i*n + o
			}
			return (g*n+o)*k + i
		}
		for r, i := range order {
			for o := range n {
				columns[r*n+o] = w[index(i, o)]
			}
		}
		for o := range n {
			c := 0
			if q.Axis >= 0 {
				c = g*n + o
			}
			scale[o], zero[o] = q.Scale[c], q.Zero[c]
		}
		out := feedback(columns, factor, scale, zero, float32(q.Type.Min), float32(q.Type.Max), k, n)
		for r, i := range order {
			for o := range n {
				codes.Bytes()[index(i, o)] = byte(out[r*n+o])
			}
		}
	}
	q.Codes = codes
	return nil
}

// factor returns the order in which k inputs are rounded and the strictly upper
// triangle U of the factors of h, in that order: h = (U+I)·D·(U+I)ᵀ. Damping
// makes h, of the given number of rows, positive definite, and the more, the fewer rows
// there are: what inputs do not do on these they may do on others. The error is that of
// the context.
func factor(ctx context.Context, h []float32, k, rows int) (order []int, u []float32, err error) {
	order = make([]int, k)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(h[b*k+b], h[a*k+a]) })
	p, _ := quant.Damped(h, order, damping*max(1, float64(rowsPerInput*k)/float64(max(rows, 1))))
	u, _, err = quant.Factor(ctx, nil, p, k)
	return order, u, err
}

// feedback rounds the k×n matrix w row by row to codes, adding to each row what
// the errors of the rows before it ask for: code[r] = round(w[r] + Σ u[j][r]·e[j])
// with e[j] = w[j] - value of code[j]. scale and zero belong to the columns.
func feedback(w, u, scale []float32, zero []int32, lo, hi float32, k, n int) []int32 {
	target := slices.Clone(w)
	errs := make([]float32, k*n)
	codes := make([]int32, k*n)
	var push []float32
	for at := 0; at < k; at += solveBlock {
		end := min(at+solveBlock, k)
		for r := at; r < end; r++ {
			t, e := target[r*n:(r+1)*n], errs[r*n:(r+1)*n]
			for j := at; j < r; j++ {
				f := u[j*k+r]
				for o, x := range errs[j*n : (j+1)*n] {
					t[o] += f * x
				}
			}
			for o := range t {
				q := float32(math.RoundToEven(float64(t[o]/scale[o]))) + float32(zero[o])
				q = max(lo, min(hi, q))
				if q != q {
					q = float32(zero[o])
				}
				codes[r*n+o] = int32(q)
				e[o] = w[r*n+o] - (q-float32(zero[o]))*scale[o]
			}
		}
		if end == k {
			break
		}
		rest := k - end
		push = slices.Grow(push[:0], rest*n)[:rest*n]
		// Rows end… of the target get uᵀ times the errors of this block.
		kernels.Gemm(nil, rest, n, end-at, kernels.Matrix{Data: u[at*k+end:], Ld: k, Trans: true}, kernels.Matrix{Data: errs[at*n:], Ld: n}, push, n, nil)
		kernels.Binary(kernels.Add, target[end*n:], target[end*n:], push)
	}
	return codes
}
