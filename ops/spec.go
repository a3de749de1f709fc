// Package ops is the operator table: for every ONNX operator that onnxq
// understands one Spec that says what its ports mean to a quantizer, how its
// output types follow from its input types, and how it is computed.
//
// An operator that is not in the table is opaque: it is kept as it is, and
// whoever looks it up says so.
package ops

import (
	"sync"

	"github.com/onnxq/onnxq/graph"
)

// Role is what a port of an operator means to quantization.
type Role uint8

// Roles of ports.
const (
	Ignore     Role = iota // not quantized: conditions, sizes, scales, …
	Activation             // data that flows through the network
	Weight                 // multiplied with an activation, usually constant
	Bias                   // added to a product of activation and weight
	Index                  // integers that address or shape other data
	State                  // carried from step to step by a recurrent operator
)

// Flow is how the values of an operator's outputs relate to those of its
// activations.
type Flow uint8

// Flows.
const (
	Opaque   Flow = iota // unknown: never quantized
	Compute              // new values; the range of the output must be observed
	Pass                 // a selection or rearrangement of the input's values: same range, same parameters
	Join                 // values of several inputs side by side: one set of parameters serves all
	Fixed                // the output lies in Spec.Range whatever the input
	Integers             // no real values on any port (shapes, indices, conditions)
)

var flowNames = [...]string{"opaque", "compute", "pass", "join", "fixed", "integers"}

// String returns the flow's name in lower case.
func (f Flow) String() string { return flowNames[f] }

// Port is an input or output of an operator.
type Port struct {
	Name     string
	Role     Role
	Optional bool
	Variadic bool // the last port, any number of times
	// Axis is the axis of a Weight that runs over the operator's output
	// channels; negative counts from the end. See Spec.WeightAxis for the cases
	// in which attributes change it.
	Axis int
}

// AttrSpec declares an attribute.
type AttrSpec struct {
	Name     string
	Kind     graph.AttrKind
	Required bool
}

// Spec describes one operator in all versions of its operator set.
type Spec struct {
	Domain, Type string
	// Since is the lowest operator set version that the functions below
	// handle; they look at the site's version where versions differ.
	Since int
	Flow  Flow
	// Pure says that equal inputs give equal outputs, so that constant inputs
	// allow folding.
	Pure    bool
	In, Out []Port
	Attrs   []AttrSpec
	// Range bounds the output of a Fixed operator.
	Range func(n *graph.Node) (lo, hi float32)
	// FlowOf overrides Flow where attributes of the node matter.
	FlowOf func(n *graph.Node) Flow
	// WeightAxis overrides the Axis of weight port i where attributes of the
	// node matter.
	WeightAxis func(n *graph.Node, i int) int
	// Infer finds the output types. Missing knowledge about inputs is not an
	// error; a contradiction is.
	Infer func(*Inference) error
	// Compile binds a node to its attributes and constant inputs and returns
	// the function that computes it; nil means that the embedded executor
	// cannot run the operator.
	Compile func(*Site) (Kernel, error)
}

// lists is the table in order and by operator. It has no initializer: specs
// refer to functions that look operators up.
var lists struct {
	once sync.Once
	all  []*Spec
	byOp map[graph.OpKey]*Spec
}

func fillLists() {
	lists.byOp = map[graph.OpKey]*Spec{}
	for _, family := range families() {
		for i := range family {
			s := &family[i]
			lists.all = append(lists.all, s)
			lists.byOp[graph.OpKey{Domain: s.Domain, Type: s.Type}] = s
		}
	}
}

func table() map[graph.OpKey]*Spec {
	lists.once.Do(fillLists)
	return lists.byOp
}

// All returns every operator of the table, family by family. The result must
// not be changed.
func All() []*Spec {
	lists.once.Do(fillLists)
	return lists.all
}

// families lists the parts of the table.
func families() [][]Spec {
	return [][]Spec{
		elementwiseSpecs(),
		reduceSpecs(),
		softmaxSpecs(),
		einsumSpecs(),
		normSpecs(),
		geluSpecs(),
		convSpecs(),
		poolSpecs(),
		matmulSpecs(),
		shapeSpecs(),
		moveSpecs(),
		indexSpecs(),
		quantizeSpecs(),
		rnnSpecs(),
		resizeSpecs(),
		controlSpecs(),
		sequenceSpecs(),
		textSpecs(),
		qlinearSpecs(),
		qelementSpecs(),
		attentionSpecs(),
		visionSpecs(),
		signalSpecs(),
		randomSpecs(),
		mlSpecs(),
		mapSpecs(),
		nbitsSpecs(),
		deformSpecs(),
		msAttentionSpecs(),
		linearSpecs(),
		flexSpecs(),
		detSpecs(),
		embedSpecs(),
		bnb4Specs(),
	}
}

// Lookup returns the operator that n applies, or nil if it is not in the
// table, stands at a version below Spec.Since, or is shadowed by a local
// function of the model.
func Lookup(n *graph.Node) *Spec {
	s := table()[graph.OpKey{Domain: n.Op.Domain, Type: n.Op.Type}]
	if s == nil {
		return nil
	}
	g := n.Graph()
	if len(g.Model().Functions) > 0 && g.Model().Function(n.Op) != nil {
		return nil
	}
	if n.Op.Domain == graph.OnnxDomain && g.Opset(n.Op.Domain) < s.Since {
		return nil
	}
	return s
}

// FlowAt returns the flow of node n.
func (s *Spec) FlowAt(n *graph.Node) Flow {
	if s.FlowOf != nil {
		return s.FlowOf(n)
	}
	return s.Flow
}

// Check reports what n lacks to be an application of the operator: required
// inputs and attributes, attributes of the declared kinds, no more outputs
// than there are ports. Further inputs (see Fusion) and attributes are left to
// whoever knows them.
func (s *Spec) Check(n *graph.Node) error {
	for i, p := range s.In {
		if !p.Optional && n.Input(i) == nil {
			return n.Errorf("check", "input %d (%s) is missing", i, p.Name)
		}
	}
	for i := len(s.In); i < n.NumInputs(); i++ {
		if p, ok := s.InPort(i); ok && !p.Optional && n.Input(i) == nil {
			return n.Errorf("check", "input %d (%s) is missing", i, p.Name)
		}
	}
	if len(n.Outputs()) == 0 && len(s.Out) > 0 {
		return n.Errorf("check", "no outputs")
	}
	for i := range n.Outputs() {
		if _, ok := s.OutPort(i); !ok {
			return n.Errorf("check", "%d outputs, the operator has %d", len(n.Outputs()), len(s.Out))
		}
	}
	for _, a := range s.Attrs {
		switch got := n.Attr(a.Name); {
		case got == nil && a.Required:
			return n.Errorf("check", "attribute %s is missing", a.Name)
		case got != nil && got.RefName == "" && got.Kind != a.Kind:
			return n.Errorf("check", "attribute %s is of kind %d, want %d", a.Name, got.Kind, a.Kind)
		}
	}
	return nil
}

// InPort returns the port of input i, honouring a variadic last port, and
// whether there is one.
func (s *Spec) InPort(i int) (Port, bool) { return port(s.In, i) }

// OutPort returns the port of output i, honouring a variadic last port, and
// whether there is one.
func (s *Spec) OutPort(i int) (Port, bool) { return port(s.Out, i) }

func port(ports []Port, i int) (Port, bool) {
	switch n := len(ports); {
	case i < n:
		return ports[i], true
	case n > 0 && ports[n-1].Variadic:
		return ports[n-1], true
	}
	return Port{}, false
}

// Axis returns the output-channel axis of weight port i of n, in [0, rank), or
// -1 if the port is none or the rank does not have it.
func (s *Spec) Axis(n *graph.Node, i, rank int) int {
	p, ok := s.InPort(i)
	if !ok || p.Role != Weight {
		return -1
	}
	axis := p.Axis
	if s.WeightAxis != nil {
		axis = s.WeightAxis(n, i)
	}
	if axis < 0 {
		axis += rank
	}
	if axis < 0 || axis >= rank {
		return -1
	}
	return axis
}
