package accuracy_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// TestGPTQ rounds the weights of products whose inputs depend on each other: the
// error of the products falls well below that of the nearest codes, with blocks
// that are short at the end, and with every kind of zero points. The model that
// comes out has the error that GPTQ reported.
func TestGPTQ(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const k, n = 80, 24
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 17]> g (float[t,80] x, float[80,24] w, float[24,80] v) => (float[t,24] y, float[t,24] z) {
  y = MatMul (x, w)
  z = Gemm <transB = 1> (x, v)
}`)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		v := m.Graph.Inputs()[1]
		shape, _ := v.Type.Shape.Dims()
		x := tensor.New(tensor.Float32, shape...)
		for i := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = float32(r.NormFloat64())
		}
		m.Graph.RemoveInput(v)
		m.Graph.AddInitializer(v, x)
	}
	var feeds []map[string]ops.Data
	for range 8 {
		x := tensor.New(tensor.Float32, 200, k)
		for i := range 200 {
			row, common := tensor.As[float32](x)[i*k:][:k], r.NormFloat64()
			for j := range row {
				row[j] = float32(r.NormFloat64()*0.3 + common*float64(1+j%5))
			}
		}
		feeds = append(feeds, map[string]ops.Data{"x": x})
	}
	samples := given(feeds)
	target, s := storage(t, "i4")
	for _, zero := range []quant.Zeros{quant.Symmetric, quant.Full, quant.Asymmetric} {
		b := quant.Blocks{Storage: s, Size: 32, Zero: zero, Fit: quant.Clip}
		plan, err := qdq.Annotate(m, target, qdq.Options{WeightsOnly: true, Blocks: &b})
		if err != nil {
			t.Fatal(err)
		}
		params, _, err := plan.Resolve(m, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		errs := chooseAll(t, m, plan, params, samples, len(feeds))
		if len(errs) != 2 {
			t.Fatalf("%s: %d weights", zero, len(errs))
		}
		for _, e := range errs {
			if !(e.Chosen < 0.3*e.Nearest) || !(e.Nearest < e.Signal) {
				t.Errorf("%s: error %v, nearest %v, signal %v", zero, e.Chosen, e.Nearest, e.Signal)
			}
		}
		q := m.Clone()
		if _, err := qdq.Rewrite(q, plan, params); err != nil {
			t.Fatal(err)
		}
		var sum, chosen float64
		for _, in := range feeds {
			want, got := floats(t, m, in), floats(t, q, in)
			for i := range want {
				for j, v := range want[i] {
					sum += float64(v-got[i][j]) * float64(v-got[i][j])
				}
			}
		}
		for _, e := range errs {
			chosen += e.Chosen
		}
		// The second moments are of a share of the rows.
		if rows := sum / chosen; !(rows > 0.8 && rows < 2.5) {
			t.Errorf("%s: squared error %v, reported %v", zero, sum, chosen)
		}
	}
}

func floats(t *testing.T, m *graph.Model, in map[string]ops.Data) [][]float32 {
	t.Helper()
	p, err := exec.Compile(m, exec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.NewSession(exec.SessionOptions{}).Run(t.Context(), in, nil, nil)
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

// TestGPTQReaders chooses codes of a table that is looked up and multiplied with,
// of a convolution in groups, and of weights behind each other, one of them in a
// nested graph: the outputs are nearer to those of the float model than with the
// nearest codes.
func TestGPTQReaders(t *testing.T) {
	for name, text := range map[string]string{
		"tied":  `(int64[40] x) => (float[40,96] y) <float[96,64] w = {...}> { e = Gather (w, x) r = Relu (e) v = Transpose (w) y = MatMul (r, v) }`,
		"twice": `(float[40,64] x) => (float[40,64] y) <float[64,64] w = {...}> { h = MatMul (x, w) r = Relu (h) y = MatMul (r, w) }`,
		"conv":  `(float[1,32,9,9] x) => (float[1,16,7,7] y) <float[16,16,3,3] w = {...}> { y = Conv <group = 2> (x, w) }`,
		"chain": `(float[40,64] x, bool c) => (float[40,64] y) <float[64,64] w = {...}, float[64,64] v = {...}, float[64,64] u = {...}> {
  a = MatMul (x, w) b = Relu (a)
  d = If <then_branch = then () => (float[40,64] p) { p = MatMul (b, v) }, else_branch = other () => (float[40,64] q) { q = Identity (b) }> (c)
  f = Relu (d) y = MatMul (f, u) }`,
	} {
		t.Run(name, func(t *testing.T) {
			m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 21]> g ` + text)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ops.Infer(m); err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(5, 6))
			var feeds []map[string]ops.Data
			for range 12 {
				in := map[string]ops.Data{}
				for _, v := range m.Graph.FeedInputs() {
					shape, _ := v.Type.Shape.Dims()
					x := tensor.New(v.Type.Elem, shape...)
					switch v.Type.Elem {
					case tensor.Int64:
						for i := range tensor.As[int64](x) {
							tensor.As[int64](x)[i] = r.Int64N(96)
						}
					case tensor.Bool:
						x.Bytes()[0] = 1
					default:
						data := tensor.As[float32](x)
						common := r.NormFloat64()
						for i := range data {
							if i%64 == 0 {
								common = r.NormFloat64()
							}
							data[i] = float32(r.NormFloat64()*0.3 + common*float64(1+i%5))
						}
					}
					in[v.Name()] = x
				}
				feeds = append(feeds, in)
			}
			samples := given(feeds)
			target, s := storage(t, "u4")
			b := quant.Blocks{Storage: s, Size: 32, Zero: quant.Asymmetric}
			plan, err := qdq.Annotate(m, target, qdq.Options{WeightsOnly: true, Blocks: &b})
			if err != nil {
				t.Fatal(err)
			}
			noise := func(params []quant.Params) float64 {
				q := m.Clone()
				if _, err := qdq.Rewrite(q, plan, params); err != nil {
					t.Fatal(err)
				}
				sum := 0.0
				for _, in := range feeds {
					want, got := floats(t, m, in), floats(t, q, in)
					for i, v := range want[0] {
						sum += float64(v-got[0][i]) * float64(v-got[0][i])
					}
				}
				return sum
			}
			params, _, err := plan.Resolve(m, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			plain := noise(params)
			errs := chooseAll(t, m, plan, params, samples, len(feeds))
			if len(errs) != len(plan.Tensors) {
				t.Errorf("codes of %d weights of %d", len(errs), len(plan.Tensors))
			}
			if got := noise(params); !(got < 0.8*plain) {
				t.Errorf("squared error %g, with the nearest codes %g", got, plain)
			}
		})
	}
}

// chooseAll chooses the codes of all weights.
func chooseAll(t *testing.T, m *graph.Model, plan *qdq.Plan, params []quant.Params, samples accuracy.Samples, count int) []accuracy.BlockError {
	t.Helper()
	s, err := accuracy.NewGPTQ(m, plan, params, samples, count, false, exec.SessionOptions{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	var all []accuracy.BlockError
	for _, stage := range s.Stages() {
		errs, err := s.Choose(t.Context(), stage)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, errs...)
	}
	return all
}

// given returns samples that are in memory.
func given(feeds []map[string]ops.Data) accuracy.Samples {
	return func(_ context.Context, f func(map[string]ops.Data) error) error {
		for _, in := range feeds {
			if err := f(in); err != nil {
				return err
			}
		}
		return nil
	}
}

// storage returns a target and a type that it stores weights in.
func storage(t *testing.T, name string) (*targets.Target, quant.Storage) {
	t.Helper()
	target, err := targets.Get("ort-cpu")
	if err != nil {
		t.Fatal(err)
	}
	s, err := quant.ParseStorage(name)
	if err != nil {
		t.Fatal(err)
	}
	return target, s
}

// TestGPTQFewRows chooses codes on fewer inputs than a channel has, which lie
// anywhere: what cancels on them does not on others, so that the nearest codes are
// taken. Where few inputs tell what all are like, the chosen codes stay; and
// weights in a branch that no sample takes fit themselves.
func TestGPTQFewRows(t *testing.T) {
	const k, n = 96, 32
	for _, alike := range []bool{false, true} {
		m := parse(t, `<ir_version: 8, opset_import: ["": 21]> g (float[2,96] x, bool c) => (float[2,32] y) <float[96,32] w = {...}, float[96,32] v = {...}> {
  y = If <then_branch = a () => (float[2,32] p) { p = MatMul (x, w) }, else_branch = b () => (float[2,32] q) { r = Relu (x) q = MatMul (r, v) }> (c) }`)
		r := rand.New(rand.NewPCG(11, 12))
		for _, v := range m.Graph.Initializers() {
			for i := range tensor.As[float32](v.Const) {
				tensor.As[float32](v.Const)[i] = float32(r.NormFloat64())
			}
		}
		feed := func() map[string]ops.Data {
			x := tensor.New(tensor.Float32, 2, k)
			for i := range tensor.As[float32](x) {
				tensor.As[float32](x)[i] = float32(r.NormFloat64())
			}
			if alike { // in a space of 4 dimensions
				for row := range 2 {
					d := tensor.As[float32](x)[row*k:][:k]
					for i := range d {
						if i >= 4 {
							d[i] = d[i%4]
						}
					}
				}
			}
			return map[string]ops.Data{"x": x, "c": tensor.Scalar(true)}
		}
		var feeds, fresh []map[string]ops.Data
		for range 20 {
			feeds = append(feeds, feed())
		}
		for range 200 {
			fresh = append(fresh, feed())
		}
		target, s := storage(t, "i4")
		b := quant.Blocks{Storage: s, Size: 32, Fit: quant.Clip}
		plan, err := qdq.Annotate(m, target, qdq.Options{WeightsOnly: true, Blocks: &b})
		if err != nil {
			t.Fatal(err)
		}
		noise := func(nearest bool) float64 {
			params, _, err := plan.Resolve(m, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			g, err := accuracy.NewGPTQ(m, plan, params, given(feeds), len(feeds), nearest, exec.SessionOptions{Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			for _, stage := range g.Stages() {
				if _, err := g.Choose(t.Context(), stage); err != nil {
					t.Fatal(err)
				}
			}
			values, err := plan.Values(m)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range values {
				e := &plan.Tensors[i]
				l, err := e.Lines(v.Const)
				if err != nil {
					t.Fatal(err)
				}
				cover := b
				cover.Fit = quant.Cover
				if cover, err = cover.Complete(); err != nil {
					t.Fatal(err)
				}
				shared, err := cover.Share(nil, l)
				if err != nil {
					t.Fatal(err)
				}
				covering, err := cover.Encode(t.Context(), nil, l, shared, 0, l.N(), nil)
				if err != nil {
					t.Fatal(err)
				}
				far := func(c *quant.Coded) (sum float64) {
					for j, x := range tensor.As[float32](c.Values(nil, l)) {
						d := float64(x) - float64(tensor.As[float32](v.Const)[j])
						sum += d * d
					}
					return sum
				}
				if got, most := far(params[i].Coded), far(covering); v.Name() == "v" && !(got < 0.95*most) {
					t.Errorf("nearest %v: a weight in a branch that no sample takes is off by %g, %g with scales that cover its range", nearest, got, most)
				}
			}
			q := m.Clone()
			if _, err := qdq.Rewrite(q, plan, params); err != nil {
				t.Fatal(err)
			}
			sum := 0.0
			for _, in := range fresh {
				want, got := floats(t, m, in), floats(t, q, in)
				for i, v := range want[0] {
					sum += float64(v-got[0][i]) * float64(v-got[0][i])
				}
			}
			return sum
		}
		near, chosen := noise(true), noise(false)
		t.Logf("alike %v: squared error on other inputs %.4g, of the nearest codes %.4g", alike, chosen, near)
		if alike && !(chosen < 0.5*near) || !alike && !(chosen < 1.02*near) {
			t.Errorf("alike %v: squared error on other inputs %g, of the nearest codes %g", alike, chosen, near)
		}
	}
}
