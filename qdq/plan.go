// Package qdq decides which nodes of a model compute on integers and edits the
// model accordingly.
//
// Annotate looks at a model and a target and makes a Plan: for every node
// whether it is quantized or why it stays float, and for every tensor that
// gets QuantizeLinear/DequantizeLinear its scheme. A Plan can be written,
// edited and read back. Resolve turns calibrated ranges into parameters, and
// Rewrite inserts the nodes without deciding anything.
package qdq

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// PlanVersion is the version of the JSON form of a Plan.
const PlanVersion = 1

// Plan is what is to be done to a model.
type Plan struct {
	Format  string       `json:"format"` // "onnxq-plan"
	Version int          `json:"version"`
	Target  string       `json:"target"`
	Mode    string       `json:"mode"`
	Nodes   []NodePlan   `json:"nodes"`
	Tensors []TensorPlan `json:"tensors"`
}

// NodePlan is the decision about one node. Every node of every scope has one.
type NodePlan struct {
	Scope     string `json:"scope"`
	Node      string `json:"node"` // as graph.Node.Label
	Op        string `json:"op"`
	Quantized bool   `json:"quantized"`
	// How says what becomes of a quantized node.
	How How `json:"how,omitempty"`
	// Why says why a node stays float.
	Why string `json:"why,omitempty"`
	// Guard gives the DequantizeLinear before a node that stays float a scale for each
	// channel, for runtimes that would quantize it; see targets.Target.Requantizes.
	Guard bool `json:"guard,omitempty"`
}

// Count returns how many nodes stay float for the given reason.
func (p *Plan) Count(why string) int {
	n := 0
	for i := range p.Nodes {
		if e := &p.Nodes[i]; !e.Quantized && e.Why == why {
			n++
		}
	}
	return n
}

// How is what becomes of a quantized node.
type How string

// What becomes of a quantized node.
const (
	Integer     How = "integer"      // runs on integers and gives integers
	FloatOutput How = "float-output" // runs on integers and gives float32
	Absorbed    How = "absorbed"     // replaced by the clamp of the QuantizeLinear behind it
	Lookup      How = "lookup"       // looks up codes, dequantized behind it
	Half        How = "float16"      // computes in float16
	Brain       How = "bfloat16"     // computes in bfloat16
	Dynamic     How = "dynamic"      // multiplies its input, quantized as it comes, with codes and gives float32
	DynamicRows How = "dynamic-rows" // the same, with a scale for each row (token) of the input
)

// IsDynamic reports whether a node quantizes its input as it comes.
func (h How) IsDynamic() bool { return h == Dynamic || h == DynamicRows }

// Kind is what a planned tensor is.
type Kind string

// Kinds of planned tensors.
const (
	Activation Kind = "activation"
	Weight     Kind = "weight"
	Bias       Kind = "bias"
)

// Types of 16-bit floats. Of these, TensorPlan has Float16 alone without a form.
const (
	Float16  = "f16"
	BFloat16 = "bf16"
)

// TensorPlan is the scheme of one tensor.
type TensorPlan struct {
	Scope  string `json:"scope"`
	Tensor string `json:"tensor"`
	Kind   Kind   `json:"kind"`
	Type   string `json:"type"` // storage type, such as "u8"; "f16" is float16, for AtLoad only
	// AtLoad marks a weight of nodes that stay float: it is stored in Type and
	// turned into float32 by Cast and, unless it is float16, Mul, which
	// runtimes compute once, when they load the model.
	AtLoad bool `json:"at_load,omitempty"`
	// Decoded says of a weight of integer kernels that nodes which stay float read its
	// codes as well, decoded like those of AtLoad.
	Decoded bool `json:"decoded,omitempty"`
	// Form, if given, is how a weight that is AtLoad is stored in blocks along
	// Axis: Type, Block (0: a scale for each line), Zero, ScaleType and Fit are
	// as in quant.Blocks.
	Form      targets.FormName `json:"form,omitempty"`
	Block     int              `json:"block,omitempty"`
	Zero      string           `json:"zero,omitempty"`
	ScaleType string           `json:"scale_type,omitempty"`
	Fit       string           `json:"fit,omitempty"`
	// Flat says that lines take in all axes from Axis on, Whole that there is
	// one for the tensor.
	Flat  bool `json:"flat,omitempty"`
	Whole bool `json:"whole,omitempty"`
	// Symmetric means zero point 0.
	Symmetric bool `json:"symmetric,omitempty"`
	// Reduced leaves out a bit of the codes, which keeps 16-bit sums of two
	// products within bounds; PowerOfTwo rounds scales up to powers of two.
	Reduced    bool `json:"reduced,omitempty"`
	PowerOfTwo bool `json:"power_of_two,omitempty"`
	// Axis has parameters of its own for each slice; -1 is per tensor.
	Axis int `json:"axis"`
	// SameAs names the tensor of the same scope whose parameters this one
	// shares; its range then counts among theirs.
	SameAs string `json:"same_as,omitempty"`
	// Pin puts a Clip to the range of the codes before the QuantizeLinear, for
	// runtimes that would move it; see targets.Target.Pins.
	Pin bool `json:"pin,omitempty"`
	// Each gives nodes that stay float a DequantizeLinear with a scale for each
	// channel; see targets.Target.Propagates.
	Each bool `json:"each,omitempty"`
	// Range, if given, is used instead of a calibrated one.
	Range *[2]float64 `json:"range,omitempty"`
}

// Quantized returns the number of nodes that are quantized.
func (p *Plan) Quantized() int {
	n := 0
	for i := range p.Nodes {
		if p.Nodes[i].Quantized {
			n++
		}
	}
	return n
}

// Values returns the values of m that p.Tensors names, in that order.
func (p *Plan) Values(m *graph.Model) ([]*graph.Value, error) {
	b, err := p.bind(m)
	if err != nil {
		return nil, err
	}
	return b.values, nil
}

// Empty reports whether the plan changes nothing.
func (p *Plan) Empty() bool {
	for i := range p.Nodes {
		if p.Nodes[i].Quantized && p.Nodes[i].How != Kept {
			return false
		}
	}
	return len(p.Tensors) == 0
}

// Drop makes p a plan that changes nothing; why is the reason of the nodes that
// it would have quantized.
func (p *Plan) Drop(why string) {
	for i := range p.Nodes {
		if e := &p.Nodes[i]; e.Quantized && e.How != Kept {
			e.Quantized, e.How, e.Why = false, "", why
		}
	}
	p.Tensors = nil
}

// Write writes the plan as JSON.
func (p *Plan) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	enc.SetEscapeHTML(false)
	return enc.Encode(p)
}

// ReadPlan reads the JSON form of a plan.
func ReadPlan(r io.Reader) (*Plan, error) {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	p := &Plan{}
	if err := dec.Decode(p); err != nil {
		return nil, fmt.Errorf("not a plan: %w", err)
	}
	if p.Format != "onnxq-plan" || p.Version != PlanVersion {
		return nil, fmt.Errorf("not a plan that this version reads: format %q version %d, want \"onnxq-plan\" version %d", p.Format, p.Version, PlanVersion)
	}
	return p, nil
}

// bound is a plan whose names have been resolved in a model.
type bound struct {
	plan    *Plan
	nodes   []*NodePlan   // by node ID
	tensors []*TensorPlan // by value ID
	values  []*graph.Value
}

type nameKey struct{ scope, name string }

// bind finds the nodes and values that the plan names. Where several nodes of
// a scope have one label, the plan lists them in graph order.
func (p *Plan) bind(m *graph.Model) (*bound, error) {
	b := &bound{
		plan:    p,
		nodes:   make([]*NodePlan, m.NumNodes()),
		tensors: make([]*TensorPlan, m.NumValues()),
	}
	entries := map[nameKey][]*NodePlan{}
	for i := range p.Nodes {
		e := &p.Nodes[i]
		k := nameKey{e.Scope, e.Node}
		entries[k] = append(entries[k], e)
	}
	values := map[nameKey]*graph.Value{}
	for g := range m.Scopes() {
		scope := g.Scope()
		for _, v := range g.Inputs() {
			values[nameKey{scope, v.Name()}] = v
		}
		for _, v := range g.Initializers() {
			values[nameKey{scope, v.Name()}] = v
		}
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				if v != nil {
					values[nameKey{scope, v.Name()}] = v
				}
			}
			k := nameKey{scope, n.Label()}
			list := entries[k]
			if len(list) == 0 {
				return nil, n.Errorf("plan", "the plan has no entry for this node; was it made from another model?")
			}
			e := list[0]
			entries[k] = list[1:]
			if e.Op != n.Op.String() {
				return nil, n.Errorf("plan", "the plan has operator %q here", e.Op)
			}
			b.nodes[n.ID] = e
		}
	}
	for i := range p.Nodes {
		e := &p.Nodes[i]
		if len(entries[nameKey{e.Scope, e.Node}]) > 0 {
			return nil, &graph.Error{Stage: "plan", Scope: e.Scope, Node: e.Node, Op: e.Op, Err: errors.New("the model has no such node")}
		}
	}
	for i := range p.Tensors {
		e := &p.Tensors[i]
		v := values[nameKey{e.Scope, e.Tensor}]
		if v == nil {
			return nil, &graph.Error{Stage: "plan", Scope: e.Scope, Value: e.Tensor, Err: errors.New("the model has no such tensor")}
		}
		if err := e.check(v); err != nil {
			return nil, &graph.Error{Stage: "plan", Scope: e.Scope, Value: e.Tensor, Err: err}
		}
		b.tensors[v.ID] = e
		b.values = append(b.values, v)
	}
	return b, nil
}

// Int8 reports whether the node multiplies codes.
func (e *NodePlan) Int8() bool { return e.How == Integer || e.How == FloatOutput || e.How.IsDynamic() }

// check returns why v cannot be what e says, which may have been edited.
func (e *TensorPlan) check(v *graph.Value) error {
	switch e.Kind {
	case Activation:
		if v.IsConst() || v.Type.Elem != tensor.Float32 {
			return errors.New("the plan takes it for an activation, but it is constant or not float")
		}
		if e.Axis != -1 {
			return fmt.Errorf("activations have one scale for all elements, the plan has axis %d", e.Axis)
		}
		if t, err := targets.Type(e.Type); err == nil && t.DType.Bits() < 8 {
			return fmt.Errorf("activations have 8 or 16 bits, the plan has %s", e.Type)
		}
	case Weight, Bias:
		if e.Form != "" && v.IsConst() && e.Axis >= 0 && e.Axis < v.Const.Rank() {
			return e.checkForm(v)
		}
		if !v.IsConst() || v.Const.DType() != tensor.Float32 || e.Form != "" {
			return fmt.Errorf("the plan takes it for a %s, but it is no float constant", e.Kind)
		}
		if e.Axis < -1 || e.Axis >= v.Const.Rank() {
			return fmt.Errorf("the plan has axis %d for rank %d", e.Axis, v.Const.Rank())
		}
		if e.AtLoad && e.Kind == Bias {
			return errors.New("only weights can be decoded at load")
		}
		if e.Decoded && (e.Kind == Bias || e.AtLoad || !e.Symmetric) {
			return errors.New("only symmetric weights of integer kernels can be decoded besides")
		}
		if e.Type == Float16 && !e.AtLoad {
			return errors.New("integer kernels read no float16; nodes that stay float do, at_load")
		}
		if t, err := targets.Type(e.Type); err == nil && (t.DType.Bits() != 8 || t.Real()) && e.AtLoad {
			return fmt.Errorf("weights in %s that are decoded at load want a form", e.Type)
		}
		return nil
	default:
		return fmt.Errorf("kind %q is none of %s, %s, %s", e.Kind, Activation, Weight, Bias)
	}
	if e.AtLoad || e.Decoded || e.Type == Float16 {
		return errors.New("only weights can be decoded at load")
	}
	return nil
}
