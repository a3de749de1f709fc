package onnxq_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/onnxq/onnxq"

// layers lists the packages of the module; each may import only those before it.
var layers = []string{
	"internal/par", "internal/atomicfile", "internal/onnxpb", "internal/orttest", "internal/fuzztest", "job",
	"tensor", "kernels", "quant", "graph", "graph/onnxfile",
	"ops", "fusion", "exec", "exec/ort", "interop/onnxgo", "validate", "passes", "targets", "qdq",
	"calibration/npy", "calibration/images", "calibration", "passes/accuracy", "eval", "report", "auto",
	".",
	"models", "internal/opdoc", "internal/demo", "cmd/onnxq",
}

// protobuf lists the only packages that may know of protocol buffers.
var protobuf = []string{"graph/onnxfile", "internal/onnxpb"}

// TestLayers checks that no package imports one above it, and that the table
// of ARCHITECTURE.md lists the packages and their imports as they are.
func TestLayers(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{} // package to the last cell of its row
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(strings.TrimSpace(line), "|"); len(cells) == 5 && strings.Contains(cells[1], "`") {
			listed[strings.Trim(cells[1], " `")] = strings.TrimSpace(cells[3])
		}
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := short(fields[0])
		at := slices.Index(layers, pkg)
		if at < 0 {
			t.Errorf("package %s has no layer", pkg)
			continue
		}
		var own []string
		for _, imp := range fields[1:] {
			if strings.HasPrefix(imp, "google.golang.org/protobuf") && !slices.Contains(protobuf, pkg) {
				t.Errorf("%s imports %s", pkg, imp)
			}
			if imp != module && !strings.HasPrefix(imp, module+"/") {
				continue
			}
			own = append(own, short(imp))
			if below := slices.Index(layers, short(imp)); below < 0 || below >= at {
				t.Errorf("%s imports %s, which is not below it", pkg, short(imp))
			}
		}
		want := strings.Join(own, ", ")
		if want == "" {
			want = "–"
		}
		if got, ok := listed[pkg]; !ok || got != want {
			t.Errorf("ARCHITECTURE.md says %q of the imports of `%s`, which are: %s", got, pkg, want)
		}
		delete(listed, pkg)
	}
	for pkg := range listed {
		t.Errorf("ARCHITECTURE.md lists %s, which is no package", pkg)
	}
}

func short(path string) string {
	if path == module {
		return "."
	}
	return strings.TrimPrefix(path, module+"/")
}
