package quant

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

// Grid is a way to quantize a tensor that no runtime reads as it is: for
// inspection, and for embeddings that a search index holds.
type Grid struct {
	Name string // one of Grids, with its bits
	Bits int    // of a code, from 1 to 8
	kind gridKind
}

type gridKind uint8

const (
	twoScales gridKind = iota
	doReFa
	wrpn
	perDimension
	signs
)

var gridNames = []string{"two-scales", "dorefa", "wrpn", "dimension", "sign"}

// Grids lists the names that ParseGrid knows, with B for the bits of a code:
//
//   - two-scales:B, B from 2 to 8: integers from -2^(B-1) to 2^(B-1)-1, those above
//     0 with a scale of their own (C. Zhu et al., "Trained Ternary Quantization",
//     2017, has one for each sign), so that both ends of a range that is not
//     symmetric are reached and 0 is exact.
//   - dorefa:B, B from 1 to 8: weights of DoReFa-Net (S. Zhou et al., 2016, equations
//     8 and 9): 2·round((2^B-1)·(tanh x/(2·max|tanh x|)+1/2))/(2^B-1) - 1, and
//     sign(x)·mean|x| for one bit. Values lie in [-1, 1], whatever the tensor's range.
//   - wrpn:B, B from 2 to 8: weights of WRPN (A. Mishra et al., 2017, section 4):
//     x clipped to [-1, 1], round((2^(B-1)-1)·x)/(2^(B-1)-1).
//   - dimension:B, B from 1 to 8: each place of a line has a range of its own, over
//     all lines, which codes from 0 to 2^B-1 divide evenly, as indices of embeddings
//     have (sentence-transformers, quantize_embeddings, which rounds down).
//   - sign: one bit, whether an element is above 0, for embeddings that are compared
//     by Hamming distance; values are ±mean|x| of the line (M. Rastegari et al.,
//     "XNOR-Net", 2016, equation 6).
func Grids() []string {
	out := make([]string, len(gridNames))
	for i, n := range gridNames {
		if out[i] = n; gridKind(i) != signs {
			out[i] += ":B"
		}
	}
	return out
}

// ParseGrid returns the grid of the given name, one of those that Grids lists.
func ParseGrid(name string) (Grid, error) {
	head, bits, given := strings.Cut(name, ":")
	for i, n := range gridNames {
		g := Grid{Name: name, Bits: 1, kind: gridKind(i)}
		if n != head || given == (g.kind == signs) {
			continue
		}
		least := 1
		if g.kind == twoScales || g.kind == wrpn {
			least = 2
		}
		if given {
			var err error
			if g.Bits, err = strconv.Atoi(bits); err != nil || g.Bits < least || g.Bits > 8 {
				return Grid{}, fmt.Errorf("grid %q: want %d to 8 bits", name, least)
			}
		}
		return g, nil
	}
	return Grid{}, fmt.Errorf("unknown grid %q; known are %s", name, strings.Join(Grids(), ", "))
}

// OfBits returns the grids of so many bits, and sign.
func OfBits(bits int) []Grid {
	var out []Grid
	for _, n := range Grids() {
		if g, err := ParseGrid(strings.Replace(n, "B", strconv.Itoa(bits), 1)); err == nil {
			out = append(out, g)
		}
	}
	return out
}

// Gridded is a tensor on a grid. Rows are lines.
type Gridded struct {
	Codes  [][]int
	Values [][]float32
	// Scales holds for each line those of two-scales, for negative and for positive
	// elements, or that of sign. Of the other grids it has one row: the steps of the
	// places of a line or, of all elements, the step. Offsets holds the values of
	// code 0 of dimension.
	Scales, Offsets [][]float32
	Bits            float64 // of an element, with what Scales and Offsets take as float32
}

// Apply puts the lines of l on the grid. ranges, for dimension alone, has the
// shape [2, l.K]: the least and the greatest value of each place, beyond which
// elements are clipped; nil stands for those of the lines. The error says what is
// wrong with ranges or that elements are not finite.
func (g Grid) Apply(l Lines, ranges *tensor.Tensor) (*Gridded, error) {
	if ranges != nil && g.kind != perDimension {
		return nil, fmt.Errorf("grid %s has no ranges for each dimension", g.Name)
	}
	if err := l.Finite(nil); err != nil {
		return nil, err
	}
	n, k := l.N(), l.K
	out := &Gridded{Codes: make([][]int, n), Values: make([][]float32, n)}
	x := make([]float32, k)
	each := func(f func(line, place int, x float64)) {
		for i := range n {
			l.Read(x, i, i+1)
			for j, v := range x {
				f(i, j, float64(v))
			}
		}
	}
	for i := range n {
		out.Codes[i], out.Values[i] = make([]int, k), make([]float32, k)
	}
	set := func(i, j, code int, value float64) { out.Codes[i][j], out.Values[i][j] = code, float32(value) }
	levels := math.Exp2(float64(g.Bits)) - 1
	total := 0.0
	most := 0.0
	extra := 0 // numbers beside the codes
	switch g.kind {
	case twoScales:
		low, high := math.Exp2(float64(g.Bits-1)), math.Exp2(float64(g.Bits-1))-1
		for range n {
			out.Scales = append(out.Scales, []float32{0, 0})
		}
		each(func(i, _ int, x float64) {
			s := out.Scales[i]
			s[0], s[1] = max(s[0], float32(-x/low)), max(s[1], float32(x/high))
		})
		each(func(i, j int, x float64) {
			s, limit := float64(out.Scales[i][0]), low
			if x > 0 {
				s, limit = float64(out.Scales[i][1]), high
			}
			q := 0.0
			if s > 0 {
				q = math.Copysign(min(math.RoundToEven(math.Abs(x)/s), limit), x)
			}
			set(i, j, int(q), q*s)
		})
		extra = 2 * n
	case doReFa:
		if g.Bits == 1 {
			each(func(_, _ int, x float64) { total += math.Abs(x) })
			mean := total / float64(max(n*k, 1))
			each(func(i, j int, x float64) {
				if x < 0 {
					set(i, j, 0, -mean)
				} else {
					set(i, j, 1, mean)
				}
			})
			out.Scales, extra = [][]float32{{float32(mean)}}, 1
			break
		}
		each(func(_, _ int, x float64) { most = max(most, math.Abs(math.Tanh(x))) })
		each(func(i, j int, x float64) {
			y := 0.5
			if most > 0 {
				y += math.Tanh(x) / (2 * most)
			}
			q := math.RoundToEven(levels * y)
			set(i, j, int(q), 2*q/levels-1)
		})
		out.Scales = [][]float32{{float32(2 / levels)}}
	case wrpn:
		high := math.Exp2(float64(g.Bits-1)) - 1
		each(func(i, j int, x float64) {
			q := math.RoundToEven(high * min(max(x, -1), 1))
			set(i, j, int(q), q/high)
		})
		out.Scales = [][]float32{{float32(1 / high)}}
	case perDimension:
		lo, step := make([]float32, k), make([]float32, k)
		hi := make([]float32, k)
		if ranges != nil {
			shape := ranges.Shape()
			if len(shape) != 2 || shape[0] != 2 || shape[1] != k || !ranges.DType().IsFloat() || !ranges.DType().Convertible() {
				return nil, fmt.Errorf("ranges are %v, not real numbers of the shape [2,%d]", ranges, k)
			}
			tensor.Read(ranges, 0, lo)
			tensor.Read(ranges, k, hi)
		} else {
			for j := range lo {
				lo[j], hi[j] = float32(math.Inf(1)), float32(math.Inf(-1))
			}
			each(func(_, j int, x float64) { lo[j], hi[j] = min(lo[j], float32(x)), max(hi[j], float32(x)) })
		}
		for j := range step {
			if !(lo[j] <= hi[j]) || float64(hi[j])-float64(lo[j]) > math.MaxFloat32 {
				return nil, fmt.Errorf("the range of place %d is %v to %v", j, lo[j], hi[j])
			}
			step[j] = float32((float64(hi[j]) - float64(lo[j])) / levels)
		}
		each(func(i, j int, x float64) {
			q := 0.0
			if step[j] > 0 {
				q = min(max(math.RoundToEven((x-float64(lo[j]))/float64(step[j])), 0), levels)
			}
			set(i, j, int(q), float64(lo[j])+q*float64(step[j]))
		})
		out.Scales, out.Offsets, extra = [][]float32{step}, [][]float32{lo}, 2*k
	case signs:
		for i := range n {
			l.Read(x, i, i+1)
			sum := 0.0
			for _, v := range x {
				sum += math.Abs(float64(v))
			}
			out.Scales = append(out.Scales, []float32{float32(sum / float64(max(k, 1)))})
		}
		each(func(i, j int, x float64) {
			if s := float64(out.Scales[i][0]); x > 0 {
				set(i, j, 1, s)
			} else {
				set(i, j, 0, -s)
			}
		})
		extra = n
	}
	out.Bits = float64(g.Bits) + 32*float64(extra)/float64(max(n*k, 1))
	return out, nil
}

// PackSigns returns the codes of one bit of each line in bytes, the first one in
// the highest bit and the last byte filled up with zeros, as numpy.packbits does.
func (g *Gridded) PackSigns() [][]byte {
	out := make([][]byte, len(g.Codes))
	for i, line := range g.Codes {
		out[i] = make([]byte, (len(line)+7)/8)
		for j, c := range line {
			out[i][j/8] |= byte(c&1) << (7 - j%8)
		}
	}
	return out
}
