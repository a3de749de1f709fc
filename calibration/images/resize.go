package images

import "math"

// Filter is a resampling filter.
type Filter int

// The filters of Resize: the triangle, and Keys' cubic with a = -0.5.
const (
	Bilinear Filter = iota
	Bicubic
)

func (f Filter) support() float64 {
	if f == Bicubic {
		return 2
	}
	return 1
}

func (f Filter) at(x float64) float64 {
	x = math.Abs(x)
	if f == Bilinear {
		return max(1-x, 0)
	}
	const a = -0.5
	switch {
	case x < 1:
		return ((a+2)*x-(a+3))*x*x + 1
	case x < 2:
		return (((x-5)*x+8)*x - 4) * a
	}
	return 0
}

// fixedBits is the number of fraction bits of a weight: 8 bits of sample and 2
// of headroom fit above them in 32.
const fixedBits = 32 - 8 - 2

// taps holds the weights of one output sample: sum of
// weights[i]*in[first+i] in fixed point.
type taps struct {
	first   int
	weights []int32
}

// filterTaps returns the weights for each of out samples made from in samples.
// When shrinking, the filter is widened by in/out, so that every input sample
// takes part (antialiasing).
func (f Filter) filterTaps(in, out int) []taps {
	scale := float64(in) / float64(out)
	wide := max(scale, 1)
	support := f.support() * wide
	ts := make([]taps, out)
	for o := range ts {
		center := (float64(o) + 0.5) * scale
		lo := max(int(center-support+0.5), 0)
		hi := min(int(center+support+0.5), in)
		w := make([]float64, hi-lo)
		sum := 0.0
		for i := range w {
			w[i] = f.at((float64(lo+i) - center + 0.5) / wide)
			sum += w[i]
		}
		fixed := make([]int32, len(w))
		for i := range w {
			if sum != 0 {
				w[i] /= sum
			}
			// Halves round away from 0, and int truncates towards it.
			fixed[i] = int32(w[i]*(1<<fixedBits) + math.Copysign(0.5, w[i]))
		}
		ts[o] = taps{lo, fixed}
	}
	return ts
}

// Resize returns the image at w by h pixels, both at least 1: two passes, each
// rounded to bytes, rows first if the height shrinks by more than twice the
// pixels that the width does, and columns first otherwise. The bytes are those
// of Image.resize of Pillow 13 on an image of mode RGB or L (versions before it
// always took the columns first, which differs for images that shrink so).
func (im *Image) Resize(w, h int, f Filter) *Image {
	rowsFirst := h < im.H && im.H-h > 2*(im.W-w)
	if rowsFirst {
		im = im.resizeRows(h, f)
	}
	if w != im.W {
		im = im.resizeColumns(w, f)
	}
	if h != im.H {
		im = im.resizeRows(h, f)
	}
	return im
}

func (im *Image) resizeColumns(w int, f Filter) *Image {
	out := &Image{W: w, H: im.H, C: im.C, Pix: make([]byte, w*im.H*im.C)}
	ts := f.filterTaps(im.W, w)
	for y := range im.H {
		src := im.Pix[y*im.W*im.C : (y+1)*im.W*im.C]
		dst := out.Pix[y*w*im.C : (y+1)*w*im.C]
		for x, t := range ts {
			if im.C == 3 {
				var r, g, b int32 = 1 << (fixedBits - 1), 1 << (fixedBits - 1), 1 << (fixedBits - 1)
				p := src[t.first*3 : (t.first+len(t.weights))*3]
				for i, k := range t.weights {
					r += k * int32(p[3*i])
					g += k * int32(p[3*i+1])
					b += k * int32(p[3*i+2])
				}
				dst[3*x], dst[3*x+1], dst[3*x+2] = clip8(r>>fixedBits), clip8(g>>fixedBits), clip8(b>>fixedBits)
				continue
			}
			var s int32 = 1 << (fixedBits - 1)
			for i, k := range t.weights {
				s += k * int32(src[t.first+i])
			}
			dst[x] = clip8(s >> fixedBits)
		}
	}
	return out
}

func (im *Image) resizeRows(h int, f Filter) *Image {
	n := im.W * im.C
	out := &Image{W: im.W, H: h, C: im.C, Pix: make([]byte, n*h)}
	acc := make([]int32, n)
	for y, t := range f.filterTaps(im.H, h) {
		for i := range acc {
			acc[i] = 1 << (fixedBits - 1)
		}
		for j, k := range t.weights {
			src := im.Pix[(t.first+j)*n : (t.first+j+1)*n]
			for i, v := range src {
				acc[i] += k * int32(v)
			}
		}
		dst := out.Pix[y*n : (y+1)*n]
		for i, v := range acc {
			dst[i] = clip8(v >> fixedBits)
		}
	}
	return out
}
