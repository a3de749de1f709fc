package accuracy

import (
	"cmp"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// splitWorth is the factor by which splitting has to narrow a range at least.
const splitWorth = 0.8

// Split divides outlier channels between two convolutions, or two Gemm, in two
// halves each, so that the range that all channels share gets narrower (R. Zhao
// et al., "Improving Neural Network Quantization without Retraining using
// Outlier Channel Splitting", 2019): the weight and bias of the first give half
// the value twice, and the second multiplies both with the same weights. That
// changes nothing but rounding where only operators stand between that commute
// with a positive factor. At most share of the channels are split, and only
// where that narrows the range to 0.8 of what it was.
//
// It edits m, a prepared float model, and returns the number of channels split.
// Ranges observed before do not hold for these values afterwards.
func Split(m *graph.Model, bounds Bounds, share float64) int {
	count := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if g.Function() == nil {
				count += splitInto(n, bounds, share)
			}
		}
	}
	return count
}

// splitInto splits channels of the input of n.
func splitInto(n *graph.Node, bounds Bounds, share float64) int {
	x := n.Input(0)
	if x == nil || x.OnlyUse() != n || !splittable(n) {
		return 0
	}
	// The values from the first product to n, whose shapes change.
	path := []*graph.Value{x}
	first := x.DefNode()
	for first != nil && !splittable(first) {
		y := first.Input(0)
		if first.Op.Domain != graph.OnnxDomain || len(first.Outputs()) != 1 || y == nil || y.OnlyUse() != first {
			return 0
		}
		switch first.Op.Type {
		case "Relu", "LeakyRelu":
		case "AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool":
			if n.Op.Type != "Conv" {
				return 0
			}
		default:
			return 0
		}
		path = append(path, y)
		first = y.DefNode()
	}
	if first == nil || first.Op.Type != n.Op.Type || first.Graph() != n.Graph() {
		return 0
	}
	w1, w2 := first.Input(1).Const, n.Input(1).Const
	out, in := outputAxis(first), 1-outputAxis(n)
	channels := w1.Shape()[out]
	lo, hi := bounds(x)
	if len(lo) != channels || w2.Shape()[in] != channels {
		return 0
	}
	var b []float32
	if first.Input(2) != nil {
		if b = floats(first.Input(2)); len(b) != channels {
			return 0
		}
	}
	chosen := outliers(lo, hi, int(share*float64(channels)))
	if len(chosen) == 0 {
		return 0
	}
	halve := func(t *tensor.Tensor, axis int, half bool) *tensor.Tensor {
		shape := slices.Clone(t.Shape())
		inner := 1
		for _, d := range shape[axis+1:] {
			inner *= d
		}
		row := shape[axis] * inner
		data := tensor.As[float32](t)
		factor := float32(1)
		if half {
			factor = 0.5
		}
		var all []float32
		for at := 0; at < len(data); at += row {
			line := slices.Clone(data[at : at+row])
			for _, c := range chosen {
				for i := c * inner; i < (c+1)*inner; i++ {
					line[i] *= factor
				}
			}
			for _, c := range chosen {
				line = append(line, line[c*inner:(c+1)*inner]...)
			}
			all = append(all, line...)
		}
		shape[axis] += len(chosen)
		return tensor.Of(all, shape...)
	}
	put(first, 1, halve(w1, out, true))
	put(n, 1, halve(w2, in, false))
	if b != nil {
		put(first, 2, halve(first.Input(2).Const, 0, true))
	}
	for _, v := range path {
		if len(v.Type.Shape) > 1 {
			v.Type.Shape = slices.Clone(v.Type.Shape)
			v.Type.Shape[1] = graph.Dim{Known: true, Size: int64(channels + len(chosen))}
		}
	}
	return len(chosen)
}

// splittable reports whether n is a product with a constant weight that no other
// node reads, all of whose inputs reach all outputs.
func splittable(n *graph.Node) bool {
	if n == nil || n.Op.Domain != graph.OnnxDomain || floats(n.Input(1)) == nil || n.Input(1).OnlyUse() != n {
		return false
	}
	switch n.Op.Type {
	case "Conv":
		return n.Input(1).Const.Rank() > 2 && n.Int("group", 1) == 1
	case "Gemm":
		return n.Int("transA", 0) == 0 && (n.Input(2) == nil || floats(n.Input(2)) != nil && n.Input(2).Const.Rank() == 1)
	}
	return false
}

// outputAxis returns the axis of output channels, 0 or 1, in the weight of n.
func outputAxis(n *graph.Node) int {
	if n.Op.Type == "Conv" || n.Int("transB", 0) != 0 {
		return 0
	}
	return 1
}

// outliers returns at most limit channels, sorted, whose halves leave the range
// of all much narrower.
func outliers(lo, hi []float32, limit int) []int {
	order := make([]int, len(lo))
	size := make([]float64, len(lo))
	for c := range order {
		order[c] = c
		size[c] = math.Max(-float64(lo[c]), float64(hi[c]))
		if size[c]-size[c] != 0 {
			size[c] = 0 // no element
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(size[b], size[a]) })
	if len(order) == 0 || size[order[0]] == 0 {
		return nil
	}
	top, n := size[order[0]], 0
	for n < limit && n < len(order) && size[order[n]] > top/2 {
		n++
	}
	rest := top / 2
	if n < len(order) {
		rest = math.Max(rest, size[order[n]])
	}
	if rest > splitWorth*top {
		return nil
	}
	chosen := slices.Clone(order[:n])
	slices.Sort(chosen)
	return chosen
}

// put gives input i of n another constant. An initializer that nothing else
// reads goes, and its name stays.
func put(n *graph.Node, i int, t *tensor.Tensor) {
	old := n.Input(i)
	g, name := old.Graph(), old.Name()
	v := g.NewInitializer(name, t)
	n.SetInput(i, v)
	settle(v, old)
}

// settle gives v the name of old, which it stands for, where nothing reads that
// any more.
func settle(v, old *graph.Value) {
	if len(old.Uses()) > 0 || old.IsInput() {
		return
	}
	name := old.Name()
	old.Graph().RemoveInitializers(func(x *graph.Value) bool { return x == old })
	v.Rename(name)
}
