package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/exec/ort"
	"github.com/onnxq/onnxq/internal/orttest"
)

// TestEngine runs every command that runs models on ONNX Runtime.
func TestEngine(t *testing.T) {
	lib := orttest.Library(t)
	if _, err := ort.Open(ort.Options{Library: lib}); err == ort.ErrLeftOut {
		t.Skipf("NOT TESTED: %v", err)
	}
	workDir(t)
	t.Setenv("ONNXQ_ORT_LIB", "")
	good := func(args ...string) string {
		t.Helper()
		code, out, errs := onnxqIn(t, append(args, "--engine", "ort", "--ort-lib", lib)...)
		if code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, errs)
		}
		return out
	}
	good("run", "digits/model.onnx", "--data", "digits/calib", "--samples", "3", "-o", "out", "--format", "npz")
	if files, _ := filepath.Glob("out/*.npz"); len(files) != 3 {
		t.Errorf("%d outputs", len(files))
	}
	var b onnxq.Benchmark
	if err := json.Unmarshal([]byte(good("bench", "digits/model.onnx", "--data", "digits/calib", "--samples", "2", "--runs", "4", "--threads", "1", "--json", "-")), &b); err != nil {
		t.Fatal(err)
	}
	if b.Engine != "ort" || !strings.HasPrefix(b.Version, "1.") || b.Runs != 4 || !(0 < b.MinMS && b.MinMS <= b.MedianMS && b.MedianMS <= b.MaxMS) || len(b.Ops) == 0 {
		t.Errorf("bench: %+v", b)
	}
	if out := good("bench", "digits/model.onnx", "--runs", "2"); !strings.HasPrefix(out, "ort 1.") || !strings.Contains(out, "Conv") {
		t.Errorf("bench: %s", out)
	}
	good("calibrate", "digits/model.onnx", "--data", "digits/calib", "-o", "ort.json")
	if code, _, errs := onnxqIn(t, "calibrate", "digits/model.onnx", "--data", "digits/calib", "-o", "own.json"); code != 0 {
		t.Fatal(errs)
	}
	_, out, _ := onnxqIn(t, "calibrate", "diff", "own.json", "ort.json", "--json", "-")
	var moved []struct {
		Tensor string
		Moved  float64
	}
	if err := json.Unmarshal([]byte(out), &moved); err != nil {
		t.Fatal(err)
	}
	for _, m := range moved {
		if m.Moved > 1e-4 {
			t.Errorf("range of %q moved by %g", m.Tensor, m.Moved)
		}
	}
	var r onnxq.Result
	if err := json.Unmarshal([]byte(good("quantize", "digits/model.onnx", "--data", "digits/calib", "-o", "q.onnx", "--json", "-")), &r); err != nil {
		t.Fatal(err)
	}
	if r.Quantized == 0 || r.SQNR == nil || *r.SQNR < 25 {
		t.Errorf("quantize: %d nodes, SQNR %v", r.Quantized, r.SQNR)
	}
	t.Setenv("ONNXQ_ORT_LIB", lib)
	if code, _, errs := onnxqIn(t, "bench", "q.onnx", "--engine", "ort", "--runs", "1", "-q"); code != 0 {
		t.Errorf("exit %d: %s", code, errs)
	}
}

// TestEngineMistakes checks what is said where there is no engine.
func TestEngineMistakes(t *testing.T) {
	workDir(t)
	t.Setenv("ONNXQ_ORT_LIB", "")
	bench := func(args ...string) []string { return append([]string{"bench", "digits/model.onnx"}, args...) }
	missing, wrong := "no such file", "no shared library"
	if _, err := ort.Open(ort.Options{Library: "notes.txt"}); err == ort.ErrLeftOut {
		missing, wrong = "this build has no ONNX Runtime engine", "this build has no ONNX Runtime engine"
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{bench("--engine", "other"), `--engine "other" is none of embedded, ort`},
		{bench("--ort-lib", "x.so"), "--ort-lib goes with --engine ort"},
		{bench("--engine", "ort", "--max-memory", "1GB"), "bound the embedded executor only"},
		{bench("--engine", "ort", "--limit", "steps=5"), "bound the embedded executor only"},
		{bench("--engine", "ort", "--ort-lib", "./missing.so"), missing},
		{bench("--engine", "ort", "--ort-lib", "notes.txt"), wrong},
	} {
		code, _, errs := onnxqIn(t, c.args...)
		if code != exitUsage || !strings.Contains(errs, c.want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%v: exit %d, stderr %s; want %q", c.args, code, errs, c.want)
		}
	}
}
