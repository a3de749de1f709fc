//go:build !noonnxgo

package onnxgo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/owulveryck/onnx-go"
	gonum "gonum.org/v1/gonum/graph"
	gorgonia "gorgonia.org/tensor"
)

// encode returns the file of a model in text form.
func encode(t *testing.T, text string) []byte {
	t.Helper()
	m, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := onnxfile.Write(context.Background(), &b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// load decodes a file with onnx-go.
func load(t *testing.T, b *Backend, data []byte) *onnx.Model {
	t.Helper()
	m := onnx.NewModel(b)
	if err := m.UnmarshalBinary(data); err != nil {
		t.Fatal(err)
	}
	return m
}

// backends returns both kinds of backend for a file.
func backends(t *testing.T, data []byte) map[string]*Backend {
	t.Helper()
	m, err := onnxfile.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewFor(data)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*Backend{"New": New(m.Opsets...), "NewFor": b}
}

func vector(v ...float32) gorgonia.Tensor {
	return gorgonia.New(gorgonia.WithShape(len(v)), gorgonia.WithBacking(v))
}

// run sets the inputs, runs, and returns the data of the outputs.
func run(t *testing.T, b *Backend, m *onnx.Model, inputs ...gorgonia.Tensor) string {
	t.Helper()
	for i, in := range inputs {
		if err := m.SetInput(i, in); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Run(); err != nil {
		t.Fatal(err)
	}
	outs, err := m.GetOutputTensors()
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, o := range outs {
		s = append(s, fmt.Sprint(o.Shape(), o.Data()))
	}
	return strings.Join(s, " ")
}

func TestPrograms(t *testing.T) {
	for _, c := range []struct {
		name, text string
		inputs     []gorgonia.Tensor
		want       string
	}{
		{"one value twice", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) { y = Mul(x, x) }`,
			[]gorgonia.Tensor{vector(1, 2, 3)}, "(3) [1 4 9]"},
		{"order of inputs, initializer", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) <float[1] w = {10}> { y = Sub(w, x) }`,
			[]gorgonia.Tensor{vector(1, 2)}, "(2) [9 8]"},
		{"initializer among the inputs", `<ir_version: 3, opset_import: ["" : 9]> g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {5, 6}> { y = Sub(x, w) }`,
			[]gorgonia.Tensor{vector(1, 1)}, "(2) [-4 -5]"},
		{"omitted input", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) <float h = {2}> { y = Clip(x, , h) }`,
			[]gorgonia.Tensor{vector(-1, 5)}, "(2) [-1 2]"},
		{"omitted output", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (int64[K] i) <int64[1] k = {2}> { , i = TopK(x, k) }`,
			[]gorgonia.Tensor{vector(3, 9, 5)}, "(2) [1 2]"},
		{"no inputs", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) { c = Constant<value_float = 3.0>() d = Constant<value_float = 4.0>() s = Add(c, d) y = Add(x, s) }`,
			[]gorgonia.Tensor{vector(1)}, "(1) [8]"},
		{"declared values", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] z, float[N] y) <float[N] y, float[N] u> { u = Neg(x) y = Abs(u) z = Add(y, u) }`,
			[]gorgonia.Tensor{vector(3)}, "(1) [0] (1) [3]"},
		{"another domain", `<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]> g (float[N] x) => (float[N] y) { y = com.microsoft.QuickGelu<alpha = 0.0>(x) }`,
			[]gorgonia.Tensor{vector(4)}, "(1) [2]"},
		{"scalar", `<ir_version: 8, opset_import: ["" : 13]> g (float x) => (float y, int64[1] n) { y = Neg(x) u = Constant<value_ints = [1]>() n = Mul(u, u) }`,
			[]gorgonia.Tensor{gorgonia.New(gorgonia.FromScalar(float32(2)))}, "() -2 (1) [1]"},
	} {
		data := encode(t, c.text)
		for kind, b := range backends(t, data) {
			if got := run(t, b, load(t, b, data), c.inputs...); got != c.want {
				t.Errorf("%s, %s: %s, want %s", c.name, kind, got, c.want)
			}
		}
	}
}

// TestCasesOnNew runs onnx-go's cases on a backend that knows the operator sets
// only: the results are those of one that knows the file.
func TestCasesOnNew(t *testing.T) {
	ran := 0
	for _, c := range cases(t) {
		results := map[string]string{}
		for kind, b := range backends(t, c.ModelB) {
			m := onnx.NewModel(b)
			err := m.UnmarshalBinary(c.ModelB)
			for i, in := range c.Input {
				if err == nil {
					err = m.SetInput(i, in)
				}
			}
			if err == nil {
				err = b.Run()
			}
			if err != nil {
				results[kind] = "fails"
				continue
			}
			outs, err := m.GetOutputTensors()
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range outs {
				results[kind] += fmt.Sprint(o.Shape(), o.Data())
			}
		}
		if results["New"] != results["NewFor"] {
			t.Errorf("%s: %.200s, want %.200s", c.Title, results["New"], results["NewFor"])
		}
		if results["New"] != "fails" {
			ran++
		}
	}
	if ran < numCases-20 {
		t.Errorf("%d of %d cases run", ran, numCases)
	}
}

// TestRunAgain sets other inputs of the same and of another shape and type.
func TestRunAgain(t *testing.T) {
	b := New(graph.Opset{Version: 13})
	m := load(t, b, encode(t, `<ir_version: 8, opset_import: ["" : 13]> g (x) => (y) <float[1] w = {2}> { y = Add(x, x) }`))
	for _, c := range []struct {
		in   gorgonia.Tensor
		want string
	}{
		{vector(1, 2), "(2) [2 4]"},
		{vector(3, 4), "(2) [6 8]"},
		{vector(5), "(1) [10]"},
		{vector(6, 7, 8), "(3) [12 14 16]"},
		{gorgonia.New(gorgonia.WithShape(1, 2), gorgonia.WithBacking([]float32{1, 2})), "(1, 2) [2 4]"},
		{gorgonia.New(gorgonia.WithShape(2), gorgonia.WithBacking([]int64{1, 2})), "(2) [2 4]"},
	} {
		if got := run(t, b, m, c.in); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func TestRunErrors(t *testing.T) {
	for _, c := range []struct {
		name, text string
		inputs     []gorgonia.Tensor
		want       string
	}{
		{"input not set", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x, float[N] u) => (float[N] y) { y = Add(x, u) }`,
			[]gorgonia.Tensor{vector(1)}, `input "u" has no tensor`},
		{"no kernel", `<ir_version: 8, opset_import: ["" : 13, "any" : 1]> g (float[N] x) => (float[N] y) { y = any.Thing(x) }`,
			[]gorgonia.Tensor{vector(1)}, `operator Thing not implemented`},
		{"output type", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (y) { y = Cast<to = 10>(x) }`,
			[]gorgonia.Tensor{vector(1)}, `output "y": onnx-go has no tensors of float16`},
		{"output kind", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (y) { y = SequenceConstruct(x) }`,
			[]gorgonia.Tensor{vector(1)}, `output "y" is no tensor`},
		{"shapes", `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x, float[N] u) => (float[N] y) { y = Add(x, u) }`,
			[]gorgonia.Tensor{vector(1, 2), vector(1, 2, 3)}, `y`},
	} {
		data := encode(t, c.text)
		for kind, b := range backends(t, data) {
			m := load(t, b, data)
			for i, in := range c.inputs {
				if err := m.SetInput(i, in); err != nil {
					t.Fatal(err)
				}
			}
			err := b.Run()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %s: %v, want %q", c.name, kind, err, c.want)
			}
			if _, ok := err.(*onnx.ErrNotImplemented); ok != (c.name == "no kernel") {
				t.Errorf("%s, %s: error of type %T", c.name, kind, err)
			}
		}
	}
}

// A node that reads its own output makes other backends panic.
func TestSelfLoop(t *testing.T) {
	good := encode(t, `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) { y = Neg(x) }`)
	loop := bytes.Replace(good, []byte("\n\x01x\x12\x01y"), []byte("\n\x01y\x12\x01y"), 1)
	if bytes.Equal(good, loop) {
		t.Fatal("the node is not where it is expected")
	}
	b := New(graph.Opset{Version: 13})
	m := load(t, b, loop)
	if err := m.SetInput(0, vector(1)); err != nil {
		t.Fatal(err)
	}
	if err := b.Run(); err == nil || !strings.Contains(err.Error(), `Neg reads "y" before it is computed`) {
		t.Error(err)
	}
}

// TestGraph checks what the interfaces of gonum promise.
func TestGraph(t *testing.T) {
	b := New(graph.Opset{Version: 13})
	load(t, b, encode(t, `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x, float[N] u) => (float[N] y) { y = Sum(x, u, x) }`))
	ids := func(nodes gonum.Nodes) (list []int64) {
		for nodes.Next() {
			list = append(list, nodes.Node().ID())
		}
		return list
	}
	const x, u, y = 0, 1, 2
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"nodes", fmt.Sprint(ids(b.Nodes())), "[0 1 2]"},
		{"from y", fmt.Sprint(ids(b.From(y))), "[0 1]"},
		{"to x", fmt.Sprint(ids(b.To(x))), "[2]"},
		{"to y", fmt.Sprint(ids(b.To(y))), "[]"},
		{"no node", b.Node(3) == nil && b.Node(-1) == nil, true},
		{"edge", b.Edge(y, u).To().ID(), int64(u)},
		{"no edge", b.Edge(u, y) == nil, true},
		{"directed", b.HasEdgeFromTo(y, x) && !b.HasEdgeFromTo(x, y) && b.HasEdgeBetween(x, y) && !b.HasEdgeBetween(x, u), true},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	b.AddNode(New().NewNode())
	if err := b.Run(); err == nil {
		t.Error("a node of another backend is accepted")
	}
}

func TestCancelled(t *testing.T) {
	b := New(graph.Opset{Version: 13})
	m := load(t, b, encode(t, `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) { y = Neg(x) }`))
	if err := m.SetInput(0, vector(1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.RunContext(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestTensors converts every type there and back, and views.
func TestTensors(t *testing.T) {
	for _, backing := range []any{
		[]float32{1, 2, 3, 4, 5, 6}, []float64{1, 2, 3, 4, 5, 6}, []int8{1, 2, 3, 4, 5, -6}, []int16{1, 2, 3, 4, 5, -6},
		[]int32{1, 2, 3, 4, 5, -6}, []int64{1, 2, 3, 4, 5, -6}, []uint8{1, 2, 3, 4, 5, 200}, []uint16{1, 2, 3, 4, 5, 6}, []uint32{1, 2, 3, 4, 5, 6},
		[]uint64{1, 2, 3, 4, 5, 6}, []bool{true, false, true, true, false, false}, []complex64{1, 2i, 3, 4, 5, 6}, []complex128{1, 2i, 3, 4, 5, 6},
		[]string{"a", "b", "", "c", "d", "e"},
	} {
		in := gorgonia.New(gorgonia.WithShape(2, 3), gorgonia.WithBacking(backing))
		if got := there(t, in); !slices.Equal(got.Shape(), in.Shape()) || fmt.Sprint(got.Data()) != fmt.Sprint(backing) || got.Dtype() != in.Dtype() {
			t.Errorf("%T: %v %v", backing, got.Shape(), got.Data())
		}
		view, err := in.Slice(nil, gorgonia.S(1, 3))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := there(t, view), view.Materialize(); fmt.Sprint(got.Data()) != fmt.Sprint(want.(*gorgonia.Dense).Data()) {
			t.Errorf("%T: slice is %v, want %v", backing, got.Data(), want)
		}
		first, err := in.Slice(gorgonia.S(1), gorgonia.S(0))
		if err != nil {
			t.Fatal(err)
		}
		if got := there(t, first); !got.IsScalar() || fmt.Sprint(got.Data()) != fmt.Sprint(first.Data()) {
			t.Errorf("%T: element is %v, want %v", backing, got.Data(), first.Data())
		}
	}
	for _, c := range []struct {
		in   gorgonia.Tensor
		want string
	}{
		{gorgonia.New(gorgonia.WithShape(2), gorgonia.WithBacking([]int{1, -2})), "(2) [1 -2] int64"},
		{gorgonia.New(gorgonia.WithShape(2), gorgonia.WithBacking([]uint{1, 2})), "(2) [1 2] uint64"},
		{gorgonia.New(gorgonia.AsFortran([]float32{1, 2, 3, 4, 5, 6}), gorgonia.WithShape(2, 3)), "(2, 3) [1 3 5 2 4 6] float32"},
	} {
		got := there(t, c.in)
		if s := fmt.Sprint(got.Shape(), got.Data(), got.Dtype()); strings.ReplaceAll(s, "  ", " ") != c.want {
			t.Errorf("%s, want %s", s, c.want)
		}
	}
	transposed := gorgonia.New(gorgonia.WithShape(2, 3), gorgonia.WithBacking([]float32{1, 2, 3, 4, 5, 6}))
	if err := transposed.T(); err != nil {
		t.Fatal(err)
	}
	if got := there(t, transposed); fmt.Sprint(got.Shape(), got.Data()) != "(3, 2) [1 4 2 5 3 6]" {
		t.Errorf("transposed: %v %v", got.Shape(), got.Data())
	}
	if _, err := fromGorgonia(gorgonia.New(gorgonia.WithShape(1), gorgonia.WithBacking([]uintptr{1}))); err == nil {
		t.Error("a tensor of uintptr is accepted")
	}
}

// there returns t as it comes back from our type.
func there(t *testing.T, in gorgonia.Tensor) gorgonia.Tensor {
	t.Helper()
	own, err := fromGorgonia(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := toGorgonia(own)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
