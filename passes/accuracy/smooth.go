package accuracy

import (
	"math"

	"github.com/onnxq/onnxq/graph"
)

// Smooth moves the difficulty of activations with outlier channels into the
// weights that they meet (G. Xiao et al., "SmoothQuant", 2023): the input x of
// constant matrix products is multiplied by 1/s_k along its last axis, and row
// k of the weights by s_k, with s_k = a_k^α / w_k^(1-α), a_k the greatest
// magnitude of channel k of x, and w_k that of row k over all products that
// read x. The multiplication is an operator of its own, since other readers of
// x, a residual connection for instance, need it as it is.
//
// It applies where the expected squared error of rounding x falls by a factor
// of at least worth; α is between 0 and 1. wants reports whether a node will
// be quantized. It edits m, a prepared float model, and returns the number of
// values smoothed, for which ranges observed before do not hold.
func Smooth(m *graph.Model, wants func(*graph.Node) bool, bounds Bounds, alpha, worth float64) int {
	count := 0
	for g := range m.Scopes() {
		if g.Function() != nil {
			continue
		}
		seen := map[*graph.Value]bool{}
		for n := range g.Nodes() {
			if !isProduct(n) || n.Input(0) == nil || seen[n.Input(0)] {
				continue
			}
			x := n.Input(0)
			seen[x] = true
			if smooth(g, x, wants, bounds, alpha, worth) {
				count++
			}
		}
	}
	return count
}

func isProduct(n *graph.Node) bool {
	return n != nil && n.Op.Domain == graph.OnnxDomain && (n.Op.Type == "MatMul" || n.Op.Type == "Gemm" && n.Int("transA", 0) == 0)
}

// rowOf returns the number of rows (input channels) of the constant matrix of
// a product, and the channel that element i belongs to.
func rowOf(n *graph.Node) (rows int, channel func(i int) int) {
	shape := n.Input(1).Const.Shape()
	if n.Op.Type == "Gemm" && n.Int("transB", 0) != 0 {
		return shape[1], func(i int) int { return i % shape[1] }
	}
	return shape[0], func(i int) int { return i / shape[1] }
}

func smooth(g *graph.Graph, x *graph.Value, wants func(*graph.Node) bool, bounds Bounds, alpha, worth float64) bool {
	var readers []*graph.Node
	for _, u := range x.Uses() {
		if u.Node == nil || u.Index != 0 || u.Node.Graph() != g || !isProduct(u.Node) || !wants(u.Node) {
			continue
		}
		if floats(u.Node.Input(1)) == nil || u.Node.Input(1).Const.Rank() != 2 {
			continue
		}
		readers = append(readers, u.Node)
	}
	lo, hi := bounds(x)
	if len(readers) == 0 || len(lo) == 0 {
		return false
	}
	k := len(lo)
	row, power := make([]float64, k), make([]float64, k)
	for _, n := range readers {
		rows, channel := rowOf(n)
		if rows != k {
			return false
		}
		for i, v := range floats(n.Input(1)) {
			c := channel(i)
			row[c] = math.Max(row[c], math.Abs(float64(v)))
			power[c] += float64(v) * float64(v)
		}
	}
	scale := make([]float64, k)
	least, greatest := math.Inf(1), math.Inf(-1) // of x as it is
	newLeast, newGreatest := 0.0, 0.0
	sum, count := 0.0, 0
	for c := range scale {
		a := math.Max(-float64(lo[c]), float64(hi[c]))
		if a > 0 && row[c] > 0 {
			scale[c] = math.Pow(a, alpha) / math.Pow(row[c], 1-alpha)
			sum += math.Log(scale[c])
			count++
		}
	}
	if count == 0 {
		return false
	}
	mean := math.Exp(sum / float64(count))
	for c := range scale {
		if scale[c] == 0 {
			scale[c] = mean
		}
		scale[c] = math.Min(math.Max(scale[c]/mean, 1.0/widest), widest)
		l, h := math.Min(float64(lo[c]), 0), math.Max(float64(hi[c]), 0)
		least, greatest = math.Min(least, l), math.Max(greatest, h)
		newLeast, newGreatest = math.Min(newLeast, l/scale[c]), math.Max(newGreatest, h/scale[c])
	}
	var before, after float64
	for c := range scale {
		before += power[c]
		after += power[c] * scale[c] * scale[c]
	}
	before *= (greatest - least) * (greatest - least)
	after *= (newGreatest - newLeast) * (newGreatest - newLeast)
	if !(after*worth < before) {
		return false
	}
	inverse := make([]float32, k)
	for c, s := range scale {
		inverse[c] = float32(1 / s)
	}
	y := scaled(g, x, inverse, "_smooth")
	for _, n := range readers {
		w := floats(n.Input(1))
		_, channel := rowOf(n)
		scaled := make([]float32, len(w))
		for i, v := range w {
			// The factor that x is divided by is the rounded one.
			scaled[i] = float32(float64(v) / float64(inverse[channel(i)]))
		}
		replace(n, 1, scaled)
		n.SetInput(0, y)
	}
	return true
}
