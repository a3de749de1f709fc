package ops

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// visionSpecs are the operators that sample images at computed places, and
// the selection of boxes.
func visionSpecs() []Spec {
	x := Port{Name: "X", Role: Activation}
	y := []Port{{Name: "Y", Role: Activation}}
	str := func(name string) AttrSpec { return AttrSpec{Name: name, Kind: graph.AttrString} }
	num := func(name string) AttrSpec { return AttrSpec{Name: name, Kind: graph.AttrInt} }
	list := func(name string) AttrSpec { return AttrSpec{Name: name, Kind: graph.AttrInts} }
	maybe := func(name string) Port { return Port{Name: name, Optional: true} }
	gridSample := func(domain string, since int) Spec {
		return Spec{Domain: domain, Type: "GridSample", Since: since, Flow: Compute, Pure: true,
			In: []Port{x, {Name: "grid"}}, Out: y,
			Attrs: []AttrSpec{str("mode"), str("padding_mode"), num("align_corners")},
			Infer: inferGridSample, Compile: compileGridSample}
	}
	return []Spec{
		gridSample(graph.OnnxDomain, 16), gridSample(msDomain, 1),
		{Type: "AffineGrid", Since: 20, Flow: Compute, Pure: true,
			In: []Port{{Name: "theta"}, {Name: "size", Role: Index}}, Out: []Port{{Name: "grid"}},
			Attrs: []AttrSpec{num("align_corners")},
			Infer: inferAffineGrid, Compile: compileAffineGrid},
		{Type: "Col2Im", Since: 18, Flow: Compute, Pure: true,
			In:  []Port{{Name: "input", Role: Activation}, {Name: "image_shape", Role: Index}, {Name: "block_shape", Role: Index}},
			Out: []Port{{Name: "output", Role: Activation}}, Attrs: []AttrSpec{list("dilations"), list("pads"), list("strides")},
			Infer: inferCol2Im, Compile: compileCol2Im},
		{Type: "RoiAlign", Since: 10, Flow: Compute, Pure: true,
			In: []Port{x, {Name: "rois"}, {Name: "batch_indices", Role: Index}}, Out: y,
			Attrs: []AttrSpec{str("mode"), str("coordinate_transformation_mode"), num("output_height"), num("output_width"),
				num("sampling_ratio"), {Name: "spatial_scale", Kind: graph.AttrFloat}},
			Infer: func(c *Inference) error {
				return inferRois(c, c.Node.Int("output_height", 1), c.Node.Int("output_width", 1))
			},
			Compile: compileRoiAlign},
		{Type: "MaxRoiPool", Since: 1, Flow: Pass, Pure: true,
			In: []Port{x, {Name: "rois"}}, Out: y,
			Attrs: []AttrSpec{{Name: "pooled_shape", Kind: graph.AttrInts, Required: true}, {Name: "spatial_scale", Kind: graph.AttrFloat}},
			Infer: func(c *Inference) error {
				p := c.Node.Ints("pooled_shape")
				if len(p) != 2 {
					return c.Errorf("pooled_shape %v", p)
				}
				return inferRois(c, p[0], p[1])
			},
			Compile: compileMaxRoiPool},
		{Type: "NonMaxSuppression", Since: 10, Flow: Integers, Pure: true,
			In:  []Port{{Name: "boxes"}, {Name: "scores"}, maybe("max_output_boxes_per_class"), maybe("iou_threshold"), maybe("score_threshold")},
			Out: []Port{{Name: "selected_indices", Role: Index}}, Attrs: []AttrSpec{num("center_point_box")},
			Infer: func(c *Inference) error {
				c.Tensor(0, tensor.Int64, graph.Shape{{}, graph.D(3)})
				return nil
			},
			Compile: compileNonMaxSuppression},
	}
}

// onReals runs f on x as float32 or float64 numbers and stores the result in a
// new output 0 of the type of x.
func onReals(c *Call, x *tensor.Tensor, shape []int, f32 func(y, x []float32) error, f64 func(y, x []float64) error) error {
	out, err := c.Out(0, x.DType(), shape...)
	if err != nil || out.Len() == 0 {
		return err
	}
	switch x.DType() {
	case tensor.Float32:
		return f32(tensor.As[float32](out), tensor.As[float32](x))
	case tensor.Float64:
		return f64(tensor.As[float64](out), tensor.As[float64](x))
	case tensor.Float16, tensor.BFloat16:
		v, err := tensor.Float32s(x)
		if err != nil {
			return err
		}
		y := make([]float32, out.Len())
		if err := f32(y, v); err != nil {
			return err
		}
		tensor.Write(out, 0, y)
		return nil
	}
	v, err := tensor.Float64s(x)
	if err != nil {
		return err
	}
	y := make([]float64, out.Len())
	if err := f64(y, v); err != nil {
		return err
	}
	saturate(out, y)
	return nil
}

func inferGridSample(c *Inference) error {
	x, g := c.Shape(0), c.Shape(1)
	if x == nil || g == nil {
		n := max(len(x), len(g))
		if n == 0 {
			c.Tensor(0, c.Elem(0), nil)
			return nil
		}
		if x == nil {
			x = graph.UnknownShape(n)
		}
		if g == nil {
			g = graph.UnknownShape(n)
		}
	}
	if len(x) < 3 || len(x) != len(g) {
		return c.Errorf("input has shape %v, the grid %v", x, g)
	}
	c.Tensor(0, c.Elem(0), append(graph.Shape(bare(x[:2])), bare(g[1:len(g)-1])...))
	return nil
}

// gridSample is a GridSample with its attributes.
type gridSample struct {
	mode, padding string
	align         bool
}

func compileGridSample(s *Site) (Kernel, error) {
	g := gridSample{mode: s.Node.String("mode", "linear"), padding: s.Node.String("padding_mode", "zeros"), align: s.Node.Int("align_corners", 0) != 0}
	switch g.mode {
	case "bilinear":
		g.mode = "linear"
	case "bicubic":
		g.mode = "cubic"
	case "linear", "cubic", "nearest":
	default:
		return nil, s.Errorf("mode %q", g.mode)
	}
	if !slices.Contains([]string{"zeros", "border", "reflection"}, g.padding) {
		return nil, s.Errorf("padding_mode %q", g.padding)
	}
	return func(c *Call) error {
		x, grid := c.In(0), c.In(1)
		in, at := x.Shape(), grid.Shape()
		axes := len(in) - 2
		if axes < 1 || len(at) != len(in) || at[0] != in[0] || at[len(at)-1] != axes {
			return fmt.Errorf("grid is %v for input %v", grid, x)
		}
		where, err := tensor.Float32s(grid)
		if err != nil {
			return err
		}
		shape := append(append([]int{}, in[:2]...), at[1:len(at)-1]...)
		if volume(in[2:]) == 0 && volume(shape) > 0 {
			return fmt.Errorf("input %v has nothing to sample", x)
		}
		return onReals(c, x, shape,
			func(y, x []float32) error { return sampleGrid(c, &g, y, x, where, in, volume(shape[2:])) },
			func(y, x []float64) error { return sampleGrid(c, &g, y, x, where, in, volume(shape[2:])) })
	}, nil
}

// sampleGrid computes points samples per image and channel.
func sampleGrid[T float32 | float64](c *Call, g *gridSample, y, x []T, grid []float32, in []int, points int) error {
	dims := in[2:]
	channels, size := in[1], volume(dims)
	return c.For(in[0]*points, max(1, 1<<12/max(channels, 1)), func(lo, hi int) {
		var offsets []int
		var weights []T
		for p := lo; p < hi; p++ {
			n, k := p/points, p%points
			offsets, weights = append(offsets[:0], 0), append(weights[:0], 1)
			for i, d := range dims {
				// Grid coordinates are in the reverse order of the axes.
				offsets, weights = gridAxis(g, grid[p*len(dims)+len(dims)-1-i], d, offsets, weights)
			}
			for ch := range channels {
				img := x[(n*channels+ch)*size:][:size]
				sum := T(0)
				for i, w := range weights {
					sum += w * img[offsets[i]]
				}
				y[(n*channels+ch)*points+k] = sum
			}
		}
	})
}

// gridAxis extends offsets and weights, the samples chosen on the axes before,
// by an axis of size d that is sampled at normalized coordinate at.
func gridAxis[T float32 | float64](g *gridSample, at float32, d int, offsets []int, weights []T) ([]int, []T) {
	lo, hi := float32(-0.5), float32(d)-0.5
	v := ((at+1)*float32(d) - 1) / 2
	if g.align {
		lo, hi = 0, float32(d-1)
		v = (at + 1) / 2 * float32(d-1)
	}
	if g.mode == "nearest" {
		v = float32(math.RoundToEven(float64(v)))
	}
	if v < lo || v > hi {
		switch {
		case g.padding == "border" && g.mode != "cubic": // cubic clamps each sample instead
			v = min(max(v, 0), float32(d-1))
		case g.padding == "reflection":
			v = reflect(v, lo, hi)
		}
	}
	var taps [4]T
	first, n := int(math.Floor(float64(v))), 1
	f := T(v) - T(math.Floor(float64(v)))
	switch g.mode {
	case "nearest":
		taps[0] = 1
	case "linear":
		n, taps[0], taps[1] = 2, 1-f, f
	case "cubic":
		n = 4
		first--
		for k := range taps {
			taps[k] = keys(T(math.Abs(float64(f) + 1 - float64(k))))
		}
	}
	count := len(offsets)
	for k := range n {
		p, w := first+k, taps[k]
		if p < 0 || p >= d {
			switch g.padding {
			case "zeros":
				w = 0
			case "reflection":
				p = int(reflect(float32(p), lo, hi))
			}
			p = min(max(p, 0), d-1)
		}
		for i := range count {
			offsets = append(offsets, offsets[i]*d+p)
			weights = append(weights, weights[i]*w)
		}
	}
	return offsets[count:], weights[count:]
}

// keys is the cubic convolution kernel of Keys with a = -0.75.
func keys[T float32 | float64](d T) T {
	const a = -0.75
	switch {
	case d <= 1:
		return ((a+2)*d-(a+3))*d*d + 1
	case d < 2:
		return ((a*d-5*a)*d+8*a)*d - 4*a
	}
	return 0
}

// reflect folds v into [lo, hi].
func reflect(v, lo, hi float32) float32 {
	size := float64(hi) - float64(lo)
	if !(size > 0) || math.IsInf(float64(v), 0) || v != v {
		return lo
	}
	d := math.Mod(math.Abs(float64(v)-float64(lo)), 2*size)
	if d > size {
		d = 2*size - d
	}
	return float32(float64(lo) + d)
}

func inferAffineGrid(c *Inference) error {
	size, ok := c.vector(1)
	if !ok {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	if len(size) != 4 && len(size) != 5 {
		return c.Errorf("size has %d entries", len(size))
	}
	size = bare(size)
	c.Tensor(0, c.Elem(0), append(append(graph.Shape{size[0]}, size[2:]...), graph.D(int64(len(size)-2))))
	return nil
}

func compileAffineGrid(s *Site) (Kernel, error) {
	align := s.Node.Int("align_corners", 0) != 0
	return func(c *Call) error {
		theta := c.In(0)
		v, err := c.ints(1)
		if err != nil {
			return err
		}
		size, err := sizesOf(v)
		if err != nil {
			return err
		}
		n := len(size) - 2
		if n != 2 && n != 3 || !slices.Equal(theta.Shape(), []int{size[0], n, n + 1}) {
			return fmt.Errorf("theta is %v for size %v", theta, v)
		}
		dims := size[2:]
		at := make([][]float64, n)
		shape := append(append([]int{size[0]}, dims...), n)
		if _, ok := tensor.NumElements(shape); !ok {
			return fmt.Errorf("size %v", v)
		}
		out, err := c.Out(0, theta.DType(), shape...)
		if err != nil || out.Len() == 0 {
			return err
		}
		m, err := tensor.Float64s(theta)
		if err != nil {
			return err
		}
		y := make([]float64, out.Len())
		for i, d := range dims {
			at[i] = make([]float64, d)
			for k := range at[i] {
				switch {
				case !align:
					at[i][k] = (2*float64(k)+1)/float64(d) - 1
				case d == 1:
					at[i][k] = -1
				default:
					at[i][k] = 2*float64(k)/float64(d-1) - 1
				}
			}
		}
		points := volume(dims)
		err = c.For(size[0]*points, 1<<12, func(lo, hi int) {
			var p [4]float64
			for i := lo; i < hi; i++ {
				t := m[i/points*n*(n+1):][:n*(n+1)]
				rest := i % points
				for a := n - 1; a >= 0; a-- {
					p[n-1-a] = at[a][rest%dims[a]]
					rest /= dims[a]
				}
				p[n] = 1
				for r := range n {
					sum := 0.0
					for k := range n + 1 {
						sum += t[r*(n+1)+k] * p[k]
					}
					y[i*n+r] = sum
				}
			}
		})
		if err == nil {
			tensor.Write(out, 0, y)
		}
		return err
	}, nil
}

func inferCol2Im(c *Inference) error {
	in := c.Shape(0)
	image, ok := c.vector(1)
	if in == nil || !ok {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	if len(in) != 3 {
		return c.Errorf("input has shape %v", in)
	}
	depth := graph.Dim{}
	if block, ok := c.Dims(2); ok {
		depth = dimQuotient(bare(in[1:2]), block)
	}
	c.Tensor(0, c.Elem(0), append(graph.Shape{bare(in)[0], depth}, bare(image)...))
	return nil
}

func compileCol2Im(s *Site) (Kernel, error) {
	n := s.Node
	return func(c *Call) error {
		x := c.In(0)
		var lists [2][]int
		for i := range lists {
			v, err := c.ints(1 + i)
			if err != nil {
				return err
			}
			if lists[i], err = sizesOf(v); err != nil {
				return err
			}
		}
		image, block := lists[0], lists[1]
		r := len(image)
		attr := func(name string, n int, def int64) []int64 {
			v := s.Node.Ints(name)
			if v == nil {
				v = make([]int64, n)
				for i := range v {
					v[i] = def
				}
			}
			return v
		}
		dilations, strides, pads := attr("dilations", r, 1), attr("strides", r, 1), attr("pads", 2*r, 0)
		if x.Rank() != 3 || len(block) != r || len(dilations) != r || len(strides) != r || len(pads) != 2*r {
			return fmt.Errorf("input is %v, image %v, block %v, attributes of %s", x, image, block, n.Label())
		}
		steps := make([]int, r)
		for i := range steps {
			free := int64(image[i]) + pads[i] + pads[r+i] - dilations[i]*int64(block[i]-1) - 1
			if strides[i] < 1 || dilations[i] < 1 || pads[i] < 0 || pads[r+i] < 0 || block[i] < 1 || free < 0 || free > 1<<40 ||
				image[i] > 1<<40 || pads[i] > 1<<40 || dilations[i] > 1<<40 {
				return fmt.Errorf("image %v, block %v, strides %v, dilations %v, pads %v", image, block, strides, dilations, pads)
			}
			steps[i] = int(free/strides[i]) + 1
		}
		taps, ok := tensor.NumElements(block)
		cols, ok1 := tensor.NumElements(steps)
		in := x.Shape()
		if !ok || !ok1 || in[1]%taps != 0 || in[2] != cols {
			return fmt.Errorf("input is %v for %d blocks of %d elements", x, cols, taps)
		}
		depth := in[1] / taps
		shape := append([]int{in[0], depth}, image...)
		if _, ok := tensor.NumElements(shape); !ok {
			return fmt.Errorf("image %v", image)
		}
		fold := func(add func(to, from int)) error {
			size := volume(image)
			idx, col := make([]int, r), make([]int, r)
			for p := range in[0] * depth {
				if err := c.Ctx.Err(); err != nil {
					return err
				}
				clear(idx)
				for k := range taps {
					clear(col)
					for j := range cols {
						at, inside := 0, true
						for i, d := range image {
							v := col[i]*int(strides[i]) - int(pads[i]) + idx[i]*int(dilations[i])
							inside = inside && v >= 0 && v < d
							at = at*d + v
						}
						if inside {
							add(p*size+at, (p*taps+k)*cols+j)
						}
						advance(col, steps)
					}
					advance(idx, block)
				}
			}
			return nil
		}
		return onReals(c, x, shape,
			func(y, x []float32) error {
				clear(y)
				return fold(func(to, from int) { y[to] += x[from] })
			},
			func(y, x []float64) error {
				clear(y)
				return fold(func(to, from int) { y[to] += x[from] })
			})
	}, nil
}

// advance steps idx to the next index over dims in row-major order.
func advance(idx, dims []int) {
	for i := len(idx) - 1; i >= 0; i-- {
		if idx[i]++; idx[i] < dims[i] {
			return
		}
		idx[i] = 0
	}
}

func inferRois(c *Inference, h, w int64) error {
	out := graph.Shape{{}, {}, graph.D(h), graph.D(w)}
	if h < 1 || w < 1 {
		return c.Errorf("output of %d × %d", h, w)
	}
	if x := c.Shape(0); x != nil {
		if len(x) != 4 {
			return c.Errorf("input has shape %v", x)
		}
		out[1] = bare(x)[1]
	}
	if r := c.Shape(1); len(r) == 2 {
		out[0] = bare(r)[0]
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

// maxSamples bounds the places at which one region of interest is sampled.
const maxSamples = 1 << 22

func compileRoiAlign(s *Site) (Kernel, error) {
	n := s.Node
	h, w := n.Int("output_height", 1), n.Int("output_width", 1)
	ratio := n.Int("sampling_ratio", 0)
	scale := float64(n.Float("spatial_scale", 1))
	mode := n.String("mode", "avg")
	half := s.Opset >= 16 && n.String("coordinate_transformation_mode", "half_pixel") == "half_pixel"
	if mode != "avg" && mode != "max" || h < 1 || w < 1 || h > 1<<20 || w > 1<<20 || ratio < 0 || ratio > 1<<10 {
		return nil, s.Errorf("mode %q, output of %d × %d, sampling_ratio %d", mode, h, w, ratio)
	}
	return func(c *Call) error {
		x, rois := c.In(0), c.In(1)
		batch, err := c.ints(2)
		if err != nil {
			return err
		}
		in := x.Shape()
		if len(in) != 4 || rois.Rank() != 2 || rois.Shape()[1] != 4 || rois.Shape()[0] != len(batch) {
			return fmt.Errorf("rois are %v with %d batch indices for input %v", rois, len(batch), x)
		}
		boxes, err := tensor.Float64s(rois)
		if err != nil {
			return err
		}
		a := roiAlign{h: int(h), w: int(w), ratio: int(ratio), half: half, max: mode == "max", in: in}
		for i, b := range batch {
			if b < 0 || b >= int64(in[0]) {
				return fmt.Errorf("batch index %d of %d", b, in[0])
			}
			for k := range 4 {
				boxes[i*4+k] *= scale
			}
			if _, _, ok := a.grid(boxes[i*4 : i*4+4]); !ok {
				return fmt.Errorf("region %v takes too many samples", boxes[i*4:i*4+4])
			}
		}
		shape := []int{len(batch), in[1], int(h), int(w)}
		return onReals(c, x, shape,
			func(y, x []float32) error { return alignRois(c, &a, y, x, boxes, batch) },
			func(y, x []float64) error { return alignRois(c, &a, y, x, boxes, batch) })
	}, nil
}

// roiAlign is a RoiAlign with its attributes.
type roiAlign struct {
	h, w, ratio int
	half, max   bool
	in          []int
}

// size returns the width and height of a region.
func (a *roiAlign) size(box []float64) (w, h float64) {
	w, h = box[2]-box[0], box[3]-box[1]
	if !a.half {
		w, h = max(w, 1), max(h, 1)
	}
	return w, h
}

// grid returns the samples per bin of a region, and false if they are too
// many.
func (a *roiAlign) grid(box []float64) (gw, gh int, ok bool) {
	if a.ratio > 0 {
		return a.ratio, a.ratio, a.ratio*a.ratio*a.h*a.w <= maxSamples
	}
	w, h := a.size(box)
	fw, fh := max(math.Ceil(w/float64(a.w)), 0), max(math.Ceil(h/float64(a.h)), 0)
	if !(fw*fh*float64(a.h*a.w) <= maxSamples) || fw > maxSamples || fh > maxSamples {
		return 0, 0, false
	}
	return int(fw), int(fh), true
}

// spot is a place to sample: four pixels and their weights.
type spot struct {
	at [4]int
	w  [4]float64
}

func (a *roiAlign) spots(box []float64) (list []spot, perBin int) {
	gw, gh, _ := a.grid(box)
	w, h := a.size(box)
	x0, y0 := box[0], box[1]
	if a.half {
		x0, y0 = x0-0.5, y0-0.5
	}
	bw, bh := w/float64(a.w), h/float64(a.h)
	for py := range a.h {
		for px := range a.w {
			for iy := range gh {
				y := y0 + float64(py)*bh + (float64(iy)+0.5)*bh/float64(gh)
				for ix := range gw {
					x := x0 + float64(px)*bw + (float64(ix)+0.5)*bw/float64(gw)
					list = append(list, spotAt(x, y, a.in[3], a.in[2]))
				}
			}
		}
	}
	return list, gw * gh
}

func spotAt(x, y float64, width, height int) spot {
	if !(y >= -1 && y <= float64(height) && x >= -1 && x <= float64(width)) || width == 0 || height == 0 {
		return spot{}
	}
	lo := func(v float64, n int) (int, int, float64) {
		v = max(v, 0)
		k := int(v)
		if k >= n-1 {
			return n - 1, n - 1, 0
		}
		return k, k + 1, v - float64(k)
	}
	xl, xh, lx := lo(x, width)
	yl, yh, ly := lo(y, height)
	return spot{
		at: [4]int{yl*width + xl, yl*width + xh, yh*width + xl, yh*width + xh},
		w:  [4]float64{(1 - ly) * (1 - lx), (1 - ly) * lx, ly * (1 - lx), ly * lx},
	}
}

func alignRois[T float32 | float64](c *Call, a *roiAlign, y, x []T, boxes []float64, batch []int64) error {
	channels, size, bins := a.in[1], a.in[2]*a.in[3], a.h*a.w
	if size == 0 {
		clear(y)
		return nil
	}
	return c.For(len(batch), 1, func(lo, hi int) {
		for n := lo; n < hi; n++ {
			list, per := a.spots(boxes[n*4 : n*4+4])
			for ch := range channels {
				img := x[(int(batch[n])*channels+ch)*size:][:size]
				for b := range bins {
					out, first := 0.0, true
					for _, s := range list[b*per : (b+1)*per] {
						var v [4]float64
						for k := range v {
							v[k] = s.w[k] * float64(img[s.at[k]])
						}
						if !a.max {
							out += v[0] + v[1] + v[2] + v[3]
							continue
						}
						// The operator takes the largest weighted pixel.
						if m := max(v[0], v[1], v[2], v[3]); first || m > out {
							out, first = m, false
						}
					}
					if !a.max {
						out /= float64(max(per, 1))
					}
					y[(n*channels+ch)*bins+b] = T(out)
				}
			}
		}
	})
}

func compileMaxRoiPool(s *Site) (Kernel, error) {
	p := s.Node.Ints("pooled_shape")
	scale := s.Node.Float("spatial_scale", 1)
	if len(p) != 2 || p[0] < 1 || p[1] < 1 || p[0] > 1<<20 || p[1] > 1<<20 {
		return nil, s.Errorf("pooled_shape %v", p)
	}
	h, w := int(p[0]), int(p[1])
	return func(c *Call) error {
		x, rois := c.In(0), c.In(1)
		in := x.Shape()
		if len(in) != 4 || rois.Rank() != 2 || rois.Shape()[1] != 5 {
			return fmt.Errorf("rois are %v for input %v", rois, x)
		}
		boxes, err := tensor.Float32s(rois)
		if err != nil {
			return err
		}
		n := rois.Shape()[0]
		for i := range n {
			if b := boxes[i*5]; !(b >= 0 && b < float32(in[0])) {
				return fmt.Errorf("batch index %v of %d", b, in[0])
			}
		}
		return onReals(c, x, []int{n, in[1], h, w},
			func(y, x []float32) error { return poolRois(c, y, x, boxes, in, h, w, scale) },
			func(y, x []float64) error { return poolRois(c, y, x, boxes, in, h, w, scale) })
	}, nil
}

// poolRois computes MaxRoiPool (Girshick, Fast R-CNN, 2015): the corners are
// rounded to pixels, a bin without pixels gives 0.
func poolRois[T float32 | float64](c *Call, y, x []T, boxes []float32, in []int, h, w int, scale float32) error {
	channels, height, width := in[1], in[2], in[3]
	corner := func(v float32) float64 {
		return min(max(math.Round(float64(v*scale)), -1<<40), 1<<40)
	}
	span := func(start, size float64, k, n, limit int) (int, int) {
		bin := size / float64(n)
		lo := math.Floor(float64(k)*bin) + start
		hi := math.Ceil(float64(k+1)*bin) + start
		return int(min(max(lo, 0), float64(limit))), int(min(max(hi, 0), float64(limit)))
	}
	return c.For(len(boxes)/5, 1, func(lo, hi int) {
		for n := lo; n < hi; n++ {
			b := boxes[n*5 : n*5+5]
			x0, y0, x1, y1 := corner(b[1]), corner(b[2]), corner(b[3]), corner(b[4])
			rw, rh := max(x1-x0+1, 1), max(y1-y0+1, 1)
			for ch := range channels {
				img := x[(int(b[0])*channels+ch)*height*width:][:height*width]
				for py := range h {
					r0, r1 := span(y0, rh, py, h, height)
					for px := range w {
						c0, c1 := span(x0, rw, px, w, width)
						best, found := T(0), false
						for r := r0; r < r1; r++ {
							for k := c0; k < c1; k++ {
								if v := img[r*width+k]; !found || v > best {
									best, found = v, true
								}
							}
						}
						y[((n*channels+ch)*h+py)*w+px] = best
					}
				}
			}
		}
	})
}

// box is a box by its corners, the lower coordinates first.
type box struct{ x0, y0, x1, y1 float32 }

func boxAt(b []float32, center bool) box {
	if center {
		return box{b[0] - b[2]/2, b[1] - b[3]/2, b[0] + b[2]/2, b[1] + b[3]/2}
	}
	return box{min(b[1], b[3]), min(b[0], b[2]), max(b[1], b[3]), max(b[0], b[2])}
}

// overlaps reports whether the intersection over union of a and b is above
// threshold.
func (a box) overlaps(b box, threshold float32) bool {
	w := min(a.x1, b.x1) - max(a.x0, b.x0)
	h := min(a.y1, b.y1) - max(a.y0, b.y0)
	if !(w > 0 && h > 0) {
		return false
	}
	common := w * h
	areaA, areaB := (a.x1-a.x0)*(a.y1-a.y0), (b.x1-b.x0)*(b.y1-b.y0)
	union := areaA + areaB - common
	return areaA > 0 && areaB > 0 && union > 0 && common/union > threshold
}

func compileNonMaxSuppression(s *Site) (Kernel, error) {
	center := s.Node.Int("center_point_box", 0) != 0
	return func(c *Call) error {
		boxes, scores := c.In(0), c.In(1)
		bs, ss := boxes.Shape(), scores.Shape()
		if boxes.DType() != tensor.Float32 || scores.DType() != tensor.Float32 || len(bs) != 3 || bs[2] != 4 || len(ss) != 3 || ss[0] != bs[0] || ss[2] != bs[1] {
			return fmt.Errorf("boxes are %v, scores %v", boxes, scores)
		}
		limit, err := c.int(2, 0)
		if err != nil {
			return err
		}
		iou, err := c.realOf(3, 0)
		if err != nil {
			return err
		}
		least, err := c.realOf(4, math.Inf(-1))
		if err != nil {
			return err
		}
		filter := c.In(4) != nil
		all, score := tensor.As[float32](boxes), tensor.As[float32](scores)
		n, classes := bs[1], ss[1]
		var picked []int64
		order := make([]int, 0, n)
		for k := range bs[0] * classes {
			if err := c.Ctx.Err(); err != nil {
				return err
			}
			if limit <= 0 {
				break
			}
			row := score[k*n : (k+1)*n]
			order = order[:0]
			for i, v := range row {
				if !filter || v > float32(least) {
					order = append(order, i)
				}
			}
			slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(row[b], row[a]) })
			var kept []box
			for _, i := range order {
				if int64(len(kept)) >= limit {
					break
				}
				b := boxAt(all[(k/classes*n+i)*4:][:4], center)
				if slices.ContainsFunc(kept, func(o box) bool { return b.overlaps(o, float32(iou)) }) {
					continue
				}
				kept = append(kept, b)
				picked = append(picked, int64(k/classes), int64(k%classes), int64(i))
			}
		}
		out, err := c.Out(0, tensor.Int64, len(picked)/3, 3)
		if err == nil {
			copy(tensor.As[int64](out), picked)
		}
		return err
	}, nil
}
