package ops

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// Chain says which images of a Conv, MaxPool, AveragePool or GlobalAveragePool
// on float32 are in blocks of 16 channels, [N][C/16][spatial axes][16], in a
// tensor of the shape [N, C, spatial axes] with C rounded up to a multiple of
// 16. The input of a pooling is, the result of GlobalAveragePool never.
type Chain struct {
	X, Y     bool
	Channels int // of X
}

// blockedChannels is the number of channels of a tensor in blocks.
func blockedChannels(n int) int {
	return (n + kernels.BlockSize - 1) / kernels.BlockSize * kernels.BlockSize
}

// ChainConv reports whether a Conv of the given weights may be part of a Chain.
func ChainConv(weights []int, group int) bool {
	return len(weights) > 2 && group > 0 && weights[0]%group == 0 &&
		kernels.Blockable(weights[1]*group, weights[0], group, len(weights)-2)
}

// chainFor is the kernel of a convolution in a chain for one geometry, and what
// it makes of inputs of a shape.
type chainFor struct {
	conv       *kernels.BlockConv
	begin, end [3]int
	in, out    []int
}

// chained runs a convolution that is part of a chain.
type chained struct {
	*convolution
	chain Chain
	last  atomic.Pointer[chainFor]
}

func (cv *chained) run(c *Call) error {
	x, w, b := c.In(0), c.In(1), c.In(2)
	if x.DType() != tensor.Float32 || x.Rank() != w.Rank() {
		return fmt.Errorf("input %v, weights %v", x, w)
	}
	n, ch, m := x.Shape()[0], w.Shape()[1]*cv.group, w.Shape()[0]
	want := ch
	if cv.chain.X {
		want = blockedChannels(ch)
	}
	if x.Shape()[1] != want || m%cv.group != 0 || b != nil && b.Len() != m {
		return fmt.Errorf("input %v, weights %v, group %d", x, w, cv.group)
	}
	l := cv.last.Load()
	if l == nil || !equalInts(l.in, x.Shape()) {
		g, err := cv.window.over(x.Shape()[2:], w.Shape()[2:])
		if err != nil {
			return err
		}
		next := &chainFor{begin: g.begin, end: g.end, in: slices.Clone(x.Shape())}
		channels := m
		if cv.chain.Y {
			channels = blockedChannels(m)
		}
		next.out = g.shape(n, channels)
		if l != nil && l.begin == g.begin && l.end == g.end {
			next.conv = l.conv
		} else if next.conv, err = cv.build(g, b, ch, m); err != nil {
			return err
		}
		l = next
		cv.last.Store(l)
	}
	y, err := c.Out(0, tensor.Float32, l.out...)
	if err != nil || y.Len() == 0 {
		return err
	}
	res, err := residual[float32](c, cv.z, y)
	if err != nil {
		return err
	}
	if err := l.conv.RunChain(c.Pool, n, tensor.As[float32](x), x.Shape()[2:], tensor.As[float32](y), res, cv.chain.X, cv.chain.Y); err != nil {
		return err
	}
	return c.Ctx.Err()
}

// build makes the kernel for g.
func (cv *chained) build(g *geometry, bias *tensor.Tensor, ch, m int) (*kernels.BlockConv, error) {
	spec, sum, err := cv.ready.spec(vector[float32](bias), g, ch, m, cv.group, cv.fused)
	if err != nil {
		return nil, err
	}
	conv, err := kernels.NewBlockConv(spec, cv.ready.weights, sum, !cv.chain.X && cv.group == 1 && ch < kernels.BlockSize)
	if err == nil && conv == nil {
		err = fmt.Errorf("convolution of %d to %d channels, group %d, in blocks", ch, m, cv.group)
	}
	return conv, err
}

// blockPool pools images in blocks. mean says that it divides, by pads too with
// pad.
func blockPool(c *Call, w *window, k *Chain, mean, pad bool) error {
	x := c.In(0)
	if x.DType() != tensor.Float32 || x.Rank() != 4 || x.Shape()[1] != blockedChannels(k.Channels) {
		return fmt.Errorf("input %v in blocks of %d channels", x, k.Channels)
	}
	n, ch := x.Shape()[0], k.Channels
	if k.Y {
		ch = blockedChannels(ch)
	}
	g, err := w.over(x.Shape()[2:], nil)
	if err != nil {
		return err
	}
	out, err := c.Out(0, tensor.Float32, g.shape(n, ch)...)
	if err != nil || out.Len() == 0 {
		return err
	}
	axis := func(d int) kernels.PoolAxis {
		a := kernels.PoolAxis{In: g.in[d], Out: g.out[d], Kernel: g.kernel[d], Stride: g.stride[d], Dilation: g.dilation[d], Begin: g.begin[d]}
		if mean {
			a.Count = g.counts(d, pad)
		}
		return a
	}
	m := kernels.Image{C: k.Channels, H: g.out[1], W: g.out[2]}
	y := tensor.As[float32](out)
	blocks := y
	if !k.Y {
		if blocks, err = scratch[float32](c, n*m.Len()); err != nil {
			return err
		}
	}
	planes := n * x.Shape()[1] / kernels.BlockSize
	if err := kernels.PoolBlocks(c.Pool, planes, axis(1), axis(2), tensor.As[float32](x), blocks, mean); err != nil {
		return err
	}
	if !k.Y {
		m.FromImage(c.Pool, n, y, blocks)
	}
	return c.Ctx.Err()
}

// blockMean is GlobalAveragePool of images of the given channels in blocks.
func blockMean(c *Call, channels int) error {
	x := c.In(0)
	if x.DType() != tensor.Float32 || x.Rank() < 3 || x.Shape()[1] != blockedChannels(channels) {
		return fmt.Errorf("input %v in blocks of %d channels", x, channels)
	}
	shape := append([]int{x.Shape()[0], channels}, x.Shape()[2:]...)
	size := 1
	for i := 2; i < len(shape); i++ {
		size *= shape[i]
		shape[i] = 1
	}
	out, err := c.Out(0, tensor.Float32, shape...)
	if err != nil || out.Len() == 0 {
		return err
	}
	if size == 0 {
		return fmt.Errorf("input %v has no elements to pool", x)
	}
	// Rows first, so that rounding errors grow with the sides alone.
	const lanes = kernels.BlockSize
	planes := shape[0] * blockedChannels(channels) / lanes
	width := x.Shape()[x.Rank()-1]
	whole := func(n int) kernels.PoolAxis {
		return kernels.PoolAxis{In: n, Out: 1, Kernel: n, Stride: 1, Dilation: 1, Count: []int{n}}
	}
	height := size / width
	buf, err := scratch[float32](c, planes*(height+1)*lanes)
	if err != nil {
		return err
	}
	rows, means := buf[:planes*height*lanes], buf[planes*height*lanes:]
	one := kernels.PoolAxis{In: 1, Out: 1, Kernel: 1, Stride: 1, Dilation: 1, Count: []int{1}}
	if err := kernels.PoolBlocks(c.Pool, planes*height, one, whole(width), tensor.As[float32](x), rows, true); err != nil {
		return err
	}
	if err := kernels.PoolBlocks(c.Pool, planes, whole(height), one, rows, means, true); err != nil {
		return err
	}
	y := tensor.As[float32](out)
	for i := range shape[0] {
		copy(y[i*channels:][:channels], means[i*blockedChannels(channels):])
	}
	return c.Ctx.Err()
}
