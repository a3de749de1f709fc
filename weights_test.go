package onnxq_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq"
	executor "github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/exec/ort"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/orttest"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// weighted is a model that reads weights in every way: an embedding that is the
// head as well, products with and without bias whose rows are no whole blocks, a
// recurrent layer, a convolution, and a product of batches.
func weighted(t testing.TB, elem tensor.DType) *graph.Model {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	text := `<ir_version: 8, opset_import: ["": 17]>
g (int64[t] ids, FLOAT[1,3,9,9] image, FLOAT[2,t,64] pair, WEIGHTS) => (FLOAT[t,70] logits, FLOAT[t,2,1,24] state, FLOAT[1,24,7,7] conv, FLOAT[2,t,20] batch) {
  x = Gather <axis = 0> (table, ids)
  h1 = MatMul (x, w1)
  h2 = Gemm <transB = 1> (h1, w2, b2)
  h3 = MatMul (h2, w3)
  h4 = Gemm (h3, w4, c4)
  back = Transpose <perm = [1, 0]> (table)
  logits = MatMul (h4, back)
  one = Constant <value_ints = [1]> ()
  seq = Unsqueeze (h4, one)
  state = LSTM <hidden_size = 24, direction = "bidirectional"> (seq, lw, lr)
  conv = Conv (image, cw)
  batch = MatMul (pair, bw)
}`
	name := "float"
	if elem == tensor.Float16 {
		name = "float16"
	}
	weights := []struct {
		name  string
		shape []int
	}{
		{"table", []int{70, 64}}, {"w1", []int{64, 48}}, {"w2", []int{60, 48}}, {"b2", []int{60}}, {"w3", []int{60, 80}}, {"w4", []int{80, 64}}, {"c4", []int{1, 64}},
		{"lw", []int{2, 96, 64}}, {"lr", []int{2, 96, 24}}, {"cw", []int{24, 3, 3, 3}}, {"bw", []int{2, 64, 20}},
	}
	var inputs []string
	for _, w := range weights {
		inputs = append(inputs, "FLOAT"+tensor.ShapeString(w.shape)+" "+w.name)
	}
	m, err := graph.Parse(strings.ReplaceAll(strings.Replace(text, "WEIGHTS", strings.Join(inputs, ", "), 1), "FLOAT", name))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range weights {
		x := tensor.New(elem, w.shape...)
		row := make([]float32, x.Len())
		for i := range row {
			row[i] = float32(r.NormFloat64()) / 8
		}
		tensor.Write(x, 0, row)
		v := m.Graph.Inputs()[3]
		m.Graph.RemoveInput(v)
		m.Graph.AddInitializer(v, x)
	}
	return m
}

// feeds returns inputs of the weighted model.
func feeds(elem tensor.DType) map[string]ops.Data {
	r := rand.New(rand.NewPCG(5, 6))
	in := map[string]ops.Data{"ids": tensor.Of([]int64{3, 69, 0, 41, 17})}
	for name, shape := range map[string][]int{"image": {1, 3, 9, 9}, "pair": {2, 5, 64}} {
		x := tensor.New(elem, shape...)
		row := make([]float32, x.Len())
		for i := range row {
			row[i] = float32(r.NormFloat64())
		}
		tensor.Write(x, 0, row)
		in[name] = x
	}
	return in
}

func outputs(t *testing.T, e executor.Engine, m *graph.Model, in map[string]ops.Data) [][]float32 {
	t.Helper()
	x, err := e.Compile(t.Context(), m, executor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	r, err := x.Open(t.Context(), executor.SessionOptions{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out, err := r.Run(t.Context(), in, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]float32
	for _, d := range out {
		f, err := tensor.Float32s(d.(*tensor.Tensor))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return all
}

// relative returns the L2 norm of a - b as a share of that of b.
func relative(a, b []float32) float64 {
	var d, n float64
	for i := range b {
		d += float64(a[i]-b[i]) * float64(a[i]-b[i])
		n += float64(b[i]) * float64(b[i])
	}
	return math.Sqrt(d / n)
}

// weightSchemes lists options for mode weights with the relative error that the
// outputs may have at most.
func weightSchemes(target string) []onnxq.Options {
	t, err := targets.Get(target)
	if err != nil {
		panic(err)
	}
	var out []onnxq.Options
	add := func(o onnxq.Options) {
		o.Mode, o.Target = onnxq.Weights, t
		out = append(out, o)
	}
	for _, w := range []string{"i8", "u8", "i4", "u4", "i3", "u3", "i2", "u2", "ternary", "binary"} {
		for _, zero := range []string{"symmetric", "full", "asymmetric"} {
			for _, block := range []int{0, 16, 32, 128} {
				if w == "binary" && zero != "symmetric" {
					continue
				}
				o := onnxq.Options{Weights: w, WeightZero: zero, Block: block}
				if block == 32 {
					o.ScaleType = "f16"
				}
				add(o)
			}
		}
	}
	for _, w := range []string{"i4", "u4", "i8"} {
		add(onnxq.Options{Weights: w, Block: onnxq.WholeChannels, WeightZero: "asymmetric"})
		add(onnxq.Options{Weights: w, PerTensor: true, WeightZero: "full"})
	}
	types := []string{"bf16", "f16", "nf4", "kmeans:5", "kmeans:16", "kmeans:100"}
	if target == "ort-cpu" {
		types = append(types, "f8e4m3", "f8e5m2")
	} else {
		types = append(types, "f8e4m3", "f8e5m2", "f4e2m1", "mxfp4", "nvfp4")
		add(onnxq.Options{Weights: "i4", ScaleType: "bf16"})
	}
	for _, w := range types {
		add(onnxq.Options{Weights: w})
	}
	add(onnxq.Options{Weights: "nf4", Block: 48})
	return out
}

// loss is the relative error that outputs may have with weights of so many bits.
func loss(w string) float64 {
	s, err := quant.ParseStorage(w)
	if err != nil {
		panic(err)
	}
	return map[int]float64{1: 1.5, 2: 1.5, 3: 0.6, 4: 0.5, 7: 0.1, 8: 0.2, 16: 0.02}[s.Bits]
}

// TestWeightForms stores weights in every type and arrangement. Files for
// ort-cpu run in ONNX Runtime and give what the executor does, those for onnx in
// the executor; both pass onnx.checker. None is larger than its input, and the
// table that is the head as well is stored once.
func TestWeightForms(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for _, target := range []string{"ort-cpu", "onnx"} {
		for _, elem := range []tensor.DType{tensor.Float32, tensor.Float16} {
			m := weighted(t, elem)
			in := feeds(elem)
			want := outputs(t, executor.Embedded{}, m, in)
			for i, o := range weightSchemes(target) {
				if elem == tensor.Float16 && i%5 != 0 {
					continue
				}
				label := fmt.Sprintf("%s %v %s %s block %d scale %s tensor %v", target, elem, o.Weights, o.WeightZero, o.Block, o.ScaleType, o.PerTensor)
				q, res, err := onnxq.QuantizeModel(t.Context(), m, o)
				if err != nil {
					t.Fatalf("%s: %v", label, err)
				}
				if was, is := onnxfile.Size(m), onnxfile.Size(q); is > was {
					t.Errorf("%s: %d bytes, larger than %d", label, is, was)
				}
				path := filepath.Join(dir, fmt.Sprintf("%d.onnx", len(files)))
				if err := onnxfile.Save(t.Context(), q, path, onnxfile.SaveOptions{}); err != nil {
					t.Fatalf("%s: %v", label, err)
				}
				files = append(files, path)
				got := outputs(t, executor.Embedded{}, q, in)
				for k := range want {
					if r := relative(got[k], want[k]); !(r <= loss(o.Weights)) {
						t.Errorf("%s: output %d is off by %.3f", label, k, r)
					}
				}
				if o.Weights == "i4" && o.Block == 32 && elem == tensor.Float32 && target == "ort-cpu" {
					checkTied(t, q, res)
				}
				if target == "ort-cpu" {
					compareWithRuntime(t, label, path, in, got, elem)
				}
			}
		}
	}
	check(t, files)
}

// TestHalvesStayHalves quantizes a model in float16 whose largest constant is no
// weight: it takes no more bytes than it did, and the weight is in few bits.
func TestHalvesStayHalves(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 17]>
g (float16[256,64] x) => (float16[256,64] y)
<float16[64,64] w = {...}, float16[256,64] mask = {...}>
{
  h = MatMul (x, w)
  y = Add (h, mask)
}`)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 3))
	x := tensor.New(tensor.Float16, 256, 64)
	consts := []*tensor.Tensor{x}
	for _, v := range m.Graph.Initializers() {
		consts = append(consts, v.Const)
	}
	for _, c := range consts {
		row := make([]float32, c.Len())
		for i := range row {
			row[i] = float32(r.NormFloat64()) / 8
		}
		tensor.Write(c, 0, row)
	}
	in := map[string]ops.Data{"x": x}
	want := outputs(t, executor.Embedded{}, m, in)
	for i, o := range []onnxq.Options{{Weights: "i4"}, {Mode: onnxq.Weights}} {
		q, res, err := onnxq.QuantizeModel(t.Context(), m, o)
		if err != nil {
			t.Fatal(err)
		}
		if was, is := onnxfile.Size(m), onnxfile.Size(q); res.Stored() < 1 || is > was-3000 {
			t.Errorf("%d weights stored in few bits, %d bytes of %d", res.Stored(), is, was)
		}
		got := outputs(t, executor.Embedded{}, q, in)
		if off := relative(got[0], want[0]); off > loss("i4") {
			t.Errorf("the output is off by %.3f", off)
		}
		path := filepath.Join(t.TempDir(), fmt.Sprintf("%d.onnx", i))
		if err := onnxfile.Save(t.Context(), q, path, onnxfile.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		compareWithRuntime(t, "halves", path, in, got, tensor.Float16)
	}
}

var runtimeEngine executor.Engine

func compareWithRuntime(t *testing.T, label, path string, in map[string]ops.Data, got [][]float32, elem tensor.DType) {
	t.Helper()
	if os.Getenv("ONNXQ_ORT_LIB") == "" && os.Getenv("ONNXQ_PYTHON") == "" {
		return // TestRuntimeForWeights says so
	}
	if runtimeEngine == nil {
		e, err := ort.Open(ort.Options{Library: orttest.Library(t)})
		if err != nil {
			t.Fatal(err)
		}
		runtimeEngine = e
	}
	m, err := onnxfile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	tolerance := 2e-5
	if elem == tensor.Float16 {
		tolerance = 5e-3
	}
	for k, f := range outputs(t, runtimeEngine, m, in) {
		if r := relative(got[k], f); !(r <= tolerance) {
			t.Errorf("%s: output %d differs from the runtime's by %.2g", label, k, r)
		}
	}
}

// TestRuntimeForWeights says that the comparison was left out.
func TestRuntimeForWeights(t *testing.T) { orttest.Library(t) }

// checkTied looks for the table of 70 × 64 codes of 4 bits, which stands once
// and serves both readers.
func checkTied(t *testing.T, q *graph.Model, res *onnxq.Result) {
	t.Helper()
	count, readers := 0, map[string]bool{}
	for _, v := range q.Graph.Initializers() {
		if strings.HasPrefix(v.Name(), "table_q") {
			count++
			for _, u := range v.Uses() {
				readers[u.Node.Op.Type] = true
			}
			if v.Const.Size() != 70*64/2 {
				t.Errorf("table of %d bytes", v.Const.Size())
			}
		}
		if v.Const.DType() == tensor.Float32 && v.Const.Size() > 4096 && !strings.HasSuffix(v.Name(), "_scale") {
			t.Errorf("initializer %q is float: %v", v.Name(), v.Const)
		}
	}
	if count != 1 || !readers["MatMulNBits"] || !readers["Reshape"] {
		t.Errorf("the table is stored %d times, read by %v", count, readers)
	}
	if res.WeightBytesOut*9 > res.WeightBytesIn*2 {
		t.Errorf("weights take %d bytes of %d", res.WeightBytesOut, res.WeightBytesIn)
	}
}

// check runs onnx.checker over the files.
func check(t *testing.T, files []string) {
	t.Helper()
	python := os.Getenv("ONNXQ_PYTHON")
	if python == "" {
		t.Log("NOT TESTED: without ONNXQ_PYTHON the files do not go through onnx.checker")
		return
	}
	script := "import onnx, sys\nfor p in sys.argv[1:]:\n  m = onnx.load(p)\n  try: onnx.checker.check_model(m, full_check=True)\n  except Exception as e: print(p, str(e)[:300])\n"
	out, err := exec.CommandContext(context.Background(), python, append([]string{"-c", script}, files...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("onnx.checker: %v\n%s", err, out)
	}
}

// TestSpreadBits has weights share a number of bits: the sum stays within it, what
// is left over goes where it saves most, and too few bits are refused.
func TestSpreadBits(t *testing.T) {
	m := weighted(t, tensor.Float32)
	in := feeds(tensor.Float32)
	want := outputs(t, executor.Embedded{}, m, in)
	last := math.Inf(1)
	for _, bits := range []float64{5, 6, 9} {
		q, res, err := onnxq.QuantizeModel(t.Context(), m, onnxq.Options{BitsPerWeight: bits, ScaleType: "f16", Include: []string{"op:MatMul", "op:Gemm", "op:Gather"}})
		if err != nil {
			t.Fatal(err)
		}
		var bytes, elements int64
		types := map[string]bool{}
		for _, e := range res.Plan.Tensors {
			if e.Form == "" {
				continue
			}
			types[e.Type] = true
			for _, v := range m.Graph.Initializers() {
				if v.Name() == e.Tensor {
					bytes += e.StoredBytes(v.Const)
					elements += int64(v.Const.Len())
				}
			}
		}
		if got := 8 * float64(bytes) / float64(elements); got > bits || bits < 9 && got < bits-1 {
			t.Errorf("%v bits a weight, %v were given (%v)", got, bits, types)
		}
		off := relative(outputs(t, executor.Embedded{}, q, in)[0], want[0])
		if off >= last {
			t.Errorf("%v bits: the first output is off by %v, %v with fewer bits", bits, off, last)
		}
		last = off
	}
	if _, _, err := onnxq.QuantizeModel(t.Context(), m, onnxq.Options{BitsPerWeight: 1.5}); err == nil || !strings.Contains(err.Error(), "at least") {
		t.Errorf("1.5 bits: %v", err)
	}
}

// A model whose weights lie in another file becomes small as well, and what
// comes out can be moved together with its data.
func TestExternalWeights(t *testing.T) {
	m := weighted(t, tensor.Float32)
	in, dir := feeds(tensor.Float32), t.TempDir()
	want := outputs(t, executor.Embedded{}, m, in)
	float, small := filepath.Join(dir, "float.onnx"), filepath.Join(dir, "small.onnx")
	if err := onnxfile.Save(t.Context(), m, float, onnxfile.SaveOptions{External: onnxfile.ExternalAlways}); err != nil {
		t.Fatal(err)
	}
	for _, external := range []onnxfile.External{onnxfile.ExternalAuto, onnxfile.ExternalAlways} {
		res, err := onnxq.Quantize(t.Context(), float, small, onnxq.Options{Weights: "i4", External: external})
		if err != nil {
			t.Fatal(err)
		}
		if !(res.BytesOut < res.BytesIn/3) || res.WeightBytesOut*9 > res.WeightBytesIn*2 {
			t.Errorf("%d bytes of %d, weights %d of %d", res.BytesOut, res.BytesIn, res.WeightBytesOut, res.WeightBytesIn)
		}
		elsewhere := t.TempDir()
		files, err := filepath.Glob(small + "*")
		if err != nil {
			t.Fatal(err)
		}
		if (len(files) == 2) != (external == onnxfile.ExternalAlways) {
			t.Errorf("files: %v", files)
		}
		for _, f := range files {
			if err := os.Rename(f, filepath.Join(elsewhere, filepath.Base(f))); err != nil {
				t.Fatal(err)
			}
		}
		q, err := onnxfile.Open(filepath.Join(elsewhere, "small.onnx"))
		if err != nil {
			t.Fatal(err)
		}
		got := outputs(t, executor.Embedded{}, q, in)
		for k := range want {
			if r := relative(got[k], want[k]); !(r <= loss("i4")) {
				t.Errorf("output %d is off by %.3f", k, r)
			}
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOpsetForBits: a model most of whose weights only DequantizeLinear reads is
// lifted to the operator set in which that knows their type; one whose matrices
// become MatMulNBits stays, as does one whose operator set is given.
func TestOpsetForBits(t *testing.T) {
	for _, c := range []struct {
		text     string
		o        onnxq.Options
		opset    int
		fourBits int
	}{
		{`(float[1,16,9,9] x) => (float[1,32,7,7] y) <float[32,16,3,3] w = {...}> { y = Conv (x, w) }`, onnxq.Options{Weights: "i4"}, 21, 1},
		{`(float[1,16,9,9] x) => (float[1,32,7,7] y) <float[32,16,3,3] w = {...}> { y = Conv (x, w) }`, onnxq.Options{Weights: "i4", Opset: 17}, 17, 0},
		{`(float[1,16,9,9] x) => (float[1,32,7,7] y) <float[32,16,3,3] w = {...}> { y = Conv (x, w) }`, onnxq.Options{Mode: onnxq.Weights}, 17, 0},
		{`(float[9,64] x) => (float[9,96] y) <float[64,96] w = {...}> { y = MatMul (x, w) }`, onnxq.Options{Weights: "i4"}, 17, 1},
	} {
		m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 17]> g ` + c.text)
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(1, 1))
		for _, v := range m.Graph.Initializers() {
			for i := range tensor.As[float32](v.Const) {
				tensor.As[float32](v.Const)[i] = float32(r.NormFloat64())
			}
		}
		q, res, err := onnxq.QuantizeModel(t.Context(), m, c.o)
		if err != nil {
			t.Fatal(err)
		}
		four := 0
		for _, e := range res.Plan.Tensors {
			if e.Type == "i4" {
				four++
			}
		}
		if got := q.Opset(graph.OnnxDomain); got != c.opset || four != c.fourBits {
			t.Errorf("%s: opset %d, want %d; %d weights in 4 bits, want %d", c.text, got, c.opset, four, c.fourBits)
		}
	}
}
