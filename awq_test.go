package onnxq_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
)

// TestAWQ scales the channels of real models: the squared error of the products of
// weights in 4 bits with the inputs of the samples falls, and the outputs on
// samples that were held out lose next to nothing, or gain what the model is known
// to gain.
func TestAWQ(t *testing.T) {
	for _, c := range []struct {
		folder string
		gain   float64 // in dB, of the outputs
		share  float64 // that the errors of products fall to
	}{{"models/text", -0.2, 0.99}, {"zoo/stories260k", 0.3, 0.95}} {
		t.Run(filepath.Base(c.folder), func(t *testing.T) {
			folder := filepath.FromSlash(c.folder)
			if strings.HasPrefix(c.folder, "zoo/") {
				shared := os.Getenv("ONNXQ_SHARED")
				if shared == "" {
					t.Skipf("SKIPPED: there is no %s of real models (set ONNXQ_SHARED)", c.folder)
				}
				folder = filepath.Join(shared, folder)
			}
			o := onnxq.Options{Mode: onnxq.Weights, Weights: "i4", Data: []string{filepath.Join(folder, "calib")}, Threads: 2}
			m, err := onnxq.Load(filepath.Join(folder, "model.onnx"))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			sqnr := map[bool]float64{}
			for _, scaled := range []bool{false, true} {
				o.Algorithms = []onnxq.Algorithm{}
				if scaled {
					o.Algorithms = append(o.Algorithms, onnxq.AWQ)
				}
				q, res, err := onnxq.QuantizeModel(t.Context(), m, o)
				if err != nil {
					t.Fatal(err)
				}
				if sqnr[scaled] = *res.SQNR; onnxfile.Size(q) > onnxfile.Size(m) {
					t.Errorf("%d bytes of %d", onnxfile.Size(q), onnxfile.Size(m))
				}
			}
			if !(sqnr[true] > sqnr[false]+c.gain) {
				t.Errorf("SQNR %.2f dB, %.2f dB without", sqnr[true], sqnr[false])
			}

			p, _, err := onnxq.Prepare(t.Context(), m, o)
			if err != nil {
				t.Fatal(err)
			}
			src, err := onnxq.Open(t.Context(), m, o.Data, o)
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			samples := func(ctx context.Context, f func(map[string]ops.Data) error) error {
				for i := range src.Len() {
					feed, err := src.Load(ctx, i)
					if err != nil {
						return err
					}
					in := map[string]ops.Data{}
					for name, x := range feed {
						in[name] = x
					}
					if err := f(in); err != nil {
						return err
					}
				}
				return nil
			}
			target, err := targets.Get("ort-cpu")
			if err != nil {
				t.Fatal(err)
			}
			s, err := quant.ParseStorage("i4")
			if err != nil {
				t.Fatal(err)
			}
			session := exec.SessionOptions{Threads: 2}
			measure := func() map[string]float64 {
				plan, err := qdq.Annotate(p, target, qdq.Options{WeightsOnly: true, Blocks: &quant.Blocks{Storage: s, Size: 32}})
				if err != nil {
					t.Fatal(err)
				}
				params, _, err := plan.Resolve(p, nil, 0)
				if err != nil {
					t.Fatal(err)
				}
				nearest, err := accuracy.NewGPTQ(p, plan, params, samples, src.Len(), true, session)
				if err != nil {
					t.Fatal(err)
				}
				errs, err := nearest.Choose(t.Context(), slices.Concat(nearest.Stages()...))
				if err != nil {
					t.Fatal(err)
				}
				out := map[string]float64{}
				for _, e := range errs {
					out[plan.Tensors[e.Tensor].Tensor] = e.Nearest / e.Signal
				}
				return out
			}
			before := measure()
			plan, err := qdq.Annotate(p, target, qdq.Options{WeightsOnly: true, Blocks: &quant.Blocks{Storage: s, Size: 32}})
			if err != nil {
				t.Fatal(err)
			}
			scales, err := accuracy.AWQ(t.Context(), p, plan, samples, src.Len(), 1.15, session)
			if err != nil || len(scales) == 0 {
				t.Fatalf("%d values scaled, %v", len(scales), err)
			}
			after := measure()
			var was, is float64
			for name, x := range before {
				was += x
				is += after[name]
				if after[name] > 1.25*x {
					t.Errorf("%s: error %.5f of the signal, before %.5f", name, after[name], x)
				}
			}
			if len(after) != len(before) || !(is < c.share*was) {
				t.Errorf("errors of %d weights: sum %.5f of the signals, before %.5f of %d", len(after), is, was, len(before))
			}
			t.Logf("%d values scaled: SQNR of the outputs %.2f → %.2f dB, error of the products %.2f of what it was", len(scales), sqnr[false], sqnr[true], is/was)
		})
	}
}

// TestAWQOptions: what AWQ goes with.
func TestAWQOptions(t *testing.T) {
	m, err := onnxq.Load(filepath.Join("models", "text", "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	data := []string{filepath.Join("models", "text", "calib")}
	algorithms := []onnxq.Algorithm{onnxq.AWQ}
	var option *onnxq.OptionError
	if _, _, err := onnxq.QuantizeModel(t.Context(), m, onnxq.Options{Mode: onnxq.Static, Data: data, Algorithms: algorithms}); !errors.As(err, &option) {
		t.Errorf("mode static: %v", err)
	}
	if _, _, err := onnxq.QuantizeModel(t.Context(), m, onnxq.Options{Mode: onnxq.Weights, Weights: "i4", Algorithms: algorithms}); !errors.Is(err, onnxq.ErrNoData) {
		t.Errorf("without samples: %v", err)
	}
	_, res, err := onnxq.QuantizeModel(t.Context(), m, onnxq.Options{Mode: onnxq.Weights, Data: data, Algorithms: algorithms})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(res.Notes, "\n"), "values scaled") || *res.SQNR < 35 {
		t.Errorf("8 bits: %q, SQNR %.1f dB", res.Notes, *res.SQNR)
	}
}
