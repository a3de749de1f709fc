package passes

import (
	"bytes"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// tieFrom is the size in bytes from which weights are compared with each other.
const tieFrom = 1 << 10

// TieWeights makes constants of a graph that hold the same elements one, and
// matrices of which one is the transpose of another: MatMul then reads a
// Transpose, and Gemm the other way round. It returns how many constants that
// saves. Where the weights are stored in few bits afterwards, readers of both
// kinds can share the codes.
func TieWeights(m *graph.Model) int {
	tied := 0
	for g := range m.Scopes() {
		if g.Function() != nil {
			continue
		}
		var kept []*graph.Value
		for _, v := range lookedUpFirst(g) {
			done := false
			for _, w := range kept {
				if sameElements(v.Const, w.Const) {
					v.ReplaceUses(w)
					done = true
				} else if turnable(v) && isTranspose(v.Const, w.Const) {
					turn(v, w)
					done = true
				}
				if done {
					break
				}
			}
			if done {
				tied++
			} else {
				kept = append(kept, v)
			}
		}
		if tied > 0 {
			g.RemoveInitializers(func(v *graph.Value) bool {
				return len(v.Uses()) == 0 && !v.IsInput() && v.Const != nil && v.Const.Size() >= tieFrom
			})
		}
	}
	return tied
}

// lookedUpFirst lists the constants of g that may be tied, those that a Gather
// reads before others: their rows have to stay rows.
func lookedUpFirst(g *graph.Graph) []*graph.Value {
	var first, rest []*graph.Value
	for _, v := range g.Initializers() {
		if !v.IsConst() || v.IsInput() || v.IsOutput() || !v.Const.DType().IsFloat() || v.Const.Size() < tieFrom || v.Const.Rank() < 2 {
			continue
		}
		gathered := false
		for _, u := range v.Uses() {
			gathered = gathered || u.Node != nil && u.Node.Op == (graph.OpKey{Type: "Gather"})
		}
		if gathered {
			first = append(first, v)
		} else {
			rest = append(rest, v)
		}
	}
	return append(first, rest...)
}

func sameElements(a, b *tensor.Tensor) bool {
	return a.DType() == b.DType() && tensor.ShapeString(a.Shape()) == tensor.ShapeString(b.Shape()) && bytes.Equal(a.Bytes(), b.Bytes())
}

// turnable reports whether every reader of the matrix v can read its transpose.
func turnable(v *graph.Value) bool {
	for _, u := range v.Uses() {
		if u.Node == nil || u.Index != 1 || u.Node.Op != (graph.OpKey{Type: "MatMul"}) && u.Node.Op != (graph.OpKey{Type: "Gemm"}) {
			return false
		}
	}
	return v.Const.Rank() == 2
}

// isTranspose reports whether the matrix a is the transpose of b.
func isTranspose(a, b *tensor.Tensor) bool {
	if a.DType() != b.DType() || b.Rank() != 2 || a.Shape()[0] != b.Shape()[1] || a.Shape()[1] != b.Shape()[0] {
		return false
	}
	width := a.DType().Bits() / 8
	return width > 0 && mirrored(a.Bytes(), b.Bytes(), a.Shape()[0], a.Shape()[1], width)
}

// mirrored compares a, rows×cols elements of width bytes, with b, cols×rows, in
// squares that stay in the cache.
func mirrored(a, b []byte, rows, cols, width int) bool {
	const square = 32
	for r := 0; r < rows; r += square {
		for c := 0; c < cols; c += square {
			for i := r; i < min(r+square, rows); i++ {
				for j := c; j < min(c+square, cols); j++ {
					if x, y := a[(i*cols+j)*width:], b[(j*rows+i)*width:]; string(x[:width]) != string(y[:width]) {
						return false
					}
				}
			}
		}
	}
	return true
}

// turn makes the readers of v read w, its transpose.
func turn(v, w *graph.Value) {
	g := w.Graph()
	var back *graph.Value
	for _, u := range append([]graph.Use{}, v.Uses()...) {
		if u.Node.Op.Type == "Gemm" {
			u.Node.SetAttr(graph.Int("transB", 1-u.Node.Int("transB", 0)))
			u.Node.SetInput(u.Index, w)
			continue
		}
		if back == nil {
			back = g.NewValue(g.Model().UniqueName(w.Name()+"_transposed"), v.Type)
			g.InsertAfter(g.NewNode(graph.OpKey{Type: "Transpose"}, "", []*graph.Value{w}, []*graph.Value{back}, graph.Ints("perm", 1, 0)), nil)
		}
		u.Node.SetInput(u.Index, back)
	}
}
