// Package targets says, as data, what each runtime does with a quantized
// model: which operators it runs on integers, in which arrangement of
// QuantizeLinear and DequantizeLinear, and what that is worth.
package targets

import (
	"fmt"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/quant"
)

// Class is the part that an operator plays in a quantized graph.
type Class string

// Classes of operators.
const (
	// Anchor multiplies activations with a constant weight: the reason to
	// quantize.
	Anchor Class = "anchor"
	// Bridge has an integer kernel that pays only where its inputs are
	// quantized anyway and an integer kernel reads its output.
	Bridge Class = "bridge"
	// Carry moves codes without changing them; input and output share
	// parameters.
	Carry Class = "carry"
	// Table looks rows up in a constant table, which can be stored quantized
	// and dequantized behind the look-up.
	Table Class = "table"
	// Dynamic multiplies activations, quantized as they come, with the codes of
	// a constant weight and gives float32.
	Dynamic Class = "dynamic"
)

// Classes returns the classes of operators.
func Classes() []Class { return []Class{Anchor, Bridge, Carry, Table, Dynamic} }

// Rule is what a target does with one operator.
type Rule struct {
	Op    string `json:"op" yaml:"op"` // in the default domain
	Class Class  `json:"class" yaml:"class"`
	// MinOpset is the operator set from which the rule holds; 0 means any.
	MinOpset int `json:"min_opset,omitempty" yaml:"min_opset,omitempty"`
	// FloatOutput says that the integer kernel can give its result in float32,
	// so that the output needs no QuantizeLinear.
	FloatOutput bool `json:"float_output,omitempty" yaml:"float_output,omitempty"`
	// CodesToo says that a kernel with FloatOutput gives codes to a Bridge just
	// as well.
	CodesToo bool `json:"codes_too,omitempty" yaml:"codes_too,omitempty"`
	// Absorbs lists the activations behind the operator that the clamp of the
	// following QuantizeLinear replaces.
	Absorbs []string `json:"absorbs,omitempty" yaml:"absorbs,omitempty"`
	// Hoist says that a Carry keeps the number of elements, so that quantizing
	// before it costs no more than behind it.
	Hoist bool `json:"hoist,omitempty" yaml:"hoist,omitempty"`
	// Attrs are attribute values that the kernel needs; absent attributes count
	// as their default given here.
	Attrs []AttrRule `json:"attributes,omitempty" yaml:"attributes,omitempty"`
	// BothSides says that the weight may be an activation as well.
	BothSides bool `json:"both_sides,omitempty" yaml:"both_sides,omitempty"`
	// FewBits says that the kernel takes weights of fewer than 8 bits too, of the
	// types that Target.Weights lists; others then take the first of 8 bits there.
	FewBits bool `json:"few_bits,omitempty" yaml:"few_bits,omitempty"`
	// Types lists the storage types of activations that the rule is for; none stands
	// for all integers.
	Types []string `json:"types,omitempty" yaml:"types,omitempty"`
	// Channels divides the numbers of input and output channels of the weight, those
	// of a group, and Places bounds the places of a kernel of a Conv; 0 demands nothing.
	Channels int `json:"channels,omitempty" yaml:"channels,omitempty"`
	Places   int `json:"places,omitempty" yaml:"places,omitempty"`
	// MinRank is the least rank of the first input; 0 demands nothing.
	MinRank int `json:"min_rank,omitempty" yaml:"min_rank,omitempty"`
	// Slow says that the integer kernel is slower than the float one, so that
	// it is taken only where the user names the node.
	Slow bool `json:"slow,omitempty" yaml:"slow,omitempty"`
}

// AttrRule demands that a numeric attribute has a value, which is also its
// default.
type AttrRule struct {
	Name  string  `json:"name" yaml:"name"`
	Value float64 `json:"value" yaml:"value"`
}

// Target is a runtime and what it can do.
type Target struct {
	Name    string   `json:"name" yaml:"name"`
	Title   string   `json:"title" yaml:"title"`
	Sources []string `json:"sources" yaml:"sources"` // where the facts come from
	// Activations and Weights are the storage types that its kernels take, the
	// preferred one first; a leading activation type of u8 goes with signed
	// weights, and f8e4m3 with its like. Weights of fewer than 8 bits are taken by the rules that say so.
	Activations []string `json:"activations" yaml:"activations"`
	Weights     []string `json:"weights" yaml:"weights"`
	// Floats are the 16-bit float types that it computes in: f16, bf16.
	Floats []string `json:"floats,omitempty" yaml:"floats,omitempty"`
	// SymmetricActivations says that zero points of activations are 0.
	SymmetricActivations bool `json:"symmetric_activations,omitempty" yaml:"symmetric_activations,omitempty"`
	// FloatBias says that biases are float32: they are not stored as int32.
	FloatBias bool `json:"float_bias,omitempty" yaml:"float_bias,omitempty"`
	// Whole says that what computes on floats leaves the processor, so that
	// every Bridge and Carry is quantized, whatever its neighbours, and constants
	// that it reads as well.
	Whole bool `json:"whole,omitempty" yaml:"whole,omitempty"`
	// PerChannelOpset is the operator set from which per-axis
	// DequantizeLinear exists; PerTensorOpset likewise for per tensor.
	PerTensorOpset  int `json:"per_tensor_opset" yaml:"per_tensor_opset"`
	PerChannelOpset int `json:"per_channel_opset" yaml:"per_channel_opset"`
	// WideOpset is the operator set from which QuantizeLinear and
	// DequantizeLinear have 16 and 4 bits; below, where MSDomain says so, those of
	// the domain com.microsoft have.
	WideOpset int  `json:"wide_opset,omitempty" yaml:"wide_opset,omitempty"`
	MSDomain  bool `json:"ms_domain,omitempty" yaml:"ms_domain,omitempty"`
	// MaxOpset is the newest operator set whose QuantizeLinear it runs.
	MaxOpset int `json:"max_opset" yaml:"max_opset"`
	// PairSums says that on some of its processors kernels for u8 activations and
	// i8 weights add products in pairs in 16 bits, which saturates where weights
	// and activations are large together.
	PairSums bool `json:"pair_sums,omitempty" yaml:"pair_sums,omitempty"`
	// Pins lists the operators that the runtime moves a QuantizeLinear before,
	// although they run slower on codes: where they are to stay float, a Clip to
	// the range of the codes, which the runtime drops later, keeps it in place.
	Pins []string `json:"pins,omitempty" yaml:"pins,omitempty"`
	// Requantizes lists the operators whose weights the runtime quantizes by itself,
	// with one scale for all, where the input comes from a DequantizeLinear with one
	// scale and the output goes to a QuantizeLinear: where they are to stay float, a
	// DequantizeLinear with a scale for each channel keeps it from that.
	Requantizes []string `json:"requantizes,omitempty" yaml:"requantizes,omitempty"`
	// Propagates lists the operators that the runtime moves a DequantizeLinear behind,
	// which fails where a nested graph reads what they give: there the
	// DequantizeLinear has a scale for each channel, which the runtime leaves alone.
	Propagates []string `json:"propagates,omitempty" yaml:"propagates,omitempty"`
	// TakesBatch lists the products that the runtime takes a Transpose of the first
	// axis into, which fails to load in 16-bit floats: that Transpose stays float32.
	TakesBatch []string `json:"takes_batch,omitempty" yaml:"takes_batch,omitempty"`
	// Fusion names the rules by which the runtime replaces groups of
	// DequantizeLinear, operator and QuantizeLinear by integer kernels; see
	// qdq.Lint. "" means that each operator of Rules stands for itself.
	Fusion string `json:"fusion,omitempty" yaml:"fusion,omitempty"`
	// Costs are what parts of a model take on each kind of processor that it may
	// meet; none where that is not known.
	Costs []Cost `json:"costs,omitempty" yaml:"costs,omitempty"`
	Rules []Rule `json:"rules" yaml:"rules"`
	// Forms are those of the weights of nodes that compute in float, the
	// preferred one first; Refusals say why others are not taken.
	Forms    []Form    `json:"forms,omitempty" yaml:"forms,omitempty"`
	Refusals []Refusal `json:"refusals,omitempty" yaml:"refusals,omitempty"`
}

// RulesFor returns the rules for n in order of preference.
func (t *Target) RulesFor(n *graph.Node) []*Rule {
	if n.Op.Domain != graph.OnnxDomain {
		return nil
	}
	var out []*Rule
	for i := range t.Rules {
		if t.Rules[i].Op == n.Op.Type {
			out = append(out, &t.Rules[i])
		}
	}
	return out
}

// For reports whether r is for activations of the given storage type.
func (r *Rule) For(activations string) bool {
	if len(r.Types) == 0 {
		t, err := Type(activations)
		return err == nil && !t.Real()
	}
	return slices.Contains(r.Types, activations)
}

// Check returns why r does not hold for n, or "".
func (r *Rule) Check(t *Target, n *graph.Node) string {
	if n.Opset() < r.MinOpset {
		return fmt.Sprintf("%s runs %s on integers from opset %d on, this is %d", t.Name, r.Op, r.MinOpset, n.Opset())
	}
	for _, a := range r.Attrs {
		got := a.Value
		if x := n.Attr(a.Name); x != nil {
			switch x.Kind {
			case graph.AttrInt:
				got = float64(x.I)
			case graph.AttrFloat:
				got = float64(x.F)
			}
		}
		if got != a.Value {
			return fmt.Sprintf("the integer kernel of %s needs %s = %v, this is %v", t.Name, a.Name, a.Value, got)
		}
	}
	if x := n.Input(0); x != nil && x.Type.Shape != nil && len(x.Type.Shape) < r.MinRank {
		return fmt.Sprintf("%s runs %s on integers for inputs of rank %d and more, this has %d", t.Name, r.Op, r.MinRank, len(x.Type.Shape))
	}
	if w := n.Input(1); w != nil && w.Const != nil && w.Const.Rank() >= 2 && (r.Channels > 0 || r.Places > 0) {
		shape := w.Const.Shape()
		if c := r.Channels; c > 0 && (shape[0]%c != 0 || shape[1]%c != 0) {
			return fmt.Sprintf("the kernel of %s for %s wants multiples of %d channels, this has %d and %d", t.Name, r.Op, c, shape[0], shape[1])
		}
		places := 1
		for _, d := range shape[2:] {
			places *= d
		}
		if r.Places > 0 && places > r.Places {
			return fmt.Sprintf("the kernel of %s for %s has at most %d places, this has %d", t.Name, r.Op, r.Places, places)
		}
	}
	return ""
}

// types are the storage types that kernels of some target take.
var types = []quant.Type{quant.U8, quant.I8, quant.U16, quant.I16, quant.I4, quant.F8E4M3}

// Type returns the storage type of the given name: u8, i8, u16, i16, i4 or
// f8e4m3.
func Type(name string) (quant.Type, error) {
	for _, t := range types {
		if t.Name == name {
			return t, nil
		}
	}
	return quant.Type{}, fmt.Errorf("unknown storage type %q", name)
}

// WideWeight returns the storage type of weights for kernels that do not take the
// few bits of the given one: that type if it has 8 bits, or the first of Weights
// that has.
func (t *Target) WideWeight(name string) quant.Type {
	for _, n := range append([]string{name}, t.Weights...) {
		if typ, err := Type(n); err == nil && typ.DType.Bits() == 8 && !(n != name && typ.Real()) {
			return typ
		}
	}
	return quant.I8 // check wants one of 8 bits
}

// All returns the built-in targets.
func All() []*Target { return slices.Clone(presets) }

// Get returns the built-in target of the given name.
func Get(name string) (*Target, error) {
	var names []string
	for _, t := range presets {
		if t.Name == name {
			return t, nil
		}
		names = append(names, t.Name)
	}
	return nil, fmt.Errorf("unknown target %q; known are: %s", name, strings.Join(names, ", "))
}
