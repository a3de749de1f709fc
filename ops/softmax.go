package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// softmaxSpecs lists Softmax and its relatives, and the losses over classes.
func softmaxSpecs() []Spec {
	attrs := []AttrSpec{{Name: "axis", Kind: graph.AttrInt}}
	unit := func(*graph.Node) (float32, float32) { return 0, 1 }
	in, out := []Port{{Name: "input", Role: Activation}}, []Port{{Name: "output", Role: Activation}}
	loss := []AttrSpec{{Name: "reduction", Kind: graph.AttrString}, {Name: "ignore_index", Kind: graph.AttrInt}}
	return []Spec{
		{Type: "Softmax", Since: 1, Flow: Fixed, Range: unit, Pure: true, In: in, Out: out, Attrs: attrs,
			Infer: inferSoftmax, Compile: compileSoftmax(softmaxKernel)},
		{Type: "LogSoftmax", Since: 1, Flow: Compute, Pure: true, In: in, Out: out, Attrs: attrs,
			Infer: inferSoftmax, Compile: compileSoftmax(logSoftmaxKernel)},
		{Type: "Hardmax", Since: 1, Flow: Fixed, Range: unit, Pure: true, In: in, Out: out, Attrs: attrs,
			Infer: inferSoftmax, Compile: compileSoftmax(hardmaxKernel)},
		{Type: "NegativeLogLikelihoodLoss", Since: 12, Flow: Compute, Pure: true,
			In:  []Port{{Name: "input", Role: Activation}, {Name: "target", Role: Index}, {Name: "weight", Optional: true}},
			Out: []Port{{Name: "loss", Role: Activation}}, Attrs: loss,
			Infer: inferLoss, Compile: compileLoss(false)},
		{Type: "SoftmaxCrossEntropyLoss", Since: 12, Flow: Compute, Pure: true,
			In:  []Port{{Name: "scores", Role: Activation}, {Name: "labels", Role: Index}, {Name: "weights", Optional: true}},
			Out: []Port{{Name: "output", Role: Activation}, {Name: "log_prob", Role: Activation, Optional: true}}, Attrs: loss,
			Infer: inferLoss, Compile: compileLoss(true)},
	}
}

// softmaxAxis returns the attribute axis. Up to version 12 the default is 1,
// and the axis begins the columns of a matrix that the input is flattened to.
func softmaxAxis(n *graph.Node, version int) int64 {
	if version < 13 {
		return n.Int("axis", 1)
	}
	return n.Int("axis", -1)
}

// softmaxLines returns the lines of a tensor of the given shape that are
// normalized one by one.
func softmaxLines(shape []int, at int64, version int) (lines, error) {
	if version >= 13 {
		axis, err := NormalAxis(at, len(shape))
		if err != nil {
			return lines{}, err
		}
		return newLines(shape, axis), nil
	}
	rank := int64(len(shape))
	if at < -rank || at > rank {
		return lines{}, fmt.Errorf("axis %d is not in [-%d, %d]", at, rank, rank)
	}
	if at < 0 {
		at += rank
	}
	l := lines{1, 1, 1}
	for _, d := range shape[:at] {
		l.outer *= d
	}
	for _, d := range shape[at:] {
		l.n *= d
	}
	return l, nil
}

func inferSoftmax(c *Inference) error {
	shape := c.Shape(0)
	if at := softmaxAxis(c.Node, c.Opset); len(shape) > 0 && (c.Opset >= 13 || at != int64(len(shape))) {
		if _, err := NormalAxis(at, len(shape)); err != nil {
			return err
		}
	}
	c.Tensor(0, c.Elem(0), bare(shape))
	return nil
}

// lineFunction computes lines; float32 has rows of its own where inner is 1.
type lineFunction struct {
	rows32 func(dst, src []float32, n int)                 // neighbouring lines of n elements
	cols32 func(dst, src []float32, n, inner, from, w int) // w neighbouring lines from column from on
	line   func(line []float64)
}

var (
	softmaxKernel    = lineFunction{rows32: kernels.SoftmaxRows, cols32: softmaxColumns, line: softmaxLine}
	logSoftmaxKernel = lineFunction{rows32: logSoftmaxRows, cols32: logSoftmaxColumns, line: logSoftmaxLine}
	hardmaxKernel    = lineFunction{line: hardmaxLine}
)

func logSoftmaxRows(dst, src []float32, n int) {
	for i := 0; i < len(src); i += n {
		kernels.LogSoftmax(dst[i:i+n], src[i:i+n])
	}
}

func compileSoftmax(f lineFunction) func(*Site) (Kernel, error) {
	return func(s *Site) (Kernel, error) {
		at, version := softmaxAxis(s.Node, s.Opset), s.Opset
		return func(c *Call) error {
			x, err := c.tensor(0)
			if err != nil {
				return err
			}
			l, err := softmaxLines(x.Shape(), at, version)
			if err != nil {
				return err
			}
			switch carrierOf(x.DType()) {
			case carryF32:
				return f.run32(c, x, l)
			case carryF64:
				return f.run64(c, x, l)
			}
			return fmt.Errorf("not defined for %v", x.DType())
		}, nil
	}
}

func (f *lineFunction) run32(c *Call, x *tensor.Tensor, l lines) error {
	if f.rows32 == nil {
		return f.run64(c, x, l)
	}
	src, err := load[float32](c, x)
	if err != nil {
		return err
	}
	out, err := newOutput[float32](c, 0, 0, x.DType(), x.Shape())
	if err != nil || len(src) == 0 {
		return err
	}
	if err := f.lines32(c, out.data, src, l); err != nil {
		return err
	}
	return out.store(c)
}

func (f *lineFunction) lines32(c *Call, dst, src []float32, l lines) error {
	if l.inner == 1 {
		return c.For(l.outer, max(1, costlyChunk/l.n), func(lo, hi int) {
			f.rows32(dst[lo*l.n:hi*l.n], src[lo*l.n:hi*l.n], l.n)
		})
	}
	blocks := (l.inner + columnBlock - 1) / columnBlock
	return c.For(l.outer*blocks, max(1, costlyChunk/(l.n*min(l.inner, columnBlock))), func(lo, hi int) {
		for u := lo; u < hi; u++ {
			at, from := u/blocks*l.n*l.inner, u%blocks*columnBlock
			f.cols32(dst[at:at+l.n*l.inner], src[at:at+l.n*l.inner], l.n, l.inner, from, min(l.inner-from, columnBlock))
		}
	})
}

// run64 computes each line in float64.
func (f *lineFunction) run64(c *Call, x *tensor.Tensor, l lines) error {
	src, err := load[float64](c, x)
	if err != nil {
		return err
	}
	out, err := newOutput[float64](c, 0, 0, x.DType(), x.Shape())
	if err != nil || len(src) == 0 {
		return err
	}
	if err := c.For(l.outer*l.inner, max(1, costlyChunk/l.n), func(lo, hi int) {
		line := make([]float64, l.n)
		for i := lo; i < hi; i++ {
			at := l.begin(i)
			for k := range line {
				line[k] = src[at+k*l.inner]
			}
			f.line(line)
			for k, v := range line {
				out.data[at+k*l.inner] = v
			}
		}
	}); err != nil {
		return err
	}
	return out.store(c)
}

// softmaxColumns computes Softmax of w neighbouring columns of the n×inner
// matrix src.
func softmaxColumns(dst, src []float32, n, inner, from, w int) {
	shift, sum := make([]float32, w), newColumnSum(w)
	columnMax(shift, src, n, inner, from)
	for k := range n {
		at := k*inner + from
		d := dst[at : at+w]
		kernels.Binary(kernels.Sub, d, src[at:at+w], shift)
		kernels.Unary(kernels.Exp, d, d)
		sum.add(k, d)
	}
	inverse := sum.total()
	kernels.Unary(kernels.Reciprocal, inverse, inverse)
	for k := range n {
		d := dst[k*inner+from:][:w]
		kernels.Binary(kernels.Mul, d, d, inverse)
	}
}

// columnSum adds rows of w columns in the order of kernels.Softmax.
type columnSum struct {
	w    int
	sums []float32
}

func newColumnSum(w int) columnSum { return columnSum{w, make([]float32, 16*w)} }

func (s columnSum) lane(j int) []float32 { return s.sums[j*s.w:][:s.w] }

// add adds row k.
func (s columnSum) add(k int, row []float32) {
	kernels.Binary(kernels.Add, s.lane(k%16), s.lane(k%16), row)
}

func (s columnSum) total() []float32 {
	for _, step := range []struct{ by, every int }{{8, 1}, {1, 2}, {2, 4}, {4, 8}} {
		for j := 0; j < 8; j += step.every {
			kernels.Binary(kernels.Add, s.lane(j), s.lane(j), s.lane(j+step.by))
		}
	}
	return s.lane(0)
}

func logSoftmaxColumns(dst, src []float32, n, inner, from, w int) {
	buf, sum := make([]float32, 2*w), newColumnSum(w)
	shift, e := buf[:w], buf[w:]
	columnMax(shift, src, n, inner, from)
	for k := range n {
		at := k*inner + from
		d := dst[at : at+w]
		kernels.Binary(kernels.Sub, d, src[at:at+w], shift)
		kernels.Unary(kernels.Exp, e, d)
		sum.add(k, e)
	}
	log := sum.total()
	kernels.Unary(kernels.Log, log, log)
	for k := range n {
		d := dst[k*inner+from:][:w]
		kernels.Binary(kernels.Sub, d, d, log)
	}
}

func columnMax(high, src []float32, n, inner, from int) {
	w := len(high)
	copy(high, src[from:from+w])
	for k := 1; k < n; k++ {
		kernels.Binary(kernels.Max, high, high, src[k*inner+from:][:w])
	}
}

func softmaxLine(x []float64) {
	high, sum := math.Inf(-1), 0.0
	for _, v := range x {
		high = max(high, v)
	}
	for i, v := range x {
		x[i] = math.Exp(v - high)
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}

func logSoftmaxLine(x []float64) {
	high, sum := math.Inf(-1), 0.0
	for _, v := range x {
		high = max(high, v)
	}
	for _, v := range x {
		sum += math.Exp(v - high)
	}
	sum = math.Log(sum)
	for i, v := range x {
		x[i] = v - high - sum
	}
}

// hardmaxLine sets the first of the greatest elements to 1 and all others to 0.
func hardmaxLine(x []float64) {
	best := 0
	for i, v := range x {
		if v > x[best] {
			best = i
		}
	}
	clear(x)
	x[best] = 1
}

func inferLoss(c *Inference) error {
	scores, labels := bare(c.Shape(0)), bare(c.Shape(1))
	out := labels
	if c.Node.String("reduction", "mean") != "none" {
		out = graph.Shape{}
	}
	c.Tensor(0, c.Elem(0), out)
	c.Tensor(1, c.Elem(0), scores)
	if scores != nil && labels != nil && len(labels) != len(scores)-1 {
		return c.Errorf("labels %v do not fit scores %v", labels, scores)
	}
	return nil
}

// compileLoss returns the compiler of NegativeLogLikelihoodLoss, or of
// SoftmaxCrossEntropyLoss, which takes the logarithm of Softmax first.
func compileLoss(softmax bool) func(*Site) (Kernel, error) {
	return func(s *Site) (Kernel, error) {
		l := loss{softmax: softmax, reduction: s.Node.String("reduction", "mean")}
		switch l.reduction {
		case "none", "sum", "mean":
		default:
			return nil, s.Errorf("reduction %q is unknown", l.reduction)
		}
		if a := s.Node.Attr("ignore_index"); a != nil {
			l.ignores, l.ignored = true, s.Node.Int("ignore_index", 0)
		}
		return l.run, nil
	}
}

type loss struct {
	softmax   bool
	reduction string
	ignores   bool
	ignored   int64
}

func (s *loss) run(c *Call) error {
	x, err := c.tensor(0)
	if err != nil {
		return err
	}
	target, err := c.tensor(1)
	if err != nil {
		return err
	}
	if k := carrierOf(x.DType()); x.Rank() < 2 || k != carryF32 && k != carryF64 {
		return fmt.Errorf("not defined for %v", x)
	}
	labels, err := intsOf(target)
	if err != nil {
		return err
	}
	want := append([]int{x.Shape()[0]}, x.Shape()[2:]...)
	if !equalInts(want, target.Shape()) {
		return fmt.Errorf("labels %v do not fit scores %v", target, x)
	}
	l := newLines(x.Shape(), 1)
	var weights []float64
	if w := c.In(2); w != nil {
		if weights, err = tensor.Float64s(w); err != nil {
			return err
		}
		if len(weights) != l.n {
			return fmt.Errorf("%d weights for %d classes", len(weights), l.n)
		}
	}
	logs, err := load[float64](c, x)
	if err != nil {
		return err
	}
	if s.softmax {
		if logs, err = s.logSoftmax(c, x, logs, l); err != nil {
			return err
		}
	}
	single := make([]float64, len(labels))
	total, norm := 0.0, 0.0
	for i, label := range labels {
		if s.ignores && label == s.ignored {
			continue
		}
		if label < 0 || label >= int64(l.n) {
			return fmt.Errorf("label %d of %d classes", label, l.n)
		}
		weight := 1.0
		if weights != nil {
			weight = weights[label]
		}
		single[i] = -weight * logs[l.begin(i)+int(label)*l.inner]
		total += single[i]
		norm += weight
	}
	if s.reduction == "none" {
		out, err := c.Out(0, x.DType(), target.Shape()...)
		if err == nil {
			tensor.Write(out, 0, single)
		}
		return err
	}
	if s.reduction == "mean" {
		total /= norm
	}
	out, err := c.Out(0, x.DType())
	if err == nil {
		tensor.Write(out, 0, []float64{total})
	}
	return err
}

// logSoftmax returns the logarithms of Softmax over the classes and makes
// them output 1 where that is wanted.
func (s *loss) logSoftmax(c *Call, x *tensor.Tensor, scores []float64, l lines) ([]float64, error) {
	logs, err := scratch[float64](c, len(scores))
	if err != nil {
		return nil, err
	}
	err = c.For(l.outer*l.inner, max(1, costlyChunk/max(l.n, 1)), func(lo, hi int) {
		line := make([]float64, l.n)
		for i := lo; i < hi; i++ {
			at := l.begin(i)
			for k := range line {
				line[k] = scores[at+k*l.inner]
			}
			logSoftmaxLine(line)
			for k, v := range line {
				logs[at+k*l.inner] = v
			}
		}
	})
	if err != nil || len(c.Wanted) < 2 || !c.Wanted[1] {
		return logs, err
	}
	out, err := c.Out(1, x.DType(), x.Shape()...)
	if err == nil {
		tensor.Write(out, 0, logs)
	}
	return logs, err
}
