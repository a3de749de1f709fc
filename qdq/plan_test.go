package qdq_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

const planModel = `<ir_version: 8, opset_import: ["" : 13]>
g (float[1,3,8,8] x) => (float[1,4] y)
<float[4,3,3,3] w = {...}, float[4] b = {...}, float[16,4] v = {...}, int64[2] flat = {1,16}>
{
  [conv] c = Conv <strides = [3,3]> (x, w, b)
  [relu] r = Relu (c)
  [flat] f = Reshape (r, flat)
  [mm] y = MatMul (f, v)
}
`

func planOf(t *testing.T) (*graph.Model, *qdq.Plan) {
	t.Helper()
	m := parse(t, planModel)
	p, err := qdq.Annotate(m, ortCPU(t), qdq.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m, p
}

func node(p *qdq.Plan, name string) *qdq.NodePlan {
	return &p.Nodes[slices.IndexFunc(p.Nodes, func(e qdq.NodePlan) bool { return e.Node == name })]
}

func tensorPlan(p *qdq.Plan, name string) *qdq.TensorPlan {
	return &p.Tensors[slices.IndexFunc(p.Tensors, func(e qdq.TensorPlan) bool { return e.Tensor == name })]
}

// TestEditedPlan edits a plan by hand and looks at the operators that the
// result has.
func TestEditedPlan(t *testing.T) {
	keep := func(p *qdq.Plan, names ...string) {
		for _, n := range names {
			e := node(p, n)
			e.Quantized, e.How, e.Why = false, "", "by hand"
		}
	}
	for _, c := range []struct {
		name string
		edit func(*qdq.Plan)
		want string
	}{
		{"as made", func(p *qdq.Plan) {}, "QuantizeLinear DequantizeLinear DequantizeLinear DequantizeLinear Conv QuantizeLinear DequantizeLinear Reshape QuantizeLinear DequantizeLinear DequantizeLinear MatMul"},
		{"conv float", func(p *qdq.Plan) { keep(p, "conv", "relu") },
			"Conv Relu QuantizeLinear DequantizeLinear Reshape QuantizeLinear DequantizeLinear DequantizeLinear MatMul"},
		{"conv float, its Relu still absorbed", func(p *qdq.Plan) { keep(p, "conv") },
			"Conv Relu QuantizeLinear DequantizeLinear Reshape QuantizeLinear DequantizeLinear DequantizeLinear MatMul"},
		{"product float", func(p *qdq.Plan) { keep(p, "mm", "flat") },
			"QuantizeLinear DequantizeLinear DequantizeLinear DequantizeLinear Conv QuantizeLinear DequantizeLinear Reshape MatMul"},
		{"nothing", func(p *qdq.Plan) { keep(p, "conv", "relu", "flat", "mm") }, "Conv Relu Reshape MatMul"},
	} {
		m, p := planOf(t)
		c.edit(p)
		q, _ := rewrite(t, m, p)
		compare(t, m, q, 0.03)
		var ops []string
		for n := range q.Graph.Nodes() {
			ops = append(ops, n.Op.Type)
		}
		if got := strings.Join(ops, " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// A range and a type in the plan rule what calibration says.
func TestEditedTensors(t *testing.T) {
	m, p := planOf(t)
	tensorPlan(p, "x").Range = &[2]float64{-4, 4}
	tensorPlan(p, "w").Axis = -1
	tensorPlan(p, "r").Range = &[2]float64{-6, 3} // a Relu's
	tensorPlan(p, "v").Type, tensorPlan(p, "v").Symmetric = "u8", false
	params, _, err := p.Resolve(m, observe(t, m), 0)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) quant.Params {
		return params[slices.IndexFunc(p.Tensors, func(e qdq.TensorPlan) bool { return e.Tensor == name })]
	}
	if x := at("x"); x.Scale[0] != float32(8./255) || x.Zero[0] != 127 {
		t.Errorf("x has scale %g and zero point %d", x.Scale[0], x.Zero[0])
	}
	if r := at("r"); r.Scale[0] != float32(3./255) || r.Zero[0] != 0 {
		t.Errorf("r has scale %g and zero point %d, as if its Relu did not bound it", r.Scale[0], r.Zero[0])
	}
	if w := at("w"); len(w.Scale) != 1 {
		t.Errorf("w has %d scales", len(w.Scale))
	}
	if v := at("v"); v.Type.Name != "u8" || v.Zero[0] == 0 {
		t.Errorf("v has type %s, zero point %d", v.Type.Name, v.Zero[0])
	}
}

// Shared ranges are the union, whatever the order of entries; the range of the
// first of a group that is given by hand rules the group.
func TestSharedRanges(t *testing.T) {
	m, p := planOf(t)
	ranges := func(v *graph.Value, e *qdq.TensorPlan) (quant.Range, string) {
		return map[string]quant.Range{"x": {Min: -1, Max: 1}, "r": {Min: 0, Max: 1}, "f": {Min: 0, Max: 3}}[v.Name()], ""
	}
	scale := func() [2]float32 {
		params, _, err := p.Resolve(m, ranges, 0)
		if err != nil {
			t.Fatal(err)
		}
		var out [2]float32
		for i, e := range p.Tensors {
			switch e.Tensor {
			case "r":
				out[0] = params[i].Scale[0]
			case "f":
				out[1] = params[i].Scale[0]
			}
		}
		return out
	}
	if got, want := scale(), (float32(3. / 255)); got != [2]float32{want, want} {
		t.Errorf("scales %g, want %g", got, want)
	}
	slices.Reverse(p.Tensors)
	if got, want := scale(), (float32(3. / 255)); got != [2]float32{want, want} {
		t.Errorf("reversed: scales %g, want %g", got, want)
	}
	tensorPlan(p, "r").Range = &[2]float64{0, 2}
	for range 2 {
		if got, want := scale(), (float32(2. / 255)); got != [2]float32{want, want} {
			t.Errorf("given range: scales %g, want %g", got, want)
		}
		slices.Reverse(p.Tensors)
	}
}

func TestUnusableRanges(t *testing.T) {
	m, p := planOf(t)
	params, bad, err := p.Resolve(m, func(v *graph.Value, e *qdq.TensorPlan) (quant.Range, string) {
		if v.Name() == "f" {
			return quant.Range{}, "no sample reached it"
		}
		return quant.Range{Max: 1}, ""
	}, 0)
	if err != nil || params != nil || len(bad) != 1 {
		t.Fatal(params, bad, err)
	}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if n.Name == "flat" && bad[n.Output(0).ID] != "no sample reached it" {
				t.Error(bad)
			}
		}
	}
	p, err = qdq.Annotate(m, ortCPU(t), qdq.Options{Unusable: bad})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"mm": `input "f": no sample reached it`, "flat": `output "f": no sample reached it`} {
		if got := node(p, name).Why; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !node(p, "conv").Quantized {
		t.Error("conv is float as well")
	}
}

// TestPlanErrors makes plans that cannot be carried out.
func TestPlanErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*qdq.Plan)
		want string
	}{
		{"entry missing", func(p *qdq.Plan) { p.Nodes = p.Nodes[1:] }, `node "conv" (Conv): the plan has no entry for this node; was it made from another model?`},
		{"another operator", func(p *qdq.Plan) { p.Nodes[0].Op = "MatMul" }, `the plan has operator "MatMul" here`},
		{"node that does not exist", func(p *qdq.Plan) { p.Nodes = append(p.Nodes, qdq.NodePlan{Scope: "main", Node: "no"}) }, "the model has no such node"},
		{"tensor that does not exist", func(p *qdq.Plan) { p.Tensors[0].Tensor = "no" }, "the model has no such tensor"},
		{"same_as nothing", func(p *qdq.Plan) { tensorPlan(p, "f").SameAs = "no" }, `same_as names "no"`},
		{"same_as itself", func(p *qdq.Plan) { tensorPlan(p, "f").SameAs = "f" }, `leads in a circle`},
		{"circle elsewhere", func(p *qdq.Plan) {
			tensorPlan(p, "x").SameAs, tensorPlan(p, "f").SameAs, tensorPlan(p, "r").SameAs = "f", "r", "f"
		}, `leads in a circle`},
		{"unknown type", func(p *qdq.Plan) { tensorPlan(p, "x").Type = "u7" }, `"x": unknown storage type "u7"`},
		{"range upside down", func(p *qdq.Plan) { tensorPlan(p, "x").Range = &[2]float64{1, -1} }, `"x": range [1, -1] is not a finite interval`},
		{"unknown how", func(p *qdq.Plan) { node(p, "conv").How = "magic" }, `"magic" is none of`},
		{"quantized without how", func(p *qdq.Plan) { node(p, "conv").How = "" }, `the plan does not say how the node is quantized`},
		{"inputs not planned", func(p *qdq.Plan) { p.Tensors = p.Tensors[1:] }, `"conv" (Conv): the plan quantizes the node but not its inputs`},
		{"conv absorbed", func(p *qdq.Plan) { node(p, "conv").How = qdq.Absorbed }, `can be absorbed`},
		{"conv looked up", func(p *qdq.Plan) { node(p, "conv").How = qdq.Lookup }, `only a Gather`},
		{"axis out of range", func(p *qdq.Plan) { tensorPlan(p, "w").Axis = 7 }, `"w"`},
		{"axis of a bias's weight", func(p *qdq.Plan) { tensorPlan(p, "w").Axis = 1 }, `"conv"`},
		{"weight taken for an activation", func(p *qdq.Plan) { tensorPlan(p, "w").Kind = qdq.Activation }, `"w"`},
		{"activation taken for a weight", func(p *qdq.Plan) { tensorPlan(p, "x").Kind = qdq.Weight }, `"x"`},
		{"activation of few bits", func(p *qdq.Plan) { tensorPlan(p, "x").Type = "i4" }, `activations have 8 or 16 bits, the plan has i4`},
		{"few bits at load", func(p *qdq.Plan) { tensorPlan(p, "w").Type, tensorPlan(p, "w").AtLoad = "i4", true }, `"w": weights in i4 that are decoded at load want a form`},
		{"axis of an activation", func(p *qdq.Plan) { tensorPlan(p, "x").Axis = 1 }, `"x"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, p := planOf(t)
			c.edit(p)
			params, _, err := p.Resolve(m, observe(t, m), 0)
			if err == nil {
				_, err = qdq.Rewrite(m.Clone(), p, params)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	other := parse(t, `<ir_version: 8, opset_import: ["" : 13]> g (float[2] x) => (float[2] y) { [other] y = Neg (x) }`)
	_, p := planOf(t)
	if _, err := p.Wants(other); err == nil || !strings.Contains(err.Error(), `node "other" (Neg)`) {
		t.Errorf("plan of another model: error %v", err)
	}
}

func TestReadPlan(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{"format": "onnxq-plan", "version": 99}`, `version 99`},
		{`{"format": "something"}`, `format "something"`},
		{`{"format": "onnxq-plan", "version": 1, "colour": 3}`, `unknown field "colour"`},
		{`[`, `plan: `},
		{``, `plan: `},
	} {
		if _, err := qdq.ReadPlan(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.text, err, c.want)
		}
	}
}

// A bias that would overflow raises the scale of its channel before codes are chosen,
// and where it grows afterwards, the codes of the other channels stay.
func TestFitBiases(t *testing.T) {
	m, p := planOf(t)
	named := func(m *graph.Model, name string) *graph.Value {
		for _, v := range m.Graph.Initializers() {
			if v.Name() == name {
				return v
			}
		}
		t.Fatalf("no initializer %q", name)
		return nil
	}
	w, b := tensor.As[float32](named(m, "w").Const), tensor.As[float32](named(m, "b").Const)
	for i := range w[:27] {
		w[i] = 1e-9
	}
	b[0] = 10
	params, _, err := p.Resolve(m, observe(t, m), 0)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(p.Tensors, func(e qdq.TensorPlan) bool { return e.Tensor == "w" })
	before := slices.Clone(params[at].Scale)
	notes, err := p.FitBiases(m, params)
	if err != nil || len(notes) != 1 {
		t.Fatal(notes, err)
	}
	if scale := params[at].Scale; !(scale[0] > before[0]) || !slices.Equal(scale[1:], before[1:]) {
		t.Errorf("scales %v become %v", before, scale)
	}
	if notes, err = p.FitBiases(m, params); err != nil || notes != nil {
		t.Error("a second time:", notes, err)
	}
	chosen := tensor.New(tensor.Int8, named(m, "w").Const.Shape()...)
	for i := range chosen.Bytes() {
		chosen.Bytes()[i] = 5
	}
	params[at].Codes = chosen
	q := m.Clone()
	tensor.As[float32](named(q, "b").Const)[0] = 20
	if notes, err = qdq.Rewrite(q, p, params); err != nil || len(notes) != 1 {
		t.Fatal(notes, err)
	}
	for n := range q.Graph.Nodes() {
		if n.Op.Type != "Conv" {
			continue
		}
		codes := tensor.As[int8](n.Input(1).DefNode().Input(0).Const)
		if codes[0] != 0 || codes[27] != 5 || codes[len(codes)-1] != 5 {
			t.Errorf("codes %v", codes)
		}
		return
	}
	t.Error("no Conv is left")
}

func TestWants(t *testing.T) {
	m, p := planOf(t)
	want, err := p.Wants(m)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]quant.Watch{}
	see := func(v *graph.Value) {
		if want[v.ID].Observe {
			got[v.Name()] = want[v.ID]
		}
	}
	see(m.Graph.Inputs()[0])
	for n := range m.Graph.Nodes() {
		see(n.Output(0))
	}
	for name, w := range map[string]quant.Watch{"x": {Observe: true, Channels: true, Axis: 1}, "r": {Observe: true}, "f": {Observe: true, Channels: true, Axis: -1}} {
		if got[name] != w {
			t.Errorf("%s: %+v, want %+v", name, got[name], w)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("also wants %v", got)
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b", true}, {"a*", "a", true}, {"a*b*c", "axxbxxc", true},
		{"a*b*c", "axxcxxb", false}, {"?", "a", true}, {"?", "", false}, {"a?c", "abc", true}, {`\*`, "*", true}, {`\*`, "a", false},
		{`a\`, `a\`, true}, {"**a", "bba", true}, {"a", "ab", false}, {"*a*", "bab", true}, {"[a]", "[a]", true},
	} {
		if got := qdq.Match(c.pattern, c.s); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.s, got)
		}
	}
	if qdq.Match(strings.Repeat("*a", 50), strings.Repeat("a", 10000)+"b") {
		t.Error("matches too much")
	}
}

func TestUnmatchedGlob(t *testing.T) {
	m, _ := planOf(t)
	_, err := qdq.Annotate(m, ortCPU(t), qdq.Options{Include: []string{"conv", "op:Softmax"}})
	var e *qdq.GlobError
	if !errors.As(err, &e) || e.Glob != "op:Softmax" {
		t.Errorf("error %v", err)
	}
}

// Products whose results a logarithm magnifies stay float, unless they are
// included by name; what makes values of its own between ends that.
func TestFeedsLog(t *testing.T) {
	const ends = `y = Conv (l, w2) }`
	for _, c := range []struct {
		name, nodes string
		float       []string
		include     []string
	}{
		{"power spectrum", `[first] a = Conv (x, w) [re] r = Conv (a, w) [im] i = Conv (a, w) p = Mul (r, r) q = Mul (i, i) s = Add (p, q) e = Add (s, eps) l = Log (e)`, []string{"first", "re", "im"}, nil},
		{"by name", `[first] a = Conv (x, w) p = Mul (a, a) e = Add (p, eps) l = Log (e)`, nil, []string{"first", "last"}},
		{"activation", `[first] a = Conv (x, w) r = Relu (a) [re] b = Conv (r, w) p = Mul (b, b) l = Log (p)`, []string{"re"}, nil},
		{"log of 1 + x", `[first] a = Conv (x, w) p = Mul (a, a) e = Add (p, one) l = Log (e)`, nil, nil},
		{"no log", `[first] a = Conv (x, w) p = Mul (a, a) e = Add (p, eps) l = Sqrt (e)`, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, `<ir_version: 8, opset_import: ["" : 13]> g (float[1,4,6,6] x) => (float[1,4,6,6] y)
				<float[4,4,1,1] w = {...}, float[4,4,1,1] w2 = {...}, float eps = {1e-9}, float one = {1}> { `+c.nodes+` [last] `+ends)
			p, err := qdq.Annotate(m, ortCPU(t), qdq.Options{Include: c.include})
			if err != nil {
				t.Fatal(err)
			}
			var float []string
			for _, n := range p.Nodes {
				if n.Op == "Conv" && !n.Quantized {
					float = append(float, n.Node)
					if !strings.Contains(n.Why, "feeds Log") {
						t.Errorf("%s is float since %q", n.Node, n.Why)
					}
				}
			}
			if !slices.Equal(float, c.float) {
				t.Errorf("float are %q, want %q", float, c.float)
			}
		})
	}
}

// In float16, what is scaled on the way to a logarithm stays float32, and so does
// what meets constants that float16 does not hold; products do not.
func TestHalfKeepsSmallValues(t *testing.T) {
	for _, c := range []struct {
		name, nodes string
		float       []string // besides Log
	}{
		{"power spectrum", `[first] a = Conv (x, w) [square] p = Mul (a, a) [turn] q = Transpose <perm = [0,1,2,3]> (p) [floor] e = Add (q, eps) [log] l = Log (e)`, []string{"square", "turn", "floor"}},
		{"log of 1 + x", `[first] a = Conv (x, w) [square] p = Mul (a, a) [floor] e = Add (p, one) [log] l = Log (e)`, nil},
		{"small constant", `[first] a = Conv (x, w) [square] p = Mul (a, a) [floor] e = Add (p, eps) [root] l = Sqrt (e)`, []string{"floor"}},
		{"small bias", `[first] l = Conv (x, w, small)`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, `<ir_version: 8, opset_import: ["" : 13]> g (float[1,4,6,6] x) => (float[1,4,6,6] y)
				<float[4,4,1,1] w = {...}, float[4,4,1,1] w2 = {...}, float eps = {1e-9}, float one = {1}, float[4] small = {1e-7, 0, 0, 0}> { `+c.nodes+` [last] y = Conv (l, w2) }`)
			p, err := qdq.Annotate(m, ortCPU(t), qdq.Options{Compute: qdq.Half})
			if err != nil {
				t.Fatal(err)
			}
			var float []string
			for _, n := range p.Nodes {
				if n.Op != "Log" && !n.Quantized {
					float = append(float, n.Node)
				}
			}
			if !slices.Equal(float, c.float) {
				t.Errorf("float are %q, want %q", float, c.float)
			}
		})
	}
}

// Inputs that are left out are no weights.
func TestWantsWithoutInput(t *testing.T) {
	m := parse(t, `<ir_version: 8, opset_import: ["" : 13]> g (float[1,4,6,6] x) => (float[1,4,12,12] y)
		<float[4,4,1,1] w = {...}, float[4,4,1,1] w2 = {...}, float[4] s = {1, 1, 2, 2}> { a = Conv (x, w) r = Resize (a, , s) y = Conv (r, w2) }`)
	p, err := qdq.Annotate(m, target(t, "qnn"), qdq.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := p.Wants(m)
	if err != nil || p.Quantized() != 3 {
		t.Fatalf("%d nodes quantized, %v", p.Quantized(), err)
	}
	for n := range m.Graph.Nodes() {
		if v := n.Output(0); !want[v.ID].Observe {
			t.Errorf("%s is not observed", v.Name())
		}
	}
}
