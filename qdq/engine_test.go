package qdq_test

import (
	"encoding/json"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/exec/ort"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/orttest"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/tensor"
)

// cases calls f with the model, options and target of each file in testdata.
func cases(t *testing.T, f func(t *testing.T, name, model, target string, o qdq.Options)) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var o qdq.Options
		model, target := "", ""
		for _, p := range a.Files {
			switch p.Name {
			case "model":
				model = string(p.Data)
			case "target":
				target = string(p.Data)
			case "options":
				if err := json.Unmarshal(p.Data, &o); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Run(name, func(t *testing.T) { f(t, name, model, target, o) })
	}
}

// TestRuntimeAgrees runs the rewritten cases of testdata in ONNX Runtime and in
// the embedded executor. Weights use a bit less, since without VNNI the runtime
// saturates sums of two products.
func TestRuntimeAgrees(t *testing.T) {
	engine, err := ort.Open(ort.Options{Library: orttest.Library(t)})
	if err != nil {
		t.Fatal(err)
	}
	cases(t, func(t *testing.T, name, model, runtime string, o qdq.Options) {
		if why := unfused[name]; strings.Contains(why, "refuses") {
			t.Skip(why)
		}
		most := 0.005
		if strings.HasPrefix(name, "target_qnn") {
			most = 0.02 // a code more or less, which LayerNormalization magnifies
		}
		o.ReduceRange = true
		m := parse(t, model)
		p, err := qdq.Annotate(m, target(t, runtime), o)
		if err != nil {
			return // TestRewrite has the error
		}
		q, _ := rewrite(t, m, p)
		want := run(t, q, seeds, nil)
		x, err := engine.Compile(t.Context(), q, exec.Options{})
		if err != nil {
			t.Fatalf("%v\n%s", err, graph.Text(q, 1))
		}
		defer x.Close()
		r, err := x.Open(t.Context(), exec.SessionOptions{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for seed := range want {
			out, err := r.Run(t.Context(), feeds(q, uint64(seed)), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range q.Graph.Outputs() {
				if rel := distance(want[seed][i], out[i]); rel > most {
					t.Errorf("output %s of the runtime is %.3g off", v.Name(), rel)
				}
			}
		}
	})
}

// distance returns the root mean square of a - b relative to that of a.
func distance(a, b ops.Data) float64 {
	x, _ := tensor.Float32s(a.(*tensor.Tensor))
	y, _ := tensor.Float32s(b.(*tensor.Tensor))
	var signal, noise float64
	for i := range x {
		d := float64(x[i]) - float64(y[i])
		signal += float64(x[i]) * float64(x[i])
		noise += d * d
	}
	if noise == 0 {
		return 0
	}
	return math.Sqrt(noise / signal)
}
