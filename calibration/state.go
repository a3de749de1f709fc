package calibration

import (
	"fmt"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Feedback names a graph output that is fed back as a graph input of the next
// sample: the state of a recurrent model.
type Feedback struct{ Input, Output string }

// String returns the pair as INPUT=OUTPUT.
func (f Feedback) String() string { return f.Input + "=" + f.Output }

// State carries the outputs of one run over to the next. Use one State for
// each model and sequence of samples.
type State struct {
	pairs []statePair
	names []string // of all inputs
	types []graph.Type
	data  []ops.Data // by pair; nil at the start of a sequence
}

type statePair struct {
	input  *graph.Value
	output int
}

// NewState returns the State of a graph for the given pairs. The error names
// an input or output that the graph does not have, that stands in two pairs,
// or whose types do not agree.
func NewState(g *graph.Graph, pairs []Feedback) (*State, error) {
	s := &State{data: make([]ops.Data, len(pairs))}
	inputs := map[string]*graph.Value{}
	for _, v := range g.FeedInputs() {
		inputs[v.Name()] = v
		s.names, s.types = append(s.names, v.Name()), append(s.types, v.Type)
	}
	outputs := map[string]int{}
	var outNames []string
	for i, v := range g.Outputs() {
		outputs[v.Name()] = i
		outNames = append(outNames, v.Name())
	}
	used := map[string]bool{}
	for _, p := range pairs {
		in, j := inputs[p.Input], -1
		if k, ok := outputs[p.Output]; ok {
			j = k
		}
		switch {
		case in == nil:
			return nil, fmt.Errorf("state %q: the model has no input %q, only %q", p, p.Input, s.names)
		case j < 0:
			return nil, fmt.Errorf("state %q: the model has no output %q, only %q", p, p.Output, outNames)
		case used[p.Input]:
			return nil, fmt.Errorf("state %q: input %q is fed back twice", p, p.Input)
		case in.Type.Kind != graph.KindTensor || in.Type.Shape == nil:
			return nil, fmt.Errorf("state %q: the model does not say of which rank input %q is", p, p.Input)
		case !feedsBack(in, g.Outputs()[j]):
			return nil, fmt.Errorf("state %q: the output is %v, the input wants %v", p, g.Outputs()[j].Type, in.Type)
		}
		used[p.Input] = true
		s.pairs = append(s.pairs, statePair{in, j})
	}
	return s, nil
}

// feedsBack reports whether the types allow out to be fed to in.
func feedsBack(in, out *graph.Value) bool {
	a, b := in.Type, out.Type
	if a.Kind != graph.KindTensor || b.Kind != graph.KindTensor {
		return false
	}
	if a.Elem != b.Elem && a.Elem != tensor.Undefined && b.Elem != tensor.Undefined {
		return false
	}
	if a.Shape == nil || b.Shape == nil {
		return true
	}
	if len(a.Shape) != len(b.Shape) {
		return false
	}
	for i, d := range a.Shape {
		if e := b.Shape[i]; d.Known && e.Known && d.Size > 0 && e.Size > 0 && d.Size != e.Size {
			return false
		}
	}
	return true
}

// sameSymbols reports whether no axis of two values of one rank has different
// symbols for its size.
func sameSymbols(in, out *graph.Value) bool {
	for i, d := range in.Type.Shape {
		e := out.Type.Shape[i]
		if !d.Known && !e.Known && d.Sym != "" && e.Sym != "" && d.Sym != e.Sym {
			return false
		}
	}
	return true
}

// Reset starts a new sequence.
func (s *State) Reset() { clear(s.data) }

// Feed adds the state to the inputs of a sample: at the start of a sequence
// what the sample holds for the input, else zeros; later what Keep was given.
// Dimensions of zeros that the model leaves open are those of the same name in
// other inputs, or 1.
func (s *State) Feed(in map[string]ops.Data) error {
	for k, p := range s.pairs {
		name := p.input.Name()
		if s.data[k] == nil {
			if in[name] != nil {
				continue
			}
			zero, err := s.zero(p.input, in)
			if err != nil {
				return err
			}
			s.data[k] = zero
		}
		in[name] = s.data[k]
	}
	return nil
}

func (s *State) zero(v *graph.Value, in map[string]ops.Data) (*tensor.Tensor, error) {
	shape := make([]int, len(v.Type.Shape))
	for i, d := range v.Type.Shape {
		shape[i] = 1
		if d.Known && d.Size > 0 {
			shape[i] = int(d.Size)
		} else if d.Sym != "" {
			if n, ok := s.symbol(d.Sym, in); ok {
				shape[i] = n
			}
		}
	}
	if n, ok := tensor.NumElements(shape); !ok || n > defaultMaxBytes {
		return nil, fmt.Errorf("state for input %q would have the shape %v", v.Name(), shape)
	}
	elem := v.Type.Elem
	if elem == tensor.Undefined {
		elem = tensor.Float32
	}
	return tensor.New(elem, shape...), nil
}

// symbol finds the size of a named dimension in the fed inputs.
func (s *State) symbol(sym string, in map[string]ops.Data) (int, bool) {
	for i, t := range s.types {
		x, ok := in[s.names[i]].(*tensor.Tensor)
		if !ok || len(t.Shape) != x.Rank() {
			continue
		}
		for k, d := range t.Shape {
			if !d.Known && d.Sym == sym {
				return x.Shape()[k], true
			}
		}
	}
	return 0, false
}

// Keep takes the outputs of the run that Feed was for.
func (s *State) Keep(outputs []ops.Data) {
	for k, p := range s.pairs {
		s.data[k] = outputs[p.output]
	}
}

// Suggest returns the pairs that could feed the given inputs, as far as the
// types of the model, or else the names, leave one choice. Where axes have
// different symbols for sizes, names have to be alike.
func Suggest(g *graph.Graph, missing []string) []Feedback {
	inputs := map[string]*graph.Value{}
	for _, v := range g.FeedInputs() {
		inputs[v.Name()] = v
	}
	choices := make([][]string, len(missing))
	claims := map[string]int{}
	for i, name := range missing {
		in := inputs[name]
		if in == nil {
			continue
		}
		for _, out := range g.Outputs() {
			if in.Type.Shape != nil && out.Type.Shape != nil && feedsBack(in, out) && (sameSymbols(in, out) || len(alike(name, []string{out.Name()})) > 0) {
				choices[i] = append(choices[i], out.Name())
			}
		}
		if len(choices[i]) > 1 {
			choices[i] = alike(name, choices[i])
		}
		if len(choices[i]) == 1 {
			claims[choices[i][0]]++
		}
	}
	var out []Feedback
	for i, c := range choices {
		if len(c) == 1 && claims[c[0]] == 1 {
			out = append(out, Feedback{missing[i], c[0]})
		}
	}
	return out
}

// alike returns the names that contain the given one or are contained in it,
// apart from words that tell input from output.
func alike(name string, list []string) []string {
	strip := strings.NewReplacer("input", "", "output", "", "out", "", "in", "", "prev", "", "next", "", "new", "", "old", "", "_", "", ".", "")
	want := strip.Replace(strings.ToLower(name))
	var out []string
	for _, s := range list {
		got := strip.Replace(strings.ToLower(s))
		if want != "" && got != "" && (strings.HasPrefix(got, want) || strings.HasPrefix(want, got)) {
			out = append(out, s)
		}
	}
	return out
}
