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
// its mean.
const damping = 0.01

// solveBlock is the number of columns that are factored or rounded together.
const solveBlock = 64

// Round chooses the codes of the weights that Conv, Gemm and MatMul nodes of m
// multiply their inputs with, so that the errors of a channel's weights cancel
// on the inputs x that the samples give: it lowers Σ (Wq·x - W·x)² for given
// scales. Weights are rounded one input after the other, the strongest first,
// each one taking over what the rounding of those before it has done to the
// output (C. Frantar et al., "GPTQ", 2022; in the form of J. Chee et al.,
// "QuIP", 2023, section 3, with the factors of the second moment of x). It sets
// Codes in params, those of Resolve for plan, and returns the number of
// weights. Of these only layers are taken, unless that is nil; see Layers.
func Round(ctx context.Context, m *graph.Model, plan *qdq.Plan, params []quant.Params, layers []int, samples Samples, count int, o exec.SessionOptions) (int, error) {
	list, err := productsOf(m, plan, false, layers)
	if err != nil || len(list) == 0 || count == 0 {
		return 0, err
	}
	done := 0
	err = inTurn(ctx, m, list, samples, count, o, func(pool *par.Pool, p *product, sums moments) error {
		p.round(pool, &params[p.tensor], sums)
		done++
		return nil
	})
	return done, err
}

// Layers lists the weights that Round or, with blocks set, GPTQ chooses codes
// for, by their index in plan.Tensors. Each is rounded by itself, so that they
// can be divided among processes.
func Layers(m *graph.Model, plan *qdq.Plan, blocks bool) ([]int, error) {
	list, err := products(m, plan, blocks)
	out := make([]int, len(list))
	for i, p := range list {
		out[i] = p.tensor
	}
	return out, err
}

// productsOf returns the products of some layers; nil stands for all.
func productsOf(m *graph.Model, plan *qdq.Plan, blocks bool, layers []int) ([]product, error) {
	list, err := products(m, plan, blocks)
	if layers == nil {
		return list, err
	}
	return slices.DeleteFunc(list, func(p product) bool { return !slices.Contains(layers, p.tensor) }), err
}

// inTurn calls f with each product of list and the second moments of its inputs,
// of as many at a time as memory allows.
func inTurn(ctx context.Context, m *graph.Model, list []product, samples Samples, count int, o exec.SessionOptions, f func(*par.Pool, *product, moments) error) error {
	pool := par.New(o.Threads)
	for len(list) > 0 {
		n, bytes := 0, 0
		for n < len(list) && (n == 0 || bytes < momentsMemory) {
			bytes += 4 * list[n].groups * list[n].k * list[n].k
			n++
		}
		share := make([]int, n)
		for i, p := range list[:n] {
			share[i] = max(1, min(max(rowsPerInput*p.k, minRows), maxRows)/count)
		}
		sums, err := collectMoments(ctx, m, list[:n], share, samples, o)
		if err != nil {
			return err
		}
		pool.Begin()
		for i := range n {
			if err = ctx.Err(); err == nil {
				err = f(pool, &list[i], sums[i])
			}
			if err != nil {
				break
			}
			sums[i] = nil
		}
		pool.End()
		if err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// round sets the codes of the weight of p.
func (p *product) round(pool *par.Pool, q *quant.Params, sums moments) {
	w := tensor.As[float32](p.weight.Const)
	codes := tensor.New(q.Type.DType, p.weight.Const.Shape()...)
	k, n := p.k, p.n
	columns := make([]float32, k*n) // [k][n], inputs in the order of rounding
	scale, zero := make([]float32, n), make([]int32, n)
	for g := range p.groups {
		order, factor := factor(pool, sums[g], k)
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
		same := func(int) ([]float32, []int32) { return scale, zero }
		out := feedback(pool, columns, factor, same, float32(q.Type.Min), float32(q.Type.Max), k, n)
		for r, i := range order {
			for o := range n {
				codes.Bytes()[index(i, o)] = byte(out[r*n+o])
			}
		}
	}
	q.Codes = codes
}

// factor returns the order in which k inputs are rounded and the strictly upper
// triangle U of the factors of h, in that order: h = (U+I)·D·(U+I)ᵀ. Damping
// makes h positive definite.
func factor(pool *par.Pool, h []float32, k int) (order []int, u []float32) {
	mean := 0.0
	for i := range k {
		mean += float64(h[i*k+i])
	}
	mean /= float64(k)
	if !(mean > 0) || math.IsInf(mean, 0) {
		mean = 1
	}
	order = make([]int, k)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(h[b*k+b], h[a*k+a]) })
	// The factorization from the last row up is Cholesky's of the reversed
	// matrix.
	l := make([]float32, k*k)
	for i := range k {
		for j := range k {
			l[i*k+j] = h[order[k-1-i]*k+order[k-1-j]]
		}
		l[i*k+i] += float32(damping * mean)
	}
	cholesky(pool, l, k)
	u = make([]float32, k*k)
	for i := range k {
		d := l[i*k+i]
		for j := i + 1; j < k; j++ {
			u[(k-1-j)*k+k-1-i] = l[j*k+i] / d
		}
	}
	return order, u
}

// cholesky replaces the lower triangle of the k×k matrix a by L with a = L·Lᵀ.
// A pivot that rounding made too small is held at a millionth of the diagonal.
func cholesky(pool *par.Pool, a []float32, k int) {
	var square []float32
	for at := 0; at < k; at += solveBlock {
		end := min(at+solveBlock, k)
		for j := at; j < end; j++ {
			floor := 1e-6 * float64(a[j*k+j])
			for i := j; i < k; i++ {
				s := float64(a[i*k+j])
				x, y := a[i*k+at:i*k+j], a[j*k+at:j*k+j]
				for c := range x {
					s -= float64(x[c]) * float64(y[c])
				}
				if i == j {
					s = math.Sqrt(max(s, floor, 1e-30))
					a[i*k+j] = float32(s)
					continue
				}
				a[i*k+j] = float32(s / float64(a[j*k+j]))
			}
		}
		if end == k {
			break
		}
		rest := k - end
		square = slices.Grow(square[:0], rest*rest)[:rest*rest]
		panel := a[end*k+at:]
		kernels.Gemm(pool, rest, rest, end-at, kernels.Matrix{Data: panel, Ld: k}, kernels.Matrix{Data: panel, Ld: k, Trans: true}, square, rest, nil)
		for i := range rest {
			row := a[(end+i)*k+end : (end+i)*k+k]
			kernels.Binary(kernels.Sub, row, row, square[i*rest:(i+1)*rest])
		}
	}
}

// feedback rounds the k×n matrix w row by row to codes, adding to each row what
// the errors of the rows before it ask for: code[r] = round(w[r] + Σ u[j][r]·e[j])
// with e[j] = w[j] - value of code[j]. params gives the scales and zero points of
// a row.
func feedback(pool *par.Pool, w, u []float32, params func(r int) (scale []float32, zero []int32), lo, hi float32, k, n int) []int32 {
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
			scale, zero := params(r)
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
		kernels.Gemm(pool, rest, n, end-at, kernels.Matrix{Data: u[at*k+end:], Ld: k, Trans: true}, kernels.Matrix{Data: errs[at*n:], Ld: n}, push, n, nil)
		kernels.Binary(kernels.Add, target[end*n:], target[end*n:], push)
	}
	return codes
}
