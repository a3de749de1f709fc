//go:build !noonnxgo

package onnxgo

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/tensor"
)

// TestCrossCheckZoo compares the decoders on every model of the zoo and every
// conformance case: they agree on all that onnx-go can read.
func TestCrossCheckZoo(t *testing.T) {
	var paths []string
	shared := sharedDir()
	for _, glob := range []string{filepath.Join(shared, "zoo", "*", "*.onnx"), filepath.Join(shared, "zoo", "*.onnx"), filepath.Join(os.Getenv("ONNXQ_CONFORMANCE"), "*", "*", "model.onnx")} {
		found, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	if len(paths) == 0 {
		t.Skipf("no models in %s, and ONNXQ_CONFORMANCE names none: decoders not compared on them", shared)
	}
	read, whole := 0, 0
	for _, path := range paths {
		m, err := onnxfile.Open(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r := CrossCheck(data, m)
		for _, d := range r.Differences {
			t.Errorf("%s: %s", path, d)
		}
		if r.Nodes > 0 {
			read++
		}
		if len(r.Unread) == 0 {
			whole++
		}
		if r.Nodes != m.Graph.NumNodes() {
			t.Logf("%s: %s: %v", path, r, r.Unread)
		}
		m.Close()
	}
	t.Logf("%d models: onnx-go reads %d, %d of them whole", len(paths), read, whole)
}

// TestCrossCheckDifferences edits what our loader has read and expects that the
// other decoder contradicts.
func TestCrossCheckDifferences(t *testing.T) {
	data := encode(t, `<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] z) <float[2] w = {1, 2}, int64[1] k = {7}> {
		y = Concat<axis = 0>(x, w)
		[last] z = Gemm<alpha = 0.5, beta = 2.0>(y, y, w)
	}`)
	edit := func(f func(g *graph.Graph)) *Report {
		m, err := onnxfile.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		f(m.Graph)
		return CrossCheck(data, m)
	}
	initializer := func(g *graph.Graph, name string) *graph.Value {
		for _, v := range g.Initializers() {
			if v.Name() == name {
				return v
			}
		}
		t.Fatalf("no initializer %s", name)
		return nil
	}
	for _, c := range []struct {
		edit func(g *graph.Graph)
		want []string
	}{
		{func(g *graph.Graph) {}, nil},
		{func(g *graph.Graph) { g.First().Op.Type = "Sum" }, []string{`node 0 ("y"): operator "Sum" here, "Concat" there`}},
		{func(g *graph.Graph) { g.Last().SetInput(1, initializer(g, "k")) }, []string{`node 1 ("last"): input 1 is "k" here, "y" there`}},
		{func(g *graph.Graph) { g.Last().TruncateInputs(2) }, []string{`node 1 ("last"): 2 inputs here, 3 there`}},
		{func(g *graph.Graph) { g.First().Output(0).Rename("v") }, []string{
			`node 0 ("v"): output 0 is "v" here, "y" there`, `node 1 ("last"): input 0 is "v" here, "y" there`, `node 1 ("last"): input 1 is "v" here, "y" there`}},
		{func(g *graph.Graph) { g.First().Attr("axis").I = 1 }, []string{`node 0 ("y"): attribute "axis": another value`}},
		{func(g *graph.Graph) { g.First().SetAttr(graph.Float("axis", 0)) }, []string{`node 0 ("y"): attribute "axis": kind 1 here, 2 there`}},
		{func(g *graph.Graph) { g.Last().RemoveAttr("beta"); g.Last().SetAttr(graph.Int("aaa", 1)) }, []string{
			`node 1 ("last"): attribute "aaa" only here`, `node 1 ("last"): attribute "beta" only there`}},
		{func(g *graph.Graph) { initializer(g, "w").Const = tensor.Of([]float32{1, 3}) }, []string{`initializer "w": another value`}},
		{func(g *graph.Graph) { initializer(g, "w").Const = tensor.Of([]float32{1, 2}, 1, 2) }, []string{`initializer "w": float[1,2] here, float[2] there`}},
		{func(g *graph.Graph) { initializer(g, "w").Const = tensor.Of([]int64{1}) }, []string{`initializer "w": int64[1] here, float[2] there`}},
		{func(g *graph.Graph) { g.RemoveInitializers(func(v *graph.Value) bool { return v.Name() == "k" }) }, []string{`initializer "k" only there`}},
		{func(g *graph.Graph) { g.NewInitializer("j", tensor.Of([]int64{1})) }, []string{`initializer "j" only here`}},
		{func(g *graph.Graph) { g.Append(g.NewNode(graph.OpKey{Type: "Neg"}, "", g.Inputs(), nil)) }, []string{`3 nodes here, 2 there`}},
	} {
		r := edit(c.edit)
		if !slices.Equal(r.Differences, c.want) || len(r.Unread) > 0 {
			t.Errorf("differences %q, want %q; not read: %v", r.Differences, c.want, r.Unread)
		}
	}
	r := edit(func(*graph.Graph) {})
	if want := (Report{Nodes: 2, Edges: 7, Attributes: 3, Initializers: 2, Differences: []string{}, Unread: []Unread{}}); !reflect.DeepEqual(*r, want) {
		t.Errorf("%+v, want %+v", *r, want)
	}
}

// TestCrossCheckUnread compares what is left where onnx-go cannot read a part.
func TestCrossCheckUnread(t *testing.T) {
	for _, c := range []struct {
		text         string
		nodes, attrs int
		initializers int
		want         []Unread
	}{
		{`<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] z) <float s = {0.5}, uint8 zero = {3}, float w = {2}> {
			y = Mul(x, w) q = QuantizeLinear<axis = 0>(y, s, zero) z = DequantizeLinear(q, s, zero) }`,
			3, 1, 2, []Unread{{`initializer "zero"`, "Unknown type uint8: Not Yet Implemented"}}},
		{`<ir_version: 8, opset_import: ["" : 13]> g (float16[N] x, seq(float) s, float[1099511627776, 1099511627776] big) => (bfloat16[N] z) { z = Cast<to = 16>(x) }`,
			1, 1, 0, []Unread{{`input "x"`, "no type of onnx-go: float16"}, {`input "s"`, "no tensor, and onnx-go has nothing else"}, {`output "z"`, "no type of onnx-go: bfloat16"}}},
		{`<ir_version: 8, opset_import: ["" : 13]> g (bool c, float[N] x) => (float[N] z) {
			[choice] z = If<then_branch = t () => (float[N] a) { a = Neg(x) }, else_branch = e () => (float[N] b) { b = Abs(x) }>(c) }`,
			1, 0, 0, []Unread{{`node 0 ("choice"): attribute "then_branch"`, "onnx-go reads no nested graphs"}, {`node 0 ("choice"): attribute "else_branch"`, "onnx-go reads no nested graphs"}}},
		{`<ir_version: 8, opset_import: ["" : 13, "own" : 1]> g (float[N] x) => (float[N] y) { y = own.F(x) } <domain: "own", opset_import: ["" : 13]> F (x) => (y) { y = Neg(x) }`,
			1, 0, 0, []Unread{{`function "F"`, "onnx-go knows no functions"}}},
		{`<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) <bool[3] b = {1, 0, 1}> { c = Constant<value = int8[2] {1, 2}>() y = Where(b, x, x) }`,
			2, 0, 0, []Unread{{`node 0 ("c"): attribute "value"`, "Unknown type int8: Not Yet Implemented"}, {`initializer "b"`, "Unable to decode data"}}},
	} {
		data := encode(t, c.text)
		m, err := onnxfile.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		r := CrossCheck(data, m)
		if r.Nodes != c.nodes || r.Attributes != c.attrs || r.Initializers != c.initializers || len(r.Differences) > 0 {
			t.Errorf("%s: %v %q", c.text, r, r.Differences)
		}
		if !slices.Equal(r.Unread, c.want) {
			t.Errorf("%s: not read: %q, want %q", c.text, r.Unread, c.want)
		}
	}
}

// TestCrossCheckDamaged hands the decoder damaged files: nothing panics, and
// what it says is the same each time.
func TestCrossCheckDamaged(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "models", "digits", "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := onnxfile.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if r := CrossCheck(data, m); len(r.Differences)+len(r.Unread) > 0 || r.Nodes != m.Graph.NumNodes() {
		t.Fatal(r, r.Differences, r.Unread)
	}
	said := 0
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		bad := bytes.Clone(data)
		// Most of the file is weights; the structure stands at its ends.
		at := rng.IntN(2000)
		if rng.IntN(2) == 0 {
			at = len(bad) - 1 - at
		}
		switch rng.IntN(3) {
		case 0:
			bad = bad[:at]
		default:
			bad[at] = byte(rng.IntN(256))
		}
		r := CrossCheck(bad, m)
		if again := CrossCheck(bad, m); !reflect.DeepEqual(r, again) {
			t.Fatalf("%+v, then %+v", r, again)
		}
		said += len(r.Differences) + len(r.Unread)
	}
	if said < 100 {
		t.Errorf("%d differences and unread parts in 300 damaged files", said)
	}
}
