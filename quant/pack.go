package quant

import (
	"unsafe"

	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

func asInt8(b []byte) []int8 {
	return unsafe.Slice((*int8)(unsafe.Pointer(unsafe.SliceData(b))), len(b))
}

// Plain reports whether codes can be stored as unsigned integers with an
// integer zero point, which is the middle of the codes unless each block has
// its own.
func (b *Blocks) Plain() bool {
	return b.Kind == Integer || b.Kind == Codebook && b.Name == "binary"
}

// unsigned returns the number that a code of a Plain type is stored as in a
// field of so many bits: its product with times, plus offset.
func (c *Coded) unsigned(bits int) (offset, times byte) {
	middle := byte(1) << (bits - 1)
	_, _, base := c.codeRange()
	switch {
	case c.Kind == Codebook: // -1 and 1
		return middle - 1, 2
	case c.Zero != nil && c.Signed():
		return middle, 1
	case c.Zero != nil:
		return 0, 1
	}
	return middle - byte(base), 1
}

// PackedBytes returns the length of what PackBlocks stores for a line, and of
// what PackZeros does.
func (b *Blocks) PackedBytes(k int) (codes, zeros int) {
	bits := b.DType.Bits()
	n := b.blocks(k)
	return n * b.Size * bits / 8, (n*bits + 7) / 8
}

// PackBlocks stores the codes of a Plain type as unsigned integers of 2, 4 or 8
// bits in whole blocks, the first in the lowest bits: the layout of
// com.microsoft.MatMulNBits and, where lines are whole blocks, of
// GatherBlockQuantized. What a last block lacks stands for 0.
func (c *Coded) PackBlocks(dst []byte) {
	bits := c.DType.Bits()
	offset, times := c.unsigned(bits)
	n := c.blocks(c.K)
	line, _ := c.PackedBytes(c.K)
	var row []byte // where codes cannot be packed as they lie
	if c.K < n*c.Size || times > 1 {
		row = make([]byte, n*c.Size)
	}
	for i := range c.Lines {
		codes := c.Codes[i*c.K:][:c.K]
		if row != nil {
			for j, q := range codes {
				row[j] = q * times
			}
			fill := byte(1)<<(bits-1) - offset
			if c.Zero != nil {
				fill = byte(c.Zero[(i+1)*n-1])
			}
			for j := c.K; j < len(row); j++ {
				row[j] = fill
			}
			codes = row
		}
		pack(dst[i*line:][:line], codes, bits, offset)
	}
}

// PackCodes stores the codes of a Plain type as PackBlocks does, but only the
// elements that lines have, in whole bytes a line: the layout of
// GatherBlockQuantized.
func (c *Coded) PackCodes(dst []byte) {
	bits := c.DType.Bits()
	offset, times := c.unsigned(bits)
	line := (c.K*bits + 7) / 8
	row := make([]byte, c.K)
	for i := range c.Lines {
		codes := c.Codes[i*c.K:][:c.K]
		if times > 1 {
			for j, q := range codes {
				row[j] = q * times
			}
			codes = row
		}
		pack(dst[i*line:][:line], codes, bits, offset)
	}
}

// PackZeros stores the zero points, those of a line in whole bytes.
func (c *Coded) PackZeros(dst []byte) {
	bits := c.DType.Bits()
	offset, _ := c.unsigned(bits)
	n := c.blocks(c.K)
	_, line := c.PackedBytes(c.K)
	row := make([]byte, n)
	for i := range c.Lines {
		for j, z := range c.Zero[i*n:][:n] {
			row[j] = byte(z)
		}
		pack(dst[i*line:][:line], row, bits, offset)
	}
}

// pack stores the low bits of src+offset side by side.
func pack(dst, src []byte, bits int, offset byte) {
	switch bits {
	case 2:
		kernels.Pack2(dst, src, offset)
	case 4:
		kernels.Pack4(dst, src, offset)
	default:
		kernels.Pack8(dst, src, offset)
	}
}

// PackScales stores the scales in their type; those of nvfp4 relative to the
// scale of the tensor.
func (c *Coded) PackScales(dst []byte) {
	t, _ := tensor.FromBytes(c.ScaleType, []int{len(c.Scale)}, dst)
	if c.Global == 1 {
		tensor.Write(t, 0, c.Scale)
		return
	}
	rel := make([]float64, len(c.Scale))
	for i, s := range c.Scale {
		rel[i] = float64(s) / float64(c.Global)
	}
	tensor.Write(t, 0, rel)
}

// Tensor returns the codes where the elements of l lie, in the storage type
// and of the shape of l.T, of which c holds all lines.
func (c *Coded) Tensor(l Lines) *tensor.Tensor {
	flat := scatter(c.Codes, l, l.K, len(c.Codes)/max(1, c.Lines*c.K))
	out := tensor.New(c.DType, l.T.Shape()...)
	pack(out.Bytes(), flat, c.DType.Bits(), 0)
	return out
}

// Scales returns the scales as DequantizeLinear wants them for the lines of l:
// in the place of the axis stand the blocks.
func (c *Coded) Scales(l Lines) *tensor.Tensor {
	n := c.blocks(c.K)
	out := tensor.New(c.ScaleType, l.Outer, n, l.Inner)
	s := *c
	s.Scale = scatter(c.Scale, l, n, 1)
	s.PackScales(out.Bytes())
	return out
}

// Zeros returns the zero points in the storage type, laid out as Scales.
func (c *Coded) Zeros(l Lines) *tensor.Tensor {
	n := c.blocks(c.K)
	bytes := make([]byte, len(c.Zero))
	for i, z := range c.Zero {
		bytes[i] = byte(z)
	}
	out := tensor.New(c.DType, l.Outer, n, l.Inner)
	pack(out.Bytes(), scatter(bytes, l, n, 1), c.DType.Bits(), 0)
	return out
}

// scatter puts n elements of each line, of width items each, where they lie in
// the tensor.
func scatter[T any](lines []T, l Lines, n, width int) []T {
	if l.Inner == 1 {
		return lines
	}
	out := make([]T, len(lines))
	for o := range l.Outer {
		at := o * n * l.Inner * width
		if width == 1 {
			kernels.Transpose(out[at:], l.Inner, lines[at:], n, l.Inner, n)
			continue
		}
		for i := range l.Inner {
			for k := range n {
				copy(out[at+(k*l.Inner+i)*width:][:width], lines[at+(i*n+k)*width:][:width])
			}
		}
	}
	return out
}
