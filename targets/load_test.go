package targets

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// TestPresets checks the built-in targets, and that each is the same when it
// has been written to a file, of either form, and read.
func TestPresets(t *testing.T) {
	for _, p := range All() {
		if err := p.check(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if len(p.Sources) == 0 || p.Title == "" {
			t.Errorf("%s names no sources or has no title", p.Name)
		}
		for _, isJSON := range []bool{false, true} {
			data, err := yaml.Marshal(p)
			if isJSON {
				data, err = json.Marshal(p)
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := Read(bytes.NewReader(data), isJSON)
			if err != nil {
				t.Fatalf("%s: %v\n%s", p.Name, err, data)
			}
			if !reflect.DeepEqual(got, p) {
				t.Errorf("%s was read as %+v", p.Name, got)
			}
		}
	}
}

func TestExtends(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "board.yaml")
	text := `
# ONNX Runtime on a board whose build has no kernels for Sigmoid
extends: ort-arm64
title: our board
activations: [i8]
rules:
  - {op: Conv, class: anchor, absorbs: [Relu]}
`
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	base, _ := Get("ort-arm64")
	if got.Name != "board" || got.Title != "our board" || len(got.Activations) != 1 || got.Fusion != base.Fusion || got.WideOpset != 21 {
		t.Errorf("%+v", got)
	}
	if len(got.Rules) != len(base.Rules) || len(got.Rules[0].Absorbs) != 1 || got.Rules[1].Op != "MatMul" {
		t.Errorf("rules are %+v", got.Rules)
	}
	if len(base.Activations) != 4 || len(base.Rules[0].Absorbs) != 2 {
		t.Error("the built-in target has changed")
	}
	if again, err := Load("ort-arm64"); err != nil || again != base {
		t.Errorf("%v, %v", again, err)
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "storage type",
		"extends: nowhere":            "unknown target",
		"extends: ort-cpu\ncolour: 1": "colour",
		"extends: ort-cpu\nrules: [{op: Conv, class: hero}]": "class",
		"extends: ort-cpu\nrules: [{class: anchor}]":         "names no operator",
		"extends: ort-cpu\nweights: [i8, u16]":               "not for integer kernels",
		"extends: ort-cpu\nweights: [i4]":                    "want a rule with few_bits",
		"extends: ort-cpu\nactivations: [f8e4m3]":            "float_bias",
		"extends: tensorrt\nactivations: [i8]\nrules: [{op: Conv, class: anchor}, {op: MatMul, class: anchor}, {op: Gemm, class: anchor}]": "together",
		"extends: tensorrt\nweights: [i8]":                                      "together",
		"extends: ort-cpu\nrules: [{op: Conv, class: anchor, types: [f8e4m3]}]": "does not list",
		"extends: ort-cpu\nrules: [{op: Conv, class: anchor, channels: -1}]":    "negative",
		"extends: qnn\nweights: [i4]":                                           "have to list i8 or u8",
		"extends: qnn\nweights: [i8]":                                           "list no type of fewer than 8 bits",
		"extends: qnn\nactivations: [i4]":                                       "not for integer kernels",
		"extends: qnn\nactivations: [u8]\nwide_opset: 0":                        "wide_opset",
		"extends: ort-cpu\nactivations: [q3]":                                   "storage type",
		"extends: tensorrt\nactivations: [u8]":                                  "signed",
		"extends: tensorrt\nactivations: [i16]":                                 "wide_opset",
		"extends: ort-cpu\nmax_opset: 11":                                       "rise",
		"extends: ort-cpu\nmax_opset: 99":                                       "10 to 28",
		"extends: ort-cpu\nrules: [{op: Conv, class: anchor, absorbs: [Tanh]}]": "absorbs",
		"rules: {":   "",
		"- a list\n": "",
	} {
		if _, err := Read(strings.NewReader(text), false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := Read(strings.NewReader(strings.Repeat(" ", maxFile+1)), false); err == nil {
		t.Error("a file of any size is read")
	}
	if _, err := Load("ort-cqu"); err == nil || !strings.Contains(err.Error(), "known are") {
		t.Errorf("%v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "x.json")); err == nil {
		t.Error("a missing file is read")
	}
}
