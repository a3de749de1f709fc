package onnxq_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Exporters give one name to dimensions of several sizes; what the model cannot
// run with is a bad sample all the same.
func TestWrongNames(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	floats := func(shape ...int) *tensor.Tensor {
		x := tensor.New(tensor.Float32, shape...)
		for i := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = float32(r.NormFloat64())
		}
		return x
	}
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 17]>
g (float[batch,width] a, float[batch,width] b, float[16,8] w, float[4,8] v) => (float[batch,8] y) { p = MatMul (a, w) q = MatMul (b, v) y = Add (p, q) }`)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*tensor.Tensor{floats(16, 8), floats(4, 8)} {
		v := m.Graph.Inputs()[2]
		m.Graph.RemoveInput(v)
		m.Graph.AddInitializer(v, c)
	}
	data := func(name string, a, b *tensor.Tensor) string {
		var buf bytes.Buffer
		w := npy.NewWriter(&buf, false)
		for _, x := range []struct {
			name string
			t    *tensor.Tensor
		}{{"a", a}, {"b", b}} {
			if err := w.Add(x.name, x.t); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, buf.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	before := graph.Text(m, -1)
	good, bad := data("good.npz", floats(5, 16), floats(5, 4)), data("bad.npz", floats(5, 16), floats(3, 4))
	o := onnxq.Options{Mode: onnxq.Static, Data: []string{good}}
	_, res, err := onnxq.QuantizeModel(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	if res.Quantized < 2 {
		t.Errorf("%d nodes quantized", res.Quantized)
	}
	sink := func(string, []ops.Data) error { return nil }
	if n, err := onnxq.Run(t.Context(), m, o, sink); n != 1 || err != nil {
		t.Errorf("%d samples run, %v", n, err)
	}
	o.Data = []string{bad}
	var wrong *calibration.DataError
	if _, _, err := onnxq.QuantizeModel(t.Context(), m, o); !errors.As(err, &wrong) || wrong.Input != "b" {
		t.Errorf("a sample with two sizes of a batch: %v", err)
	}
	if graph.Text(m, -1) != before {
		t.Error("the model was changed")
	}
}
