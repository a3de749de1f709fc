package images

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

// Recipe says how an image becomes a model input. Its steps run in this order,
// whatever the order of the text was: color, resize or letterbox, crop,
// (x/scale - mean)/std, layout.
//
//	resize=N        shorter side to N, the other in proportion
//	resize=WxH      to exactly W by H
//	letterbox=N     the largest size of equal proportion within N by N (or WxH),
//	                centred on a ground of pad
//	pad=V           byte value around a letterbox [114]
//	crop=N          the middle N by N (or WxH)
//	filter=F        bilinear or bicubic, both antialiased [bilinear]
//	color=C         rgb, bgr or gray [gray for inputs of 1 channel, else rgb]
//	scale=V         divides the bytes [1]
//	mean=V std=V    one value, or one a channel as a/b/c [0 and 1]
//	layout=L        nchw or nhwc [what the input's shape says]
type Recipe struct {
	resizeW, resizeH int // resizeH is 0 for the shorter side
	cover            bool
	boxW, boxH       int
	pad              byte
	cropW, cropH     int
	filter           Filter
	color            string
	scale            float32
	mean, std        []float32
	layout           string

	dtype  tensor.DType
	rank   int
	values [][]float32 // by channel and byte
}

// ParseRecipe reads the text form. The error names the part that is wrong.
func ParseRecipe(text string) (*Recipe, error) {
	r := &Recipe{pad: 114, scale: 1}
	seen := map[string]bool{}
	for _, part := range strings.Split(text, ",") {
		key, val, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return nil, fmt.Errorf("image recipe: %q is not key=value", part)
		}
		if seen[key] {
			return nil, fmt.Errorf("image recipe: %s is given twice", key)
		}
		seen[key] = true
		var err error
		switch key {
		case "resize":
			if strings.Contains(val, "x") {
				r.resizeW, r.resizeH, err = size(val)
			} else {
				r.resizeW, _, err = size(val)
			}
		case "letterbox":
			r.boxW, r.boxH, err = size(val)
		case "crop":
			r.cropW, r.cropH, err = size(val)
		case "pad":
			var n uint64
			n, err = strconv.ParseUint(val, 10, 8)
			r.pad = byte(n)
		case "filter":
			switch val {
			case "bilinear":
				r.filter = Bilinear
			case "bicubic":
				r.filter = Bicubic
			default:
				err = errors.New("want bilinear or bicubic")
			}
		case "color":
			if r.color = val; val != "rgb" && val != "bgr" && val != "gray" {
				err = errors.New("want rgb, bgr or gray")
			}
		case "layout":
			if r.layout = val; val != "nchw" && val != "nhwc" {
				err = errors.New("want nchw or nhwc")
			}
		case "scale":
			var v []float32
			if v, err = numbers(val); err == nil && (len(v) != 1 || v[0] == 0) {
				err = errors.New("want one number other than 0")
			}
			if err == nil {
				r.scale = v[0]
			}
		case "mean":
			r.mean, err = numbers(val)
		case "std":
			r.std, err = numbers(val)
			for _, v := range r.std {
				if v == 0 {
					err = errors.New("is a divisor, so it cannot be 0")
				}
			}
		default:
			return nil, fmt.Errorf("image recipe: unknown key %q (known: resize, letterbox, pad, crop, filter, color, scale, mean, std, layout)", key)
		}
		if err != nil {
			return nil, fmt.Errorf("image recipe: %s=%s: %w", key, val, err)
		}
	}
	if r.boxW > 0 && (r.resizeW > 0 || r.cropW > 0) {
		return nil, errors.New("image recipe: letterbox excludes resize and crop")
	}
	return r, nil
}

// maxSide bounds the sides that a recipe can ask for.
const maxSide = 1 << 14

func size(s string) (w, h int, err error) {
	ws, hs, both := strings.Cut(s, "x")
	if !both {
		hs = ws
	}
	w, err1 := strconv.Atoi(ws)
	h, err2 := strconv.Atoi(hs)
	if err1 != nil || err2 != nil || w < 1 || h < 1 || w > maxSide || h > maxSide {
		return 0, 0, fmt.Errorf("want N or WxH with sides of 1 to %d pixels", maxSide)
	}
	return w, h, nil
}

func numbers(s string) ([]float32, error) {
	var out []float32
	for _, p := range strings.Split(s, "/") {
		v, err := strconv.ParseFloat(p, 32)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, errors.New("want a number, or one a channel as a/b/c")
		}
		out = append(out, float32(v))
	}
	if len(out) != 1 && len(out) != 3 {
		return nil, fmt.Errorf("%d values, want 1 or 3", len(out))
	}
	return out, nil
}

// Default returns the recipe for an input of the given type and shape when the
// user gave none, and a note about it. Inputs of bytes get the picture scaled
// to cover the input and cropped to its middle. For other types the
// normalization cannot be known from the model and a wrong one would spoil
// every range in silence, so they are an error that shows recipes to choose
// from.
func Default(dtype tensor.DType, shape []int) (*Recipe, string, error) {
	l, ok := layoutOf(shape, "")
	if !ok {
		return nil, "", fmt.Errorf("images do not fit an input %v%s: want 1 or 3 channels and a height and width", dtype, shapeText(shape))
	}
	if dtype == tensor.Uint8 {
		r, note, err := (&Recipe{pad: 114, scale: 1}).Fit(dtype, shape)
		return r, note, err
	}
	h, w := dim(shape, l.h), dim(shape, l.w)
	geometry := "resize=256,crop=224"
	if h > 0 && w > 0 {
		geometry = fmt.Sprintf("resize=%d,crop=%dx%d", (max(h, w)*8+6)/7, w, h)
	}
	return nil, "", fmt.Errorf("images need a recipe, since a model does not say how its input was normalized: for instance "+
		"--image %[1]s,scale=255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225 (as in torchvision), "+
		"--image %[1]s,mean=127.5,std=127.5 (-1 to 1) or --image %[1]s,scale=255 (0 to 1)", geometry)
}

// axes says which dimension of an input is what.
type axes struct{ c, h, w int }

func dim(shape []int, i int) int {
	if shape[i] < 0 {
		return -1
	}
	return shape[i]
}

func channelsFit(d int) bool { return d == 1 || d == 3 }

// layoutOf finds the axes of an image input of rank 3 or 4; want is "nchw",
// "nhwc" or "" to go by the number of channels.
func layoutOf(shape []int, want string) (axes, bool) {
	o := len(shape) - 3
	if o < 0 || o > 1 {
		return axes{}, false
	}
	first, last := axes{o, o + 1, o + 2}, axes{o + 2, o, o + 1}
	switch {
	case want == "nchw":
		return first, shape[o] < 0 || channelsFit(shape[o])
	case want == "nhwc":
		return last, shape[o+2] < 0 || channelsFit(shape[o+2])
	case channelsFit(shape[o]):
		return first, true
	case channelsFit(shape[o+2]):
		return last, true
	}
	return axes{}, false
}

func shapeText(shape []int) string {
	b := []string{}
	for _, d := range shape {
		if d < 0 {
			b = append(b, "?")
		} else {
			b = append(b, strconv.Itoa(d))
		}
	}
	return "[" + strings.Join(b, ",") + "]"
}

// Fit completes the recipe for an input of the given element type and shape
// (dimensions below 0 are free) and checks it against them. What the recipe
// leaves open is taken from the shape; the note says what.
func (r *Recipe) Fit(dtype tensor.DType, shape []int) (*Recipe, string, error) {
	f := *r
	l, ok := layoutOf(shape, r.layout)
	if !ok {
		return nil, "", fmt.Errorf("images do not fit an input %v%s: want 1 or 3 channels and a height and width%s",
			dtype, shapeText(shape), map[bool]string{true: " in layout " + r.layout}[r.layout != ""])
	}
	f.dtype, f.rank = dtype, len(shape)
	if f.rank == 4 && shape[0] > 1 {
		return nil, "", fmt.Errorf("images come one at a time, the input %v%s wants a batch of %d", dtype, shapeText(shape), shape[0])
	}
	f.layout = "nchw"
	if l.c == len(shape)-1 {
		f.layout = "nhwc"
	}
	var notes []string
	if f.color == "" {
		f.color = "rgb"
		if shape[l.c] == 1 {
			f.color = "gray"
		}
	}
	c := 3
	if f.color == "gray" {
		c = 1
	}
	if shape[l.c] >= 0 && shape[l.c] != c {
		return nil, "", fmt.Errorf("color=%s gives %d channels, the input %v%s has %d", f.color, c, dtype, shapeText(shape), shape[l.c])
	}
	w, h := shape[l.w], shape[l.h]
	gotW, gotH := f.fixedSize()
	switch {
	case gotW > 0:
		if w >= 0 && gotW != w || h >= 0 && gotH != h {
			return nil, "", fmt.Errorf("the recipe gives images of %dx%d (width x height), the input %v%s wants %sx%s",
				gotW, gotH, dtype, shapeText(shape), side(w), side(h))
		}
	case w > 0 && h > 0:
		if f.resizeW > 0 {
			f.cropW, f.cropH = w, h
			notes = append(notes, fmt.Sprintf("cropped to the middle %dx%d, the size of the input", w, h))
		} else {
			f.cover, f.resizeW, f.resizeH = true, w, h
			notes = append(notes, fmt.Sprintf("scaled to cover %dx%d, the size of the input, and cropped to the middle", w, h))
		}
	case w == 0 || h == 0:
		return nil, "", fmt.Errorf("the input %v%s has no pixels", dtype, shapeText(shape))
	case w > 0 || h > 0:
		return nil, "", fmt.Errorf("the input %v%s fixes one side only: give resize=WxH, crop or letterbox", dtype, shapeText(shape))
	}
	if err := f.table(c); err != nil {
		return nil, "", err
	}
	note := ""
	if len(notes) > 0 {
		note = "images are " + strings.Join(notes, ", ")
	}
	return &f, note, nil
}

func side(d int) string {
	if d < 0 {
		return "any"
	}
	return strconv.Itoa(d)
}

// fixedSize returns the size of every result, or 0 if it depends on the image.
func (r *Recipe) fixedSize() (w, h int) {
	switch {
	case r.cropW > 0:
		return r.cropW, r.cropH
	case r.boxW > 0:
		return r.boxW, r.boxH
	case r.resizeH > 0:
		return r.resizeW, r.resizeH
	}
	return 0, 0
}

// table fills values; a value that an integer type cannot hold is an error.
func (r *Recipe) table(channels int) error {
	switch {
	case r.dtype == tensor.Float32, r.dtype == tensor.Float16, r.dtype == tensor.Float64:
	case r.dtype.IsInt() && r.dtype.Bits() >= 8:
	default:
		return fmt.Errorf("images cannot feed an input of type %v", r.dtype)
	}
	pick := func(v []float32, c int, none float32) (float32, error) {
		switch {
		case len(v) == 0:
			return none, nil
		case len(v) == 1:
			return v[0], nil
		case len(v) != channels:
			return 0, fmt.Errorf("%d values of mean or std for %d channel", len(v), channels)
		}
		return v[c], nil
	}
	r.values = make([][]float32, channels)
	for c := range r.values {
		mean, err := pick(r.mean, c, 0)
		if err != nil {
			return err
		}
		std, err := pick(r.std, c, 1)
		if err != nil {
			return err
		}
		t := make([]float32, 256)
		for b := range t {
			v := float32(b) / r.scale
			v = float32(v - mean)
			v /= std
			if r.dtype.IsInt() {
				v = float32(math.RoundToEven(float64(v)))
				if lo, hi, ok := r.dtype.IntRange(); ok && (float64(v) < float64(lo) || float64(v) > float64(hi)) ||
					v < 0 && r.dtype == tensor.Uint64 {
					return fmt.Errorf("the recipe turns the byte %d into %v, which %v cannot hold", b, v, r.dtype)
				}
			}
			t[b] = v
		}
		r.values[c] = t
	}
	return nil
}

// Apply runs the steps on an image. The recipe is one that Fit returned. The
// result has the input's rank and layout and is float32, with values that the
// input's element type holds (floating-point ones up to rounding).
func (r *Recipe) Apply(im *Image) (*tensor.Tensor, error) {
	if r.color == "gray" {
		im = im.Luma()
	}
	im, err := r.shapeOf(im)
	if err != nil {
		return nil, err
	}
	chans := []int{0, 1, 2}[:im.C]
	if r.color == "bgr" {
		chans = []int{2, 1, 0}
	}
	shape := []int{1, im.C, im.H, im.W}
	if r.layout == "nhwc" {
		shape = []int{1, im.H, im.W, im.C}
	}
	shape = shape[4-r.rank:]
	n := im.W * im.H
	out := tensor.New(tensor.Float32, shape...)
	dst := tensor.As[float32](out)
	for k, c := range chans {
		t := (*[256]float32)(r.values[k])
		if r.layout == "nhwc" {
			for i := range n {
				dst[i*im.C+k] = t[im.Pix[i*im.C+c]]
			}
			continue
		}
		plane := dst[k*n : (k+1)*n]
		for i := range plane {
			plane[i] = t[im.Pix[i*im.C+c]]
		}
	}
	return out, nil
}

// shapeOf runs the steps that change the size.
func (r *Recipe) shapeOf(im *Image) (*Image, error) {
	switch {
	case r.boxW > 0:
		return im.letterbox(r.boxW, r.boxH, r.pad, r.filter)
	case r.cover:
		// The side that fills the input exactly is kept exact.
		w, h := r.resizeW, r.resizeH
		if im.W*h > im.H*w {
			w = max(w, (im.W*h+im.H/2)/im.H)
		} else {
			h = max(h, (im.H*w+im.W/2)/im.W)
		}
		im, err := im.resize(w, h, r.filter)
		if err != nil {
			return nil, err
		}
		return im.Crop(r.resizeW, r.resizeH)
	case r.resizeH > 0:
		var err error
		if im, err = im.resize(r.resizeW, r.resizeH, r.filter); err != nil {
			return nil, err
		}
	case r.resizeW > 0:
		w, h := r.resizeW, r.resizeW
		if im.W > im.H {
			w = int(int64(r.resizeW) * int64(im.W) / int64(im.H))
		} else {
			h = int(int64(r.resizeW) * int64(im.H) / int64(im.W))
		}
		var err error
		if im, err = im.resize(w, h, r.filter); err != nil {
			return nil, err
		}
	}
	if r.cropW > 0 {
		return im.Crop(r.cropW, r.cropH)
	}
	return im, nil
}

// resize refuses sizes that an extreme proportion would blow up.
func (im *Image) resize(w, h int, f Filter) (*Image, error) {
	if int64(w)*int64(im.H) > MaxPixels || int64(w)*int64(h) > MaxPixels {
		return nil, fmt.Errorf("an image of %dx%d pixels would be resized to %dx%d, at most %d pixels are allowed", im.W, im.H, w, h, MaxPixels)
	}
	return im.Resize(w, h, f), nil
}

// Crop returns the middle w by h pixels; where the rest is odd, one row or
// column more is left out at the bottom or right.
func (im *Image) Crop(w, h int) (*Image, error) {
	if w > im.W || h > im.H {
		return nil, fmt.Errorf("crop of %dx%d from an image of %dx%d (width x height)", w, h, im.W, im.H)
	}
	x0, y0 := (im.W-w)/2, (im.H-h)/2
	out := &Image{W: w, H: h, C: im.C, Pix: make([]byte, w*h*im.C)}
	for y := range h {
		copy(out.Pix[y*w*im.C:(y+1)*w*im.C], im.Pix[((y0+y)*im.W+x0)*im.C:])
	}
	return out, nil
}

func (im *Image) letterbox(w, h int, pad byte, f Filter) (*Image, error) {
	ratio := min(float64(w)/float64(im.W), float64(h)/float64(im.H))
	nw := min(max(int(math.RoundToEven(float64(im.W)*ratio)), 1), w)
	nh := min(max(int(math.RoundToEven(float64(im.H)*ratio)), 1), h)
	in, err := im.resize(nw, nh, f)
	if err != nil {
		return nil, err
	}
	out := &Image{W: w, H: h, C: im.C, Pix: make([]byte, w*h*im.C)}
	for i := range out.Pix {
		out.Pix[i] = pad
	}
	x0, y0 := (w-nw)/2, (h-nh)/2
	for y := range nh {
		copy(out.Pix[((y0+y)*w+x0)*im.C:], in.Pix[y*nw*im.C:(y+1)*nw*im.C])
	}
	return out, nil
}
