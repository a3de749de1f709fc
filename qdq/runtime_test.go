package qdq_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
)

// kernels names the integer kernels of ONNX Runtime by operator; carries keep
// their names.
var kernels = map[string][]string{
	"Conv": {"QLinearConv"}, "MatMul": {"QLinearMatMul", "MatMulIntegerToFloat"}, "Gemm": {"QGemm"},
	"Add": {"QLinearAdd"}, "Mul": {"QLinearMul"}, "Concat": {"QLinearConcat"}, "AveragePool": {"QLinearAveragePool"},
	"dynamic":           {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "ConvInteger"},
	"GlobalAveragePool": {"QLinearGlobalAveragePool"}, "LeakyRelu": {"QLinearLeakyRelu"}, "Sigmoid": {"QLinearSigmoid"},
}

// unfused lists the cases that are not tried.
var unfused = map[string]string{
	"captured_nothing": "the runtime refuses a MaxPool without its first output",
	"if_same_names":    "the runtime refuses models with two nodes of one name",
	"labels":           "the runtime refuses models with two nodes of one name",
	"target_brain":     "the runtime's CPU provider refuses bfloat16",
	"wide":             "the runtime's CPU provider has no integer kernels for 16 bits",
	"wide_standard":    "the runtime's CPU provider has no integer kernels for 16 bits",
}

// labels matches the node names that randomModel gives, which repeat.
var labels = regexp.MustCompile(`\[n\d\] `)

// TestRuntimeFuses has ONNX Runtime optimize the cases of testdata and random
// models: every planned node has to become an integer kernel, and no weight
// may be left to be dequantized at every inference.
func TestRuntimeFuses(t *testing.T) {
	python := os.Getenv("ONNXQ_PYTHON")
	if python == "" {
		t.Skip("ONNXQ_PYTHON names no Python with onnx and onnxruntime: nothing says whether the runtime fuses what the plans promise")
	}
	dir := t.TempDir()
	want := map[string]map[string]int{} // planned nodes by operator
	planned := map[string]map[string]bool{}
	texts := map[string]string{}
	add := func(t tester, name, text string, o qdq.Options) {
		m := parse(t, text)
		if _, err := passes.Prepare(t.Context(), m, passes.Options{}); err != nil {
			t.Fatal(err)
		}
		p, err := qdq.Annotate(m, ortCPU(t), o)
		if err != nil {
			return
		}
		q, _ := rewrite(t, m, p)
		file := name + ".onnx"
		if err := onnxfile.Save(t.Context(), q, filepath.Join(dir, file), onnxfile.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		want[file], planned[file], texts[file] = map[string]int{}, map[string]bool{}, graph.Text(q, 1)
		for _, e := range p.Nodes {
			if e.How == qdq.Dynamic {
				want[file]["dynamic"]++
			}
			if e.How == qdq.Integer || e.How == qdq.FloatOutput {
				planned[file][e.Node] = true
				if kernels[e.Op] != nil {
					want[file][e.Op]++
				}
			}
		}
	}
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		if unfused[name] != "" || strings.HasPrefix(name, "target_") {
			continue
		}
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var o qdq.Options
		text := ""
		for _, f := range a.Files {
			switch f.Name {
			case "model":
				text = string(f.Data)
			case "options":
				if err := json.Unmarshal(f.Data, &o); err != nil {
					t.Fatal(err)
				}
			}
		}
		add(t, name, text, o)
	}
	random := 0
	rapid.Check(t, func(r *rapid.T) {
		random++
		add(r, fmt.Sprintf("random%d", random), labels.ReplaceAllString(randomModel(r), ""), qdq.Options{})
	})
	names := slices.Sorted(maps.Keys(want))
	args := []string{filepath.Join("testdata", "fused.py")}
	for _, n := range names {
		args = append(args, filepath.Join(dir, n))
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), python, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	var got map[string][]struct {
		Name, Op         string
		Behind, Constant bool
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	for _, file := range names {
		count := map[string]int{}
		bad := ""
		for _, n := range got[file] {
			for op, list := range kernels {
				if slices.Contains(list, n.Op) {
					count[op]++
				}
			}
			if n.Constant {
				bad += fmt.Sprintf("a constant is decoded by %q at every inference\n", n.Name)
			}
			if n.Behind && n.Name != "" && planned[file][n.Name] && n.Op != "QuantizeLinear" {
				bad += fmt.Sprintf("%s %q runs on floats\n", n.Op, n.Name)
			}
		}
		if want[file]["dynamic"] > count["dynamic"] {
			// One DynamicQuantizeLinear for several products stays apart from them.
			count["dynamic"] += count["MatMul"] - want[file]["MatMul"]
		}
		for op, k := range want[file] {
			if count[op] != k {
				bad += fmt.Sprintf("%d of %d %s became integer kernels\n", count[op], k, op)
			}
		}
		if bad != "" {
			t.Errorf("%s:\n%s%s%+v", file, bad, texts[file], got[file])
		}
	}
	t.Logf("%d models", len(names))
}
