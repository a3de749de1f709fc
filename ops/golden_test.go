package ops

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// goldenCase is a node with its inputs and the outputs that another
// implementation computed; testdata/golden/golden.py writes them.
type goldenCase struct {
	Name, Domain, Op string
	Opset            int
	Attrs            []goldenAttr
	Inputs, Outputs  []*goldenTensor
	Rtol, Atol       float64
}

type goldenAttr struct {
	Name    string
	Kind    graph.AttrKind
	I       int64
	F       number
	S       string
	Ints    []int64
	Floats  []number
	Strings []string
	T       *goldenTensor
}

// number is a float32 for which null stands for NaN.
type number float32

func (n *number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*n = number(math.NaN())
		return nil
	}
	return json.Unmarshal(b, (*float32)(n))
}

type goldenTensor struct {
	DType   tensor.DType
	Shape   []int
	Data    string // raw_data in base 64
	Strings []string
	Const   bool // always an initializer
}

func (g *goldenTensor) tensor(t *testing.T) *tensor.Tensor {
	t.Helper()
	if g.Shape == nil {
		g.Shape = []int{}
	}
	if g.DType == tensor.String {
		return tensor.FromStrings(g.Shape, g.Strings)
	}
	raw, err := base64.StdEncoding.DecodeString(g.Data)
	if err != nil {
		t.Fatal(err)
	}
	out, err := tensor.FromBytes(g.DType, g.Shape, append(tensor.AlignedBytes(0), raw...))
	if err != nil {
		t.Fatal(err)
	}
	return out.Clone()
}

// readGolden returns the cases of a file.
func readGolden(t *testing.T, file string) []goldenCase {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cases []goldenCase
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) == 0 {
		t.Fatal("no cases")
	}
	return cases
}

// single returns the node with its inputs.
func (gc *goldenCase) single(t *testing.T) single {
	t.Helper()
	s := single{op: graph.OpKey{Domain: gc.Domain, Type: gc.Op}, opset: gc.Opset}
	for _, a := range gc.Attrs {
		attr := &graph.Attr{Name: a.Name, Kind: a.Kind, I: a.I, F: float32(a.F), S: a.S, Ints: a.Ints, Strings: a.Strings}
		for _, v := range a.Floats {
			attr.Floats = append(attr.Floats, float32(v))
		}
		if a.T != nil {
			attr.T = a.T.tensor(t)
		}
		s.attrs = append(s.attrs, attr)
	}
	for _, in := range gc.Inputs {
		if in == nil {
			s.ins = append(s.ins, nil)
		} else {
			s.ins = append(s.ins, in.tensor(t))
		}
	}
	for _, out := range gc.Outputs {
		s.outs = append(s.outs, out != nil)
	}
	return s
}

// runGolden computes the cases of a file, with the inputs fed at run time and
// with all inputs but the first as initializers, on one and on two threads, which
// must give the same bits.
func runGolden(t *testing.T, file string) {
	for _, gc := range readGolden(t, file) {
		t.Run(gc.Name, func(t *testing.T) {
			s := gc.single(t)
			var fed, fixed []bool
			for i, in := range gc.Inputs {
				fed, fixed = append(fed, in != nil && in.Const), append(fixed, in != nil && (in.Const || i > 0))
			}
			var want []*tensor.Tensor
			for _, out := range gc.Outputs {
				if out == nil {
					want = append(want, nil)
				} else {
					want = append(want, out.tensor(t))
				}
			}
			s.consts = fed
			s.check(t, gc.Rtol, gc.Atol, want...)
			s.consts, s.threads = fixed, 1
			one, err := s.run()
			if err != nil {
				t.Fatal(err)
			}
			s.threads = 2
			s.check(t, gc.Rtol, gc.Atol, want...)
			two, err := s.run()
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range one {
				if a, ok := d.(*tensor.Tensor); ok && !a.Equal(two[i].(*tensor.Tensor)) {
					t.Errorf("output %d depends on the number of threads", i)
				}
			}
		})
	}
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) { runGolden(t, f) })
	}
}
