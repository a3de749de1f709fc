package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
)

// maxExtent bounds kernels, strides, dilations and pads, so that positions fit
// an int.
const maxExtent = math.MaxInt32

// window holds the attributes of an operator that slides a box over the
// spatial axes of a tensor [N, C, spatial...]. A nil list is the default.
type window struct {
	kernel, stride, dilation []int64
	pads                     []int64 // begins, then ends
	auto                     string  // auto_pad, "" for NOTSET
	ceil                     bool
}

// geometry is a window over an input of known size. Fewer than 3 spatial axes
// are preceded by axes of size 1.
type geometry struct {
	rank                                 int // spatial axes of the tensor
	in, out                              [3]int
	kernel, stride, dilation, begin, end [3]int
}

// newWindow reads the attributes of n.
func newWindow(n *graph.Node) (*window, error) {
	w := &window{
		kernel: n.Ints("kernel_shape"), stride: n.Ints("strides"), dilation: n.Ints("dilations"),
		pads: n.Ints("pads"), auto: n.String("auto_pad", "NOTSET"), ceil: n.Int("ceil_mode", 0) != 0,
	}
	for _, list := range [][]int64{w.kernel, w.stride, w.dilation} {
		for _, v := range list {
			if v < 1 || v > maxExtent {
				return nil, fmt.Errorf("%d as a kernel size, stride or dilation", v)
			}
		}
	}
	for _, v := range w.pads {
		if v < 0 || v > maxExtent {
			return nil, fmt.Errorf("%d as padding", v)
		}
	}
	switch w.auto {
	case "NOTSET", "":
		w.auto = ""
	case "SAME_UPPER", "SAME_LOWER", "VALID":
		w.pads = nil
	default:
		return nil, fmt.Errorf("auto_pad is %q", w.auto)
	}
	return w, nil
}

// check reports whether the lists suit a tensor with the given number of
// spatial axes and the kernel size of the weights, if there are any.
func (w *window) check(spatial int, weights []int) error {
	if spatial < 1 || spatial > 3 {
		return fmt.Errorf("%d spatial axes, 1 to 3 are supported", spatial)
	}
	for i, list := range [][]int64{w.stride, w.dilation, w.kernel} {
		if list != nil && len(list) != spatial {
			name := [...]string{"strides", "dilations", "kernel_shape"}[i]
			return fmt.Errorf("%s has %d entries for %d spatial axes", name, len(list), spatial)
		}
	}
	if w.pads != nil && len(w.pads) != 2*spatial {
		return fmt.Errorf("pads has %d entries for %d spatial axes", len(w.pads), spatial)
	}
	if weights == nil && w.kernel == nil {
		return fmt.Errorf("kernel_shape is missing")
	}
	for i, k := range weights {
		if w.kernel != nil && w.kernel[i] != int64(k) {
			return fmt.Errorf("kernel_shape is %v, that of the weights %v", w.kernel, weights)
		}
	}
	return nil
}

func at(list []int64, i int, def int) int {
	if i < len(list) {
		return int(list[i])
	}
	return def
}

// outSize returns the output size and the padding along one axis.
func (w *window) outSize(in, kernel, stride, dilation, begin, end int) (out, b, e int) {
	span := (kernel-1)*dilation + 1
	switch w.auto {
	case "SAME_UPPER", "SAME_LOWER":
		out = (in + stride - 1) / stride
		total := max((out-1)*stride+span-in, 0)
		b = total / 2
		if w.auto == "SAME_LOWER" {
			b = total - b
		}
		return out, b, total - b
	}
	room := in + begin + end - span
	if room < 0 {
		return 0, begin, end
	}
	out = room/stride + 1
	if w.ceil && room%stride != 0 && out*stride < in+begin {
		out++ // unless the window would start in the padding at the end
	}
	return out, begin, end
}

// over returns the geometry of the window over spatial sizes in. The kernel's
// size is that of the attribute, or kernel where that is given.
func (w *window) over(in, kernel []int) (*geometry, error) {
	if err := w.check(len(in), kernel); err != nil {
		return nil, err
	}
	g := unitGeometry(len(in))
	for i, size := range in {
		k := 3 - len(in) + i
		if kernel != nil {
			g.kernel[k] = kernel[i]
		} else {
			g.kernel[k] = int(w.kernel[i])
		}
		if g.kernel[k] < 1 {
			return nil, fmt.Errorf("kernel of size %v", kernel)
		}
		g.in[k] = size
		g.stride[k], g.dilation[k] = at(w.stride, i, 1), at(w.dilation, i, 1)
		g.out[k], g.begin[k], g.end[k] = w.outSize(size, g.kernel[k], g.stride[k], g.dilation[k], at(w.pads, i, 0), at(w.pads, i+len(in), 0))
	}
	return g, nil
}

func unitGeometry(rank int) *geometry {
	one := [3]int{1, 1, 1}
	return &geometry{rank: rank, in: one, out: one, kernel: one, stride: one, dilation: one}
}

// shape returns [n, c, spatial output...].
func (g *geometry) shape(n, c int) []int {
	return append([]int{n, c}, g.out[3-g.rank:]...)
}

func (g *geometry) inSize() int     { return g.in[0] * g.in[1] * g.in[2] }
func (g *geometry) outSize() int    { return g.out[0] * g.out[1] * g.out[2] }
func (g *geometry) kernelSize() int { return g.kernel[0] * g.kernel[1] * g.kernel[2] }

// taps returns the range of kernel positions along axis d that lie inside the
// input for output position p, and the input position of the first.
func (g *geometry) taps(d, p int) (lo, hi, pos int) {
	start, dil := p*g.stride[d]-g.begin[d], g.dilation[d]
	if start < 0 {
		lo = (-start + dil - 1) / dil
	}
	hi = min(g.kernel[d], max((g.in[d]-start+dil-1)/dil, 0))
	return lo, max(hi, lo), start + lo*dil
}

// valid returns the range of output positions along axis d whose kernel
// position k lies inside the input.
func (g *geometry) valid(d, k int) (lo, hi int) {
	off, s := k*g.dilation[d]-g.begin[d], g.stride[d]
	if off < 0 {
		lo = (-off + s - 1) / s
	}
	if last := g.in[d] - 1 - off; last >= 0 {
		hi = last/s + 1
	}
	lo = min(lo, g.out[d])
	return lo, max(min(hi, g.out[d]), lo)
}

// infer returns the output shape [N, channels, spatial...] for an input of
// shape x; kernel holds the spatial sizes of the weights, or is nil.
func (w *window) infer(x graph.Shape, channels graph.Dim, kernel graph.Shape) (graph.Shape, error) {
	if x == nil {
		return nil, nil
	}
	if len(x) < 3 {
		return nil, fmt.Errorf("input of rank %d", len(x))
	}
	n := len(x) - 2
	if kernel != nil && len(kernel) != n {
		return nil, fmt.Errorf("weights with %d spatial axes for an input with %d", len(kernel), n)
	}
	sizes, known := kernel.Dims()
	if !known {
		sizes = nil
		if w.kernel == nil {
			out := graph.UnknownShape(len(x))
			out[0], out[1] = bareDim(x[0]), channels
			return out, nil
		}
	}
	if err := w.check(n, sizes); err != nil {
		return nil, err
	}
	out := graph.Shape{bareDim(x[0]), channels}
	for i := range n {
		k := at(w.kernel, i, 0)
		if sizes != nil {
			k = sizes[i]
		}
		s, dil, b, e := at(w.stride, i, 1), at(w.dilation, i, 1), at(w.pads, i, 0), at(w.pads, i+n, 0)
		d := bareDim(x[2+i])
		switch {
		case d.Known:
			size, _, _ := w.outSize(int(d.Size), k, s, dil, b, e)
			out = append(out, graph.D(int64(size)))
		case s == 1 && (w.auto == "SAME_UPPER" || w.auto == "SAME_LOWER" || b+e == (k-1)*dil):
			out = append(out, d)
		default:
			out = append(out, graph.Dim{})
		}
	}
	return out, nil
}

// bareDim returns d without what only its own place in the file says.
func bareDim(d graph.Dim) graph.Dim {
	d.Extra = nil
	return d
}
