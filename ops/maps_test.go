package ops

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

func mlOp(name string) graph.OpKey { return graph.OpKey{Domain: mlDomain, Type: name} }

func stringsOf(name string, v ...string) *graph.Attr {
	return &graph.Attr{Name: name, Kind: graph.AttrStrings, Strings: v}
}

func texts(s ...string) *tensor.Tensor { return tensor.FromStrings([]int{len(s)}, s) }

// TestZipMap: results of ONNX Runtime 1.32.0.
func TestZipMap(t *testing.T) {
	x := tensor.Of([]float32{0, 1, 2, 3, 4, 5}, 2, 3)
	of := func(keys *tensor.Tensor, rows ...[]float32) Sequence {
		seq := Sequence{}
		for _, r := range rows {
			seq = append(seq, &Map{Keys: keys, Values: tensor.Of(r)})
		}
		return seq
	}
	for _, c := range []struct {
		name string
		x    *tensor.Tensor
		attr *graph.Attr
		want Sequence
	}{
		{"ints", x, graph.Ints("classlabels_int64s", 5, 2, 9), of(tensor.Of([]int64{2, 5, 9}), []float32{1, 0, 2}, []float32{4, 3, 5})},
		{"strings", x, stringsOf("classlabels_strings", "b", "a", "c"), of(texts("a", "b", "c"), []float32{1, 0, 2}, []float32{4, 3, 5})},
		{"vector", tensor.Of([]float32{0, 1, 2}), graph.Ints("classlabels_int64s", 5, 2, 9), of(tensor.Of([]int64{2, 5, 9}), []float32{1, 0, 2})},
		{"equal keys", x, graph.Ints("classlabels_int64s", 5, 2, 5), of(tensor.Of([]int64{2, 5}), []float32{1, 2}, []float32{4, 5})},
		{"no rows", tensor.New(tensor.Float32, 0, 3), graph.Ints("classlabels_int64s", 5, 2, 9), Sequence{}},
	} {
		got, err := single{op: mlOp("ZipMap"), opset: 1, ins: []Data{c.x}, attrs: []*graph.Attr{c.attr}}.run()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if fmt.Sprint(plain(got[0])) != fmt.Sprint(plain(c.want)) {
			t.Errorf("%s: %v, want %v", c.name, plain(got[0]), plain(c.want))
		}
	}
	_, err := single{op: mlOp("ZipMap"), opset: 1, ins: []Data{x}, attrs: []*graph.Attr{graph.Ints("classlabels_int64s", 5, 2)}}.run()
	if err == nil || !strings.Contains(err.Error(), "for 2 keys") {
		t.Error(err)
	}
}

// plain makes d of Go's own types.
func plain(d Data) any {
	switch d := d.(type) {
	case Sequence:
		list := []any{}
		for _, x := range d {
			list = append(list, plain(x))
		}
		return list
	case *Map:
		return [2]any{plain(d.Keys), plain(d.Values)}
	case *tensor.Tensor:
		if d.DType() == tensor.String {
			return d.Strings()
		}
		v, _ := tensor.Float64s(d)
		return []any{d.DType(), d.Shape(), v}
	}
	return d
}

// TestMapsToTensors: results of ONNX Runtime 1.32.0, where its Python interface
// can hand the map over (keys to float); the others follow from these.
func TestMapsToTensors(t *testing.T) {
	floats := &Map{Keys: tensor.Of([]int64{4, 1, 3}), Values: tensor.Of([]float32{1.5, 2.75, -1e10})}
	words := &Map{Keys: tensor.Of([]int64{4, 1, 3}), Values: texts("1.5", "2", " -7 ")}
	named := &Map{Keys: texts("a", "c", "q"), Values: tensor.Of([]float32{4, 8, 5})}
	cast := func(to, form string, width int64) []*graph.Attr {
		return []*graph.Attr{graph.String("cast_to", to), graph.String("map_form", form), graph.Int("max_map", width)}
	}
	row := func(s ...string) *tensor.Tensor { return tensor.FromStrings([]int{1, len(s)}, s) }
	for _, c := range []struct {
		name, op string
		in       Data
		attrs    []*graph.Attr
		want     *tensor.Tensor // nil: an error
	}{
		{"vocabulary", "DictVectorizer", named, []*graph.Attr{stringsOf("string_vocabulary", "a", "c", "b", "z")}, tensor.Of([]float32{4, 8, 0, 0}, 1, 4)},
		{"vocabulary of integers", "DictVectorizer", words, []*graph.Attr{graph.Ints("int64_vocabulary", 3, 1, 2)}, row(" -7 ", "2", "")},
		{"other keys", "DictVectorizer", named, []*graph.Attr{graph.Ints("int64_vocabulary", 3)}, nil},
		{"no map", "DictVectorizer", tensor.Of([]float32{1}), []*graph.Attr{graph.Ints("int64_vocabulary", 3)}, nil},
		{"dense", "CastMap", floats, cast("TO_FLOAT", "DENSE", 1), tensor.Of([]float32{2.75, -1e10, 1.5}, 1, 3)},
		{"sparse", "CastMap", floats, cast("TO_FLOAT", "SPARSE", 6), tensor.Of([]float32{0, 2.75, 0, -1e10, 1.5, 0}, 1, 6)},
		{"sparse, cut", "CastMap", floats, cast("TO_FLOAT", "SPARSE", 3), tensor.Of([]float32{0, 2.75, 0}, 1, 3)},
		{"integers", "CastMap", floats, cast("TO_INT64", "DENSE", 1), tensor.Of([]int64{2, -10000000000, 1}, 1, 3)},
		{"sparse integers", "CastMap", floats, cast("TO_INT64", "SPARSE", 6), tensor.Of([]int64{0, 2, 0, -10000000000, 1, 0}, 1, 6)},
		{"strings", "CastMap", floats, cast("TO_STRING", "DENSE", 1), row("2.750000", "-10000000000.000000", "1.500000")},
		{"sparse strings", "CastMap", floats, cast("TO_STRING", "SPARSE", 3), row("0.f", "2.750000", "0.f")},
		{"parsed", "CastMap", words, cast("TO_FLOAT", "DENSE", 1), tensor.Of([]float32{2, -7, 1.5}, 1, 3)},
		{"strings to strings", "CastMap", words, cast("TO_STRING", "DENSE", 1), row("2", " -7 ", "1.5")},
		{"no number", "CastMap", &Map{Keys: tensor.Of([]int64{4}), Values: texts("x")}, cast("TO_FLOAT", "DENSE", 1), nil},
		{"negative key", "CastMap", &Map{Keys: tensor.Of([]int64{-1}), Values: tensor.Of([]float32{1})}, cast("TO_FLOAT", "SPARSE", 4), nil},
		{"string keys", "CastMap", named, cast("TO_FLOAT", "DENSE", 1), nil},
	} {
		got, err := runMap(c.op, c.in, c.attrs)
		switch {
		case c.want == nil && err == nil:
			t.Errorf("%s: no error", c.name)
		case c.want != nil && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != nil && !got.Equal(c.want):
			t.Errorf("%s: %v, want %v", c.name, plain(got), plain(c.want))
		}
	}
}

// runMap computes a node whose input is no tensor.
func runMap(op string, in Data, attrs []*graph.Attr) (*tensor.Tensor, error) {
	m := graph.NewModel(8, graph.Opset{Domain: mlDomain, Version: 1})
	v := m.Graph.NewValue("x", graph.Type{})
	if x, ok := in.(*Map); ok {
		inner := graph.TensorType(x.Values.DType(), nil)
		v.Type = graph.Type{Kind: graph.KindMap, Elem: x.Keys.DType(), Inner: &inner}
	}
	m.Graph.AddInput(v)
	n := m.Graph.NewNode(mlOp(op), "", []*graph.Value{v}, []*graph.Value{m.Graph.NewValue("y", graph.Type{})}, attrs...)
	m.Graph.Append(n)
	if _, err := Infer(m); err != nil {
		return nil, err
	}
	k, err := Lookup(n).Compile(&Site{Node: n, Opset: 1, Consts: make([]*tensor.Tensor, 1)})
	if err != nil {
		return nil, err
	}
	c := &Call{Ctx: context.Background(), Mem: heap{}, Ins: []Data{in}, Outs: make([]Data, 1), Wanted: []bool{true}}
	if err := k(c); err != nil {
		return nil, err
	}
	y := c.Outs[0].(*tensor.Tensor)
	if s, ok := n.Output(0).Type.Shape.Dims(); ok && !equalInts(s, y.Shape()) || n.Output(0).Type.Elem != y.DType() {
		return nil, n.Errorf("infer", "inferred %v, got %v", n.Output(0).Type, y)
	}
	return y, nil
}
