package quant

import (
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/tensor"
)

// TestGrids holds grids against what numpy gives for their formulas in float64.
func TestGrids(t *testing.T) {
	x := tensor.Of([]float32{-2.1104, 1.0370, -0.1524, 1.5283, -0.5803, 0.4747, -0.0349, -0.4250, 1.0839, 0.2665, -0.3881, 1.3272}, 3, 4)
	l, err := LinesOf(x, 1)
	if err != nil {
		t.Fatal(err)
	}
	unit := tensor.Of([]float32{-1, -1, -1, -1, 1, 1, 1, 1}, 2, 4)
	for _, c := range []struct {
		name   string
		ranges *tensor.Tensor
		codes  [][]int
		values [][]float32
		sse    float64
		bits   float64
	}{
		{"two-scales:4", nil, [][]int{{-8, 5, -1, 7}, {-8, 7, 0, -6}, {6, 1, -8, 7}},
			[][]float32{{-2.1104, 1.091643, -0.2638, 1.5283}, {-0.5803, 0.4747, 0, -0.435225}, {1.1376, 0.1896, -0.3881, 1.3272}}, 0.025516, 20},
		{"dorefa:3", nil, [][]int{{0, 6, 3, 7}, {2, 5, 3, 2}, {6, 4, 2, 7}},
			[][]float32{{-1, 0.714286, -0.142857, 1}, {-0.428571, 0.428571, -0.142857, -0.428571}, {0.714286, 0.142857, -0.428571, 1}}, 1.913742, 3},
		{"dorefa:1", nil, [][]int{{0, 1, 0, 1}, {0, 1, 0, 0}, {1, 1, 0, 1}},
			[][]float32{{-0.784058, 0.784058, -0.784058, 0.784058}, {-0.784058, 0.784058, -0.784058, -0.784058}, {0.784058, 0.784058, -0.784058, 0.784058}}, 4.412988, 1 + 32.0/12},
		{"wrpn:3", nil, [][]int{{-3, 3, 0, 3}, {-2, 1, 0, -1}, {3, 1, -1, 3}},
			[][]float32{{-1, 1, 0, 1}, {-0.666667, 0.333333, 0, -0.333333}, {1, 0.333333, -0.333333, 1}}, 1.695313, 3},
		{"dimension:8", nil, [][]int{{0, 255, 170, 255}, {122, 69, 255, 0}, {255, 0, 0, 229}},
			[][]float32{{-2.1104, 1.037, -0.152633, 1.5283}, {-0.582147, 0.474988, -0.0349, -0.425}, {1.0839, 0.2665, -0.3881, 1.32914}}, 0.000007, 8 + 64.0/3},
		{"dimension:4", unit, [][]int{{0, 15, 6, 15}, {3, 11, 7, 4}, {15, 9, 5, 15}},
			[][]float32{{-1, 1, -0.2, 1}, {-0.6, 0.466667, -0.066667, -0.466667}, {1, 0.2, -0.333333, 1}}, 1.640442, 4 + 64.0/3},
		{"sign", nil, [][]int{{0, 1, 0, 1}, {0, 1, 0, 0}, {1, 1, 0, 1}},
			[][]float32{{-1.207025, 1.207025, -1.207025, 1.207025}, {-0.378725, 0.378725, -0.378725, -0.378725}, {0.766425, 0.766425, -0.766425, 0.766425}}, 3.038961, 9},
	} {
		g, err := ParseGrid(c.name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := g.Apply(l, c.ranges)
		if err != nil {
			t.Fatal(err)
		}
		sse := 0.0
		for i, line := range r.Values {
			for j, v := range line {
				if math.Abs(float64(v-c.values[i][j])) > 2e-6 {
					t.Errorf("%s: element %d,%d is %v, want %v", c.name, i, j, v, c.values[i][j])
				}
				d := float64(v) - float64(tensor.As[float32](x)[i*4+j])
				sse += d * d
			}
		}
		if !reflect.DeepEqual(r.Codes, c.codes) || math.Abs(sse-c.sse) > 2e-6 || math.Abs(r.Bits-c.bits) > 1e-9 {
			t.Errorf("%s: codes %v, SSE %.6f, %v bits", c.name, r.Codes, sse, r.Bits)
		}
		if got := r.PackSigns(); c.name == "sign" && !reflect.DeepEqual(got, [][]byte{{80}, {64}, {208}}) {
			t.Errorf("packed %v", got)
		}
	}
}

// TestGridErrors: bad names, ranges that are none, and lines of zeros.
func TestGridErrors(t *testing.T) {
	for _, name := range []string{"", "dorefa", "dorefa:0", "dorefa:9", "wrpn:1", "two-scales:1", "sign:1", "dimension:x", "grid:4"} {
		if _, err := ParseGrid(name); err == nil {
			t.Errorf("%q is a grid", name)
		}
	}
	l, err := LinesOf(tensor.New(tensor.Float32, 2, 9), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, bits := range []int{2, 8} {
		for _, g := range OfBits(bits) {
			r, err := g.Apply(l, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range r.Values[1] {
				if v != v || v != 0 && !strings.HasPrefix(g.Name, "dorefa") { // which has no 0
					t.Errorf("%s: 0 becomes %v", g.Name, v)
				}
			}
			if p := r.PackSigns(); g.Name == "sign" && len(p[0]) != 2 {
				t.Errorf("9 bits take %d bytes", len(p[0]))
			}
		}
	}
	g, err := ParseGrid("dimension:8")
	if err != nil {
		t.Fatal(err)
	}
	nan := float32(math.NaN())
	for _, bad := range []*tensor.Tensor{tensor.New(tensor.Float32, 9), tensor.New(tensor.Float32, 2, 8), tensor.New(tensor.Int8, 2, 9), tensor.Of([]float32{nan, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 2, 9)} {
		if _, err := g.Apply(l, bad); err == nil {
			t.Errorf("%v are ranges", bad)
		}
	}
}
