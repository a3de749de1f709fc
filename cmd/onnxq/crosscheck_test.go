//go:build !noonnxgo

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/interop/onnxgo"
)

func TestCrossCheck(t *testing.T) {
	workDir(t)
	code, stdout, stderr := onnxqIn(t, "inspect", "--cross-check", "digits/model.onnx")
	if code != 0 || stderr != "" || !strings.Contains(stdout, "onnx-go v0.5.0  23 nodes, 79 edges, 33 attributes and 32 initializers compared: 0 differences") {
		t.Errorf("exit %d, stderr %q, stdout:\n%s", code, stderr, stdout)
	}
	// Zero points are of a type that onnx-go cannot read.
	if code, _, stderr := onnxqIn(t, "quantize", "digits/model.onnx", "-o", "int8.onnx", "--data", "digits/calib"); code != 0 {
		t.Fatal(stderr)
	}
	code, stdout, stderr = onnxqIn(t, "inspect", "int8.onnx", "--cross-check")
	if code != 0 || stderr != "" || !strings.Contains(stdout, "0 differences") || !strings.Contains(stdout, "cannot read     Unknown type uint8") {
		t.Errorf("exit %d, stderr %q, stdout:\n%s", code, stderr, stdout)
	}
	code, stdout, stderr = onnxqIn(t, "inspect", "int8.onnx", "--cross-check", "--json", "-")
	var s struct {
		Nodes int
		Check onnxgo.Report `json:"cross_check"`
	}
	if err := json.Unmarshal([]byte(stdout), &s); code != 0 || stderr != "" || err != nil || s.Check.Nodes != s.Nodes || len(s.Check.Unread) == 0 {
		t.Errorf("exit %d, stderr %q, %v, %+v", code, stderr, err, s)
	}
}

// TestCrossCheckDiffers checks what is printed and returned where the decoders
// differ, which no file is known to cause.
func TestCrossCheckDiffers(t *testing.T) {
	r := &crossCheckReport{Nodes: 1, Differences: []string{`node 0 ("y"): operator "Add" here, "Sub" there`},
		Unread: []onnxgo.Unread{{What: "a", Why: "r"}, {What: "b", Why: "r"}, {What: "c", Why: "r"}, {What: "d", Why: "r"}}}
	var b bytes.Buffer
	if err := printCrossCheck(&b, r); err != nil {
		t.Fatal(err)
	}
	want := `onnx-go v0.5.0  1 nodes, 0 edges, 0 attributes and 0 initializers compared: 1 differences; 4 things that onnx-go cannot read
difference      node 0 ("y"): operator "Add" here, "Sub" there
cannot read     r (a, b, … and 2 more)
`
	if b.String() != want {
		t.Errorf("%s, want %s", b.String(), want)
	}
	if err := crossCheckError("m.onnx", r); err == nil || exitCode(err) != exitModel || !strings.Contains(err.Error(), `m.onnx: onnx-go decodes it differently in 1 places, first: node 0`) {
		t.Error(err)
	}
	if _, err := crossCheck("missing.onnx", nil); !os.IsNotExist(err) || exitCode(err) != exitFile {
		t.Error(err)
	}
}
