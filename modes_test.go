package onnxq_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration/npy"
	executor "github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/exec/ort"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/orttest"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// operators counts the operators of a model file.
func operators(t *testing.T, data []byte) map[string]int {
	t.Helper()
	m, err := onnxfile.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			out[n.Op.String()]++
		}
	}
	return out
}

// TestQOperator: operators on codes compute what groups of QuantizeLinear and
// DequantizeLinear do.
func TestQOperator(t *testing.T) {
	o := onnxq.Options{Mode: onnxq.Static, Algorithms: []onnxq.Algorithm{}, Data: samples("digits"), Samples: 12, Threads: 1}
	_, pairs := quantize(t, "digits", o)
	o.Format = onnxq.QOperator
	data, codes := quantize(t, "digits", o)
	if *pairs.SQNR != *codes.SQNR {
		t.Errorf("%v dB, with pairs %v", *codes.SQNR, *pairs.SQNR)
	}
	got := operators(t, data)
	if got["QLinearConv"] == 0 || got["Conv"] > 0 || got["com.microsoft.QGemm"] == 0 || got["Gemm"] > 0 || got["QuantizeLinear"] > 1 {
		t.Errorf("operators are %v", got)
	}
	o.Target, _ = targets.Get("tensorrt")
	if _, err := onnxq.Quantize(t.Context(), sampleModel("digits"), t.TempDir()+"/x.onnx", o); err == nil || !strings.Contains(err.Error(), "tensorrt") {
		t.Errorf("tensorrt: %v", err)
	}
}

// TestModes quantizes the sample models in the modes that need no samples and
// looks at what becomes of their products.
func TestModes(t *testing.T) {
	for _, c := range []struct {
		name string
		o    onnxq.Options
		want string // operator that has to be there
		gone string // and one that has not
		less float64
		dB   float64
	}{
		{"digits", onnxq.Options{Mode: onnxq.Dynamic}, "MatMulInteger", "Gemm", 0.35, 25},
		{"text", onnxq.Options{Mode: onnxq.Dynamic}, "DynamicQuantizeLinear", "Gemm", 0.35, 25},
		{"digits", onnxq.Options{Mode: onnxq.Dynamic, PerToken: true}, "ReduceMax", "Gemm", 0.35, 25},
		{"text", onnxq.Options{Mode: onnxq.Dynamic, PerToken: true}, "ReduceMax", "DynamicQuantizeLinear", 0.35, 30},
		{"digits", onnxq.Options{Mode: onnxq.Float16}, "Cast", "DequantizeLinear", 0.6, 50},
		{"text", onnxq.Options{Mode: onnxq.Float16}, "Cast", "DequantizeLinear", 0.6, 50},
		{"digits", onnxq.Options{Mode: onnxq.Static, Activations: "i8", SymmetricActivations: true, PowerOfTwo: true}, "QuantizeLinear", "ConvInteger", 0.35, 15},
		{"digits", onnxq.Options{Mode: onnxq.Static, Activations: "u16"}, "com.microsoft.QuantizeLinear", "QuantizeLinear", 0.35, 30},
	} {
		c.o.Data, c.o.Samples, c.o.Threads = samples(c.name), 12, 1
		data, res := quantize(t, c.name, c.o)
		if got := operators(t, data); got[c.want] == 0 || got[c.gone] > 0 {
			t.Errorf("%s %+v: operators are %v", c.name, c.o.Mode, got)
		}
		if share := float64(res.WeightBytesOut) / float64(res.WeightBytesIn); share > c.less || res.SQNR == nil || *res.SQNR < c.dB {
			t.Errorf("%s %v: weights take %.2f, SQNR %v", c.name, c.o.Mode, share, res.Outputs)
		}
	}
}

// sameAsRuntime runs a quantized model on samples in the executor and in ONNX
// Runtime at a level of optimization, whose outputs may differ by a share of the
// signal: a last bit in float changes some codes.
func sameAsRuntime(t *testing.T, name, path string, share float64, level ort.Optimization) {
	t.Helper()
	if os.Getenv("ONNXQ_ORT_LIB") == "" && os.Getenv("ONNXQ_PYTHON") == "" {
		return // TestRuntimeForWeights says so
	}
	runtime, err := ort.Open(ort.Options{Library: orttest.Library(t), Optimization: level})
	if err != nil {
		t.Fatal(err)
	}
	m, err := onnxfile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	src, err := onnxq.Open(t.Context(), m, samples(name), onnxq.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var got, want []float32
	for i := range min(8, src.Len()) {
		feed, err := src.Load(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		in := map[string]ops.Data{}
		for k, v := range feed {
			in[k] = v
		}
		got = append(got, slices.Concat(outputs(t, executor.Embedded{}, m, in)...)...)
		want = append(want, slices.Concat(outputs(t, runtime, m, in)...)...)
	}
	if r := relative(got, want); !(r <= share) {
		t.Errorf("%s: outputs differ from the runtime's by %.2g, more than %.2g", name, r, share)
	}
}

// TestPerToken multiplies rows of unlike magnitude: a scale for each keeps the small
// ones, one scale for all loses them, and a demand on the outputs asks for the
// former. ONNX Runtime and the executor give the same, bias included.
func TestPerToken(t *testing.T) {
	const k, n, rows = 48, 40, 6
	r := rand.New(rand.NewPCG(7, 8))
	floats := func(shape ...int) *tensor.Tensor {
		x := tensor.New(tensor.Float32, shape...)
		for i := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = float32(r.NormFloat64())
		}
		return x
	}
	m, err := graph.Parse(fmt.Sprintf(`<ir_version: 8, opset_import: ["": 17]>
g (float[b,%d,%d] x, float[%d,%d] w, float[%d] c) => (float[b,%d,%d] y) { p = MatMul (x, w) y = Add (p, c) }`, rows, k, k, n, n, rows, n))
	if err != nil {
		t.Fatal(err)
	}
	bias := floats(n)
	for i := range tensor.As[float32](bias) {
		tensor.As[float32](bias)[i] *= 1e-3
	}
	for _, c := range []*tensor.Tensor{floats(k, n), bias} {
		v := m.Graph.Inputs()[1]
		m.Graph.RemoveInput(v)
		m.Graph.AddInitializer(v, c)
	}
	x := floats(2, rows, k)
	for i := range tensor.As[float32](x) {
		tensor.As[float32](x)[i] *= float32(math.Pow(10, float64(-(i / k % rows)))) // each row a tenth of the one before
		if i/k == rows {
			tensor.As[float32](x)[i] = 0 // and one of zeros
		}
	}
	dir := t.TempDir()
	var b bytes.Buffer
	if err := npy.Write(&b, x); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "x.npy")
	if err := os.WriteFile(data, b.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	in := map[string]ops.Data{"x": x}
	want := outputs(t, executor.Embedded{}, m, in)
	demand := 30.0
	var files []string
	for _, c := range []struct {
		o     onnxq.Options
		worst float64 // the greatest error of a row, relative to the row
		less  bool
	}{
		{onnxq.Options{Mode: onnxq.Dynamic, Data: []string{data}}, 0.5, false},
		{onnxq.Options{Mode: onnxq.Dynamic, PerToken: true}, 0.03, true},
		{onnxq.Options{Mode: onnxq.Dynamic, Data: []string{data}, MinSQNR: &demand}, 0.5, false}, // which it keeps
	} {
		q, _, err := onnxq.QuantizeModel(t.Context(), m, c.o)
		if err != nil {
			t.Fatal(err)
		}
		got := outputs(t, executor.Embedded{}, q, in)
		worst := 0.0
		for i := 0; i < len(got[0]); i += n {
			if i/n != rows {
				worst = max(worst, relative(got[0][i:i+n], want[0][i:i+n]))
			}
		}
		if c.less && worst > c.worst || !c.less && worst < c.worst {
			t.Errorf("per token %v: the worst row is off by %.3g", c.o.PerToken, worst)
		}
		if zeros := relative(got[0][rows*n:(rows+1)*n], want[0][rows*n:(rows+1)*n]); zeros > 1e-6 {
			t.Errorf("per token %v: the row of zeros is off by %.3g", c.o.PerToken, zeros)
		}
		path := filepath.Join(dir, fmt.Sprintf("%d.onnx", len(files)))
		files = append(files, path)
		if err := onnxfile.Save(t.Context(), q, path, onnxfile.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		compareWithRuntime(t, "per token", path, in, got, tensor.Float32)
	}
	check(t, files)
	// Where what follows looks at each row alone, one scale does not keep the demand.
	p := m.Clone()
	g := p.Graph
	y := g.Outputs()[0]
	z := g.NewValue("z", y.Type)
	g.Append(g.NewNode(graph.OpKey{Type: "LayerNormalization"}, "", []*graph.Value{y, g.NewInitializer("ones", tensor.Of(slices.Repeat([]float32{1}, n)))}, []*graph.Value{z}, graph.Float("epsilon", 1e-30)))
	g.SetOutput(0, z)
	for _, c := range []struct {
		demand float64
		rows   int
	}{{-30, 0}, {25, 1}} {
		q, _, err := onnxq.QuantizeModel(t.Context(), p, onnxq.Options{Mode: onnxq.Dynamic, Data: []string{data}, MinSQNR: &c.demand})
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for n := range q.Graph.Nodes() {
			if n.Op.Type == "ReduceMax" {
				found++
			}
		}
		if found != c.rows {
			t.Errorf("%g dB demanded: %d values have a scale for each row", c.demand, found)
		}
	}
}

// TestFewBitsInKernels has integer kernels read weights of 4 bits, in the operators
// of either domain: files are small, pass onnx.checker, and compute in ONNX Runtime
// what they do in the executor. The search widens weights until its contract holds.
func TestFewBitsInKernels(t *testing.T) {
	qnn, err := targets.Get("qnn")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		o    onnxq.Options
		less float64 // share of the weights' bytes
		dB   float64
		off  float64 // how far the runtime's outputs may lie
	}{
		{"digits", onnxq.Options{Mode: onnxq.Static, Algorithms: []onnxq.Algorithm{}}, 0.16, 8, 5e-3},
		{"digits", onnxq.Options{Mode: onnxq.Static}, 0.16, 12, 5e-3},
		{"digits", onnxq.Options{Mode: onnxq.Static, Activations: "u16"}, 0.16, 12, 5e-3},
		{"digits", onnxq.Options{Mode: onnxq.Static, Opset: 21}, 0.16, 12, 5e-3},
		{"digits", onnxq.Options{Mode: onnxq.Static, Opset: 21, PerTensor: true, PowerOfTwo: true}, 0.16, 3, 5e-3},
		{"digits", onnxq.Options{}, 0.2, 15, 5e-3},
		{"text", onnxq.Options{Mode: onnxq.Static}, 0.3, 10, 0.05},
	} {
		c.o.Target, c.o.Weights, c.o.Data, c.o.Samples, c.o.Threads = qnn, "i4", samples(c.name), 40, 1
		path := filepath.Join(dir, fmt.Sprintf("%d.onnx", len(files)))
		files = append(files, path)
		res, err := onnxq.Quantize(t.Context(), sampleModel(c.name), path, c.o)
		if err != nil {
			t.Fatal(err)
		}
		if share := float64(res.WeightBytesOut) / float64(res.WeightBytesIn); share > c.less || res.SQNR == nil || *res.SQNR < c.dB {
			t.Errorf("%s: weights take %.3f, SQNR %.1f dB", c.name, share, *res.SQNR)
		}
		m, err := onnxfile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		domain, few, bytes := "", 0, 0
		if m.Opset("") < 21 {
			domain = "com.microsoft."
		}
		for n := range m.Graph.Nodes() {
			if w := n.Input(0); n.Op.Type == "DequantizeLinear" && w.IsConst() && w.Const.DType() == tensor.Int4 {
				few++
				bytes += w.Const.Size()
				if n.Op.String() != domain+"DequantizeLinear" || n.Input(2).Const.DType() != tensor.Int4 {
					t.Errorf("%s: %v decodes %v", c.name, n.Op, w.Const)
				}
			}
		}
		if few == 0 || m.IRVersion < 10 {
			t.Errorf("%s: %d weights of 4 bits in %d bytes, IR version %d", c.name, few, bytes, m.IRVersion)
		}
		lint, err := onnxq.Lint(m, c.o)
		if err != nil || lint.Fused == 0 {
			t.Errorf("%s: lint says %+v, %v", c.name, lint, err)
		}
		for _, g := range lint.Groups {
			if slices.Contains([]string{"Conv", "Gemm", "MatMul"}, g.Op) && !g.Fused {
				t.Errorf("%s: lint says of %s: %s", c.name, g.Node, g.Why)
			}
		}
		sameAsRuntime(t, c.name, path, c.off, ort.OptimizeAll)
	}
	check(t, files)
}

// TestFloat8 has products compute on float8: files pass onnx.checker, and compute in
// ONNX Runtime what they do in the executor.
func TestFloat8(t *testing.T) {
	tensorrt, err := targets.Get("tensorrt")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var files []string
	for _, c := range []struct {
		name string
		o    onnxq.Options
		off  float64
	}{
		{"digits", onnxq.Options{Mode: onnxq.Static, Algorithms: []onnxq.Algorithm{}}, 5e-3},
		{"digits", onnxq.Options{}, 5e-3},
		{"digits", onnxq.Options{Opset: 21, PerTensor: true, PowerOfTwo: true}, 5e-3},
		{"text", onnxq.Options{Mode: onnxq.Static}, 5e-3},
	} {
		c.o.Target, c.o.Activations, c.o.Data, c.o.Samples, c.o.Threads = tensorrt, "f8e4m3", samples(c.name), 40, 1
		path := filepath.Join(dir, fmt.Sprintf("%d.onnx", len(files)))
		files = append(files, path)
		res, err := onnxq.Quantize(t.Context(), sampleModel(c.name), path, c.o)
		if err != nil {
			t.Fatal(err)
		}
		if share := float64(res.WeightBytesOut) / float64(res.WeightBytesIn); share > 0.4 || res.SQNR == nil || *res.SQNR < 20 || res.Int8MACs != 0 {
			t.Errorf("%s: weights take %.3f, SQNR %.1f dB, %v on integers", c.name, share, *res.SQNR, res.Int8MACs)
		}
		m, err := onnxfile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if m.IRVersion < 9 || m.Opset("") < 19 {
			t.Errorf("%s: IR version %d, opset %d", c.name, m.IRVersion, m.Opset(""))
		}
		weights := 0
		for n := range m.Graph.Nodes() {
			if n.Op.Type != "QuantizeLinear" && n.Op.Type != "DequantizeLinear" {
				continue
			}
			if z := n.Input(2); z == nil || z.Const.DType() != tensor.Float8E4M3FN || slices.ContainsFunc(z.Const.Bytes(), func(b byte) bool { return b != 0 }) {
				t.Errorf("%s: %s has the zero point %v", c.name, n.Label(), z)
			}
			if w := n.Input(0); n.Op.Type == "DequantizeLinear" && w.IsConst() {
				weights++
			}
		}
		lint, err := onnxq.Lint(m, c.o)
		if err != nil || lint.Fused == 0 || lint.Float > 0 || weights == 0 {
			t.Errorf("%s: %d weights, lint says %+v, %v", c.name, weights, lint, err)
		}
		// From the extended level on, the runtime drops a Relu before float8 whose zero
		// point is 0, as if that were the least code.
		sameAsRuntime(t, c.name, path, c.off, ort.OptimizeBasic)
	}
	check(t, files)
}

// TestOutOfHalf: what leaves the range of float16 on samples, or loses its digits
// there, stays float32, and what the outputs lose is said.
func TestOutOfHalf(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 17]>
g (float[4] x) => (float[4] y, float[4] z, float[64] u) <float[4,64] w = {...}> { [a] a = Mul (x, x) [y] y = Mul (a, x) [b] b = Exp (x) [c] c = Neg (b) [z] z = Mul (c, c) [u] u = MatMul (x, w) }`)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := npy.NewWriter(&buf, false)
	if err := errors.Join(w.Add("x", tensor.Of([]float32{-12, -13, -14, -60})), w.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.npz")
	if err := os.WriteFile(path, buf.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	_, res, err := onnxq.QuantizeModel(t.Context(), m, onnxq.Options{Mode: onnxq.Float16, Data: []string{path}})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range res.Plan.Nodes {
		want := map[string]string{"y": "reaches", "c": "digits", "z": "digits", "b": "float32"}[n.Node]
		if n.Quantized != (want == "") || !strings.Contains(n.Why, want) {
			t.Errorf("%s %s: quantized is %v: %s", n.Op, n.Node, n.Quantized, n.Why)
		}
	}
	for _, o := range res.Outputs {
		if o.SQNR != nil && *o.SQNR < 60 {
			t.Errorf("%s: %v dB", o.Name, *o.SQNR)
		}
	}
}

// TestContradictions: options that cannot be met together are refused.
func TestContradictions(t *testing.T) {
	tensorrt, err := targets.Get("tensorrt")
	if err != nil {
		t.Fatal(err)
	}
	qnn, err := targets.Get("qnn")
	if err != nil {
		t.Fatal(err)
	}
	m, err := onnxq.Load(sampleModel("digits"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	p, _, err := onnxq.Prepare(t.Context(), m, onnxq.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]onnxq.Options{
		"DynamicQuantizeLinear gives no other type": {Mode: onnxq.Dynamic, Activations: "i8"},
		"a scale for each row is for mode dynamic":  {Mode: onnxq.Static, PerToken: true},
		"no symmetric activations":                  {Mode: onnxq.Dynamic, SymmetricActivations: true},
		"no power-of-two scales":                    {Mode: onnxq.Dynamic, PowerOfTwo: true},
		"mode dynamic quantizes activations":        {Mode: onnxq.Dynamic, Activations: onnxq.NoActivations},
		"f16 or bf16, not u8":                       {Mode: onnxq.Float16, Weights: "u8"},
		"ort-cpu does not compute in bf16":          {Mode: onnxq.Float16, Weights: "bf16"},
		"no kernels for u8 activations":             {Target: tensorrt, Activations: "u8"},
		"of ort-cpu read i8, u8 with scales of float32, one for a channel or tensor; i4 are read by those of qnn": {Mode: onnxq.Static, Weights: "i4"},
		"of ort-cpu read i8, u8 with scales of float32, one for a channel or tensor":                              {Mode: onnxq.Static, Weights: "nf4"},
		"mode dynamic has weights of 8 bits, not i4":                                                              {Mode: onnxq.Dynamic, Weights: "i4", Target: qnn},
		"qnn has no form for i4 weights":                                                                          {Mode: onnxq.Weights, Weights: "i4", Target: qnn},
	} {
		if _, err := onnxq.MakePlan(p, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	var wrong *onnxq.OptionError
	if _, err := onnxq.MakePlan(p, onnxq.Options{Mode: onnxq.Float16, Weights: "u8"}); !errors.As(err, &wrong) {
		t.Errorf("%T", err)
	}
}

// A pass that puts nodes into the model does not shift what the summary says of the
// others: all products are on integers here, behind the division that smoothing needs.
func TestSharesOfSmoothed(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 17]> g (float[N,16] x) => (float[N,8] y) <float[16,16] w = {...}, float[16,8] v = {...}> {
		a = MatMul (x, w) b = Sigmoid (a) s = Softmax (b) y = MatMul (s, v) }`)
	if err != nil {
		t.Fatal(err)
	}
	w := tensor.As[float32](m.Graph.Initializers()[0].Const)
	for i := range w[:16] {
		w[i] /= 1000
	}
	rng := rand.New(rand.NewPCG(1, 2))
	folder := t.TempDir()
	for i := range 8 {
		x := tensor.New(tensor.Float32, 16, 16)
		for j := range tensor.As[float32](x) {
			f := float32(rng.NormFloat64())
			if j%16 == 0 {
				f *= 1000
			}
			tensor.As[float32](x)[j] = f
		}
		var buf bytes.Buffer
		f := npy.NewWriter(&buf, false)
		if err := errors.Join(f.Add("x", x), f.Close()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%d.npz", i)), buf.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	_, res, err := onnxq.QuantizeModel(t.Context(), m, onnxq.Options{Mode: onnxq.Static, Algorithms: []onnxq.Algorithm{onnxq.Smooth}, Data: []string{folder}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(res.Notes, func(s string) bool { return strings.Contains(s, "smoothed") }) {
		t.Fatalf("nothing was smoothed: %q", res.Notes)
	}
	if res.Int8MACs != 1 {
		t.Errorf("%v of the multiply-adds are on integers", res.Int8MACs)
	}
	for _, f := range res.Float {
		if f.MACs != 0 {
			t.Errorf("%+v", f)
		}
	}
}
