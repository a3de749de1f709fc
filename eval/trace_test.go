package eval_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

const traceInits = `float s = {0.01}, float sa = {0.02}, float sy = {0.05}, float half = {0.004}, uint8 z = {128}, uint8 zero = {0}, float sw = {0.01}, int8 zw = {0},
 float[4,4,1,1] w = {0.5,0.1,0.2,-0.3, 0.1,-0.5,0.4,0.2, -0.1,0.2,0.6,0.3, 0.2,0.2,-0.2,0.7}, float[4,4,1,1] w2 = {0.25,0.1,-0.2,0.3, 0.1,0.5,0.4,-0.2, 0.1,0.2,0.6,0.3, -0.2,0.2,0.2,0.7},
 int8[4,4,1,1] wq = {50,10,20,-30, 10,-50,40,20, -10,20,60,30, 20,20,-20,70}, int8[4,4,1,1] w2q = {25,10,-20,30, 10,50,40,-20, 10,20,60,30, -20,20,20,70},
 float[4,4,1,1] w8 = {4,0.8,1.6,-2.4, 0.1,-0.5,0.4,0.2, -0.1,0.2,0.6,0.3, 0.2,0.2,-0.2,0.7}, float[4,4,1,1] w28 = {0.03125,0.1,-0.2,0.3, 0.0125,0.5,0.4,-0.2, 0.0125,0.2,0.6,0.3, -0.025,0.2,0.2,0.7}`

func traceModel(t *testing.T, nodes string) *graph.Model {
	t.Helper()
	m, err := graph.Parse("<ir_version: 8, opset_import: [\"\" : 13, \"com.microsoft\" : 1]>\ng (float[1,4,4,4] x) => (y)\n<" + traceInits + ">\n{\n" + nodes + "}\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// follow runs samples through a trace.
func follow(t *testing.T, tr *eval.Trace, samples int) {
	t.Helper()
	a, b, at, bt := tr.Models()
	open := func(m *graph.Model, taps []bool) exec.Runner {
		if err := m.Verify(); err != nil {
			t.Fatal(err)
		}
		p, err := exec.Compile(m, exec.Options{Taps: taps})
		if err != nil {
			t.Fatal(err)
		}
		return p.NewSession(exec.SessionOptions{Threads: 2})
	}
	x, y := open(a, at), open(b, bt)
	r := rand.New(rand.NewPCG(1, 2))
	for range samples {
		in := tensor.New(tensor.Float32, 1, 4, 4, 4)
		for i := range tensor.As[float32](in) {
			tensor.As[float32](in)[i] = float32(2*r.Float64() - 1)
		}
		feed := map[string]ops.Data{"x": in}
		if _, _, err := tr.Run(t.Context(), x, y, feed, feed); err != nil {
			t.Fatal(err)
		}
	}
}

const floatNodes = "[one] a = Conv (x, w)\n[clamp] r = Relu (a)\n[two] y = Conv (r, w2)\n"

func valuesOf(tr *eval.Trace) map[string]eval.Value {
	m := map[string]eval.Value{}
	for _, v := range tr.Values() {
		m[v.Name] = v
	}
	return m
}

func nodesOf(tr *eval.Trace) map[string]eval.NodeError {
	m := map[string]eval.NodeError{}
	for _, n := range tr.Nodes() {
		m[n.Node] = n
	}
	return m
}

// Values are found behind QuantizeLinear as this program, ONNX Runtime's
// quantizer and the QOperator format write it, with and without the Relu that
// the quantizer replaces.
func TestTraceForms(t *testing.T) {
	ref := traceModel(t, floatNodes)
	weights := "wd = DequantizeLinear (wq, sw, zw)\nw2d = DequantizeLinear (w2q, sw, zw)\n"
	for _, c := range []struct{ name, nodes string }{
		{"absorbed", weights + "x_q = QuantizeLinear (x, s, z)\nx_dq = DequantizeLinear (x_q, s, z)\na = Conv (x_dq, wd)\nr_q = QuantizeLinear (a, s, zero)\nr_dq = DequantizeLinear (r_q, s, zero)\ny = Conv (r_dq, w2d)\n"},
		{"other tool", weights + "x_QuantizeLinear_Output = QuantizeLinear (x, s, z)\nx_DequantizeLinear_Output = DequantizeLinear (x_QuantizeLinear_Output, s, z)\na = Conv (x_DequantizeLinear_Output, wd)\nr = Relu (a)\nr_QuantizeLinear_Output = QuantizeLinear (r, s, zero)\nr_DequantizeLinear_Output = DequantizeLinear (r_QuantizeLinear_Output, s, zero)\ny = Conv (r_DequantizeLinear_Output, w2d)\n"},
		{"operators", "x_quantized = QuantizeLinear (x, s, z)\nr_quantized = QLinearConv (x_quantized, s, z, wq, sw, zw, s, zero)\ny_quantized = QLinearConv (r_quantized, s, zero, w2q, sw, zw, sy, z)\ny = DequantizeLinear (y_quantized, sy, z)\n"},
	} {
		tr := eval.NewTrace(ref, traceModel(t, c.nodes))
		follow(t, tr, 5)
		v, n := valuesOf(tr), nodesOf(tr)
		if r := v["r"]; r.SQNR == nil || *r.SQNR < 30 || *r.SQNR > 60 || r.Rescaled {
			t.Errorf("%s: r is %+v; %v", c.name, r, tr)
		}
		if x := v["x"]; x.SQNR == nil || *x.SQNR < 35 || *x.Cosine < 0.999 || n["x"].Op != "input" {
			t.Errorf("%s: x is %+v", c.name, x)
		}
		share := 0.0
		for _, e := range n {
			share += e.Share
		}
		if math.Abs(share-1) > 1e-9 || n["clamp"].Added == nil || n["two"].In == nil {
			t.Errorf("%s: shares add to %g: %+v", c.name, share, n)
		}
	}
}

// What a node adds is told from what its inputs bring: with one node quantized,
// all of the error starts there.
func TestTraceAdded(t *testing.T) {
	ref := traceModel(t, floatNodes)
	for _, c := range []struct{ nodes, culprit string }{
		{"x_q = QuantizeLinear (x, s, z)\nx_dq = DequantizeLinear (x_q, s, z)\nwd = DequantizeLinear (wq, sw, zw)\n[one] a = Conv (x_dq, wd)\n[clamp] r = Relu (a)\n[two] y = Conv (r, w2)\n", "x"},
		{"[one] a = Conv (x, w)\n[clamp] r = Relu (a)\nr_q = QuantizeLinear (r, sa, zero)\nr_dq = DequantizeLinear (r_q, sa, zero)\n[two] y = Conv (r_dq, w2)\n", "clamp"},
	} {
		tr := eval.NewTrace(ref, traceModel(t, c.nodes))
		follow(t, tr, 3)
		list := tr.Nodes()
		if len(list) < 1 || list[0].Node != c.culprit || list[0].Share < 0.999 || tr.Unmatched() != 0 {
			t.Errorf("%+v, want %s alone; %v", list, c.culprit, tr)
		}
	}
}

// Where noise starts is told by value, inputs among them, and what is exact has
// none of it.
func TestTraceOrigins(t *testing.T) {
	ref := traceModel(t, floatNodes)
	tr := eval.NewTrace(ref, traceModel(t, "x_q = QuantizeLinear (x, s, z)\nx_dq = DequantizeLinear (x_q, s, z)\na = Conv (x_dq, w)\nr = Relu (a)\nwd = DequantizeLinear (w2q, sw, zw)\ny = Conv (r, wd)\n"))
	follow(t, tr, 3)
	parts := map[string]float64{}
	of := tr.Origins([]float64{1})
	for _, v := range append([]*graph.Value{ref.Graph.Inputs()[0]}, ref.Graph.Outputs()...) {
		parts[v.Name()] = of[v.ID]
	}
	for n := range ref.Graph.Nodes() {
		part, ok := of[n.Output(0).ID]
		if name := n.Output(0).Name(); name != "y" && (!ok || part != 0) {
			t.Errorf("%s has %g, %v", name, part, ok)
		}
	}
	if parts["x"] < 0.999 || math.Abs(parts["x"]+parts["y"]-1) > 1e-9 {
		t.Errorf("%v, want all of it at x and what the weight leaves at y", parts)
	}
}

// Channels that equalization scaled are compared as if they were not.
func TestTraceRescaled(t *testing.T) {
	ref := traceModel(t, floatNodes)
	got := traceModel(t, strings.NewReplacer("w2)", "w28)", ", w)", ", w8)").Replace(floatNodes))
	tr := eval.NewTrace(ref, got)
	follow(t, tr, 4)
	if v := valuesOf(tr); *v["r"].SQNR > 10 {
		t.Errorf("r is %+v before", v["r"])
	}
	again := tr.Rescaled(got)
	if again == nil {
		t.Fatal("not noticed")
	}
	follow(t, again, 4)
	if r := valuesOf(again)["r"]; !r.Rescaled || r.SQNR != nil && *r.SQNR < 100 {
		t.Errorf("r is %+v", r)
	}
	for _, n := range again.Nodes() {
		if n.Added != nil && *n.Added < 100 {
			t.Errorf("%+v", n)
		}
	}
	if again.Rescaled(got) != nil {
		t.Error("twice")
	}
	same := eval.NewTrace(ref, ref)
	follow(t, same, 2)
	if same.Rescaled(ref) != nil || len(same.Nodes()) != 0 {
		t.Errorf("a model differs from itself: %+v", same.Nodes())
	}
}

// Values in bodies are compared too, each time that a body runs.
func TestTraceBodies(t *testing.T) {
	text := func(inner string) string {
		return "n = Constant <value = int64 {3}> ()\nyes = Constant <value = bool {1}> ()\ny = Loop <body = b (int64 i, bool c, float[1,4,4,4] s0) => (bool c2, float[1,4,4,4] s1) {\nc2 = Identity (c)\n" + inner + "}> (n, yes, x)\n"
	}
	tr := eval.NewTrace(traceModel(t, text("v = Conv (s0, w)\ns1 = Tanh (v)\n")), traceModel(t, text("wd = DequantizeLinear (wq, sw, zw)\nq = QuantizeLinear (s0, s, z)\nd = DequantizeLinear (q, s, z)\nv = Conv (d, wd)\ns1 = Tanh (v)\n")))
	follow(t, tr, 2)
	found := false
	for _, v := range tr.Values() {
		if v.Name == "v" {
			found = true
			if v.SQNR == nil || *v.SQNR < 20 || v.Scope == graph.MainScope {
				t.Errorf("%+v", v)
			}
		}
	}
	if !found {
		t.Errorf("%+v", tr.Values())
	}
}

// A value that has other channels in the quantized model, as where outliers are split,
// is not matched, and nothing is made from it.
func TestTraceChannels(t *testing.T) {
	tr := eval.NewTrace(traceModel(t, floatNodes), traceModel(t, "a = Conv (x, w)\nr4 = Relu (a)\nr = Concat <axis = 1> (r4, r4)\ny = Conv (r4, w28)\n"))
	follow(t, tr, 2)
	if v := valuesOf(tr); tr.Unmatched() != 1 || v["y"].SQNR == nil || v["r"].Op != "" {
		t.Errorf("%v: %+v", tr, v)
	}
}

// The result is the same for any order in which values meet, and does not wait
// for ever where few bytes may be kept.
func TestTraceDeterministic(t *testing.T) {
	ref := traceModel(t, floatNodes)
	got := traceModel(t, "x_q = QuantizeLinear (x, s, z)\nx_dq = DequantizeLinear (x_q, s, z)\nwd = DequantizeLinear (wq, sw, zw)\na = Conv (x_dq, wd)\nr = Relu (a)\ny = Conv (r, w2)\n")
	first := ""
	for _, limit := range []int64{0, 100, 300, 1 << 30} {
		tr := eval.NewTrace(ref, got)
		eval.SetPending(tr, limit)
		follow(t, tr, 20)
		b, err := json.Marshal([]any{tr.Values(), tr.Nodes()})
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = string(b)
		}
		if string(b) != first {
			t.Errorf("limit %d: %s, want %s", limit, b, first)
		}
	}
}

// An error of one run ends the other.
func TestTraceErrors(t *testing.T) {
	ref, got := traceModel(t, floatNodes), traceModel(t, floatNodes)
	tr := eval.NewTrace(ref, got)
	a, b, at, bt := tr.Models()
	pa, err := exec.Compile(a, exec.Options{Taps: at})
	if err != nil {
		t.Fatal(err)
	}
	pb, err := exec.Compile(b, exec.Options{Taps: bt})
	if err != nil {
		t.Fatal(err)
	}
	good := map[string]ops.Data{"x": tensor.New(tensor.Float32, 1, 4, 4, 4)}
	for _, bad := range []map[string]ops.Data{{}, {"x": tensor.New(tensor.Float32, 1, 3, 4, 4)}} {
		for _, in := range [][2]map[string]ops.Data{{good, bad}, {bad, good}} {
			_, _, err := tr.Run(t.Context(), pa.NewSession(exec.SessionOptions{Threads: 1}), pb.NewSession(exec.SessionOptions{Threads: 1}), in[0], in[1])
			if err == nil || strings.Contains(fmt.Sprint(err), "canceled") {
				t.Errorf("error %v", err)
			}
		}
	}
}
