package ops_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// sketch builds graphs for tests.
type sketch struct{ g *graph.Graph }

func (s sketch) input(name string, d tensor.DType, shape ...int) *graph.Value {
	v := s.g.NewValue(name, graph.TensorType(d, graph.ShapeOf(shape...)))
	s.g.AddInput(v)
	return v
}

func (s sketch) free(name string, d tensor.DType) *graph.Value {
	v := s.g.NewValue(name, graph.TensorType(d, nil))
	s.g.AddInput(v)
	return v
}

func (s sketch) node(op string, ins []*graph.Value, attrs ...*graph.Attr) *graph.Value {
	out := s.g.NewValue(s.g.Model().UniqueName(op), graph.Type{})
	s.g.Append(s.g.NewNode(graph.OpKey{Type: op}, "", ins, []*graph.Value{out}, attrs...))
	return out
}

func (s sketch) constant(t *tensor.Tensor) *graph.Value { return s.g.NewInitializer("c", t) }

func graphAttr(name string, g *graph.Graph) *graph.Attr {
	return &graph.Attr{Name: name, Kind: graph.AttrGraph, G: g}
}

func newSketch(opset int64) sketch {
	return sketch{graph.NewModel(10, graph.Opset{Version: opset}).Graph}
}

func run(t *testing.T, s sketch, feeds map[string]ops.Data) []ops.Data {
	t.Helper()
	if _, err := ops.Infer(s.g.Model()); err != nil {
		t.Fatal(err)
	}
	p, err := exec.Compile(s.g.Model(), exec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.NewSession(exec.SessionOptions{Threads: 1}).Run(context.Background(), feeds, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func ints(t *testing.T, d ops.Data) []int64 {
	t.Helper()
	x, ok := d.(*tensor.Tensor)
	if !ok {
		t.Fatalf("%T is no tensor", d)
	}
	v, err := tensor.Int64s(x)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// loop is a Loop that keeps a vector as it is, appends the step to another by
// Concat and gives the step as scan output, and stops when stop steps are
// done.
func loop(outer sketch, trips, cond *graph.Value, stop int64) []*graph.Value {
	keep, grow := outer.input("keep", tensor.Int64, 2), outer.input("grow", tensor.Int64, 1)
	b := sketch{outer.g.Model().NewGraph()}
	k := b.free("k", tensor.Int64)
	b.free("running", tensor.Bool)
	keepIn, growIn := b.free("keep_in", tensor.Int64), b.free("grow_in", tensor.Int64)
	one := b.node("Unsqueeze", []*graph.Value{k, b.constant(tensor.Of([]int64{0}))})
	longer := b.node("Concat", []*graph.Value{growIn, one}, graph.Int("axis", 0))
	// The condition is read from a vector, as the table of steps it is.
	table := make([]bool, 64)
	for i := range table {
		table[i] = int64(i) < stop-1
	}
	going := b.node("Gather", []*graph.Value{b.constant(tensor.Of(table)), k})
	for _, v := range []*graph.Value{going, keepIn, longer, one} {
		b.g.AddOutput(v)
	}
	var outs []*graph.Value
	for _, name := range []string{"kept", "grown", "steps"} {
		outs = append(outs, outer.g.NewValue(name, graph.Type{}))
	}
	outer.g.Append(outer.g.NewNode(graph.OpKey{Type: "Loop"}, "loop", []*graph.Value{trips, cond, keep, grow}, outs, graphAttr("body", b.g)))
	for _, v := range outs {
		outer.g.AddOutput(v)
	}
	return outs
}

func TestLoop(t *testing.T) {
	cases := []struct {
		name        string
		trips, cond any // nil: omitted
		stop        int64
		want        int
	}{
		{"counted", int64(3), nil, 1, 3},
		{"while", nil, true, 4, 4},
		{"either", int64(2), true, 4, 2},
		{"never", int64(2), false, 4, 0},
		{"no steps", int64(0), nil, 4, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newSketch(18)
			var trips, cond *graph.Value
			if n, ok := c.trips.(int64); ok {
				trips = s.constant(tensor.Scalar(n))
			}
			if b, ok := c.cond.(bool); ok {
				cond = s.constant(tensor.Scalar(b))
			}
			outs := loop(s, trips, cond, c.stop)
			got := run(t, s, map[string]ops.Data{"keep": tensor.Of([]int64{8, 9}), "grow": tensor.Of([]int64{7})})
			if v := ints(t, got[0]); !slices.Equal(v, []int64{8, 9}) {
				t.Errorf("kept %v", v)
			}
			want := []int64{7}
			for k := range c.want {
				want = append(want, int64(k))
			}
			if v := ints(t, got[1]); !slices.Equal(v, want) {
				t.Errorf("grown %v, want %v", v, want)
			}
			if sh := got[2].(*tensor.Tensor).Shape(); !slices.Equal(sh, []int{c.want, 1}) {
				t.Errorf("%v steps, want %d", sh, c.want)
			}
			for i, shape := range []string{"int64[2]", "int64[?]", "int64[?,1]"} {
				if c.name == "counted" && i == 2 {
					shape = "int64[3,1]"
				}
				if c.name == "no steps" && i == 2 {
					shape = "int64[0,1]"
				}
				if ty := outs[i].Type.String(); ty != shape && !(i == 1 && ty == "int64[...]") {
					t.Errorf("output %d is inferred as %s, want %s", i, ty, shape)
				}
			}
		})
	}
}

// TestScan scans the columns of a matrix forwards and backwards.
func TestScan(t *testing.T) {
	s := newSketch(18)
	state, x := s.input("state", tensor.Int64, 2), s.input("x", tensor.Int64, 2, 3)
	b := sketch{s.g.Model().NewGraph()}
	st, a, z := b.free("st", tensor.Int64), b.free("a", tensor.Int64), b.free("z", tensor.Int64)
	_ = st
	both := b.node("Concat", []*graph.Value{a, z}, graph.Int("axis", 0))
	for _, v := range []*graph.Value{a, both, z} {
		b.g.AddOutput(v)
	}
	var outs []*graph.Value
	for _, name := range []string{"last", "both", "back"} {
		v := s.g.NewValue(name, graph.Type{})
		outs = append(outs, v)
	}
	s.g.Append(s.g.NewNode(graph.OpKey{Type: "Scan"}, "scan", []*graph.Value{state, x, x}, outs,
		graph.Int("num_scan_inputs", 2), graph.Ints("scan_input_axes", 1, -1), graph.Ints("scan_input_directions", 0, 1),
		graph.Ints("scan_output_axes", 1, 0), graph.Ints("scan_output_directions", 0, 1), graphAttr("body", b.g)))
	for _, v := range outs {
		s.g.AddOutput(v)
	}
	got := run(t, s, map[string]ops.Data{"state": tensor.Of([]int64{0, 0}), "x": tensor.Of([]int64{1, 2, 3, 4, 5, 6}, 2, 3)})
	for i, want := range [][]int64{{3, 6}, {1, 2, 3, 4, 5, 6, 3, 2, 1, 6, 5, 4}, {1, 4, 2, 5, 3, 6}} {
		if v := ints(t, got[i]); !slices.Equal(v, want) {
			t.Errorf("output %d is %v, want %v", i, v, want)
		}
	}
	for i, want := range []string{"int64[2]", "int64[4,3]", "int64[3,2]"} {
		if ty := outs[i].Type.String(); ty != want {
			t.Errorf("output %d is inferred as %s, want %s", i, ty, want)
		}
	}
}

// TestIf checks both branches, captured values, and that shapes on which the
// branches differ are open unless the condition is constant.
func TestIf(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		for _, which := range []bool{false, true} {
			s := newSketch(18)
			x := s.input("x", tensor.Int64, 2)
			var cond *graph.Value
			feeds := map[string]ops.Data{"x": tensor.Of([]int64{5, 6})}
			if fixed {
				cond = s.constant(tensor.Scalar(which))
			} else {
				cond = s.input("cond", tensor.Bool)
				feeds["cond"] = tensor.Scalar(which)
			}
			then, other := sketch{s.g.Model().NewGraph()}, sketch{s.g.Model().NewGraph()}
			then.g.AddOutput(then.node("Concat", []*graph.Value{x, x}, graph.Int("axis", 0)))
			other.g.AddOutput(other.node("Slice", []*graph.Value{x, other.constant(tensor.Of([]int64{1})), other.constant(tensor.Of([]int64{2}))}))
			y := s.node("If", []*graph.Value{cond}, graphAttr("then_branch", then.g), graphAttr("else_branch", other.g))
			s.g.AddOutput(y)
			got := run(t, s, feeds)
			want, typ := []int64{6}, "int64[1]"
			if which {
				want, typ = []int64{5, 6, 5, 6}, "int64[4]"
			}
			if !fixed {
				typ = "int64[?]"
			}
			if v := ints(t, got[0]); !slices.Equal(v, want) || y.Type.String() != typ {
				t.Errorf("%v of type %s, want %v of type %s", v, y.Type, want, typ)
			}
		}
	}
}

// TestSequences builds, changes and joins sequences.
func TestSequences(t *testing.T) {
	s := newSketch(18)
	x := s.input("x", tensor.Int64, 5)
	two := s.constant(tensor.Scalar(int64(2)))
	last := s.constant(tensor.Scalar(int64(-1)))
	seq := s.node("SplitToSequence", []*graph.Value{x, two})
	seq = s.node("SequenceErase", []*graph.Value{seq, s.constant(tensor.Scalar(int64(1)))})
	seq = s.node("SequenceInsert", []*graph.Value{seq, x, s.constant(tensor.Scalar(int64(0)))})
	s.g.AddOutput(s.node("ConcatFromSequence", []*graph.Value{seq}, graph.Int("axis", 0)))
	s.g.AddOutput(s.node("SequenceLength", []*graph.Value{seq}))
	at := s.node("SequenceAt", []*graph.Value{seq, last})
	s.g.AddOutput(at)
	opt := s.node("Optional", []*graph.Value{at})
	s.g.AddOutput(s.node("OptionalGetElement", []*graph.Value{opt}))
	s.g.AddOutput(s.node("OptionalHasElement", []*graph.Value{opt}))
	got := run(t, s, map[string]ops.Data{"x": tensor.Of([]int64{1, 2, 3, 4, 5})})
	for i, want := range [][]int64{{1, 2, 3, 4, 5, 1, 2, 5}, {3}, {5}, {5}, {1}} {
		if v := ints(t, got[i]); !slices.Equal(v, want) {
			t.Errorf("output %d is %v, want %v", i, v, want)
		}
	}
	if ty := at.Type.String(); ty != "int64[?]" {
		t.Errorf("element is inferred as %s", ty)
	}
}

// TestShapeChains checks that shapes computed by nodes reach the shapes of
// what they reshape, symbols included.
func TestShapeChains(t *testing.T) {
	s := newSketch(18)
	x := s.g.NewValue("x", graph.TensorType(tensor.Float32, graph.Shape{graph.Sym("N"), graph.Sym("T"), graph.D(64)}))
	s.g.AddInput(x)
	scalar := func(v int64) *graph.Value { return s.constant(tensor.Scalar(v)) }
	vec := func(v ...int64) *graph.Value { return s.constant(tensor.Of(v)) }
	dim := func(v *graph.Value, i int64) *graph.Value {
		d := s.node("Gather", []*graph.Value{s.node("Shape", []*graph.Value{v}), scalar(i)})
		return s.node("Unsqueeze", []*graph.Value{d, vec(0)})
	}
	cat := func(v ...*graph.Value) *graph.Value { return s.node("Concat", v, graph.Int("axis", 0)) }
	reshape := func(v, sh *graph.Value) *graph.Value { return s.node("Reshape", []*graph.Value{v, sh}) }
	heads := reshape(x, cat(dim(x, 0), dim(x, 1), vec(4, -1)))
	swapped := s.node("Transpose", []*graph.Value{heads}, graph.Ints("perm", 0, 2, 1, 3))
	merged := reshape(swapped, cat(dim(swapped, 0), vec(-1, 16)))
	rows := reshape(x, vec(-1, 64))
	back := reshape(rows, cat(dim(x, 0), vec(-1), dim(x, 2)))
	zero := reshape(x, vec(0, -1))
	constant := s.constant(tensor.Of([]int64{7}))
	positions := s.node("Range", []*graph.Value{scalar(0), s.node("Squeeze", []*graph.Value{dim(x, 1), vec(0)}), scalar(1)})
	grid := s.node("Expand", []*graph.Value{positions, cat(dim(x, 0), dim(x, 1))})
	fill := s.node("ConstantOfShape", []*graph.Value{s.node("Slice", []*graph.Value{s.node("Shape", []*graph.Value{x}), vec(0), vec(2)})})
	tiled := s.node("Tile", []*graph.Value{s.node("Unsqueeze", []*graph.Value{constant, vec(0)}), cat(dim(x, 0), vec(3))})
	whole := s.node("Slice", []*graph.Value{x, vec(0), vec(1 << 62), vec(1)})
	flat := s.node("Flatten", []*graph.Value{x}, graph.Int("axis", 2))
	split := s.node("Gather", []*graph.Value{x, scalar(0)}, graph.Int("axis", 1))
	// Pads as PyTorch writes them: a list from the last axis back, turned by way
	// of a matrix.
	pads := cat(vec(1, 2, 3), s.node("ConstantOfShape", []*graph.Value{vec(3)}, graph.TensorAttr("value", tensor.Of([]int64{0}))))
	pairs := reshape(pads, vec(-1, 2))
	pairs = s.node("Slice", []*graph.Value{pairs, vec(-1), vec(-1 << 62), vec(0), vec(-1)})
	pads = reshape(s.node("Transpose", []*graph.Value{pairs}, graph.Ints("perm", 1, 0)), vec(-1))
	padded := s.node("Pad", []*graph.Value{x, s.node("Cast", []*graph.Value{pads}, graph.Int("to", 7))})
	table := s.constant(tensor.New(tensor.Float32, 9, 4))
	rowsOfT := s.node("Slice", []*graph.Value{table, vec(0), dim(x, 1), vec(0)})
	squeeze, keep := sketch{s.g.Model().NewGraph()}, sketch{s.g.Model().NewGraph()}
	squeeze.g.AddOutput(squeeze.node("ReduceSum", []*graph.Value{x, vec(2)}, graph.Int("keepdims", 0)))
	keep.g.AddOutput(keep.node("Identity", []*graph.Value{x}))
	wide := s.node("Equal", []*graph.Value{s.node("Gather", []*graph.Value{s.node("Shape", []*graph.Value{x}), scalar(2)}), scalar(64)})
	chosen := s.node("If", []*graph.Value{wide}, graphAttr("then_branch", squeeze.g), graphAttr("else_branch", keep.g))
	cases := []struct {
		v    *graph.Value
		want string
	}{
		{padded, "float[N,?,67]"}, {rowsOfT, "float[T,4]"}, {chosen, "float[N,T]"},
		{heads, "float[N,T,4,16]"}, {swapped, "float[N,4,T,16]"}, {merged, "float[N,?,16]"}, {rows, "float[?,64]"},
		{back, "float[N,?,64]"}, {zero, "float[N,?]"}, {positions, "int64[T]"}, {grid, "int64[N,T]"},
		{fill, "float[N,T]"}, {tiled, "int64[N,3]"}, {whole, "float[N,T,64]"}, {flat, "float[?,64]"}, {split, "float[N,64]"},
	}
	for _, c := range cases {
		s.g.AddOutput(c.v)
	}
	got := run(t, s, map[string]ops.Data{"x": tensor.New(tensor.Float32, 2, 3, 64)})
	for i, c := range cases {
		if ty := c.v.Type.String(); ty != c.want {
			t.Errorf("%s is inferred as %s, want %s", c.v.Name(), ty, c.want)
		}
		sh := tensor.ShapeString(got[i].(*tensor.Tensor).Shape())
		want := strings.NewReplacer("N", "2", "T", "3").Replace(c.want[strings.IndexByte(c.want, '['):])
		if !strings.Contains(want, "?") && sh != want {
			t.Errorf("%s has shape %s, inferred %s", c.v.Name(), sh, want)
		}
	}
}

// TestLoopMemory runs a loop whose states would not fit side by side, swaps
// them, and keeps one as scan output.
func TestLoopMemory(t *testing.T) {
	const steps, size = 200, 1 << 14
	s := newSketch(18)
	a, b := s.input("a", tensor.Float32, size), s.input("b", tensor.Float32, size)
	body := sketch{s.g.Model().NewGraph()}
	body.free("k", tensor.Int64)
	cond := body.free("cond", tensor.Bool)
	x, y := body.free("x", tensor.Float32), body.free("y", tensor.Float32)
	one := body.constant(tensor.Scalar(float32(1)))
	up := body.node("Add", []*graph.Value{x, one})
	first := body.node("Slice", []*graph.Value{up, body.constant(tensor.Of([]int64{0})), body.constant(tensor.Of([]int64{1}))})
	for _, v := range []*graph.Value{cond, y, up, first} {
		body.g.AddOutput(v)
	}
	var outs []*graph.Value
	for _, name := range []string{"p", "q", "r"} {
		outs = append(outs, s.g.NewValue(name, graph.Type{}))
	}
	s.g.Append(s.g.NewNode(graph.OpKey{Type: "Loop"}, "loop", []*graph.Value{s.constant(tensor.Scalar(int64(steps))), nil, a, b}, outs, graphAttr("body", body.g)))
	for _, v := range outs {
		s.g.AddOutput(v)
	}
	if _, err := ops.Infer(s.g.Model()); err != nil {
		t.Fatal(err)
	}
	p, err := exec.Compile(s.g.Model(), exec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b0 := make([]float32, size)
	for i := range b0 {
		b0[i] = 1000
	}
	feeds := map[string]ops.Data{"a": tensor.New(tensor.Float32, size), "b": tensor.Of(b0)}
	got, err := p.NewSession(exec.SessionOptions{Threads: 1, MaxBytes: 20 * 4 * size}).Run(context.Background(), feeds, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Each state is raised in every second step, the one from 0 first.
	for i, want := range []float32{steps / 2, 1000 + steps/2} {
		v := tensor.As[float32](got[i].(*tensor.Tensor))
		if v[0] != want || v[size-1] != want {
			t.Errorf("state %d is %v … %v, want %v", i, v[0], v[size-1], want)
		}
	}
	for k, v := range tensor.As[float32](got[2].(*tensor.Tensor)) {
		want := float32(k/2 + 1)
		if k%2 == 1 {
			want += 1000
		}
		if v != want {
			t.Fatalf("step %d gives %v, want %v", k, v, want)
		}
	}
	if b0[0] != 1000 {
		t.Error("the input was written to")
	}
}
