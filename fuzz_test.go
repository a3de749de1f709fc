package onnxq

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/exec/ort"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/fuzztest"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/validate"
)

// tiny are models that touch most stages; fuzzing changes their wire form.
var tiny = []string{
	`g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,-1,-2,-3,0.5,0.25,0.125,4,5,6}, float[3] b = {1,0,-1}> { m = MatMul(x, w)
 a = Add(m, b)
 y = Relu(a) }`,
	`g (float[1,2,4,4] x) => (float[1,2,d,e] y) <float[2,2,1,1] w = {1,-2,3,-4}> { c = Conv<pads=[0,0,0,0], strides=[1,1]>(x, w)
 p = MaxPool<kernel_shape=[2,2]>(c)
 y = Sigmoid(p) }`,
	`g (float[2,3] x) => (float[n,m] y) <int64[2] s = {3,2}, float[2,2] w = {1,2,3,4}> { r = Reshape(x, s)
 t = MatMul(r, w)
 y = Softmax<axis=1>(t) }`,
	`g (bool c, float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}> { y = If(c) <then_branch = a () => (float[2,2] p) { p = MatMul(x, w) }, else_branch = b () => (float[2,2] q) { q = Neg(x) }> }`,
	`g (float[2] x) => (float[2] y) <int64 n = {3}, bool c = {1}> { y = Loop(n, c, x) <body = b (int64 i, bool ci, float[2] a) => (bool co, float[2] z) { co = Identity(ci)
 z = Neg(a) }> }`,
}

func addTiny(f *testing.F) {
	for _, text := range tiny {
		m, err := graph.Parse(fuzzHead + text)
		if err != nil {
			f.Fatal(err)
		}
		var b bytes.Buffer
		if err := onnxfile.Write(context.Background(), &b, m); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add([]byte(fuzzHead + text))
	}
}

// fuzzHead is how models in text form begin.
const fuzzHead = "<ir_version: 8, opset_import: [\"\" : 17]>\n"

// fuzzOptions bound a run to what the promise on time and memory allows.
func fuzzOptions() Options {
	return Options{Data: []string{"random:2"}, Threads: 1, MaxSteps: 1 << 16, MaxBytes: 64 << 20}
}

// loadBytes loads a file or, where b begins with one, the text form of a model;
// nil if it is refused.
func loadBytes(t *testing.T, b []byte) (path string, m *graph.Model) {
	path = filepath.Join(t.TempDir(), "model.onnx")
	if bytes.HasPrefix(b, []byte("<")) {
		m, err := graph.Parse(string(b))
		if err != nil {
			return path, nil
		}
		var w bytes.Buffer
		if err := onnxfile.Write(context.Background(), &w, m); err != nil {
			return path, nil
		}
		b = w.Bytes()
	}
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	m, err := Load(path)
	if err != nil {
		if strings.Contains(err.Error(), "\x1b") {
			t.Errorf("an escape in %q", err)
		}
		return path, nil
	}
	t.Cleanup(func() { m.Close() })
	return path, m
}

// FuzzPrepare holds what Prepare makes of a model against Verify and the
// validator.
func FuzzPrepare(f *testing.F) {
	addTiny(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bound(t)
		_, m := loadBytes(t, b)
		if m == nil {
			return
		}
		p, _, err := Prepare(t.Context(), m, fuzzOptions())
		if err != nil {
			return
		}
		if err := p.Verify(); err != nil {
			t.Error(err)
		}
		if err := validate.Model(p, validate.Options{}); err != nil {
			t.Errorf("the prepared model is refused: %v", err)
		}
	})
}

// FuzzQuantizeTiny quantizes models: no defect, and what is written loads
// again, in ONNX Runtime too where ONNXQ_ORT_LIB names it.
func FuzzQuantizeTiny(f *testing.F) {
	addTiny(f)
	var runtime exec.Engine
	if lib := os.Getenv("ONNXQ_ORT_LIB"); lib != "" {
		e, err := ort.Open(ort.Options{Library: lib})
		if err != nil {
			f.Fatal(err)
		}
		runtime = e
	} else {
		f.Log("NOT TESTED: that ONNX Runtime loads what is written, since ONNXQ_ORT_LIB does not name it")
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bound(t)
		path, m := loadBytes(t, b)
		if m == nil {
			return
		}
		out := filepath.Join(filepath.Dir(path), "out.onnx")
		_, err := Quantize(t.Context(), path, out, fuzzOptions())
		var defect *exec.PanicError
		switch {
		case errors.As(err, &defect):
			t.Fatalf("%v\n%s", err, defect.Stack)
		case err != nil && strings.HasPrefix(err.Error(), "defect:"):
			t.Fatal(err)
		case err != nil:
			return
		}
		q, err := Load(out)
		if err != nil {
			t.Fatalf("the result is refused: %v", err)
		}
		defer q.Close()
		if err := validate.Model(q, validate.Options{}); err != nil {
			t.Errorf("the result is invalid: %v", err)
		}
		if runtime == nil {
			return
		}
		x, err := runtime.Compile(t.Context(), q, exec.Options{})
		if err == nil {
			defer x.Close()
			var r exec.Runner
			if r, err = x.Open(t.Context(), exec.SessionOptions{Threads: 1}); err == nil {
				r.Close()
			}
		}
		if err != nil {
			t.Errorf("ONNX Runtime refuses the result: %v\n%s", err, graph.Text(q, 8))
		}
	})
}

// FuzzPlan follows plans that were changed.
func FuzzPlan(f *testing.F) {
	m, err := graph.Parse(fuzzHead + tiny[0])
	if err != nil {
		f.Fatal(err)
	}
	p, _, err := Prepare(context.Background(), m, Options{})
	if err != nil {
		f.Fatal(err)
	}
	plan, err := MakePlan(p, Options{})
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := plan.Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bound(t)
		plan, err := qdq.ReadPlan(bytes.NewReader(b))
		if err != nil {
			return
		}
		o := fuzzOptions()
		o.Plan = plan
		q, _, err := QuantizeModel(t.Context(), m, o)
		if err != nil {
			return
		}
		if err := q.Verify(); err != nil {
			t.Error(err)
		}
	})
}
