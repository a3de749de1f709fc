package qdq_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
)

// randomModel draws the text of a model of convolutions, products and what
// stands between them.
func randomModel(t *rapid.T) string {
	var nodes, inits []string
	name := 0
	add := func(format string, args ...any) string {
		name++
		out := fmt.Sprintf("v%d", name)
		label := ""
		if rapid.Bool().Draw(t, "named") {
			label = fmt.Sprintf("[n%d] ", rapid.IntRange(0, 9).Draw(t, "label"))
		}
		nodes = append(nodes, label+out+" = "+fmt.Sprintf(format, args...))
		return out
	}
	weight := func(dims string) string {
		w := fmt.Sprintf("w%d", len(inits))
		if n := len(inits); n > 0 && rapid.IntRange(0, 3).Draw(t, "shared") == 0 {
			if i := rapid.IntRange(0, n-1).Draw(t, "which"); strings.HasPrefix(inits[i], "float["+dims+"] ") {
				return strings.Fields(inits[i])[1]
			}
		}
		inits = append(inits, fmt.Sprintf("float[%s] %s = {...}", dims, w))
		return w
	}
	images, rows := []string{"x"}, []string{}
	pick := func(list []string) string { return rapid.SampledFrom(list).Draw(t, "input") }
	bias := func() string {
		if rapid.Bool().Draw(t, "bias") {
			return ", " + weight("4")
		}
		return ""
	}
	for range rapid.IntRange(1, 9).Draw(t, "nodes") {
		switch rapid.IntRange(0, 12).Draw(t, "op") {
		case 0, 1, 2:
			images = append(images, add("Conv <pads = [1,1,1,1]> (%s, %s%s)", pick(images), weight("4,4,3,3"), bias()))
		case 3:
			images = append(images, add("Conv <group = 4> (%s, %s%s)", pick(images), weight("4,1,1,1"), bias()))
		case 4:
			images = append(images, add("Relu (%s)", pick(images)))
		case 5:
			images = append(images, add("Clip (%s, lo, hi)", pick(images)))
		case 6:
			images = append(images, add("Add (%s, %s)", pick(images), pick(images)))
		case 7:
			cat := add("Concat <axis = 1> (%s, %s)", pick(images), pick(images))
			images = append(images, add("Conv (%s, %s)", cat, weight("4,8,1,1")))
		case 8:
			images = append(images, add("%s <kernel_shape = [3,3], pads = [1,1,1,1]> (%s)", rapid.SampledFrom([]string{"MaxPool", "AveragePool"}).Draw(t, "pool"), pick(images)))
		case 9:
			images = append(images, add("%s (%s)", rapid.SampledFrom([]string{"Sigmoid", "Elu", "LeakyRelu"}).Draw(t, "unary"), pick(images)))
		case 10:
			images = append(images, add("Transpose <perm = [0,1,3,2]> (%s)", pick(images)))
		case 11:
			rows = append(rows, add("MatMul (%s, %s)", add("Reshape (%s, flat)", pick(images)), weight("64,4")))
		case 12:
			if len(rows) > 0 {
				rows = append(rows, add("Gemm <transB = %d> (%s, %s%s)", rapid.IntRange(0, 1).Draw(t, "transB"), pick(rows), weight("4,4"), bias()))
			}
		}
	}
	if name == 0 {
		add("Relu (x)")
		images = append(images, "v1")
	}
	outs := []string{}
	for _, v := range append(images[1:], rows...) {
		if rapid.IntRange(0, 2).Draw(t, "output") == 0 {
			outs = append(outs, v)
		}
	}
	if len(outs) == 0 {
		outs = []string{fmt.Sprintf("v%d", name)}
	}
	inits = append(inits, "float lo = {0}", "float hi = {3}", "int64[2] flat = {1,64}")
	return fmt.Sprintf("<ir_version: 8, opset_import: [\"\" : %d]>\ng (float[1,4,4,4] x) => (%s)\n<%s>\n{\n%s\n}\n", rapid.SampledFrom([]int{12, 13, 17, 21}).Draw(t, "opset"),
		strings.Join(outs, ", "), strings.Join(inits, ", "), strings.Join(nodes, "\n"))
}

// Random models keep their outputs, to within the error of 8 bits, and give
// the same result each time.
func TestRandomModels(t *testing.T) {
	target := ortCPU(t)
	rapid.Check(t, func(r *rapid.T) {
		text := randomModel(r)
		r.Log(text)
		o := qdq.Options{
			SymmetricActivations: rapid.Bool().Draw(r, "symmetric"),
			PerTensor:            rapid.Bool().Draw(r, "per tensor"),
		}
		m := parse(r, text)
		p, err := qdq.Annotate(m, target, o)
		if err != nil {
			r.Fatal(err)
		}
		checkPlan(r, m, p)
		q, _ := rewrite(r, m, p)
		if a, b := signature(m), signature(q); a != b {
			r.Errorf("inputs and outputs are %s, were %s", b, a)
		}
		compare(r, m, q, 0.2)
		other := parse(r, text)
		again, err := qdq.Annotate(other, target, o)
		if err != nil {
			r.Fatal(err)
		}
		if outline(again) != outline(p) {
			r.Error("another plan the second time")
		}
		if q2, _ := rewrite(r, other, again); graph.Text(q, -1) != graph.Text(q2, -1) {
			r.Error("another model the second time")
		}
	})
}
