//go:build !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/cpu"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// TestSaturation holds integer kernels against the runtime's on codes that
// saturate sums of two products, where this processor's kernels do that.
func TestSaturation(t *testing.T) {
	e := open(t)
	saturate := runtime.GOARCH == "amd64" && !cpu.X86.HasAVX512VNNI && !cpu.X86.HasAVXVNNI
	t.Logf("this processor saturates: %v", saturate)
	r := rand.New(rand.NewPCG(41, 42))
	codes := func(d tensor.DType, shape ...int) *tensor.Tensor {
		x := tensor.New(d, shape...)
		for i := range x.Bytes() {
			x.Bytes()[i] = byte(r.Uint32())
			if r.IntN(2) == 0 { // the largest value
				if x.Bytes()[i] = 255; d == tensor.Int8 {
					x.Bytes()[i] = 127
				}
			}
		}
		return x
	}
	zeros := func(t tensor.DType) *tensor.Tensor { return tensor.New(t) }
	for _, c := range []struct {
		name        string
		in, weights []int
		attrs       []*graph.Attr
	}{
		{"MatMulInteger", []int{5, 37}, []int{37, 21}, nil},
		{"ConvInteger", []int{1, 16, 9, 9}, []int{20, 16, 3, 3}, []*graph.Attr{graph.Ints("pads", 1, 1, 1, 1)}},
		{"ConvInteger", []int{1, 3, 9, 8}, []int{8, 3, 3, 3}, []*graph.Attr{graph.Ints("strides", 2, 1)}},
		{"QLinearConv", []int{1, 16, 9, 9}, []int{20, 16, 3, 3}, []*graph.Attr{graph.Ints("pads", 1, 1, 1, 1)}},
		{"QLinearConv", []int{1, 3, 9, 8}, []int{8, 3, 3, 3}, []*graph.Attr{graph.Ints("strides", 2, 1)}},
		{"QLinearConv", []int{1, 12, 9, 8}, []int{9, 4, 1, 3}, []*graph.Attr{graph.Int("group", 3)}},
		{"QLinearConv", []int{1, 12, 9, 8}, []int{12, 1, 3, 3}, []*graph.Attr{graph.Int("group", 12)}},
		{"QLinearMatMul", []int{4, 64}, []int{64, 33}, nil},
	} {
		for _, types := range [][2]tensor.DType{{tensor.Uint8, tensor.Int8}, {tensor.Uint8, tensor.Uint8}, {tensor.Int8, tensor.Int8}} {
			t.Run(fmt.Sprint(c.name, c.weights, types), func(t *testing.T) {
				if c.name == "ConvInteger" && types[0] == tensor.Int8 {
					t.Skip("the runtime has no ConvInteger of int8")
				}
				m := graph.NewModel(8, graph.Opset{Version: 17})
				g := m.Graph
				x := g.NewValue("x", graph.Type{Kind: graph.KindTensor, Elem: types[0]})
				g.AddInput(x)
				w := g.NewInitializer("w", codes(types[1], c.weights...))
				one := g.NewInitializer("one", tensor.Scalar(float32(1)))
				large := g.NewInitializer("large", tensor.Scalar(float32(3000)))
				xz, wz := g.NewInitializer("xz", zeros(types[0])), g.NewInitializer("wz", zeros(types[1]))
				in := []*graph.Value{x, w}
				out := tensor.Int32
				if c.name[0] == 'Q' {
					in, out = []*graph.Value{x, one, xz, w, one, wz, large, xz}, types[0]
				}
				y := g.NewValue("y", graph.Type{Kind: graph.KindTensor, Elem: out})
				g.Append(g.NewNode(graph.OpKey{Type: c.name}, c.name, in, []*graph.Value{y}, c.attrs...))
				g.AddOutput(y)
				feed := map[string]ops.Data{"x": codes(types[0], c.in...)}
				run := func(e exec.Engine) *tensor.Tensor {
					out, err := start(t, e, m, exec.Options{}, exec.SessionOptions{Threads: 1}).Run(t.Context(), feed, nil, nil)
					if err != nil {
						t.Fatal(err)
					}
					return out[0].(*tensor.Tensor)
				}
				want, got := run(e), run(exec.Embedded{Saturate: saturate})
				if !got.Equal(want) {
					t.Errorf("%v differs from the runtime's", got)
				}
				differs := !run(exec.Embedded{}).Equal(run(exec.Embedded{Saturate: true}))
				exact := c.name == "ConvInteger" || len(c.weights) == 4 && c.weights[1] == 1
				if want := types == [2]tensor.DType{tensor.Uint8, tensor.Int8} && !exact; differs != want {
					t.Errorf("saturation changes the result: %v, want %v", differs, want)
				}
			})
		}
	}
}

// TestCodeSums adds a million pairs of codes under random parameters, as the
// runtime does to the last code.
func TestCodeSums(t *testing.T) {
	e := open(t)
	r := rand.New(rand.NewPCG(43, 44))
	for trial := range 16 {
		d := []tensor.DType{tensor.Uint8, tensor.Int8}[trial%2]
		m := graph.NewModel(8, graph.Opset{Version: 17}, graph.Opset{Domain: "com.microsoft", Version: 1})
		g := m.Graph
		var in []*graph.Value
		feed := map[string]ops.Data{}
		for _, name := range []string{"a", "b", "y"} {
			if name != "y" {
				v := g.NewValue(name, graph.Type{Kind: graph.KindTensor, Elem: d})
				g.AddInput(v)
				in = append(in, v)
				x := tensor.New(d, 1<<16)
				for i := range x.Bytes() {
					x.Bytes()[i] = byte(r.Uint32())
				}
				feed[name] = x
			}
			zero := tensor.New(d)
			zero.Bytes()[0] = byte(r.Uint32())
			in = append(in, g.NewInitializer(name+"_scale", tensor.Scalar(.005+.05*r.Float32())), g.NewInitializer(name+"_zero", zero))
		}
		y := g.NewValue("y", graph.Type{Kind: graph.KindTensor, Elem: d})
		g.Append(g.NewNode(graph.OpKey{Domain: "com.microsoft", Type: "QLinearAdd"}, "add", in, []*graph.Value{y}))
		g.AddOutput(y)
		var got [2]ops.Data
		for i, e := range []exec.Engine{e, exec.Embedded{}} {
			out, err := start(t, e, m, exec.Options{}, exec.SessionOptions{Threads: 1}).Run(t.Context(), feed, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			got[i] = out[0]
		}
		if runtime.GOARCH == "amd64" && !got[0].(*tensor.Tensor).Equal(got[1].(*tensor.Tensor)) {
			t.Errorf("trial %d: the codes differ", trial)
		}
	}
}
