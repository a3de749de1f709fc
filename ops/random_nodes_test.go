package ops

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// nodeMaker makes random nodes, many of them nonsense.
type nodeMaker struct{ *rand.Rand }

func (r nodeMaker) number() int64 {
	switch r.IntN(24) {
	case 0:
		return math.MaxInt64
	case 1:
		return math.MinInt64
	case 2:
		return 1 << 40
	}
	return int64(r.IntN(9)) - 3
}

func (r nodeMaker) shape() []int {
	s := make([]int, r.IntN(5))
	for i := range s {
		s[i] = r.IntN(5)
	}
	return s
}

func (r nodeMaker) tensor(role Role) *tensor.Tensor {
	if role == Index {
		shape := [][]int{{}, {}, {}, {1}, {2}, {3}, {4}, {2, 2}, {3, 1}, {0}}[r.IntN(10)]
		d := tensor.Int64
		if r.IntN(5) == 0 {
			d = tensor.Int32
		}
		t := tensor.New(d, shape...)
		v := make([]int64, t.Len())
		for i := range v {
			v[i] = r.number()
		}
		tensor.Write(t, 0, v)
		return t
	}
	types := []tensor.DType{tensor.Float32, tensor.Float32, tensor.Float32, tensor.Float16, tensor.Float64, tensor.Int64, tensor.Int32,
		tensor.Uint8, tensor.Bool, tensor.String, tensor.Int4, tensor.Uint2, tensor.Complex64}
	d := types[r.IntN(len(types))]
	t := tensor.New(d, r.shape()...)
	switch {
	case d == tensor.String:
		for i := range t.Strings() {
			t.Strings()[i] = strings.Repeat("a b", r.IntN(3))
		}
	case d.Convertible():
		v := make([]float64, t.Len())
		for i := range v {
			switch r.IntN(16) {
			case 0:
				v[i] = math.NaN()
			case 1:
				v[i] = 1e30
			case 2:
				v[i] = math.Inf(-1)
			default:
				v[i] = float64(r.IntN(9)) - 3 + 0.25*float64(r.IntN(4))
			}
			if d.IsInt() || d == tensor.Bool {
				v[i] = float64(r.IntN(6))
			}
		}
		tensor.Write(t, 0, v)
	}
	return t
}

func (r nodeMaker) attr(a AttrSpec) *graph.Attr {
	words := []string{"constant", "reflect", "edge", "wrap", "linear", "nearest", "cubic", "DCR", "CRD", "add", "mul", "max", "none", "not_larger",
		"half_pixel", "align_corners", "tf_crop_and_resize", "asymmetric", "circular", "avg", "floor", "zeros", "border", "reflection", "TF", "NONE", "a+", "("}
	out := &graph.Attr{Name: a.Name, Kind: a.Kind}
	n := r.IntN(5)
	switch a.Kind {
	case graph.AttrInt:
		out.I = r.number()
	case graph.AttrFloat:
		out.F = float32(r.IntN(7)) / 2
	case graph.AttrString:
		out.S = words[r.IntN(len(words))]
	case graph.AttrInts:
		for range n {
			out.Ints = append(out.Ints, r.number())
		}
	case graph.AttrFloats:
		for range n {
			out.Floats = append(out.Floats, float32(r.IntN(7))/2)
		}
	case graph.AttrStrings:
		for range n {
			out.Strings = append(out.Strings, words[r.IntN(len(words))])
		}
	case graph.AttrTensor:
		out.T = r.tensor(Activation)
	default:
		return nil
	}
	return out
}

// node makes a node of the operator. Inputs of one data type and matching
// shapes are more likely than chance has it, so that some nodes make sense.
func (r nodeMaker) node(spec *Spec) single {
	s := single{op: graph.OpKey{Type: spec.Type}, opset: spec.Since + r.IntN(max(1, 27-spec.Since)), threads: 1 + r.IntN(2)}
	var first *tensor.Tensor
	for _, p := range spec.In {
		count := 1
		if p.Variadic {
			count = 1 + r.IntN(3)
		}
		for range count {
			if p.Optional && r.IntN(2) == 0 {
				s.ins, s.consts = append(s.ins, nil), append(s.consts, false)
				continue
			}
			t := r.tensor(p.Role)
			if p.Role != Index && first != nil && r.IntN(3) > 0 {
				t = first.Clone()
			}
			if p.Role != Index && first == nil {
				first = t
			}
			s.ins, s.consts = append(s.ins, t), append(s.consts, r.IntN(2) == 0)
		}
	}
	for _, a := range spec.Attrs {
		if a.Required || r.IntN(2) == 0 {
			if x := r.attr(a); x != nil {
				s.attrs = append(s.attrs, x)
			}
		}
	}
	for range len(spec.Out) + r.IntN(2) {
		s.outs = append(s.outs, true)
	}
	if n := len(spec.Out); n > 0 && !spec.Out[n-1].Variadic {
		s.outs = s.outs[:n]
	}
	return s
}

func (s single) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v, opset %d, inputs", s.op, s.opset)
	for i, d := range s.ins {
		t, ok := d.(*tensor.Tensor)
		if !ok {
			b.WriteString(" -")
			continue
		}
		fmt.Fprintf(&b, " %v", t)
		if v, err := intsOf(t); err == nil && len(v) < 8 {
			fmt.Fprint(&b, v)
		}
		if s.consts[i] {
			b.WriteString(" (constant)")
		}
	}
	b.WriteString(", attributes")
	for _, a := range s.attrs {
		fmt.Fprintf(&b, " %s=%v%v%q%v", a.Name, a.I, a.Ints, a.S, a.F)
	}
	return b.String()
}

// attempt is run with a panic made an error.
func (s single) attempt() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	_, err = s.run()
	return err
}

// defect reports whether an error of attempt is one of the operator's, not of
// the node.
func defect(err error) bool {
	return strings.HasPrefix(err.Error(), "panic") || strings.Contains(err.Error(), "is inferred as")
}

// TestRandomNodes checks on random nodes that no kernel and no shape rule
// panics, and that shape rules agree with what kernels compute.
func TestRandomNodes(t *testing.T) {
	families := [][]Spec{shapeSpecs(), moveSpecs(), indexSpecs(), resizeSpecs(), sequenceSpecs(), textSpecs(), visionSpecs(), signalSpecs(), randomSpecs()}
	trials := 400
	if testing.Short() {
		trials = 50
	}
	r := nodeMaker{rand.New(rand.NewPCG(5, 6))}
	for _, family := range families {
		for i := range family {
			spec := &family[i]
			good := 0
			for range trials {
				s := r.node(spec)
				err := s.attempt()
				if err == nil {
					good++
				} else if defect(err) {
					t.Fatalf("%v: %v", s, err)
				}
			}
			t.Logf("%-20s %d of %d nodes make sense", spec.Type, good, trials)
		}
	}
}

// TestMutatedNodes does the same on sensible nodes with an input or attribute
// changed.
func TestMutatedNodes(t *testing.T) {
	r := nodeMaker{rand.New(rand.NewPCG(8, 9))}
	trials := 6
	if testing.Short() {
		trials = 1
	}
	for _, name := range []string{"move", "resize", "text", "vision"} {
		good, all := 0, 0
		for _, c := range readGolden(t, "testdata/golden/"+name+".json") {
			for range trials {
				s := c.single(t)
				for i := range s.ins {
					s.consts = append(s.consts, r.IntN(2) == 0)
					x, ok := s.ins[i].(*tensor.Tensor)
					if !ok || r.IntN(len(s.ins)) != 0 {
						continue
					}
					s.ins[i] = r.mutate(x)
				}
				if n := len(s.attrs); n > 0 && r.IntN(3) == 0 {
					a := s.attrs[r.IntN(n)]
					if b := r.attr(AttrSpec{Name: a.Name, Kind: a.Kind}); b != nil {
						*a = *b
					}
				}
				all++
				if err := s.attempt(); err == nil {
					good++
				} else if defect(err) {
					t.Fatalf("%v: %v", s, err)
				}
			}
		}
		t.Logf("%s: %d of %d nodes make sense", name, good, all)
	}
}

// mutate returns a copy of x with another shape or other elements.
func (r nodeMaker) mutate(x *tensor.Tensor) *tensor.Tensor {
	shape := append([]int{}, x.Shape()...)
	if n := len(shape); n > 0 && r.IntN(3) == 0 {
		shape[r.IntN(n)] = r.IntN(4)
		x = tensor.New(x.DType(), shape...)
	} else {
		x = x.Clone()
	}
	if !x.DType().Convertible() || x.Len() == 0 {
		return x
	}
	for range 1 + r.IntN(3) {
		at := r.IntN(x.Len())
		if x.DType().IsInt() {
			tensor.Write(x, at, []int64{r.number()})
			continue
		}
		odd := []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e30, -1e30, 0, -1, 0.5, 1e-30}
		tensor.Write(x, at, []float64{odd[r.IntN(len(odd))]})
	}
	return x
}

// TestOpenShapes infers sensible nodes with sizes of their inputs replaced by
// symbols, which name the size they stand for, or left out, and checks that
// what is inferred holds for the computed outputs.
func TestOpenShapes(t *testing.T) {
	r := nodeMaker{rand.New(rand.NewPCG(3, 4))}
	for _, name := range []string{"move", "resize", "text", "vision"} {
		dims, open := 0, 0
		for _, c := range readGolden(t, "testdata/golden/"+name+".json") {
			for range 4 {
				s := c.single(t)
				for range s.ins {
					s.consts = append(s.consts, r.IntN(3) > 0)
				}
				n := s.node()
				for _, v := range n.Inputs() {
					if v == nil || v.IsConst() {
						continue
					}
					for i, d := range v.Type.Shape {
						switch r.IntN(3) {
						case 0:
							v.Type.Shape[i] = graph.Sym(fmt.Sprint("size ", d.Size))
						case 1:
							v.Type.Shape[i] = graph.Dim{}
						}
					}
					if r.IntN(9) == 0 {
						v.Type.Shape = nil
					}
				}
				if _, err := Infer(n.Graph().Model()); err != nil {
					t.Fatalf("%v: %v", s, err)
				}
				for i, v := range n.Outputs() {
					if v == nil || v.Type.Shape == nil {
						continue
					}
					want := c.Outputs[i].tensor(t).Shape()
					if len(v.Type.Shape) != len(want) {
						t.Fatalf("%v: output %d is inferred as %v, has shape %v", s, i, v.Type, want)
					}
					for k, d := range v.Type.Shape {
						dims++
						if !d.Known && d.Sym == "" {
							open++
						} else if d.Known && d.Size != int64(want[k]) || !d.Known && d.Sym != fmt.Sprint("size ", want[k]) {
							t.Fatalf("%v: output %d is inferred as %v, has shape %v", s, i, v.Type, want)
						}
					}
				}
			}
		}
		t.Logf("%s: %d of %d dimensions are left open", name, open, dims)
	}
}
