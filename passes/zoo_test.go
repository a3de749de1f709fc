package passes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/models"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// real is a trained model and files of feeds for it.
type real struct {
	name  string
	model []byte
	feeds []string // paths of .npz files; feed holds them where there are none
	feed  map[string]ops.Data
}

// reals returns the sample models of the project and, where ONNXQ_SHARED or
// ../shared is there, the models of its zoo.
func reals(t *testing.T) []real {
	t.Helper()
	var all []real
	for _, s := range models.All() {
		names, err := s.Calib.Open(".")
		if err != nil {
			t.Fatal(err)
		}
		names.Close()
		r := real{name: s.Name, model: s.Model}
		for _, want := range []string{"000.npz", "0000.npz"} {
			if f, err := s.Calib.Open(want); err == nil {
				f.Close()
				b := new(bytes.Buffer)
				f, _ = s.Calib.Open(want)
				if _, err := b.ReadFrom(f); err != nil {
					t.Fatal(err)
				}
				r.feed = readArchive(t, b.Bytes())
			}
		}
		if r.feed == nil {
			t.Fatalf("sample %s has no feed", s.Name)
		}
		all = append(all, r)
	}
	shared := os.Getenv("ONNXQ_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "..", "shared")
	}
	files, _ := filepath.Glob(filepath.Join(shared, "zoo", "*", "model.onnx"))
	if len(files) == 0 {
		t.Logf("NOT TESTED: there is no zoo of real models in %s", shared)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		feeds, _ := filepath.Glob(filepath.Join(filepath.Dir(f), "calib", "*.npz"))
		if len(feeds) == 0 {
			t.Errorf("%s: no samples", f)
			continue
		}
		all = append(all, real{name: filepath.Base(filepath.Dir(f)), model: b, feeds: feeds})
	}
	return all
}

func readArchive(t *testing.T, b []byte) map[string]ops.Data {
	t.Helper()
	a, err := npy.OpenArchive(bytes.NewReader(b), int64(len(b)), 0)
	if err != nil {
		t.Fatal(err)
	}
	feed := map[string]ops.Data{}
	for _, x := range a.Arrays {
		v, err := x.Tensor()
		if err != nil {
			t.Fatal(err)
		}
		feed[x.Name] = v
	}
	return feed
}

func (r real) sample(t *testing.T, i int) map[string]ops.Data {
	t.Helper()
	if r.feed != nil {
		return r.feed
	}
	b, err := os.ReadFile(r.feeds[min(i, len(r.feeds)-1)])
	if err != nil {
		t.Fatal(err)
	}
	return readArchive(t, b)
}

// compute runs a model.
func compute(m *graph.Model, feed map[string]ops.Data) ([]ops.Data, error) {
	if _, err := ops.Infer(m); err != nil {
		return nil, err
	}
	p, err := exec.Compile(m, exec.Options{})
	if err != nil {
		return nil, err
	}
	return p.NewSession(exec.SessionOptions{Threads: 2}).Run(context.Background(), feed, nil, nil)
}

// compare returns how far got is from want: an error unless floats agree
// within a relative L2 error of tol and all else is equal.
func compare(got, want []ops.Data, tol float64) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d outputs, want %d", len(got), len(want))
	}
	for i := range want {
		if err := compareData(got[i], want[i], tol); err != nil {
			return fmt.Errorf("output %d: %w", i, err)
		}
	}
	return nil
}

func compareData(got, want ops.Data, tol float64) error {
	if s, ok := want.(ops.Sequence); ok {
		g, ok := got.(ops.Sequence)
		if !ok {
			return errors.New("is no sequence")
		}
		return compare(g, s, tol)
	}
	if o, ok := want.(*ops.Optional); ok {
		g, ok := got.(*ops.Optional)
		if !ok || (g.Elem == nil) != (o.Elem == nil) {
			return errors.New("is another optional value")
		}
		if o.Elem == nil {
			return nil
		}
		return compareData(g.Elem, o.Elem, tol)
	}
	g, ok1 := got.(*tensor.Tensor)
	w, ok2 := want.(*tensor.Tensor)
	if !ok1 || !ok2 {
		return fmt.Errorf("%T, want %T", got, want)
	}
	if g.DType() != w.DType() || !slices.Equal(g.Shape(), w.Shape()) {
		return fmt.Errorf("%v, want %v", g, w)
	}
	if !w.DType().IsFloat() {
		if !g.Equal(w) {
			return fmt.Errorf("%v differs", w)
		}
		return nil
	}
	a, err := tensor.Float64s(g)
	if err != nil {
		return err
	}
	b, err := tensor.Float64s(w)
	if err != nil {
		return err
	}
	var diff, norm float64
	for i, x := range b {
		if math.IsNaN(x) != math.IsNaN(a[i]) || math.IsInf(x, 0) && a[i] != x {
			return fmt.Errorf("element %d of %v is %v, want %v", i, w, a[i], x)
		}
		if x-x == 0 {
			diff += (a[i] - x) * (a[i] - x)
			norm += x * x
		}
	}
	if diff > tol*tol*norm {
		return fmt.Errorf("%v: relative error %.3g, limit %g", w, math.Sqrt(diff/norm), tol)
	}
	return nil
}

func encode(t *testing.T, m *graph.Model) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := onnxfile.Write(context.Background(), &b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decode(t *testing.T, b []byte) *graph.Model {
	t.Helper()
	m, err := onnxfile.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func countNodes(m *graph.Model) (all int) {
	for g := range m.Scopes() {
		all += g.NumNodes()
	}
	return all
}

// TestRealModels prepares trained models and compares outputs before and after
// in the embedded executor; the prepared model passes through a file, and
// preparing twice gives the same bytes.
func TestRealModels(t *testing.T) {
	for _, r := range reals(t) {
		t.Run(r.name, func(t *testing.T) {
			ctx := context.Background()
			var want [][]ops.Data
			const samples = 2
			for i := range samples {
				out, err := compute(decode(t, r.model), r.sample(t, i))
				if errors.Is(err, exec.ErrUnsupported) {
					t.Logf("NOT COMPARED in the executor: %v", err)
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, out)
			}
			for _, opset := range []int{0, 13, 21} {
				m := decode(t, r.model)
				before := countNodes(m)
				changes, err := Prepare(ctx, m, Options{MinOpset: opset, Check: true})
				if err != nil {
					t.Fatal(err)
				}
				b := encode(t, m)
				t.Logf("opset %d -> %d: %d -> %d nodes, %d -> %d bytes: %v", decode(t, r.model).Opset(""), m.Opset(""), before, countNodes(m), len(r.model), len(b), changes)
				again := decode(t, r.model)
				if _, err := Prepare(ctx, again, Options{MinOpset: opset}); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(b, encode(t, again)) {
					t.Errorf("opset %d: preparing twice gives different files", opset)
				}
				for i, w := range want {
					got, err := compute(decode(t, b), r.sample(t, i))
					if err != nil {
						t.Fatalf("opset %d: %v", opset, err)
					}
					if err := compare(got, w, 2e-5); err != nil {
						t.Errorf("opset %d, sample %d: %v", opset, i, err)
					}
				}
			}
		})
	}
}
