// Package validate decides whether a model is one that ONNX Runtime would
// load: operators that exist at the imported version, their inputs, outputs,
// attributes and types, and declared types that agree with what follows from
// the nodes. Package onnxfile has checked everything that concerns the file
// before, graph.Model.Verify the use of names.
//
// What the operators of the domains ai.onnx, ai.onnx.ml and com.microsoft take
// stands in schemas.txt, which schemas.py writes from the definitions that
// ONNX Runtime registers.
package validate

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Versions that ONNX Runtime 1.32 reads.
const (
	MaxIR = 14 // IR version
	MinIR = 1
)

// maxOpset is the highest version of each domain.
var maxOpset = map[string]int64{graph.OnnxDomain: 28, mlDomain: 5, msDomain: 1}

const (
	mlDomain = "ai.onnx.ml"
	msDomain = "com.microsoft"
)

// opaque are domains of operators that exist without being described here:
// runtime internals, training, and the operators of onnxruntime-extensions.
var opaque = []string{"com.microsoft.nchwc", "com.ms.internal.nhwc", "com.microsoft.experimental", "ai.onnx.preview", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.contrib"}

// Options change what Model accepts. The zero value is the default.
type Options struct {
	// Domains are those of custom operators, which are taken as they are.
	Domains []string
}

// Model reports the first thing that is wrong with m as a *graph.Error, or
// nil. The model is not changed; what it takes grows linearly with nodes and
// attributes, not with tensors.
func Model(m *graph.Model, o Options) error {
	if m.IRVersion < MinIR || m.IRVersion > MaxIR {
		return fmt.Errorf("IR version %d is not known, want %d to %d", m.IRVersion, MinIR, MaxIR)
	}
	for _, s := range m.Opsets {
		d := graph.NormalDomain(s.Domain)
		if limit, ok := maxOpset[d]; ok && s.Version > limit {
			return fmt.Errorf("operator set %s %d is not known, the highest is %d", domainName(d), s.Version, limit)
		}
	}
	if len(m.Graph.Outputs()) == 0 {
		return errors.New("the model has no outputs")
	}
	c := &checker{domains: append(slices.Clone(opaque), o.Domains...)}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if err := c.node(n); err != nil {
				return err
			}
		}
	}
	return types(m)
}

type checker struct{ domains []string }

func (c *checker) node(n *graph.Node) error {
	if strings.ContainsFunc(n.Op.String(), unicode.IsControl) {
		return n.Errorf("check", "the operator's name holds control characters")
	}
	for _, a := range n.Attrs {
		if a.NoType && a.RefName == "" {
			return n.Errorf("check", "attribute %s has no type", strconv.Quote(a.Name))
		}
	}
	if f := n.Graph().Model().Function(n.Op); f != nil {
		if len(n.Inputs()) > len(f.Body.Inputs()) || len(n.Outputs()) > len(f.Body.Outputs()) {
			return n.Errorf("check", "%d inputs and %d outputs, the function has %d and %d", len(n.Inputs()), len(n.Outputs()), len(f.Body.Inputs()), len(f.Body.Outputs()))
		}
		return nil
	}
	s := find(n)
	if s == nil {
		d := n.Op.Domain
		if _, described := maxOpset[d]; !described {
			if slices.Contains(c.domains, d) {
				return nil
			}
			return n.Errorf("check", "%s is neither an operator of a known domain nor a local function of the model (custom operators: --custom-domain)", strconv.Quote(d+"."+n.Op.Type))
		}
		return n.Errorf("check", "%s has no operator %s at version %d", domainName(d), strconv.Quote(n.Op.Type), n.Opset())
	}
	if s.deprecated {
		return n.Errorf("check", "the operator is no longer part of operator set %d", n.Opset())
	}
	if err := arity("input", len(n.Inputs()), s.minIn, s.maxIn); err != nil {
		return graph.NodeError("check", n, err)
	}
	if err := arity("output", len(n.Outputs()), s.minOut, s.maxOut); err != nil {
		return graph.NodeError("check", n, err)
	}
	for i, v := range n.Inputs() {
		if p := s.in.at(i); v == nil && p != nil && p.required() {
			return n.Errorf("check", "input %d is missing", i)
		}
	}
	for _, a := range n.Attrs {
		want, ok := s.attrs[a.Name]
		switch {
		case ok && a.RefName == "" && a.Kind != want.kind:
			return n.Errorf("check", "attribute %s is of kind %d, want %d", strconv.Quote(a.Name), a.Kind, want.kind)
		case !ok && !strings.HasPrefix(a.Name, "__"):
			return n.Errorf("check", "the operator has no attribute %s at version %d", strconv.Quote(a.Name), n.Opset())
		}
	}
	for _, name := range s.required {
		if n.Attr(name) == nil {
			return n.Errorf("check", "attribute %s is missing", name)
		}
	}
	return nil
}

func arity(what string, n, lo, hi int) error {
	switch {
	case n < lo:
		return fmt.Errorf("%d %ss, want at least %d", n, what, lo)
	case hi >= 0 && n > hi:
		return fmt.Errorf("%d %ss, want at most %d", n, what, hi)
	}
	return nil
}

func domainName(d string) string {
	if d == graph.OnnxDomain {
		return "ai.onnx"
	}
	return strings.Trim(strconv.Quote(d), `"`)
}

// types infers the types of a copy of m from its inputs and constants alone,
// holds them against the operators' constraints, and against what m declares.
func types(m *graph.Model) error {
	for g := range m.Scopes() {
		for _, list := range [][]*graph.Value{g.Inputs(), g.Outputs(), g.ValueInfo} {
			for _, v := range list {
				if v.Graph() != nil && v.Type.Kind != graph.KindUnknown && !whole(v.Type) {
					return graph.ValueError("check", v, errors.New("its declared type does not say of what elements"))
				}
			}
		}
	}
	c := m.Clone()
	declared := make([]graph.Type, m.NumValues())
	for g := range c.Scopes() {
		if inFunction(g) {
			continue
		}
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				if v != nil {
					declared[v.ID] = v.Type
					if find(n) != nil {
						v.Type = graph.Type{}
					}
				}
			}
		}
		for _, v := range g.Inputs() {
			if v.Const != nil && v.Type.Kind == graph.KindTensor && v.Type.Elem != tensor.Undefined && v.Type.Elem != v.Const.DType() {
				return graph.ValueError("check", v, fmt.Errorf("declared as %v, but the initializer is of type %v", v.Type, v.Const.DType()))
			}
		}
	}
	if _, err := ops.Infer(c); err != nil {
		return err
	}
	for g := range c.Scopes() {
		if inFunction(g) {
			continue
		}
		for n := range g.Nodes() {
			if s := find(n); s != nil && c.Function(n.Op) == nil {
				if err := s.types(n); err != nil {
					return graph.NodeError("check", n, err)
				}
			}
			for _, v := range n.Outputs() {
				if v == nil {
					continue
				}
				a, b := typeName(declared[v.ID]), typeName(v.Type)
				if a != "" && b != "" && a != b {
					return graph.ValueError("check", v, fmt.Errorf("declared as %s, but computed as %s", a, b))
				}
			}
		}
	}
	return nil
}

func inFunction(g *graph.Graph) bool {
	for g.Outer() != nil {
		g = g.Outer()
	}
	return g.Function() != nil
}

// types holds the types of n's inputs against the schema, and states those of
// outputs that nothing is known about.
func (s *schema) types(n *graph.Node) error {
	bound := map[string]string{}
	for i, v := range n.Inputs() {
		p := s.in.at(i)
		if v == nil || p == nil {
			continue
		}
		name := typeName(v.Type)
		if name == "" {
			continue
		}
		allowed, variable := s.vars[p.typ]
		switch {
		case !variable && p.typ != name:
			return fmt.Errorf("input %d (%s) is %s, want %s", i, strconv.Quote(v.Name()), name, p.typ)
		case variable && !allowed[name]:
			return fmt.Errorf("input %d (%s) is %s, which the operator does not take at version %d", i, strconv.Quote(v.Name()), name, n.Opset())
		case variable && !p.mixed:
			if other := bound[p.typ]; other != "" && other != name {
				return fmt.Errorf("input %d (%s) is %s, but another input of the same kind is %s", i, strconv.Quote(v.Name()), name, other)
			}
			bound[p.typ] = name
		}
	}
	for i, v := range n.Outputs() {
		p := s.out.at(i)
		if v == nil || p == nil || v.Type.Kind != graph.KindUnknown || p.mixed {
			continue
		}
		name := p.typ
		if _, variable := s.vars[name]; variable {
			name = bound[name]
		}
		if inner, ok := strings.CutPrefix(name, "tensor("); ok {
			if d, ok := tensor.ParseDType(strings.TrimSuffix(inner, ")")); ok {
				v.Type = graph.TensorType(d, nil)
			}
		}
	}
	return nil
}

// whole reports whether a type says what its elements are, down to the
// innermost.
func whole(t graph.Type) bool {
	inner := t.Inner != nil && whole(*t.Inner)
	switch t.Kind {
	case graph.KindTensor, graph.KindSparseTensor:
		return t.Elem != tensor.Undefined
	case graph.KindSequence, graph.KindOptional:
		return inner
	case graph.KindMap:
		return inner && t.Elem != tensor.Undefined
	}
	return t.Kind == graph.KindOpaque
}

// typeName writes a type without its shape as schemas do; it is empty where
// the type is not wholly known.
func typeName(t graph.Type) string {
	inner := ""
	if t.Inner != nil {
		inner = typeName(*t.Inner)
	}
	switch {
	case t.Kind == graph.KindTensor && t.Elem != tensor.Undefined:
		return "tensor(" + t.Elem.String() + ")"
	case t.Kind == graph.KindSparseTensor && t.Elem != tensor.Undefined:
		return "sparse_tensor(" + t.Elem.String() + ")"
	case inner == "":
		return ""
	case t.Kind == graph.KindSequence:
		return "seq(" + inner + ")"
	case t.Kind == graph.KindOptional:
		return "optional(" + inner + ")"
	case t.Kind == graph.KindMap && t.Elem != tensor.Undefined && strings.HasPrefix(inner, "tensor("):
		return "map(" + t.Elem.String() + "," + strings.TrimSuffix(strings.TrimPrefix(inner, "tensor("), ")") + ")"
	}
	return ""
}
