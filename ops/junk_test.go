package ops

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// junkTensor returns a tensor of any type and small shape. Integers lie within
// [-3, 5] where the type has them.
func junkTensor(r *rand.Rand) *tensor.Tensor {
	types := []tensor.DType{
		tensor.Float32, tensor.Float32, tensor.Float32, tensor.Float64, tensor.Float16, tensor.Int64, tensor.Int64, tensor.Int32,
		tensor.Uint8, tensor.Int8, tensor.Bool, tensor.String, tensor.Int4, tensor.Float8E4M3FN,
	}
	d := types[r.IntN(len(types))]
	shape := make([]int, r.IntN(6))
	for i := range shape {
		shape[i] = r.IntN(5)
	}
	t := tensor.New(d, shape...)
	if d == tensor.String {
		return t
	}
	v := make([]int64, t.Len())
	for i := range v {
		v[i] = int64(r.IntN(9)) - 3
	}
	tensor.Write(t, 0, v)
	return t
}

func junkAttr(r *rand.Rand, a AttrSpec) *graph.Attr {
	out := &graph.Attr{Name: a.Name, Kind: a.Kind}
	num := func() int64 {
		if r.IntN(20) == 0 {
			return []int64{-1 << 63, 1<<63 - 1, 1 << 31, -1 << 31, 1 << 40}[r.IntN(5)]
		}
		return int64(r.IntN(7)) - 2
	}
	words := []string{"", "NOTSET", "SAME_UPPER", "VALID", "bidirectional", "Tanh", "LEAF", "BRANCH_LEQ", "x"}
	n := r.IntN(5)
	switch a.Kind {
	case graph.AttrInt:
		out.I = num()
	case graph.AttrFloat:
		out.F = float32(num())
	case graph.AttrString:
		out.S = words[r.IntN(len(words))]
	case graph.AttrInts:
		for range n {
			out.Ints = append(out.Ints, num())
		}
	case graph.AttrFloats:
		for range n {
			out.Floats = append(out.Floats, float32(num()))
		}
	case graph.AttrStrings:
		for range n {
			out.Strings = append(out.Strings, words[r.IntN(len(words))])
		}
	case graph.AttrTensor:
		out.T = junkTensor(r)
	default:
		return nil
	}
	return out
}

// junk runs an operator with random operands and attributes and returns what it
// panicked with, or nil.
func junk(r *rand.Rand, spec *Spec) (failure any, what string) {
	s := single{op: graph.OpKey{Domain: spec.Domain, Type: spec.Type}, opset: max(spec.Since, 7) + r.IntN(20)}
	if spec.Domain != "" {
		s.opset = 1 + r.IntN(5)
	}
	like := junkTensor(r)
	most := len(spec.In)
	if most > 0 && spec.In[most-1].Variadic {
		most++
	}
	for range r.IntN(most + 1) {
		switch r.IntN(8) {
		case 0:
			s.ins = append(s.ins, nil)
		case 1, 2:
			s.ins = append(s.ins, like) // operands that suit each other go further
		default:
			s.ins = append(s.ins, junkTensor(r))
		}
		s.consts = append(s.consts, r.IntN(2) == 0)
	}
	for _, a := range spec.Attrs {
		if r.IntN(2) == 0 {
			if attr := junkAttr(r, a); attr != nil {
				s.attrs = append(s.attrs, attr)
			}
		}
	}
	for range spec.Out {
		s.outs = append(s.outs, r.IntN(3) > 0)
	}
	defer func() {
		if failure = recover(); failure != nil {
			what = fmt.Sprintf("inputs %v\n%s", s.ins, debug.Stack())
			for _, a := range s.attrs {
				what = fmt.Sprintf("%s %d %v %q %v %q %v\n%s", a.Name, a.I, a.F, a.S, a.Ints, a.Strings, a.T, what)
			}
		}
	}()
	_, _ = s.run() // an error is the expected result; a panic is not
	return nil, ""
}

// TestJunk gives the operators operands and attributes that make no sense.
// They may refuse them or compute something, but not panic.
func TestJunk(t *testing.T) {
	for _, spec := range All() {
		if spec.Compile == nil {
			continue
		}
		r := rand.New(rand.NewPCG(17, uint64(len(spec.Type))))
		for trial := range 400 {
			if failure, what := junk(r, spec); failure != nil {
				t.Errorf("%s.%s, trial %d: %v\n%s", spec.Domain, spec.Type, trial, failure, what)
				break
			}
		}
	}
}
