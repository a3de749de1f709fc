package onnxq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/job"
)

// The kinds of tasks besides those of package auto.
const (
	// CalibrateTask runs a part of the samples. Its result is the file of the
	// part's calibration.Table.
	CalibrateTask = "calibrate"
	// QuantizeTask quantizes a file of a model. Its result is a
	// QuantizeTaskResult as JSON.
	QuantizeTask = "quantize"
)

// defaultParts is Options.Parts if that is 0.
const defaultParts = 16

func (o *Options) parts() int {
	if o.Parts > 0 {
		return o.Parts
	}
	return defaultParts
}

// calibrateArgs are those of a CalibrateTask.
type calibrateArgs struct {
	Model string `json:"model"` // a file of the task
	// Watch has the values to observe by calibration.ValueKey, with the axis of
	// their channels where these count.
	Watch   map[string]*int        `json:"watch"`
	Data    []string               `json:"data"`
	Listed  string                 `json:"listed,omitempty"` // a file of the task with what Source.Listed gave
	Hash    string                 `json:"hash"`             // of the source
	Samples string                 `json:"samples"`          // as of calibration.Source.Indices
	Source  calibration.Options    `json:"source"`
	State   []calibration.Feedback `json:"state,omitempty"`
	Head    tableHead              `json:"head"`
	Limits  auto.Limits            `json:"limits"`
}

// tableHead is what the table of a part says of itself.
type tableHead struct {
	Model    string                   `json:"model"`
	Settings calibration.TableOptions `json:"settings"`
	Shard    int                      `json:"shard"`
	Shards   int                      `json:"shards"`
	Total    int                      `json:"total"`
	Measured []int                    `json:"measured,omitempty"`
	Sources  []string                 `json:"sources,omitempty"`
}

// quantizeArgs are those of a QuantizeTask.
type quantizeArgs struct {
	In      string  `json:"in"`
	Out     string  `json:"out"`
	Options Options `json:"options"`
}

// QuantizeTaskResult says how a QuantizeTask went.
type QuantizeTaskResult struct {
	// Result has neither time nor memory; nil where there is an Error that is not
	// a demand that was not met.
	Result *Result `json:"result"`
	Error  string  `json:"error,omitempty"`
}

// QuantizeTasks returns a task for each of several models, to be quantized
// under the same options: the file ins[i] to outs[i], which all processes see.
// The error says which options cannot leave this process.
func QuantizeTasks(ins, outs []string, o Options) ([]job.Task, error) {
	if o.Table != nil || o.Engine != nil || o.Runner != nil || slices.Contains(o.Data, "-") {
		return nil, optionErrorf("tables, engines, job runners and streams of samples stay in one process")
	}
	tasks := make([]job.Task, len(ins))
	for i := range ins {
		args, err := json.Marshal(quantizeArgs{ins[i], outs[i], o})
		if err != nil {
			return nil, err
		}
		tasks[i] = job.Task{Kind: QuantizeTask, Name: "quantize " + ins[i], Args: args}
	}
	return tasks, nil
}

// CalibrateJob is what CalibrateFile does, for an engine that also merges.
type CalibrateJob struct {
	// Tasks have parts of the samples.
	Tasks  []job.Task
	folder *job.Folder
	skip   int
}

// NewCalibrateJob divides the calibration of the model in file in. Close
// removes the files of its tasks.
func NewCalibrateJob(ctx context.Context, in string, o CalibrateOptions) (c *CalibrateJob, err error) {
	m, err := o.Load(in)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	defer watch(m, &err)()
	r, err := newCalibration(ctx, m, o)
	if err != nil {
		return nil, err
	}
	defer r.q.close()
	return newCalibrateJob(ctx, r.q.prepared, r.src, r.q.o, r.co)
}

// Close removes the files of the tasks.
func (c *CalibrateJob) Close() error { return c.folder.Close() }

// Table merges the tables of all tasks or of groups of them, in any order;
// what is there several times counts once.
func (c *CalibrateJob) Table(parts ...*calibration.Table) (*calibration.Table, error) {
	t, err := calibration.Merge(parts...)
	if err != nil {
		return nil, err
	}
	if n := len(t.Skipped); n > c.skip {
		bad := t.Skipped[c.skip]
		return nil, &calibration.DataError{Path: bad.Name, Err: fmt.Errorf("%s; %d samples are bad, %d may be skipped", bad.Error, n, c.skip)}
	}
	return t, nil
}

// newCalibrateJob divides the collection of what co.Watch says; co is complete
// but for what follows from o.
func newCalibrateJob(ctx context.Context, m *graph.Model, src *calibration.Source, o Options, co calibration.CollectOptions) (*CalibrateJob, error) {
	if slices.Contains(o.Data, "-") {
		return nil, optionErrorf("samples from a stream cannot be divided among processes: put them into files")
	}
	if co.Resume != nil {
		return nil, optionErrorf("a run that was stopped is not taken up by a job runner")
	}
	folder, err := job.NewFolder(o.Work)
	if err != nil {
		return nil, err
	}
	c := &CalibrateJob{folder: folder, skip: o.Source.SkipBad}
	files, err := auto.PutModel(ctx, folder, m)
	if err == nil {
		c.Tasks, err = calibrateTasks(folder, files, m, src, o, co)
	}
	if err != nil {
		folder.Close()
		return nil, err
	}
	return c, nil
}

func calibrateTasks(folder *job.Folder, files []string, m *graph.Model, src *calibration.Source, o Options, co calibration.CollectOptions) ([]job.Task, error) {
	args := calibrateArgs{
		Model: files[0], Watch: map[string]*int{}, Hash: src.Hash(), Source: o.Source, State: o.State,
		Head:   tableHead{co.Model, co.Settings, co.Shard, co.Shards, co.Total, co.Measured, co.Sources},
		Limits: auto.Limits{MaxBytes: o.MaxBytes, MaxSteps: o.MaxSteps},
	}
	if co.Shards == 0 {
		args.Head.Shards, args.Head.Total = 1, src.Len()
	}
	for _, spec := range o.Data {
		if !strings.HasPrefix(spec, "random:") && !calibration.IsURL(spec) {
			var err error
			if spec, err = filepath.Abs(spec); err != nil {
				return nil, err
			}
		}
		args.Data = append(args.Data, spec)
	}
	if listed := src.Listed(); len(listed) > 0 {
		b, err := json.Marshal(listed)
		if err != nil {
			return nil, err
		}
		names, err := folder.Put(".json", func(path string) error { return os.WriteFile(path, b, 0o666) })
		if err != nil {
			return nil, err
		}
		args.Listed, files = names[0], slices.Concat(files, names)
	}
	for v := range calibration.Observable(m) {
		if v.ID >= len(co.Watch) || !co.Watch[v.ID].Observe {
			continue
		}
		key := calibration.ValueKey(v)
		if _, twice := args.Watch[key]; twice {
			return nil, graph.ValueError("calibrate", v, fmt.Errorf("two values are called %q", key))
		}
		args.Watch[key] = nil
		if w := &co.Watch[v.ID]; w.Channels {
			args.Watch[key] = &w.Axis
		}
	}
	var tasks []job.Task
	for _, part := range src.Parts(o.parts(), len(o.State) > 0) {
		args.Samples = part.Indices()
		first, last := part.Sample(0).Name, part.Sample(part.Len()-1).Name
		t, err := folder.Task(CalibrateTask, fmt.Sprintf("calibrate on samples %q to %q", first, last), args, files...)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, t)
	}
	return tasks, nil
}

// collectParts is collect by o.Runner.
func collectParts(ctx context.Context, m *graph.Model, src *calibration.Source, o Options, co calibration.CollectOptions) (*calibration.Table, error) {
	c, err := newCalibrateJob(ctx, m, src, o, co)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	o.progress("calibrate", 0, src.Len())
	if err := job.Run(ctx, o.Runner, c.Tasks); err != nil {
		return nil, err
	}
	var parts []*calibration.Table
	for i := range c.Tasks {
		t, err := calibration.Decode(c.Tasks[i].Result)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Tasks[i].Name, err)
		}
		parts = append(parts, t)
	}
	t, err := c.Table(parts...)
	if err != nil {
		return nil, err
	}
	o.progress("calibrate", src.Len(), src.Len())
	skipped := 0
	for i := range src.Len() {
		s := src.Sample(i)
		if skipped < len(t.Skipped) && t.Skipped[skipped].Index == s.Index {
			src.Skip(i, &calibration.DataError{Path: s.Path, Sample: s.Name, Err: errors.New(t.Skipped[skipped].Error)})
			skipped++
		}
	}
	return t, nil
}
