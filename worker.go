package onnxq

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/job"
	"github.com/onnxq/onnxq/quant"
)

// Worker does the tasks of jobs. It keeps the compiled programs and
// sources of the last tasks, so that a process is best served by one Worker. It
// may be used by several goroutines. Close it.
type Worker struct {
	// Store has samples that are named by URL. It is set before the first task.
	Store calibration.Store

	threads  int
	programs job.Cache[exec.Executable]
	sources  job.Cache[*calibration.Source]
	scorer   *auto.Scorer
}

// keptByWorker is how many programs and sources a Worker keeps.
const keptByWorker = 4

// NewWorker returns a Worker that runs each task on the given number of threads;
// 0 means one per processor.
func NewWorker(threads int) *Worker {
	w := &Worker{threads: threads}
	w.programs = job.Cache[exec.Executable]{Most: keptByWorker, Drop: func(x exec.Executable) {
		m := x.Model()
		x.Close()
		m.Close()
	}}
	w.sources = job.Cache[*calibration.Source]{Most: keptByWorker, Drop: func(s *calibration.Source) { s.Close() }}
	w.scorer = auto.NewScorer((&Options{Threads: threads}).session())
	return w
}

// Close drops what the Worker keeps.
func (w *Worker) Close() {
	w.programs.Close()
	w.sources.Close()
	w.scorer.Close()
}

// Run does the tasks one after the other in this process: it is a job.Runner.
func (w *Worker) Run(ctx context.Context, tasks []job.Task) error {
	for i := range tasks {
		if err := w.Do(ctx, &tasks[i]); err != nil {
			return err
		}
	}
	return nil
}

// Do does a task and sets its Result.
func (w *Worker) Do(ctx context.Context, t *job.Task) (err error) {
	switch t.Kind {
	case CalibrateTask:
		var table *calibration.Table
		if table, err = w.Calibrate(ctx, t); err == nil {
			var b bytes.Buffer
			err = table.Encode(&b)
			t.Result = b.Bytes()
		}
	case QuantizeTask:
		t.Result, err = w.quantize(ctx, t)
	case auto.ScoreTask, auto.RoundTask:
		t.Result, err = w.scorer.Do(ctx, t)
	default:
		return fmt.Errorf("task %q: this program knows no kind %q", t.Name, t.Kind)
	}
	if err != nil {
		t.Result = nil
	}
	return err
}

// quantize does a QuantizeTask. What is wrong with a model, its samples or options
// is a result, since it would be so again; what may be otherwise elsewhere, such
// as a file that cannot be written, is an error.
func (w *Worker) quantize(ctx context.Context, t *job.Task) ([]byte, error) {
	var a quantizeArgs
	if err := t.Decode(&a); err != nil {
		return nil, err
	}
	a.Options.Source.Store = w.Store
	res, err := Quantize(ctx, a.In, a.Out, a.Options)
	var (
		broken  *ContractError
		option  *OptionError
		content *onnxfile.ContentError
		data    *calibration.DataError
		at      *graph.Error
	)
	out := QuantizeTaskResult{Result: res}
	switch {
	case err == nil:
	case errors.As(err, &broken), errors.As(err, &option), errors.As(err, &content), errors.As(err, &data), errors.As(err, &at), errors.Is(err, ErrNoData):
		out.Error = err.Error()
	default:
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	if res != nil {
		res.Seconds, res.PeakRSS = 0, 0 // which differ from time to time
	}
	return json.Marshal(out)
}

// Calibrate does a CalibrateTask for an engine that merges tables itself.
func (w *Worker) Calibrate(ctx context.Context, t *job.Task) (table *calibration.Table, err error) {
	var a calibrateArgs
	if err := t.Decode(&a); err != nil {
		return nil, err
	}
	if !slices.Contains(t.Files, a.Model) {
		return nil, fmt.Errorf("task %q: %q is none of its files", t.Name, a.Model)
	}
	wanted, err := json.Marshal(a.Watch)
	if err != nil {
		return nil, err
	}
	err = w.programs.Use(t.Key(a.Model)+string(wanted), func() (exec.Executable, error) { return a.compile(ctx, t) }, func(prog exec.Executable) error {
		key, err := json.Marshal([]any{t.Key(a.Model), a.Data, a.Source, a.State})
		if err != nil {
			return err
		}
		o := Options{Source: a.Source, State: a.State, Threads: w.threads, MaxBytes: a.Limits.MaxBytes, MaxSteps: a.Limits.MaxSteps}
		open := func() (*calibration.Source, error) {
			if o.Source.Store = w.Store; a.Listed != "" {
				b, err := os.ReadFile(t.Path(a.Listed))
				if err == nil {
					err = json.Unmarshal(b, &o.Source.Listed)
				}
				if err != nil {
					return nil, fmt.Errorf("%s: %w", t.Name, err)
				}
			}
			return Open(ctx, prog.Model(), a.Data, o)
		}
		return w.sources.Use(string(key), open, func(src *calibration.Source) error {
			if src.Hash() != a.Hash {
				return &calibration.DataError{Path: a.Data[0], Err: fmt.Errorf("the samples are not those that the job was made for: names, sizes or order differ")}
			}
			part, err := src.Pick(a.Samples)
			if err != nil {
				return &calibration.DataError{Path: a.Data[0], Err: err}
			}
			table, err = calibration.Collect(ctx, prog, part, calibration.CollectOptions{
				Watch: a.watch(prog.Model()), Model: a.Head.Model, Settings: a.Head.Settings,
				Shard: a.Head.Shard, Shards: a.Head.Shards, Total: a.Head.Total, Measured: a.Head.Measured, Sources: a.Head.Sources,
				State: a.State, Session: o.session(),
			})
			return suggest(prog.Model(), err)
		})
	})
	return table, err
}

// watch returns what to observe of m, by value ID.
func (a *calibrateArgs) watch(m *graph.Model) []quant.Watch {
	out := make([]quant.Watch, m.NumValues())
	for v := range calibration.Observable(m) {
		if axis, ok := a.Watch[calibration.ValueKey(v)]; ok {
			out[v.ID].Observe = true
			if axis != nil {
				out[v.ID].Channels, out[v.ID].Axis = true, *axis
			}
		}
	}
	return out
}

// compile opens the model, which the result then owns.
func (a *calibrateArgs) compile(ctx context.Context, t *job.Task) (exec.Executable, error) {
	m, err := auto.OpenModel(t.Path(a.Model))
	if err != nil {
		return nil, err
	}
	taps := make([]bool, m.NumValues())
	for id, w := range a.watch(m) {
		taps[id] = w.Observe
	}
	x, err := exec.Embedded{}.Compile(ctx, m, exec.Options{Taps: taps, Blocks: true})
	if err != nil {
		m.Close()
		return nil, err
	}
	return x, nil
}
