package onnxq_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/targets"
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

// TestContradictions: options that cannot be met together are refused.
func TestContradictions(t *testing.T) {
	tensorrt, err := targets.Get("tensorrt")
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
