package ops

import (
	"context"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

func BenchmarkMove(b *testing.B) {
	image := counted(tensor.Float32, 1, 64, 56, 56)
	small := tensor.Of([]int64{1, 2, 3, 4})
	cases := []struct {
		name  string
		op    string
		ins   []Data
		attrs []*graph.Attr
	}{
		{"transpose NCHW to NHWC", "Transpose", []Data{image}, []*graph.Attr{graph.Ints("perm", 0, 2, 3, 1)}},
		{"transpose bytes", "Transpose", []Data{counted(tensor.Int8, 1, 64, 56, 56)}, []*graph.Attr{graph.Ints("perm", 0, 2, 3, 1)}},
		{"transpose heads", "Transpose", []Data{counted(tensor.Float32, 1, 128, 12, 32)}, []*graph.Attr{graph.Ints("perm", 0, 2, 1, 3)}},
		{"transpose keys", "Transpose", []Data{counted(tensor.Float32, 1, 128, 12, 32)}, []*graph.Attr{graph.Ints("perm", 0, 2, 3, 1)}},
		{"concat", "Concat", []Data{image, image}, []*graph.Attr{graph.Int("axis", 1)}},
		{"slice", "Slice", []Data{image, tensor.Of([]int64{0}), tensor.Of([]int64{32}), tensor.Of([]int64{1})}, nil},
		{"slice steps", "Slice", []Data{image, tensor.Of([]int64{0, 0}), tensor.Of([]int64{99, 99}), tensor.Of([]int64{2, 3}), tensor.Of([]int64{2, 2})}, nil},
		{"pad", "Pad", []Data{image, tensor.Of([]int64{0, 0, 1, 1, 0, 0, 1, 1})}, nil},
		{"embedding", "Gather", []Data{counted(tensor.Float32, 1000, 384), counted(tensor.Int64, 128)}, nil},
		{"upsample nearest", "Resize", []Data{image, nil, tensor.Of([]float32{1, 1, 2, 2})}, nil},
		{"upsample linear", "Resize", []Data{image, nil, tensor.Of([]float32{1, 1, 2, 2})}, []*graph.Attr{graph.String("mode", "linear")}},
		{"depth to space", "DepthToSpace", []Data{image}, []*graph.Attr{graph.Int("blocksize", 2)}},
		{"expand", "Expand", []Data{counted(tensor.Float32, 64, 1, 1), tensor.Of([]int64{64, 56, 56})}, nil},
		{"tiny gather", "Gather", []Data{small, tensor.Scalar(int64(1))}, nil},
		{"tiny concat", "Concat", []Data{small, small}, []*graph.Attr{graph.Int("axis", 0)}},
		{"tiny slice", "Slice", []Data{small, tensor.Of([]int64{1}), tensor.Of([]int64{3})}, nil},
		{"tiny unsqueeze", "Unsqueeze", []Data{small, tensor.Of([]int64{0})}, nil},
		{"tiny reshape", "Reshape", []Data{small, tensor.Of([]int64{2, -1})}, nil},
		{"tiny shape", "Shape", []Data{image}, nil},
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			s := single{op: op(c.op), opset: 19, ins: c.ins, attrs: c.attrs}
			n := s.node()
			kernel, err := Lookup(n).Compile(&Site{Node: n, Opset: 19})
			if err != nil {
				b.Fatal(err)
			}
			call := &Call{Ctx: context.Background(), Mem: &recycled{}, Ins: c.ins, Outs: make([]Data, 1), Wanted: []bool{true}}
			if err := kernel(call); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(call.Outs[0].(*tensor.Tensor).Bytes())))
			b.ReportAllocs()
			for b.Loop() {
				if err := kernel(call); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
