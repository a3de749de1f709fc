package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

func deformSpecs() []Spec {
	ints := func(kind graph.AttrKind, names ...string) (a []AttrSpec) {
		for _, n := range names {
			a = append(a, AttrSpec{Name: n, Kind: kind})
		}
		return a
	}
	return []Spec{{
		Type: "DeformConv", Since: 19, Flow: Compute, Pure: true,
		In: []Port{
			{Name: "X", Role: Activation}, {Name: "W", Role: Weight, Axis: 0}, {Name: "offset"},
			{Name: "B", Role: Bias, Optional: true}, {Name: "mask", Optional: true},
		},
		Out:   []Port{{Name: "Y", Role: Activation}},
		Attrs: append(ints(graph.AttrInt, "group", "offset_group"), ints(graph.AttrInts, "dilations", "kernel_shape", "pads", "strides")...),
		Infer: inferConv, Compile: compileDeformConv,
	}}
}

// deformConv is a DeformConv bound to its attributes.
type deformConv struct {
	window              *window
	group, offsetGroups int
}

func compileDeformConv(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	d := &deformConv{window: w, group: int(s.Node.Int("group", 1)), offsetGroups: int(s.Node.Int("offset_group", 1))}
	if d.group < 1 || d.offsetGroups < 1 {
		return nil, s.Errorf("group is %d, offset_group %d", d.group, d.offsetGroups)
	}
	return widened(func(c *Call) error {
		switch x := c.In(0); x.DType() {
		case tensor.Float32:
			return deformRun[float32](d, c)
		case tensor.Float64:
			return deformRun[float64](d, c)
		default:
			return fmt.Errorf("input of type %v", x.DType())
		}
	}), nil
}

// deformRun multiplies the weights with an input that is sampled, by linear
// interpolation, where the offsets move each kernel position to.
func deformRun[T float32 | float64](d *deformConv, c *Call) error {
	x, w, offset := c.In(0), c.In(1), c.In(2)
	n, ch, m, err := convShapes(x, w, c.In(3), d.group)
	if err != nil {
		return err
	}
	g, err := d.window.over(x.Shape()[2:], w.Shape()[2:])
	if err != nil {
		return err
	}
	in, out, ks := g.inSize(), g.outSize(), g.kernelSize()
	og := d.offsetGroups
	if ch%og != 0 || w.DType() != x.DType() || offset.DType() != x.DType() || offset.Len() != n*og*ks*g.rank*out {
		return fmt.Errorf("input %v, weights %v, offset %v, offset_group %d", x, w, offset, og)
	}
	mask, err := optional[T](c, 4, n*og*ks*out)
	if err != nil {
		return err
	}
	bias, err := optional[T](c, 3, m)
	if err != nil {
		return err
	}
	y, err := c.Out(0, x.DType(), g.shape(n, m)...)
	if err != nil || y.Len() == 0 {
		return err
	}
	xs, ws, off, ys := tensor.As[T](x), tensor.As[T](w), tensor.As[T](offset), tensor.As[T](y)
	col, err := scratch[T](c, ch*ks*out)
	if err != nil {
		return err
	}
	cg, mg := ch/d.group, m/d.group
	for img := range n {
		if err := c.For(ch, 1, func(lo, hi int) {
			for k := lo; k < hi; k++ {
				set := img*og + k/(ch/og)
				for tap := range ks {
					var by []T
					if mask != nil {
						by = mask[(set*ks+tap)*out:][:out]
					}
					sample(col[(k*ks+tap)*out:][:out], xs[(img*ch+k)*in:][:in], off[(set*ks+tap)*g.rank*out:], by, g, tap)
				}
			}
		}); err != nil {
			return err
		}
		for gr := range d.group {
			product(c, mg, out, cg*ks, ws[gr*mg*cg*ks:], cg*ks, false, col[gr*cg*ks*out:], out, false, ys[(img*m+gr*mg)*out:], out)
		}
	}
	if bias == nil {
		return c.Ctx.Err()
	}
	return c.For(n*m, 8, func(lo, hi int) {
		for p := lo; p < hi; p++ {
			plane := ys[p*out:][:out]
			for i := range plane {
				plane[i] += bias[p%m]
			}
		}
	})
}

// sample interpolates x at kernel position tap of each output position, moved
// by offsets, one plane for each axis of the tensor, and multiplies by mask.
func sample[T float32 | float64](dst, x, offset, mask []T, g *geometry, tap int) {
	out := len(dst)
	k := [3]int{tap / g.kernel[2] / g.kernel[1], tap / g.kernel[2] % g.kernel[1], tap % g.kernel[2]}
	for i := range dst {
		p := [3]int{i / g.out[2] / g.out[1], i / g.out[2] % g.out[1], i % g.out[2]}
		var low [3]int
		var part [3]T // weight of the upper neighbour
		inside := true
		for d := range 3 {
			at := T(p[d]*g.stride[d] - g.begin[d] + k[d]*g.dilation[d])
			if a := d - (3 - g.rank); a >= 0 {
				at += offset[a*out+i]
			}
			if !(at > -1 && at < T(g.in[d])) {
				inside = false
				break
			}
			f := math.Floor(float64(at))
			low[d], part[d] = int(f), at-T(f)
		}
		dst[i] = 0
		if !inside {
			continue
		}
		for corner := range 8 {
			v, pos := T(1), 0
			for d := range 3 {
				q := low[d]
				if corner>>d&1 != 0 {
					q++
					v *= part[d]
				} else {
					v *= 1 - part[d]
				}
				if q < 0 || q >= g.in[d] {
					v = 0
					q = 0
				}
				pos = pos*g.in[d] + q
			}
			if v != 0 {
				dst[i] += v * x[pos]
			}
		}
		if mask != nil {
			dst[i] *= mask[i]
		}
	}
}
