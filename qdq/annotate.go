package qdq

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// Options of Annotate.
type Options struct {
	Include, Exclude []string // globs over node names, or op:TYPE; exclude wins
	Activation       string   // storage type of activations; "" is the target's first
	Weight           string   // storage type of weights; "" is the target's first
	// SymmetricActivations puts the zero point of activations at the middle.
	SymmetricActivations bool
	// Wide names, by value ID, weights that get 8 bits where Weight has fewer.
	Wide map[int]bool
	// PerTensor gives weights one scale instead of one per output channel.
	PerTensor bool
	// PowerOfTwo makes scales powers of two, ReduceRange leaves out a bit of
	// the codes of weights.
	PowerOfTwo, ReduceRange bool
	// Ranges fixes ranges by tensor name.
	Ranges map[string][2]float64
	// Unusable names, by value ID, activations that have no usable range, with
	// the reason.
	Unusable map[int]string
	// Keep names, by node ID, nodes that stay float, with the reason.
	Keep map[int]string
	// Store is how the weights of nodes that stay float are stored, for the
	// runtime to decode when it loads the model: as Float16, or as Weight where
	// that is smaller and symmetric; "" leaves them as they are.
	Store string
	// Least gives, by value ID, the fewest bits that Store keeps a weight in: 16, or
	// 32 for what is left as it is.
	Least map[int]int
	// Blocks is the scheme of the weights of nodes that stay float, which comes
	// before Store where a form of the target serves; BlocksOf gives those of
	// some weights, by value ID. nil: there is only Store.
	Blocks   *quant.Blocks
	BlocksOf map[int]quant.Blocks
	// WeightsOnly leaves every node float, but for look-ups in tables of codes.
	WeightsOnly bool
	// Dynamic quantizes activations as they come: nodes are Dynamic where the
	// target has a kernel, and else float but for look-ups in tables of codes.
	Dynamic bool
	// PerToken makes Dynamic nodes DynamicRows where their input has rows.
	PerToken bool
	// Compute as Half or Brain computes in 16-bit floats: every node that can,
	// but for those of FullPrecision.
	Compute How
	// Logged quantizes products whose results reach a Log as well, which magnifies
	// the errors of small values: for who measures what that costs.
	Logged bool
	// Choose says, by node ID, that a node is to be Dynamic, DynamicRows, Half, Brain or
	// Integer, where that can be, in place of what Dynamic, Compute and WeightsOnly
	// say.
	Choose map[int]How
}

// GlobError says that a glob matches no node.
type GlobError struct{ Glob string }

// Error names the glob.
func (e *GlobError) Error() string { return fmt.Sprintf("pattern %q matches no node", e.Glob) }

// minTable is the size in bytes from which a look-up table is worth the
// nodes that dequantize what is looked up.
const minTable = 4096

// maskValue is the magnitude from which values mark what a mask leaves out.
const maskValue = 1e30

// decision is the state of one node while the plan is made.
type decision struct {
	node   *graph.Node
	rule   *targets.Rule // nil: float
	why    string
	acts   []int       // activation ports
	absorb *graph.Node // the activation behind the node that is absorbed, if any
	into   *graph.Node // the node that absorbs this one
	on     bool        // quantized with ranges known beforehand, as far as known
	how    How         // Dynamic or DynamicRows: rule is of that class, and on is false
	leave  bool        // the user wants it left alone, weights included
}

// out returns the value that carries the codes a quantized node gives.
func (d *decision) out() *graph.Value {
	if d.absorb != nil {
		return d.absorb.Output(0)
	}
	return d.node.Output(0)
}

type annotator struct {
	m     *graph.Model
	t     *targets.Target
	o     Options
	byID  []*decision
	order []*decision
	codes []bool // by value ID: gets QuantizeLinear and DequantizeLinear
}

// types returns the storage types of activations and weights.
func (o *Options) types(t *targets.Target) (activation, weight string) {
	if activation = o.Activation; activation == "" {
		activation = t.Activations[0]
	}
	if weight = o.Weight; weight == "" {
		weight = t.Weights[0]
		if realType(activation) {
			weight = activation
		}
	}
	return activation, weight
}

// Check returns why the types that o names do not serve on a target, or nil.
func (o *Options) Check(t *targets.Target) error {
	activation, weight := o.types(t)
	if !slices.Contains(t.Activations, activation) {
		return fmt.Errorf("%s has no kernels for %s activations, only %s", t.Name, activation, strings.Join(t.Activations, ", "))
	}
	if !slices.Contains(t.Weights, weight) {
		return fmt.Errorf("%s has no kernels for %s weights, only %s", t.Name, weight, strings.Join(t.Weights, ", "))
	}
	if a, w := realType(activation), realType(weight); a != w {
		return fmt.Errorf("%s activations do not go with %s weights: a kernel reads floats of 8 bits or integers", activation, weight)
	}
	if want := o.Compute.elem(); want != tensor.Undefined {
		name := map[tensor.DType]string{tensor.Float16: Float16, tensor.BFloat16: BFloat16}[want]
		if !slices.Contains(t.Floats, name) {
			return fmt.Errorf("%s does not compute in %s", t.Name, name)
		}
	}
	return nil
}

// Annotate decides what to quantize in m for a target. The model has been
// prepared: constants are initializers, and types are inferred.
func Annotate(m *graph.Model, t *targets.Target, o Options) (*Plan, error) {
	if err := o.Check(t); err != nil {
		return nil, err
	}
	o.Activation, o.Weight = o.types(t)
	o.SymmetricActivations = o.SymmetricActivations || t.SymmetricActivations
	a := &annotator{m: m, t: t, o: o, byID: make([]*decision, m.NumNodes())}
	if err := a.collect(); err != nil {
		return nil, err
	}
	a.absorbActivations()
	a.settle()
	return a.plan(), nil
}

// realType reports whether the storage type of the given name has small floats.
func realType(name string) bool {
	t, err := targets.Type(name)
	return err == nil && t.Real()
}

// collect makes a decision for each node from what can be said about it alone.
func (a *annotator) collect() error {
	matched := map[string]bool{}
	var logged, near map[int]*graph.Node
	if !a.o.Logged {
		logged, near = a.logged()
	}
	if a.t.Whole {
		logged = nil
	}
	for g := range a.m.Scopes() {
		for n := range g.Nodes() {
			d := &decision{node: n}
			a.byID[n.ID] = d
			a.order = append(a.order, d)
			want := a.o.Compute
			if a.o.Dynamic {
				want = Dynamic
			}
			if how, ok := a.o.Choose[n.ID]; ok {
				want = how
			}
			half := want.elem()
			if half == tensor.Undefined {
				d.rule, d.why = a.rule(n, d, want.IsDynamic())
			} else {
				if d.why = fitsHalf(n, half); d.why == "" && movesBatch(n, a.t.TakesBatch) {
					d.why = fmt.Sprintf("moves the first axis before a product, which %s does not load in 16-bit floats", a.t.Name)
				}
				if d.why == "" && near[n.ID] != nil {
					d.why = fmt.Sprintf("feeds Log %q, which magnifies the error of small values", near[n.ID].Label())
				}
			}
			excluded, included := "", len(a.o.Include) == 0
			for _, glob := range a.o.Exclude {
				if matchNode(glob, n) {
					matched[glob], excluded = true, glob
				}
			}
			for _, glob := range a.o.Include {
				if matchNode(glob, n) {
					matched[glob], included = true, true
				}
			}
			why, keep := a.o.Keep[n.ID]
			switch {
			case keep:
				d.rule, d.why = nil, why
			case excluded != "":
				d.rule, d.why, d.leave = nil, fmt.Sprintf("excluded by %q", excluded), true
			case a.o.WeightsOnly && a.o.Choose[n.ID] == "" && d.rule != nil && (d.rule.Class != targets.Table || a.o.Store == Float16 || a.o.Blocks != nil):
				d.rule, d.why = nil, "only weights are to be quantized"
			case d.rule != nil && d.rule.Slow && matMulOf(n) == notMatMul && (len(a.o.Include) == 0 || !included) && a.o.Choose[n.ID] == "":
				d.rule, d.why = nil, fmt.Sprintf("the integer kernel of %s for %s is slower than float, so it has to be included by name", a.t.Name, n.Op)
			case d.rule != nil && d.rule.Class == targets.Anchor && logged[n.ID] != nil && (len(a.o.Include) == 0 || !included) && a.o.Choose[n.ID] == "":
				d.rule, d.why = nil, fmt.Sprintf("feeds Log %q, which magnifies the error of small values, so it has to be included by name", logged[n.ID].Label())
			case !included && d.rule != nil && d.rule.Class != targets.Carry:
				d.rule, d.why = nil, "not among the included nodes"
			}
			if half != tensor.Undefined && !keep && excluded == "" && included && d.why == "" {
				d.how = want
			} else if half != tensor.Undefined && !included {
				d.why = "not among the included nodes"
			}
			d.on = d.rule != nil
			if d.on && d.rule.Class == targets.Dynamic {
				d.on, d.how = false, Dynamic
				if (a.o.PerToken || want == DynamicRows) && hasRows(n) {
					d.how = DynamicRows
				}
			}
			d.leave = d.leave || !included
		}
	}
	for _, glob := range slices.Concat(a.o.Exclude, a.o.Include) {
		if !matched[glob] {
			return &GlobError{glob}
		}
	}
	return nil
}

// rule returns the rule that applies to n, or why none does: one for
// activations that are quantized as they come, or with ranges known beforehand.
func (a *annotator) rule(n *graph.Node, d *decision, dynamic bool) (*targets.Rule, string) {
	spec := ops.Lookup(n)
	if n.Graph().Function() != nil {
		return nil, "body of a local function that is not inlined"
	}
	if spec == nil {
		return nil, fmt.Sprintf("operator %s is not known: kept as it is", n.Op)
	}
	if computesCodes(n) {
		return nil, Integers
	}
	if spec.Flow == ops.Integers {
		return nil, "computes no real values"
	}
	if isQuantizer(n) || isDequantizer(n) {
		d.how = Kept
		return nil, ""
	}
	rules := slices.DeleteFunc(a.t.RulesFor(n), func(r *targets.Rule) bool {
		return r.Class != targets.Table && (r.Class == targets.Dynamic) != dynamic || !dynamic && !r.For(a.o.Activation)
	})
	if len(rules) == 0 && dynamic {
		if !slices.ContainsFunc(spec.In, func(p ops.Port) bool { return p.Role == ops.Weight }) {
			return nil, "has no weight to multiply with"
		}
		return nil, fmt.Sprintf("%s has no kernel for %s that quantizes inputs as they come", a.t.Name, n.Op)
	}
	if len(rules) == 0 {
		return nil, fmt.Sprintf("%s has no integer kernel for %s that pays", a.t.Name, n.Op)
	}
	why := ""
	for _, r := range rules {
		reason := r.Check(a.t, n)
		if reason == "" {
			reason = a.fits(n, r, spec, d)
		}
		if reason == "" {
			return r, ""
		}
		if why == "" {
			why = reason
		}
	}
	return nil, why
}

// fits returns why n can not be quantized under r, or "", and finds the
// activation ports.
func (a *annotator) fits(n *graph.Node, r *targets.Rule, spec *ops.Spec, d *decision) string {
	d.acts = nil
	switch {
	case r.Class == targets.Table:
		return a.fitsTable(n)
	case r.Class == targets.Dynamic:
		return fitsDynamic(n, spec)
	case r.Class == targets.Carry && spec.FlowAt(n) != ops.Pass:
		return fmt.Sprintf("this %s computes new values", n.Op)
	}
	for i, v := range n.Inputs() {
		if v == nil {
			continue
		}
		port, _ := spec.InPort(i)
		role := port.Role
		if r.Class == targets.Carry && i == 0 {
			role = ops.Activation
		}
		switch role {
		case ops.Activation:
			if v.Type.Elem != tensor.Float32 {
				return fmt.Sprintf("input %q is %v, not float", v.Name(), v.Type.Elem)
			}
			if v.IsConst() && (!a.t.Whole || v.Const.Len() == 0) {
				return fmt.Sprintf("input %q is constant", v.Name())
			}
			if v.IsConst() {
				if r, err := quant.Ranges(v.Const, -1); err != nil {
					return fmt.Sprintf("constant %q %v", v.Name(), err)
				} else if r[0].Min < -maskValue || r[0].Max > maskValue {
					return fmt.Sprintf("constant %q holds values like %g, which no scale serves", v.Name(), max(-r[0].Min, r[0].Max))
				}
				continue
			}
			if why, bad := a.o.Unusable[v.ID]; bad {
				return fmt.Sprintf("input %q: %s", v.Name(), why)
			}
			if p, ok := given(v); ok && p.Axis >= 0 {
				return fmt.Sprintf("input %q has a scale for each channel", v.Name())
			} else if ok && p.Type.DType.Bits() < 8 {
				return fmt.Sprintf("input %q is quantized to %s", v.Name(), p.Type.Name)
			} else if ok && r.Class == targets.Carry {
				return fmt.Sprintf("input %q is quantized already", v.Name())
			}
			d.acts = append(d.acts, i)
		case ops.Weight:
			if why, ok := givenWeight(n, i, v, r); ok {
				if why != "" {
					return why
				}
				continue
			}
			if !v.IsConst() && r.BothSides && v.Type.Elem == tensor.Float32 {
				if why, bad := a.o.Unusable[v.ID]; bad {
					return fmt.Sprintf("input %q: %s", v.Name(), why)
				}
				d.acts = append(d.acts, i)
				continue
			}
			if !v.IsConst() {
				return fmt.Sprintf("weight %q is not constant", v.Name())
			}
			if v.Const.DType() != tensor.Float32 {
				return fmt.Sprintf("weight %q is %v, not float", v.Name(), v.Const.DType())
			}
			if v.Const.Rank() < 2 && !(v.Const.Rank() == 1 && r.Class == targets.Bridge) {
				return fmt.Sprintf("weight %q has rank %d", v.Name(), v.Const.Rank())
			}
			if v.Const.Len() == 0 {
				return fmt.Sprintf("weight %q is empty", v.Name())
			}
		case ops.Bias:
			if isDequantizer(v.DefNode()) && v.DefNode().Input(0) != nil && v.DefNode().Input(0).IsConst() {
				return Integers
			}
			if !v.IsConst() || v.Const.DType() != tensor.Float32 {
				return fmt.Sprintf("bias %q is not a constant float tensor", v.Name())
			}
			if v.Const.Rank() != 1 {
				return fmt.Sprintf("bias %q has rank %d, the integer kernel wants 1", v.Name(), v.Const.Rank())
			}
		}
	}
	if len(d.acts) == 0 {
		return "reads no activation"
	}
	out := n.Output(0)
	if out == nil {
		return "its first output is not used"
	}
	for _, v := range n.Outputs()[1:] {
		if v != nil {
			return "has several outputs"
		}
	}
	if why, bad := a.o.Unusable[out.ID]; bad && !r.FloatOutput {
		return fmt.Sprintf("output %q: %s", out.Name(), why)
	}
	return ""
}

func (a *annotator) fitsTable(n *graph.Node) string {
	v := n.Input(0)
	switch {
	case v == nil || !v.IsConst():
		return "looks up no constant table"
	case v.Const.DType() != tensor.Float32:
		return fmt.Sprintf("table %q is %v, not float", v.Name(), v.Const.DType())
	case v.Const.Rank() != 2:
		return fmt.Sprintf("table %q has rank %d", v.Name(), v.Const.Rank())
	case len(v.Const.Bytes()) < minTable:
		return fmt.Sprintf("table %q is too small to gain", v.Name())
	case n.Output(0) == nil:
		return "its output is not used"
	}
	return ""
}

// absorbActivations finds, for each node that may be quantized, the Relu or
// Clip behind it that the clamp of its QuantizeLinear replaces.
func (a *annotator) absorbActivations() {
	for _, d := range a.order {
		if d.rule == nil || len(d.rule.Absorbs) == 0 {
			continue
		}
		y := d.node.Output(0)
		if quantizedBehind(y) {
			continue // the runtime finds it between the kernel and the quantizer
		}
		act := y.OnlyUse()
		if act == nil || act.Graph() != d.node.Graph() || act.Input(0) != y || act.Op.Domain != graph.OnnxDomain ||
			!slices.Contains(d.rule.Absorbs, act.Op.Type) {
			continue
		}
		e := a.byID[act.ID]
		if _, keep := a.o.Keep[act.ID]; keep || strings.HasPrefix(e.why, "excluded") {
			continue
		}
		if lo, hi, ok := ops.ClampBounds(act); !ok || lo > 0 || hi < 0 {
			continue
		}
		if _, bad := a.o.Unusable[act.Output(0).ID]; bad {
			continue
		}
		d.absorb, e.into = act, d.node
	}
}

// givesCodes reports whether v comes out of an integer kernel as codes.
func (a *annotator) givesCodes(v *graph.Value) bool {
	n := v.DefNode()
	if n == nil {
		return false
	}
	if isGiven(v) {
		return true
	}
	d := a.byID[n.ID]
	if d.into != nil {
		d = a.byID[d.into.ID]
		return d.on && d.absorb == n
	}
	return d.on && d.absorb == nil && d.rule.Class != targets.Table && (!d.rule.FloatOutput || d.rule.CodesToo)
}

// readsCodes reports whether use u of a value is an activation port of a
// quantized node.
func (a *annotator) readsCodes(u graph.Use) bool {
	if u.Node == nil {
		return false
	}
	if isQuantizer(u.Node) && u.Index == 0 {
		return true
	}
	d := a.byID[u.Node.ID]
	return d.on && slices.Contains(d.acts, u.Index)
}

// settle drops nodes until the rest is consistent: the largest set in which
// every Bridge reads codes and serves an integer kernel, and every Carry
// stands between codes, or before readers of codes only.
func (a *annotator) settle() {
	for changed := true; changed; {
		changed = false
		for _, d := range a.order {
			if !d.on || d.into != nil {
				continue
			}
			if why := a.unsettled(d); why != "" {
				d.on, d.why, changed = false, why, true
				if d.absorb != nil {
					a.byID[d.absorb.ID].into, d.absorb = nil, nil
				}
			}
		}
	}
	for _, d := range a.order {
		if d.into != nil {
			d.on = a.byID[d.into.ID].on
		}
	}
}

func (a *annotator) unsettled(d *decision) string {
	class := d.rule.Class
	if class == targets.Anchor || class == targets.Table || a.t.Whole {
		return ""
	}
	given := true
	for _, i := range d.acts {
		given = given && a.givesCodes(d.node.Input(i))
	}
	read, onlyRead := false, true
	for _, u := range d.out().Uses() {
		if a.readsCodes(u) {
			read = true
		} else {
			onlyRead = false
		}
	}
	switch {
	case !read:
		return "no integer kernel reads its output"
	case given:
		return ""
	case class == targets.Carry && d.rule.Hoist && onlyRead:
		return ""
	}
	return "its input is not quantized already, so integers would not pay"
}

// plan writes the decisions down.
func (a *annotator) plan() *Plan {
	p := &Plan{Format: "onnxq-plan", Version: PlanVersion, Target: a.t.Name, Mode: "static"}
	a.codes = make([]bool, a.m.NumValues())
	for _, d := range a.order {
		e := NodePlan{Scope: d.node.Graph().Scope(), Node: d.node.Label(), Op: d.node.Op.String(), Quantized: d.on || d.how != "", Why: d.why, How: d.how}
		switch {
		case d.on && d.into != nil:
			e.How = Absorbed
		case d.on && d.rule.Class == targets.Table:
			e.How = Lookup
		case d.on:
			e.How = Integer
		}
		if e.Quantized {
			e.Why = ""
		}
		p.Nodes = append(p.Nodes, e)
		if !d.on || d.into != nil || d.rule.Class == targets.Table {
			continue
		}
		for _, i := range d.acts {
			if v := d.node.Input(i); !isGiven(v) {
				a.codes[v.ID] = true
			}
		}
		if !d.rule.FloatOutput && !quantizedBehind(d.out()) {
			a.codes[d.out().ID] = true
		}
	}
	// A kernel that may give float32 does so unless its output is quantized
	// for another reader anyway.
	for i, d := range a.order {
		if d.on && d.into == nil && d.rule.FloatOutput && !a.codes[d.out().ID] && !quantizedBehind(d.out()) {
			p.Nodes[i].How = FloatOutput
			if d.absorb != nil {
				e := &p.Nodes[slices.Index(a.order, a.byID[d.absorb.ID])]
				e.Quantized, e.How, e.Why = false, "", "follows an integer kernel that gives float32"
			}
		}
	}
	for i, d := range a.order {
		e := &p.Nodes[i]
		e.Guard = !e.Quantized && d.node.Op.Domain == graph.OnnxDomain && slices.Contains(a.t.Requantizes, d.node.Op.Type) && a.coded(d.node.Input(0)) && a.toCodes(d.node.Output(0))
	}
	a.tensors(p)
	switch {
	case p.Quantized() == 0 && len(p.Tensors) > 0 || a.o.WeightsOnly:
		p.Mode = "weights"
	case a.o.Compute != "":
		p.Mode = string(a.o.Compute)
	case a.o.Dynamic:
		p.Mode = "dynamic"
	}
	return p
}

// coded reports whether v has codes.
func (a *annotator) coded(v *graph.Value) bool { return v != nil && (a.codes[v.ID] || isGiven(v)) }

// toCodes reports whether v, or what only clamps make of it, is quantized.
func (a *annotator) toCodes(v *graph.Value) bool {
	for v != nil {
		if a.codes[v.ID] || quantizedBehind(v) {
			return true
		}
		n := v.OnlyUse()
		if n == nil {
			return false
		}
		if _, _, ok := ops.ClampBounds(n); !ok {
			return false
		}
		v = n.Output(0)
	}
	return false
}

// captured reports whether a nested graph reads v, if moved is set, or what operators
// that stay float and that the target moves a DequantizeLinear behind make of it.
func (a *annotator) captured(v *graph.Value, moved bool) bool {
	return v != nil && slices.ContainsFunc(v.Uses(), func(u graph.Use) bool {
		switch n := u.Node; {
		case n == nil:
			return false
		case n.Graph() != v.Graph():
			return moved
		case n.Op.Domain == graph.OnnxDomain && u.Index == 0 && slices.Contains(a.t.Propagates, n.Op.Type) && !a.byID[n.ID].on:
			return a.captured(n.Output(0), true)
		}
		return false
	})
}

// tensors lists the schemes: activations in graph order, then constants.
func (a *annotator) tensors(p *Plan) {
	act, _ := targets.Type(a.o.Activation)
	groups := a.groups()
	activation := func(v *graph.Value) {
		if v == nil || !a.codes[v.ID] {
			return
		}
		a.codes[v.ID] = false
		e := TensorPlan{Scope: v.Graph().Scope(), Tensor: v.Name(), Kind: Activation, Type: act.Name, Symmetric: a.o.SymmetricActivations, PowerOfTwo: a.o.PowerOfTwo, Axis: -1}
		if root := groups.find(v); root != v && root.Graph() == v.Graph() {
			e.SameAs = root.Name()
		}
		if n := v.DefNode(); n != nil && n.Op.Domain == graph.OnnxDomain && slices.Contains(a.t.Pins, n.Op.Type) {
			e.Pin = !a.byID[n.ID].on
		}
		e.Each = a.captured(v, false)
		if r, ok := a.o.Ranges[v.Name()]; ok {
			e.Range = &r
		} else if n := v.DefNode(); n != nil {
			if spec := ops.Lookup(n); spec != nil && spec.Flow == ops.Fixed && spec.Range != nil {
				lo, hi := spec.Range(n)
				e.Range = &[2]float64{float64(lo), float64(hi)}
			}
		}
		p.Tensors = append(p.Tensors, e)
	}
	for g := range a.m.Scopes() {
		for _, v := range g.Inputs() {
			activation(v)
		}
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				activation(v)
			}
		}
	}
	weight, _ := targets.Type(a.o.Weight)
	wide, stored := a.t.WideWeight(a.o.Weight), a.t.WideWeight(a.o.Weight)
	if weight.Real() { // codes that are decoded at load are integers
		stored = a.t.WideWeight("")
	}
	listed := map[*graph.Value]int{} // index in p.Tensors
	for _, d := range a.order {
		if !d.on && !d.how.IsDynamic() || d.into != nil {
			continue
		}
		spec := ops.Lookup(d.node)
		for i, v := range d.node.Inputs() {
			if v == nil || !v.IsConst() {
				continue
			}
			port, _ := spec.InPort(i)
			t := wide
			if d.on && d.rule.FewBits && !a.o.Wide[v.ID] {
				t = weight
			}
			e := TensorPlan{Scope: v.Graph().Scope(), Tensor: v.Name(), Kind: Weight, Type: t.Name, Symmetric: t.Min < 0, Reduced: a.o.ReduceRange, PowerOfTwo: a.o.PowerOfTwo, Axis: -1}
			switch port.Role {
			case ops.Activation:
				if v.Const.DType() != tensor.Float32 || d.how != "" {
					continue
				}
				e.Type, e.Symmetric, e.Reduced = act.Name, a.o.SymmetricActivations, false
			case ops.Weight:
				if !a.o.PerTensor && v.Const.Rank() > 1 && d.node.Graph().Opset(graph.OnnxDomain) >= a.t.PerChannelOpset {
					e.Axis = channelAxis(d.node, i, v.Const.Rank())
				}
				if d.node.Op.Type == "ConvTranspose" && d.node.Int("group", 1) != 1 {
					e.Axis = -1 // the axis runs over the channels of one group
				}
			case ops.Bias:
				if d.how.IsDynamic() || a.t.FloatBias {
					continue // added in float32
				}
				e = TensorPlan{Scope: e.Scope, Tensor: e.Tensor, Kind: Bias, Type: "i32", Symmetric: true}
			default:
				continue
			}
			if k, ok := listed[v]; ok {
				// Readers that want scales along different axes get one for all.
				if p.Tensors[k].Axis != e.Axis {
					p.Tensors[k].Axis = -1
				}
				// Of fewer bits are those of which every reader takes them.
				if e.Kind == Weight && e.Type == wide.Name && p.Tensors[k].Kind == Weight {
					p.Tensors[k].Type, p.Tensors[k].Symmetric = e.Type, e.Symmetric
				}
				continue
			}
			listed[v] = len(p.Tensors)
			p.Tensors = append(p.Tensors, e)
		}
	}
	if a.o.Blocks != nil {
		a.inBlocks(p, listed)
	}
	if a.o.Store != "" {
		a.stored(p, listed, stored)
	}
}

// channelAxis returns the axis of weight i of n, of the given rank, along which
// integer kernels take scales, or -1 if they take one alone: of a product of several
// matrices, whose scales for columns ONNX Runtime refuses when the model runs.
func channelAxis(n *graph.Node, i, rank int) int {
	if n.Op.Type == "MatMul" && rank > 2 {
		return -1
	}
	return ops.Lookup(n).Axis(n, i, rank)
}

// Estimates of what the operators and initializers take in a file that decode a
// stored weight, in bytes, and the most rounding noise relative to the power of a
// weight, -60 and -30 dB, or of a table, -45 dB, of which there are leastTable
// elements.
const (
	halfOverhead  = 150
	codesOverhead = 350
	halfNoise     = 1e-6
	codesNoise    = 1e-3
	tableNoise    = 3e-5
	leastTable    = 4096
)

// stored plans how the weights are stored that nodes read which stay float: in the
// smallest of the forms that are allowed or, where integer kernels read them as well,
// in their codes. Tables, such as positional codes and masks, are stored like them where
// that hardly changes them.
func (a *annotator) stored(p *Plan, listed map[*graph.Value]int, weight quant.Type) {
	for _, d := range a.order {
		spec := ops.Lookup(d.node)
		if d.on || d.how != "" || spec == nil || d.node.Graph().Function() != nil {
			continue
		}
		for i, v := range d.node.Inputs() {
			port, _ := spec.InPort(i)
			if v == nil || !v.IsConst() || v.IsOutput() || v.Const.DType() != tensor.Float32 || v.Const.Rank() < 2 {
				continue
			}
			most := codesNoise
			switch {
			case port.Role == ops.Weight:
			case port.Role == ops.Activation && v.Const.Len() >= leastTable:
				most = tableNoise
			default:
				continue
			}
			k, shared := listed[v]
			if slices.ContainsFunc(v.Uses(), func(u graph.Use) bool {
				return u.Node == nil || !shared && a.byID[u.Node.ID].on || a.byID[u.Node.ID].how != "" || a.byID[u.Node.ID].leave
			}) {
				continue
			}
			if shared {
				e := &p.Tensors[k]
				if e.Decoded || a.o.Store == Float16 || a.o.Least[v.ID] >= 16 || e.Kind != Weight || e.AtLoad || !e.Symmetric || e.Type != weight.Name {
					continue
				}
				noise, err := quant.Scheme{Type: weight, Symmetric: true, Axis: e.Axis}.Noise(v.Const)
				e.Decoded = err == nil && noise <= most
				continue
			}
			e := TensorPlan{Scope: v.Graph().Scope(), Tensor: v.Name(), Kind: Weight, AtLoad: true, Axis: -1}
			n := v.Const.Len()
			size := 4 * n
			switch s := 2*n + halfOverhead; {
			case s >= size:
			case a.o.Least[v.ID] <= 16 && quant.HalfNoise(v.Const) <= halfNoise:
				e.Type, size = Float16, s
			}
			if a.o.Store != Float16 && a.o.Least[v.ID] < 16 && weight.Min < 0 {
				axis, scales := -1, 1
				if !a.o.PerTensor {
					if axis = spec.Axis(d.node, i, v.Const.Rank()); axis >= 0 {
						scales = v.Const.Shape()[axis]
					}
				}
				noise, err := quant.Scheme{Type: weight, Symmetric: true, Axis: axis}.Noise(v.Const)
				if n+4*scales+codesOverhead < size && err == nil && noise <= most {
					e.Type, e.Axis, e.Symmetric, e.PowerOfTwo = weight.Name, axis, true, a.o.PowerOfTwo
				}
			}
			if e.Type == "" {
				continue
			}
			listed[v] = len(p.Tensors)
			p.Tensors = append(p.Tensors, e)
		}
	}
}

// groups joins the values that share parameters: those around a Carry, and
// the inputs and output of a Join. A Join whose inputs were clamped by absorbed
// activations with different bounds is left out, since a common range would
// undo the clamps; its kernel converts instead.
func (a *annotator) groups() *unionFind {
	u := &unionFind{parent: make([]*graph.Value, a.m.NumValues()), bounds: map[*graph.Value]clamp{}}
	for _, d := range a.order {
		if d.on && d.absorb != nil {
			lo, hi, _ := ops.ClampBounds(d.absorb)
			u.bounds[d.out()] = clamp{lo, hi}
		}
	}
	for _, d := range a.order {
		if !d.on || d.into != nil || d.rule.Class == targets.Table {
			continue
		}
		first := d.node.Input(d.acts[0])
		switch spec := ops.Lookup(d.node); {
		case d.rule.Class == targets.Carry:
			u.union(first, d.out())
		case spec.Flow == ops.Join:
			same := true
			for _, i := range d.acts {
				same = same && !isGiven(d.node.Input(i)) && u.bound(d.node.Input(i)) == u.bound(first)
			}
			if !same {
				continue
			}
			for _, i := range d.acts {
				u.union(first, d.node.Input(i))
			}
			u.union(first, d.out())
		}
	}
	return u
}

type clamp struct{ lo, hi float64 }

// unionFind joins values; the representative is the one with the lowest ID.
type unionFind struct {
	parent []*graph.Value
	bounds map[*graph.Value]clamp // of representatives that an absorbed activation bounds
}

func (u *unionFind) find(v *graph.Value) *graph.Value {
	for u.parent[v.ID] != nil {
		v = u.parent[v.ID]
	}
	return v
}

func (u *unionFind) bound(v *graph.Value) clamp {
	if b, ok := u.bounds[u.find(v)]; ok {
		return b
	}
	return clamp{math.Inf(-1), math.Inf(1)}
}

func (u *unionFind) union(v, w *graph.Value) {
	v, w = u.find(v), u.find(w)
	if v == w {
		return
	}
	if v.ID > w.ID {
		v, w = w, v
	}
	u.parent[w.ID] = v
	if b, ok := u.bounds[w]; ok {
		u.bounds[v] = b
	}
}

// Scheme returns the scheme of a planned tensor, which is not Float16.
func (e *TensorPlan) Scheme() (quant.Scheme, error) {
	t, err := targets.Type(e.Type)
	if err != nil {
		return quant.Scheme{}, err
	}
	if e.Kind == Weight && e.Symmetric {
		t = t.Narrow()
	}
	if e.Reduced {
		t = t.Reduced()
	}
	return quant.Scheme{Type: t, Symmetric: e.Symmetric, Axis: e.Axis, PowerOfTwo: e.PowerOfTwo}, nil
}
