package eval

import (
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/ops"
)

// Score rates how close outputs come to reference outputs by one number that
// large elements cannot dominate: the noise of each channel relative to the
// variance of that channel, averaged over channels, so that a score beside a
// box, or a quiet channel beside a loud one, counts as much.
//
// Channels are taken along axis 1 and along the last axis in turn, and the
// worse figure counts; see spatial for those that are rows or columns of images.
// Outputs of another shape than the reference count as zeros.
type Score struct{ outputs []scoreSums }

type scoreSums struct {
	axes    [2]channelSums
	spatial [2]bool
}

type channelSums struct{ n, sum, squares, noise []float64 }

// maxChannels bounds the length of an axis that is taken for channels.
const maxChannels = 1 << 16

// leastSeen is how many elements of a channel its variance takes; below, its power
// counts.
const leastSeen = 4

// NewScore returns an empty score of n outputs.
func NewScore(n int) *Score { return &Score{outputs: make([]scoreSums, n)} }

// Add adds the outputs of one sample.
func (s *Score) Add(ref, got []ops.Data) error {
	if len(ref) != len(s.outputs) || len(got) != len(ref) {
		return fmt.Errorf("eval: %d and %d outputs, want %d", len(ref), len(got), len(s.outputs))
	}
	for i := range ref {
		as, bs := tensorsOf(ref[i], nil), tensorsOf(got[i], nil)
		if len(as) != len(bs) {
			return fmt.Errorf("eval: output %d holds %d tensors, the reference %d", i, len(bs), len(as))
		}
		for k, a := range as {
			b := bs[k]
			x, ok := floatsOf(a)
			y, both := floatsOf(b)
			if !ok || !both {
				continue
			}
			if !slices.Equal(a.Shape(), b.Shape()) {
				y = make([]float32, len(x)) // what has another shape gives nothing of it
			}
			shape, o := a.Shape(), &s.outputs[i]
			no := spatial(shape)
			for k, axis := range [2]int{1, len(shape) - 1} {
				if o.spatial[k] = o.spatial[k] || no[k]; !o.spatial[k] {
					o.axes[k].add(x, y, shape, axis)
				}
			}
		}
	}
	return nil
}

// spatial reports whether axis 1 and the last axis of an output of four or more axes are
// clearly no channels but rows or columns, of which those at an edge may hardly move:
// where the lengths of the axes that would be spatial beside the other one are alike,
// and beside this one are twice as far apart, or not alike where the former are equal.
func spatial(shape []int) (no [2]bool) {
	if len(shape) < 4 {
		return no
	}
	apart := func(list []int) float64 {
		return float64(slices.Max(list)) / float64(max(slices.Min(list), 1))
	}
	first, last := apart(shape[2:]), apart(shape[1:len(shape)-1])
	clear := func(a, b float64) bool { return b >= 2*a || a == 1 && b > 1 }
	return [2]bool{clear(last, first), clear(first, last)}
}

func (c *channelSums) add(ref, got []float32, shape []int, axis int) {
	channels, inner := 1, len(ref)
	if axis >= 0 && axis < len(shape) && shape[axis] <= maxChannels {
		channels, inner = shape[axis], 1
		for _, d := range shape[axis+1:] {
			inner *= d
		}
	}
	for len(c.n) < channels {
		c.n, c.sum, c.squares, c.noise = append(c.n, 0), append(c.sum, 0), append(c.squares, 0), append(c.noise, 0)
	}
	for at, ch := 0, 0; at < len(ref); at, ch = at+inner, ch+1 {
		if ch == channels {
			ch = 0
		}
		for i := at; i < at+inner; i++ {
			r, g := float64(ref[i]), float64(got[i])
			if r-r != 0 && (r == g || r != r && g != g) {
				continue
			}
			d := r - g
			c.n[ch]++
			c.sum[ch] += r
			c.squares[ch] += r * r
			c.noise[ch] += d * d
		}
	}
}

// DB returns the score in dB: 10·log10 of signal over noise, of the worst
// output. Equal outputs give +Inf.
func (s *Score) DB() float64 {
	worst := math.Inf(1)
	for i := range s.outputs {
		for k := range s.outputs[i].axes {
			if s.outputs[i].spatial[k] {
				continue
			}
			worst = math.Min(worst, s.outputs[i].axes[k].db())
		}
	}
	return worst
}

func (c *channelSums) db() float64 {
	ratio, count, total, seen := 0.0, 0, 0.0, 0.0
	for ch := range c.n {
		total += c.squares[ch]
		seen += c.n[ch]
	}
	if len(c.n) > 1 && seen < leastSeen*float64(len(c.n)) {
		// The variance of channels is not known: they count as one.
		var all channelSums
		all.n, all.sum, all.squares, all.noise = []float64{seen}, []float64{0}, []float64{total}, []float64{0}
		for ch := range c.n {
			all.sum[0] += c.sum[ch]
			all.noise[0] += c.noise[ch]
		}
		return all.db()
	}
	for ch := range c.n {
		if c.n[ch] == 0 {
			continue
		}
		variance := c.squares[ch] - c.sum[ch]*c.sum[ch]/c.n[ch]
		// A channel that hardly moves is measured against the average power.
		floor := 1e-6 * total / float64(len(c.n))
		if c.n[ch] < leastSeen {
			variance = c.squares[ch]
		}
		if variance = math.Max(variance, floor); variance == 0 && c.noise[ch] == 0 {
			continue
		}
		if noise := c.noise[ch]; noise-noise != 0 || variance-variance != 0 {
			return math.Inf(-1)
		}
		r := c.noise[ch] / variance
		// A channel can be no worse than lost.
		ratio += math.Min(r, 1)
		count++
	}
	if count == 0 || ratio == 0 {
		return math.Inf(1)
	}
	return -10 * math.Log10(ratio/float64(count))
}
