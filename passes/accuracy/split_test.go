package accuracy_test

import (
	"context"
	"math"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       int
	}{
		{"Conv", `(float[1,3,6,6] x) => (float[1,4,4,4] y) <float[16,3,1,1] w1 = {...}, float[16] b1 = {...}, float[4,16,3,3] w2 = {...}, float[4] b2 = {...}>
		{ a = Conv (x, w1, b1) r = Relu (a) p = AveragePool <kernel_shape = [1,1]> (r) y = Conv (p, w2, b2) }`, 1},
		{"Gemm", `(float[5,8] x) => (float[5,4] y) <float[16,8] w1 = {...}, float[16] b1 = {...}, float[16,4] w2 = {...}, float[4] b2 = {...}>
		{ a = Gemm <transB = 1> (x, w1, b1) r = LeakyRelu (a) y = Gemm (r, w2, b2) }`, 1},
		{"groups", `(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[16,3,1,1] w1 = {...}, float[4,8,1,1] w2 = {...}>
		{ a = Conv (x, w1) r = Relu (a) y = Conv <group = 2> (r, w2) }`, 0},
		{"read twice", `(float[1,3,6,6] x) => (float[1,4,6,6] y, float[1,16,6,6] z) <float[16,3,1,1] w1 = {...}, float[4,16,1,1] w2 = {...}>
		{ a = Conv (x, w1) r = Relu (a) y = Conv (r, w2) z = Neg (a) }`, 0},
		{"bent", `(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[16,3,1,1] w1 = {...}, float[4,16,1,1] w2 = {...}>
		{ a = Conv (x, w1) r = Sigmoid (a) y = Conv (r, w2) }`, 0},
		{"no outlier", `(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[16,3,1,1] w1 = {...}, float[4,16,1,1] w2 = {...}>
		{ a = Conv (x, w1) r = Relu (a) y = Conv (r, w2) }`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, head+c.text)
			for _, v := range m.Graph.Initializers() {
				data, shape := tensor.As[float32](v.Const), v.Const.Shape()
				for i := range data {
					switch {
					case v.Name() == "w1" && c.name == "no outlier":
						data[i] = 0.5
					case v.Name() == "w1" && i/(len(data)/16) == 3:
						data[i] *= 40
					// The second product hears the loud channel no more than others.
					case v.Name() == "w2" && shape[0] == 16 && i/shape[1] == 3, v.Name() == "w2" && shape[0] == 4 && i/(len(data)/4/shape[1])%shape[1] == 3:
						data[i] /= 40
					}
				}
			}
			want := run(t, m, nil)
			s := m.Clone()
			if got := accuracy.Split(s, observe(t, m).bounds, 0.1); got != c.want {
				t.Fatalf("%d channels split, want %d", got, c.want)
			}
			if r := ratio(want, run(t, s, nil)); !(r < 1e-12) {
				t.Errorf("the float model changed: noise to signal %g", r)
			}
			if c.want == 0 {
				return
			}
			plain, _ := quantize(t, m, false)
			better, _ := quantize(t, s, false)
			before, after := ratio(want, run(t, plain, nil)), ratio(want, run(t, better, nil))
			if !(after < before/1.5) {
				t.Errorf("noise to signal %g, was %g", after, before)
			}
		})
	}
}

// Clipping a weight far out helps where it meets a quiet input and is left alone
// where it meets a loud one.
func TestClip(t *testing.T) {
	for _, c := range []struct {
		name  string
		power float32 // of the input that the outlier meets
		want  bool
	}{{"quiet", 1e-3, true}, {"loud", 30, false}} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, head+`(float[64,32] x) => (float[64,4] y) <float[32,4] w = {...}> { y = MatMul (x, w) }`)
			n := m.Graph.First()
			w := tensor.As[float32](n.Input(1).Const)
			for o := range 4 {
				w[5*4+o] = 8 // others are below 1
			}
			p := planOf(t, m, qdq.Options{})
			params, _, err := p.Resolve(m, func(*graph.Value, *qdq.TensorPlan) (quant.Range, string) {
				return quant.Range{Min: -1, Max: 1}, ""
			}, 0)
			if err != nil {
				t.Fatal(err)
			}
			values, err := p.Values(m)
			if err != nil {
				t.Fatal(err)
			}
			power := make([]float32, 32)
			for i := range power {
				power[i] = 1
			}
			power[5] = c.power
			loss := func() (sum float64) {
				for i, v := range values {
					if v != n.Input(1) {
						continue
					}
					codes, err := params[i].Quantize(nil, v.Const)
					if err != nil {
						t.Fatal(err)
					}
					for k, x := range tensor.As[float32](params[i].Dequantize(codes)) {
						d := float64(x-w[k]) * float64(power[k/4])
						sum += d * d
					}
				}
				return sum
			}
			before := loss()
			count, err := accuracy.Clip(m, p, params, func(v *graph.Value) (lo, hi []float32) {
				if v == n.Input(0) {
					return make([]float32, 32), power
				}
				return nil, nil
			}, 0)
			if err != nil {
				t.Fatal(err)
			}
			if after := loss(); (count > 0) != c.want || c.want && after > before/2 || after > before {
				t.Errorf("%d scales changed, loss %g → %g", count, before, after)
			}
		})
	}
}

// A range that cuts half of the values off shifts outputs; measured means take
// the shift out, weights alone do not know of it.
func TestMeasuredBias(t *testing.T) {
	m := parse(t, head+`(float[16,8] x) => (float[16,4] y) <float[8,4] w = {...}, float[4] b = {...}> { y = Gemm (x, w, b) }`)
	p := planOf(t, m, qdq.Options{})
	params, _, err := p.Resolve(m, func(*graph.Value, *qdq.TensorPlan) (quant.Range, string) {
		return quant.Range{Min: -0.7, Max: 0.2}, ""
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := run(t, m, nil)
	st := observe(t, m)
	shift := func(rounded accuracy.Means) (worst float64) {
		q := m.Clone()
		if _, err := accuracy.CorrectBias(q, p, params, st.mean, rounded, nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := qdq.Rewrite(q, p, params); err != nil {
			t.Fatal(err)
		}
		var mean [4]float64
		for i, y := range run(t, q, nil) {
			mean[i%4] += (float64(y) - float64(want[i])) / float64(len(want)/4)
		}
		for _, d := range mean {
			worst = math.Max(worst, math.Abs(d))
		}
		return worst
	}
	measure := func(list []map[string]ops.Data) accuracy.Means {
		added, err := accuracy.MeasureMeans(t.Context(), m, p, params, func(_ context.Context, f func(map[string]ops.Data) error) error {
			for _, feed := range list {
				if err := f(feed); err != nil {
					return err
				}
			}
			return nil
		}, exec.SessionOptions{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		return added
	}
	all := feeds(m)
	measured := measure(all)
	without, with := shift(nil), shift(measured)
	if !(with < without/10) {
		t.Errorf("mean error %g, without measuring %g", with, without)
	}
	// The means of a few samples are not those of all, but what is added to them is alike.
	if few := shift(measure(all[:len(all)/2])); !(few < without/2) {
		t.Errorf("mean error %g on half of the samples, without measuring %g", few, without)
	}
	// Where a channel is not finite nothing is known.
	odd := map[string]ops.Data{"x": all[0]["x"].(*tensor.Tensor).Clone()}
	tensor.As[float32](odd["x"].(*tensor.Tensor))[3] = float32(math.Inf(1))
	if d := measure([]map[string]ops.Data{odd})(m.Graph.Inputs()[0]); d[3] != 0 || d[2] == 0 {
		t.Errorf("with a value that is not finite: %v", d)
	}
}
