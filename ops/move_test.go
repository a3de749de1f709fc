package ops

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

func op(name string) graph.OpKey { return graph.OpKey{Type: name} }

// counted returns a tensor whose elements are 0, 1, 2, … modulo what the type
// holds.
func counted(d tensor.DType, shape ...int) *tensor.Tensor {
	t := tensor.New(d, shape...)
	if d == tensor.String {
		for i := range t.Strings() {
			t.Strings()[i] = fmt.Sprint(i)
		}
		return t
	}
	if d == tensor.Complex64 || d == tensor.Complex128 {
		for i := range t.Bytes() {
			t.Bytes()[i] = byte(i)
		}
		return t
	}
	v := make([]int64, t.Len())
	for i := range v {
		v[i] = int64(i)
	}
	tensor.Write(t, 0, v)
	return t
}

// TestTransposeByIndex compares transposes of all sizes and element widths
// with the definition, on one and on two threads.
func TestTransposeByIndex(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	types := []tensor.DType{tensor.Float32, tensor.Int8, tensor.Float16, tensor.Int64, tensor.Complex128, tensor.String, tensor.Int4, tensor.Uint2}
	for k := range 120 {
		d := types[k%len(types)]
		shape := make([]int, 1+rng.IntN(5))
		limit := 9
		if k%5 == 0 {
			limit = 45
			shape = shape[:min(len(shape), 3)]
		}
		for i := range shape {
			shape[i] = 1 + rng.IntN(limit)
		}
		perm := rng.Perm(len(shape))
		x := counted(d, shape...)
		attr := make([]int64, len(perm))
		out := make([]int, len(perm))
		for i, p := range perm {
			attr[i], out[i] = int64(p), shape[p]
		}
		got, err := single{op: op("Transpose"), opset: 25, ins: []Data{x}, attrs: []*graph.Attr{graph.Ints("perm", attr...)}, threads: 1 + k%2}.run()
		if err != nil {
			t.Fatal(err)
		}
		y := got[0].(*tensor.Tensor)
		if !slices.Equal(y.Shape(), out) || y.DType() != d {
			t.Fatalf("%v by %v gives %v", x, perm, y)
		}
		st := rowMajor(shape)
		step := make([]int, len(perm))
		for i, p := range perm {
			step[i] = st[p]
		}
		walk := newStepper(out, step, step, 0)
		for i := range y.Len() {
			if element(y, i) != element(x, walk.oa) {
				t.Fatalf("%v by %v: element %d is %v, want %v", x, perm, i, element(y, i), element(x, walk.oa))
			}
			walk.next()
		}
	}
}

// element returns element i of t in a comparable form.
func element(t *tensor.Tensor, i int) any {
	switch w := t.DType().Bits(); {
	case w == 0:
		return t.Strings()[i]
	case w < 8:
		return t.Bytes()[i*w/8] >> (i * w % 8) & (1<<w - 1)
	default:
		return string(t.Bytes()[i*w/8 : (i+1)*w/8])
	}
}

// TestPackedMoves runs operators on 4-bit elements and compares them with the
// same on bytes.
func TestPackedMoves(t *testing.T) {
	idx := tensor.Of([]int64{2, 0})
	cases := []struct {
		name  string
		ins   []Data
		attrs []*graph.Attr
	}{
		{"Gather", []Data{nil, idx}, []*graph.Attr{graph.Int("axis", 1)}},
		{"Slice", []Data{nil, tensor.Of([]int64{-1}), tensor.Of([]int64{-100}), tensor.Of([]int64{1}), tensor.Of([]int64{-1})}, nil},
		{"Expand", []Data{nil, tensor.Of([]int64{2, 1, 1})}, nil},
		{"Pad", []Data{nil, tensor.Of([]int64{1, 0, 0, 2})}, nil},
		{"Concat", []Data{nil, counted(tensor.Uint4, 3, 2)}, []*graph.Attr{graph.Int("axis", 1)}},
		{"Reshape", []Data{nil, tensor.Of([]int64{5, 3})}, nil},
	}
	for _, c := range cases {
		packed, plain := slices.Clone(c.ins), slices.Clone(c.ins)
		packed[0], plain[0] = counted(tensor.Uint4, 3, 5), counted(tensor.Uint8, 3, 5)
		if c.name == "Concat" {
			plain[1] = counted(tensor.Uint8, 3, 2)
		}
		a, err := single{op: op(c.name), opset: 25, ins: packed, attrs: c.attrs}.run()
		if err != nil {
			t.Fatal(err)
		}
		b, err := single{op: op(c.name), opset: 25, ins: plain, attrs: c.attrs}.run()
		if err != nil {
			t.Fatal(err)
		}
		want := tensor.New(tensor.Uint4, b[0].(*tensor.Tensor).Shape()...)
		tensor.Write(want, 0, widenBytes(b[0].(*tensor.Tensor)))
		if !want.Equal(a[0].(*tensor.Tensor)) {
			t.Errorf("%s: %v, want %v", c.name, a[0].(*tensor.Tensor).Bytes(), want.Bytes())
		}
	}
}

func widenBytes(t *tensor.Tensor) []int64 {
	v, _ := intsOf(t)
	return v
}

// TestHostileSizes checks that sizes from data end in errors.
func TestHostileSizes(t *testing.T) {
	huge := int64(1) << 62
	x := counted(tensor.Float32, 2, 3)
	one := tensor.Scalar(float32(1))
	cases := []struct {
		name  string
		opset int
		ins   []Data
		attrs []*graph.Attr
	}{
		{"Expand", 13, []Data{x, tensor.Of([]int64{huge, 2, 3})}, nil},
		{"Expand", 13, []Data{x, tensor.Of([]int64{-1, 2, 3})}, nil},
		{"Tile", 13, []Data{x, tensor.Of([]int64{huge, huge})}, nil},
		{"ConstantOfShape", 9, []Data{tensor.Of([]int64{huge, huge})}, nil},
		{"Range", 11, []Data{tensor.Scalar(int64(0)), tensor.Scalar(huge), tensor.Scalar(int64(1))}, nil},
		{"Range", 11, []Data{tensor.Scalar(float32(0)), one, tensor.Scalar(float32(0))}, nil},
		{"Pad", 13, []Data{x, tensor.Of([]int64{huge, 0, huge, 0})}, nil},
		{"Pad", 13, []Data{x, tensor.Of([]int64{1 << 40, 0, 1 << 40, 0})}, nil},
		{"Pad", 13, []Data{x, tensor.Of([]int64{-2, 0, -2, 0})}, nil},
		{"OneHot", 11, []Data{tensor.Of([]int64{1}), tensor.Scalar(huge), tensor.Of([]float32{0, 1})}, nil},
		{"Reshape", 14, []Data{x, tensor.Of([]int64{-1, -1})}, nil},
		{"Reshape", 14, []Data{x, tensor.Of([]int64{4, -1})}, nil},
		{"Reshape", 14, []Data{x, tensor.Of([]int64{huge, huge, 0})}, nil},
		{"Reshape", 14, []Data{counted(tensor.Float32, 0), tensor.Of([]int64{0, -1})}, nil},
		{"Gather", 13, []Data{x, tensor.Of([]int64{2})}, nil},
		{"GatherND", 13, []Data{x, tensor.Of([]int64{0, 3}, 1, 2)}, nil},
		{"GatherElements", 13, []Data{x, tensor.Of([]int64{7}, 1, 1)}, nil},
		{"ScatterND", 13, []Data{x, tensor.Of([]int64{5}, 1, 1), counted(tensor.Float32, 1, 3)}, nil},
		{"Slice", 13, []Data{x, tensor.Of([]int64{0}), tensor.Of([]int64{1}), tensor.Of([]int64{0}), tensor.Of([]int64{0})}, nil},
		{"Split", 13, []Data{x, tensor.Of([]int64{huge, huge})}, nil},
		{"Concat", 13, []Data{x, counted(tensor.Float32, 3, 2)}, []*graph.Attr{graph.Int("axis", 0)}},
		{"Transpose", 13, []Data{x}, []*graph.Attr{graph.Ints("perm", 0, 0)}},
		{"CenterCropPad", 18, []Data{x, tensor.Of([]int64{huge, huge})}, nil},
		{"DepthToSpace", 13, []Data{counted(tensor.Float32, 1, 4, 1, 1)}, []*graph.Attr{graph.Int("blocksize", 1<<40)}},
		{"ReverseSequence", 10, []Data{x, tensor.Of([]int64{9, 9, 9})}, nil},
	}
	for _, c := range cases {
		for _, fixed := range []bool{false, true} {
			s := single{op: op(c.name), opset: c.opset, ins: c.ins, attrs: c.attrs}
			if fixed {
				s.consts = []bool{true, true, true, true, true}
			}
			if got, err := s.run(); err == nil {
				t.Errorf("%s of %v gives %v", c.name, c.ins, got)
			}
		}
	}
}
