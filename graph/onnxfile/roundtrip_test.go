package onnxfile

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/onnxpb"
)

// shared returns the folder of real models and cases that lie outside of the
// repository, or skips the test.
func shared(t testing.TB, sub string) string {
	t.Helper()
	dir := os.Getenv("ONNXQ_SHARED")
	if dir == "" {
		dir = "../../../shared"
	}
	dir = filepath.Join(dir, sub)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("SKIPPED: no folder %s (set ONNXQ_SHARED): real models are not tested", dir)
	}
	return dir
}

func write(t testing.TB, m *graph.Model) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := Write(context.Background(), &buf, m); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// lossless checks that a model is written as it was read: byte by byte
// (reported as true), or else as an equal message with the same unknown
// fields, as another decoder sees it.
func lossless(t *testing.T, path string) bool {
	t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Verify(); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	got := write(t, m)
	if bytes.Equal(got, want) {
		return true
	}
	var a, b onnxpb.ModelProto
	if err := proto.Unmarshal(want, &a); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(got, &b); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(&a, &b) {
		t.Errorf("%s: not the same after loading and saving", path)
	}
	return false
}

func TestZooLossless(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(shared(t, "zoo"), "*", "*.onnx"))
	if err != nil || len(files) == 0 {
		t.Fatal("no models", err)
	}
	identical := 0
	for _, f := range files {
		if lossless(t, f) {
			identical++
		} else {
			t.Logf("%s: equal, not identical", filepath.Base(filepath.Dir(f)))
		}
	}
	t.Logf("%d of %d models identical byte by byte, the others equal after decoding", identical, len(files))
}

func TestConformanceLossless(t *testing.T) {
	dir := os.Getenv("ONNXQ_CONFORMANCE")
	if dir == "" {
		t.Skip("SKIPPED: ONNXQ_CONFORMANCE does not name the folder of the ONNX node cases: they are not tested")
	}
	identical, n := 0, 0
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".onnx") {
			n++
			if lossless(t, path) {
				identical++
			}
		}
		return err
	})
	if err != nil || n == 0 {
		t.Fatal("no models", err)
	}
	t.Logf("%d of %d models identical byte by byte, the others equal after decoding", identical, n)
}
