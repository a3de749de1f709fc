package auto_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

const head = `<ir_version: 8, opset_import: ["" : 13]> g `

// Small values of a spectrum matter behind a logarithm.
const front = head + `(float[1,64] x) => (float[1,4] y)
<float[64,32] basis = {...}, float[32,4] w = {...}, float[64] k = {...}, float eps = {1e-6}>
{ [gain] g = Mul (x, k) [spectrum] s = MatMul (g, basis) [power] p = Mul (s, s) [eps] e = Add (p, eps) [log] l = Log (e) [head] y = MatMul (l, w) }`

// One channel of 16 is loud, and its weights are small.
const outlier = head + `(float[4,64] x) => (float[4,8] y)
<float[64] k = {...}, float[64,8] w = {...}>
{ [gain] g = Mul (x, k) [product] y = MatMul (g, w) }`

// The same behind a product that does most of the work and does no harm.
const late = head + `(float[4,64] x) => (float[4,8] y)
<float[64,256] big = {...}, float[256,64] back = {...}, float[64] k = {...}, float[64,8] w = {...}>
{ [wide] a = MatMul (x, big) [relu] r = Relu (a) [narrow] b = MatMul (r, back) [gain] g = Mul (b, k) [product] y = MatMul (g, w) }`

const easy = head + `(float[1,3,8,8] x) => (float[1,4] y)
<float[8,3,3,3] w1 = {...}, float[8] b1 = {...}, float[288,4] w2 = {...}>
{ [conv] c = Conv (x, w1, b1) [relu] r = Relu (c) f = Flatten (r) [product] y = MatMul (f, w2) }`

// No kernel for integers runs this. The first weights are large where the input
// is small.
const float = head + `(float[1,4,8,8] x) => (float[1,8,12,12] y)
<float[1,4,1,1] gain = {1, 1, 1, 0.01}, float[4,8,3,3] rough = {...}, float[8,8,3,3] plain = {...}>
{ [gain] g = Mul (x, gain) [up] u = ConvTranspose (g, rough) [more] y = ConvTranspose (u, plain) }`

// setup parses a model and makes samples, as files and as feeds.
func setup(t *testing.T, text string, n int) (*graph.Model, auto.Options) {
	t.Helper()
	m, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	for _, v := range m.Graph.Initializers() {
		d := tensor.As[float32](v.Const)
		switch {
		case v.Name() == "k" && text == front:
			for i := range d {
				d[i] = 1e-3
			}
			d[0] = 100
		case v.Name() == "basis":
			// Only one band hears the loud input.
			for i := 1; i < 32; i++ {
				d[i] = 0
			}
		case v.Name() == "k":
			for i := range d {
				d[i] = 0.3
			}
			d[5] = 300
		case v.Name() == "rough":
			for i := range 8 * 9 {
				d[3*8*9+i] *= 12
			}
		case v.Name() == "w" && (text == outlier || text == late):
			for i := range 8 {
				d[5*8+i] /= 1000
			}
		}
	}
	in := m.Graph.FeedInputs()[0]
	var shape []int
	for _, d := range in.Type.Shape {
		shape = append(shape, int(d.Size))
	}
	r := rand.New(rand.NewPCG(3, 4))
	var lines []byte
	target, err := targets.Get("ort-cpu")
	if err != nil {
		t.Fatal(err)
	}
	free := *target
	free.Costs = nil // the models are too small for integers to pay
	o := auto.Options{Target: &free, Qdq: qdq.Options{Logged: true}, Equalize: true, Smooth: true, CorrectBias: true, FloatIslands: true}
	for range n {
		x := tensor.New(tensor.Float32, shape...)
		for i := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = float32(r.NormFloat64())
		}
		o.Samples = append(o.Samples, map[string]ops.Data{in.Name(): x})
		flat := tensor.As[float32](x)
		var nest func(axis int) any
		nest = func(axis int) any {
			if axis == len(shape) {
				v := flat[0]
				flat = flat[1:]
				return v
			}
			var list []any
			for range shape[axis] {
				list = append(list, nest(axis+1))
			}
			return list
		}
		b, err := json.Marshal(map[string]any{in.Name(): nest(0)})
		if err != nil {
			t.Fatal(err)
		}
		lines = append(append(lines, b...), '\n')
	}
	path := filepath.Join(t.TempDir(), "s.jsonl")
	if err := os.WriteFile(path, lines, 0o666); err != nil {
		t.Fatal(err)
	}
	o.Calibrate = func(ctx context.Context, m *graph.Model, watch []quant.Watch, unseen bool) (*calibration.Table, error) {
		src, err := calibration.Open(ctx, []string{path}, []calibration.Input{{Name: in.Name(), DType: tensor.Float32, Shape: shape}}, calibration.Options{})
		if err != nil {
			return nil, err
		}
		defer src.Close()
		taps := make([]bool, m.NumValues())
		for i := range watch {
			taps[i] = watch[i].Observe
		}
		prog, err := exec.Compile(m, exec.Options{Taps: taps})
		if err != nil {
			return nil, err
		}
		return calibration.Collect(ctx, prog, src, calibration.CollectOptions{Watch: watch})
	}
	return m, o
}

// score measures q on the samples.
func score(t *testing.T, m, q *graph.Model, samples []map[string]ops.Data) float64 {
	t.Helper()
	s := eval.NewScore(len(m.Graph.Outputs()))
	var sessions []*exec.Session
	for _, m := range []*graph.Model{m, q} {
		prog, err := exec.Compile(m, exec.Options{})
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, prog.NewSession(exec.SessionOptions{Threads: 1}))
	}
	for _, in := range samples {
		want, err := sessions[0].Run(t.Context(), in, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := sessions[1].Run(t.Context(), in, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Add(want, got); err != nil {
			t.Fatal(err)
		}
	}
	return s.DB()
}

func search(t *testing.T, m *graph.Model, o auto.Options) *auto.Result {
	t.Helper()
	res, err := auto.Search(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Model.Verify(); err != nil {
		t.Fatal(err)
	}
	return res
}

// The search is never worse than the plain way, better where the model was made
// so, says what it did, and does the same each time.
func TestSearch(t *testing.T) {
	for _, c := range []struct {
		name, text string
		gain       float64 // dB
		note       string
	}{
		{"log front end", front, 3, `kept what feeds Log "log" float`},
		{"outlier channel", outlier, 3, "smoothed the channels of 1 values"},
		{"easy", easy, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, o := setup(t, c.text, 12)
			before := graph.Text(m, -1)
			plain := o
			plain.Samples, plain.Qdq.Include = nil, []string{"*"}
			first := search(t, m, plain)
			if slices.ContainsFunc(first.Notes, func(n string) bool { return strings.Contains(n, "score") }) {
				t.Errorf("measured without samples: %q", first.Notes)
			}
			runs := 0
			o.Progress = func(done int) {
				if runs++; done != runs {
					t.Errorf("measurement %d is called %d", runs, done)
				}
			}
			best := search(t, m, o)
			was, is := score(t, m, first.Model, o.Samples), score(t, m, best.Model, o.Samples)
			if is < was+c.gain {
				t.Errorf("score %.1f dB, plain %.1f, want %.1f more; %q", is, was, c.gain, best.Notes)
			}
			if !strings.Contains(strings.Join(best.Notes, "\n"), c.note) {
				t.Errorf("notes %q, want %q", best.Notes, c.note)
			}
			if runs == 0 || runs > 20 {
				t.Errorf("%d measurements", runs)
			}
			again := search(t, m, func() auto.Options { o := o; o.Progress = nil; o.Session.Threads = 3; return o }())
			if graph.Text(again.Model, -1) != graph.Text(best.Model, -1) || !slices.Equal(again.Notes, best.Notes) {
				t.Error("another result the second time")
			}
			if graph.Text(m, -1) != before {
				t.Error("the float model was changed")
			}
		})
	}
}

// What rescaling channels gained on the samples of the search and lost on others is
// given up, unless the model without it is further from what was asked.
func TestSearchBeginsAgain(t *testing.T) {
	m, o := setup(t, late, 12)
	o.Contract.Off = true
	smooth := func(q *graph.Model) bool {
		for n := range q.Graph.Nodes() {
			if strings.Contains(n.Name, "_smooth") {
				return true
			}
		}
		return false
	}
	for _, c := range []struct{ with, without float64 }{{2, 0}, {2, 1}, {1, 2}} {
		var looks []bool
		o.Accept = func(_ context.Context, q *graph.Model) (auto.Shortfall, float64, error) {
			looks = append(looks, smooth(q))
			loss := c.without
			if smooth(q) {
				loss = c.with
			}
			if loss == 0 || len(looks) == 3 {
				return auto.Shortfall{}, 0, nil
			}
			return auto.Shortfall{Text: "too far", DB: loss}, loss, nil
		}
		res := search(t, m, o)
		if len(looks) < 2 || !looks[0] || looks[1] {
			t.Fatalf("%+v: looked at models that were smoothed: %v", c, looks)
		}
		if got := smooth(res.Model); got != (c.with < c.without) {
			t.Errorf("%+v: the result is smoothed: %v", c, got)
		}
	}
}

// What is good enough on the samples of the search and not on others is made better by
// passes that were not tried before anything more becomes float.
func TestSearchImproves(t *testing.T) {
	m, o := setup(t, easy, 6)
	o.Contract.Off, o.FloatIslands = true, false
	plain := search(t, m, o)
	looks := 0
	o.Accept = func(context.Context, *graph.Model) (auto.Shortfall, float64, error) {
		if looks++; looks == 1 {
			return auto.Shortfall{Text: "too far", DB: 5}, 5, nil
		}
		return auto.Shortfall{}, 0, nil
	}
	more := search(t, m, o)
	if a, b := score(t, m, plain.Model, o.Samples), score(t, m, more.Model, o.Samples); looks != 2 || b < a+1 {
		t.Errorf("%.1f dB, then %.1f dB after %d looks", a, b, looks)
	}
	if more.Plan.Quantized() != plain.Plan.Quantized() || !slices.ContainsFunc(more.Notes, func(n string) bool { return strings.HasPrefix(n, "ranges by ") }) {
		t.Errorf("%d nodes are quantized, %d before; notes %q", more.Plan.Quantized(), plain.Plan.Quantized(), more.Notes)
	}
}

// Logits that the samples leave below 0 can be quantized above it, and the user is
// told.
func TestUnsureSamples(t *testing.T) {
	for bias, unsure := range map[string]bool{"-50": true, "0": false} {
		m, o := setup(t, `<ir_version: 8, opset_import: ["": 13]> g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[8,4,3,3] w = {...}, float[8] b = {`+strings.Repeat(bias+", ", 7)+bias+`}>
{ c = Conv (x, w, b) y = Sigmoid (c) }`, 6)
		o.Samples, o.Qdq.Include = nil, []string{"*"}
		res := search(t, m, o)
		if got := strings.Contains(strings.Join(res.Notes, "\n"), `no sample gives a probability above one half from ["c"]`); got != unsure {
			t.Errorf("bias %s: notes %q", bias, res.Notes)
		}
		for n := range res.Model.Graph.Nodes() {
			if n.Op.Type == "QuantizeLinear" && n.Input(0).Name() == "c" {
				top := (255 - float64(tensor.As[uint8](n.Input(2).Const)[0])) * float64(tensor.As[float32](n.Input(1).Const)[0])
				if top < ops.Certain*0.95 {
					t.Errorf("bias %s: logits end at %g", bias, top)
				}
			}
		}
	}
}

// Where nothing is allowed and the method is given, nothing is searched.
func TestSearchBounds(t *testing.T) {
	m, o := setup(t, front, 6)
	o.Equalize, o.Smooth, o.CorrectBias, o.FloatIslands, o.Method = false, false, false, false, calibration.MinMax
	runs := 0
	o.Progress = func(int) { runs++ }
	if res := search(t, m, o); runs != 1 || slices.ContainsFunc(res.Notes, func(n string) bool { return strings.Contains(n, "score") }) {
		t.Errorf("%d measurements, notes %q", runs, res.Notes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := auto.Search(ctx, m, o); err == nil {
		t.Error("no error though cancelled")
	}
	o.Qdq.Exclude = []string{"*"}
	if res, err := auto.Search(t.Context(), m, o); err != nil || res.Model != nil || res.Plan.Quantized() != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

// Weights that 8 bits hold badly stay in 16 bits, if that is enough; those of
// nodes that are left out stay as they are.
func TestSearchStores(t *testing.T) {
	m, o := setup(t, float, 6)
	o.Store = true
	least := 30.0
	o.Contract.MinSQNR = &least
	types := func(res *auto.Result) map[string]string {
		out := map[string]string{}
		for _, e := range res.Plan.Tensors {
			if !e.AtLoad {
				t.Errorf("%s is not decoded at load", e.Tensor)
			}
			out[e.Tensor] = e.Type
		}
		return out
	}
	blind := o
	blind.Samples = nil
	plain, best := search(t, m, blind), search(t, m, o)
	if got := types(plain); got["rough"] != "i8" || got["plain"] != "i8" {
		t.Errorf("without samples: %v", got)
	}
	if got := types(best); got["rough"] != "f16" || got["plain"] != "i8" {
		t.Errorf("measured: %v", got)
	}
	if a, b := score(t, m, plain.Model, o.Samples), score(t, m, best.Model, o.Samples); a >= 30 || b < 30 {
		t.Errorf("score %.1f dB without samples, %.1f dB measured, want less than 30 and more", a, b)
	}
	// What 16 bits do not hold well enough is left as it is, but not all of it.
	for _, c := range []struct {
		least float64
		want  map[string]string
		short bool
	}{
		{60, map[string]string{"rough": "f16", "plain": "f16"}, false},
		{73, map[string]string{"plain": "f16"}, false},
		{90, map[string]string{"rough": "f16", "plain": "f16"}, true},
	} {
		close := o
		close.Contract.MinSQNR = &c.least
		if res := search(t, m, close); !maps.Equal(types(res), c.want) || (res.Short != "") != c.short {
			t.Errorf("%g dB: %v, %q", c.least, types(res), res.Short)
		}
	}
	// A look at the whole finds too much error in what the search has kept.
	strict := o
	strict.Contract.MinSQNR = nil
	looks := 0
	strict.Accept = func(_ context.Context, q *graph.Model) (auto.Shortfall, float64, error) {
		looks++
		if db := score(t, m, q, o.Samples); db < least {
			return auto.Shortfall{Text: "the error is too large", DB: least - db}, least - db, nil
		}
		return auto.Shortfall{}, 0, nil
	}
	if got := types(search(t, m, strict)); got["rough"] != "f16" || got["plain"] != "i8" || looks != 2 {
		t.Errorf("after %d looks: %v", looks, got)
	}
	o.Qdq.Exclude = []string{"more"}
	if got := types(search(t, m, o)); got["plain"] != "" {
		t.Errorf("weight of a node that was left out: %v", got)
	}
}

// A product that costs the outputs much and computes little stays float; a
// search that may not leave anything float does not do so.
func TestSearchRelieves(t *testing.T) {
	m, o := setup(t, late, 12)
	o.Smooth = false
	res := search(t, m, o)
	for i, n := range res.Plan.Nodes {
		if anchor := n.Op == "MatMul"; anchor && n.Quantized != (n.Node != "product") {
			t.Errorf("node %d, %q: quantized is %v, why %q", i, n.Node, n.Quantized, n.Why)
		}
	}
	if !strings.Contains(strings.Join(res.Notes, "\n"), "kept 1 nodes with 1.5 % of the multiply-adds float") {
		t.Errorf("notes %q", res.Notes)
	}
	o.FloatIslands = false
	if all := search(t, m, o); all.Plan.Quantized() <= res.Plan.Quantized() || score(t, m, all.Model, o.Samples) > score(t, m, res.Model, o.Samples)-3 {
		t.Errorf("%d nodes at %.1f dB; with relief %d at %.1f dB", all.Plan.Quantized(), score(t, m, all.Model, o.Samples), res.Plan.Quantized(), score(t, m, res.Model, o.Samples))
	}
}

// Integers are left to what they make faster: a product of many rows, but not a
// depthwise convolution with float neighbours, nor a product so small that
// quantizing its input costs more; a search for few bytes takes them all.
func TestSearchEconomizes(t *testing.T) {
	const text = `<ir_version: 8, opset_import: ["" : 13]> g (float[1,32,24,24] x) => (float[1,32,24,24] y)
	<float[32,1,3,3] wd = {...}, float[128,32,1,1] wa = {...}, float[32,128,3,3] wb = {...}> {
		a = Tanh (x)
		d = Conv <pads = [1,1,1,1], group = 32> (a, wd)
		e = Tanh (d)
		f = Conv (e, wa)
		h = Relu (f)
		y = Conv <pads = [1,1,1,1]> (h, wb)
	}`
	m, o := setup(t, text, 6)
	var err error
	if o.Target, err = targets.Get("ort-cpu"); err != nil {
		t.Fatal(err)
	}
	on := func(res *auto.Result) string {
		var list []string
		for _, n := range res.Plan.Nodes {
			if n.Op == "Conv" && n.Quantized {
				list = append(list, n.Node)
			}
		}
		return strings.Join(list, " ")
	}
	res := search(t, m, o)
	if got := on(res); got != "f y" {
		t.Errorf("on integers: %s; %q", got, res.Notes)
	}
	for _, n := range res.Plan.Nodes {
		if n.Node == "d" && !strings.Contains(n.Why, "would not be faster") {
			t.Errorf("why: %q", n.Why)
		}
	}
	o.Size = true
	if got := on(search(t, m, o)); got != "d f y" {
		t.Errorf("for few bytes, on integers: %s", got)
	}
}

// What integers cost a model that takes less than the call of the runtime is of
// no account, unless speed is all that is asked for.
func TestSearchTrifles(t *testing.T) {
	m, o := setup(t, easy, 6)
	var err error
	if o.Target, err = targets.Get("ort-cpu"); err != nil {
		t.Fatal(err)
	}
	if res := search(t, m, o); res.Plan.Quantized() != len(res.Plan.Nodes) {
		t.Errorf("%d of %d nodes quantized; %q", res.Plan.Quantized(), len(res.Plan.Nodes), res.Notes)
	}
	o.Speed = true
	res, err := auto.Search(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	if res.Plan.Quantized() == len(res.Plan.Nodes) {
		t.Errorf("all %d nodes quantized where speed counts; %q", len(res.Plan.Nodes), res.Notes)
	}
}

// A recurrent cell quantizes its inputs as they come where the outputs keep the
// contract with that, and stays float where they do not, or where it is so small
// that this would be slower.
func TestSearchDynamic(t *testing.T) {
	cell := func(units int) string {
		return fmt.Sprintf(`<ir_version: 8, opset_import: ["" : 13]> g (float[6,1,32] x) => (float[6,1,1,%[1]d] y)
	<float[1,%[2]d,32] w = {...}, float[1,%[2]d,%[1]d] r = {...}> { y = LSTM <hidden_size = %[1]d> (x, w, r) }`, units, 4*units)
	}
	m, o := setup(t, cell(64), 6)
	for _, v := range m.Graph.Initializers() {
		for i := range tensor.As[float32](v.Const) {
			tensor.As[float32](v.Const)[i] /= 40 // or its state would be chaos
		}
	}
	o.Store = true
	how := func() qdq.How { return search(t, m, o).Plan.Nodes[0].How }
	if got := how(); got != qdq.Dynamic {
		t.Errorf("the cell is %q, want %q", got, qdq.Dynamic)
	}
	least := 60.0
	o.Contract.MinSQNR = &least
	if got := how(); got != "" {
		t.Errorf("for %v dB, the cell is %q, want float", least, got)
	}
	for _, units := range []int{16, 128} {
		m, o := setup(t, cell(units), 6)
		for _, v := range m.Graph.Initializers() {
			for i := range tensor.As[float32](v.Const) {
				tensor.As[float32](v.Const)[i] /= 40
			}
		}
		var err error
		if o.Target, err = targets.Get("ort-cpu"); err != nil {
			t.Fatal(err)
		}
		o.Store = true
		want := qdq.Dynamic
		if units == 16 {
			want = ""
		}
		if got := search(t, m, o).Plan.Nodes[0].How; got != want {
			t.Errorf("a cell of %d units is %q, want %q", units, got, want)
		}
	}
}

// Codes do not stand for what readers do not tell apart.
func TestSaturation(t *testing.T) {
	const text = `<ir_version: 8, opset_import: ["" : 14]> g (float[1,3,8,8] x) => (float[1,4,4,4] y)
	<float[8,3,3,3] w1 = {...}, float[4,8,3,3] w2 = {...}> { c = Conv (x, w1) h = HardSwish (c) y = Conv (h, w2) }`
	m, o := setup(t, text, 4)
	for i, x := range tensor.As[float32](m.Graph.Initializers()[0].Const) {
		tensor.As[float32](m.Graph.Initializers()[0].Const)[i] = 20 * x
	}
	for _, method := range calibration.Methods() {
		o.Method = method
		q := search(t, m, o).Model
		found := false
		for n := range q.Graph.Nodes() {
			if n.Op.Type != "QuantizeLinear" || n.Input(0).Name() != "c" {
				continue
			}
			found = true
			scale, zero := tensor.As[float32](n.Input(1).Const)[0], n.Input(2).Const.Bytes()[0]
			if low := float32(zero) * scale; low > 3+scale {
				t.Errorf("%s: codes reach down to %g", method, -low)
			}
		}
		if !found {
			t.Errorf("%s: no codes of the convolution", method)
		}
	}
}

// What has codes keeps them; the others get those that they get in the whole.
func TestLayersLeft(t *testing.T) {
	m, o := setup(t, easy, 4)
	plan, err := qdq.Annotate(m, o.Target, o.Qdq)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := plan.Wants(m)
	if err != nil {
		t.Fatal(err)
	}
	table, err := o.Calibrate(t.Context(), m, watch, false)
	if err != nil {
		t.Fatal(err)
	}
	layers := auto.Layers{Count: len(o.Samples), Samples: func(_ context.Context, f func(map[string]ops.Data) error) error {
		for _, in := range o.Samples {
			if err := f(in); err != nil {
				return err
			}
		}
		return nil
	}}
	rounded := 0
	way := auto.Way{Method: calibration.MinMax}
	way.Round = func(params []quant.Params) (int, error) {
		n, _, err := layers.Round(t.Context(), m, plan, table, way, params)
		if err != nil {
			return 0, err
		}
		for i := range params {
			first := params[i].Codes
			if first == nil {
				continue
			}
			rounded++
			params[i].Codes = nil
			k, _, err := layers.Round(t.Context(), m, plan, table, way, params)
			if err != nil {
				return 0, err
			}
			if k != 1 || params[i].Codes == nil || params[i].Codes == first || !bytes.Equal(params[i].Codes.Bytes(), first.Bytes()) {
				t.Errorf("tensor %d: %d rounded again, %v for %v", i, k, params[i].Codes, first)
			}
		}
		return n, nil
	}
	if _, _, bad, err := auto.Apply(t.Context(), m, plan, table, way); err != nil || len(bad) > 0 || rounded != 2 {
		t.Errorf("%d weights rounded; %v, %v", rounded, bad, err)
	}
}
