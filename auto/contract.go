package auto

import (
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Contract is what the outputs of a quantized model have to keep. The zero
// value demands what keeps task metrics within half a percent, as far as
// outputs can tell: see Kinds.
type Contract struct {
	// MinSQNR, in dB, and MaxDrop, a loss of arg-max agreement, replace that.
	MinSQNR, MaxDrop *float64
	// Off demands nothing else.
	Off bool
}

// Kind is what an output seems to hold.
type Kind int

// Kinds of outputs, with what the default contract demands of them.
const (
	// Values have a score (see eval.Score) of 10 dB and SQNR of 20 dB.
	Values Kind = iota
	// Classes are rows of probabilities or logits: either a divergence (see
	// eval.Output.KL) of at most 0.01 and another arg-max in at most 2 % of the
	// rows, or one row, or what is demanded of values.
	Classes
	// Signal is of the kind of an input, such as an image made from an image,
	// where each dB counts: SQNR of 30 dB.
	Signal
	// State is an output that is fed back, so that errors add up: SQNR of 36 dB.
	State
	// Picks are what boxes are picked by (see eval.Judged): SQNR of 10 dB.
	Picks
)

// The figures that the comments on Kind give.
const (
	leastScore  = 10
	leastSQNR   = 20
	leastSignal = 30
	leastState  = 36
	leastPicks  = 10
	mostKL      = 0.01
	mostDrop    = 0.02
)

// Kinds tells what the outputs of m hold, and what is judged beside them.
func Kinds(m *graph.Model, judged []eval.Judged) []Kind {
	g := m.Graph
	out := make([]Kind, len(g.Outputs()))
	var inputs []string
	for _, v := range g.FeedInputs() {
		if v.Type.Elem == tensor.Float32 {
			inputs = append(inputs, v.Name())
		}
	}
	state := calibration.Suggest(g, inputs)
	if len(state) >= len(out) {
		// What a model is for comes first, and may look like an input as well.
		state = slices.DeleteFunc(state, func(f calibration.Feedback) bool { return f.Output == g.Outputs()[0].Name() })
	}
	for i, v := range g.Outputs() {
		fed := slices.ContainsFunc(state, func(f calibration.Feedback) bool { return f.Output == v.Name() })
		switch {
		// A model has something to say besides its state.
		case fed && len(out) > 1 && len(g.FeedInputs()) > 1:
			out[i] = State
		case signal(g, v):
			out[i] = Signal
		case classes(v):
			out[i] = Classes
		}
	}
	for _, j := range judged {
		switch {
		case j.Boxes:
			out = append(out, Picks)
		case classes(j.Value):
			out = append(out, Classes)
		default:
			out = append(out, Values)
		}
	}
	return out
}

// signal reports whether v has axes like a float input: as many, of them all
// that are known before the last two alike, and no fewer elements than it.
// What is bounded, a mask for instance, is none.
func signal(g *graph.Graph, v *graph.Value) bool {
	if n := v.DefNode(); n == nil || bounded(n) {
		return false
	}
	y := v.Type.Shape
	for _, in := range g.FeedInputs() {
		x := in.Type.Shape
		if in.Type.Elem != tensor.Float32 || len(x) < 3 || len(x) != len(y) {
			continue
		}
		like := true
		for i := range x {
			a, b := x[i], y[i]
			switch {
			case i == 0:
			case i < len(x)-2 || len(x) == 3 && i == 1:
				like = like && a.Known && b.Known && a.Size == b.Size
			default:
				like = like && (!a.Known || !b.Known || b.Size >= a.Size)
			}
		}
		if like {
			return true
		}
	}
	return false
}

func bounded(n *graph.Node) bool {
	switch n.Op.Type {
	case "Sigmoid", "HardSigmoid", "Tanh", "Softmax", "LogSoftmax", "Clip":
		return true
	}
	return false
}

// classes reports whether v is what a Softmax gives along the last axis, or the
// product that stands at the end of a classifier.
func classes(v *graph.Value) bool {
	for range 8 {
		n := v.DefNode()
		if n == nil || n.Op.Domain != graph.OnnxDomain || n.Input(0) == nil {
			return false
		}
		switch n.Op.Type {
		case "Softmax", "LogSoftmax", "Gemm":
			return true
		case "MatMul":
			w := n.Input(1)
			return w != nil && w.IsConst()
		case "Add":
			if b := n.Input(0); b.IsConst() {
				v = n.Input(1)
				continue
			} else if b = n.Input(1); b == nil || !b.IsConst() {
				return false
			}
		case "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast":
		default:
			return false
		}
		v = n.Input(0)
	}
	return false
}

// demands returns the least SQNR in dB of an output of a kind; none is -Inf.
func (c *Contract) demands(k Kind) float64 {
	switch {
	case k == Picks && (c.MinSQNR != nil || c.MaxDrop != nil || c.Off):
		return math.Inf(-1)
	case c.MinSQNR != nil:
		return *c.MinSQNR
	case c.MaxDrop != nil || c.Off:
		return math.Inf(-1)
	case k == Picks:
		return leastPicks
	case k == State:
		return leastState
	case k == Signal:
		return leastSignal
	}
	return leastSQNR
}

// allowed returns the noise relative to their power that outputs may have; where
// nothing is demanded, 1.
func (c *Contract) allowed(kinds []Kind) []float64 {
	out := make([]float64, len(kinds))
	for i, k := range kinds {
		out[i] = math.Min(math.Pow(10, -c.demands(k)/10), 1)
	}
	return out
}

// Shortfall is what outputs miss of a Contract.
type Shortfall struct {
	Text string  // "" if nothing
	DB   float64 // by how much the noise has to fall, in dB, as far as that is known
}

// Check returns what the outputs miss of the contract: in words for the first that
// does, in dB for the one that lacks most. Score is that of all of them, in dB.
func (c *Contract) Check(kinds []Kind, outputs []eval.Output, score float64) Shortfall {
	var all Shortfall
	for i := range outputs {
		o := &outputs[i]
		var s Shortfall
		if least := c.demands(kinds[i]); o.SQNR != nil && *o.SQNR < least {
			s = Shortfall{fmt.Sprintf("output %q has an SQNR of %.2f dB, %g dB were demanded", o.Name, *o.SQNR, least), least - *o.SQNR}
			if *o.SQNR == eval.Lost {
				s = Shortfall{Text: fmt.Sprintf("output %q is lost: not finite, or not zero as it has to be", o.Name)}
			}
		}
		switch {
		case c.MinSQNR != nil || c.MaxDrop != nil || c.Off:
			if c.MaxDrop != nil && o.Argmax != nil && 1-*o.Argmax > *c.MaxDrop && s.Text == "" {
				s = Shortfall{Text: fmt.Sprintf("arg-max of output %q agrees on %.4f of the rows, a drop of %g was allowed", o.Name, *o.Argmax, *c.MaxDrop)}
			}
		case kinds[i] == Values || kinds[i] == Classes:
			if s.Text == "" && score < leastScore {
				s = Shortfall{fmt.Sprintf("the outputs have a score of %.2f dB, %d dB were demanded", score, leastScore), leastScore - score}
				if math.IsInf(score, 0) {
					s.DB = 0
				}
			}
			if kinds[i] == Classes && o.KL != nil && *o.KL <= mostKL && o.Argmax != nil && (1-*o.Argmax)*float64(o.Rows) <= max(1, mostDrop*float64(o.Rows)) {
				s = Shortfall{}
			}
		}
		if all.Text == "" {
			all.Text = s.Text
		}
		all.DB = max(all.DB, s.DB)
	}
	return all
}
