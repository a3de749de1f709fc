package onnxq_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/graph/onnxfile"
)

// TestBitsAsNeeded gives each weight of a real model as few bits as demands on the
// outputs allow: the demands are kept, harder ones take more bytes, and weights
// that are named take at least their bits. A demand that no bits keep is an error.
func TestBitsAsNeeded(t *testing.T) {
	m, err := onnxq.Load(filepath.Join("models", "text", "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	o := onnxq.Options{Mode: onnxq.Weights, ScaleType: "f16", Block: 32, Data: []string{filepath.Join("models", "text", "calib")}, Algorithms: []onnxq.Algorithm{}, Threads: 2}
	last := int64(0)
	for _, least := range []float64{12, 20, 30} {
		o.MinSQNR = &least
		q, res, err := onnxq.QuantizeModel(t.Context(), m, o)
		if err != nil {
			t.Fatal(err)
		}
		types := map[string]int{}
		for _, e := range res.Plan.Tensors {
			types[e.Type]++
		}
		size := onnxfile.Size(q)
		if *res.SQNR < least || *res.SQNR > least+8 || size <= last || !strings.Contains(strings.Join(res.Notes, "\n"), "as few bits") {
			t.Errorf("%v dB demanded: %.1f dB, %d bytes, with a lower demand %d (%v) %q", least, *res.SQNR, size, last, types, res.Notes)
		}
		if least == 20 && len(types) < 2 {
			t.Errorf("all weights are of one type: %v", types)
		}
		t.Logf("%v dB demanded: %.1f dB, %d bytes, %v", least, *res.SQNR, size, types)
		last = size
	}

	o.MinSQNR = nil
	drop := 0.1
	o.MaxDrop = &drop
	_, res, err := onnxq.QuantizeModel(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	if a := res.Outputs[0].Argmax; a == nil || *a < 1-drop {
		t.Errorf("a drop of %v was allowed: %v", drop, a)
	}

	least := 19.0
	o.MinSQNR, o.MaxDrop, o.Weights = &least, nil, "u4"
	_, res, err = onnxq.QuantizeModel(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range res.Plan.Tensors {
		if e.Type != "u4" && e.Type != "u8" {
			t.Errorf("%q is of %s", e.Tensor, e.Type)
		}
	}

	least = 90
	var broken *onnxq.ContractError
	if q, _, err := onnxq.QuantizeModel(t.Context(), m, o); !errors.As(err, &broken) || q == nil {
		t.Errorf("90 dB: %v", err)
	}
}

// TestBitsByOutputs spreads the same number of bits by what errors of single
// weights do to the outputs on samples, and by errors of the weights alone: the
// outputs on samples that were held out are nearer to the float model's by the
// former.
func TestBitsByOutputs(t *testing.T) {
	m, err := onnxq.Load(filepath.Join("models", "text", "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	samples := []string{filepath.Join("models", "text", "eval", "000.npz")}
	o := onnxq.Options{BitsPerWeight: 5.2, ScaleType: "f16", Block: 32, EvalData: samples, Algorithms: []onnxq.Algorithm{}, Threads: 2}
	_, blind, err := onnxq.QuantizeModel(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	o.Data = []string{filepath.Join("models", "text", "calib")}
	_, seeing, err := onnxq.QuantizeModel(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.2f dB by outputs, %.2f dB by weights", *seeing.SQNR, *blind.SQNR)
	if !(*seeing.SQNR > *blind.SQNR) {
		t.Errorf("%.2f dB by outputs, %.2f dB by weights", *seeing.SQNR, *blind.SQNR)
	}
}
