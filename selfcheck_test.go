package onnxq

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
)

const checkHead = "<ir_version: 8, opset_import: [\"\" : 17]>\n"

func TestSelfCheck(t *testing.T) {
	parse := func(text string) *graph.Model {
		m, err := graph.Parse(checkHead + text)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	const good = "g (float[N,3] x) => (float[N,3] y) <float w = {1}> { z = Mul(x, w)\n y = Relu(z) }"
	for _, c := range []struct{ text, want string }{
		{good, ""},
		{strings.Replace(good, "N,3] x", "M,3] x", 1), `input "x" of type`},
		{strings.Replace(good, "N,3] y", "N,4] y", 1), `output "y" of type`},
		{strings.Replace(good, "Relu", "Neg", 1), `(Relu) in the place of "y" (Neg)`},
		{strings.Replace(good, "Mul(x, w)", "Mul(w, x)", 1), `node "z"`},
		{strings.Replace(good, "float w = {1}", "float[1] w = {1}", 1), `initializer "w"`},
		{"g (float[N,3] x) => (float[N,3] y) <float w = {1}> { y = Mul(x, w) }", "2 nodes and 1 initializers instead of 1 and 1"},
	} {
		err := sameStructure(parse(good), parse(c.text))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}

	// A model that the runtime would refuse does not reach the destination.
	path := filepath.Join(t.TempDir(), "out.onnx")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	bad := parse("g (float[N,3] x) => (float[N,3] y) { y = Relu<slope = 1.0>(x) }")
	err := new(Options).save(context.Background(), bad, path)
	if err == nil || !strings.Contains(err.Error(), `no attribute "slope"`) {
		t.Errorf("error %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "old" {
		t.Error("the destination was replaced")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".onnxq-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
