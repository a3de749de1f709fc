package passes

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// change names an operator of the default domain and an operator set that
// defines it anew.
type change struct {
	Op string
	To int
}

// unchanged lists, by operator, the operator sets between lowestLift and
// highestLift that define it anew but leave the meaning of an existing node:
// they allow more element types, negative axes, attributes or inputs whose
// defaults are the old meaning, or correct the text only. Every other new
// definition has an adapter (ONNX Changelog.md).
//
// Texts that were corrected without a change of what runtimes compute:
// ConvTranspose 11 (the rule for odd padding under auto_pad), AveragePool 11,
// 19 and 22 and MaxPool 12 and 22 (output size under auto_pad and ceil_mode),
// OneHot 11 (negative indices, outside the contract before).
var unchanged = map[string][]int{
	"Abs": {13}, "Acos": {22}, "Acosh": {22}, "Add": {13, 14}, "ArgMax": {11, 12, 13}, "ArgMin": {11, 12, 13},
	"Asin": {22}, "Asinh": {22}, "Atan": {22}, "Atanh": {22}, "Attention": {24, 25}, "AveragePool": {10, 11, 19, 22},
	"BatchNormalization": {15}, "Bernoulli": {22}, "Cast": {9, 13, 19, 21, 23, 24, 25}, "CastLike": {19, 21, 23, 24, 25},
	"Ceil": {13}, "Clip": {12, 13}, "Compress": {11}, "Concat": {11, 13}, "Constant": {9, 11, 12, 13, 19, 21, 23, 24, 25},
	"ConstantOfShape": {20, 21, 23, 24, 25}, "Conv": {11, 22}, "ConvTranspose": {11, 22}, "Cos": {22}, "Cosh": {22},
	"CumSum": {14}, "DeformConv": {22}, "DepthToSpace": {11, 13}, "DequantizeLinear": {13, 19, 21, 23, 24, 25},
	"Det": {22}, "Div": {13, 14}, "Dropout": {13, 22}, "Elu": {22}, "Equal": {11, 13, 19}, "Exp": {13}, "Expand": {13},
	"EyeLike": {22}, "Flatten": {9, 11, 13, 21, 23, 24, 25}, "Floor": {13}, "GRU": {14, 22}, "Gather": {11, 13},
	"GatherElements": {13}, "GatherND": {12, 13}, "Gemm": {9, 11, 13}, "GlobalAveragePool": {22}, "GlobalLpPool": {22},
	"GlobalMaxPool": {22}, "Greater": {9, 13}, "GreaterOrEqual": {16}, "GridSample": {22}, "HardSigmoid": {22},
	"HardSwish": {22}, "Hardmax": {11}, "Identity": {13, 14, 16, 19, 21, 23, 24, 25}, "If": {11, 13, 16, 19, 21, 23, 24, 25},
	"InstanceNormalization": {22}, "IsInf": {20}, "IsNaN": {13, 20}, "LRN": {13}, "LSTM": {14, 22}, "LeakyRelu": {16},
	"Less": {9, 13}, "LessOrEqual": {16}, "Log": {13}, "LogSoftmax": {11}, "Loop": {11, 13, 16, 19, 21, 23, 24, 25},
	"LpNormalization": {22}, "LpPool": {11, 18, 22}, "MatMul": {9, 13}, "Max": {8, 12, 13}, "MaxPool": {8, 10, 11, 12, 22},
	"MaxRoiPool": {22}, "MaxUnpool": {11, 22}, "Mean": {8, 13}, "MeanVarianceNormalization": {13}, "Min": {8, 12, 13},
	"Mish": {22}, "Mod": {13}, "Mul": {13, 14}, "Multinomial": {22}, "Neg": {13}, "NegativeLogLikelihoodLoss": {13, 22},
	"NonMaxSuppression": {11}, "NonZero": {13}, "OneHot": {11}, "OptionalGetElement": {18}, "OptionalHasElement": {18},
	"PRelu": {9, 16}, "Pad": {13, 18, 19, 21, 23, 24, 25}, "Pow": {12, 13, 15}, "QLinearMatMul": {21},
	"QuantizeLinear": {13, 19, 21, 23, 24, 25}, "RNN": {14, 22}, "RandomNormal": {22}, "RandomNormalLike": {22},
	"RandomUniform": {22}, "RandomUniformLike": {22}, "Reciprocal": {13}, "ReduceL1": {11, 13}, "ReduceL2": {11, 13},
	"ReduceLogSum": {11, 13}, "ReduceLogSumExp": {11, 13}, "ReduceMax": {11, 12, 13, 20}, "ReduceMean": {11, 13},
	"ReduceMin": {11, 12, 13, 20}, "ReduceProd": {11, 13}, "ReduceSum": {11}, "ReduceSumSquare": {11, 13},
	"Relu": {13, 14}, "Reshape": {13, 14, 19, 21, 23, 24, 25}, "Resize": {18, 19}, "RoiAlign": {22}, "Round": {22},
	"Scan": {11, 16, 19, 21, 23, 24, 25}, "ScatterElements": {13, 16, 18}, "ScatterND": {13, 16, 18}, "Selu": {22},
	"Shape": {13, 15, 19, 21, 23, 24, 25}, "Sigmoid": {13}, "Sign": {13}, "Sin": {22}, "Sinh": {22},
	"Size": {13, 19, 21, 23, 24, 25}, "Slice": {11, 13}, "Softmax": {11}, "SoftmaxCrossEntropyLoss": {13},
	"Softplus": {22}, "Softsign": {22}, "SpaceToDepth": {13}, "Split": {11}, "SplitToSequence": {24}, "Sqrt": {13},
	"Squeeze": {11, 21, 23, 24, 25}, "Sub": {13, 14}, "Sum": {8, 13}, "Tan": {22}, "Tanh": {13}, "ThresholdedRelu": {22},
	"Tile": {13}, "TopK": {11, 24}, "Transpose": {13, 21, 23, 24, 25}, "Unsqueeze": {11, 21, 23, 24, 25}, "Where": {16},
}

// adapters change a node so that it means in the new definition what it meant
// in the one before.
var adapters = map[change]func(*lifter, *graph.Node) error{
	{"BatchNormalization", 9}:  batchNormalization9,
	{"BatchNormalization", 14}: inferenceOutputs,
	{"Clip", 11}:               clip11,
	{"DFT", 20}:                dft20,
	{"Dropout", 10}:            dropoutMask,
	{"Dropout", 12}:            dropout12,
	{"Erf", 13}:                erf13,
	{"GridSample", 20}:         gridSample20,
	{"GroupNormalization", 21}: groupNormalization21,
	{"Hardmax", 13}:            softmax13,
	{"LogSoftmax", 13}:         softmax13,
	{"Pad", 11}:                pad11,
	{"ReduceL1", 18}:           axesToInput,
	{"ReduceL2", 18}:           axesToInput,
	{"ReduceLogSum", 18}:       axesToInput,
	{"ReduceLogSumExp", 18}:    axesToInput,
	{"ReduceMax", 18}:          axesToInput,
	{"ReduceMean", 18}:         axesToInput,
	{"ReduceMin", 18}:          axesToInput,
	{"ReduceProd", 18}:         axesToInput,
	{"ReduceSum", 13}:          axesToInput,
	{"ReduceSumSquare", 18}:    axesToInput,
	{"Resize", 11}:             resize11,
	{"Resize", 13}:             resize13,
	{"RoiAlign", 16}:           roiAlign16,
	{"Scan", 9}:                scan9,
	{"Scatter", 11}:            scatter11,
	{"Slice", 10}:              slice10,
	{"Softmax", 13}:            softmax13,
	{"Split", 13}:              split13,
	{"Split", 18}:              split18,
	{"Squeeze", 13}:            axesToInput,
	{"TopK", 10}:               topK10,
	{"Unsqueeze", 13}:          unsqueeze13,
	{"Upsample", 9}:            upsample9,
	{"Upsample", 10}:           upsample10,
}

// errReferred says why an adapter cannot go on in the body of a function.
var errReferred = errors.New("an attribute refers to one of the function's")

// referred reports whether one of the named attributes is a reference, whose
// value is known only to the caller of the function.
func referred(n *graph.Node, names ...string) error {
	for _, name := range names {
		if a := n.Attr(name); a != nil && a.RefName != "" {
			return fmt.Errorf("%w: %s", errReferred, name)
		}
	}
	return nil
}

// listToInput moves an integer list attribute into input i; where the node has
// none, or keepEmpty is not set and it is empty, the input is omitted.
func listToInput(n *graph.Node, attr string, i int, keepEmpty bool) error {
	a := n.Attr(attr)
	if a == nil {
		return nil
	}
	if a.RefName != "" {
		if n.Graph().Opset(graph.OnnxDomain)+1 < 12 {
			return referred(n, attr)
		}
		v := insert(n, "Constant", n.Label()+"_"+attr, nil, graph.Type{}, &graph.Attr{Name: "value_ints", Kind: graph.AttrInts, RefName: a.RefName})
		n.RemoveAttr(attr)
		n.SetInput(i, v)
		return nil
	}
	list := slices.Clone(a.Ints)
	n.RemoveAttr(attr)
	if len(list) > 0 || keepEmpty {
		n.SetInput(i, constant(n, n.Label()+"_"+attr, tensor.Of(append([]int64{}, list...))))
	}
	return nil
}

// scalarOf returns a scalar of a floating-point element type, or an error.
func scalarOf(t tensor.DType, x float32) (*tensor.Tensor, error) {
	if t == tensor.Undefined {
		return nil, errors.New("the element type of its input is not known")
	}
	s := tensor.New(t)
	if err := tensor.Convert(s, tensor.Scalar(x), 0, 1, tensor.ConvertOptions{}); err != nil {
		return nil, err
	}
	return s, nil
}

// elemOf returns the element type of input 0.
func elemOf(n *graph.Node) tensor.DType {
	if x := n.Input(0); x != nil && x.Type.IsTensor() {
		return x.Type.Elem
	}
	return tensor.Undefined
}

func axesToInput(_ *lifter, n *graph.Node) error { return listToInput(n, "axes", 1, false) }

func unsqueeze13(_ *lifter, n *graph.Node) error { return listToInput(n, "axes", 1, true) }

// batchNormalization9 flattens the input of a node with statistics for every
// element, as the text of version 9 says.
func batchNormalization9(_ *lifter, n *graph.Node) error {
	if err := referred(n, "spatial"); err != nil {
		return err
	}
	spatial := n.Int("spatial", 1) != 0
	n.RemoveAttr("spatial")
	x := n.Input(0)
	if spatial || len(x.Type.Shape) == 2 {
		return nil
	}
	if anyUsed(n, 1) {
		return errors.New("its training outputs are used")
	}
	shape := insert(n, "Shape", x.Name()+"_shape", []*graph.Value{x}, graph.Type{})
	n.SetInput(0, insert(n, "Flatten", x.Name()+"_flat", []*graph.Value{x}, graph.Type{}, graph.Int("axis", 1)))
	for i := 1; i < 5; i++ {
		v := n.Input(i)
		if v == nil {
			return fmt.Errorf("input %d is missing", i)
		}
		if t := constOf(v); t != nil {
			flat, err := t.Reshape([]int{t.Len()})
			if err != nil {
				return err
			}
			n.SetInput(i, constant(n, v.Name()+"_flat", flat))
			continue
		}
		to := constant(n, v.Name()+"_flat_shape", tensor.Of([]int64{-1}))
		n.SetInput(i, insert(n, "Reshape", v.Name()+"_flat", []*graph.Value{v, to}, graph.Type{}))
	}
	y, flat := divert(n, 0, n.Output(0).Name()+"_flat")
	emit(n, "Reshape", []*graph.Value{flat, shape}, y)
	return nil
}

// inferenceOutputs drops outputs that only training fills.
func inferenceOutputs(_ *lifter, n *graph.Node) error {
	if anyUsed(n, 1) {
		return errors.New("its training outputs are used")
	}
	n.TruncateOutputs(1)
	return nil
}

// clip11 writes bounds in the element type of the input. The largest finite
// float32 is the default bound in the old definition for every element type.
func clip11(_ *lifter, n *graph.Node) error {
	if err := referred(n, "min", "max"); err != nil {
		return err
	}
	t := elemOf(n)
	bounds := []struct {
		attr string
		none float32
	}{{"min", -math.MaxFloat32}, {"max", math.MaxFloat32}}
	for i, b := range bounds {
		x := n.Float(b.attr, b.none)
		n.RemoveAttr(b.attr)
		if x == b.none && t != tensor.Float64 {
			continue
		}
		s, err := scalarOf(t, x)
		if err != nil {
			return err
		}
		n.SetInput(1+i, constant(n, n.Label()+"_"+b.attr, s))
	}
	return nil
}

func dft20(_ *lifter, n *graph.Node) error {
	if a := n.Attr("axis"); a != nil && a.RefName != "" {
		v := insert(n, "Constant", n.Label()+"_axis", nil, graph.Type{}, &graph.Attr{Name: "value_int", Kind: graph.AttrInt, RefName: a.RefName})
		n.SetInput(2, v)
	} else {
		n.SetInput(2, constant(n, n.Label()+"_axis", tensor.Scalar(n.Int("axis", 1))))
	}
	n.RemoveAttr("axis")
	return nil
}

// dropoutMask drops the mask, which the old definitions leave undefined
// outside of training.
func dropoutMask(_ *lifter, n *graph.Node) error {
	if anyUsed(n, 1) {
		return errors.New("its mask is used, which is not defined outside of training")
	}
	n.TruncateOutputs(1)
	return nil
}

// dropout12 drops the ratio, which says nothing outside of training.
func dropout12(l *lifter, n *graph.Node) error {
	n.RemoveAttr("ratio")
	return dropoutMask(l, n)
}

func erf13(_ *lifter, n *graph.Node) error {
	if t := elemOf(n); t != tensor.Undefined && !t.IsFloat() {
		return fmt.Errorf("element type %v is not allowed any more", t)
	}
	return nil
}

func gridSample20(_ *lifter, n *graph.Node) error {
	if err := referred(n, "mode"); err != nil {
		return err
	}
	switch n.String("mode", "bilinear") {
	case "bilinear":
		n.SetAttr(graph.String("mode", "linear"))
	case "bicubic":
		n.SetAttr(graph.String("mode", "cubic"))
	}
	return nil
}

// groupNormalization21 repeats scale and bias, one a group, for each channel.
func groupNormalization21(_ *lifter, n *graph.Node) error {
	x := n.Input(0)
	groups := n.Int("num_groups", 0)
	if err := referred(n, "num_groups"); err != nil {
		return err
	}
	if groups < 1 || x == nil {
		return errors.New("no input or no groups")
	}
	channels := int64(0)
	if s := x.Type.Shape; len(s) > 1 && s[1].Known {
		channels = s[1].Size
		if channels < groups || channels%groups != 0 {
			return fmt.Errorf("%d channels in %d groups", channels, groups)
		}
	}
	per := channels / groups
	var wide *graph.Value // [groups, channels/groups] where the number is known at run time only
	for i := 1; i <= 2; i++ {
		v := n.Input(i)
		if v == nil {
			return fmt.Errorf("input %d is missing", i)
		}
		if t := constOf(v); t != nil && channels > 0 && t.Rank() == 1 && int64(t.Len()) == groups && t.DType().Bits()%8 == 0 && t.DType().Bits() > 0 {
			size := t.DType().Bits() / 8
			out := tensor.New(t.DType(), int(channels))
			for c := range int(channels) {
				g := c / int(per)
				copy(out.Bytes()[c*size:(c+1)*size], t.Bytes()[g*size:(g+1)*size])
			}
			n.SetInput(i, constant(n, v.Name(), out))
			continue
		}
		if wide == nil {
			if channels > 0 {
				wide = constant(n, n.Label()+"_groups", tensor.Of([]int64{groups, per}))
			} else {
				c := insert(n, "Shape", x.Name()+"_channels", []*graph.Value{x}, graph.Type{}, graph.Int("start", 1), graph.Int("end", 2))
				g := constant(n, n.Label()+"_num_groups", tensor.Of([]int64{groups}))
				q := insert(n, "Div", n.Label()+"_per_group", []*graph.Value{c, g}, graph.Type{})
				wide = insert(n, "Concat", n.Label()+"_groups", []*graph.Value{g, q}, graph.Type{}, graph.Int("axis", 0))
			}
		}
		column := insert(n, "Reshape", v.Name()+"_column", []*graph.Value{v, constant(n, v.Name()+"_column_shape", tensor.Of([]int64{-1, 1}))}, graph.Type{})
		table := insert(n, "Expand", v.Name()+"_table", []*graph.Value{column, wide}, graph.Type{})
		n.SetInput(i, insert(n, "Reshape", v.Name()+"_channels", []*graph.Value{table, constant(n, v.Name()+"_channels_shape", tensor.Of([]int64{-1}))}, graph.Type{}))
	}
	return nil
}

func pad11(_ *lifter, n *graph.Node) error {
	if err := referred(n, "value", "mode"); err != nil {
		return err
	}
	value := n.Float("value", 0)
	n.RemoveAttr("value")
	if err := listToInput(n, "pads", 1, true); err != nil {
		return err
	}
	if value == 0 || n.String("mode", "constant") != "constant" {
		return nil
	}
	s, err := scalarOf(elemOf(n), value)
	if err != nil {
		return err
	}
	n.SetInput(2, constant(n, n.Label()+"_value", s))
	return nil
}

// resize11 states what the old definition left to one reading: coordinates are
// x_resized / scale, and the nearest element is the lower one where an axis
// grows and the upper one where it shrinks (the reading of ONNX Runtime, and
// of the ONNX backend cases of version 10).
func resize11(l *lifter, n *graph.Node) error {
	if err := referred(n, "mode"); err != nil {
		return err
	}
	scales := n.Input(1)
	if scales == nil {
		return errors.New("input scales is missing")
	}
	nearest := n.String("mode", "nearest") == "nearest"
	n.SetAttr(graph.String("coordinate_transformation_mode", "asymmetric"))
	none := constant(n, n.Label()+"_roi", tensor.New(tensor.Float32, 0))
	n.SetInput(1, none)
	n.SetInput(2, scales)
	if !nearest {
		return nil
	}
	n.SetAttr(graph.String("nearest_mode", "floor"))
	if l.enlarging[n.ID] {
		return nil
	}
	t := constOf(scales)
	if t == nil || t.DType() != tensor.Float32 {
		return errors.New("nearest neighbours depend on scales that are not constant")
	}
	up, down := slices.Clone(tensor.As[float32](t)), slices.Clone(tensor.As[float32](t))
	grows, shrinks := false, false
	for i := range up {
		if up[i] < 1 {
			up[i], shrinks = 1, true
		} else {
			down[i], grows = 1, grows || up[i] > 1
		}
	}
	if !shrinks {
		return nil
	}
	if grows { // axes are independent of each other
		mid := insert(n, "Resize", n.Output(0).Name()+"_grown", []*graph.Value{n.Input(0), none, constant(n, scales.Name()+"_up", tensor.Of(up))}, graph.Type{},
			graph.String("mode", "nearest"), graph.String("coordinate_transformation_mode", "asymmetric"), graph.String("nearest_mode", "floor"))
		n.SetInput(0, mid)
		n.SetInput(2, constant(n, scales.Name()+"_down", tensor.Of(down)))
	}
	n.SetAttr(graph.String("nearest_mode", "ceil"))
	return nil
}

// resize13 omits inputs that are empty and rewrites the coordinates that the
// new definition dropped: there x_original was (x_resized + 0.5) / scale, half
// an element more than under half_pixel, so that rounding it down is rounding
// the latter half up.
func resize13(_ *lifter, n *graph.Node) error {
	for i := 1; i < n.NumInputs(); i++ {
		if t := constOf(n.Input(i)); t != nil && t.Len() == 0 {
			n.SetInput(i, nil)
		}
	}
	last := n.NumInputs()
	for last > 1 && n.Input(last-1) == nil {
		last--
	}
	n.TruncateInputs(last)
	if n.String("coordinate_transformation_mode", "half_pixel") != "tf_half_pixel_for_nn" {
		return nil
	}
	if n.String("mode", "nearest") != "nearest" || n.String("nearest_mode", "round_prefer_floor") != "floor" {
		return errors.New("coordinate_transformation_mode tf_half_pixel_for_nn has a successor for nearest_mode floor only")
	}
	n.SetAttr(graph.String("coordinate_transformation_mode", "half_pixel"))
	n.SetAttr(graph.String("nearest_mode", "round_prefer_ceil"))
	return nil
}

func roiAlign16(_ *lifter, n *graph.Node) error {
	n.SetAttr(graph.String("coordinate_transformation_mode", "output_half_pixel"))
	return nil
}

// scan9 takes the batch, axis 0 of everything in the old definition, as the
// sequence of an outer Scan without state, whose outputs stack up along
// axis 0 again.
func scan9(l *lifter, n *graph.Node) error {
	if n.Input(0) != nil {
		return errors.New("sequence_lens has no successor")
	}
	body := n.Attr("body")
	if body == nil || body.G == nil {
		return errors.New("body is missing")
	}
	scans := n.Int("num_scan_inputs", 0)
	states := int64(n.NumInputs()) - 1 - scans
	if scans < 1 || states < 0 {
		return fmt.Errorf("%d scan inputs among %d inputs", scans, n.NumInputs())
	}
	g := n.Graph()
	m := g.Model()
	inner := m.NewGraph()
	inner.Name = m.UniqueName(n.Label() + "_sequence")
	var ins, outs []*graph.Value
	for _, v := range n.Inputs()[1:] {
		if v == nil {
			return errors.New("an input is missing")
		}
		t := graph.Type{}
		if v.Type.IsTensor() {
			t = graph.TensorType(v.Type.Elem, nil)
			if len(v.Type.Shape) > 0 {
				t.Shape = slices.Clone(v.Type.Shape[1:])
			}
		}
		w := inner.NewValue(m.UniqueName(v.Name()+"_sample"), t)
		inner.AddInput(w)
		ins = append(ins, w)
	}
	for i, v := range n.Outputs() {
		name := fmt.Sprintf("%s_output_%d", n.Label(), i)
		t := graph.Type{}
		if v != nil {
			name = v.Name()
			if v.Type.IsTensor() && len(v.Type.Shape) > 0 {
				t = graph.TensorType(v.Type.Elem, slices.Clone(v.Type.Shape[1:]))
			}
		}
		outs = append(outs, inner.NewValue(m.UniqueName(name+"_sample"), t))
	}
	for len(outs) < len(body.G.Outputs()) {
		outs = append(outs, inner.NewValue(m.UniqueName(fmt.Sprintf("%s_output_%d_sample", n.Label(), len(outs))), graph.Type{}))
	}
	attrs := []*graph.Attr{body, graph.Int("num_scan_inputs", scans)}
	if a := n.Attr("directions"); a != nil {
		attrs = append(attrs, graph.Ints("scan_input_directions", a.Ints...))
	}
	n.Attrs = slices.DeleteFunc(n.Attrs, func(a *graph.Attr) bool { return a.Name == "body" || a.Name == "directions" })
	inner.Append(inner.NewNode(n.Op, m.UniqueNodeName(n.Label()+"_sequence"), ins, outs, attrs...))
	for i, v := range outs {
		inner.AddOutput(v)
		if v.Type.Elem == tensor.Undefined && i < len(body.G.Outputs()) {
			v.Type = graph.TensorType(body.G.Outputs()[i].Type.Elem, nil)
		}
	}
	all := slices.Clone(n.Inputs()[1:])
	n.TruncateInputs(0)
	for _, v := range all {
		n.AddInput(v)
	}
	n.SetAttr(graph.Int("num_scan_inputs", int64(len(all))))
	n.SetAttr(&graph.Attr{Name: "body", Kind: graph.AttrGraph, G: inner})
	l.added = append(l.added, inner)
	return nil
}

func scatter11(_ *lifter, n *graph.Node) error {
	n.Op.Type = "ScatterElements"
	return nil
}

func slice10(_ *lifter, n *graph.Node) error {
	for i, a := range []string{"starts", "ends", "axes"} {
		if err := listToInput(n, a, i+1, i < 2); err != nil {
			return err
		}
	}
	return nil
}

// softmax13 keeps the old meaning, one softmax over all axes from axis on.
// That is the new one along axis where the axes behind it have size 1; else
// the axes are flattened around the node.
func softmax13(_ *lifter, n *graph.Node) error {
	if err := referred(n, "axis"); err != nil {
		return err
	}
	axis := n.Int("axis", 1)
	x := n.Input(0)
	if x == nil {
		return errors.New("its input is missing")
	}
	rank := int64(len(x.Type.Shape))
	if axis == -1 {
		n.SetAttr(graph.Int("axis", -1))
		return nil
	}
	if x.Type.Shape != nil {
		if axis < 0 {
			axis += rank
		}
		if axis < 0 || axis > rank {
			return fmt.Errorf("axis %d of %v", n.Int("axis", 1), x.Type.Shape)
		}
		if axis < rank && !slices.ContainsFunc(x.Type.Shape[axis+1:], func(d graph.Dim) bool { return !d.Known || d.Size != 1 }) {
			if axis == rank-1 {
				axis = -1
			}
			n.SetAttr(graph.Int("axis", axis))
			return nil
		}
	}
	shape := insert(n, "Shape", x.Name()+"_shape", []*graph.Value{x}, graph.Type{})
	n.SetInput(0, insert(n, "Flatten", x.Name()+"_flat", []*graph.Value{x}, graph.Type{}, graph.Int("axis", axis)))
	n.SetAttr(graph.Int("axis", -1))
	y, flat := divert(n, 0, n.Output(0).Name()+"_flat")
	emit(n, "Reshape", []*graph.Value{flat, shape}, y)
	return nil
}

func split13(_ *lifter, n *graph.Node) error { return listToInput(n, "split", 1, false) }

// split18 states the number of parts, which the number of outputs said alone.
func split18(_ *lifter, n *graph.Node) error {
	if n.Input(1) == nil {
		n.SetAttr(graph.Int("num_outputs", int64(len(n.Outputs()))))
	}
	return nil
}

func topK10(_ *lifter, n *graph.Node) error {
	a := n.Attr("k")
	if a == nil || a.RefName != "" {
		return errors.New("attribute k has no value")
	}
	n.RemoveAttr("k")
	n.SetInput(1, constant(n, n.Label()+"_k", tensor.Of([]int64{a.I})))
	return nil
}

func upsample9(_ *lifter, n *graph.Node) error {
	a := n.Attr("scales")
	if a == nil || a.RefName != "" {
		return errors.New("attribute scales has no value")
	}
	n.RemoveAttr("scales")
	n.SetInput(1, constant(n, n.Label()+"_scales", tensor.Of(append([]float32{}, a.Floats...))))
	return nil
}

func upsample10(l *lifter, n *graph.Node) error {
	n.Op.Type = "Resize"
	l.enlarging[n.ID] = true
	return nil
}
