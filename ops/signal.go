package ops

import (
	"fmt"
	"math"
	"math/bits"
	"math/cmplx"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// signalSpecs are the operators of signal processing.
func signalSpecs() []Spec {
	num := func(name string) AttrSpec { return AttrSpec{Name: name, Kind: graph.AttrInt} }
	maybe := func(name string, r Role) Port { return Port{Name: name, Role: r, Optional: true} }
	window := []AttrSpec{num("output_datatype"), num("periodic")}
	out := []Port{{Name: "output", Role: Activation}}
	size := []Port{{Name: "size", Role: Index}}
	return []Spec{
		{Type: "HannWindow", Since: 17, Flow: Compute, Pure: true, In: size, Out: out, Attrs: window,
			Infer: inferWindow, Compile: compileWindow(0.5, 0.5, 0)},
		{Type: "HammingWindow", Since: 17, Flow: Compute, Pure: true, In: size, Out: out, Attrs: window,
			Infer: inferWindow, Compile: compileWindow(25.0/46, 21.0/46, 0)},
		{Type: "BlackmanWindow", Since: 17, Flow: Compute, Pure: true, In: size, Out: out, Attrs: window,
			Infer: inferWindow, Compile: compileWindow(0.42, 0.5, 0.08)},
		{Type: "DFT", Since: 17, Flow: Compute, Pure: true,
			In:    []Port{{Name: "input", Role: Activation}, maybe("dft_length", Index), maybe("axis", Index)},
			Out:   out,
			Attrs: []AttrSpec{num("axis"), num("inverse"), num("onesided")},
			Infer: inferDFT, Compile: compileDFT},
		{Type: "STFT", Since: 17, Flow: Compute, Pure: true,
			In: []Port{{Name: "signal", Role: Activation}, {Name: "frame_step", Role: Index},
				maybe("window", Ignore), maybe("frame_length", Index)},
			Out: out, Attrs: []AttrSpec{num("onesided")},
			Infer: inferSTFT, Compile: compileSTFT},
		{Type: "MelWeightMatrix", Since: 17, Flow: Compute, Pure: true,
			In: []Port{{Name: "num_mel_bins", Role: Index}, {Name: "dft_length", Role: Index}, {Name: "sample_rate", Role: Index},
				{Name: "lower_edge_hertz"}, {Name: "upper_edge_hertz"}},
			Out: out, Attrs: []AttrSpec{num("output_datatype")},
			Infer: inferMel, Compile: compileMel},
	}
}

func inferWindow(c *Inference) error {
	elem, err := dtypeAttr(c.Node, "output_datatype", tensor.Float32)
	if err != nil {
		return err
	}
	shape := graph.UnknownShape(1)
	if d, ok := c.Dims(0); ok && len(d) == 1 {
		shape = bare(d)
	}
	c.Tensor(0, elem, shape)
	return nil
}

// compileWindow makes the compiler of a cosine-sum window
// a - b·cos(2πk/N) + d·cos(4πk/N).
func compileWindow(a, b, d float64) func(*Site) (Kernel, error) {
	return func(s *Site) (Kernel, error) {
		periodic := s.Node.Int("periodic", 1) != 0
		dtype, err := dtypeAttr(s.Node, "output_datatype", tensor.Float32)
		if err != nil {
			return nil, s.Errorf("%v", err)
		}
		return func(c *Call) error {
			size, err := c.int(0, 0)
			if err != nil {
				return err
			}
			dims, err := sizesOf([]int64{size})
			if err != nil {
				return err
			}
			out, err := newNumbers(c, dtype, dims)
			if err != nil {
				return err
			}
			n := float64(size)
			if !periodic {
				n--
			}
			v := make([]float64, size)
			for k := range v {
				if v[k] = 1; n > 0 {
					x := 2 * math.Pi * float64(k) / n
					v[k] = a - b*math.Cos(x) + d*math.Cos(2*x)
				}
			}
			tensor.Write(out, 0, v)
			return nil
		}, nil
	}
}

// fft is a discrete Fourier transform of n points: radix 2 where n is a power
// of two, else as a convolution of such length (Bluestein, 1970).
type fft struct {
	n      int
	roots  []complex128 // e^(-2πik/n), k < n/2, of a power of two
	inner  *fft
	chirp  []complex128
	kernel []complex128 // transform of the conjugate chirp
}

func newFFT(n int) *fft {
	f := &fft{n: n}
	if n&(n-1) == 0 {
		f.roots = make([]complex128, n/2)
		for k := range f.roots {
			f.roots[k] = cmplx.Rect(1, -2*math.Pi*float64(k)/float64(n))
		}
		return f
	}
	m := 1 << bits.Len(uint(2*n-1))
	f.inner = newFFT(m)
	f.chirp, f.kernel = make([]complex128, n), make([]complex128, m)
	for k := range f.chirp {
		// k² mod 2n keeps the angle exact for large k.
		f.chirp[k] = cmplx.Rect(1, -math.Pi*float64(k*k%(2*n))/float64(n))
	}
	for k, w := range f.chirp {
		f.kernel[k] = cmplx.Conj(w)
		if k > 0 {
			f.kernel[m-k] = cmplx.Conj(w)
		}
	}
	f.inner.transform(f.kernel)
	return f
}

// transform replaces x, of length n, by its transform.
func (f *fft) transform(x []complex128) {
	if f.inner == nil {
		f.radix2(x)
		return
	}
	m := f.inner.n
	y := make([]complex128, m)
	for k, w := range f.chirp {
		y[k] = x[k] * w
	}
	f.inner.radix2(y)
	for k, w := range f.kernel {
		y[k] = cmplx.Conj(y[k] * w)
	}
	f.inner.radix2(y)
	for k, w := range f.chirp {
		x[k] = cmplx.Conj(y[k]) * w / complex(float64(m), 0)
	}
}

func (f *fft) radix2(x []complex128) {
	n := len(x)
	if n < 2 {
		return
	}
	shift := bits.UintSize - bits.Len(uint(n-1))
	for i := range x {
		if j := int(bits.Reverse(uint(i)) >> shift); i < j {
			x[i], x[j] = x[j], x[i]
		}
	}
	for size := 2; size <= n; size *= 2 {
		half, step := size/2, n/size
		for at := 0; at < n; at += size {
			a, b := x[at:at+half], x[at+half:at+size]
			for k := range a {
				t := b[k] * f.roots[k*step]
				a[k], b[k] = a[k]+t, a[k]-t
			}
		}
	}
}

// inverse replaces x by its inverse transform.
func (f *fft) inverse(x []complex128) {
	for i, v := range x {
		x[i] = cmplx.Conj(v)
	}
	f.transform(x)
	for i, v := range x {
		x[i] = cmplx.Conj(v) / complex(float64(f.n), 0)
	}
}

// maxTransform bounds the length of a Fourier transform.
const maxTransform = 1 << 24

// dftAxis returns the axis of a DFT, given as an attribute before version 20.
func dftAxis(axis int64, rank int) (int, error) {
	k, err := NormalAxis(axis, rank)
	if err == nil && k == rank-1 {
		err = fmt.Errorf("axis %d holds the complex parts", k)
	}
	return k, err
}

func inferDFT(c *Inference) error {
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	if len(in) < 2 {
		return c.Errorf("input has shape %v", in)
	}
	inverse, oneSided := c.Node.Int("inverse", 0) != 0, c.Node.Int("onesided", 0) != 0
	out := graph.Shape(bare(in))
	out[len(in)-1] = graph.D(2)
	if inverse && oneSided {
		out[len(in)-1] = graph.D(1)
	}
	attr, known := c.Node.Int("axis", 1), true
	if c.Opset >= 20 {
		if attr = -2; c.Node.Input(2) != nil {
			var v []int64
			if v, known = c.Ints(2); known && len(v) == 1 {
				attr = v[0]
			}
		}
	}
	if !known {
		for i := range out[:len(out)-1] {
			out[i] = graph.Dim{}
		}
		c.Tensor(0, c.Elem(0), out)
		return nil
	}
	axis, err := dftAxis(attr, len(in))
	if err != nil {
		return err
	}
	n := out[axis]
	if c.Node.Input(1) != nil {
		n = graph.Dim{}
		if d, ok := c.Dims(1); ok && len(d) == 1 {
			n = bare(d)[0]
		}
	} else if inverse && oneSided {
		if n.Known {
			n = graph.D(2 * (n.Size - 1))
		} else {
			n = graph.Dim{}
		}
	}
	if oneSided && !inverse {
		if n.Known {
			n = graph.D(n.Size/2 + 1)
		} else {
			n = graph.Dim{}
		}
	}
	out[axis] = n
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileDFT(s *Site) (Kernel, error) {
	n := s.Node
	inverse, oneSided := n.Int("inverse", 0) != 0, n.Int("onesided", 0) != 0
	attr := n.Int("axis", 1)
	asInput := s.Opset >= 20
	return func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		at := attr
		if asInput {
			var err error
			if at, err = c.int(2, -2); err != nil {
				return err
			}
		}
		if len(in) < 2 {
			return fmt.Errorf("input is %v", x)
		}
		parts := in[len(in)-1]
		axis, err := dftAxis(at, len(in))
		if err != nil {
			return err
		}
		if parts != 1 && parts != 2 || oneSided && (parts == 1) == inverse {
			return fmt.Errorf("input is %v (inverse %v, onesided %v)", x, inverse, oneSided)
		}
		def := int64(in[axis])
		if inverse && oneSided {
			def = 2 * (def - 1)
		}
		length, err := c.int(1, def)
		if err != nil {
			return err
		}
		if length < 1 || length > maxTransform {
			return fmt.Errorf("transform of %d points", length)
		}
		size := int(length)
		shape := append([]int{}, in...)
		shape[axis], shape[len(in)-1] = size, 2
		switch {
		case oneSided && inverse:
			shape[len(in)-1] = 1
		case oneSided:
			shape[axis] = size/2 + 1
		}
		v, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		out, err := newNumbers(c, x.DType(), shape)
		if err != nil || out.Len() == 0 {
			return err
		}
		y := make([]float64, out.Len())
		outer, inner := volume(in[:axis]), volume(in[axis+1:len(in)-1])
		plan := newFFT(size)
		err = c.For(outer*inner, max(1, 1<<13/size), func(lo, hi int) {
			buf := make([]complex128, size)
			for k := lo; k < hi; k++ {
				o, i := k/inner, k%inner
				clear(buf)
				for j := range min(in[axis], size) {
					p := ((o*in[axis]+j)*inner + i) * parts
					if parts == 1 {
						buf[j] = complex(v[p], 0)
					} else {
						buf[j] = complex(v[p], v[p+1])
					}
				}
				if oneSided && inverse {
					// The upper half mirrors the lower one.
					for j := size/2 + 1; j < size; j++ {
						buf[j] = cmplx.Conj(buf[size-j])
					}
					buf[0] = complex(real(buf[0]), 0)
					if size%2 == 0 {
						buf[size/2] = complex(real(buf[size/2]), 0)
					}
				}
				if inverse {
					plan.inverse(buf)
				} else {
					plan.transform(buf)
				}
				for j, w := range buf[:shape[axis]] {
					p := (o*shape[axis]+j)*inner + i
					if oneSided && inverse {
						y[p] = real(w)
						continue
					}
					y[2*p], y[2*p+1] = real(w), imag(w)
				}
			}
		})
		if err == nil {
			tensor.Write(out, 0, y)
		}
		return err
	}, nil
}

func inferSTFT(c *Inference) error {
	out := graph.Shape{{}, {}, {}, graph.D(2)}
	in := c.Shape(0)
	if in != nil && len(in) != 3 && len(in) != 2 {
		return c.Errorf("signal has shape %v", in)
	}
	frame, signal := graph.Dim{}, graph.Dim{}
	if in != nil {
		out[0], signal = bare(in)[0], bare(in)[1]
	}
	if d, ok := c.Dims(3); ok && len(d) == 1 {
		frame = bare(d)[0]
	} else if w := c.Shape(2); len(w) == 1 {
		frame = bare(w)[0]
	} else if c.Node.Input(2) == nil && c.Node.Input(3) == nil {
		frame = signal
	}
	if frame.Known {
		out[2] = frame
		if c.Node.Int("onesided", 1) != 0 {
			out[2] = graph.D(frame.Size/2 + 1)
		}
	}
	if step, ok := c.Ints(1); ok && len(step) == 1 && step[0] > 0 && frame.Known && signal.Known && signal.Size >= frame.Size {
		out[1] = graph.D((signal.Size-frame.Size)/step[0] + 1)
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileSTFT(s *Site) (Kernel, error) {
	oneSided := s.Node.Int("onesided", 1) != 0
	return func(c *Call) error {
		x := c.In(0)
		in := x.Shape()
		if len(in) == 2 {
			in = []int{in[0], in[1], 1}
		}
		if len(in) != 3 || in[2] != 1 && in[2] != 2 || oneSided && in[2] == 2 {
			return fmt.Errorf("signal is %v (onesided %v)", x, oneSided)
		}
		step, err := c.int(1, 0)
		if err != nil {
			return err
		}
		def := int64(in[1])
		var window []float64
		if w := c.In(2); w != nil {
			if window, err = tensor.Float64s(w); err != nil {
				return err
			}
			def = int64(len(window))
		}
		frame, err := c.int(3, def)
		if err != nil {
			return err
		}
		if step < 1 || frame < 1 || frame > int64(in[1]) || frame > maxTransform || window != nil && int64(len(window)) != frame {
			return fmt.Errorf("frames of %d every %d samples of %d, window of %d", frame, step, in[1], len(window))
		}
		n := int(frame)
		frames, bins := int((int64(in[1])-frame)/step)+1, n
		if oneSided {
			bins = n/2 + 1
		}
		v, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		out, err := newNumbers(c, x.DType(), []int{in[0], frames, bins, 2})
		if err != nil || out.Len() == 0 {
			return err
		}
		y := make([]float64, out.Len())
		plan := newFFT(n)
		err = c.For(in[0]*frames, max(1, 1<<13/n), func(lo, hi int) {
			buf := make([]complex128, n)
			for k := lo; k < hi; k++ {
				at := (k/frames*in[1] + k%frames*int(step)) * in[2]
				for j := range buf {
					w := 1.0
					if window != nil {
						w = window[j]
					}
					if in[2] == 1 {
						buf[j] = complex(v[at+j]*w, 0)
					} else {
						buf[j] = complex(v[at+2*j]*w, v[at+2*j+1]*w)
					}
				}
				plan.transform(buf)
				for j, z := range buf[:bins] {
					y[(k*bins+j)*2], y[(k*bins+j)*2+1] = real(z), imag(z)
				}
			}
		})
		if err == nil {
			tensor.Write(out, 0, y)
		}
		return err
	}, nil
}

func inferMel(c *Inference) error {
	elem, err := dtypeAttr(c.Node, "output_datatype", tensor.Float32)
	if err != nil {
		return err
	}
	out := graph.UnknownShape(2)
	if d, ok := c.Ints(1); ok && len(d) == 1 {
		out[0] = graph.D(d[0]/2 + 1)
	}
	if d, ok := c.Dims(0); ok && len(d) == 1 {
		out[1] = bare(d)[0]
	}
	c.Tensor(0, elem, out)
	return nil
}

func compileMel(s *Site) (Kernel, error) {
	dtype, err := dtypeAttr(s.Node, "output_datatype", tensor.Float32)
	if err != nil {
		return nil, s.Errorf("%v", err)
	}
	return func(c *Call) error {
		var v [5]float64
		for i := range v {
			var err error
			if v[i], err = c.realOf(i, 0); err != nil {
				return err
			}
		}
		mels, length, rate := v[0], v[1], v[2]
		if !(mels >= 0 && mels < 1<<30 && length >= 0 && length < 1<<40 && rate > 0) {
			return fmt.Errorf("%v bins of a transform of %v points at %v samples per second", mels, length, rate)
		}
		bands, bins := int(mels), int(length)/2+1
		out, err := newNumbers(c, dtype, []int{bins, bands})
		if err != nil {
			return err
		}
		// Band edges, equally far apart in mel (2595·log10(1 + f/700)).
		mel := func(hertz float64) float64 { return 2595 * math.Log10(1+hertz/700) }
		low, high := mel(v[3]), mel(v[4])
		edges := make([]int, bands+2)
		for i := range edges {
			at := low + float64(i)*(high-low)/float64(bands+2)
			f := math.Floor((length + 1) * (700 * (math.Pow(10, at/2595) - 1)) / rate)
			if !(f >= 0 && f <= float64(bins)) {
				return fmt.Errorf("band edge %d lies at spectrum bin %v of %d", i, f, bins)
			}
			edges[i] = int(f)
		}
		y := make([]float64, out.Len())
		for i := range bands {
			a, b, d := edges[i], edges[i+1], edges[i+2]
			if b >= bins {
				return fmt.Errorf("band %d lies at spectrum bin %d of %d", i, b, bins)
			}
			if a == b {
				y[b*bands+i] = 1
			}
			for j := a; j <= b && a < b; j++ {
				y[j*bands+i] = float64(j-a) / float64(b-a)
			}
			for j := b; j < d; j++ {
				y[j*bands+i] = float64(d-j) / float64(d-b)
			}
		}
		tensor.Write(out, 0, y)
		return nil
	}, nil
}
