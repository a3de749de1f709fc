package accuracy_test

import (
	"math"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// patches calls f with the codes that meet the weights of each output channel
// in one place, and with the elements of the weight that they meet, in the
// order of the kernel.
func patches(n *graph.Node, x *tensor.Tensor, code func(float32) int, f func(o int, codes []int, at []int)) {
	data, ws := tensor.As[float32](x), n.Input(1).Const.Shape()
	if n.Op.Type != "Conv" {
		transposed := n.Int("transB", 0) != 0
		k, outs := ws[0], ws[1]
		if transposed {
			k, outs = ws[1], ws[0]
		}
		for r := 0; r < len(data); r += k {
			for o := range outs {
				var codes, at []int
				for i := range k {
					codes = append(codes, code(data[r+i]))
					if transposed {
						at = append(at, o*k+i)
					} else {
						at = append(at, i*outs+o)
					}
				}
				f(o, codes, at)
			}
		}
		return
	}
	// One axis, stride 1, pads of 1.
	groups := int(n.Int("group", 1))
	length, taps := x.Shape()[2], ws[2]
	for p := -1; p+taps <= length+1; p++ {
		for o := range ws[0] {
			var codes, at []int
			for t := range taps {
				for c := range ws[1] {
					v := float32(0)
					if p+t >= 0 && p+t < length {
						v = data[(o/(ws[0]/groups)*ws[1]+c)*length+p+t]
					}
					codes = append(codes, code(v))
					at = append(at, (o*ws[1]+c)*taps+t)
				}
			}
			f(o, codes, at)
		}
	}
}

// Where activations are quantized as they come, any codes may meet: the sums of
// any two neighbours in a row of weights fit, with 255 times each.
func TestFitPairsDynamic(t *testing.T) {
	m := parse(t, head+`(float[5,1,16] x) => (float[5,2,1,16] y) <float[2,64,16] w = {...}, float[2,64,16] r = {...}>
	{ y = LSTM <hidden_size = 16, direction = "bidirectional"> (x, w, r) }`)
	p := planOf(t, m, qdq.Options{Dynamic: true})
	params, _, err := p.Resolve(m, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	none := func(*graph.Value) (lo, hi []float32) { return nil, nil }
	channels, nodes, err := accuracy.FitPairs(m, p, params, none, nil, 0)
	if err != nil || channels == 0 || nodes != 1 {
		t.Errorf("%d channels of %d nodes, %v", channels, nodes, err)
	}
	values, err := p.Values(m)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range values {
		codes, err := params[i].Quantize(nil, v.Const)
		if err != nil {
			t.Fatal(err)
		}
		row := tensor.As[int8](codes)
		for k := 0; k < len(row); k += 2 {
			up, down := max(int(row[k]), 0)+max(int(row[k+1]), 0), min(int(row[k]), 0)+min(int(row[k+1]), 0)
			if 255*up > math.MaxInt16 || 255*down < math.MinInt16 {
				t.Fatalf("%s: codes %d and %d", v.Name(), row[k], row[k+1])
			}
		}
	}
}

// Before, sums of two products leave 16 bits; after, none does on the samples
// that the bounds come from, channels that fitted are as they were, and no
// scale has more than doubled.
func TestFitPairs(t *testing.T) {
	for _, c := range []struct {
		name, text string
		over       bool
	}{
		{"Conv", `(float[1,6,9] x) => (float[1,8,9] y) <float[8,6,3] w = {...}> { y = Conv <pads = [1,1]> (x, w) }`, true},
		{"odd channels", `(float[1,3,9] x) => (float[1,8,9] y) <float[8,3,3] w = {...}> { y = Conv <pads = [1,1]> (x, w) }`, true},
		{"groups", `(float[1,6,9] x) => (float[1,8,9] y) <float[8,3,3] w = {...}> { y = Conv <pads = [1,1], group = 2> (x, w) }`, true},
		{"one channel", `(float[1,1,9] x) => (float[1,8,9] y) <float[8,1,3] w = {...}> { y = Conv <pads = [1,1]> (x, w) }`, true},
		{"depthwise", `(float[1,8,9] x) => (float[1,8,9] y) <float[8,1,3] w = {...}> { y = Conv <pads = [1,1], group = 8> (x, w) }`, false},
		{"MatMul", `(float[4,7] x) => (float[4,9] y) <float[7,9] w = {...}> { y = MatMul (x, w) }`, true},
		{"Gemm", `(float[4,8] x) => (float[4,9] y) <float[9,8] w = {...}, float[9] b = {...}> { y = Gemm <transB = 1> (x, w, b) }`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, head+c.text)
			n := m.Graph.First()
			w := n.Input(1)
			// Neighbours of one sign, so that sums grow; one channel of small ones beside
			// a large one, which fits.
			for i, v := range tensor.As[float32](w.Const) {
				tensor.As[float32](w.Const)[i] = float32(math.Abs(float64(v)))
			}
			p := planOf(t, m, qdq.Options{})
			st := observe(t, m)
			params, _, err := p.Resolve(m, func(v *graph.Value, e *qdq.TensorPlan) (quant.Range, string) {
				return quant.Range{Min: float64(slices.Min(st.lo[v.ID])), Max: float64(slices.Max(st.hi[v.ID]))}, ""
			}, 0)
			if err != nil {
				t.Fatal(err)
			}
			values, err := p.Values(m)
			if err != nil {
				t.Fatal(err)
			}
			px, pw := &params[slices.Index(values, n.Input(0))], &params[slices.Index(values, w)]
			worst := func() (out []float64) {
				codes, err := pw.Quantize(nil, w.Const)
				if err != nil {
					t.Fatal(err)
				}
				out = make([]float64, len(pw.Scale))
				run(t, m, func(v *graph.Value, x *tensor.Tensor) error {
					if v.ID == n.Input(0).ID {
						patches(n, x, func(f float32) int { return int(px.Code(f, 0)) }, func(o int, a, at []int) {
							for i := 0; i < len(a); i += 2 {
								sum := 0
								for j := i; j < min(i+2, len(a)); j++ {
									sum += a[j] * int(tensor.As[int8](codes)[at[j]])
								}
								out[o] = max(out[o], float64(sum)/math.MaxInt16, float64(sum)/math.MinInt16)
							}
						})
					}
					return nil
				})
				return out
			}
			before, scales := worst(), slices.Clone(pw.Scale)
			list, err := accuracy.Pairs(m, p, params, st.bounds, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			channels, nodes, err := accuracy.FitPairs(m, p, params, st.bounds, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			if !c.over {
				if len(list) > 0 || channels+nodes > 0 || !slices.Equal(scales, pw.Scale) {
					t.Errorf("%d nodes, %d channels, want none", len(list), channels)
				}
				return
			}
			after := worst()
			if slices.Max(before) <= 1 {
				t.Errorf("before, the greatest sum is %.3f of what 16 bits hold", slices.Max(before))
			}
			if len(list) != 1 || list[0].Over == 0 || list[0].Sums < len(scales) || nodes != 1 {
				t.Errorf("%+v, %d nodes", list, nodes)
			}
			changed := 0
			for o, s := range pw.Scale {
				if after[o] > 1 {
					t.Errorf("channel %d reaches %.3f of what 16 bits hold, before %.3f", o, after[o], before[o])
				}
				if need := list[0].Need[o]; need < before[o]-1e-9 {
					t.Errorf("channel %d: %.3f foreseen, %.3f found", o, need, before[o])
				}
				switch f := s / scales[o]; {
				case f != 1:
					changed++
					if f < 1 || f > 2.1 {
						t.Errorf("channel %d: scale times %v", o, f)
					}
				}
			}
			if changed != channels {
				t.Errorf("%d channels changed, %d reported", changed, channels)
			}
			if again, _, err := accuracy.FitPairs(m, p, params, st.bounds, nil, 0); again > 0 || err != nil {
				t.Errorf("%d channels change again, %v", again, err)
			}
		})
	}
}
