package passes

import (
	"errors"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// The operator sets between which runtimes have the experimental operators that ONNX
// withdrew, and other operators broadcast as they do now.
const (
	withdrawnFrom  = 7
	withdrawnUntil = 9
)

// ReplaceWithdrawn replaces the experimental operators of a file of those times by
// others that compute the same, and returns of how many nodes.
func ReplaceWithdrawn(m *graph.Model) (int, error) {
	if o := m.Opset(graph.OnnxDomain); o < withdrawnFrom || o > withdrawnUntil {
		return 0, nil
	}
	count := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if n.Op.Domain != graph.OnnxDomain || withdrawn[n.Op.Type] == nil {
				continue
			}
			if err := withdrawn[n.Op.Type](n); err != nil {
				return count, graph.NodeError("load", n, err)
			}
			count++
		}
	}
	return count, nil
}

// withdrawn replaces a node of an experimental operator by others that compute the
// same (ONNX 1.4 Operators.md, experimental operators). The operators are those that
// converters of their time wrote.
var withdrawn = map[string]func(*graph.Node) error{
	"Affine": func(n *graph.Node) error {
		return inSteps(n, by("Mul", n.Float("alpha", 1)), by("Add", n.Float("beta", 0)))
	},
	"Crop":        crop,
	"ImageScaler": imageScaler,
	"ParametricSoftplus": func(n *graph.Node) error {
		return inSteps(n, by("Mul", n.Float("beta", 1)), step{op: "Softplus"}, by("Mul", n.Float("alpha", 1)))
	},
	"Scale": func(n *graph.Node) error { return inSteps(n, by("Mul", n.Float("scale", 1))) },
	"ScaledTanh": func(n *graph.Node) error {
		return inSteps(n, by("Mul", n.Float("beta", 1)), step{op: "Tanh"}, by("Mul", n.Float("alpha", 1)))
	},
}

// step is an operator with a constant as its second input, if it has two: a scalar, or
// a number for each channel of an image.
type step struct {
	op string
	by []float32
}

// by returns a step with a scalar.
func by(op string, x float32) step { return step{op, []float32{x}} }

// inSteps makes n the last of steps, of which each reads what the one before gives.
func inSteps(n *graph.Node, steps ...step) error {
	if err := referred(n, "alpha", "beta", "bias", "scale"); err != nil {
		return err
	}
	x := n.Input(0)
	if x == nil {
		return errors.New("it has no input")
	}
	for i, s := range steps {
		in := []*graph.Value{x}
		if len(s.by) > 0 {
			c, err := likeInput(n, s.by)
			if err != nil {
				return err
			}
			in = append(in, constant(n, n.Label()+"_by", c))
		}
		if i < len(steps)-1 {
			x = insert(n, s.op, n.Label()+"_"+s.op, in, n.Input(0).Type)
		} else {
			turnInto(n, s.op, in)
		}
	}
	return nil
}

// turnInto makes n a node of another operator.
func turnInto(n *graph.Node, op string, in []*graph.Value, attrs ...*graph.Attr) {
	n.Op.Type, n.Attrs = op, attrs
	n.TruncateInputs(1)
	for i, v := range in {
		n.SetInput(i, v)
	}
}

// likeInput returns values in the element type of the input of n, float32 where
// that is not known; a scalar if there is one.
func likeInput(n *graph.Node, x []float32) (*tensor.Tensor, error) {
	elem := elemOf(n)
	if elem == tensor.Undefined {
		elem = tensor.Float32
	}
	var shape []int
	if len(x) > 1 {
		shape = []int{len(x), 1, 1}
	}
	t := tensor.New(elem, shape...)
	return t, tensor.Convert(t, tensor.Of(x, shape...), 0, len(x), tensor.ConvertOptions{})
}

// imageScaler multiplies an image by a scalar and adds a number to each channel.
func imageScaler(n *graph.Node) error {
	steps := []step{by("Mul", n.Float("scale", 1))}
	if a := n.Attr("bias"); a != nil && len(a.Floats) > 0 {
		steps = append(steps, step{"Add", a.Floats})
	}
	return inSteps(n, steps...)
}

// crop cuts borders off an image: left, top, right and bottom, or left and top and
// what is beyond a given size.
func crop(n *graph.Node) error {
	if err := referred(n, "border", "scale"); err != nil {
		return err
	}
	border, size := n.Ints("border"), n.Ints("scale")
	if len(border) != 4 || len(size) != 0 && len(size) != 2 || n.Input(0) == nil {
		return errors.New("attribute border has four numbers, and scale two if any")
	}
	left, top := border[0], border[1]
	end := func(border int64) int64 {
		if border == 0 {
			return math.MaxInt64
		}
		return -border
	}
	bottom, right := end(border[3]), end(border[2])
	if len(size) == 2 {
		bottom, right = top+size[0], left+size[1]
	}
	turnInto(n, "Slice", []*graph.Value{n.Input(0)}, graph.Ints("starts", top, left), graph.Ints("ends", bottom, right), graph.Ints("axes", 2, 3))
	return nil
}
