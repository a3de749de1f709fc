package onnxq_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq"
	executor "github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/exec/ort"
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
// Runtime, whose outputs may differ by a share of the signal: a last bit in float
// changes some codes.
func sameAsRuntime(t *testing.T, name, path string, share float64) {
	t.Helper()
	if os.Getenv("ONNXQ_ORT_LIB") == "" && os.Getenv("ONNXQ_PYTHON") == "" {
		return // TestRuntimeForWeights says so
	}
	if runtimeEngine == nil {
		e, err := ort.Open(ort.Options{Library: orttest.Library(t)})
		if err != nil {
			t.Fatal(err)
		}
		runtimeEngine = e
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
		want = append(want, slices.Concat(outputs(t, runtimeEngine, m, in)...)...)
	}
	if r := relative(got, want); !(r <= share) {
		t.Errorf("%s: outputs differ from the runtime's by %.2g, more than %.2g", name, r, share)
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
		{"digits", onnxq.Options{}, 0.3, 20, 5e-3},
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
		sameAsRuntime(t, c.name, path, c.off)
	}
	check(t, files)
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
