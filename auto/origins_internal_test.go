package auto

import (
	"fmt"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
)

// What starts at a value is for those that make it and, if it is quantized, for those
// that read it; nodes that are part of the same kernel are found behind it.
func TestOriginsOf(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 13]>
g (float[1,2,4,4] x) => (y)
<float[2,2,1,1] w1 = {1,2,3,4}, float[2,2,1,1] w2 = {1,2,3,4}, float[2,2,1,1] w3 = {1,2,3,4}>
{
 a = Conv (x, w1)
 r = Relu (a)
 b = Conv (r, w2)
 c = Conv (r, w3)
 s = Add (b, c)
 y = Sigmoid (s)
}
`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	values := map[string]*graph.Value{}
	names := map[int]string{}
	for _, v := range m.Graph.Inputs() {
		values[v.Name()] = v
	}
	for n := range m.Graph.Nodes() {
		values[n.Output(0).Name()], names[n.ID] = n.Output(0), n.Output(0).Name()
		if w := n.Input(1); w != nil {
			values[w.Name()] = w
		}
	}
	for _, c := range []struct {
		name           string
		starts         map[string]float64 // by value; those left out are not in the quantized model
		rounded        []string
		nodes, weights map[string]float64
	}{
		{"an input", map[string]float64{"x": 1, "a": 0, "r": 0}, []string{"x"}, map[string]float64{"a": 1}, nil},
		{"a kernel and its output", map[string]float64{"x": 0, "r": 0.8, "b": 0.2, "c": 0}, []string{"x", "r"},
			map[string]float64{"a": 0.4, "b": 0.4, "c": 0.2}, map[string]float64{"w1": 0.8, "w2": 0.2}},
		{"a weight alone", map[string]float64{"x": 0, "a": 0, "r": 0, "b": 1, "c": 0, "s": 0}, nil, map[string]float64{"b": 1}, map[string]float64{"w2": 1}},
		{"a value of float nodes", map[string]float64{"x": 0, "a": 0, "r": 1, "b": 0, "c": 0}, []string{"r"}, map[string]float64{"b": 0.5, "c": 0.5}, nil},
		{"a sum", map[string]float64{"x": 0, "a": 0, "r": 0, "s": 0.5, "y": 0.5}, []string{"s"}, map[string]float64{"b": 0.25, "c": 0.25}, map[string]float64{"w2": 0.25, "w3": 0.25}},
		{"elsewhere", map[string]float64{"y": 0.1}, nil, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			starts, rounded := map[int]float64{}, map[int]bool{}
			for name, part := range c.starts {
				starts[values[name].ID] = part
			}
			for _, name := range c.rounded {
				rounded[values[name].ID] = true
			}
			got := originsOf(m, starts, rounded)
			if got == nil {
				if c.nodes != nil {
					t.Fatal("nothing is seen")
				}
				return
			}
			nodes, weights := map[string]float64{}, map[string]float64{}
			for id, part := range got.nodes {
				nodes[names[id]] = part
			}
			for _, w := range []string{"w1", "w2", "w3"} {
				if part, ok := got.weights[values[w].ID]; ok {
					weights[w] = part
				}
			}
			if fmt.Sprint(nodes) != fmt.Sprint(c.nodes) || fmt.Sprint(weights) != fmt.Sprint(c.weights) {
				t.Errorf("nodes %v, want %v; weights %v, want %v", nodes, c.nodes, weights, c.weights)
			}
		})
	}
}
