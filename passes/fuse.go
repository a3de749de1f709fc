package passes

import (
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

func isOp(n *graph.Node, types ...string) bool {
	return n != nil && n.Op.Domain == graph.OnnxDomain && n.Op.Overload == "" && slices.Contains(types, n.Op.Type)
}

// constFloats returns the elements of a constant float32 value, or nil. They are
// a copy where they lie in a file at an odd address.
func constFloats(v *graph.Value) []float32 {
	if !holdsFloats(v) {
		return nil
	}
	return tensor.As[float32](v.Const)
}

// holdsFloats reports whether v is constant and float32.
func holdsFloats(v *graph.Value) bool {
	return v != nil && v.IsConst() && v.Const.DType() == tensor.Float32
}

// constFloat returns the element of a constant float32 value that has one.
func constFloat(v *graph.Value) (x float32, ok bool) {
	if !holdsFloats(v) || v.Const.Len() != 1 {
		return 0, false
	}
	return tensor.As[float32](v.Const)[0], true
}

func fusePads(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			if isOp(n, "Pad") && !columnOnly(n) && ops.FoldPad(n) {
				s.Changes++
			}
		}
	}
	return nil
}

// columnOnly reports whether the Pad n pads images of width 1 in height only. Kernels that work along rows treat every padded row of such an image
// as a border: the separate Pad is 1.4 to 2.8 times faster there (ONNX Runtime
// 1.32, float32, heights of 128 and 1000, windows of 3 to 64).
func columnOnly(n *graph.Node) bool {
	x, pads := n.Input(0), ops.ZeroPads(n)
	rank := len(pads) / 2
	if x == nil || rank < 4 || len(x.Type.Shape) != rank {
		return false
	}
	width := x.Type.Shape[rank-1]
	return width.Known && width.Size == 1 && pads[rank-1] == 0 && pads[2*rank-1] == 0
}

func fuseScales(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			for ops.FoldBehind(n) {
				s.Changes++
			}
			for ops.FoldBefore(n) {
				s.Changes++
			}
		}
	}
	return nil
}

func fuseMatMulAdd(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			if !isOp(n, "MatMul") || n.Input(0) == nil || n.Output(0) == nil {
				continue
			}
			x := n.Input(0)
			flat := len(x.Type.Shape) == 2
			if !flat && (len(x.Type.Shape) < 3 || slices.ContainsFunc(x.Type.Shape, func(d graph.Dim) bool { return !d.Known || d.Size < 1 })) {
				continue
			}
			w, y := n.Input(1), n.Output(0)
			add := y.OnlyUse()
			if !holdsFloats(w) || w.Const.Len() == 0 || w.Const.Rank() != 2 || !isOp(add, "Add") || add.Graph() != g {
				continue
			}
			c := add.Input(0)
			if c == y {
				c = add.Input(1)
			}
			cols := w.Const.Shape()[1]
			b := constFloats(c)
			if len(b) == 0 || len(b) != cols && len(b) != 1 || c.Const.Rank() > 2 || c.Const.Rank() == 2 && c.Const.Shape()[0] != 1 {
				continue
			}
			if !flat && (len(b) != cols || c.Const.Rank() != 1) {
				continue
			}
			if !add.Output(0).ReplaceWith(y) {
				continue
			}
			g.Remove(add)
			n.Op.Type = "Gemm"
			n.SetInput(2, c)
			s.Changes++
			if flat {
				continue
			}
			k := w.Const.Shape()[0]
			to := make([]int64, len(x.Type.Shape))
			rows := int64(1)
			for i, d := range x.Type.Shape[:len(to)-1] {
				to[i] = d.Size
				rows *= d.Size
			}
			to[len(to)-1] = int64(cols)
			n.SetInput(0, insert(n, "Reshape", x.Name()+"_matrix", []*graph.Value{x, constant(n, x.Name()+"_matrix_shape", tensor.Of([]int64{rows, int64(k)}))}, graph.Type{}))
			y, matrix := divert(n, 0, y.Name()+"_matrix")
			emit(n, "Reshape", []*graph.Value{matrix, constant(n, y.Name()+"_shape", tensor.Of(to))}, y)
		}
	}
	return nil
}

func normalizeGemm(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			if !isOp(n, "Gemm") {
				continue
			}
			if !holdsFloats(n.Input(1)) || n.Input(1).Const.Rank() != 2 || n.Input(1).Const.Len() == 0 {
				continue
			}
			shape := n.Input(1).Const.Shape()
			cols := shape[1]
			if n.Int("transB", 0) != 0 {
				cols = shape[0]
			}
			if alpha := n.Float("alpha", 1); alpha != 1 {
				w := constFloats(n.Input(1))
				scaled := make([]float32, len(w))
				for i, x := range w {
					scaled[i] = alpha * x
				}
				n.SetInput(1, g.NewInitializer(n.Input(1).Name(), tensor.Of(scaled, shape...)))
				n.RemoveAttr("alpha")
				s.Changes++
			}
			c := constFloats(n.Input(2))
			if n.Input(2) == nil {
				n.RemoveAttr("beta")
				continue
			}
			if c == nil || len(c) != cols && len(c) != 1 || n.Input(2).Const.Rank() == 2 && n.Input(2).Const.Shape()[0] != 1 {
				continue
			}
			beta := n.Float("beta", 1)
			if beta == 1 && n.Input(2).Const.Rank() == 1 && len(c) == cols {
				continue
			}
			bias := make([]float32, cols)
			for i := range bias {
				bias[i] = beta * c[i%len(c)]
			}
			n.SetInput(2, g.NewInitializer(n.Input(2).Name(), tensor.Of(bias)))
			n.RemoveAttr("beta")
			s.Changes++
		}
	}
	return nil
}
