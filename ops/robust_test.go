package ops

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// TestNoPanic feeds the operators inputs of random types and shapes, empty
// ones and scalars among them: what does not fit has to be an error, and what
// is computed has to have the inferred type.
func TestNoPanic(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	dtypes := []tensor.DType{tensor.Float32, tensor.Float32, tensor.Float32, tensor.Int64, tensor.Int64, tensor.Bool, tensor.Float16,
		tensor.Float64, tensor.Uint8, tensor.String, tensor.Complex64, tensor.Float8E4M3FN, tensor.Int4}
	ints := map[string]int64{"to": 7, "size": 3, "num_groups": 1}
	families := [][]Spec{elementwiseSpecs(), reduceSpecs(), softmaxSpecs(), einsumSpecs(), normSpecs(), geluSpecs()}
	computed := map[string]bool{}
	for _, family := range families {
		for _, spec := range family {
			for trial := range 400 {
				s := single{op: graph.OpKey{Domain: spec.Domain, Type: spec.Type}, opset: []int{7, 11, 13, 18, 28}[rng.IntN(5)]}
				for _, a := range spec.Attrs {
					if !a.Required && rng.IntN(2) == 0 {
						continue
					}
					switch a.Kind {
					case graph.AttrInt:
						v := int64(rng.IntN(8)) - 3
						if d, ok := ints[a.Name]; ok && rng.IntN(3) > 0 {
							v = d
						}
						s.attrs = append(s.attrs, graph.Int(a.Name, v))
					case graph.AttrFloat:
						s.attrs = append(s.attrs, graph.Float(a.Name, float32(rng.NormFloat64())))
					case graph.AttrInts:
						s.attrs = append(s.attrs, graph.Ints(a.Name, int64(rng.IntN(5))-2))
					case graph.AttrString:
						s.attrs = append(s.attrs, graph.String(a.Name, []string{"", "none", "LEFT", "ij,jk->ik", "...i->i...", "ii", "sum", "a,b,ab"}[rng.IntN(8)]))
					}
				}
				n := len(spec.In) + rng.IntN(2)
				common, like := dtypes[rng.IntN(len(dtypes))], randomShape(rng)
				for range n {
					d, shape := common, like
					if rng.IntN(4) == 0 {
						d = dtypes[rng.IntN(len(dtypes))]
					}
					if rng.IntN(2) == 0 {
						shape = randomShape(rng)
					}
					in := tensor.New(d, shape...)
					if d.Convertible() && trial%2 == 0 {
						for i := range in.Len() {
							tensor.Write(in, i, []int64{int64(rng.IntN(5)) - 2})
						}
					}
					s.ins = append(s.ins, in)
				}
				s.outs = make([]bool, len(spec.Out))
				for i := range s.outs {
					s.outs[i] = i == 0 || rng.IntN(2) == 0
				}
				if err := noPanic(s); err == nil {
					computed[spec.Type] = true
				} else if p, ok := err.(panicked); ok {
					t.Errorf("%v at %d of %v %v: %v", s.op, s.opset, s.ins, describe(s.attrs), p.value)
				}
			}
			// Labels that fit scores are too rare among random inputs.
			if !computed[spec.Type] && !strings.HasSuffix(spec.Type, "Loss") {
				t.Errorf("%s: no trial was computed", spec.Type)
			}
		}
	}
}

func randomShape(rng *rand.Rand) []int {
	shape := make([]int, rng.IntN(4))
	for i := range shape {
		shape[i] = []int{0, 1, 2, 3, 3, 3}[rng.IntN(6)]
	}
	return shape
}

func describe(attrs []*graph.Attr) string {
	out := ""
	for _, a := range attrs {
		out += fmt.Sprintf("%s=%d/%v/%q/%v ", a.Name, a.I, a.F, a.S, a.Ints)
	}
	return out
}

type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprint("panic: ", p.value) }

func noPanic(s single) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = panicked{r}
		}
	}()
	_, err = s.run()
	return err
}
