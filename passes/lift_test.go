package passes

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// TestDefinitions holds the tables against the history of all definitions.
func TestDefinitions(t *testing.T) {
	f, err := os.Open("testdata/definitions.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	known := map[change]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") {
			continue
		}
		var c change
		if _, err := fmt.Sscan(s.Text(), &c.Op, &c.To); err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		known[c] = true
		same, adapted := slices.Contains(unchanged[c.Op], c.To), adapters[c] != nil
		if same == adapted {
			t.Errorf("%s %d: listed as unchanged: %v, has an adapter: %v", c.Op, c.To, same, adapted)
		}
	}
	if len(known) < 300 {
		t.Fatalf("only %d definitions", len(known))
	}
	for op, list := range unchanged {
		for _, to := range list {
			if !known[change{op, to}] {
				t.Errorf("%s was not defined anew in %d", op, to)
			}
		}
	}
	for c := range adapters {
		if !known[c] {
			t.Errorf("%s was not defined anew in %d", c.Op, c.To)
		}
	}
}

// TestLift lifts small models of old operator sets and compares outputs.
func TestLift(t *testing.T) {
	f32, i64 := tensor.Float32, tensor.Int64
	type liftCase struct {
		name  string
		opset int
		build func(*builder)
	}
	cases := []liftCase{
		{"BatchNormalization spatial", 8, func(b *builder) {
			x := b.float("x", 2, 3, 4, 4)
			b.out(f32, 4, b.op("Relu", "y", vals{b.batchNorm(b.op("Relu", "r", vals{x}), "bn", 3, graph.Int("spatial", 1))}))
		}},
		{"Clip", 7, func(b *builder) {
			x := b.float("x", 2, 3)
			b.out(f32, 2, b.op("Clip", "a", vals{x}, graph.Float("min", -0.25), graph.Float("max", 0.5)), b.op("Clip", "b", vals{x}, graph.Float("max", 0.5)), b.op("Clip", "c", vals{x}))
		}},
		{"Clip of double", 10, func(b *builder) {
			x := b.in("x", tensor.Float64, 2, 3)
			b.out(tensor.Float64, 2, b.op("Clip", "a", vals{x}, graph.Float("min", -0.25)))
		}},
		{"Clip of float16", 10, func(b *builder) {
			x := b.in("x", tensor.Float16, 2, 3)
			b.out(tensor.Float16, 2, b.op("Clip", "a", vals{x}, graph.Float("min", -0.25)), b.op("Clip", "c", vals{x}))
		}},
		{"DFT", 17, func(b *builder) {
			b.out(f32, 3, b.op("DFT", "y", vals{b.float("x", 1, 8, 1)}))
			b.out(f32, 4, b.op("DFT", "z", vals{b.float("x2", 1, 3, 8, 1)}, graph.Int("axis", 2), graph.Int("onesided", 1)))
		}},
		{"Dropout", 7, func(b *builder) {
			y := b.ops("Dropout", []string{"d", "mask"}, vals{b.float("x", 2, 3)}, graph.Float("ratio", 0.3))
			b.out(f32, 2, b.op("Neg", "y", y[:1]))
		}},
		{"GridSample", 16, func(b *builder) {
			x, g := b.float("x", 1, 2, 4, 4), b.float("grid", 1, 3, 3, 2)
			b.out(f32, 4, b.op("GridSample", "a", vals{x, g}), b.op("GridSample", "b", vals{x, g}, graph.String("mode", "bicubic")), b.op("GridSample", "c", vals{x, g}, graph.String("mode", "nearest")))
		}},
		{"GroupNormalization", 18, func(b *builder) {
			x := b.float("x", 2, 6, 3)
			b.out(f32, 3, b.op("GroupNormalization", "y", vals{x, b.positive("s", 3), b.rand("b", 3)}, graph.Int("num_groups", 3)),
				b.op("GroupNormalization", "z", vals{x, b.float("s2", 2), b.float("b2", 2)}, graph.Int("num_groups", 2)))
		}},
		{"GroupNormalization of unknown channels", 18, func(b *builder) {
			x := b.float("x", 2, "C", 3)
			b.out(f32, 3, b.op("GroupNormalization", "y", vals{x, b.positive("s", 2), b.rand("b", 2)}, graph.Int("num_groups", 2)))
		}},
		{"Pad", 8, func(b *builder) {
			x := b.float("x", 3, 4)
			b.out(f32, 2, b.op("Pad", "a", vals{x}, graph.Ints("pads", 1, 0, 0, 2)), b.op("Pad", "b", vals{x}, graph.Ints("pads", 1, 0, 0, 2), graph.Float("value", 0.75)),
				b.op("Pad", "c", vals{x}, graph.Ints("pads", 1, 0, 0, 2), graph.String("mode", "reflect"), graph.Float("value", 0.75)))
		}},
		{"RoiAlign", 10, func(b *builder) {
			rois := b.g.NewInitializer("rois", tensor.Of([]float32{0, 0, 3, 3, 1, 1, 5, 4}, 2, 4))
			b.out(f32, 4, b.op("RoiAlign", "y", vals{b.float("x", 1, 2, 6, 6), rois, b.ints("batch", 0, 0)}, graph.Int("output_height", 2), graph.Int("output_width", 3), graph.Int("sampling_ratio", 2)))
		}},
		{"Scan", 8, func(b *builder) {
			h, x := b.float("h", 3, 2), b.float("x", 3, 4, 2)
			k := b.rand("k", 2)
			body := b.body(func(s *builder) {
				h := s.float("hs", 2)
				x := s.float("xs", 2)
				n := s.op("Add", "hn", vals{h, x})
				s.out(f32, 1, n, s.op("Mul", "o", vals{n, k}))
			})
			y := b.ops("Scan", []string{"hy", "y"}, vals{nil, h, x}, graphAttr("body", body), graph.Int("num_scan_inputs", 1), graph.Ints("directions", 1))
			b.out(f32, 2, y[0])
			b.out(f32, 3, y[1])
		}},
		{"Scatter", 9, func(b *builder) {
			idx := b.g.NewInitializer("idx", tensor.Of([]int64{1, 0, 2, 1}, 2, 2))
			b.out(f32, 2, b.op("Scatter", "y", vals{b.float("x", 3, 2), idx, b.float("u", 2, 2)}))
		}},
		{"Slice", 9, func(b *builder) {
			x := b.float("x", 4, 5)
			b.out(f32, 2, b.op("Slice", "a", vals{x}, graph.Ints("starts", 1), graph.Ints("ends", -1), graph.Ints("axes", 1)), b.op("Slice", "b", vals{x}, graph.Ints("starts", 1, 2), graph.Ints("ends", 3, 1000)))
		}},
		{"Split", 11, func(b *builder) {
			x := b.float("x", 2, 6)
			b.out(f32, 2, b.ops("Split", []string{"a", "b", "c"}, vals{x}, graph.Int("axis", 1))...)
			b.out(f32, 2, b.ops("Split", []string{"d", "e"}, vals{x}, graph.Int("axis", 1), graph.Ints("split", 2, 4))...)
		}},
		{"Squeeze and Unsqueeze", 12, func(b *builder) {
			x := b.float("x", 1, 3, 1)
			b.out(f32, 1, b.op("Squeeze", "a", vals{x}))
			b.out(f32, 2, b.op("Squeeze", "b", vals{x}, graph.Ints("axes", -1)))
			b.out(f32, 5, b.op("Unsqueeze", "c", vals{x}, graph.Ints("axes", 0, 4)))
		}},
		{"TopK", 9, func(b *builder) {
			y := b.ops("TopK", []string{"v", "i"}, vals{b.float("x", 3, 7)}, graph.Int("k", 3), graph.Int("axis", 1))
			b.out(f32, 2, y[0])
			b.out(i64, 2, y[1])
		}},
		{"Upsample", 8, func(b *builder) {
			x := b.float("x", 1, 2, 3, 3)
			b.out(f32, 4, b.op("Upsample", "a", vals{x}, graph.Floats("scales", 1, 1, 2, 3)), b.op("Upsample", "b", vals{x}, graph.Floats("scales", 1, 1, 2, 1.5), graph.String("mode", "linear")))
		}},
		{"Resize", 10, func(b *builder) {
			x := b.float("x", 1, 1, 5, 6)
			for i, s := range [][]float32{{1, 1, 2, 2.5}, {1, 1, 0.6, 0.6}, {1, 1, 0.6, 1.7}} {
				name := fmt.Sprint("s", i)
				b.out(f32, 4, b.op("Resize", name+"n", vals{x, b.floats(name, s...)}), b.op("Resize", name+"l", vals{x, b.floats(name+"_", s...)}, graph.String("mode", "linear")))
			}
		}},
		{"Resize to a size", 11, func(b *builder) {
			x := b.float("x", 1, 1, 5, 6)
			none, roi := b.floats("none"), b.floats("roi")
			b.out(f32, 4, b.op("Resize", "a", vals{x, roi, none, b.ints("size", 1, 1, 7, 3)}, graph.String("mode", "cubic")),
				b.op("Resize", "b", vals{x, roi, b.floats("s", 1, 1, 2.3, 2), nil}[:3], graph.String("coordinate_transformation_mode", "tf_half_pixel_for_nn"), graph.String("nearest_mode", "floor")))
		}},
		{"inside branches", 11, func(b *builder) {
			x := b.float("x", 2, 3, 2)
			yes := b.body(func(s *builder) {
				s.out(f32, 2, s.op("ReduceSum", "p", vals{x}, graph.Ints("axes", 1), graph.Int("keepdims", 0)))
			})
			no := b.body(func(s *builder) {
				s.out(f32, 2, s.op("Squeeze", "q2", vals{s.op("ReduceMean", "q", vals{s.op("Softmax", "so", vals{x})}, graph.Ints("axes", 1))}, graph.Ints("axes", 1)))
			})
			b.out(f32, 2, b.op("If", "y", vals{b.in("c", tensor.Bool)}, graphAttr("then_branch", yes), graphAttr("else_branch", no)))
		}},
		{"LSTM", 7, func(b *builder) {
			y := b.ops("LSTM", []string{"a", "h", "c"}, vals{b.float("x", 5, 2, 3), b.rand("w", 1, 16, 3), b.rand("r", 1, 16, 4), b.rand("bb", 1, 32)}, graph.Int("hidden_size", 4))
			b.out(f32, 4, y[0])
			b.out(f32, 3, y[1:]...)
		}},
		{"OneHot, Gather, Mean, Sum, PRelu", 9, func(b *builder) {
			idx := b.ints("idx", 0, 2, 1)
			oh := b.op("OneHot", "oh", vals{idx, b.ints("depth", 3), b.floats("v", 0, 1)})
			x := b.float("x", 3, 3)
			b.out(f32, 2, b.op("PRelu", "y", vals{b.op("Mean", "me", vals{b.op("Sum", "su", vals{oh, x}), b.op("Gather", "ga", vals{x, idx})}), b.floats("sl", 0.1, 0.2, 0.3)}))
		}},
	}
	for _, op := range []string{"Softmax", "LogSoftmax", "Hardmax"} {
		for _, shape := range [][]any{{2, 3}, {2, 3, 4}, {2, "C", 1, 1}, {2, 3, 1, 1}} {
			cases = append(cases, liftCase{fmt.Sprint(op, shape), 11, func(b *builder) {
				x := b.float("x", shape...)
				b.out(f32, len(shape), b.op(op, "a", vals{x}), b.op(op, "b", vals{x}, graph.Int("axis", -1)), b.op(op, "c", vals{x}, graph.Int("axis", 0)), b.op("Neg", "e", vals{b.op(op, "d", vals{x})}))
			}})
		}
	}
	for _, op := range []string{"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"} {
		cases = append(cases, liftCase{op, 7, func(b *builder) {
			x := b.op("Exp", "x", vals{b.float("x0", 2, 3, 4)})
			b.out(f32, 3, b.op(op, "a", vals{x}), b.op(op, "b", vals{x}, graph.Ints("axes", 0, 2)))
			b.out(f32, 2, b.op(op, "c", vals{x}, graph.Ints("axes", 1), graph.Int("keepdims", 0)))
		}})
	}
	for _, c := range cases {
		for _, to := range []int{13, 18, 21, 25} {
			if to <= c.opset {
				continue
			}
			t.Run(fmt.Sprintf("%s to %d", c.name, to), func(t *testing.T) {
				m := checkEqual(t, build(irFor(c.opset), c.opset, c.build), Options{MinOpset: to}, 1e-6)
				if m.Opset("") != to || m.IRVersion < irFor(to) {
					t.Errorf("opset %d, IR version %d", m.Opset(""), m.IRVersion)
				}
			})
		}
	}
}

// TestLiftRefusals holds what cannot be expressed to an error that names the
// node.
func TestLiftRefusals(t *testing.T) {
	f32 := tensor.Float32
	for _, c := range []struct {
		name  string
		opset int
		build func(*builder)
		want  string
	}{
		{"old", 6, func(b *builder) { b.out(f32, 1, b.op("Relu", "y", vals{b.float("x", 1)})) }, "before opset 7"},
		{"training outputs", 9, func(b *builder) {
			y := b.ops("BatchNormalization", []string{"y", "m"}, vals{b.float("x", 1, 2, 2), b.rand("a", 2), b.rand("b", 2), b.rand("c", 2), b.positive("d", 2)})
			b.out(f32, 3, y[0])
			b.out(f32, 1, y[1])
		}, `node "y" (BatchNormalization)`},
		{"mask", 10, func(b *builder) {
			y := b.ops("Dropout", []string{"y", "m"}, vals{b.float("x", 2)})
			b.out(f32, 1, y[0])
			b.out(tensor.Bool, 1, y[1])
		}, `node "y" (Dropout)`},
		{"scales", 10, func(b *builder) {
			b.out(f32, 2, b.op("Resize", "y", vals{b.float("x", 2, 2), b.float("s", 2)}))
		}, "scales that are not constant"},
		{"coordinates", 11, func(b *builder) {
			b.out(f32, 2, b.op("Resize", "y", vals{b.float("x", 2, 2), b.floats("r"), b.floats("s", 2, 2)}, graph.String("mode", "linear"), graph.String("coordinate_transformation_mode", "tf_half_pixel_for_nn")))
		}, "tf_half_pixel_for_nn"},
		{"sequence_lens", 8, func(b *builder) {
			x := b.float("x", 1, 4, 2)
			body := b.body(func(s *builder) { s.out(f32, 1, s.op("Neg", "o", vals{s.float("xs", 2)})) })
			b.out(f32, 3, b.op("Scan", "y", vals{b.ints("len", 3), x}, graphAttr("body", body), graph.Int("num_scan_inputs", 1)))
		}, "sequence_lens"},
		{"integers", 9, func(b *builder) {
			b.out(tensor.Int32, 1, b.op("Erf", "y", vals{b.in("x", tensor.Int32, 2)}))
		}, "int32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := build(7, c.opset, c.build)
			_, err := Prepare(context.Background(), m, Options{MinOpset: 14})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
		})
	}
	m := build(13, 25, func(b *builder) { b.out(f32, 1, b.op("Relu", "y", vals{b.float("x", 1)})) })
	if _, err := Prepare(context.Background(), m, Options{MinOpset: 26}); err == nil {
		t.Error("lifted past the tables")
	}
}
