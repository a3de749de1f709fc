package onnxfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Files of external data may be put beside a model while it is opened: each once,
// and none that lies elsewhere.
func TestFetch(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 17]> g (float[1024] x) => (float[1024] y) <float[1024] v = {...}, float[1024] w = {...}> { a = Add (x, v) y = Add (a, w) }`)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range m.Graph.Initializers() {
		v.Const = tensor.New(tensor.Float32, 1024)
	}
	from, to := t.TempDir(), t.TempDir()
	if err := Save(t.Context(), m, filepath.Join(from, "m.onnx"), SaveOptions{External: ExternalAlways}); err != nil {
		t.Fatal(err)
	}
	copyTo := func(name string) error {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), b, 0o666)
	}
	if err := copyTo("m.onnx"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(to, "m.onnx")
	if _, err := Open(path); err == nil {
		t.Fatal("a model without its data")
	}
	failed := errors.New("failed")
	if _, err := Open(path, WithFetch(func(string) error { return failed })); !errors.Is(err, failed) {
		t.Error(err)
	}
	var names []string
	got, err := Open(path, WithFetch(func(name string) error {
		names = append(names, name)
		return copyTo(name)
	}))
	if err != nil || len(names) != 1 {
		t.Fatalf("asked for %q, %v", names, err)
	}
	got.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.Replace(string(b), names[0], "../"+names[0][3:], -1)
	if err := os.WriteFile(path, []byte(bad), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, WithFetch(func(name string) error { t.Errorf("asked for %q", name); return nil })); err == nil {
		t.Error("a file outside of the folder")
	}
}
