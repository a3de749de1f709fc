package validate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/tensor"
)

func TestModel(t *testing.T) {
	const head = "<ir_version: 8, opset_import: [\"\" : 17, \"com.microsoft\" : 1, \"loc\" : 1]>\n"
	for _, c := range []struct{ name, text, want string }{
		{"good", head + "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", ""},

		{"ir 0", "<ir_version: 0, opset_import: [\"\" : 17]>\ng (float[N] x) => (float[N] y) { y = Relu(x) }", "IR version 0"},
		{"ir future", "<ir_version: 99, opset_import: [\"\" : 17]>\ng (float[N] x) => (float[N] y) { y = Relu(x) }", "IR version 99"},
		{"opset future", "<ir_version: 8, opset_import: [\"\" : 99]>\ng (float[N] x) => (float[N] y) { y = Relu(x) }", "ai.onnx 99"},
		{"ml future", "<ir_version: 8, opset_import: [\"\" : 17, \"ai.onnx.ml\" : 9]>\ng (float[N] x) => (float[N] y) { y = Relu(x) }", "ai.onnx.ml 9"},
		{"no outputs", head + "g (float[N] x) => () { y = Relu(x) }", "no outputs"},
		{"no such operator", head + "g (float[N] x) => (float[N] y) { y = Rectify(x) }", `no operator "Rectify"`},
		{"operator of later", head + "g (float[N] x) => (float[N] y) { y = Gelu(x) }", `no operator "Gelu" at version 17`},
		{"contrib", head + "g (float[N] x) => (float[N] y) { y = com.microsoft.Gelu(x) }", ""},
		{"unknown contrib", head + "g (float[N] x) => (float[N] y) { y = com.microsoft.Gelulu(x) }", `com.microsoft has no operator "Gelulu"`},
		{"missing function", head + "g (float[N] x) => (float[N] y) { y = loc.F(x) }", `"loc.F" is neither`},
		{"too many outputs", head + "g (float[N] x) => (float[N] y) { y, z = Relu(x) }", "2 outputs, want at most 1"},
		{"too many inputs", head + "g (float[N] x) => (float[N] y) { y = Relu(x, x) }", "2 inputs, want at most 1"},
		{"too few inputs", head + "g (float[N] x) => (float[N] y) { y = Add(x) }", "1 inputs, want at least 2"},
		{"omitted input", head + "g (float[N] x) => (float[N] y) { y = Add(, x) }", "input 0 is missing"},
		{"unknown attribute", head + "g (float[N] x) => (float[N] y) { y = Relu<slope = 1.0>(x) }", `no attribute "slope"`},
		{"kind of attribute", head + "g (float[1,3,8,8] x, float[4,3,3,3] w) => (y) { y = Conv<strides = [1.0, 1.0]>(x, w) }", `attribute "strides" is of kind 6, want 7`},
		{"missing attribute", head + "g (float[N] x) => (float[N] y) { y = Concat(x, x) }", "attribute axis is missing"},
		{"input type", head + "g (string[N] x) => (y) { y = Relu(x) }", "is tensor(string)"},
		{"mixed types", head + "g (float[N] x, int64[N] z) => (y) { y = Add(x, z) }", "is tensor(int64), but another input"},
		{"declared output", head + "g (float[N] x) => (int64[N] y) { y = Relu(x) }", "declared as tensor(int64)"},
		{"declared value", head + "g (float[N] x) => (float[N] y) <int32[N] z> { z = Relu(x)\n y = Neg(z) }", "declared as tensor(int32)"},
		{"through the unknown", head + "g (float[N] x) => (int64[N] y) { z = com.microsoft.QuickGelu(x)\n y = Relu(z) }", "declared as"},
		{"axis", head + "g (float[2,3] x) => (float[2,3] y) { y = Softmax<axis = 5>(x) }", "axis"},
		{"permutation", head + "g (float[2,3] x) => (y) { y = Transpose<perm = [0, 0]>(x) }", "perm"},
		{"stride", head + "g (float[1,3,8,8] x, float[4,3,3,3] w) => (y) { y = Conv<strides = [0, 1]>(x, w) }", "stride"},
		{"dilation", head + "g (float[1,3,8,8] x, float[4,3,3,3] w) => (y) { y = Conv<dilations = [-1, 1]>(x, w) }", "dilation"},
		{"group", head + "g (float[1,3,8,8] x, float[4,3,3,3] w) => (y) { y = Conv<group = 0>(x, w) }", "group"},
		{"branch", head + "g (bool c, float[N] x) => (y) { y = If(c) <then_branch = a () => (float[N] p) { p = Relu(x) }, else_branch = b () => (float[N] q) { q = Nothing(x) }> }", `no operator "Nothing"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := graph.Parse(c.text)
			if err != nil {
				t.Fatalf("parse: %v", err)
			}
			switch err = Model(m, Options{}); {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestNoType has attributes whose type the file leaves out; only one that
// stands for an attribute of the function's caller may do without.
func TestNoType(t *testing.T) {
	m, err := graph.Parse("<ir_version: 8, opset_import: [\"\" : 17, \"f\" : 1]>\ng (float[2,3] x) => (y) { y = f.F<ax = 1>(x) }\n<domain: \"f\", opset_import: [\"\" : 17]>\nF <ax> (x) => (y) { y = Flatten<axis: int = @ax>(x) }")
	if err != nil {
		t.Fatal(err)
	}
	m.Functions[0].Body.First().Attrs[0].NoType = true
	if err := Model(m, Options{}); err != nil {
		t.Error(err)
	}
	m.Graph.First().Attrs[0].NoType = true
	if err := Model(m, Options{Domains: []string{"f"}}); err == nil || !strings.Contains(err.Error(), `attribute "ax" has no type`) {
		t.Errorf("%v", err)
	}
}

// TestDeclared declares types that do not say of what elements, which ONNX
// Runtime refuses; no type at all it accepts.
func TestDeclared(t *testing.T) {
	float := graph.TensorType(tensor.Float32, nil)
	for name, typ := range map[string]graph.Type{
		"tensor":   graph.TensorType(tensor.Undefined, graph.ShapeOf(2)),
		"sparse":   {Kind: graph.KindSparseTensor},
		"sequence": {Kind: graph.KindSequence},
		"optional": {Kind: graph.KindOptional, Inner: &graph.Type{Kind: graph.KindSequence, Inner: &graph.Type{}}},
		"map":      {Kind: graph.KindMap, Elem: tensor.Int64},
		"keys":     {Kind: graph.KindMap, Inner: &float},
	} {
		m, err := graph.Parse("<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[2] x) => (y) <float[2] z> { z = Neg(x)\n y = Neg(z) }")
		if err != nil {
			t.Fatal(err)
		}
		if err := Model(m, Options{}); err != nil {
			t.Fatal(err)
		}
		for _, v := range []*graph.Value{m.Graph.Outputs()[0], m.Graph.ValueInfo[0]} {
			was := v.Type
			v.Type = typ
			if err := Model(m, Options{}); err == nil || !strings.Contains(err.Error(), "of what elements") {
				t.Errorf("%s: %v", name, err)
			}
			v.Type = was
		}
	}
}

func TestCustomDomain(t *testing.T) {
	m, err := graph.Parse("<ir_version: 8, opset_import: [\"\" : 17, \"loc\" : 1]>\ng (float[N] x) => (float[N] y) { y = loc.F(x) }")
	if err != nil {
		t.Fatal(err)
	}
	if err := Model(m, Options{Domains: []string{"loc"}}); err != nil {
		t.Error(err)
	}
}

// TestAccepts holds the models of ONNXQ_SHARED/zoo and the ONNX backend cases
// in ONNXQ_CONFORMANCE, all of which ONNX Runtime's definitions describe,
// against the validator.
func TestAccepts(t *testing.T) {
	shared := os.Getenv("ONNXQ_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "..", "shared")
	}
	roots := []string{filepath.Join(shared, "zoo")}
	if dir := os.Getenv("ONNXQ_CONFORMANCE"); dir != "" {
		roots = append(roots, dir)
	} else {
		t.Log("ONNXQ_CONFORMANCE does not name the folder of the ONNX backend cases: they are not checked")
	}
	seen := 0
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".onnx") {
				return err
			}
			m, err := onnxfile.Open(path)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				return nil
			}
			defer m.Close()
			seen++
			if err := Model(m, Options{}); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			return nil
		})
		if err != nil {
			t.Log(err)
		}
	}
	if seen == 0 {
		t.Skipf("no models in %s", roots)
	}
	t.Logf("%d models", seen)
}
