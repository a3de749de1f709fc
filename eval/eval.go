// Package eval says how close a quantized model comes to the float one.
package eval

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Output compares one graph output over all samples seen.
type Output struct {
	Name string `json:"name"`
	// Picks says that this is no output, but what a model picks by; see Selection.
	Picks bool `json:"picks,omitempty"`
	// SQNR is 10·log10(Σ ref² / Σ (ref - got)²) in dB, nil if the outputs are
	// equal in every bit or hold no floats, and Lost where an element is NaN or
	// infinite whose reference is finite.
	SQNR *float64 `json:"sqnr_db"`
	// Cosine is Σ ref·got / √(Σ ref² · Σ got²), nil where it is not defined.
	Cosine *float64 `json:"cosine"`
	// Argmax is the share of rows (slices along the last axis) whose largest
	// element is at the same place, nil unless the output has two or three axes,
	// as logits and probabilities do, and the last one at least two elements.
	Argmax *float64 `json:"argmax_agreement"`
	// KL is the mean over rows of Σ p·ln(p/q), where p and q are the rows of the
	// reference and of the other output as distributions: themselves where those
	// of the reference are non-negative and sum to 1, else their softmax. nil
	// where there are no rows as in Argmax.
	KL *float64 `json:"kl"`
	// Rows is the number of these rows.
	Rows int `json:"rows,omitempty"`
	// Different counts elements of other than float type that differ, and
	// elements of which exactly one is NaN or infinite.
	Different int `json:"different,omitempty"`
}

// Lost is the SQNR in dB, finite for the sake of JSON, of outputs whose noise is
// infinite, or that have noise and no signal.
const Lost = -math.MaxFloat32

// Decibel tells an SQNR in dB with a digit behind the point: exact without one.
func Decibel(x *float64) string {
	switch {
	case x == nil:
		return "exact"
	case *x == Lost:
		return "lost"
	}
	s := strconv.FormatFloat(*x, 'f', 1, 64)
	if strings.Trim(s, "-0.") == "" {
		s = strings.TrimPrefix(s, "-")
	}
	return s
}

// Comparison accumulates the outputs of samples.
type Comparison struct {
	outputs []sums
	samples int
}

type sums struct {
	name              string
	picks             bool
	signal, noise     float64
	got2, dot         float64
	rows, same, wrong int
	kl                float64
	floats            bool
	lost              bool // an element is not finite whose reference is
}

// NewComparison returns an empty comparison of outputs of the given names.
func NewComparison(names []string) *Comparison {
	c := &Comparison{outputs: make([]sums, len(names))}
	for i, n := range names {
		c.outputs[i].name = n
	}
	return c
}

// Add compares the outputs of one sample. One of another shape than the reference,
// whose length depends on values for instance, counts as zeros, and all its
// elements as different. The error says which output has another type.
func (c *Comparison) Add(ref, got []ops.Data) error {
	if len(ref) != len(c.outputs) || len(got) != len(c.outputs) {
		return fmt.Errorf("eval: %d and %d outputs, want %d", len(ref), len(got), len(c.outputs))
	}
	for i := range c.outputs {
		s := &c.outputs[i]
		as, bs := tensorsOf(ref[i], nil), tensorsOf(got[i], nil)
		if len(as) != len(bs) {
			return fmt.Errorf("eval: output %q holds %d tensors, the reference %d", s.name, len(bs), len(as))
		}
		for k, a := range as {
			b := bs[k]
			if a.DType() != b.DType() || a.Rank() != b.Rank() {
				return fmt.Errorf("eval: output %q is %v, the reference %v", s.name, b, a)
			}
			x, real := floatsOf(a)
			y, _ := floatsOf(b)
			if !slices.Equal(a.Shape(), b.Shape()) {
				s.wrong += max(a.Len(), b.Len(), 1)
				if !real {
					continue
				}
				y = make([]float32, len(x))
			}
			switch {
			case real:
				s.add(x, y, a.Shape())
			case !a.Equal(b):
				s.wrong++
			}
		}
	}
	c.samples++
	return nil
}

// floatsOf returns the elements of a tensor of floating-point numbers of 16, 32 or
// 64 bits as float32.
func floatsOf(t *tensor.Tensor) (x []float32, ok bool) {
	switch t.DType() {
	case tensor.Float32:
		return tensor.As[float32](t), true
	case tensor.Float16, tensor.BFloat16, tensor.Float64:
		x, err := tensor.Float32s(t)
		return x, err == nil
	}
	return nil, false
}

// tensorsOf appends the tensors in d to list: those of a sequence, of an
// optional, and keys and values of a map, which are a row.
func tensorsOf(d ops.Data, list []*tensor.Tensor) []*tensor.Tensor {
	switch d := d.(type) {
	case *tensor.Tensor:
		return append(list, d)
	case ops.Sequence:
		for _, x := range d {
			list = tensorsOf(x, list)
		}
	case *ops.Optional:
		if d != nil {
			return tensorsOf(d.Elem, list)
		}
	case *ops.Map:
		if row, err := d.Values.Reshape([]int{1, d.Values.Len()}); err == nil {
			return append(list, d.Keys, row)
		}
	}
	return list
}

func (s *sums) add(ref, got []float32, shape []int) {
	s.floats = true
	for i, x := range ref {
		r, g := float64(x), float64(got[i])
		if r-r != 0 || g-g != 0 {
			if r != g && !(r != r && g != g) {
				s.wrong++
			}
			s.lost = s.lost || r-r == 0
			continue
		}
		d := r - g
		s.signal += r * r
		s.noise += d * d
		s.got2 += g * g
		s.dot += r * g
	}
	if len(shape) < 2 || len(shape) > 3 || shape[len(shape)-1] < 2 {
		return
	}
	n := shape[len(shape)-1]
	for at := 0; at+n <= len(ref); at += n {
		s.rows++
		if argmax(ref[at:at+n]) == argmax(got[at:at+n]) {
			s.same++
		}
		s.kl += divergence(ref[at:at+n], got[at:at+n])
	}
}

func argmax(x []float32) int {
	best := 0
	for i, v := range x {
		if v > x[best] {
			best = i
		}
	}
	return best
}

// leastShare stands for probabilities of less, so that a divergence is finite; rows
// that are not finite have the divergence of a certainty from it.
const leastShare = 1e-12

// divergence returns the Kullback-Leibler divergence of two rows; see Output.KL.
func divergence(ref, got []float32) float64 {
	sum, least := 0.0, math.Inf(1)
	for _, x := range ref {
		sum += float64(x)
		least = min(least, float64(x))
	}
	kl := 0.0
	if least >= 0 && math.Abs(sum-1) < 1e-3 {
		other := 0.0
		for _, x := range got {
			other += max(float64(x), 0)
		}
		for i, x := range ref {
			if p := float64(x) / sum; p > 0 {
				q := 0.0
				if other > 0 {
					q = float64(got[i]) / other
				}
				kl += p * math.Log(p/max(q, leastShare))
			}
		}
		if kl != kl {
			return -math.Log(leastShare)
		}
		return max(kl, 0)
	}
	a, b := logSum(ref), logSum(got)
	for i, x := range ref {
		if p := math.Exp(float64(x) - a); p > 0 {
			kl += p * (float64(x) - a - float64(got[i]) + b)
		}
	}
	if kl != kl && a-a == 0 {
		return -math.Log(leastShare)
	} else if kl != kl {
		return 0
	}
	return max(kl, 0)
}

// logSum returns ln Σ exp(x).
func logSum(x []float32) float64 {
	most, sum := math.Inf(-1), 0.0
	for _, v := range x {
		most = max(most, float64(v))
	}
	for _, v := range x {
		sum += math.Exp(float64(v) - most)
	}
	return most + math.Log(sum)
}

// Samples returns the number of samples added.
func (c *Comparison) Samples() int { return c.samples }

// Outputs returns the result for each output.
func (c *Comparison) Outputs() []Output {
	out := make([]Output, len(c.outputs))
	for i, s := range c.outputs {
		o := Output{Name: s.name, Picks: s.picks, Different: s.wrong}
		if s.floats && (s.noise > 0 || s.lost) {
			db := 10 * math.Log10(s.signal/s.noise)
			if s.signal == 0 || s.lost {
				db = Lost
			}
			o.SQNR = &db
		}
		if s.signal > 0 && s.got2 > 0 {
			cos := s.dot / math.Sqrt(s.signal) / math.Sqrt(s.got2)
			o.Cosine = &cos
		}
		if s.rows > 0 {
			share := float64(s.same) / float64(s.rows)
			kl := s.kl / float64(s.rows)
			o.Argmax, o.KL, o.Rows = &share, &kl, s.rows
		}
		out[i] = o
	}
	return out
}

// Worst returns the SQNR of the worst output in dB, or nil if all are exact. What
// is picked by counts where no output has an SQNR.
func Worst(outputs []Output) *float64 {
	var worst, picks *float64
	for _, o := range outputs {
		at := &worst
		if o.Picks {
			at = &picks
		}
		if o.SQNR != nil && (*at == nil || *o.SQNR < **at) {
			*at = o.SQNR
		}
	}
	if worst == nil {
		return picks
	}
	return worst
}
