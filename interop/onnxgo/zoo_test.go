//go:build !noonnxgo

package onnxgo

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
	"github.com/owulveryck/onnx-go"
)

func sharedDir() string {
	if dir := os.Getenv("ONNXQ_SHARED"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", "..", "shared")
}

// TestZooPrograms runs the models of the zoo that onnx-go can read as programs
// on onnx-go: the outputs are to the bit those of our loader and executor.
func TestZooPrograms(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(sharedDir(), "zoo", "*", "*.onnx"))
	if err != nil || len(paths) == 0 {
		t.Skipf("no models in %s: no programs on them", sharedDir())
	}
	ran := 0
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := onnxfile.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if r := CrossCheck(data, m); len(r.Unread) > 0 {
			t.Logf("%s: onnx-go cannot read it: %v", path, r.Unread[0])
			continue
		}
		if err := sameProgram(data, m); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		ran++
	}
	t.Logf("%d of %d models run as programs on onnx-go", ran, len(paths))
}

func sameProgram(data []byte, m *graph.Model) error {
	feeds := map[string]ops.Data{}
	for _, v := range m.Graph.FeedInputs() {
		dims := make([]int, len(v.Type.Shape))
		for i, d := range v.Type.Shape {
			if dims[i] = 1; d.Known {
				dims[i] = int(d.Size)
			}
		}
		x := tensor.New(v.Type.Elem, dims...)
		for i := range x.Len() {
			tensor.Write(x, i, []float32{float32(i%7) / 4})
		}
		feeds[v.Name()] = x
	}
	p, err := exec.Compile(m, exec.Options{})
	if err != nil {
		return err
	}
	want, err := p.NewSession(exec.SessionOptions{Threads: 1}).Run(context.Background(), feeds, nil, nil)
	if err != nil {
		return err
	}
	b, err := NewFor(data)
	if err != nil {
		return err
	}
	model := onnx.NewModel(b)
	if err := model.UnmarshalBinary(data); err != nil {
		return err
	}
	for i, v := range m.Graph.FeedInputs() {
		x, err := toGorgonia(feeds[v.Name()].(*tensor.Tensor))
		if err != nil {
			return err
		}
		if err := model.SetInput(i, x); err != nil {
			return err
		}
	}
	if err := b.Run(); err != nil {
		return err
	}
	outs, err := model.GetOutputTensors()
	if err != nil {
		return err
	}
	for i, w := range want {
		got, err := fromGorgonia(outs[i])
		if err != nil {
			return err
		}
		if err := near(got, w.(*tensor.Tensor), 0); err != nil {
			return err
		}
	}
	return nil
}
