package passes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
)

// TestLiftConformance lifts the ONNX backend cases in the folder that
// ONNXQ_CONFORMANCE names and compares outputs before and after, for those
// that the executor runs and whose inputs are tensors.
func TestLiftConformance(t *testing.T) {
	dir := os.Getenv("ONNXQ_CONFORMANCE")
	if dir == "" {
		t.Skip("ONNXQ_CONFORMANCE does not name the folder of the ONNX backend cases: none is lifted")
	}
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct{ Name, Kind string }
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	lifted, alone := 0, 0
	for _, c := range cases {
		at := filepath.Join(dir, c.Kind, c.Name)
		m, err := onnxfile.Open(filepath.Join(at, "model.onnx"))
		if err != nil {
			continue // holds types that no file of a model to quantize has
		}
		from := m.Opset(graph.OnnxDomain)
		feed, err := readFeed(m, filepath.Join(at, "test_data_set_0"))
		if from < lowestLift || from >= 21 || err != nil {
			continue
		}
		want, err := compute(m, feed)
		if err != nil {
			alone++
			continue
		}
		for _, to := range []int{13, 18, 21, 25} {
			if to <= from {
				continue
			}
			m, err := onnxfile.Open(filepath.Join(at, "model.onnx"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Prepare(context.Background(), m, Options{MinOpset: to, Check: true}); err != nil {
				t.Errorf("%s to %d: %v", c.Name, to, err)
				continue
			}
			got, err := compute(m, feed)
			if err == nil {
				err = compare(got, want, 1e-5)
			}
			if err != nil {
				t.Errorf("%s to %d: %v", c.Name, to, err)
			}
			lifted++
		}
	}
	t.Logf("%d lifts; %d cases do not run in the executor before", lifted, alone)
	if lifted < 1000 {
		t.Errorf("only %d lifts", lifted)
	}
}

func readFeed(m *graph.Model, dir string) (map[string]ops.Data, error) {
	feed := map[string]ops.Data{}
	for i, v := range m.Graph.Inputs() {
		if !v.Type.IsTensor() {
			return nil, fmt.Errorf("input %d is no tensor", i)
		}
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("input_%d.pb", i)))
		if err != nil {
			return nil, err
		}
		_, x, err := onnxfile.DecodeTensor(b)
		if err != nil {
			return nil, err
		}
		feed[v.Name()] = x
	}
	return feed, nil
}
