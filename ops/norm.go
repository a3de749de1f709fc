package ops

import (
	"errors"
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// The gain of a normalization is a vector without a channel axis of its own:
// as a weight it has one scale. Axis 1 of a vector says so.
func gain(name string) Port { return Port{Name: name, Role: Weight, Axis: 1} }

func offset(name string) Port { return Port{Name: name, Role: Bias, Optional: true} }

// normSpecs lists the normalizations.
func normSpecs() []Spec {
	x, y := Port{Name: "X", Role: Activation}, Port{Name: "Y", Role: Activation}
	axes := []AttrSpec{{Name: "axis", Kind: graph.AttrInt}, {Name: "epsilon", Kind: graph.AttrFloat}, {Name: "stash_type", Kind: graph.AttrInt}}
	rms := func(domain string) Spec {
		return Spec{Domain: domain, Type: "SimplifiedLayerNormalization", Since: 1, Flow: Compute, Pure: true,
			In: []Port{x, gain("scale")}, Out: []Port{y, {Name: "inv_std_var", Optional: true}}, Attrs: axes,
			Infer: inferLayerNorm, Compile: compileLayerNorm(true)}
	}
	return []Spec{
		{Type: "BatchNormalization", Since: 7, Flow: Compute, Pure: true,
			In: []Port{x, {Name: "scale"}, {Name: "B"}, {Name: "input_mean"}, {Name: "input_var"}},
			Out: []Port{y, {Name: "running_mean", Optional: true}, {Name: "running_var", Optional: true},
				{Name: "saved_mean", Optional: true}, {Name: "saved_var", Optional: true}},
			Attrs: []AttrSpec{{Name: "epsilon", Kind: graph.AttrFloat}, {Name: "momentum", Kind: graph.AttrFloat},
				{Name: "training_mode", Kind: graph.AttrInt}, {Name: "spatial", Kind: graph.AttrInt}},
			Infer: inferBatchNorm, Compile: compileBatchNorm},
		{Type: "InstanceNormalization", Since: 6, Flow: Compute, Pure: true,
			In: []Port{x, gain("scale"), {Name: "B", Role: Bias}}, Out: []Port{y}, Attrs: floatAttrs("epsilon"),
			Infer: inferLikeFirst, Compile: compileGroupNorm},
		{Type: "GroupNormalization", Since: 18, Flow: Compute, Pure: true,
			In: []Port{x, gain("scale"), {Name: "bias", Role: Bias}}, Out: []Port{y},
			Attrs: []AttrSpec{{Name: "num_groups", Kind: graph.AttrInt, Required: true}, axes[1], axes[2]},
			Infer: inferLikeFirst, Compile: compileGroupNorm},
		{Type: "LayerNormalization", Since: 1, Flow: Compute, Pure: true,
			In:    []Port{x, gain("Scale"), offset("B")},
			Out:   []Port{y, {Name: "Mean", Optional: true}, {Name: "InvStdDev", Optional: true}},
			Attrs: axes, Infer: inferLayerNorm, Compile: compileLayerNorm(false)},
		{Type: "RMSNormalization", Since: 23, Flow: Compute, Pure: true,
			In: []Port{x, gain("scale")}, Out: []Port{y}, Attrs: axes, Infer: inferLayerNorm, Compile: compileLayerNorm(true)},
		rms(graph.OnnxDomain),
		rms(msDomain),
		skipNorm("SkipLayerNormalization", false),
		skipNorm("SkipSimplifiedLayerNormalization", true),
		{Type: "LRN", Since: 1, Flow: Compute, Pure: true,
			In: []Port{x}, Out: []Port{y},
			Attrs: append(floatAttrs("alpha", "beta", "bias"), AttrSpec{Name: "size", Kind: graph.AttrInt, Required: true}),
			Infer: inferLikeFirst, Compile: compileLRN},
		{Type: "LpNormalization", Since: 1, Flow: Fixed, Pure: true,
			Range: func(*graph.Node) (float32, float32) { return -1, 1 },
			In:    []Port{x}, Out: []Port{y},
			Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt}, {Name: "p", Kind: graph.AttrInt}},
			Infer: inferLikeFirst, Compile: compileLpNorm},
		{Type: "MeanVarianceNormalization", Since: 9, Flow: Compute, Pure: true,
			In: []Port{x}, Out: []Port{y}, Attrs: []AttrSpec{{Name: "axes", Kind: graph.AttrInts}},
			Infer: inferLikeFirst, Compile: compileMVN},
	}
}

func inferLikeFirst(c *Inference) error {
	c.Tensor(0, c.Elem(0), bare(c.Shape(0)))
	return nil
}

// floating is a type that normalizations are computed in: float32 for itself
// and half precision, float64 for itself.
type floating interface{ float32 | float64 }

// byFloat runs f32 or f64, as the type of x asks for.
func byFloat(x *tensor.Tensor, f32, f64 func() error) error {
	switch carrierOf(x.DType()) {
	case carryF32:
		return f32()
	case carryF64:
		return f64()
	}
	return fmt.Errorf("not defined for %v", x.DType())
}

// loops returns the loops of a for T.
func loops[T floating](a arith) *binary[T, T] {
	if f, ok := any(a.f32).(*binary[T, T]); ok {
		return f
	}
	return any(a.f64).(*binary[T, T])
}

// affine stores (x-shift)*factor + offset for the elements of src in dst.
func affine[T floating](dst, src []T, shift, factor, offset T) {
	loops[T](difference).right(dst, src, shift)
	loops[T](multiplication).right(dst, dst, factor)
	loops[T](addition).right(dst, dst, offset)
}

// moments returns the sums of x and of its squares.
func moments[T floating](x []T) (sum, squares float64) {
	if x32, ok := any(x).([]float32); ok {
		sum, squares, _ = kernels.Moments(x32)
		return sum, squares
	}
	for _, v := range x {
		sum += float64(v)
		squares += float64(v) * float64(v)
	}
	return sum, squares
}

// meanVariance returns the mean and population variance that n elements with
// these sums have.
func meanVariance(sum, squares float64, n int) (mean, variance float64) {
	mean = sum / float64(n)
	return mean, max(squares/float64(n)-mean*mean, 0)
}

// vectorOf returns the elements of input i, which must be n.
func vectorOf(c *Call, i, n int) ([]float64, error) {
	t, err := c.tensor(i)
	if err != nil {
		return nil, err
	}
	v, err := tensor.Float64s(t)
	if err == nil && len(v) != n {
		err = fmt.Errorf("input %d has %d elements, want %d", i, len(v), n)
	}
	return v, err
}

// training reports whether a BatchNormalization node normalizes by the
// statistics of its own input: before version 14, those that declare more
// outputs than the first do.
func training(n *graph.Node, version int) bool {
	if version >= 14 {
		return n.Int("training_mode", 0) != 0
	}
	for _, v := range n.Outputs()[1:] {
		if v != nil {
			return true
		}
	}
	return false
}

func inferBatchNorm(c *Inference) error {
	shape := bare(c.Shape(0))
	c.Tensor(0, c.Elem(0), shape)
	for i := 1; i < 5; i++ {
		c.Tensor(i, c.Elem(3), bare(c.Shape(3)))
	}
	if shape != nil && len(shape) < 1 {
		return errors.New("input X is a scalar")
	}
	return nil
}

type batchNorm struct {
	epsilon, momentum float64
	training          bool
	flat              bool // every feature of an example is a channel (spatial = 0 before version 9)
}

func compileBatchNorm(s *Site) (Kernel, error) {
	b := batchNorm{
		epsilon:  float64(s.Node.Float("epsilon", 1e-5)),
		momentum: float64(s.Node.Float("momentum", 0.9)),
		training: training(s.Node, s.Opset),
		flat:     s.Opset < 9 && s.Node.Int("spatial", 1) == 0,
	}
	return func(c *Call) error {
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		return byFloat(x, func() error { return batchNormRun[float32](c, x, &b) }, func() error { return batchNormRun[float64](c, x, &b) })
	}, nil
}

// channels returns x seen as batch × channel × inner; a vector has one
// channel.
func channels(shape []int) (n, ch, inner int, err error) {
	switch len(shape) {
	case 0:
		return 0, 0, 0, errors.New("input X is a scalar")
	case 1:
		return shape[0], 1, 1, nil
	}
	inner = 1
	for _, d := range shape[2:] {
		inner *= d
	}
	return shape[0], shape[1], inner, nil
}

func batchNormRun[T floating](c *Call, x *tensor.Tensor, b *batchNorm) error {
	n, ch, inner, err := channels(x.Shape())
	if err != nil {
		return err
	}
	if b.flat {
		ch, inner = ch*inner, 1
	}
	var v [4][]float64 // scale, offset, mean, variance
	for i := range v {
		if v[i], err = vectorOf(c, i+1, ch); err != nil {
			return err
		}
	}
	src, err := load[T](c, x)
	if err != nil {
		return err
	}
	mean, variance := v[2], v[3]
	if b.training {
		if mean, variance, err = statistics(c, b, v[2], v[3], n, ch, inner, src); err != nil {
			return err
		}
	}
	factor, shift := make([]T, ch), make([]T, ch)
	for i := range factor {
		inverse := 1 / T(math.Sqrt(float64(T(variance[i])+T(b.epsilon))))
		factor[i] = T(v[0][i]) * inverse
		shift[i] = T(v[1][i]) - T(T(mean[i])*factor[i])
	}
	out, err := newOutput[T](c, 0, 0, x.DType(), x.Shape())
	if err != nil {
		return err
	}
	times, plus := loops[T](multiplication), loops[T](addition)
	if inner == 1 {
		err = c.For(n, max(1, cheapChunk/max(ch, 1)), func(lo, hi int) {
			for i := lo * ch; i < hi*ch; i += ch {
				d := out.data[i : i+ch]
				times.vector(d, src[i:i+ch], factor)
				plus.vector(d, d, shift)
			}
		})
	} else {
		err = c.For(n*ch, max(1, cheapChunk/max(inner, 1)), func(lo, hi int) {
			for r := lo; r < hi; r++ {
				d, k := out.data[r*inner:(r+1)*inner], r%ch
				times.right(d, src[r*inner:(r+1)*inner], factor[k])
				plus.right(d, d, shift[k])
			}
		})
	}
	if err != nil {
		return err
	}
	return out.store(c)
}

// statistics returns the mean and variance of each channel of the batch, and
// stores the outputs that follow from them: running statistics, and before
// version 14 the batch's own.
func statistics[T floating](c *Call, b *batchNorm, runMean, runVar []float64, n, ch, inner int, src []T) (mean, variance []float64, err error) {
	mean, variance = make([]float64, ch), make([]float64, ch)
	err = c.For(ch, max(1, reduceWork/max(n*inner, 1)), func(lo, hi int) {
		for k := lo; k < hi; k++ {
			sum, squares := 0.0, 0.0
			for i := range n {
				at := (i*ch + k) * inner
				s, q := moments(src[at : at+inner])
				sum += s
				squares += q
			}
			mean[k], variance[k] = meanVariance(sum, squares, n*inner)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	for i := 1; i < len(c.Wanted); i++ {
		if !c.Wanted[i] {
			continue
		}
		v := [][]float64{make([]float64, ch), make([]float64, ch), mean, variance}[i-1]
		for k := range ch {
			switch i {
			case 1:
				v[k] = runMean[k]*b.momentum + mean[k]*(1-b.momentum)
			case 2:
				v[k] = runVar[k]*b.momentum + variance[k]*(1-b.momentum)
			}
		}
		like := c.In(3)
		t, err := c.Out(i, like.DType(), like.Shape()...)
		if err != nil {
			return nil, nil, err
		}
		tensor.Write(t, 0, v)
	}
	return mean, variance, nil
}

// compileGroupNorm compiles GroupNormalization and InstanceNormalization,
// whose groups are single channels.
func compileGroupNorm(s *Site) (Kernel, error) {
	epsilon := float64(s.Node.Float("epsilon", 1e-5))
	groups := s.Node.Int("num_groups", 0)
	single := s.Node.Op.Type == "InstanceNormalization"
	perGroup := !single && s.Opset < 21 // one scale and offset for each group
	return func(c *Call) error {
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		n, ch, inner, err := channels(x.Shape())
		if err != nil {
			return err
		}
		g := int64(ch)
		if !single {
			g = groups
		}
		if g <= 0 || g > int64(ch) || int64(ch)%g != 0 {
			return fmt.Errorf("%d channels do not divide into %d groups", ch, g)
		}
		size, params := ch/int(g), ch
		if perGroup {
			params = int(g)
		}
		scale, err := vectorOf(c, 1, params)
		if err != nil {
			return err
		}
		bias, err := vectorOf(c, 2, params)
		if err != nil {
			return err
		}
		p := groupNorm{epsilon: epsilon, scale: scale, bias: bias, n: n, groups: int(g), size: size, inner: inner, perGroup: perGroup}
		return byFloat(x, func() error { return groupNormRun[float32](c, x, &p) }, func() error { return groupNormRun[float64](c, x, &p) })
	}, nil
}

type groupNorm struct {
	epsilon                float64
	scale, bias            []float64
	n, groups, size, inner int // size channels to a group
	perGroup               bool
}

func groupNormRun[T floating](c *Call, x *tensor.Tensor, p *groupNorm) error {
	return reduceTensor(c, x, x.Shape(), func(dst, src []T) error {
		block := p.size * p.inner
		return c.For(p.n*p.groups, max(1, reduceWork/max(block, 1)), func(lo, hi int) {
			for u := lo; u < hi; u++ {
				sum, squares := moments(src[u*block : (u+1)*block])
				mean, variance := meanVariance(sum, squares, block)
				inverse := 1 / math.Sqrt(variance+p.epsilon)
				for k := range p.size {
					at := u*block + k*p.inner
					ch := u%p.groups*p.size + k
					if p.perGroup {
						ch = u % p.groups
					}
					affine(dst[at:at+p.inner], src[at:at+p.inner], T(mean), T(inverse*p.scale[ch]), T(p.bias[ch]))
				}
			}
		})
	})
}

func inferLayerNorm(c *Inference) error {
	shape := bare(c.Shape(0))
	c.Tensor(0, c.Elem(0), shape)
	stash := tensor.Float32
	if c.Node.Int("stash_type", 1) == int64(tensor.BFloat16) {
		stash = tensor.BFloat16
	}
	if shape == nil {
		c.Tensor(1, stash, nil)
		c.Tensor(2, stash, nil)
		return nil
	}
	axis, err := c.axis("axis", -1, len(shape))
	if err != nil {
		return err
	}
	stat := append(graph.Shape{}, shape...)
	for i := axis; i < len(stat); i++ {
		stat[i] = graph.D(1)
	}
	c.Tensor(1, stash, stat)
	c.Tensor(2, stash, stat)
	return nil
}

// layerNorm normalizes rows: the elements over all axes from axis on.
type layerNorm struct {
	rms     bool // divide by the root of the mean square, without mean or offset
	epsilon float32
	// Outputs for mean and inverse deviation, of type stash; -1 for none.
	meanOut, inverseOut int
	stash               tensor.DType
}

func compileLayerNorm(rms bool) func(*Site) (Kernel, error) {
	return func(s *Site) (Kernel, error) {
		at := s.Node.Int("axis", -1)
		l := layerNorm{rms: rms, epsilon: s.Node.Float("epsilon", 1e-5), meanOut: 1, inverseOut: 2, stash: tensor.Float32}
		if s.Node.Int("stash_type", 1) == int64(tensor.BFloat16) {
			l.stash = tensor.BFloat16
		}
		if rms {
			l.meanOut, l.inverseOut = -1, 1
		}
		return func(c *Call) error {
			x, err := c.tensor(0)
			if err != nil {
				return err
			}
			axis, err := NormalAxis(at, x.Rank())
			if err != nil {
				return err
			}
			return byFloat(x,
				func() error { return layerNormRun[float32](c, &l, x, axis) },
				func() error { return layerNormRun[float64](c, &l, x, axis) })
		}, nil
	}
}

func layerNormRun[T floating](c *Call, l *layerNorm, x *tensor.Tensor, axis int) error {
	src, err := load[T](c, x)
	if err != nil {
		return err
	}
	out, err := newOutput[T](c, 0, 0, x.DType(), x.Shape())
	if err != nil {
		return err
	}
	n := 1
	for _, d := range x.Shape()[axis:] {
		n *= d
	}
	gamma, wide, err := gainOf[T](c, 1, x.Shape(), axis, n)
	if err != nil {
		return err
	}
	beta, wideB, err := gainOf[T](c, 2, x.Shape(), axis, n)
	if err != nil {
		return err
	}
	if wide || gamma == nil {
		gamma = ones[T](n)
	}
	late := beta != nil && !wideB && wide // the offset comes after a gain that has to wait
	if wideB || late {
		beta = nil
	}
	if err := normalizeRows(c, l, out.data, src, gamma, beta, x.Shape(), axis, n); err != nil {
		return err
	}
	if wide {
		if err := combineInput(c, multiplication, out.data, out.data, x.Shape(), 1); err != nil {
			return err
		}
	}
	if wideB || late {
		if err := combineInput(c, addition, out.data, out.data, x.Shape(), 2); err != nil {
			return err
		}
	}
	return out.store(c)
}

func ones[T floating](n int) []T {
	v := make([]T, n)
	for i := range v {
		v[i] = 1
	}
	return v
}

// gainOf returns input i spread over the n elements of a row; wide says
// instead that it differs from row to row. Both are zero for an omitted
// input.
func gainOf[T tensor.Real](c *Call, i int, shape []int, axis, n int) (v []T, wide bool, err error) {
	t := c.In(i)
	if t == nil {
		return nil, false, nil
	}
	own := t.Shape()
	for len(own) > len(shape)-axis && own[0] == 1 {
		own = own[1:]
	}
	if len(own) > len(shape)-axis {
		return nil, true, nil
	}
	full, err := BroadcastDims(own, shape[axis:])
	if err != nil || !equalInts(full, shape[axis:]) {
		return nil, false, fmt.Errorf("input %d %v does not fit the normalized axes %v", i, t, shape[axis:])
	}
	if v, err = load[T](c, t); err != nil || len(v) == n {
		return v, false, err
	}
	spread, err := scratch[T](c, n)
	if err != nil {
		return nil, false, err
	}
	newWalk(full, own).visit(0, n, func(l *lanes) {
		for r := range l.rows {
			at := l.at[0] + r*l.skip[0]
			for k := range l.n {
				spread[l.out+r*l.n+k] = v[at+k*l.step[0]]
			}
		}
	})
	return spread, false, nil
}

// combineInput computes dst = op(src, input i) with the input broadcast to
// shape.
func combineInput[T floating](c *Call, op arith, dst, src []T, shape []int, i int) error {
	t := c.In(i)
	full, err := BroadcastDims(shape, t.Shape())
	if err != nil || !equalInts(full, shape) {
		return fmt.Errorf("input %d %v does not broadcast to %v", i, t, shape)
	}
	v, err := load[T](c, t)
	if err != nil {
		return err
	}
	return apply2(c, dst, shape, src, v, shape, t.Shape(), loops[T](op))
}

// normalizeRows normalizes the rows of src, n elements each, and stores the
// statistics that are wanted.
func normalizeRows[T floating](c *Call, l *layerNorm, dst, src, gamma, beta []T, shape []int, axis, n int) error {
	count := 1
	for _, d := range shape[:axis] {
		count *= d
	}
	stat := append([]int{}, shape...)
	for i := axis; i < len(stat); i++ {
		stat[i] = 1
	}
	statistic := func(i int) ([]float32, *tensor.Tensor, error) {
		if i < 0 || i >= len(c.Wanted) || !c.Wanted[i] {
			return nil, nil, nil
		}
		t, err := c.Out(i, l.stash, stat...)
		return make([]float32, count), t, err
	}
	means, meanOut, err := statistic(l.meanOut)
	if err != nil {
		return err
	}
	inverses, inverseOut, err := statistic(l.inverseOut)
	if err != nil {
		return err
	}
	row := rowFunction(l, dst, src, gamma, beta, n)
	if n > 0 {
		err = c.For(count, max(1, costlyChunk*2/n), func(lo, hi int) {
			for r := lo; r < hi; r++ {
				mean, inverse := row(r * n)
				if means != nil {
					means[r] = mean
				}
				if inverses != nil {
					inverses[r] = inverse
				}
			}
		})
	}
	if err != nil {
		return err
	}
	if means != nil {
		tensor.Write(meanOut, 0, means)
	}
	if inverses != nil {
		tensor.Write(inverseOut, 0, inverses)
	}
	return nil
}

// rowFunction returns the function that normalizes the row that begins at
// element at and returns its mean and inverse deviation.
func rowFunction[T floating](l *layerNorm, dst, src, gamma, beta []T, n int) func(at int) (mean, inverse float32) {
	if d, ok := any(dst).([]float32); ok {
		s, g, b := any(src).([]float32), any(gamma).([]float32), any(beta).([]float32)
		if !l.rms {
			return func(at int) (float32, float32) { return kernels.LayerNorm(d[at:at+n], s[at:at+n], g, b, l.epsilon) }
		}
		return func(at int) (float32, float32) {
			inverse := kernels.RMSNorm(d[at:at+n], s[at:at+n], g, l.epsilon)
			if b != nil {
				kernels.Binary(kernels.Add, d[at:at+n], d[at:at+n], b)
			}
			return 0, inverse
		}
	}
	return func(at int) (float32, float32) {
		x, y := src[at:at+n], dst[at:at+n]
		sum, squares := moments(x)
		mean, variance := meanVariance(sum, squares, n)
		if l.rms {
			mean, variance = 0, squares/float64(n)
		}
		inverse := 1 / math.Sqrt(variance+float64(l.epsilon))
		for k, v := range x {
			y[k] = T((float64(v)-mean)*inverse) * gamma[k]
			if beta != nil {
				y[k] += beta[k]
			}
		}
		return float32(mean), float32(inverse)
	}
}

// skipNorm returns SkipLayerNormalization or its variant without mean: the sum
// of input, skip and an optional bias, normalized.
func skipNorm(name string, rms bool) Spec {
	in := []Port{{Name: "input", Role: Activation}, {Name: "skip", Role: Activation}, gain("gamma")}
	biasAt := 3
	if !rms {
		in = append(in, offset("beta"))
		biasAt = 4
	}
	in = append(in, Port{Name: "bias", Optional: true})
	return Spec{Domain: msDomain, Type: name, Since: 1, Flow: Compute, Pure: true, In: in,
		Out: []Port{{Name: "output", Role: Activation}, {Name: "mean", Optional: true}, {Name: "inv_std_var", Optional: true},
			{Name: "input_skip_bias_sum", Role: Activation, Optional: true}},
		Attrs: floatAttrs("epsilon"),
		Infer: func(c *Inference) error {
			shape := bare(c.Shape(0))
			c.Tensor(0, c.Elem(0), shape)
			c.Tensor(3, c.Elem(0), shape)
			stat := append(graph.Shape(nil), shape...)
			if len(stat) > 0 {
				stat[len(stat)-1] = graph.D(1)
			}
			c.Tensor(1, tensor.Float32, stat)
			c.Tensor(2, tensor.Float32, stat)
			return nil
		},
		Compile: func(s *Site) (Kernel, error) {
			l := layerNorm{rms: rms, epsilon: s.Node.Float("epsilon", 1e-12), meanOut: 1, inverseOut: 2, stash: tensor.Float32}
			return func(c *Call) error {
				x, err := c.tensor(0)
				if err != nil {
					return err
				}
				if x.Rank() == 0 {
					return errors.New("input is a scalar")
				}
				return byFloat(x,
					func() error { return skipNormRun[float32](c, &l, x, biasAt) },
					func() error { return skipNormRun[float64](c, &l, x, biasAt) })
			}, nil
		},
	}
}

func skipNormRun[T floating](c *Call, l *layerNorm, x *tensor.Tensor, biasAt int) error {
	skip, err := c.tensor(1)
	if err != nil {
		return err
	}
	shape, axis := x.Shape(), x.Rank()-1
	n := shape[axis]
	if full, err := BroadcastDims(shape, skip.Shape()); err != nil || !equalInts(full, shape) {
		return fmt.Errorf("skip %v does not broadcast to %v", skip, x)
	}
	a, err := load[T](c, x)
	if err != nil {
		return err
	}
	b, err := load[T](c, skip)
	if err != nil {
		return err
	}
	out, err := newOutput[T](c, 0, -1, x.DType(), shape)
	if err != nil {
		return err
	}
	var sum output[T]
	if len(c.Wanted) > 3 && c.Wanted[3] {
		if sum, err = newOutput[T](c, 3, -1, x.DType(), shape); err != nil {
			return err
		}
	} else if sum.data, err = scratch[T](c, len(a)); err != nil {
		return err
	}
	plus := loops[T](addition)
	if err := apply2(c, sum.data, shape, a, b, shape, skip.Shape(), plus); err != nil {
		return err
	}
	if t := c.In(biasAt); t != nil {
		bias, wide, err := gainOf[T](c, biasAt, shape, axis, n)
		if err != nil || wide {
			return fmt.Errorf("bias %v is no vector of %d", t, n)
		}
		if err := apply2(c, sum.data, shape, sum.data, bias, shape, []int{n}, plus); err != nil {
			return err
		}
	}
	gamma, wide, err := gainOf[T](c, 2, shape, axis, n)
	if err != nil || wide || gamma == nil {
		return fmt.Errorf("gamma %v is no vector of %d", c.In(2), n)
	}
	var beta []T
	if biasAt == 4 {
		if beta, wide, err = gainOf[T](c, 3, shape, axis, n); err != nil || wide {
			return fmt.Errorf("beta %v is no vector of %d", c.In(3), n)
		}
	}
	if err := normalizeRows(c, l, out.data, sum.data, gamma, beta, shape, axis, n); err != nil {
		return err
	}
	if err := sum.store(c); err != nil {
		return err
	}
	return out.store(c)
}

// compileLRN sums the squares over a window of channels (ONNX LRN).
func compileLRN(s *Site) (Kernel, error) {
	size := s.Node.Int("size", 0)
	if size <= 0 || size > math.MaxInt32 {
		return nil, s.Errorf("size is %d", size)
	}
	p := lrn{below: int(size-1) / 2, above: int(size) / 2, alpha: float64(s.Node.Float("alpha", 1e-4)) / float64(size),
		beta: float64(s.Node.Float("beta", 0.75)), bias: float64(s.Node.Float("bias", 1))}
	return func(c *Call) error {
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		if x.Rank() < 2 {
			return fmt.Errorf("not defined for rank %d", x.Rank())
		}
		return byFloat(x, func() error {
			return reduceTensor(c, x, x.Shape(), func(dst, src []float32) error { return p.run32(c, dst, src, x.Shape()) })
		},
			func() error {
				return reduceTensor(c, x, x.Shape(), func(dst, src []float64) error { return p.run64(c, dst, src, x.Shape()) })
			})
	}, nil
}

type lrn struct {
	below, above      int
	alpha, beta, bias float64
}

func (p *lrn) run32(c *Call, dst, src []float32, shape []int) error {
	n, ch, inner, _ := channels(shape)
	blocks := (inner + columnBlock - 1) / columnBlock
	return c.For(n*ch*blocks, max(1, costlyChunk/max(min(inner, columnBlock), 1)), func(lo, hi int) {
		var buf [2 * columnBlock]float32
		for u := lo; u < hi; u++ {
			plane, from := u/blocks, u%blocks*columnBlock
			w := min(inner-from, columnBlock)
			sum, sq := buf[:w], buf[columnBlock:][:w]
			clear(sum)
			k := plane % ch
			for i := max(k-p.below, 0); i <= min(k+p.above, ch-1); i++ {
				squareRow(sq, src[(plane-k+i)*inner+from:][:w])
				kernels.Binary(kernels.Add, sum, sum, sq)
			}
			kernels.Binary(kernels.Mul, sum, sum, []float32{float32(p.alpha)})
			kernels.Binary(kernels.Add, sum, sum, []float32{float32(p.bias)})
			kernels.Unary(kernels.Log, sum, sum)
			kernels.Binary(kernels.Mul, sum, sum, []float32{float32(-p.beta)})
			kernels.Unary(kernels.Exp, sum, sum)
			at := plane*inner + from
			kernels.Binary(kernels.Mul, dst[at:at+w], src[at:at+w], sum)
		}
	})
}

func (p *lrn) run64(c *Call, dst, src []float64, shape []int) error {
	n, ch, inner, _ := channels(shape)
	return c.For(n*ch, max(1, costlyChunk/max(inner, 1)), func(lo, hi int) {
		for plane := lo; plane < hi; plane++ {
			k := plane % ch
			for j := range inner {
				sum := 0.0
				for i := max(k-p.below, 0); i <= min(k+p.above, ch-1); i++ {
					sum += square(src[(plane-k+i)*inner+j])
				}
				dst[plane*inner+j] = src[plane*inner+j] * math.Pow(p.bias+p.alpha*sum, -p.beta)
			}
		}
	})
}

// compileLpNorm divides lines by their 1-norm or 2-norm; a line of zeros stays
// one.
func compileLpNorm(s *Site) (Kernel, error) {
	at, p := s.Node.Int("axis", -1), s.Node.Int("p", 2)
	if p != 1 && p != 2 {
		return nil, s.Errorf("p is %d", p)
	}
	return func(c *Call) error {
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		axis, err := NormalAxis(at, x.Rank())
		if err != nil {
			return err
		}
		l := newLines(x.Shape(), axis)
		return byFloat(x, func() error { return lpNormRun[float32](c, x, l, p) }, func() error { return lpNormRun[float64](c, x, l, p) })
	}, nil
}

func lpNormRun[T floating](c *Call, x *tensor.Tensor, l lines, p int64) error {
	return reduceTensor(c, x, x.Shape(), func(dst, src []T) error {
		return c.For(l.outer*l.inner, max(1, reduceWork/max(l.n, 1)), func(lo, hi int) {
			for i := lo; i < hi; i++ {
				at, norm := l.begin(i), 0.0
				for k := range l.n {
					v := float64(src[at+k*l.inner])
					if p == 1 {
						norm += math.Abs(v)
					} else {
						norm += v * v
					}
				}
				if p == 2 {
					norm = math.Sqrt(norm)
				}
				for k := range l.n {
					o := at + k*l.inner
					dst[o] = 0
					if norm != 0 {
						dst[o] = T(float64(src[o]) / norm)
					}
				}
			}
		})
	})
}

// compileMVN compiles (X - mean) / (deviation + 1e-9), the function that the
// specification gives for MeanVarianceNormalization.
func compileMVN(s *Site) (Kernel, error) {
	axes := s.Node.Ints("axes")
	if s.Node.Attr("axes") == nil {
		axes = []int64{0, 2, 3}
	}
	return func(c *Call) error {
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		reduced, err := reducedAxes(axes, x.Rank(), false)
		if err != nil {
			return err
		}
		return byFloat(x, func() error { return mvnRun[float32](c, x, reduced) }, func() error { return mvnRun[float64](c, x, reduced) })
	}, nil
}

func mvnRun[T floating](c *Call, x *tensor.Tensor, reduced []bool) error {
	shape := append([]int{}, x.Shape()...)
	outs := 1
	for i, r := range reduced {
		if r {
			shape[i] = 1
		}
		outs *= shape[i]
	}
	type sums struct{ first, second float64 }
	shift, factor := make([]T, outs), make([]T, outs)
	return reduceTensor(c, x, x.Shape(), func(dst, src []T) error {
		if len(src) == 0 {
			return nil
		}
		l := newLayout(x.Shape(), reduced)
		add := func(s sums, v T) sums { return sums{s.first + float64(v), s.second + float64(v)*float64(v)} }
		mean := reduceBy[T, sums]{step: add, finish: func(s sums, n int) T { return T(s.first / float64(n)) }}
		inverse := reduceBy[T, sums]{step: add, finish: func(s sums, n int) T {
			_, variance := meanVariance(s.first, s.second, n)
			return T(1 / (math.Sqrt(variance) + 1e-9))
		}}
		if err := mean.run(c, shift, src, l); err != nil {
			return err
		}
		if err := inverse.run(c, factor, src, l); err != nil {
			return err
		}
		if err := apply2(c, dst, x.Shape(), src, shift, x.Shape(), shape, loops[T](difference)); err != nil {
			return err
		}
		return apply2(c, dst, x.Shape(), dst, factor, x.Shape(), shape, loops[T](multiplication))
	})
}
