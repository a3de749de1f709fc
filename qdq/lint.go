package qdq

import (
	"fmt"
	"maps"
	"slices"

	"github.com/onnxq/onnxq/fusion"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
)

// LintReport says what a runtime makes of the groups of DequantizeLinear,
// operator and QuantizeLinear in a model.
type LintReport struct {
	Target string `json:"target"`
	// Groups lists every node that reads what DequantizeLinear gives, in graph
	// order.
	Groups []LintGroup `json:"groups"`
	Fused  int         `json:"fused"`    // groups that become integer kernels
	Float  int         `json:"float"`    // groups that do not
	Nodes  int         `json:"integers"` // nodes that compute on integers as they stand in the file, such as QLinearConv
	// Decoded lists the constants that are dequantized at every inference, since
	// what reads them computes on floats.
	Decoded []Decoded `json:"decoded"`
}

// LintGroup is what becomes of one group.
type LintGroup struct {
	Scope  string `json:"scope"`
	Node   string `json:"node"`
	Op     string `json:"op"`
	Fused  bool   `json:"fused"`
	Kernel string `json:"kernel,omitempty"` // what a fused group becomes; the operator itself where it moves codes
	Why    string `json:"why,omitempty"`    // why it stays float
	ID     int    `json:"-"`                // of the node in the model
}

// Decoded is a constant that is dequantized at every inference.
type Decoded struct {
	Scope  string `json:"scope"`
	Tensor string `json:"tensor"`
	Bytes  int64  `json:"bytes"` // of the codes
	Reader string `json:"reader"`
}

// runtimes are the rules by which runtimes fuse, by targets.Target.Fusion.
var runtimes = map[string]*fusion.Runtime{"onnxruntime-x86": fusion.X86, "onnxruntime-arm": fusion.ARM}

// Lint predicts, without running anything, which groups of m the target's
// runtime replaces by integer kernels. A target that names no rules of fusion is
// taken at its table of operators: each node on its own.
func Lint(m *graph.Model, t *targets.Target) (*LintReport, error) {
	r, known := runtimes[t.Fusion]
	if t.Fusion != "" && !known {
		return nil, fmt.Errorf("target %s: no rules of fusion are named %q", t.Name, t.Fusion)
	}
	loaded := m
	if known {
		loaded = ops.Typed(m) // the runtime infers shapes, whatever the file has
		fusion.Load(loaded)
	}
	byID := map[int]*graph.Node{}
	for g := range loaded.Scopes() {
		for n := range g.Nodes() {
			byID[n.ID] = n
		}
	}
	report := &LintReport{Target: t.Name, Groups: []LintGroup{}, Decoded: []Decoded{}}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if integerKernels[n.Op] {
				report.Nodes++
			}
			l := LintGroup{Scope: g.Scope(), Node: n.Label(), Op: n.Op.String(), ID: n.ID}
			var found bool
			if known {
				found = l.fuses(r, n, byID[n.ID])
			} else {
				found = l.suits(t, n)
			}
			if !found {
				continue
			}
			report.Groups = append(report.Groups, l)
			if l.Fused {
				report.Fused++
				continue
			}
			report.Float++
			report.decoded(n)
		}
	}
	return report, nil
}

// integerProducts are operators that multiply or look up codes as they stand, and
// integerKernels these and what the rules of the runtime put in place of groups.
var integerProducts, integerKernels = map[graph.OpKey]bool{}, map[graph.OpKey]bool{}

func init() {
	for _, o := range []string{"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"} {
		integerProducts[op(o)] = true
	}
	for _, o := range []string{"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "GatherBlockQuantized"} {
		integerProducts[graph.OpKey{Domain: msDomain, Type: o}] = true
	}
	maps.Copy(integerKernels, integerProducts)
	for _, rule := range fusion.X86.Rules {
		for _, k := range []graph.OpKey{rule.Kernel, rule.FloatKernel} {
			if k.Type != "" {
				integerKernels[k] = true
			}
		}
	}
}

// fuses sets what becomes of n, which is loaded in the runtime; it may be nil.
func (l *LintGroup) fuses(r *fusion.Runtime, n, loaded *graph.Node) bool {
	if loaded == nil { // it was joined to another node
		return false
	}
	k := r.Find(loaded)
	if k == nil {
		return false
	}
	if k.Rule == nil && l.dropped(loaded) {
		return true
	}
	l.Fused, l.Why = k.Rule != nil, k.Why
	if l.Fused {
		l.Kernel = k.Kernel().String()
	} else if loaded.Op != n.Op {
		l.Why = fmt.Sprintf("the runtime joins it with the Add behind it to %s, and then: %s", loaded.Op, k.Why)
	}
	return true
}

// dropped notes a Relu or Clip that the runtime removes, since the
// QuantizeLinear behind it clamps.
func (l *LintGroup) dropped(n *graph.Node) bool {
	if n.Op != op("Relu") && n.Op != op("Clip") || n.Output(0) == nil {
		return false
	}
	if q := n.Output(0).OnlyUse(); fusion.IsQ(q) && fusion.Redundant(n, q) {
		l.Fused, l.Kernel = true, "QuantizeLinear"
		return true
	}
	return false
}

// suits sets what becomes of n by the table of operators of a target.
func (l *LintGroup) suits(t *targets.Target, n *graph.Node) bool {
	if fusion.IsQ(n) || fusion.IsDQ(n) {
		return false
	}
	spec := ops.Lookup(n)
	var types []string
	var weight []bool // whether types are those of weights
	reads, missing := false, ""
	for i, v := range n.Inputs() {
		if v == nil {
			continue
		}
		if dq := v.DefNode(); fusion.IsDQ(dq) {
			reads = true
			types = append(types, dequantizes(dq))
			port := ops.Port{}
			if spec != nil {
				port, _ = spec.InPort(i)
			}
			weight = append(weight, port.Role == ops.Weight)
		} else if spec != nil {
			if port, _ := spec.InPort(i); port.Role == ops.Activation || port.Role == ops.Weight {
				missing = v.Name()
			}
		}
	}
	if !reads {
		return false
	}
	rules := t.RulesFor(n)
	if len(rules) == 0 {
		l.Why = fmt.Sprintf("%s has no integer kernel for %s", t.Name, n.Op)
		return true
	}
	for _, rule := range rules {
		why := rule.Check(t, n)
		real := slices.Contains(types, quant.F8E4M3.Name)
		if len(rule.Types) > 0 && !slices.ContainsFunc(types, rule.For) || len(rule.Types) == 0 && real {
			why = fmt.Sprintf("the kernel of %s for %s takes no codes of type %s", t.Name, n.Op, types[0])
		}
		quantized := n.Output(0) != nil && slices.ContainsFunc(n.Output(0).Uses(), func(u graph.Use) bool { return fusion.IsQ(u.Node) })
		for i, name := range types {
			if allowed := slices.Concat(t.Activations, t.Weights); why == "" && i < 2 && name != "i32" && !slices.Contains(allowed, name) {
				why = fmt.Sprintf("%s takes no codes of type %s", t.Name, name)
			} else if typ, err := targets.Type(name); why == "" && err == nil && typ.DType.Bits() < 8 && !(weight[i] && rule.FewBits) {
				why = fmt.Sprintf("the integer kernel of %s for %s takes no codes of type %s here", t.Name, n.Op, name)
			}
		}
		switch {
		case why != "":
		case missing != "" && rule.Class != targets.Carry && rule.Class != targets.Table:
			why = fmt.Sprintf("input %q is not dequantized", missing)
		case !quantized && !rule.FloatOutput && !n.Output(0).IsOutput():
			why = "no QuantizeLinear reads its output"
		default:
			l.Fused, l.Kernel, l.Why = true, n.Op.String(), ""
			return true
		}
		if l.Why == "" {
			l.Why = why
		}
	}
	return true
}

// dequantizes returns the name of the storage type that dq reads.
func dequantizes(dq *graph.Node) string {
	v := dq.Input(0)
	t := v.Type.Elem
	if z := dq.Input(2); z != nil && z.Const != nil {
		t = z.Const.DType()
	} else if v.Const != nil {
		t = v.Const.DType()
	}
	return storage[t.String()]
}

// storage gives the names that plans have for element types.
var storage = map[string]string{
	"int8": "i8", "uint8": "u8", "int16": "i16", "uint16": "u16", "int4": "i4", "uint4": "u4", "int2": "i2", "uint2": "u2", "int32": "i32",
	"float8e4m3fn": "f8e4m3", "float8e5m2": "f8e5m2", "float4e2m1": "f4e2m1",
}

// decoded lists the constants that n, which computes on floats, has
// dequantized.
func (r *LintReport) decoded(n *graph.Node) {
	for _, v := range n.Inputs() {
		if v == nil || !fusion.IsDQ(v.DefNode()) {
			continue
		}
		c := v.DefNode().Input(0)
		if c.Const == nil || !c.IsConst() || slices.ContainsFunc(r.Decoded, func(d Decoded) bool { return d.Tensor == c.Name() && d.Scope == c.Graph().Scope() }) {
			continue
		}
		r.Decoded = append(r.Decoded, Decoded{Scope: c.Graph().Scope(), Tensor: c.Name(), Bytes: int64(len(c.Const.Bytes())), Reader: n.Label()})
	}
}
