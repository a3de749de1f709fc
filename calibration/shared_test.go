package calibration

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/tensor"
)

// sharedDir returns the folder of real models and data, which are not part of
// the project.
func sharedDir(t *testing.T) string {
	dir := os.Getenv("ONNXQ_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared")
	}
	if _, err := os.Stat(filepath.Join(dir, "zoo")); err != nil {
		t.Skipf("SKIPPED: no folder %s (set ONNXQ_SHARED): real models and data are not tested", dir)
	}
	return dir
}

func inputsOf(m *graph.Model) []Input {
	var inputs []Input
	for _, v := range m.Graph.FeedInputs() {
		in := Input{Name: v.Name(), DType: v.Type.Elem}
		if v.Type.Shape != nil {
			in.Shape = []int{}
			for _, d := range v.Type.Shape {
				size := -1
				if d.Known {
					size = int(d.Size)
				}
				in.Shape = append(in.Shape, size)
			}
		}
		inputs = append(inputs, in)
	}
	return inputs
}

// TestRealModels checks the calibration samples of real models against their
// inputs.
func TestRealModels(t *testing.T) {
	models, err := filepath.Glob(filepath.Join(sharedDir(t), "zoo", "*", "model.onnx"))
	if err != nil || len(models) == 0 {
		t.Fatalf("no models: %v", err)
	}
	for _, path := range models {
		m, err := onnxfile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(filepath.Dir(path), "calib")
		s, err := Open(ctx, []string{dir}, inputsOf(m), Options{})
		if err != nil {
			t.Error(err)
			continue
		}
		if err := s.Check(ctx); err != nil || len(s.Notes()) > 0 {
			t.Errorf("%s: %v %q", dir, err, s.Notes())
		}
		m.Close()
	}
}

// TestPhotograph compares with a sample made by Pillow from the same file.
func TestPhotograph(t *testing.T) {
	dir := filepath.Join(sharedDir(t), "zoo", "efficientnet_lite0")
	in := []Input{{Name: "input", DType: tensor.Float32, Shape: []int{-1, 3, 224, 224}}}
	load := func(path string) []float32 {
		s, err := Open(ctx, []string{path}, in, Options{Image: "resize=256,crop=224,mean=127,std=128,layout=nchw,color=rgb,filter=bicubic"})
		if err != nil {
			t.Fatal(err)
		}
		feed, err := s.Load(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		return tensor.As[float32](feed["input"])
	}
	got := load(filepath.Join(dir, "calib_images", "n02097047_miniature_schnauzer.JPEG"))
	want := load(filepath.Join(dir, "calib", "0016.npz"))
	worst, sum := 0.0, 0.0
	for i, v := range got {
		d := math.Abs(float64(v-want[i])) * 128
		worst, sum = max(worst, d), sum+d
	}
	t.Logf("differs from Pillow by %.3f of 255 in the mean, %.0f at most", sum/float64(len(got)), worst)
	if worst > 3 || sum/float64(len(got)) > 0.1 {
		t.Error("that is too much")
	}
}
