package onnxq_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/job"
)

// elsewhere is a job runner that does tasks as other machines would: it gets
// them as JSON and their files as copies, in another order, some of them twice
// and by another worker.
type elsewhere struct {
	t       *testing.T
	workers [2]*onnxq.Worker
	mu      sync.Mutex
	kinds   map[string]int
}

func newElsewhere(t *testing.T) *elsewhere {
	e := &elsewhere{t: t, workers: [2]*onnxq.Worker{onnxq.NewWorker(1), onnxq.NewWorker(2)}, kinds: map[string]int{}}
	t.Cleanup(func() { e.workers[0].Close(); e.workers[1].Close() })
	return e
}

func (e *elsewhere) run(ctx context.Context, tasks []job.Task) error {
	r := rand.New(rand.NewPCG(uint64(len(tasks)), 1))
	root := e.t.TempDir()
	for _, i := range r.Perm(len(tasks)) {
		for range 1 + r.IntN(5)/4 {
			b, err := json.Marshal(tasks[i])
			if err != nil {
				return err
			}
			var there job.Task
			if err := json.Unmarshal(b, &there); err != nil {
				return err
			}
			there.Dir = filepath.Join(root, filepath.Base(there.Dir))
			if err := os.MkdirAll(there.Dir, 0o777); err != nil {
				return err
			}
			for _, f := range there.Files {
				data, err := os.ReadFile(tasks[i].Path(f))
				if err != nil {
					return err
				}
				if err := os.WriteFile(there.Path(f)+".new", data, 0o666); err != nil {
					return err
				}
				if err := os.Rename(there.Path(f)+".new", there.Path(f)); err != nil {
					return err
				}
			}
			if err := e.workers[r.IntN(2)].Do(ctx, &there); err != nil {
				return err
			}
			if tasks[i].Result != nil && !bytes.Equal(tasks[i].Result, there.Result) {
				e.t.Errorf("%s: another result the second time", tasks[i].Name)
			}
			tasks[i].Result = there.Result
		}
		e.mu.Lock()
		e.kinds[tasks[i].Kind]++
		e.mu.Unlock()
	}
	return nil
}

// A job runner gives the model, plan, table and notes of one process.
func TestRunner(t *testing.T) {
	scored := 0
	for _, name := range []string{"digits", "text"} {
		for what, o := range map[string]onnxq.Options{
			"default":  {},
			"contract": {MinSQNR: new(float64), KeepFailed: true},
			"blocks":   {Mode: onnxq.Weights, Weights: "i4", Algorithms: []onnxq.Algorithm{onnxq.Clip}},
			"gptq":     {Mode: onnxq.Weights, Weights: "i4", Algorithms: []onnxq.Algorithm{onnxq.GPTQ}},
			"static":   {Mode: onnxq.Static, Weights: "i8", ReduceRange: true},
		} {
			if o.MinSQNR != nil {
				*o.MinSQNR = 40
			}
			if name == "text" && what == "contract" {
				continue // takes long, and digits has as many steps
			}
			t.Run(name+" "+what, func(t *testing.T) {
				want, res := quantizeFailing(t, name, o)
				e := newElsewhere(t)
				o.Runner, o.Parts, o.Work = e.run, 5, t.TempDir()
				got, there := quantizeFailing(t, name, o)
				if !bytes.Equal(got, want) {
					t.Error("another model")
				}
				if a, b := jsonOf(t, res.Plan), jsonOf(t, there.Plan); a != b {
					t.Errorf("another plan:\n%s\nwant\n%s", b, a)
				}
				if !slices.Equal(res.Notes, there.Notes) {
					t.Errorf("notes %q\nwant %q", there.Notes, res.Notes)
				}
				if !bytes.Equal(tableBytes(t, res.Table), tableBytes(t, there.Table)) {
					t.Error("another table")
				}
				if n := e.kinds[onnxq.CalibrateTask]; n < 5 && what != "blocks" && what != "gptq" {
					t.Errorf("tasks: %v", e.kinds)
				}
				if n := e.kinds[auto.RoundTask]; n == 0 && (name == "text" && (what == "blocks" || what == "gptq") || what == "contract") {
					t.Errorf("tasks: %v", e.kinds)
				}
				t.Log(e.kinds)
				scored += e.kinds[auto.ScoreTask]
				if left, _ := os.ReadDir(o.Work); len(left) > 0 {
					t.Errorf("files of tasks are left: %v", left)
				}
			})
		}
	}
	if scored == 0 {
		t.Error("no candidate was measured by a task")
	}
}

func quantizeFailing(t *testing.T, name string, o onnxq.Options) ([]byte, *onnxq.Result) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out.onnx")
	o.Data = samples(name)
	res, err := onnxq.Quantize(t.Context(), sampleModel(name), out, o)
	var broken *onnxq.ContractError
	if err != nil && !errors.As(err, &broken) {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b, res
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func tableBytes(t *testing.T, table *calibration.Table) []byte {
	t.Helper()
	if table == nil {
		return nil
	}
	var b bytes.Buffer
	if err := table.Encode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Calibration in any number of parts, and of shards in parts, is that of one
// process.
func TestCalibrateParts(t *testing.T) {
	for _, name := range []string{"digits", "text"} {
		o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: samples(name)}}
		whole, err := onnxq.CalibrateFile(t.Context(), sampleModel(name), "", o)
		if err != nil {
			t.Fatal(err)
		}
		want := tableBytes(t, whole)
		for _, parts := range []int{1, 2, 7, 1000} {
			e := newElsewhere(t)
			o.Runner, o.Parts = e.run, parts
			got, err := onnxq.CalibrateFile(t.Context(), sampleModel(name), filepath.Join(t.TempDir(), "t.json"), o)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(tableBytes(t, got), want) {
				t.Errorf("%s: %d parts give another table", name, parts)
			}
			if n := e.kinds[onnxq.CalibrateTask]; n != min(parts, len(whole.Samples)) {
				t.Errorf("%s: %d tasks for %d parts", name, n, parts)
			}
		}
		var shards []*calibration.Table
		o.Shards, o.Parts = 3, 2
		for o.Shard = range 3 {
			shard, err := onnxq.CalibrateFile(t.Context(), sampleModel(name), "", o)
			if err != nil {
				t.Fatal(err)
			}
			shards = append(shards, shard)
		}
		merged, err := calibration.Merge(shards...)
		if err != nil || !bytes.Equal(tableBytes(t, merged), want) {
			t.Errorf("%s: shards in parts give another table, %v", name, err)
		}
	}
}

// spoil copies the samples of a model and makes some of them bad.
func spoil(t *testing.T, name string, bad ...int) string {
	t.Helper()
	dir := t.TempDir()
	entries, err := os.ReadDir(samples(name)[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		data, err := os.ReadFile(filepath.Join(samples(name)[0], e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(bad, i) {
			data = data[:len(data)/2]
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Bad samples are passed over or named as in one process.
func TestBadSamplesInParts(t *testing.T) {
	dir := spoil(t, "digits", 2, 9)
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{dir}}}
	o.Source.SkipBad = 2
	whole, err := onnxq.CalibrateFile(t.Context(), sampleModel("digits"), "", o)
	if err != nil {
		t.Fatal(err)
	}
	var notes []string
	o.Runner, o.Parts, o.Note = newElsewhere(t).run, 4, func(s string) { notes = append(notes, s) }
	got, err := onnxq.CalibrateFile(t.Context(), sampleModel("digits"), "", o)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(tableBytes(t, got), tableBytes(t, whole)) {
		t.Error("another table")
	}
	if n := strings.Count(strings.Join(notes, "\n"), "skipped: "); n != 2 {
		t.Errorf("notes: %q", notes)
	}
	for skip, want := range []string{".npz", ""} {
		o.Source.SkipBad = skip
		_, err := onnxq.CalibrateFile(t.Context(), sampleModel("digits"), "", o)
		var de *calibration.DataError
		if !errors.As(err, &de) || !strings.Contains(err.Error(), want) {
			t.Errorf("%d may be bad: %v", skip, err)
		}
	}
}

func TestRunnerErrors(t *testing.T) {
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: samples("digits")}}
	for want, run := range map[string]job.Runner{
		"gave no result": func(context.Context, []job.Task) error { return nil },
		"queue is full":  func(context.Context, []job.Task) error { return errors.New("queue is full") },
		"not a calibration table": func(_ context.Context, tasks []job.Task) error {
			for i := range tasks {
				tasks[i].Result = []byte("{}")
			}
			return nil
		},
		"knows no kind": func(ctx context.Context, tasks []job.Task) error {
			tasks[0].Kind = "other"
			w := onnxq.NewWorker(1)
			defer w.Close()
			return w.Run(ctx, tasks)
		},
		"the samples are not those that the job was made for": func(ctx context.Context, tasks []job.Task) error {
			w := onnxq.NewWorker(1)
			defer w.Close()
			tasks[0].Args = bytes.Replace(tasks[0].Args, []byte("digits/calib"), []byte("digits/eval"), 1)
			return w.Run(ctx, tasks)
		},
	} {
		o.Runner = run
		if _, err := onnxq.CalibrateFile(t.Context(), sampleModel("digits"), "", o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.Runner = func(ctx context.Context, tasks []job.Task) error {
		cancel()
		w := onnxq.NewWorker(1)
		defer w.Close()
		return w.Run(ctx, tasks)
	}
	if _, err := onnxq.CalibrateFile(ctx, sampleModel("digits"), "", o); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	o.Runner, o.Data = newElsewhere(t).run, []string{"-"}
	if _, err := onnxq.NewCalibrateJob(t.Context(), sampleModel("digits"), o); err == nil {
		t.Error("a stream was divided")
	}
}

// Several models under one configuration.
func TestQuantizeTasks(t *testing.T) {
	dir := t.TempDir()
	want, _ := quantize(t, "digits", onnxq.Options{})
	ins, outs := []string{sampleModel("digits"), sampleModel("digits")}, []string{filepath.Join(dir, "a.onnx"), filepath.Join(dir, "b.onnx")}
	tasks, err := onnxq.QuantizeTasks(ins, outs, onnxq.Options{Data: samples("digits")})
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Run(t.Context(), newElsewhere(t).run, tasks); err != nil {
		t.Fatal(err)
	}
	for i, out := range outs {
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: another model, %v", out, err)
		}
		var res onnxq.QuantizeTaskResult
		if err := json.Unmarshal(tasks[i].Result, &res); err != nil || res.Error != "" || res.Result.Quantized == 0 {
			t.Errorf("result %s: %v", tasks[i].Result, err)
		}
	}
	_, err = onnxq.QuantizeTasks(ins, outs, onnxq.Options{Data: []string{"-"}})
	if err == nil {
		t.Error("a stream of samples for several processes")
	}
	// What is wrong with a model is a result, and no reason to stop the others.
	most := 90.0
	tasks, _ = onnxq.QuantizeTasks([]string{sampleModel("digits"), "jobs_test.go"}, outs, onnxq.Options{Data: samples("digits"), MinSQNR: &most})
	if err := job.Run(t.Context(), newElsewhere(t).run, tasks); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"were demanded", "jobs_test.go: "} {
		var res onnxq.QuantizeTaskResult
		if err := json.Unmarshal(tasks[i].Result, &res); err != nil || !strings.Contains(res.Error, want) {
			t.Errorf("result %s: %v", tasks[i].Result, err)
		}
	}
	outs[0] = filepath.Join(dir, "none", "a.onnx")
	tasks, _ = onnxq.QuantizeTasks(ins, outs, onnxq.Options{Data: samples("digits")})
	if err := job.Run(t.Context(), newElsewhere(t).run, tasks); err == nil || !strings.Contains(err.Error(), fmt.Sprint(ins[0])) {
		t.Error(err)
	}
}
