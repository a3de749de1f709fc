package calibration

import (
	"path/filepath"
	"testing"

	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/tensor"
)

// TestTensorProto reads real TensorProto files, whose names do not matter.
func TestTensorProto(t *testing.T) {
	dir := t.TempDir()
	x, ids := seq(6, 2, 3), tensor.Of([]int64{7, 8})
	write(t, dir, "test_data_set_0/input_0.pb", onnxfile.EncodeTensor("ids", x))
	write(t, dir, "test_data_set_0/input_1.pb", onnxfile.EncodeTensor("", ids))
	write(t, dir, "test_data_set_1/input_0.pb", onnxfile.EncodeTensor("x", x)[:20])
	s, err := Open(ctx, []string{dir}, twoIn, Options{ReadTensor: onnxfile.ReadTensor})
	if err != nil {
		t.Fatal(err)
	}
	feed, err := s.Load(ctx, 0)
	if err != nil || !feed["x"].Equal(x) || !feed["ids"].Equal(ids) {
		t.Errorf("%v, %v", feed, err)
	}
	if _, err := s.Load(ctx, 1); err == nil {
		t.Error("a file that is cut off was read")
	} else {
		t.Log(err)
	}
	for _, name := range []string{"digits", "text"} {
		m, err := onnxfile.Open(filepath.Join("..", "models", name, "model.onnx"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(ctx, []string{filepath.Join("..", "models", name, "calib")}, inputsOf(m), Options{})
		if err == nil {
			err = s.Check(ctx)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		m.Close()
	}
}
