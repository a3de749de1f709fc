package qdq_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/targets"
)

// The names that the cases of TestLint use. x is the input, of shape [1,4,4,4].
const lintInits = `float s = {0.01}, float[1] s1 = {0.01}, float s2 = {0.02}, float so = {0.05}, float neg = {-0.01}, uint8 z = {128}, uint8[1] z1 = {128}, uint8 zero = {0}, uint8 zi = {100}, uint16 zw16 = {0}, uint16 zh = {100},
 int8 zs = {0}, int8 low = {-128}, float two = {2}, float lo = {0}, float hi = {4}, float far = {100}, int64[2] flat = {1,64}, int64[1] axis = {1}, int64 third = {3}, int64[1] third1 = {3}, int64[4] order = {2,4,4,4},
 float[4] sw = {0.01,0.02,0.005,0.01}, int8[4] zw = {0,0,0,0}, int8[4,4,3,3] w = {...}, uint8[4,4,3,3] wu = {...}, int8[64,4] wm = {...}, int8[4,64] wt = {...}, int32[4] b = {100,-2000,3000,5}, float[4] sb = {0.0001,0.0002,0.00005,0.0001}, float[4] fb = {0.1,0.2,0.3,0.4},
 float[4,4,3,3] fw = {...}, int8[1,4,1,1] k = {...}, uint8[1,4,1,1] ku = {...}, float[4,4] blocks = {...}, bool flag = {1}`

const (
	lintX   = "xd = DequantizeLinear (xq, s, z)\n"
	lintW   = "wd = DequantizeLinear <axis = 0> (w, sw, zw)\n"
	lintB   = "bd = DequantizeLinear <axis = 0> (b, sb)\n"
	lintQ   = "yq = QuantizeLinear (a, so, z)\ny = DequantizeLinear (yq, so, z)\n"
	lintR   = "[r] r = Reshape (xd, flat)\nrq = QuantizeLinear (r, s, z)\nrd = DequantizeLinear (rq, s, z)\n"
	lintM   = "wd = DequantizeLinear <axis = 1> (wm, sw, zw)\n"
	lintI8  = "xi = QuantizeLinear (x, s, zs)\n"
	lintI8x = "xd = DequantizeLinear (xi, s, zs)\n"
)

// lintCases are nodes between xq, the codes of x, and y, and what becomes of
// those named n and r: a kernel, or a part of the reason why none.
var lintCases = []struct {
	name, nodes string
	want        string
	opset       int
}{
	{"conv", lintX + lintW + "[n] a = Conv (xd, wd)\n" + lintQ, "n: QLinearConv", 13},
	{"conv with bias", lintX + lintW + lintB + "[n] a = Conv (xd, wd, bd)\n" + lintQ, "n: QLinearConv", 13},
	{"conv with float bias", lintX + lintW + "[n] a = Conv (xd, wd, fb)\n" + lintQ, "n: QLinearConv", 13},
	{"conv with float weight", lintX + "[n] a = Conv (xd, fw)\n" + lintQ, "n: QLinearConv", 13},
	{"conv with float bias and output", lintX + lintW + "[n] a = Conv (xd, wd, fb)\ny = Neg (a)\n", `n: input "fb" is not dequantized`, 13},
	{"conv with float output", lintX + lintW + "[n] a = Conv (xd, wd)\ny = Neg (a)\n", "n: no QuantizeLinear reads its output", 13},
	{"conv whose output is the graph's", lintX + lintW + "[n] y = Conv (xd, wd)\n", "n: no QuantizeLinear reads its output", 13},
	{"conv whose output is read twice", lintX + lintW + "[n] a = Conv (xd, wd)\nneg1 = Neg (a)\nyq = QuantizeLinear (a, so, z)\nyd = DequantizeLinear (yq, so, z)\ny = Add (yd, neg1)", "n: its output is read before it is quantized as well", 13},
	{"conv quantized twice alike", lintX + lintW + "[n] a = Conv (xd, wd)\nq1 = QuantizeLinear (a, so, z)\nd1 = DequantizeLinear (q1, so, z)\nq2 = QuantizeLinear (a, so, z)\nd2 = DequantizeLinear (q2, so, z)\ne = Exp (d1)\nf = Neg (d2)\ny = Sub (e, f)\n", "n: QLinearConv", 13},
	{"conv quantized twice", lintX + lintW + "[n] a = Conv (xd, wd)\nq1 = QuantizeLinear (a, so, z)\nd1 = DequantizeLinear (q1, so, z)\nq2 = QuantizeLinear (a, s, z)\nd2 = DequantizeLinear (q2, s, z)\ne = Exp (d1)\nf = Neg (d2)\ny = Sub (e, f)\n", "n: 2 QuantizeLinear read its 1 outputs", 13},
	{"conv, implied relu", lintX + lintW + "[n] c = Conv (xd, wd)\na = Relu (c)\nyq = QuantizeLinear (a, so, zero)\ny = DequantizeLinear (yq, so, zero)\n", "n: QLinearConv", 13},
	{"conv, relu that matters", lintX + lintW + "[n] c = Conv (xd, wd)\na = Relu (c)\n" + lintQ, "n: reaches beyond the Relu", 13},
	{"conv, clip that matters", lintX + lintW + "[n] c = Conv (xd, wd)\na = Clip (c, lo, hi)\nyq = QuantizeLinear (a, so, zero)\ny = DequantizeLinear (yq, so, zero)\n", "n: reaches beyond the Clip", 13},
	{"conv, clip that does not", lintX + lintW + "[n] c = Conv (xd, wd)\na = Clip (c, lo, far)\nyq = QuantizeLinear (a, so, zero)\ny = DequantizeLinear (yq, so, zero)\n", "n: QLinearConv", 13},
	{"conv to other codes", lintX + lintW + "[n] a = Conv (xd, wd)\nyq = QuantizeLinear (a, so, zs)\nyc = Cast <to = 1> (yq)\ny = Neg (yc)\n", "n: its input is quantized to uint8, its output to int8", 13},
	{"conv of 16 bits", "xh = QuantizeLinear (x, s, zh)\nxd = DequantizeLinear (xh, s, zh)\n" + lintW + "[n] a = Conv (xd, wd)\nyq = QuantizeLinear (a, so, zh)\ny = DequantizeLinear (yq, so, zh)\n", "n: no 16-bit codes", 21},
	{"conv of int8", lintI8 + lintI8x + lintW + "[n] a = Conv (xd, wd)\nyq = QuantizeLinear (a, so, zs)\ny = DequantizeLinear (yq, so, zs)\n", "n: QLinearConv", 13},
	{"conv of int8 read twice", lintI8 + lintI8x + lintW + "[n] a = Conv (xd, wd)\nyq = QuantizeLinear (a, so, zs)\nyd = DequantizeLinear (yq, so, zs)\n[r] f = Conv (xd, fw, fb)\ny = Add (yd, f)\n", "n: several nodes read the codes\nr: not dequantized", 13},
	{"conv of int8 and uint8", lintX + "wd = DequantizeLinear <axis = 0> (wu, s, z)\n[n] a = Conv (xd, wd)\n" + lintQ, "n: QLinearConv", 13},
	{"product with float output", lintX + lintR + lintM + "[n] y = MatMul (rd, wd)\n", "r: Reshape\nn: MatMulIntegerToFloat", 13},
	{"product behind a reshape that is not quantized", lintX + "[r] r = Reshape (xd, flat)\n" + lintM + "[n] y = MatMul (r, wd)\n", "r: Reshape\nn: MatMulIntegerToFloat", 13},
	{"quantized product", lintX + lintR + lintM + "[n] a = MatMul (rd, wd)\n" + lintQ, "r: Reshape\nn: QLinearMatMul", 13},
	{"product and Relu", lintX + lintR + lintM + "[n] a = MatMul (rd, wd)\nrelu = Relu (a)\ny = Exp (relu)\n", "r: Reshape\nn: a Relu stands behind it, and no QuantizeLinear behind that", 13},
	{"product and bias", lintX + lintR + lintM + "[n] a = MatMul (rd, wd)\ny = Add (a, fb)\n", `r: Reshape
n: the runtime joins it with the Add behind it to Gemm, and then: input "fb" is not dequantized`, 13},
	{"product, bias and output", lintX + lintR + lintM + "[n] c = MatMul (rd, wd)\na = Add (c, fb)\n" + lintQ, "r: Reshape\nn: QGemm", 13},
	{"gemm", lintX + lintR + lintM + lintB + "[n] y = Gemm (rd, wd, bd)\n", "r: Reshape\nn: QGemm", 13},
	{"gemm with a transposed weight", lintX + lintR + "wd = DequantizeLinear <axis = 0> (wt, sw, zw)\n" + lintB + "[n] a = Gemm <transB = 1> (rd, wd, bd)\n" + lintQ, "r: Reshape\nn: QGemm", 13},
	{"gemm with beta", lintX + lintR + lintM + lintB + "[n] y = Gemm <beta = 2.0> (rd, wd, bd)\n", "r: Reshape\nn: beta is 2, not 1", 13},
	{"reshape between different scales", lintX + "[r] a = Reshape (xd, flat)\n" + lintQ, "r: another scale or zero point", 13},
	{"reshape with float output", lintX + "[r] a = Reshape (xd, flat)\ny = Exp (a)\n", "r: Reshape", 13},
	{"reshape that gives an output", lintX + "[r] y = Reshape (xd, flat)\n", "r: Reshape", 13},
	{"reshape that gives an output which is read", lintX + "[r] y = Reshape (xd, flat)\n[e] e = Exp (y)\n", "r: Reshape", 13},
	{"transpose whose codes have a row of scales", lintX + "[r] a = Transpose <perm = [0,2,1,3]> (xd)\nyq = QuantizeLinear (a, s1, z)\ny = DequantizeLinear (yq, s1, z)\n", "r: Transpose", 13},
	{"reshape without zero points", "xz = QuantizeLinear (x, s)\nxd = DequantizeLinear (xz, s)\n[r] a = Reshape (xd, flat)\nyq = QuantizeLinear (a, s)\ny = DequantizeLinear (yq, s)\n", "r: a zero point is missing", 13},
	{"max pooling", lintX + "[n] p = MaxPool <kernel_shape = [2,2]> (xd)\npq = QuantizeLinear (p, s, z)\ny = DequantizeLinear (pq, s, z)\n", "n: MaxPool", 13},
	{"old max pooling", lintX + "[n] p = MaxPool <kernel_shape = [2,2]> (xd)\npq = QuantizeLinear (p, s, z)\ny = DequantizeLinear (pq, s, z)\n", "n: not used at opset 11", 11},
	{"new max pooling", lintX + "[n] p = MaxPool <kernel_shape = [2,2]> (xd)\npq = QuantizeLinear (p, s, z)\ny = DequantizeLinear (pq, s, z)\n", "n: MaxPool", 22},
	{"new max pooling with float output", lintX + "[n] a = MaxPool <kernel_shape = [2,2]> (xd)\ny = Exp (a)\n", "n: MaxPool", 22},
	{"max pooling with float output", lintX + "[n] a = MaxPool <kernel_shape = [2,2]> (xd)\ny = Exp (a)\n", "n: MaxPool", 13},
	{"new reshape with float output", lintX + "[r] a = Reshape (xd, flat)\ny = Exp (a)\n", "r: Reshape", 21},
	{"newer reshape with float output", lintX + "[r] a = Reshape (xd, flat)\ny = Exp (a)\n", "r: Reshape", 23},
	{"transpose with float output", lintX + "[r] a = Transpose <perm = [0,2,1,3]> (xd)\ny = Exp (a)\n", "r: Transpose", 21},
	{"slice with float output", lintX + "[r] a = Slice (xd, axis, third1, axis)\ny = Exp (a)\n", "r: Slice", 21},
	{"maximum", lintX + "[n] p = ReduceMax <axes = [1]> (xd)\npq = QuantizeLinear (p, s, z)\ny = DequantizeLinear (pq, s, z)\n", "n: ReduceMax", 13},
	{"where the maximum is", lintX + "[n] p = ArgMax <axis = 1> (xd)\ny = Cast <to = 1> (p)\n", "n: ArgMax", 13},
	{"expand", lintX + "[n] p = Expand (xd, order)\npq = QuantizeLinear (p, s, z)\ny = DequantizeLinear (pq, s, z)\n", "n: Expand", 13},
	{"gather", lintX + "[n] p = Gather <axis = 1> (xd, third)\npq = QuantizeLinear (p, s, z)\ny = DequantizeLinear (pq, s, z)\n", "n: Gather", 13},
	{"split", lintX + "[n] p, p2 = Split <axis = 1> (xd)\npq = QuantizeLinear (p, s, z)\npd = DequantizeLinear (pq, s, z)\nqq = QuantizeLinear (p2, s, z)\nqd = DequantizeLinear (qq, s, z)\ne = Exp (pd)\nf = Neg (qd)\ny = Sub (e, f)\n", "n: Split", 13},
	{"split, one part float", lintX + "[n] p, p2 = Split <axis = 1> (xd)\npq = QuantizeLinear (p, s, z)\npd = DequantizeLinear (pq, s, z)\ne = Exp (pd)\nf = Neg (p2)\ny = Sub (e, f)\n", "n: its output is read before it is quantized as well", 13},
	{"add", lintX + "hd = DequantizeLinear (xq, s2, zi)\n[n] a = Add (xd, hd)\n" + lintQ, "n: QLinearAdd", 13},
	{"add of itself", lintX + "[n] a = Add (xd, xd)\n" + lintQ, "n: QLinearAdd", 13},
	{"mul by a constant", lintX + "hd = DequantizeLinear (ku, s, z)\n[n] a = Mul (xd, hd)\n" + lintQ, "n: QLinearMul", 13},
	{"add of a float", lintX + "[n] a = Add (xd, x)\n" + lintQ, `n: input "x" is not dequantized`, 13},
	{"concat of different scales", lintX + "hd = DequantizeLinear (xq, s2, zi)\n[n] a = Concat <axis = 1> (xd, hd)\n" + lintQ, "n: QLinearConcat", 13},
	{"where", lintX + "hd = DequantizeLinear (xq, s2, zi)\n[n] a = Where (flag, xd, hd)\n" + lintQ, "n: QLinearWhere", 13},
	{"average pooling", lintX + "[n] a = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (xd)\n" + lintQ, "n: QLinearAveragePool", 13},
	{"global average pooling", lintX + "[n] a = GlobalAveragePool (xd)\n" + lintQ, "n: QLinearGlobalAveragePool", 13},
	{"leaky relu", lintX + "[n] a = LeakyRelu (xd)\n" + lintQ, "n: QLinearLeakyRelu", 13},
	{"sigmoid", lintX + "[n] a = Sigmoid (xd)\n" + lintQ, "n: QLinearSigmoid", 13},
	{"softmax", lintX + "[n] a = Softmax (xd)\n" + lintQ, "n: QLinearSoftmax", 13},
	{"relu alone", lintX + "[n] a = Relu (xd)\nyq = QuantizeLinear (a, so, zero)\ny = DequantizeLinear (yq, so, zero)\n", "n: QuantizeLinear", 13},
	{"relu alone that matters", lintX + "[n] a = Relu (xd)\n" + lintQ, "n: no integer kernel for Relu", 13},
	{"what has no integer kernel", lintX + "[n] a = Tanh (xd)\n" + lintQ, "n: no integer kernel for Tanh", 13},
	{"weights in 8 bits", "[r] r = Reshape (x, flat)\n" + "wd = DequantizeLinear <axis = 1> (wm, sw, zw)\n[n] y = MatMul (r, wd)\n", "n: MatMulNBits", 21},
	{"max pooling of a negative scale", "xn = QuantizeLinear (x, neg, z)\nxd = DequantizeLinear (xn, neg, z)\n[n] p = MaxPool <kernel_shape = [2,2]> (xd)\npq = QuantizeLinear (p, neg, z)\ny = DequantizeLinear (pq, neg, z)\n", "n: its scale is not positive", 13},
}

func lintModel(t tester, nodes string, opset int) *graph.Model {
	return parse(t, fmt.Sprintf("<ir_version: 8, opset_import: [\"\" : %d]>\ng (float[1,4,4,4] x) => (y)\n<%s>\n{\nxq = QuantizeLinear (x, s, z)\n%s}\n", opset, lintInits, nodes))
}

func TestLint(t *testing.T) {
	for _, c := range lintCases {
		r, err := qdq.Lint(lintModel(t, c.nodes, c.opset), ortCPU(t))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		// A file need not say what its values are.
		bare := lintModel(t, c.nodes, c.opset)
		for n := range bare.Graph.Nodes() {
			for _, v := range n.Outputs() {
				v.Type = graph.Type{}
			}
		}
		if b, err := qdq.Lint(bare, ortCPU(t)); err != nil || !slices.Equal(b.Groups, r.Groups) {
			t.Errorf("%s: without types of values %+v, %v, with them %+v", c.name, b, err, r.Groups)
		}
		got := map[string]qdq.LintGroup{}
		for _, g := range r.Groups {
			got[g.Node] = g
		}
		for _, want := range strings.Split(c.want, "\n") {
			node, text, _ := strings.Cut(want, ": ")
			g, ok := got[node]
			kernel := strings.TrimPrefix(g.Kernel, "com.microsoft.")
			if !ok || g.Fused && kernel != text || !g.Fused && (g.Why == "" || !strings.Contains(g.Why, text)) {
				t.Errorf("%s: %+v, want %s", c.name, g, want)
			}
		}
	}
}

// TestLintAgrees has ONNX Runtime optimize the cases and random models that are
// quantized: what lint says of a group has to have become of it.
func TestLintAgrees(t *testing.T) {
	python := os.Getenv("ONNXQ_PYTHON")
	if python == "" {
		t.Skip("NOT TESTED: ONNXQ_PYTHON names no Python with onnx and onnxruntime: nothing says whether lint is right")
	}
	dir := t.TempDir()
	said := map[string][]qdq.LintGroup{}
	args := []string{filepath.Join("testdata", "fused.py")}
	for i, c := range lintCases {
		m := lintModel(t, c.nodes, c.opset)
		r, err := qdq.Lint(m, ortCPU(t))
		if err != nil {
			t.Fatal(err)
		}
		file := fmt.Sprintf("case%03d.onnx", i)
		if err := onnxfile.Save(t.Context(), m, filepath.Join(dir, file), onnxfile.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		said[file] = r.Groups
		args = append(args, filepath.Join(dir, file))
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), python, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	var found map[string][]struct {
		Name, Op string
		Behind   bool
	}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatal(err)
	}
	agree := 0
	for i, c := range lintCases {
		file := fmt.Sprintf("case%03d.onnx", i)
		for _, g := range said[file] {
			if g.Node != "n" && g.Node != "r" {
				continue
			}
			op, behind := "", false
			for _, n := range found[file] {
				if n.Name == g.Node || strings.HasPrefix(n.Name, g.Node+"/MatMulAddFusion") {
					op, behind = n.Op, n.Behind
				}
			}
			kernel := strings.TrimPrefix(g.Kernel, "com.microsoft.")
			switch {
			case g.Fused && op == kernel && !behind, !g.Fused && behind, g.Fused && op == "" && kernel == "QuantizeLinear":
				agree++
			default:
				t.Errorf("%s: lint says %+v, the runtime has %q, behind DequantizeLinear: %v", c.name, g, op, behind)
			}
		}
	}
	t.Logf("%d groups", agree)
}

// A target without rules of fusion is taken at its table.
func TestLintTable(t *testing.T) {
	target := &targets.Target{Name: "npu", Activations: []string{"u8"}, Weights: []string{"i8", "i4"}, Rules: []targets.Rule{
		{Op: "Conv", Class: targets.Anchor, FewBits: true}, {Op: "ConvTranspose", Class: targets.Anchor}, {Op: "Add", Class: targets.Bridge},
	}}
	const few = "w4 = Constant <value = int4[1,1,1,1] {3}> ()\nwd = DequantizeLinear (w4, s)\n"
	for _, c := range []struct{ nodes, want string }{
		{lintX + lintW + "[n] a = Conv (xd, wd)\n" + lintQ, ""},
		{lintX + lintW + "[n] a = Conv (xd, wd)\ny = Neg (a)\n", "no QuantizeLinear reads its output"},
		{lintX + "[n] a = Conv (xd, fw)\n" + lintQ, `input "fw" is not dequantized`},
		{lintX + few + "[n] a = Conv (xd, wd)\n" + lintQ, ""},
		{lintX + few + "[n] a = ConvTranspose (xd, wd)\n" + lintQ, "the integer kernel of npu for ConvTranspose takes no codes of type i4 here"},
		{lintX + few + "[n] a = Add (xd, wd)\n" + lintQ, "the integer kernel of npu for Add takes no codes of type i4 here"},
		{lintX + "[n] a = Sigmoid (xd)\n" + lintQ, "npu has no integer kernel for Sigmoid"},
		{"xh = QuantizeLinear (x, s, zh)\nxd = DequantizeLinear (xh, s, zh)\n" + lintW + "[n] a = Conv (xd, wd)\nyq = QuantizeLinear (a, so, zh)\ny = DequantizeLinear (yq, so, zh)\n", "npu takes no codes of type u16"},
	} {
		r, err := qdq.Lint(lintModel(t, c.nodes, 21), target)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Groups) == 0 || r.Groups[0].Fused != (c.want == "") || r.Groups[0].Why != c.want {
			t.Errorf("%+v, want %q", r.Groups, c.want)
		}
	}
	if _, err := qdq.Lint(lintModel(t, lintX+"y = Neg (xd)\n", 13), &targets.Target{Name: "npu", Fusion: "magic"}); err == nil {
		t.Error("no error for unknown rules of fusion")
	}
}
