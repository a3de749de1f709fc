package ops

import (
	"fmt"
	"math/bits"
	"unsafe"

	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// Operators that move elements without looking at them share three ways to do
// so, all by element width and therefore good for every element type: cells
// (blocks from place to place), strided (an n-dimensional copy between
// strides) and lookup (an index table per axis). Elements of 2 and 4 bits are
// spread to a byte each around the kernel: see moving.

// pieceElems is the number of elements that one piece of a parallel copy
// moves.
const pieceElems = 1 << 15

// isPacked reports whether elements of d share bytes.
func isPacked(d tensor.DType) bool { return d.Bits() > 0 && d.Bits() < 8 }

// unpack returns t with one element per byte, in the low bits.
func unpack(c *Call, t *tensor.Tensor) (*tensor.Tensor, error) {
	u, err := c.Mem.New(tensor.Uint8, t.Shape())
	if err != nil {
		return nil, err
	}
	if t.DType().Bits() == 4 {
		kernels.Unpack4(u.Bytes(), t.Bytes())
	} else {
		kernels.Unpack2(u.Bytes(), t.Bytes())
	}
	return u, nil
}

// pack is the inverse of unpack.
func pack(c *Call, u *tensor.Tensor, dtype tensor.DType) (*tensor.Tensor, error) {
	t, err := c.Mem.New(dtype, u.Shape())
	if err != nil {
		return nil, err
	}
	if dtype.Bits() == 4 {
		kernels.Pack4(t.Bytes(), u.Bytes(), 0)
	} else {
		kernels.Pack2(t.Bytes(), u.Bytes(), 0)
	}
	return t, nil
}

// moving adapts a kernel that does not look at its elements to packed types.
// The inputs from first to last (negative: to the end) are moved; outputs of
// type uint8 are results of theirs.
func moving(k Kernel, first, last int) Kernel {
	return func(c *Call) error {
		x := c.In(first)
		if x == nil || !isPacked(x.DType()) {
			return k(c)
		}
		w := *c
		w.Mem = freshMemory{c.Mem}
		w.Ins = append([]Data(nil), c.Ins...)
		w.Outs = make([]Data, len(c.Outs))
		end := last
		if end < 0 {
			end = len(c.Ins) - 1
		}
		for i := first; i <= end; i++ {
			if t := c.In(i); t != nil && isPacked(t.DType()) {
				u, err := unpack(c, t)
				if err != nil {
					return err
				}
				w.Ins[i] = u
			}
		}
		if err := k(&w); err != nil {
			return err
		}
		for i, o := range w.Outs {
			t, ok := o.(*tensor.Tensor)
			if ok && t.DType() == tensor.Uint8 {
				p, err := pack(c, t, x.DType())
				if err != nil {
					return err
				}
				o = p
			}
			c.Outs[i] = o
		}
		return nil
	}
}

// cells is the storage of a tensor whose elements do not share bytes.
type cells struct {
	w int // bytes per element; 0 for strings
	b []byte
	s []string
}

func cellsOf(t *tensor.Tensor) cells {
	return cells{w: t.DType().Bits() / 8, b: t.Bytes(), s: t.Strings()}
}

// put copies n elements of src from index from to index at.
func (d cells) put(at int, src cells, from, n int) {
	if d.w == 0 {
		copy(d.s[at:at+n], src.s[from:from+n])
		return
	}
	copy(d.b[at*d.w:(at+n)*d.w], src.b[from*d.w:(from+n)*d.w])
}

// putRows copies rows of n elements: the first from index from to index at,
// each further one stride and step elements on.
func (d cells) putRows(at, step int, src cells, from, stride, n, rows int) {
	if n <= 0 || rows <= 0 {
		return
	}
	if d.w == 0 || step < 0 || stride < 0 {
		for r := range rows {
			d.put(at+r*step, src, from+r*stride, n)
		}
		return
	}
	size := n * d.w
	to, of := d.b[at*d.w:], src.b[from*d.w:]
	step, stride = step*d.w, stride*d.w
	switch {
	case step == size && stride == size || rows == 1:
		copy(to[:rows*size], of[:rows*size])
	case size == 1:
		cellRows[[1]byte](to, step, of, stride, rows)
	case size == 2:
		cellRows[[2]byte](to, step, of, stride, rows)
	case size == 4:
		cellRows[[4]byte](to, step, of, stride, rows)
	case size == 8:
		cellRows[[8]byte](to, step, of, stride, rows)
	case size == 16:
		cellRows[[16]byte](to, step, of, stride, rows)
	case size == 32:
		cellRows[[32]byte](to, step, of, stride, rows)
	default:
		for r := range rows {
			copy(to[r*step:][:size], of[r*stride:][:size])
		}
	}
}

// cellRows copies values of type C that lie step and stride bytes apart.
func cellRows[C any](to []byte, step int, of []byte, stride, rows int) {
	size := int(unsafe.Sizeof(*new(C)))
	to, of = to[:(rows-1)*step+size], of[:(rows-1)*stride+size]
	d, s := unsafe.Pointer(&to[0]), unsafe.Pointer(&of[0])
	for ; rows > 1; rows-- {
		*(*C)(d) = *(*C)(s)
		d, s = unsafe.Add(d, step), unsafe.Add(s, stride)
	}
	*(*C)(d) = *(*C)(s)
}

// fill sets n elements from index at on to element 0 of v.
func (d cells) fill(at, n int, v cells) {
	if n <= 0 {
		return
	}
	if d.w == 0 {
		for i := range d.s[at : at+n] {
			d.s[at+i] = v.s[0]
		}
		return
	}
	b := d.b[at*d.w : (at+n)*d.w]
	for done := copy(b, v.b[:d.w]); done < len(b); done *= 2 {
		copy(b[done:], b[:done])
	}
}

// zero clears n elements from index at on.
func (d cells) zero(at, n int) {
	if d.w == 0 {
		clear(d.s[at : at+n])
		return
	}
	clear(d.b[at*d.w : (at+n)*d.w])
}

// copyAll copies src to dst, which have the same number of elements.
func copyAll(c *Call, dst, src *tensor.Tensor) error {
	d, s := dst.Bytes(), src.Bytes()
	if dst.DType() == tensor.String {
		copy(dst.Strings(), src.Strings())
		return nil
	}
	if len(d) <= 4*pieceElems {
		copy(d, s)
		return nil
	}
	return c.For(len(d), 8*pieceElems, func(lo, hi int) { copy(d[lo:hi], s[lo:hi]) })
}

// rowMajor returns the strides, in elements, of a dense tensor.
func rowMajor(shape []int) []int {
	st := make([]int, len(shape))
	n := 1
	for i := len(shape) - 1; i >= 0; i-- {
		st[i] = n
		n *= shape[i]
	}
	return st
}

// readStrides returns the strides with which a tensor of shape in is read as
// one of shape out, to which it broadcasts.
func readStrides(in, out []int) []int {
	st := make([]int, len(out))
	off := len(out) - len(in)
	for i, s := range rowMajor(in) {
		if in[i] == out[off+i] {
			st[off+i] = s
		}
	}
	return st
}

// volume returns the product of dims of a tensor that exists.
func volume(dims []int) int {
	n := 1
	for _, d := range dims {
		n *= d
	}
	return n
}

// mulDims returns a·b for sizes of at least 0, and an error where it
// overflows.
func mulDims(a, b int) (int, error) {
	hi, lo := bits.Mul(uint(a), uint(b))
	if hi != 0 || int(lo) < 0 {
		return 0, fmt.Errorf("size %d times %d is too large", a, b)
	}
	return int(lo), nil
}

// strided is the copy dst[do + Σ i·dst] = src[so + Σ i·src] for every index i
// over dims.
type strided struct {
	dims, src, dst []int
	so, do         int
}

// squash drops axes of size 1 and joins neighbours that are one axis to both
// sides.
func (s *strided) squash() {
	k := 0
	for i, d := range s.dims {
		if d == 1 {
			continue
		}
		if k > 0 && s.src[k-1] == s.src[i]*d && s.dst[k-1] == s.dst[i]*d {
			s.dims[k-1] *= d
		} else {
			s.dims[k] = d
			k++
		}
		s.src[k-1], s.dst[k-1] = s.src[i], s.dst[i]
	}
	s.dims, s.src, s.dst = s.dims[:k], s.src[:k], s.dst[:k]
}

// copy runs the copy from src to dst, tensors of one element type that is not
// packed. It uses up s.
func (s *strided) copy(c *Call, dst, src *tensor.Tensor) error {
	for _, d := range s.dims {
		if d == 0 {
			return nil
		}
	}
	s.squash()
	if last := len(s.dims) - 1; last < 0 || s.src[last] == 1 && s.dst[last] == 1 {
		return s.rows(c, cellsOf(dst), cellsOf(src))
	}
	switch src.DType().Bits() {
	case 0:
		return stridedCopy(c, dst.Strings(), src.Strings(), s)
	case 8:
		return stridedCopy(c, tensor.As[uint8](dst), tensor.As[uint8](src), s)
	case 16:
		return stridedCopy(c, tensor.As[uint16](dst), tensor.As[uint16](src), s)
	case 32:
		return stridedCopy(c, tensor.As[uint32](dst), tensor.As[uint32](src), s)
	case 64:
		return stridedCopy(c, tensor.As[uint64](dst), tensor.As[uint64](src), s)
	case 128:
		return stridedCopy(c, tensor.As[complex128](dst), tensor.As[complex128](src), s)
	}
	return fmt.Errorf("element type %v cannot be moved", src.DType())
}

// rows is copy where the last axis is dense on both sides.
func (s *strided) rows(c *Call, dst, src cells) error {
	r := len(s.dims)
	n, count, from, to := 1, 1, 0, 0 // of rows that lie evenly apart
	if r > 0 {
		n = s.dims[r-1]
	}
	if r > 1 {
		count, from, to = s.dims[r-2], s.src[r-2], s.dst[r-2]
	}
	k := max(r-2, 0)
	dims, as, ad := s.dims[:k], s.src[:k], s.dst[:k]
	outer := volume(dims)
	if outer == 1 && count > 1 && count*n > pieceElems {
		return c.For(count, max(1, pieceElems/n), func(lo, hi int) {
			dst.putRows(s.do+lo*to, to, src, s.so+lo*from, from, n, hi-lo)
		})
	}
	blocks := func(lo, hi int) {
		at := newStepper(dims, as, ad, lo)
		for i := lo; i < hi; i++ {
			dst.putRows(s.do+at.ob, to, src, s.so+at.oa, from, n, count)
			at.next()
		}
	}
	if outer*count*n <= pieceElems {
		blocks(0, outer)
		return nil
	}
	return c.For(outer, max(1, pieceElems/(count*n)), blocks)
}

// dense reports whether what s reads is a tensor of the given shape as it lies.
func (s *strided) dense(shape []int) bool {
	n := 1
	for i := len(shape) - 1; i >= 0; i-- {
		if shape[i] != 1 && s.src[i] != n {
			return false
		}
		n *= shape[i]
	}
	return true
}

// stepper walks the index over dims in row-major order and keeps two offsets
// up to date.
type stepper struct {
	dims, a, b, idx []int
	oa, ob          int
}

func newStepper(dims, a, b []int, start int) *stepper {
	t := &stepper{dims: dims, a: a, b: b, idx: make([]int, len(dims))}
	for i := len(dims) - 1; i >= 0 && start > 0; i-- {
		k := start % dims[i]
		start /= dims[i]
		t.idx[i] = k
		t.oa += k * a[i]
		t.ob += k * b[i]
	}
	return t
}

func (t *stepper) next() {
	for i := len(t.dims) - 1; i >= 0; i-- {
		t.oa += t.a[i]
		t.ob += t.b[i]
		if t.idx[i]++; t.idx[i] < t.dims[i] {
			return
		}
		t.idx[i] = 0
		t.oa -= t.a[i] * t.dims[i]
		t.ob -= t.b[i] * t.dims[i]
	}
}

// tile is the side of the square in which a copy that changes the unit-stride
// axis works.
const tile = 32

func stridedCopy[T any](c *Call, dst, src []T, s *strided) error {
	r := len(s.dims)
	if r == 0 {
		dst[s.do] = src[s.so]
		return nil
	}
	last := r - 1
	n, sd, ss := s.dims[last], s.dst[last], s.src[last]
	if sd == 1 && ss != 1 && ss != 0 {
		for b := last - 1; b >= 0; b-- {
			if s.src[b] == 1 && s.dims[b] >= 4 {
				return tiledCopy(c, dst, src, s, b)
			}
		}
	}
	dims, as, ad := s.dims[:last], s.src[:last], s.dst[:last]
	outer := volume(dims)
	rows := func(lo, hi int) {
		at := newStepper(dims, as, ad, lo)
		for i := lo; i < hi; i++ {
			p, q := s.so+at.oa, s.do+at.ob
			switch {
			case sd == 1 && ss == 1:
				copy(dst[q:q+n], src[p:p+n])
			case sd == 1 && ss == 0:
				row, v := dst[q:q+n], src[p]
				head := row[:min(n, 16)]
				for k := range head {
					head[k] = v
				}
				for done := len(head); done < n; done *= 2 {
					copy(row[done:], row[:done])
				}
			case sd == 1:
				row := dst[q : q+n]
				for k := range row {
					row[k] = src[p]
					p += ss
				}
			default:
				for range n {
					dst[q] = src[p]
					p += ss
					q += sd
				}
			}
			at.next()
		}
	}
	if outer*n <= pieceElems {
		rows(0, outer)
		return nil
	}
	return c.For(outer, max(1, pieceElems/n), rows)
}

// tiledCopy is stridedCopy where the last axis has unit stride in dst, axis b
// has unit stride in src.
func tiledCopy[T any](c *Call, dst, src []T, s *strided, b int) error {
	last := len(s.dims) - 1
	na, nb, sa, db := s.dims[last], s.dims[b], s.src[last], s.dst[b]
	var dims, as, ad []int
	for i := range last {
		if i != b {
			dims, as, ad = append(dims, s.dims[i]), append(as, s.src[i]), append(ad, s.dst[i])
		}
	}
	strips := (nb + tile - 1) / tile
	outer := volume(dims)
	work := func(lo, hi int) {
		at := newStepper(dims, as, ad, lo/strips)
		for w := lo; w < hi; w++ {
			b0 := w % strips * tile
			b1 := min(b0+tile, nb)
			done := 0
			switch {
			case na < tile/4: // the other axis makes the longer loop
				for k := range na {
					q, p := s.do+at.ob+b0*db+k, s.so+at.oa+k*sa
					for _, v := range src[p+b0 : p+b1] {
						dst[q] = v
						q += db
					}
				}
				done = na
			case sa > 0 && db > 0: // no axis is reversed
				kernels.Transpose(dst[s.do+at.ob+b0*db:], db, src[s.so+at.oa+b0:], sa, na, b1-b0)
				done = na
			}
			for a0 := done; a0 < na; a0 += tile {
				a1 := min(a0+tile, na)
				for i := b0; i < b1; i++ {
					q := s.do + at.ob + i*db + a0
					row := dst[q : q+a1-a0]
					p := s.so + at.oa + a0*sa + i
					for k := range row {
						row[k] = src[p]
						p += sa
					}
				}
			}
			if w%strips == strips-1 {
				at.next()
			}
		}
	}
	if outer*na*nb <= pieceElems {
		work(0, outer*strips)
		return nil
	}
	return c.For(outer*strips, max(1, pieceElems/(na*min(tile, nb))), work)
}

// lookup is the copy dst[i0, i1, …] = src[maps[0][i0], maps[1][i1], …]. A nil
// map is the identity; where any entry is -1 the result is fill, element 0 of
// which is used.
type lookup struct {
	maps     [][]int
	src, dst []int // shapes
	fill     *tensor.Tensor
}

func (l *lookup) copy(c *Call, dst, src *tensor.Tensor) error {
	if dst.Len() == 0 {
		return nil
	}
	switch src.DType().Bits() {
	case 0:
		var f string
		if l.fill != nil {
			f = l.fill.Strings()[0]
		}
		return lookupCopy(c, dst.Strings(), src.Strings(), l, f)
	case 8:
		return lookupNumbers[uint8](c, dst, src, l)
	case 16:
		return lookupNumbers[uint16](c, dst, src, l)
	case 32:
		return lookupNumbers[uint32](c, dst, src, l)
	case 64:
		return lookupNumbers[uint64](c, dst, src, l)
	case 128:
		return lookupNumbers[complex128](c, dst, src, l)
	}
	return fmt.Errorf("element type %v cannot be moved", src.DType())
}

func lookupNumbers[T tensor.Number](c *Call, dst, src *tensor.Tensor, l *lookup) error {
	var f T
	if l.fill != nil {
		f = tensor.As[T](l.fill)[0]
	}
	return lookupCopy(c, tensor.As[T](dst), tensor.As[T](src), l, f)
}

// span is a run of a map: n entries that count up from src, or are all -1.
type span struct{ dst, src, n int }

func spans(m []int) []span {
	var out []span
	for i := 0; i < len(m); {
		j := i + 1
		if m[i] < 0 {
			for j < len(m) && m[j] < 0 {
				j++
			}
		} else {
			for j < len(m) && m[j] == m[j-1]+1 {
				j++
			}
		}
		out = append(out, span{i, m[i], j - i})
		i = j
	}
	return out
}

func lookupCopy[T any](c *Call, dst, src []T, l *lookup, fill T) error {
	k := len(l.dst) - 1
	for k >= 0 && l.maps[k] == nil {
		k--
	}
	if k < 0 {
		copy(dst, src)
		return nil
	}
	block := volume(l.dst[k+1:])
	m := l.maps[k]
	runs := spans(m)
	single := block == 1 && len(runs)*3 > len(m)
	doubled := single && len(m) == 2*l.src[k] // every element twice
	for i, x := range m {
		doubled = doubled && x == i/2
	}
	row := len(m) * block
	st := rowMajor(l.src)
	outer := volume(l.dst[:k])
	rows := func(lo, hi int) {
		idx := make([]int, k)
		for i, rest := k-1, lo; i >= 0; i-- {
			idx[i] = rest % l.dst[i]
			rest /= l.dst[i]
		}
		before := -2 // source offset of the row written last
		for o := lo; o < hi; o++ {
			p := 0
			for i, x := range idx {
				if l.maps[i] != nil {
					x = l.maps[i][x]
				}
				if x < 0 {
					p = -1
					break
				}
				p += x * st[i]
			}
			out := dst[o*row : (o+1)*row]
			switch {
			case p == before:
				copy(out, dst[(o-1)*row:o*row])
			case p < 0:
				for i := range out {
					out[i] = fill
				}
			case doubled:
				for i, v := range src[p : p+l.src[k]] {
					two := out[2*i : 2*i+2 : 2*i+2]
					two[0], two[1] = v, v
				}
			case single:
				in := src[p : p+l.src[k]]
				for i, x := range m {
					if x < 0 {
						out[i] = fill
					} else {
						out[i] = in[x]
					}
				}
			default:
				for _, r := range runs {
					to := out[r.dst*block : (r.dst+r.n)*block]
					if r.src < 0 {
						for i := range to {
							to[i] = fill
						}
					} else {
						copy(to, src[p+r.src*block:])
					}
				}
			}
			before = p
			for i := k - 1; i >= 0; i-- {
				if idx[i]++; idx[i] < l.dst[i] {
					break
				}
				idx[i] = 0
			}
		}
	}
	if len(dst) <= pieceElems {
		rows(0, outer)
		return nil
	}
	return c.For(outer, max(1, pieceElems/max(row, 1)), rows)
}
