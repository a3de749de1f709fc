//go:build !noonnxgo

package onnxgo

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ourexec "github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
	"github.com/owulveryck/onnx-go"
	"github.com/owulveryck/onnx-go/backend/testbackend"
	_ "github.com/owulveryck/onnx-go/backend/testbackend/onnx"
)

// numCases is how many conformance cases onnx-go v0.5.0 carries.
const numCases = 348

// cases returns the cases of onnx-go in order of their titles.
func cases(t *testing.T) []*testbackend.TestCase {
	t.Helper()
	var list []*testbackend.TestCase
	for _, c := range testbackend.GetAllRegisteredTests() {
		list = append(list, c())
	}
	slices.SortFunc(list, func(a, b *testbackend.TestCase) int { return strings.Compare(a.Title, b.Title) })
	if len(list) != numCases {
		t.Fatalf("onnx-go carries %d cases, want %d", len(list), numCases)
	}
	return list
}

// TestCasesThroughLoader reads onnx-go's cases with our loader and runs them.
func TestCasesThroughLoader(t *testing.T) {
	passed := 0
	for _, c := range cases(t) {
		if err := runOurs(c); err != nil {
			t.Errorf("%s: %v", c.Title, err)
			continue
		}
		passed++
	}
	t.Logf("%d of %d cases of onnx-go pass through our loader", passed, numCases)
}

func runOurs(c *testbackend.TestCase) error {
	m, err := onnxfile.Decode(c.ModelB)
	if err != nil {
		return err
	}
	p, err := ourexec.Compile(m, ourexec.Options{})
	if err != nil {
		return err
	}
	inputs := m.Graph.FeedInputs()
	if len(inputs) != len(c.Input) {
		return fmt.Errorf("%d inputs, and %d are given", len(inputs), len(c.Input))
	}
	feeds := map[string]ops.Data{}
	for i, v := range inputs {
		t, err := fromGorgonia(c.Input[i])
		if err != nil {
			return err
		}
		feeds[v.Name()] = typed(t, v.Type)
	}
	outs, err := p.NewSession(ourexec.SessionOptions{Threads: 1}).Run(context.Background(), feeds, nil, nil)
	if err != nil {
		return err
	}
	if len(outs) != len(c.ExpectedOutput) {
		return fmt.Errorf("%d outputs, want %d", len(outs), len(c.ExpectedOutput))
	}
	for i, out := range outs {
		got, ok := out.(*tensor.Tensor)
		if !ok {
			return fmt.Errorf("output %d is %T", i, out)
		}
		want, err := fromGorgonia(c.ExpectedOutput[i])
		if err != nil {
			return err
		}
		if want.Len() == 1 {
			want = typed(want, graph.TypeOf(got))
		}
		tol := 1e-6
		if c.Title == "TestRoialign" {
			tol = 1e-4 // it gives four decimals, some of them rounded upwards
		}
		if err := near(got, want, tol); err != nil {
			return fmt.Errorf("output %d: %w", i, err)
		}
	}
	return nil
}

// typed gives a tensor of one element the type that the model states. The
// generator of the cases wrote all of those as float[1].
func typed(t *tensor.Tensor, typ graph.Type) *tensor.Tensor {
	dims, ok := typ.Shape.Dims()
	if n, _ := tensor.NumElements(dims); !ok || n != 1 || t.Len() != 1 || t.DType() != tensor.Float32 {
		return t
	}
	out := tensor.New(typ.Elem, dims...)
	tensor.Write(out, 0, []float32{tensor.As[float32](t)[0]})
	return out
}

// near compares types, shapes, and elements, which differ by at most
// tol·(1 + |want|).
func near(got, want *tensor.Tensor, tol float64) error {
	if got.DType() != want.DType() || tensor.ShapeString(got.Shape()) != tensor.ShapeString(want.Shape()) {
		return fmt.Errorf("%v, want %v", got, want)
	}
	g, err := tensor.Float64s(got)
	if err != nil {
		return err
	}
	w, err := tensor.Float64s(want)
	if err != nil {
		return err
	}
	for i, x := range w {
		if g[i] != x && !(math.IsNaN(g[i]) && math.IsNaN(x)) && !(math.Abs(g[i]-x) <= tol*(1+math.Abs(x))) {
			return fmt.Errorf("element %d is %v, want %v", i, g[i], x)
		}
	}
	return nil
}

const childEnv = "ONNXQ_ONNXGO_RUNTEST"

// TestCasesThroughRunTest runs onnx-go's cases by its own RunTest, with its
// decoder, on our backend. testdata/runtest.skip lists those that do not pass,
// with the reason; one that is listed and passes is an error as well. RunTest
// allows an absolute difference of 1e-6; a case that exceeds it only where
// neighbouring float32 numbers are farther apart is counted and need not be
// listed, since the order of a sum decides it.
//
// RunTest reports to a *testing.T, so the cases run in a process of their own
// whose results are read.
func TestCasesThroughRunTest(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		for _, c := range cases(t) {
			b, err := NewFor(c.ModelB)
			if err != nil {
				t.Errorf("%s: %v", c.Title, err)
				continue
			}
			b.Session.Threads = 1
			t.Run(c.Title, c.RunTest(b, false))
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.CombinedOutput()
	verdict, why := map[string]string{}, map[string]string{}
	last := ""
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		for _, v := range []string{"PASS", "FAIL", "SKIP"} {
			if rest, ok := strings.CutPrefix(line, "--- "+v+": "+t.Name()+"/"); ok {
				name, _, _ := strings.Cut(rest, " ")
				verdict[name] = v
				last = ""
			}
		}
		if name, ok := strings.CutPrefix(line, "=== RUN   "+t.Name()+"/"); ok {
			last = name
		} else if last != "" && !strings.HasPrefix(line, "===") && len(why[last]) < 400 {
			why[last] += line + " "
		}
	}
	if len(verdict) != numCases {
		t.Fatalf("%d of %d cases ran (%v):\n%s", len(verdict), numCases, err, out)
	}
	skips := readSkips(t, filepath.Join("testdata", "runtest.skip"))
	passed, rounded := 0, 0
	for _, c := range cases(t) {
		reason, listed := skips[c.Title]
		delete(skips, c.Title)
		switch ok := verdict[c.Title] == "PASS"; {
		case ok && listed:
			t.Errorf("%s passes, but is listed: %s", c.Title, reason)
		case ok:
			passed++
		case listed:
		case lastBits(c):
			rounded++
		default:
			t.Errorf("%s: %s: %s", c.Title, verdict[c.Title], why[c.Title])
		}
	}
	for name := range skips {
		t.Errorf("%s is listed, but is no case", name)
	}
	t.Logf("%d of %d cases of onnx-go pass through its RunTest on our backend; %d more differ in last bits that it does not allow", passed, numCases, rounded)
}

// lastBits runs a case as a program on onnx-go and reports whether its outputs
// are those expected, but for differences of more than 1e-6 that are at most four
// times the distance to the next float32.
func lastBits(c *testbackend.TestCase) bool {
	b, err := NewFor(c.ModelB)
	if err != nil {
		return false
	}
	m := onnx.NewModel(b)
	if m.UnmarshalBinary(c.ModelB) != nil {
		return false
	}
	for i, in := range c.Input {
		if m.SetInput(i, in) != nil {
			return false
		}
	}
	if b.Run() != nil {
		return false
	}
	outs, err := m.GetOutputTensors()
	if err != nil || len(outs) != len(c.ExpectedOutput) {
		return false
	}
	for i, out := range outs {
		got, ok := out.Data().([]float32)
		want, ok2 := c.ExpectedOutput[i].Data().([]float32)
		if !ok || !ok2 || len(got) != len(want) || !out.Shape().Eq(c.ExpectedOutput[i].Shape()) {
			return false
		}
		for k, w := range want {
			step := math.Abs(float64(math.Nextafter32(w, float32(math.Inf(1)))) - float64(w))
			if d := math.Abs(float64(got[k]) - float64(w)); !(d <= 1e-6 || step > 1e-6 && d <= 4*step) {
				return false
			}
		}
	}
	return true
}

// readSkips reads lines of the form "case: reason".
func readSkips(t *testing.T, path string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	skips := map[string]string{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, ok := strings.Cut(line, ": ")
		if !ok || skips[name] != "" {
			t.Fatalf("%s: %q has no reason or is there twice", path, line)
		}
		skips[name] = reason
	}
	return skips
}
