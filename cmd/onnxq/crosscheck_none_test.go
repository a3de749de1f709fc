//go:build noonnxgo

package main

import (
	"strings"
	"testing"
)

func TestCrossCheckLeftOut(t *testing.T) {
	workDir(t)
	code, stdout, stderr := onnxqIn(t, "inspect", "--cross-check", "digits/model.onnx")
	if code != exitUsage || stdout != "" || !strings.Contains(stderr, "built without onnx-go (build tag noonnxgo)") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}
