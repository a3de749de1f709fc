package passes

import (
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// A copy of the table becomes the table; its transpose is read through a
// Transpose, by Gemm with the other transB; a constant that differs in one
// element, or that an Add reads, stays.
func TestTieWeights(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 17]>
g (int64[2] ids, float[2,16] x, float[20,16] table, float[20,16] copy, float[16,20] back, float[16,20] other, float[16,20] added) => (float[2,16] a, float[2,16] b, float[2,20] c, float[2,20] d, float[2,20] e, float[16,20] f) {
  a = Gather (table, ids)
  b = Gather (copy, ids)
  c = MatMul (x, back)
  d = Gemm (x, back)
  e = MatMul (x, other)
  f = Relu (added)
}`)
	if err != nil {
		t.Fatal(err)
	}
	fill := func(name string, f func(i int) float32) {
		for _, v := range m.Graph.Inputs() {
			if v.Name() == name {
				shape, _ := v.Type.Shape.Dims()
				x := tensor.New(tensor.Float32, shape...)
				for i := range tensor.As[float32](x) {
					tensor.As[float32](x)[i] = f(i)
				}
				m.Graph.RemoveInput(v)
				m.Graph.AddInitializer(v, x)
				return
			}
		}
	}
	transposed := func(i int) float32 { return float32(i%20*16 + i/20) }
	fill("back", transposed)
	fill("table", func(i int) float32 { return float32(i) })
	fill("copy", func(i int) float32 { return float32(i) })
	fill("other", func(i int) float32 { return transposed(i) + float32(i/319) })
	fill("added", transposed)
	if n := TieWeights(m); n != 2 {
		t.Errorf("%d constants tied, want 2", n)
	}
	if err := m.Verify(); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range m.Graph.Initializers() {
		names = append(names, v.Name())
	}
	if len(names) != 3 {
		t.Errorf("left are %v", names)
	}
	for n := range m.Graph.Nodes() {
		switch n.Output(0).Name() {
		case "b":
			if n.Input(0).Name() != "table" {
				t.Errorf("b reads %q", n.Input(0).Name())
			}
		case "c":
			if d := n.Input(1).DefNode(); d == nil || d.Op.Type != "Transpose" || d.Input(0).Name() != "table" {
				t.Error("c reads no Transpose of the table")
			}
		case "d":
			if n.Input(1).Name() != "table" || n.Int("transB", 0) != 1 {
				t.Error("d does not read the table with transB")
			}
		}
	}
}
