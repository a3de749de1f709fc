// Package fusion knows which groups of DequantizeLinear, operator and
// QuantizeLinear ONNX Runtime replaces by one integer kernel. The rules are
// data; Find says of a node which group it stands in, and why that is not
// replaced.
package fusion

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Codes is what a DequantizeLinear reads.
type Codes struct {
	Node              *graph.Node // nil: the input is not dequantized
	Data, Scale, Zero *graph.Value
	DType             tensor.DType
	// Made says that the runtime quantizes this constant itself when it loads
	// the model; the other fields are nil, but for DType.
	Made bool
}

// Group is a node between what dequantizes its inputs and what quantizes its
// outputs.
type Group struct {
	Node *graph.Node
	In   []Codes // by input
	// Clamp is the Relu or Clip behind the node, if one stands between it and
	// QuantizeLinear or could.
	Clamp *graph.Node
	Q     []*graph.Node // the QuantizeLinear nodes behind the node or Clamp
	Rule  *Rule         // that replaces the group; nil: none does
	Why   string        // why none does; "" with a Rule
}

// Kernel returns what the group becomes.
func (g *Group) Kernel() graph.OpKey {
	switch {
	case g.Rule == nil:
		return graph.OpKey{}
	case len(g.Q) == 0 && g.Rule.FloatKernel.Type != "":
		return g.Rule.FloatKernel
	case g.Rule.Kernel.Type != "":
		return g.Rule.Kernel
	}
	return g.Node.Op
}

// IsQ reports whether n is a QuantizeLinear of either domain with an output.
func IsQ(n *graph.Node) bool { return isEither(n, "QuantizeLinear") }

// IsDQ reports whether n is a DequantizeLinear of either domain with an output.
func IsDQ(n *graph.Node) bool { return isEither(n, "DequantizeLinear") }

func isEither(n *graph.Node, op string) bool {
	return n != nil && n.Op.Type == op && (n.Op.Domain == graph.OnnxDomain || n.Op.Domain == msDomain) && n.Output(0) != nil && n.NumInputs() > 1 && n.Input(0) != nil && n.Input(1) != nil
}

// codesOf returns what the DequantizeLinear reads that makes v in graph g.
func codesOf(v *graph.Value, g *graph.Graph) Codes {
	if v == nil || !IsDQ(v.DefNode()) || v.DefNode().Graph() != g {
		return Codes{}
	}
	n := v.DefNode()
	c := Codes{Node: n, Data: n.Input(0), Scale: n.Input(1), Zero: n.Input(2)}
	switch {
	case c.Zero != nil && c.Zero.Const != nil:
		c.DType = c.Zero.Const.DType()
	case c.Data.Const != nil:
		c.DType = c.Data.Const.DType()
	default:
		c.DType = c.Data.Type.Elem
	}
	return c
}

// Scalar reports whether all codes have the same scale and zero point.
func (c Codes) Scalar() bool {
	return c.Scale.IsConst() && isScalar(c.Scale) && (c.Zero == nil || c.Zero.IsConst() && isScalar(c.Zero))
}

func isScalar(v *graph.Value) bool { return v.Const != nil && v.Const.Len() == 1 && v.Const.Rank() < 2 }

// unsigned returns the type of the codes in a runtime whose kernels take
// unsigned activations only.
func (c Codes) unsigned() tensor.DType {
	q := c.Data.DefNode()
	if c.DType == tensor.Int8 && IsQ(q) && c.Data.OnlyUse() == c.Node && len(c.Node.Output(0).Uses()) == 1 && q.Graph() == c.Node.Graph() && c.Zero != nil && c.Scalar() &&
		q.Input(2) != nil && q.Input(2).Const.Equal(c.Zero.Const) {
		return tensor.Uint8
	}
	return c.DType
}

// codesType returns the element type of a QuantizeLinear's codes.
func codesType(q *graph.Node) tensor.DType {
	if z := q.Input(2); z != nil && z.Const != nil {
		return z.Const.DType()
	} else if z != nil {
		return z.Type.Elem
	}
	if t := tensor.DType(q.Int("output_dtype", 0)); t != 0 {
		return t
	}
	return tensor.Uint8
}

func (r *Runtime) outType(q *graph.Node) tensor.DType {
	t := codesType(q)
	if t == tensor.Int8 && !r.SignedActivations {
		if dq := q.Output(0).OnlyUse(); IsDQ(dq) && dq.Graph() == q.Graph() {
			return codesOf(dq.Output(0), dq.Graph()).unsigned()
		}
	}
	return t
}

func (r *Runtime) inType(c Codes) tensor.DType {
	if !r.SignedActivations && !c.Made {
		return c.unsigned()
	}
	return c.DType
}

// edges returns the nodes that read the outputs of n, once for each input of a
// node, and whether one of them is an output of the graph.
func edges(n *graph.Node) (readers []graph.Use, output bool) {
	for _, v := range n.Outputs() {
		if v == nil {
			continue
		}
		for _, u := range v.Uses() {
			if u.Node == nil {
				output = output || u.Graph == n.Graph()
				continue
			}
			readers = append(readers, u)
		}
	}
	return readers, output
}

// quantizers returns the QuantizeLinear nodes among readers.
func quantizers(g *graph.Graph, readers []graph.Use) (q []*graph.Node) {
	for _, u := range readers {
		if u.Index == 0 && IsQ(u.Node) && u.Node.Graph() == g {
			q = append(q, u.Node)
		}
	}
	return q
}

// Find returns the group that n stands in: nil if it reads nothing dequantized
// and computes something else than codes, or is itself part of the border.
func (r *Runtime) Find(n *graph.Node) *Group {
	if IsQ(n) || IsDQ(n) || n.Op.Domain != graph.OnnxDomain || n.Graph().Function() != nil {
		return nil
	}
	k := &Group{Node: n}
	found := false
	for _, v := range n.Inputs() {
		c := codesOf(v, n.Graph())
		found = found || c.Node != nil
		k.In = append(k.In, c)
	}
	if !found {
		return nil
	}
	readers, _ := edges(n)
	behind := n
	if len(readers) == 1 && readers[0].Node.Graph() == n.Graph() {
		next := readers[0].Node
		after, output := edges(next)
		if (next.Op == standard("Relu") || next.Op == standard("Clip")) && readers[0].Index == 0 && len(after) == 1 && !output {
			k.Clamp, behind = next, next
		}
	}
	after, _ := edges(behind)
	k.Q = quantizers(n.Graph(), after)
	k.Why = fmt.Sprintf("there is no integer kernel for %s", n.Op)
	for i := range r.Rules {
		rule := &r.Rules[i]
		if rule.Op != n.Op.Type {
			continue
		}
		try := *k
		why := r.check(rule, &try)
		if why == "" {
			try.Rule, try.Why = rule, ""
			return &try
		}
		if rule.Shape != Blocks {
			k.Why = why
		}
	}
	return k
}

// check returns why a rule does not hold for a group, or "".
func (r *Runtime) check(rule *Rule, k *Group) string {
	n := k.Node
	if o := n.Opset(); o < rule.Since {
		return fmt.Sprintf("the integer kernel is not used at opset %d", o)
	}
	if k.Clamp != nil && !Redundant(k.Clamp, first(k.Q)) {
		if len(k.Q) == 1 {
			return fmt.Sprintf("the range of the QuantizeLinear reaches beyond the %s in front of it", k.Clamp.Op.Type)
		}
		return fmt.Sprintf("a %s stands behind it, and no QuantizeLinear behind that", k.Clamp.Op.Type)
	}
	if rule.Shape == Blocks {
		return blocks(k)
	}
	if rule.Shape == Convolution || rule.Shape == General {
		k.made()
	}
	// The inputs.
	want, real := 0, 0
	for i, v := range n.Inputs() {
		if v == nil {
			continue
		}
		real++
		needed := true
		switch rule.Shape {
		case Move, MoveIn, MoveAll:
			needed = i == 0
		case Choice:
			needed = i > 0
		}
		c := k.In[i]
		switch is := c.Node != nil || c.Made; {
		case needed && !is:
			return fmt.Sprintf("input %q is not dequantized", v.Name())
		case !needed && is:
			return fmt.Sprintf("input %q is dequantized, which the kernel does not want", v.Name())
		case is:
			want++
		}
	}
	if rule.Shape == Convolution && want < 2 || rule.Shape == Product && want != 2 {
		return "it has too few inputs"
	}
	// The outputs.
	last := n
	if k.Clamp != nil {
		last = k.Clamp
	}
	readers, output := edges(last)
	floatOutput := rule.Shape == Product || rule.Shape == General || rule.Shape == MoveIn
	outputs := 0
	for _, v := range n.Outputs() {
		if v != nil {
			outputs++
		}
	}
	if rule.Shape != MoveIn {
		switch {
		case len(k.Q) == 0 && floatOutput && k.Clamp == nil:
		case len(k.Q) == 0:
			return "no QuantizeLinear reads its output"
		case output:
			return "its output is an output of the graph as well"
		case len(readers) != len(k.Q):
			return "its output is read before it is quantized as well"
		case outputs != len(k.Q):
			return fmt.Sprintf("%d QuantizeLinear read its %d outputs", len(k.Q), outputs)
		}
	}
	if (rule.Shape == Move || rule.Shape == MoveIn || rule.Shape == MoveAll) && k.Clamp != nil {
		return fmt.Sprintf("a %s stands between it and the QuantizeLinear", k.Clamp.Op.Type)
	}
	return r.types(rule, k)
}

func first(q []*graph.Node) *graph.Node {
	if len(q) != 1 {
		return nil
	}
	return q[0]
}

// types returns why the codes do not suit a rule, or "".
func (r *Runtime) types(rule *Rule, k *Group) string {
	var in []Codes
	for _, c := range k.In {
		if c.Node != nil || c.Made {
			in = append(in, c)
		}
	}
	x := r.inType(in[0])
	for i, c := range in {
		t := c.DType
		if i == 0 {
			t = x
		}
		if i == 2 && (rule.Shape == Convolution || rule.Shape == General) {
			continue
		}
		switch bits(t) {
		case 8:
		case 16:
			if !rule.Wide {
				return "the integer kernel takes no 16-bit codes"
			}
		case 4:
			if !rule.Nibbles {
				return "the integer kernel takes no 4-bit codes"
			}
		case 0:
			return fmt.Sprintf("the integer kernel takes no %v", t)
		}
	}
	if rule.Signed && x == tensor.Int8 && !r.SignedActivations {
		return "its activation is int8 and cannot be made uint8 when the model is loaded, since several nodes read the codes"
	}
	for _, q := range k.Q {
		if y := r.outType(q); y != x {
			return fmt.Sprintf("its input is quantized to %v, its output to %v", x, y)
		}
	}
	switch rule.Shape {
	case Variadic, Choice:
		for _, c := range in[1:] {
			if t := r.inType(c); t != x {
				return fmt.Sprintf("its inputs are quantized to %v and %v", x, t)
			}
		}
	case Convolution, Product, General:
		if w := in[1].DType; x == tensor.Int8 && w != x {
			return fmt.Sprintf("%v activations go with weights of the same type, not %v", x, w)
		}
		if len(in) > 2 && in[2].DType != tensor.Int32 {
			return fmt.Sprintf("its bias is %v, not int32", in[2].DType)
		}
		if rule.Shape == General && len(in) > 2 && k.Node.Float("beta", 1) != 1 {
			return fmt.Sprintf("beta is %v, not 1", k.Node.Float("beta", 1))
		}
	case MoveIn:
		if in[0].Zero == nil || !in[0].Scalar() {
			return "its codes have several scales, or no zero point"
		}
	case Move, MoveAll:
		for _, q := range k.Q {
			if why := samePair(in[0], q); why != "" {
				return why
			}
		}
		if s := in[0].Scale.Const; rule.Positive && s.DType() == tensor.Float32 && !(tensor.As[float32](s)[0] > 0) {
			return "its scale is not positive"
		}
	}
	return ""
}

func bits(t tensor.DType) int {
	switch t {
	case tensor.Int8, tensor.Uint8:
		return 8
	case tensor.Int16, tensor.Uint16:
		return 16
	case tensor.Int4, tensor.Uint4:
		return 4
	case tensor.Int2, tensor.Uint2:
		return 2
	case tensor.Int32:
		return 32
	}
	return 0
}

// samePair returns why codes that are moved could not be read with the
// parameters of q, or "".
func samePair(c Codes, q *graph.Node) string {
	s, z := q.Input(1), q.Input(2)
	switch {
	case c.Zero == nil || z == nil:
		return "a zero point is missing, without which the runtime does not compare parameters"
	case !c.Scalar() || !s.IsConst() || !isScalar(s) || !z.IsConst() || !isScalar(z):
		return "its codes do not have one constant scale and zero point"
	case !sameScalar(c.Scale.Const, s.Const) || !sameScalar(c.Zero.Const, z.Const):
		return "its output is quantized with another scale or zero point than its input"
	}
	return ""
}

func sameScalar(a, b *tensor.Tensor) bool {
	return a.DType() == b.DType() && string(a.Bytes()) == string(b.Bytes())
}

// made marks the float constants that the runtime quantizes by itself when it
// loads the model: the weight and the bias of a convolution or Gemm whose
// activation is dequantized, and whose output is quantized.
func (k *Group) made() {
	if len(k.In) < 2 || len(k.Q) != 1 || k.In[0].Node == nil || !isScalar(k.In[0].Scale) {
		return
	}
	n := k.Node
	w := n.Input(1)
	weight := k.In[1].Node != nil
	if !weight && (w == nil || !w.IsConst() || w.Const.DType() != tensor.Float32) {
		return
	}
	channels := -1
	if b := n.Input(2); b != nil && k.In[2].Node == nil {
		if !b.IsConst() || b.Const.Rank() != 1 {
			return
		}
		channels = b.Const.Len()
	}
	if weight && channels < 0 {
		return
	}
	if weight && !isScalar(k.In[1].Scale) {
		dq, data := k.In[1].Node, k.In[1].Data
		if !k.In[1].Scale.IsConst() || k.In[1].Scale.Const.Len() != channels || dq.Int("block_size", 0) != 0 || data.Const == nil {
			return
		}
		axis, want := int(dq.Int("axis", 1)), 0
		if axis < 0 {
			axis += data.Const.Rank()
		}
		if n.Op.Type == "Gemm" && n.Int("transB", 0) == 0 {
			want = 1
		}
		if axis != want {
			return
		}
	}
	if !weight {
		k.In[1] = Codes{Made: true, DType: tensor.Int8}
	}
	if channels >= 0 {
		k.In[2] = Codes{Made: true, DType: tensor.Int32}
	}
}

// Redundant reports whether a Relu or Clip changes nothing that q lets through,
// so that the runtime drops it.
func Redundant(n, q *graph.Node) bool {
	if q == nil {
		return false
	}
	s, z := q.Input(1), q.Input(2)
	if !s.IsConst() || !isScalar(s) || s.Const.DType() != tensor.Float32 || z == nil || !z.IsConst() || !isScalar(z) {
		return false
	}
	qmin, qmax, ok := z.Const.DType().IntRange()
	zero, err := tensor.Int64s(z.Const)
	below, above, clamp := ops.ClampBounds(n)
	if !ok || err != nil || !clamp {
		return false
	}
	scale := float64(tensor.As[float32](s.Const)[0])
	lo, hi := float64(qmin-zero[0])*scale, float64(qmax-zero[0])*scale
	const epsilon = 1.1920929e-7
	if below-lo <= epsilon && hi-above <= epsilon {
		return true
	}
	// The selectors themselves compare in codes, for parameters of rank 0.
	return n.Op.Type == "Clip" && s.Const.Rank() == 0 && z.Const.Rank() == 0 &&
		math.RoundToEven(below/scale)+float64(zero[0]) <= float64(qmin) && math.RoundToEven(above/scale)+float64(zero[0]) >= float64(qmax)
}

// blocks returns why a group does not become a product with a weight in blocks,
// or "".
func blocks(k *Group) string {
	n := k.Node
	if k.Clamp != nil || len(k.Q) > 0 || n.NumInputs() < 2 {
		return "its output is quantized"
	}
	w := k.In[1]
	for i, c := range k.In {
		if i == 0 && c.Node != nil {
			return "its activation is dequantized"
		}
	}
	if w.Node == nil || w.Data.Const == nil || !w.Data.IsConst() || !w.Scale.IsConst() || w.Zero != nil && !w.Zero.IsConst() {
		return "its weight is no constant in codes"
	}
	if b := bits(w.DType); b != 2 && b != 4 && b != 8 || w.Data.Const.Rank() != 2 {
		return fmt.Sprintf("its weight is %v of rank %d", w.DType, w.Data.Const.Rank())
	}
	shape, scale := w.Data.Const.Shape(), w.Scale.Const
	if block := int(w.Node.Int("block_size", 0)); block > 0 {
		if w.Node.Int("axis", 1) != 0 || block < 16 || block&(block-1) != 0 || scale.Rank() != 2 ||
			scale.Shape()[0] != (shape[0]+block-1)/block || scale.Shape()[1] != shape[1] {
			return "its blocks do not run along the inner dimension, or are not a power of two from 16 on"
		}
	} else {
		axis := int(w.Node.Int("axis", 1))
		if scale.Rank() != 0 && !(scale.Rank() == 1 && scale.Len() == shape[1] && axis == 1) {
			return "its scales are neither one, nor one for each output"
		}
	}
	if n.Op.Type == "Gemm" && (n.Float("alpha", 1) != 1 || n.Int("transA", 0) != 0 || n.Int("transB", 0) != 0) {
		return "alpha, transA or transB is not at its default"
	}
	return ""
}
