package accuracy

import (
	"math"
	"slices"

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
// Values that meet the same weights, as those of layers that share them do, get the
// same s, so that the weights stay shared: a_k is then the greatest of all of these.
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
		for _, s := range smoothings(g, wants) {
			if s.apply(g, bounds, alpha, worth) {
				count += len(s.values)
			}
		}
	}
	return count
}

// smoothing is values that meet the same weights, and the products that read them.
type smoothing struct {
	values  []*graph.Value
	readers []*graph.Node
}

// smoothings lists what Smooth looks at in g, in the order of the nodes.
func smoothings(g *graph.Graph, wants func(*graph.Node) bool) []smoothing {
	serves := func(n *graph.Node) bool {
		return n != nil && n.Graph() == g && isProduct(n) && wants(n) && n.Input(0) != nil && floats(n.Input(1)) != nil && n.Input(1).Const.Rank() == 2
	}
	var nodes []*graph.Node
	for n := range g.Nodes() {
		if serves(n) && !slices.ContainsFunc(n.Input(1).Uses(), func(u graph.Use) bool { return !serves(u.Node) || u.Index != 1 || u.Node.Op != n.Op }) {
			nodes = append(nodes, n)
		}
	}
	var of sets // by index in nodes
	first := map[*graph.Value]int{}
	for i, n := range nodes {
		of.add()
		for _, v := range n.Inputs()[:2] {
			if k, ok := first[v]; ok {
				of.join(i, k)
			} else {
				first[v] = i
			}
		}
	}
	var list []smoothing
	at := map[int]int{}
	for i, n := range nodes {
		k, ok := at[of.of(i)]
		if !ok {
			k = len(list)
			at[of.of(i)] = k
			list = append(list, smoothing{})
		}
		s := &list[k]
		s.readers = append(s.readers, n)
		if !slices.Contains(s.values, n.Input(0)) {
			s.values = append(s.values, n.Input(0))
		}
	}
	return list
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

// apply smooths s where that is worth it.
func (s *smoothing) apply(g *graph.Graph, bounds Bounds, alpha, worth float64) bool {
	k := 0
	power := map[*graph.Value][]float64{} // of the rows that a value meets
	for _, x := range s.values {
		lo, _ := bounds(x)
		if k = len(lo); k == 0 {
			return false
		}
		power[x] = make([]float64, k)
	}
	row := make([]float64, k)
	for _, n := range s.readers {
		rows, channel := rowOf(n)
		p := power[n.Input(0)]
		if rows != k || len(p) != k {
			return false
		}
		for i, v := range floats(n.Input(1)) {
			c := channel(i)
			row[c] = math.Max(row[c], math.Abs(float64(v)))
			p[c] += float64(v) * float64(v)
		}
	}
	scale := make([]float64, k)
	for _, x := range s.values {
		lo, hi := bounds(x)
		for c := range scale {
			scale[c] = math.Max(scale[c], math.Max(-float64(lo[c]), float64(hi[c])))
		}
	}
	sum, count := 0.0, 0
	for c, a := range scale {
		if scale[c] = 0; a > 0 && row[c] > 0 {
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
	}
	var before, after float64
	for _, x := range s.values {
		lo, hi := bounds(x)
		least, greatest, newLeast, newGreatest := 0.0, 0.0, 0.0, 0.0
		var was, is float64
		for c := range scale {
			l, h := math.Min(float64(lo[c]), 0), math.Max(float64(hi[c]), 0)
			least, greatest = math.Min(least, l), math.Max(greatest, h)
			newLeast, newGreatest = math.Min(newLeast, l/scale[c]), math.Max(newGreatest, h/scale[c])
			was += power[x][c]
			is += power[x][c] * scale[c] * scale[c]
		}
		before += was * (greatest - least) * (greatest - least)
		after += is * (newGreatest - newLeast) * (newGreatest - newLeast)
	}
	if !(after*worth < before) {
		return false
	}
	inverse := make([]float32, k)
	for c, s := range scale {
		inverse[c] = float32(1 / s)
	}
	weights := replacements{}
	for _, n := range s.readers {
		weights.replace(n, func() []float32 {
			data := slices.Clone(floats(n.Input(1)))
			_, channel := rowOf(n)
			for i, v := range data {
				// The factor that x is divided by is the rounded one.
				data[i] = float32(float64(v) / float64(inverse[channel(i)]))
			}
			return data
		})
	}
	for _, x := range s.values {
		y := scaled(g, x, inverse, "_smooth")
		for _, n := range s.readers {
			if n.Input(0) == x {
				n.SetInput(0, y)
			}
		}
	}
	return true
}
