package onnxq_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq"
	executor "github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/exec/ort"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/orttest"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Sizes of languageModel.
const (
	vocabulary = 8192
	width      = 128
	decoders   = 4
	tokens     = 24
)

// languageModel is a decoder with causal attention whose embedding is its head
// as well: one table that a Gather reads and, behind a Transpose, a MatMul.
func languageModel(t testing.TB) *graph.Model {
	t.Helper()
	r := rand.New(rand.NewPCG(21, 22))
	weights := map[string]*tensor.Tensor{}
	var inputs []string
	add := func(name string, scale float64, shape ...int) {
		x := tensor.New(tensor.Float32, shape...)
		for i := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = float32(r.NormFloat64() * scale)
		}
		weights[name] = x
		inputs = append(inputs, "float"+tensor.ShapeString(shape)+" "+name)
	}
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, "  "+format+"\n", args...) }
	add("table", 1, vocabulary, width)
	say("x0 = Gather <axis = 0> (table, ids)")
	x := "x0"
	for i := range decoders {
		p := fmt.Sprintf("l%d", i)
		norm := func(out, in string) {
			gain := tensor.New(tensor.Float32, width)
			for j := range tensor.As[float32](gain) {
				tensor.As[float32](gain)[j] = 1
			}
			weights[out+"g"] = gain
			inputs = append(inputs, fmt.Sprintf("float[%d] %sg", width, out))
			say("%s = LayerNormalization (%s, %sg)", out, in, out)
		}
		norm(p+"n", x)
		for _, w := range []string{"q", "k", "v"} {
			add(p+w+"w", 0.08, width, width)
			say("%s%s = MatMul (%sn, %s%sw)", p, w, p, p, w)
			say("%s%sh = Reshape (%s%s, heads)", p, w, p, w)
		}
		say("%sqt = Transpose <perm = [1, 0, 2]> (%sqh)", p, p)
		say("%skt = Transpose <perm = [1, 2, 0]> (%skh)", p, p)
		say("%svt = Transpose <perm = [1, 0, 2]> (%svh)", p, p)
		say("%ss = MatMul (%sqt, %skt)", p, p, p)
		say("%sm = Where (causal, %ss, low)", p, p)
		say("%sa = Softmax <axis = -1> (%sm)", p, p)
		say("%sc = MatMul (%sa, %svt)", p, p, p)
		say("%sct = Transpose <perm = [1, 0, 2]> (%sc)", p, p)
		say("%scr = Reshape (%sct, rows)", p, p)
		add(p+"ow", 0.08, width, width)
		say("%so = MatMul (%scr, %sow)", p, p, p)
		say("%sx = Add (%s, %so)", p, x, p)
		norm(p+"f", p+"x")
		add(p+"uw", 0.08, width, 4*width)
		add(p+"dw", 0.04, 4*width, width)
		say("%su = MatMul (%sf, %suw)", p, p, p)
		say("%sr = Relu (%su)", p, p)
		say("%sd = MatMul (%sr, %sdw)", p, p, p)
		x = p + "y"
		say("%s = Add (%sx, %sd)", x, p, p)
	}
	say("head = Transpose <perm = [1, 0]> (table)")
	say("logits = MatMul (%s, head)", x)
	var causal []string
	for i := range tokens * tokens {
		causal = append(causal, map[bool]string{false: "0", true: "1"}[i%tokens <= i/tokens])
	}
	m, err := graph.Parse(fmt.Sprintf(`<ir_version: 8, opset_import: ["": 17]>
g (int64[%d] ids, %s) => (float[%d,%d] logits)
<int64[3] heads = {%d, 4, %d}, int64[2] rows = {%d, %d}, float low = {-10000}, bool[%d,%d] causal = {%s}> {
%s}`, tokens, strings.Join(inputs, ", "), tokens, vocabulary, tokens, width/4, tokens, width, tokens, tokens, strings.Join(causal, ", "), b.String()))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range slices.Clone(m.Graph.Inputs()[1:]) {
		m.Graph.RemoveInput(v)
		m.Graph.AddInitializer(v, weights[v.Name()])
	}
	return m
}

func prompt(seed uint64) map[string]ops.Data {
	r := rand.New(rand.NewPCG(seed, 1))
	ids := tensor.New(tensor.Int64, tokens)
	for i := range tensor.As[int64](ids) {
		tensor.As[int64](ids)[i] = r.Int64N(vocabulary)
	}
	return map[string]ops.Data{"ids": ids}
}

// TestTiedLanguageModel stores a language model in 4 bits with scales in
// float16: 4.5 bits a weight, the table once for the look-ups and the head, and
// logits as ONNX Runtime's.
func TestTiedLanguageModel(t *testing.T) {
	m := languageModel(t)
	q, _, err := onnxq.QuantizeModel(t.Context(), m, onnxq.Options{Weights: "i4", ScaleType: "f16"})
	if err != nil {
		t.Fatal(err)
	}
	was, is := onnxfile.Size(m), onnxfile.Size(q)
	if share := float64(is) / float64(was); share > 4.7/32 {
		t.Errorf("%d bytes of %d: %.4f, more than 4.7 bits of 32", is, was, share)
	}
	tables := 0
	for _, v := range q.Graph.Initializers() {
		if v.Const.Size() >= vocabulary*width/2 {
			tables++
			if v.Const.Size() != vocabulary*width/2 {
				t.Errorf("%q takes %d bytes", v.Name(), v.Const.Size())
			}
		}
	}
	if tables != 1 {
		t.Errorf("the table is stored %d times", tables)
	}
	want, got := outputs(t, executor.Embedded{}, m, prompt(1)), outputs(t, executor.Embedded{}, q, prompt(1))
	if r := relative(got[0], want[0]); !(r < 0.5) {
		t.Errorf("logits are off by %.3f", r)
	}

	for _, o := range []onnxq.Options{{}, {Mode: onnxq.Float16}} {
		p, _, err := onnxq.PrepareOnly(t.Context(), m, o)
		if err != nil {
			t.Fatal(err)
		}
		if is := onnxfile.Size(p); is > was+was/100 {
			t.Errorf("prepared for mode %q it takes %d bytes of %d", o.Mode, is, was)
		}
	}

	engine, err := ort.Open(ort.Options{Library: orttest.Library(t)})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tied.onnx")
	if err := onnxfile.Save(t.Context(), q, path, onnxfile.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	saved, err := onnxfile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	runtime := outputs(t, engine, saved, prompt(1))
	if r := relative(got[0], runtime[0]); !(r < 1e-4) {
		t.Errorf("logits differ from the runtime's by %.2g", r)
	}
	check(t, []string{path})
}
