package quant

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
)

// factorBlock is the number of columns that are factored together.
const factorBlock = 64

// cellSize is the number of elements of a line that are rounded between two
// products at most.
const cellSize = 64

// Moment is what is known of the inputs x of a product with a weight, prepared
// for the choice of codes in blocks of one size. Columns stand in an order: the
// block with the strongest inputs first, and in each block the strongest input.
type Moment struct {
	k, size int
	order   []int // of inputs
	blocks  []momentBlock
	damping float32          // what was added to the diagonal of h
	d       []float32        // D of the factors h = (U+I)·D·(U+I)ᵀ
	shift   *kernels.PackedB // what is added to a weight, as a product with it; nil for nothing
}

// momentBlock is the block of inputs at the places [from, to) of the order.
type momentBlock struct {
	index    int // of the block in a line
	from, to int
	cells    []momentCell
	sum      []float32 // of the rows [from, to) of h
}

// momentCell is the part of a block that is rounded at once.
type momentCell struct {
	from, to int
	rows     *kernels.PackedB // rows [from, to) of h
	rest     *kernels.PackedB // rows [from, to) of U, columns from to on
	square   []float32        // h in [from, to)²
	upper    []float32        // Uᵀ in [from, to)²
}

// NewMoment prepares the second moment h = Σ x·xᵀ of k inputs for blocks of size
// elements, 0 for whole lines. Its diagonal grows by the given share of its
// mean, so that h is positive definite.
//
// Where x are inputs that differ from those of the float model by d, cross is
// Σ d·xᵀ. The codes then stand for the weight whose products with x are nearest
// to those of the float model (Y. Li et al., "GPTAQ", 2025). It may be nil.
func NewMoment(ctx context.Context, pool *par.Pool, h, cross []float32, k, size int, damping float64) (*Moment, error) {
	if size == 0 || size > k {
		size = k
	}
	m := &Moment{k: k, size: size}
	m.arrange(h)
	p, added := Damped(h, m.order, damping)
	m.damping = added
	u, d, err := Factor(ctx, pool, p, k)
	if err != nil {
		return nil, err
	}
	m.d = d
	for i := range m.blocks {
		b := &m.blocks[i]
		b.sum = make([]float32, k)
		for r := b.from; r < b.to; r++ {
			kernels.Binary(kernels.Add, b.sum, b.sum, p[r*k:][:k])
		}
		for at := b.from; at < b.to; at += cellSize {
			c := momentCell{from: at, to: min(at+cellSize, b.to)}
			w := c.to - c.from
			c.rows = kernels.PackB(w, k, kernels.Matrix{Data: p[at*k:], Ld: k})
			if c.to < k {
				c.rest = kernels.PackB(w, k-c.to, kernels.Matrix{Data: u[at*k+c.to:], Ld: k})
			}
			for r := range w {
				c.square = append(c.square, p[(at+r)*k+at:][:w]...)
				for j := range w {
					c.upper = append(c.upper, u[(at+j)*k+at+r])
				}
			}
			b.cells = append(b.cells, c)
		}
	}
	if cross != nil {
		permute(p, cross, m.order)
		Solve(pool, p, u, d, k)
		m.shift = kernels.PackB(k, k, kernels.Matrix{Data: p, Ld: k})
	}
	return m, ctx.Err()
}

// arrange sets the order of inputs.
func (m *Moment) arrange(h []float32) {
	k, size := m.k, m.size
	n := (k + size - 1) / size
	strength := make([]float64, n)
	list := make([]int, n)
	for at := range n {
		end := min((at+1)*size, k)
		for i := at * size; i < end; i++ {
			strength[at] += float64(h[i*k+i]) / float64(end-at*size)
		}
		list[at] = at
	}
	slices.SortStableFunc(list, func(a, b int) int { return cmp.Compare(strength[b], strength[a]) })
	for _, at := range list {
		from := len(m.order)
		for i := at * size; i < min((at+1)*size, k); i++ {
			m.order = append(m.order, i)
		}
		slices.SortStableFunc(m.order[from:], func(a, b int) int { return cmp.Compare(h[b*k+b], h[a*k+a]) })
		m.blocks = append(m.blocks, momentBlock{index: at, from: from, to: len(m.order)})
	}
}

// Damped returns the k×k matrix h with rows and columns in the given order, and
// what has been added to its diagonal: the given share of its mean, or of 1 where
// that is not above 0.
func Damped(h []float32, order []int, share float64) (a []float32, added float32) {
	k := len(order)
	mean := 0.0
	for i := range k {
		mean += float64(h[i*k+i])
	}
	mean /= float64(k)
	if !(mean > 0) || math.IsInf(mean, 0) {
		mean = 1
	}
	added = float32(share * mean)
	a = make([]float32, k*k)
	permute(a, h, order)
	for i := range k {
		a[i*k+i] += added
	}
	return a, added
}

// permute stores the square matrix h with rows and columns in the given order.
func permute(dst, h []float32, order []int) {
	k := len(order)
	for i, a := range order {
		for j, b := range order {
			dst[i*k+j] = h[a*k+b]
		}
	}
}

// Factor returns the strictly upper triangle U and the diagonal D of the
// factors h = (U+I)·D·(U+I)ᵀ of the positive definite k×k matrix h. A pivot that
// rounding made too small is held at a millionth of the diagonal. The error is
// that of the context.
func Factor(ctx context.Context, pool *par.Pool, h []float32, k int) (u, d []float32, err error) {
	// The factorization from the last row up is Cholesky's of the reversed
	// matrix.
	l := make([]float32, k*k)
	for i := range k {
		for j := range k {
			l[i*k+j] = h[(k-1-i)*k+k-1-j]
		}
	}
	if err := cholesky(ctx, pool, l, k); err != nil {
		return nil, nil, err
	}
	u, d = make([]float32, k*k), make([]float32, k)
	for i := range k {
		p := l[i*k+i]
		d[k-1-i] = p * p
		for j := i + 1; j < k; j++ {
			u[(k-1-j)*k+k-1-i] = l[j*k+i] / p
		}
	}
	return u, d, nil
}

// cholesky replaces the lower triangle of the k×k matrix a by L with a = L·Lᵀ.
func cholesky(ctx context.Context, pool *par.Pool, a []float32, k int) error {
	square := make([]float32, k*k)
	for at := 0; at < k; at += factorBlock {
		if err := ctx.Err(); err != nil {
			return err
		}
		end := min(at+factorBlock, k)
		for j := at; j < end; j++ {
			y := a[j*k+at : j*k+j]
			floor := 1e-6 * float64(a[j*k+j])
			for i := j; i < k; i++ {
				s := float64(a[i*k+j])
				for c, x := range a[i*k+at : i*k+j] {
					s -= float64(x) * float64(y[c])
				}
				if i == j {
					a[i*k+j] = float32(math.Sqrt(max(s, floor, 1e-30)))
					continue
				}
				a[i*k+j] = float32(s / float64(a[j*k+j]))
			}
		}
		rest := k - end
		if rest == 0 {
			break
		}
		panel := a[end*k+at:]
		kernels.Gemm(pool, rest, rest, end-at, kernels.Matrix{Data: panel, Ld: k}, kernels.Matrix{Data: panel, Ld: k, Trans: true}, square, rest, nil)
		for i := range rest {
			row := a[(end+i)*k+end : (end+i)*k+k]
			kernels.Binary(kernels.Sub, row, row, square[i*rest:(i+1)*rest])
		}
	}
	return nil
}

// Solve replaces the rows y of the k×k matrix r by x with x·(U+I)·D·(U+I)ᵀ = y, for
// factors that Factor returned.
func Solve(pool *par.Pool, r, u, d []float32, k int) {
	pool.For(k, panelLines, func(lo, hi int) {
		n := hi - lo
		rows := r[lo*k : hi*k]
		push := make([]float32, n*k)
		sub := func(from, to, at, end int, m kernels.Matrix) {
			if from == to {
				return
			}
			kernels.Gemm(nil, n, to-from, end-at, kernels.Matrix{Data: rows[at:], Ld: k}, m, push, k, nil)
			for i := range n {
				x := rows[i*k+from : i*k+to]
				kernels.Binary(kernels.Sub, x, x, push[i*k:][:to-from])
			}
		}
		last := (k - 1) / factorBlock * factorBlock
		for at := last; at >= 0; at -= factorBlock {
			end := min(at+factorBlock, k)
			for i := range n {
				x := rows[i*k : (i+1)*k]
				for j := end - 1; j >= at; j-- {
					s := x[j]
					for c, f := range u[j*k+j+1 : j*k+end] {
						s -= f * x[j+1+c]
					}
					x[j] = s
				}
			}
			sub(0, at, at, end, kernels.Matrix{Data: u[at:], Ld: k, Trans: true})
		}
		for at := 0; at < k; at += factorBlock {
			end := min(at+factorBlock, k)
			for i := range n {
				x := rows[i*k : (i+1)*k]
				for j := at; j < end; j++ {
					x[j] /= d[j]
				}
				for j := at; j < end; j++ {
					y := x[j]
					for c, f := range u[j*k+j+1 : j*k+end] {
						x[j+1+c] -= f * y
					}
				}
			}
			if end < k {
				sub(end, k, at, end, kernels.Matrix{Data: u[at*k+end:], Ld: k})
			}
		}
	})
}
