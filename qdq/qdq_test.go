package qdq_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

var update = flag.Bool("update", false, "write the golden results")

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Error(...any)
	Errorf(string, ...any)
	Fatal(...any)
	Fatalf(string, ...any)
	Context() context.Context
}

// parse reads a model in text form and infers its types.
func parse(t tester, text string) *graph.Model {
	t.Helper()
	m, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(); err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	return m
}

func ortCPU(t tester) *targets.Target { return target(t, "") }

// target returns a built-in target; "" is ort-cpu.
func target(t tester, name string) *targets.Target {
	t.Helper()
	if name = strings.TrimSpace(name); name == "" {
		name = "ort-cpu"
	}
	target, err := targets.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// feeds returns made-up inputs: floats in [-1, 1), integers 0 and 1; symbols
// are 2.
func feeds(m *graph.Model, seed uint64) map[string]ops.Data {
	r := rand.New(rand.NewPCG(seed, 1))
	out := map[string]ops.Data{}
	for _, v := range m.Graph.FeedInputs() {
		shape := make([]int, len(v.Type.Shape))
		for i, d := range v.Type.Shape {
			if shape[i] = 2; d.Known {
				shape[i] = int(d.Size)
			}
		}
		x := tensor.New(v.Type.Elem, shape...)
		for i := range x.Len() {
			switch v.Type.Elem {
			case tensor.Float32:
				tensor.As[float32](x)[i] = float32(2*r.Float64() - 1)
			case tensor.Int64:
				tensor.As[int64](x)[i] = r.Int64N(2)
			case tensor.Bool:
				x.Bytes()[i] = byte(seed % 2)
			}
		}
		out[v.Name()] = x
	}
	return out
}

// run computes the outputs of m for the feeds of the given number of seeds.
func run(t tester, m *graph.Model, seeds int, tap exec.Tap) [][]ops.Data {
	t.Helper()
	var o exec.Options
	if tap != nil {
		o.Taps = slices.Repeat([]bool{true}, m.NumValues())
	}
	prog, err := exec.Compile(m, o)
	if err != nil {
		t.Fatal(err)
	}
	session := prog.NewSession(exec.SessionOptions{Threads: 1})
	var out [][]ops.Data
	for seed := range seeds {
		o, err := session.Run(t.Context(), feeds(m, uint64(seed)), tap, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

const seeds = 4

// observe returns min-max ranges of the values of m.
func observe(t tester, m *graph.Model) qdq.Ranges {
	t.Helper()
	seen := map[int]quant.Range{}
	run(t, m, seeds, func(v *graph.Value, x *tensor.Tensor) error {
		if x.DType() == tensor.Float32 {
			r := seen[v.ID]
			for _, f := range tensor.As[float32](x) {
				r.Min, r.Max = math.Min(r.Min, float64(f)), math.Max(r.Max, float64(f))
			}
			seen[v.ID] = r
		}
		return nil
	})
	return func(v *graph.Value, e *qdq.TensorPlan) (quant.Range, string) {
		r, ok := seen[v.ID]
		if !ok {
			return r, "never reached"
		}
		return r, ""
	}
}

// rewrite quantizes a copy of m as p says.
func rewrite(t tester, m *graph.Model, p *qdq.Plan) (*graph.Model, []string) {
	t.Helper()
	params, bad, err := p.Resolve(m, observe(t, m), 0)
	if err != nil || len(bad) > 0 {
		t.Fatal(bad, err)
	}
	q := m.Clone()
	notices, err := qdq.Rewrite(q, p, params)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Verify(); err != nil {
		t.Fatal(err)
	}
	if _, err := passes.Cleanup(t.Context(), q, passes.Options{Check: true}); err != nil {
		t.Fatal(err)
	}
	return q, notices
}

// outline says in one line per node and tensor what a plan says.
func outline(p *qdq.Plan) string {
	var b strings.Builder
	for _, n := range p.Nodes {
		scope := ""
		if n.Scope != graph.MainScope {
			scope = n.Scope + "/"
		}
		how := string(n.How)
		if !n.Quantized {
			how = "float: " + n.Why
		}
		fmt.Fprintf(&b, "%s%s %s %s\n", scope, n.Node, n.Op, how)
	}
	for _, e := range p.Tensors {
		scope := ""
		if e.Scope != graph.MainScope {
			scope = e.Scope + "/"
		}
		fmt.Fprintf(&b, "%s%s %s %s", scope, e.Tensor, e.Kind, e.Type)
		if e.Axis >= 0 {
			fmt.Fprintf(&b, " axis %d", e.Axis)
		}
		if e.AtLoad {
			b.WriteString(" at load")
		}
		if e.Decoded {
			b.WriteString(" decoded")
		}
		if e.SameAs != "" {
			fmt.Fprintf(&b, " as %s", e.SameAs)
		}
		if e.Range != nil {
			fmt.Fprintf(&b, " range %g", *e.Range)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// body is a model's text from its name on, long tensors elided.
func body(m *graph.Model) string {
	text := graph.Text(m, 1)
	return text[strings.Index(text, ">\n")+2:]
}

// signature lists names and element types of inputs and outputs.
func signature(m *graph.Model) string {
	var b strings.Builder
	for _, v := range slices.Concat(m.Graph.FeedInputs(), m.Graph.Outputs()) {
		fmt.Fprintf(&b, "%s %v; ", v.Name(), v.Type)
	}
	return b.String()
}

// compare fails where the error of an output of q has a root mean square of
// more than share of that of m's.
func compare(t tester, m, q *graph.Model, share float64) {
	t.Helper()
	want, got := run(t, m, seeds, nil), run(t, q, seeds, nil)
	for i, v := range m.Graph.Outputs() {
		var signal, noise float64
		for s := range want {
			a, b := want[s][i].(*tensor.Tensor), got[s][i].(*tensor.Tensor)
			if a.DType() != b.DType() || !slices.Equal(a.Shape(), b.Shape()) {
				t.Fatalf("output %s is %v, want %v", v.Name(), b, a)
			}
			if a.DType() != tensor.Float32 {
				continue
			}
			for k, x := range tensor.As[float32](a) {
				signal += float64(x) * float64(x)
				noise += math.Pow(float64(x)-float64(tensor.As[float32](b)[k]), 2)
			}
		}
		if !(noise <= share*share*signal) {
			t.Errorf("the error of output %s is %.3g of its magnitude", v.Name(), math.Sqrt(noise/signal))
		}
	}
}

// checkPlan fails unless p has an entry for every node of every scope, in
// order, with a reason where it stays float, and survives being written.
func checkPlan(t tester, m *graph.Model, p *qdq.Plan) {
	t.Helper()
	i := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if i >= len(p.Nodes) {
				t.Fatalf("no entry for %s", n.Label())
			}
			e := p.Nodes[i]
			i++
			if e.Scope != g.Scope() || e.Node != n.Label() || e.Op != n.Op.String() {
				t.Errorf("entry %d is of %s/%s, want %s/%s", i, e.Scope, e.Node, g.Scope(), n.Label())
			}
			if e.Quantized != (e.How != "") || e.Quantized != (e.Why == "") {
				t.Errorf("%s: quantized %v, how %q, why %q", e.Node, e.Quantized, e.How, e.Why)
			}
		}
	}
	if i != len(p.Nodes) {
		t.Errorf("%d entries for %d nodes", len(p.Nodes), i)
	}
	var a, b bytes.Buffer
	if err := p.Write(&a); err != nil {
		t.Fatal(err)
	}
	again, err := qdq.ReadPlan(bytes.NewReader(a.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Write(&b); err != nil {
		t.Fatal(err)
	}
	if a.String() != b.String() {
		t.Error("a plan that was read back is written differently")
	}
}

// TestRewrite quantizes the models in testdata. A file holds the model, the
// target if it is not ort-cpu, qdq options as JSON if any, and what is expected: the plan and the rewritten
// model, or the error.
func TestRewrite(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			a := txtar.Parse(data)
			part := map[string]string{}
			for _, f := range a.Files {
				part[f.Name] = string(f.Data)
			}
			var o qdq.Options
			if part["options"] != "" {
				dec := json.NewDecoder(strings.NewReader(part["options"]))
				dec.DisallowUnknownFields()
				if err := dec.Decode(&o); err != nil {
					t.Fatal(err)
				}
			}
			result := map[string]string{}
			m := parse(t, part["model"])
			p, err := qdq.Annotate(m, target(t, part["target"]), o)
			if err != nil {
				result["error"] = err.Error() + "\n"
			} else {
				checkPlan(t, m, p)
				q, notices := rewrite(t, m, p)
				result["plan"], result["result"] = outline(p), body(q)
				if len(notices) > 0 {
					result["notices"] = strings.Join(notices, "\n") + "\n"
				}
				if a, b := signature(m), signature(q); a != b {
					t.Errorf("inputs and outputs are %s, were %s", b, a)
				}
				share := 0.03
				if slices.ContainsFunc(p.Tensors, func(e qdq.TensorPlan) bool { return (e.Type == "i4" || e.Type == "f8e4m3") && e.Form == "" }) {
					share = 0.15
				}
				compare(t, m, q, share)
				again, _ := rewrite(t, m, p)
				if graph.Text(q, -1) != graph.Text(again, -1) {
					t.Error("another result the second time")
				}
			}
			golden := &txtar.Archive{Comment: a.Comment}
			for _, name := range []string{"model", "target", "options"} {
				if part[name] != "" {
					golden.Files = append(golden.Files, txtar.File{Name: name, Data: []byte(part[name])})
				}
			}
			for _, name := range []string{"error", "plan", "notices", "result"} {
				if result[name] != "" {
					golden.Files = append(golden.Files, txtar.File{Name: name, Data: []byte(result[name])})
				}
				if !*update && result[name] != part[name] {
					t.Errorf("%s is\n%s\nwant\n%s", name, result[name], part[name])
				}
			}
			if *update {
				if err := os.WriteFile(path, txtar.Format(golden), 0o666); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
