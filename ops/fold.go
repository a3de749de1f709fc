package ops

import (
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// ZeroPads returns the pads of a Pad node in constant mode that pads with 0 and
// names no axes, or nil: begins of all axes, then ends.
func ZeroPads(n *graph.Node) []int64 {
	if n.String("mode", "constant") != "constant" {
		return nil
	}
	if n.Opset() < 11 {
		if n.Float("value", 0) != 0 {
			return nil
		}
		return n.Ints("pads")
	}
	if v := n.Input(2); v != nil {
		if !v.IsConst() || slices.ContainsFunc(v.Const.Bytes(), func(b byte) bool { return b != 0 }) {
			return nil
		}
	}
	v := n.Input(1)
	if n.Input(3) != nil || v == nil || !v.IsConst() || v.Const.DType() != tensor.Int64 {
		return nil
	}
	return tensor.As[int64](v.Const)
}

// FoldPad makes the readers of the output of the Pad n do the padding, if all of
// them are Convs or AveragePools that can, and removes n.
func FoldPad(n *graph.Node) bool {
	if !isOp(n, "Pad") || n.Output(0) == nil {
		return false
	}
	pads := ZeroPads(n)
	rank := len(pads) / 2
	if rank < 3 || pads[0]|pads[1]|pads[rank]|pads[rank+1] != 0 || slices.ContainsFunc(pads, func(p int64) bool { return p < 0 }) {
		return false
	}
	g, uses := n.Graph(), slices.Clone(n.Output(0).Uses())
	if len(uses) == 0 || slices.ContainsFunc(uses, func(u graph.Use) bool { return !takesPads(u, g, pads[2:rank], pads[rank+2:]) }) {
		return false
	}
	for _, u := range uses {
		addPads(u.Node, pads[2:rank], pads[rank+2:])
		u.Node.SetInput(0, n.Input(0))
	}
	g.Remove(n)
	return true
}

// takesPads reports whether the reader of a padded value can do the padding of
// its spatial axes itself.
func takesPads(u graph.Use, g *graph.Graph, begin, end []int64) bool {
	n, spatial := u.Node, len(begin)
	if n == nil || u.Index != 0 || n.Graph() != g || !isOp(n, "Conv", "AveragePool") {
		return false
	}
	pads := n.Ints("pads")
	switch n.String("auto_pad", "NOTSET") {
	case "NOTSET":
	case "VALID":
		pads = nil
	default:
		return false
	}
	if pads != nil && len(pads) != 2*spatial {
		return false
	}
	if n.Op.Type == "Conv" {
		return true
	}
	own := slices.ContainsFunc(pads, func(p int64) bool { return p != 0 })
	kernel := n.Ints("kernel_shape")
	if len(kernel) != spatial || n.Int("ceil_mode", 0) != 0 || own && n.Int("count_include_pad", 0) != 1 {
		return false
	}
	for i, k := range kernel { // runtimes refuse windows that lie outside
		b, e := begin[i], end[i]
		if pads != nil {
			b, e = b+pads[i], e+pads[spatial+i]
		}
		if b >= k || e >= k {
			return false
		}
	}
	return true
}

func addPads(n *graph.Node, begin, end []int64) {
	pads := append(slices.Clone(begin), end...)
	if n.String("auto_pad", "NOTSET") == "NOTSET" {
		for i, p := range n.Ints("pads") {
			pads[i] += p
		}
	}
	n.RemoveAttr("auto_pad")
	n.SetAttr(graph.Ints("pads", pads...))
	if n.Op.Type == "AveragePool" {
		n.SetAttr(graph.Int("count_include_pad", 1))
	}
}

// channelAffine is y = scale·x + shift per channel; a vector of length 1 serves all
// channels.
type channelAffine struct{ scale, shift []float64 }

func channelAt(v []float64, c int) float64 {
	if len(v) == 1 {
		return v[0]
	}
	return v[c]
}

// layer is a Conv, ConvTranspose or Gemm with constant weight and bias.
type layer struct {
	node     *graph.Node
	w        []float32
	shape    []int
	channels int
	bias     []float32 // nil if there is none
	rank     int       // of the output
	axis     int       // channel axis of the output
}

func layerOf(n *graph.Node) *layer {
	if !isOp(n, "Conv", "ConvTranspose", "Gemm") {
		return nil
	}
	w := constFloats(n.Input(1))
	if w == nil {
		return nil
	}
	l := &layer{node: n, w: w, shape: n.Input(1).Const.Shape()}
	if len(l.shape) < 2 || n.Op.Type != "Gemm" && len(l.shape) < 3 {
		return nil
	}
	switch n.Op.Type {
	case "Conv":
		l.channels, l.rank, l.axis = l.shape[0], len(l.shape), 1
	case "ConvTranspose":
		l.channels, l.rank, l.axis = l.shape[1]*int(n.Int("group", 1)), len(l.shape), 1
	case "Gemm":
		l.channels, l.rank, l.axis = l.shape[1], 2, 1
		if n.Int("transB", 0) != 0 {
			l.channels = l.shape[0]
		}
		if n.Float("alpha", 1) != 1 || n.Float("beta", 1) != 1 {
			return nil
		}
	}
	if b := n.Input(2); b != nil {
		if l.bias = constFloats(b); l.bias == nil {
			return nil
		}
		if n.Op.Type == "Gemm" {
			if s := b.Const.Shape(); len(s) > 2 || len(s) == 2 && s[0] != 1 {
				return nil
			}
			if len(l.bias) == 1 && l.channels > 1 {
				l.bias = slices.Repeat(l.bias, l.channels)
			}
		}
		if len(l.bias) != l.channels {
			return nil
		}
	}
	return l
}

// channel returns the output channel that weight element i belongs to.
func (l *layer) channel(i int) int {
	switch l.node.Op.Type {
	case "Conv":
		return i / (len(l.w) / l.shape[0])
	case "ConvTranspose":
		inner := 1
		for _, d := range l.shape[2:] {
			inner *= d
		}
		groups := int(l.node.Int("group", 1))
		perGroup := l.shape[0] / max(groups, 1)
		in := i / (inner * l.shape[1])
		return in/max(perGroup, 1)*l.shape[1] + i/inner%l.shape[1]
	}
	if l.node.Int("transB", 0) != 0 {
		return i / l.shape[1]
	}
	return i % l.shape[1]
}

// store gives the node a new weight and bias.
func (l *layer) store(w, b []float32) {
	n := l.node
	n.SetInput(1, n.Graph().NewInitializer(n.Input(1).Name(), tensor.Of(w, l.shape...)))
	base := n.Output(0).Name() + "_bias"
	if v := n.Input(2); v != nil {
		base = v.Name()
	}
	n.SetInput(2, n.Graph().NewInitializer(base, tensor.Of(b)))
}

// FoldBehind multiplies the node that alone reads the output of n, a Conv,
// ConvTranspose or Gemm of constant weight, into weight and bias, if that is a
// BatchNormalization or a constant Mul, Div, Add or Sub per channel, and reports
// whether it did.
func FoldBehind(n *graph.Node) bool {
	l := layerOf(n)
	if l == nil || n.Output(0) == nil {
		return false
	}
	y := n.Output(0)
	next := y.OnlyUse()
	if next == nil || next.Graph() != n.Graph() || next.Output(0) == nil {
		return false
	}
	f := affineOf(next, y, l)
	if f == nil {
		return false
	}
	w, b := make([]float32, len(l.w)), make([]float32, l.channels)
	for i, x := range l.w {
		w[i] = float32(float64(x) * channelAt(f.scale, l.channel(i)))
	}
	for c := range b {
		old := 0.0
		if l.bias != nil {
			old = float64(l.bias[c])
		}
		b[c] = float32(old*channelAt(f.scale, c) + channelAt(f.shift, c))
	}
	if slices.ContainsFunc(w, notFinite) || slices.ContainsFunc(b, notFinite) {
		return false
	}
	if !next.Output(0).ReplaceWith(y) {
		return false
	}
	n.Graph().Remove(next)
	l.store(w, b)
	return true
}

func notFinite(x float32) bool { return x-x != 0 }

// affineOf returns what next does to y, the output of l, per channel, or nil.
func affineOf(next *graph.Node, y *graph.Value, l *layer) *channelAffine {
	if isOp(next, "BatchNormalization") {
		if next.Input(0) != y {
			return nil
		}
		return batchNormAffine(next, l.channels)
	}
	if !isOp(next, "Mul", "Div", "Add", "Sub") {
		return nil
	}
	other := next.Input(1)
	if next.Input(1) == y {
		if isOp(next, "Div", "Sub") {
			return nil
		}
		other = next.Input(0)
	}
	c := constFloats(other)
	if c == nil || !perChannel(other.Const.Shape(), l) {
		return nil
	}
	v := make([]float64, len(c))
	for i, x := range c {
		v[i] = float64(x)
	}
	f := &channelAffine{scale: []float64{1}, shift: []float64{0}}
	switch next.Op.Type {
	case "Mul":
		f.scale = v
	case "Div":
		for i := range v {
			v[i] = 1 / v[i]
		}
		f.scale = v
	case "Add":
		f.shift = v
	case "Sub":
		for i := range v {
			v[i] = -v[i]
		}
		f.shift = v
	}
	return f
}

// perChannel reports whether a constant of the given shape broadcasts along
// all axes of l's output but the channels, without adding axes.
func perChannel(shape []int, l *layer) bool {
	if len(shape) > l.rank {
		return false
	}
	for i, d := range shape {
		if d != 1 && (i != l.axis-(l.rank-len(shape)) || d != l.channels) {
			return false
		}
	}
	return true
}

// batchNormAffine returns what an inference-mode BatchNormalization with constant
// parameters does, or nil.
func batchNormAffine(n *graph.Node, channels int) *channelAffine {
	if n.Int("training_mode", 0) != 0 || n.Opset() < 9 && n.Int("spatial", 1) != 1 {
		return nil
	}
	if anyUsed(n, 1) {
		return nil
	}
	var p [4][]float32
	for i := range p {
		if p[i] = constFloats(n.Input(i + 1)); len(p[i]) != channels {
			return nil
		}
	}
	eps := float64(n.Float("epsilon", 1e-5))
	f := &channelAffine{scale: make([]float64, channels), shift: make([]float64, channels)}
	for c := range channels {
		f.scale[c] = float64(p[0][c]) / math.Sqrt(float64(p[3][c])+eps)
		f.shift[c] = float64(p[1][c]) - float64(p[2][c])*f.scale[c]
	}
	return f
}

// FoldBefore multiplies the BatchNormalization, or constant Mul, Div, Add or Sub
// per channel, that makes the input of n, a Conv, into n, and reports whether it
// did. A shift before padding would be wrong at the border, where the padded
// value is 0.
func FoldBefore(n *graph.Node) bool {
	if !isOp(n, "Conv") {
		return false
	}
	l := layerOf(n)
	x := n.Input(0)
	if l == nil || x == nil {
		return false
	}
	prev := x.DefNode()
	groups := int(n.Int("group", 1))
	if prev == nil || prev.Graph() != n.Graph() || x.OnlyUse() != n || groups < 1 || l.channels%groups != 0 {
		return false
	}
	channels := l.shape[1] * groups
	var f *channelAffine
	source := prev.Input(0)
	if isOp(prev, "BatchNormalization") {
		f = batchNormAffine(prev, channels)
	} else if isOp(prev, "Mul", "Div", "Add", "Sub") && !halvesGELU(prev) {
		if source == nil || source.IsConst() {
			source = prev.Input(1)
		}
		if source != nil && len(source.Type.Shape) == len(l.shape) {
			f = affineOf(prev, source, &layer{channels: channels, rank: len(l.shape), axis: 1})
		}
	}
	if f == nil || source == nil {
		return false
	}
	if padsInput(n) && slices.ContainsFunc(f.shift, func(v float64) bool { return v != 0 }) {
		return scaleThrough(n, l, prev, source, f, channels)
	}
	w, b := make([]float32, len(l.w)), make([]float64, l.channels)
	for i, x := range l.w {
		o, c := l.channel(i), l.inputChannel(i)
		w[i] = float32(float64(x) * channelAt(f.scale, c))
		b[o] += float64(x) * channelAt(f.shift, c)
	}
	bias := make([]float32, l.channels)
	for c := range bias {
		if l.bias != nil {
			b[c] += float64(l.bias[c])
		}
		bias[c] = float32(b[c])
	}
	if slices.ContainsFunc(w, notFinite) || slices.ContainsFunc(bias, notFinite) {
		return false
	}
	n.SetInput(0, source)
	n.Graph().Remove(prev)
	l.store(w, bias)
	return true
}

// halvesGELU reports whether n is the last step of x · (1 + erf(x/√2)) · ½, the
// GELU as exporters write it out (D. Hendrycks and K. Gimpel, 2016). Runtimes
// compute the whole of it as one, which they would not without the half.
func halvesGELU(n *graph.Node) bool {
	if !isOp(n, "Mul") {
		return false
	}
	for _, v := range n.Inputs() {
		if v == nil || !isOp(v.DefNode(), "Mul") {
			continue
		}
		for _, gate := range v.DefNode().Inputs() {
			if gate == nil || !isOp(gate.DefNode(), "Add") {
				continue
			}
			for _, x := range gate.DefNode().Inputs() {
				if x != nil && isOp(x.DefNode(), "Erf") {
					return true
				}
			}
		}
	}
	return false
}

// scaleThrough handles a·x + b before a Conv n that pads, given as a Mul or Div
// and the Add or Sub prev behind it: it becomes x + b/a, and a goes into the
// weight, for which padding makes no difference.
func scaleThrough(n *graph.Node, l *layer, prev *graph.Node, y *graph.Value, shift *channelAffine, channels int) bool {
	mul := y.DefNode()
	if !isOp(prev, "Add", "Sub") || !isOp(mul, "Mul", "Div") || mul.Graph() != n.Graph() || y.OnlyUse() != prev {
		return false
	}
	x := mul.Input(0)
	if x == nil || x.IsConst() {
		x = mul.Input(1)
	}
	if x == nil || len(x.Type.Shape) != len(l.shape) {
		return false
	}
	f := affineOf(mul, x, &layer{channels: channels, rank: len(l.shape), axis: 1})
	if f == nil || slices.ContainsFunc(f.scale, func(v float64) bool { return v == 0 || v-v != 0 }) {
		return false
	}
	moved := make([]float32, max(len(f.scale), len(shift.shift)))
	for c := range moved {
		moved[c] = float32(channelAt(shift.shift, c) / channelAt(f.scale, c))
	}
	shape := []int{}
	if len(moved) > 1 {
		shape = make([]int, len(l.shape)-1)
		for i := range shape {
			shape[i] = 1
		}
		shape[0] = channels
	}
	w := make([]float32, len(l.w))
	for i, v := range l.w {
		w[i] = float32(float64(v) * channelAt(f.scale, l.inputChannel(i)))
	}
	if slices.ContainsFunc(w, notFinite) || slices.ContainsFunc(moved, notFinite) {
		return false
	}
	g := n.Graph()
	prev.Op.Type = "Add"
	prev.SetInput(0, x)
	prev.SetInput(1, g.NewInitializer(prev.Output(0).Name()+"_shift", tensor.Of(moved, shape...)))
	g.Remove(mul)
	n.SetInput(1, g.NewInitializer(n.Input(1).Name(), tensor.Of(w, l.shape...)))
	return true
}

// inputChannel returns the input channel that weight element i of a Conv
// multiplies.
func (l *layer) inputChannel(i int) int {
	inner := 1
	for _, d := range l.shape[2:] {
		inner *= d
	}
	groups := int(l.node.Int("group", 1))
	return l.channel(i)/(l.channels/groups)*l.shape[1] + i/inner%l.shape[1]
}

// padsInput reports whether a Conv may pad its input.
func padsInput(n *graph.Node) bool {
	switch n.String("auto_pad", "NOTSET") {
	case "NOTSET":
		return slices.ContainsFunc(n.Ints("pads"), func(p int64) bool { return p != 0 })
	case "VALID":
		return false
	}
	return true
}

func isOp(n *graph.Node, types ...string) bool {
	return n != nil && n.Op.Domain == graph.OnnxDomain && n.Op.Overload == "" && slices.Contains(types, n.Op.Type)
}

// constFloats returns the elements of a constant float32 value, or nil.
func constFloats(v *graph.Value) []float32 {
	if v == nil || !v.IsConst() || v.Const.DType() != tensor.Float32 {
		return nil
	}
	return tensor.As[float32](v.Const)
}

// anyUsed reports whether something reads an output of n from output i on.
func anyUsed(n *graph.Node, i int) bool {
	return len(n.Outputs()) > i && slices.ContainsFunc(n.Outputs()[i:], func(v *graph.Value) bool { return v != nil && len(v.Uses()) > 0 })
}
