package ops

import (
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// resizeSpecs are the operators that resample a grid along its axes.
func resizeSpecs() []Spec {
	scales := Port{Name: "scales", Role: Index, Optional: true}
	flow := func(n *graph.Node) Flow {
		if n.String("mode", "nearest") == "nearest" {
			return Pass
		}
		return Compute
	}
	return []Spec{
		{Type: "Resize", Since: 10, Flow: Compute, FlowOf: flow, Pure: true,
			In:  []Port{{Name: "X", Role: Activation}, {Name: "roi", Optional: true}, scales, {Name: "sizes", Role: Index, Optional: true}},
			Out: []Port{{Name: "Y", Role: Activation}},
			Attrs: []AttrSpec{{Name: "mode", Kind: graph.AttrString}, {Name: "coordinate_transformation_mode", Kind: graph.AttrString},
				{Name: "nearest_mode", Kind: graph.AttrString}, {Name: "cubic_coeff_a", Kind: graph.AttrFloat},
				{Name: "exclude_outside", Kind: graph.AttrInt}, {Name: "extrapolation_value", Kind: graph.AttrFloat},
				{Name: "antialias", Kind: graph.AttrInt}, {Name: "axes", Kind: graph.AttrInts},
				{Name: "keep_aspect_ratio_policy", Kind: graph.AttrString}},
			Infer: inferResize, Compile: compileResize},
		{Type: "Upsample", Since: 7, Flow: Compute, FlowOf: flow, Pure: true,
			In:    []Port{{Name: "X", Role: Activation}, scales},
			Out:   []Port{{Name: "Y", Role: Activation}},
			Attrs: []AttrSpec{{Name: "mode", Kind: graph.AttrString}, {Name: "scales", Kind: graph.AttrFloats}},
			Infer: inferResize, Compile: compileResize},
	}
}

// resizing is a Resize or Upsample with its attributes; inputs that the
// version does not have are -1.
type resizing struct {
	mode, coord, nearest, policy string
	cubicA, outside              float32
	exclude, antialias           bool
	scales                       []float32 // Upsample before 9
	axes                         []int64
	hasAxes                      bool
	roiIn, scalesIn, sizesIn     int
}

func newResizing(n *graph.Node, opset int) (resizing, error) {
	r := resizing{
		mode: n.String("mode", "nearest"), coord: "asymmetric", nearest: "simple", policy: "stretch",
		cubicA: -0.75, roiIn: -1, scalesIn: 1, sizesIn: -1,
	}
	if r.mode == "bilinear" {
		r.mode = "linear"
	}
	switch {
	case n.Op.Type == "Upsample" && opset < 9:
		r.scalesIn = -1
		if a := n.Attr("scales"); a != nil {
			r.scales = a.Floats
		}
	case n.Op.Type == "Resize" && opset >= 11:
		r.coord = n.String("coordinate_transformation_mode", "half_pixel")
		r.nearest = n.String("nearest_mode", "round_prefer_floor")
		r.cubicA = n.Float("cubic_coeff_a", -0.75)
		r.outside = n.Float("extrapolation_value", 0)
		r.exclude = n.Int("exclude_outside", 0) != 0
		r.roiIn, r.scalesIn, r.sizesIn = 1, 2, 3
		if opset >= 18 {
			r.antialias = n.Int("antialias", 0) != 0 && r.mode != "nearest"
			r.policy = n.String("keep_aspect_ratio_policy", "stretch")
			r.axes, r.hasAxes = n.Ints("axes"), n.Attr("axes") != nil
		}
	}
	switch {
	case !slices.Contains([]string{"nearest", "linear", "cubic"}, r.mode):
		return r, fmt.Errorf("mode %q", r.mode)
	case !slices.Contains([]string{"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn", "tf_crop_and_resize"}, r.coord):
		return r, fmt.Errorf("coordinate_transformation_mode %q", r.coord)
	case !slices.Contains([]string{"simple", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"}, r.nearest):
		return r, fmt.Errorf("nearest_mode %q", r.nearest)
	case !slices.Contains([]string{"stretch", "not_larger", "not_smaller"}, r.policy):
		return r, fmt.Errorf("keep_aspect_ratio_policy %q", r.policy)
	}
	return r, nil
}

// resized is how one axis changes.
type resized struct {
	in, out  int
	scale    float32
	cut      float32 // fraction of a sample that scales cut off the output
	from, to float32 // region of interest, relative to the axis
}

// identity reports whether the axis stays as it is.
func (a resized) identity() bool { return a.in == a.out && a.scale == 1 && a.from == 0 && a.to == 1 }

// plan finds the output size and scale of each axis; nil lists are not given.
func (r *resizing) plan(in []int, scales []float32, sizes []int64, roi []float64) ([]resized, error) {
	ax := make([]int, len(in))
	for i := range ax {
		ax[i] = i
	}
	if r.hasAxes {
		var err error
		if ax, err = normalAxes(r.axes, len(in)); err != nil {
			return nil, err
		}
	}
	out := make([]resized, len(in))
	for i, d := range in {
		out[i] = resized{in: d, out: d, scale: 1, to: 1}
	}
	switch {
	case len(scales) > 0 && len(sizes) > 0:
		return nil, fmt.Errorf("both scales %v and sizes %v", scales, sizes)
	case len(scales) > 0 && len(scales) == len(ax):
		for i, a := range ax {
			s := scales[i]
			length := s * float32(in[a])
			size := math.Floor(float64(length))
			if !(s > 0) || !(size < 1<<40) {
				return nil, fmt.Errorf("scales %v", scales)
			}
			out[a].scale, out[a].out, out[a].cut = s, int(size), length-float32(size)
		}
	case len(sizes) > 0 && len(sizes) == len(ax):
		want, err := sizesOf(sizes)
		if err != nil {
			return nil, err
		}
		keep := float32(0)
		for i, a := range ax {
			if in[a] == 0 && want[i] != 0 || want[i] > 1<<40 {
				return nil, fmt.Errorf("sizes %v of shape %v", sizes, in)
			}
			s := float32(1)
			if in[a] != 0 {
				s = float32(want[i]) / float32(in[a])
			}
			out[a].scale, out[a].out = s, want[i]
			switch {
			case i == 0:
				keep = s
			case r.policy == "not_larger":
				keep = min(keep, s)
			default:
				keep = max(keep, s)
			}
		}
		if r.policy != "stretch" {
			for _, a := range ax {
				out[a].scale = keep
				out[a].out = int(math.Floor(float64(keep*float32(in[a])) + 0.5))
			}
		}
	default:
		return nil, fmt.Errorf("%d scales and %d sizes for %d axes", len(scales), len(sizes), len(ax))
	}
	if r.coord == "tf_crop_and_resize" {
		if len(roi) != 2*len(ax) {
			return nil, fmt.Errorf("region of interest %v for %d axes", roi, len(ax))
		}
		for i, a := range ax {
			out[a].from, out[a].to = float32(roi[i]), float32(roi[len(ax)+i])
		}
	}
	return out, nil
}

// source returns the coordinate on the input axis that output index x of a
// samples (ONNX operator Resize, attribute coordinate_transformation_mode).
// Align_corners divides by the number of samples less one, as ONNX Runtime does,
// but where it interpolates and scales shrink the axis to a fraction of a sample
// more: there the conformance cases of the standard divide by scale·size − 1.
func (r *resizing) source(a resized, x int) float32 {
	at := float32(x)
	switch r.coord {
	case "asymmetric":
		return at / a.scale
	case "align_corners":
		if a.out == 1 {
			return 0
		}
		last := float32(a.out - 1)
		if a.scale < 1 && r.mode != "nearest" {
			last += a.cut
		}
		return at * float32(a.in-1) / last
	case "tf_half_pixel_for_nn":
		return (at + 0.5) / a.scale
	case "pytorch_half_pixel":
		if a.out <= 1 {
			return 0
		}
	case "tf_crop_and_resize":
		last := float32(a.in - 1)
		if a.out <= 1 {
			return 0.5 * (a.from + a.to) * last
		}
		return float32(a.from*last) + at*(a.to-a.from)*last/float32(a.out-1)
	case "half_pixel_symmetric":
		adjustment := float32(a.out) / (a.scale * float32(a.in))
		center := float32(a.in) / 2
		return float32(center*(1-adjustment)) + (at+0.5)/a.scale - 0.5
	}
	return (at+0.5)/a.scale - 0.5
}

// outsideOf reports whether coordinate x is replaced by extrapolation_value.
func (r *resizing) outsideOf(a resized, x float32) bool {
	return r.coord == "tf_crop_and_resize" && (x < 0 || x > float32(a.in-1))
}

// nearestMap returns the input index of each output index, -1 for the
// extrapolation value, or nil for the identity.
func (r *resizing) nearestMap(a resized) []int {
	if a.identity() {
		return nil
	}
	m := make([]int, a.out)
	for i := range m {
		x := r.source(a, i)
		if r.outsideOf(a, x) {
			m[i] = -1
			continue
		}
		floor := float32(math.Floor(float64(x)))
		k := floor
		switch r.nearest {
		case "simple":
			if a.scale < 1 {
				k = float32(math.Ceil(float64(x)))
			}
		case "ceil":
			k = float32(math.Ceil(float64(x)))
		case "round_prefer_ceil":
			if x-floor >= 0.5 {
				k = floor + 1
			}
		case "round_prefer_floor":
			if x-floor > 0.5 {
				k = floor + 1
			}
		}
		if k > 0 {
			m[i] = int(min(k, float32(a.in-1)))
		}
	}
	return m
}

// taps are the weights of an axis: output index i is the sum over k of
// weight[i·n+k] · input[index[i·n+k]].
type taps[T float32 | float64] struct {
	n      int
	index  []int
	weight []T
	blank  []bool // outputs that are the extrapolation value; nil for none
}

func newTaps[T float32 | float64](r *resizing, a resized) taps[T] {
	support := 1.0
	if r.mode == "cubic" {
		support = 2
	}
	shrink := 1.0
	if r.antialias && a.scale < 1 {
		shrink = float64(a.scale)
	}
	reach := support / shrink
	t := taps[T]{n: int(math.Ceil(reach)) * 2}
	t.index, t.weight = make([]int, a.out*t.n), make([]T, a.out*t.n)
	w := make([]float64, t.n)
	for i := range a.out {
		x := r.source(a, i)
		if r.outsideOf(a, x) {
			if t.blank == nil {
				t.blank = make([]bool, a.out)
			}
			t.blank[i] = true
		}
		if r.mode == "linear" && !r.antialias {
			x = min(max(x, 0), float32(a.in-1))
		}
		first := int(math.Floor(float64(x))) - t.n/2 + 1
		sum := 0.0
		for k := range w {
			p := first + k
			w[k] = r.filter(math.Abs(float64(p)-float64(x)) * shrink)
			if r.exclude && (p < 0 || p >= a.in) {
				w[k] = 0
			}
			sum += w[k]
		}
		if !r.antialias && !r.exclude || sum == 0 {
			sum = 1
		}
		for k := range w {
			t.index[i*t.n+k] = min(max(first+k, 0), a.in-1)
			t.weight[i*t.n+k] = T(w[k] / sum)
		}
	}
	return t
}

// filter is the weight of a sample at distance d: a triangle, or the cubic
// convolution kernel of Keys (IEEE ASSP 29, 1981).
func (r *resizing) filter(d float64) float64 {
	if r.mode == "linear" {
		return max(0, 1-d)
	}
	a := float64(r.cubicA)
	switch {
	case d <= 1:
		return ((a+2)*d-(a+3))*d*d + 1
	case d < 2:
		return ((a*d-5*a)*d+8*a)*d - 4*a
	}
	return 0
}

func inferResize(c *Inference) error {
	r, err := newResizing(c.Node, c.Opset)
	if err != nil {
		return err
	}
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	out := graph.UnknownShape(len(in))
	ax := make([]int, len(in))
	for i := range ax {
		ax[i] = i
	}
	if r.hasAxes {
		if ax, err = normalAxes(r.axes, len(in)); err != nil {
			return err
		}
		for i, d := range bare(in) {
			if !slices.Contains(ax, i) {
				out[i] = d
			}
		}
	}
	scales := r.scales
	if t := c.Const(r.scalesIn); t != nil {
		if scales, err = tensor.Float32s(t); err != nil {
			return err
		}
	}
	sizes, ok := c.Dims(r.sizesIn)
	dims, known := in.Dims()
	values, valued := c.Ints(r.sizesIn)
	noRoi := r
	noRoi.coord = "half_pixel" // the region of interest does not change the shape
	switch {
	case len(scales) > 0 && known || valued && known && len(values) > 0:
		p, err := noRoi.plan(dims, scales, values, nil)
		if err != nil {
			return err
		}
		for i := range p {
			out[i] = graph.D(int64(p[i].out))
		}
	case len(scales) > 0 && len(scales) == len(ax):
		for i, a := range ax {
			if d := in[a]; d.Known {
				out[a] = graph.D(int64(math.Floor(float64(scales[i] * float32(d.Size)))))
			} else if scales[i] == 1 {
				out[a] = graph.Sym(d.Sym)
			}
		}
	case ok && r.policy == "stretch" && len(sizes) == len(ax):
		for i, a := range ax {
			out[a] = bare(sizes)[i]
		}
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileResize(s *Site) (Kernel, error) {
	r, err := newResizing(s.Node, s.Opset)
	if err != nil {
		return nil, s.Errorf("%v", err)
	}
	return func(c *Call) error {
		scales, sizes, roi := r.scales, []int64(nil), []float64(nil)
		var err error
		if t := c.In(r.scalesIn); t != nil {
			if scales, err = tensor.Float32s(t); err != nil {
				return err
			}
		}
		if c.In(r.sizesIn) != nil {
			if sizes, err = c.ints(r.sizesIn); err != nil {
				return err
			}
		}
		if t := c.In(r.roiIn); t != nil {
			if roi, err = tensor.Float64s(t); err != nil {
				return err
			}
		}
		x := c.In(0)
		axes, err := r.plan(x.Shape(), scales, sizes, roi)
		if err != nil {
			return err
		}
		shape := make([]int, len(axes))
		same := true
		for i, a := range axes {
			shape[i] = a.out
			same = same && a.identity()
			if a.out > 0 && a.in == 0 {
				return fmt.Errorf("axis %d of %v is empty", i, x)
			}
		}
		if same {
			return c.View(0, 0, shape...)
		}
		out, err := c.Out(0, x.DType(), shape...)
		if err != nil || out.Len() == 0 {
			return err
		}
		switch {
		case r.mode == "nearest":
			return r.sampleNearest(c, axes, out, x)
		case x.DType() == tensor.Float32:
			return resample(c, &r, axes, tensor.As[float32](out), tensor.As[float32](x))
		case x.DType() == tensor.Float64:
			return resample(c, &r, axes, tensor.As[float64](out), tensor.As[float64](x))
		}
		v, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		y := make([]float64, out.Len())
		if err := resample(c, &r, axes, y, v); err != nil {
			return err
		}
		saturate(out, y)
		return nil
	}, nil
}

// saturate stores v in t, integers truncated and clamped to what the type
// holds.
func saturate(t *tensor.Tensor, v []float64) {
	if lo, hi, ok := t.DType().IntRange(); ok {
		for i, x := range v {
			v[i] = min(max(x, float64(lo)), float64(hi))
		}
	}
	tensor.Write(t, 0, v)
}

func (r *resizing) sampleNearest(c *Call, axes []resized, out, x *tensor.Tensor) error {
	maps := make([][]int, len(axes))
	for i, a := range axes {
		maps[i] = r.nearestMap(a)
	}
	fill := tensor.New(x.DType(), 1)
	if x.DType().Convertible() {
		tensor.Write(fill, 0, []float32{r.outside})
	}
	return (&lookup{maps: maps, src: x.Shape(), dst: out.Shape(), fill: fill}).copy(c, out, x)
}

// resample applies the taps of each axis in turn, the last axis first.
func resample[T float32 | float64](c *Call, r *resizing, axes []resized, out, x []T) error {
	shape := make([]int, len(axes))
	last := -1
	for i, a := range axes {
		shape[i] = a.in
		if !a.identity() && last < 0 {
			last = i
		}
	}
	cur := x
	blanks := make([][]bool, len(axes))
	for k := len(axes) - 1; k >= last; k-- {
		a := axes[k]
		if a.identity() {
			continue
		}
		t := newTaps[T](r, a)
		blanks[k] = t.blank
		outer, inner := volume(shape[:k]), volume(shape[k+1:])
		next := out
		if k > last {
			n, err := mulDims(outer*inner, a.out)
			if err != nil {
				return err
			}
			if next, err = scratchOf[T](c, n); err != nil {
				return err
			}
		}
		if err := applyTaps(c, next, cur, t, outer, a.in, a.out, inner); err != nil {
			return err
		}
		cur = next
		shape[k] = a.out
	}
	for k, blank := range blanks {
		if blank == nil {
			continue
		}
		inner := volume(shape[k+1:])
		for i := range len(out) / inner {
			if blank[i%shape[k]] {
				row := out[i*inner : (i+1)*inner]
				for j := range row {
					row[j] = T(r.outside)
				}
			}
		}
	}
	return nil
}

// scratchOf returns scratch memory for n numbers.
func scratchOf[T float32 | float64](c *Call, n int) ([]T, error) {
	d := tensor.Float32
	if _, ok := any(T(0)).(float64); ok {
		d = tensor.Float64
	}
	if _, ok := tensor.NumElements([]int{n, 8}); !ok {
		return nil, fmt.Errorf("%d intermediate values", n)
	}
	b, err := c.Mem.Scratch(d.Bytes(n))
	if err != nil {
		return nil, err
	}
	t, err := tensor.FromBytes(d, []int{n}, b)
	if err != nil {
		return nil, err
	}
	return tensor.As[T](t), nil
}

// applyTaps resamples axis of size in, seen as [outer, in, inner], to size n.
func applyTaps[T float32 | float64](c *Call, dst, src []T, t taps[T], outer, in, n, inner int) error {
	rows := func(lo, hi int) {
		for i := lo; i < hi; i++ { // row i is output index i%n of outer index i/n
			base := i / n * in * inner
			index, weight := t.index[i%n*t.n:(i%n+1)*t.n], t.weight[i%n*t.n:(i%n+1)*t.n]
			row := dst[i*inner : (i+1)*inner]
			if t.n == 2 {
				a, b := src[base+index[0]*inner:][:inner], src[base+index[1]*inner:][:inner]
				wa, wb := weight[0], weight[1]
				for j := range row {
					row[j] = wa*a[j] + wb*b[j]
				}
				continue
			}
			clear(row)
			for k, w := range weight {
				a := src[base+index[k]*inner:][:inner]
				for j := range row {
					row[j] += w * a[j]
				}
			}
		}
	}
	lines := func(lo, hi int) { // inner is 1: line i is outer index i
		for i := lo; i < hi; i++ {
			a, row := src[i*in:(i+1)*in], dst[i*n:(i+1)*n]
			if t.n == 2 {
				index, weight := t.index[:2*n], t.weight[:2*n]
				for j := range row {
					row[j] = weight[2*j]*a[index[2*j]] + weight[2*j+1]*a[index[2*j+1]]
				}
				continue
			}
			for j := range row {
				index, weight := t.index[j*t.n:(j+1)*t.n], t.weight[j*t.n:(j+1)*t.n]
				sum := T(0)
				for k, w := range weight {
					sum += w * a[index[k]]
				}
				row[j] = sum
			}
		}
	}
	if inner == 1 {
		return c.For(outer, max(1, pieceElems/2/n), lines)
	}
	return c.For(outer*n, max(1, pieceElems/2/inner), rows)
}
