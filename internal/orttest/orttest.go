// Package orttest tells tests where ONNX Runtime's library is.
package orttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Library returns the path of the library: the value of ONNXQ_ORT_LIB, or the
// one in the onnxruntime package of the Python that ONNXQ_PYTHON names.
// Without either the test is skipped.
func Library(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("ONNXQ_ORT_LIB"); path != "" {
		return path
	}
	python := os.Getenv("ONNXQ_PYTHON")
	if python == "" {
		t.Skip("NOT TESTED: neither ONNXQ_ORT_LIB nor ONNXQ_PYTHON says where ONNX Runtime is")
	}
	out, err := exec.Command(python, "-c", "import importlib.util; print(importlib.util.find_spec('onnxruntime').submodule_search_locations[0])").Output()
	if err != nil {
		t.Skipf("NOT TESTED: ONNXQ_PYTHON has no onnxruntime: %v", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "capi")
	for _, pattern := range []string{"libonnxruntime.so.*", "libonnxruntime.*.dylib", "onnxruntime.dll"} {
		if found, _ := filepath.Glob(filepath.Join(dir, pattern)); len(found) > 0 {
			return found[0]
		}
	}
	t.Skipf("NOT TESTED: there is no library in %s", dir)
	return ""
}
