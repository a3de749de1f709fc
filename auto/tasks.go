package auto

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"sync"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/job"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// ScoreTask is the kind of the tasks that measure one candidate each.
const ScoreTask = "score"

// scoreArgs are those of a ScoreTask: a candidate, and what it is measured on.
// Strings name files of the task.
type scoreArgs struct {
	Float   string    `json:"float"` // the model that is the reference
	Base    string    `json:"base"`  // the model that the plan is of
	Plan    *qdq.Plan `json:"plan"`
	Table   string    `json:"table"`
	Samples string    `json:"samples"`
	Places  []int     `json:"places"`           // of the samples to measure on
	Visits  string    `json:"visits,omitempty"` // samples for measured means, if these are wanted
	Way     taskWay   `json:"way"`
	Check   Contract  `json:"contract"`
	Limits  Limits    `json:"limits"`
}

// taskWay is what of Way has a JSON form.
type taskWay struct {
	Method        calibration.Method        `json:"method"`
	MethodOptions calibration.MethodOptions `json:"method_options"`
	CorrectBias   bool                      `json:"correct_bias"`
	Clip          bool                      `json:"clip"`
	FitPairs      bool                      `json:"fit_pairs"`
}

func (w *Way) task() taskWay {
	return taskWay{w.Method, w.MethodOptions, w.CorrectBias, w.Clip, w.FitPairs}
}

func (w *taskWay) way(known ranges, threads int) Way {
	return Way{Method: w.Method, MethodOptions: w.MethodOptions, CorrectBias: w.CorrectBias, Clip: w.Clip, FitPairs: w.FitPairs, Threads: threads, ranges: known}
}

// Limits bound the runs of a task. How many threads there are is for who does it.
type Limits struct {
	MaxBytes int64 `json:"max_bytes,omitempty"`
	MaxSteps int64 `json:"max_steps,omitempty"`
}

// scored is the result of a ScoreTask.
type scored struct {
	// Bad says that an activation has no usable range under the method, so that
	// the plan has to change.
	Bad   bool      `json:"bad,omitempty"`
	Bits  uint64    `json:"bits"` // of the score, a float64 that may be infinite
	Short Shortfall `json:"short,omitzero"`
	empty bool      // nothing is quantized
	all   bool      // measured on all samples
}

func (r *scored) score() float64 { return math.Float64frombits(r.Bits) }

// shipped are the files that tasks have been given.
type shipped struct {
	folder *job.Folder
	models map[*graph.Model][]string
	tables map[*calibration.Table]string
	data   [2][]string // samples to measure on, and to visit
}

// close removes the files.
func (s *shipped) close() {
	if s.folder != nil {
		s.folder.Close()
	}
}

// ahead measures candidates that do not depend on each other by the job runner,
// if there is one: what build, measure and score do with each of them then is to
// look up the result. Candidates whose weights are rounded stay in this process.
func (s *search) ahead(ctx context.Context, list []*candidate, places []int) error {
	if s.o.Runner == nil || len(list) < 2 || slices.ContainsFunc(list, func(c *candidate) bool { return c.round || c.codes != nil }) {
		return nil
	}
	var tasks []job.Task
	var of []*candidate
	for _, c := range list {
		if err := s.settlePlan(ctx, c); err != nil {
			return err
		}
		if c.plan.Empty() {
			c.known = &scored{empty: true}
			continue
		}
		t, err := s.task(ctx, c, places)
		if err != nil {
			return err
		}
		tasks, of = append(tasks, t), append(of, c)
	}
	if len(tasks) == 0 {
		return nil
	}
	if err := job.Run(ctx, s.o.Runner, tasks); err != nil {
		return err
	}
	for i, c := range of {
		var r scored
		if err := json.Unmarshal(tasks[i].Result, &r); err != nil {
			return fmt.Errorf("%s: %w", tasks[i].Name, err)
		}
		if !r.Bad {
			r.all = len(places) == len(s.o.Samples)
			c.known = &r
		}
	}
	return nil
}

// settlePlan makes the plan of c without the activations that no method gives
// a range.
func (s *search) settlePlan(ctx context.Context, c *candidate) error {
	return s.usable(ctx, c, func() (bad map[int]string, err error) {
		way := Way{Method: calibration.MinMax, MethodOptions: s.o.MethodOptions, Threads: s.o.Session.Threads, ranges: s.known}
		ranges, _, err := way.rangesOf(c.base, c.plan, c.table)
		if err != nil {
			return nil, err
		}
		_, bad, err = c.plan.Resolve(c.base, ranges, way.Threads)
		return bad, err
	})
}

// task returns the task that measures c.
func (s *search) task(ctx context.Context, c *candidate, places []int) (job.Task, error) {
	f := &s.files
	if f.folder == nil {
		var err error
		if f.folder, err = job.NewFolder(s.o.Work); err != nil {
			return job.Task{}, err
		}
		f.models, f.tables = map[*graph.Model][]string{}, map[*calibration.Table]string{}
		f.data[0], err = f.folder.Put(".samples", func(path string) error { return saveSamples(path, s.o.Samples) })
		if err != nil {
			return job.Task{}, err
		}
	}
	way := s.way(c)
	args := scoreArgs{
		Plan: c.plan, Places: places, Samples: f.data[0][0], Check: s.o.Contract,
		Way:    way.task(),
		Limits: Limits{s.o.Session.MaxBytes, s.o.Session.MaxSteps},
	}
	files := slices.Clone(f.data[0])
	for _, m := range []struct {
		model *graph.Model
		name  *string
	}{{s.float, &args.Float}, {c.base, &args.Base}} {
		if f.models[m.model] == nil {
			names, err := PutModel(ctx, f.folder, m.model)
			if err != nil {
				return job.Task{}, err
			}
			f.models[m.model] = names
		}
		*m.name = f.models[m.model][0]
		files = append(files, f.models[m.model]...)
	}
	if c.table != nil {
		if f.tables[c.table] == "" {
			names, err := f.folder.Put(".json", c.table.Save)
			if err != nil {
				return job.Task{}, err
			}
			f.tables[c.table] = names[0]
		}
		args.Table = f.tables[c.table]
		files = append(files, args.Table)
	}
	if c.means {
		if f.data[1] == nil {
			samples := func(ctx context.Context, f func(map[string]ops.Data) error) error {
				return s.o.Visit(ctx, s.o.Unseen, f)
			}
			var err error
			if f.data[1], err = f.folder.Put(".samples", func(path string) error { return saveVisits(ctx, path, samples) }); err != nil {
				return job.Task{}, err
			}
		}
		args.Visits = f.data[1][0]
		files = append(files, f.data[1]...)
	}
	slices.Sort(files)
	return f.folder.Task(ScoreTask, fmt.Sprintf("measure a candidate with %d quantized nodes, ranges by %s", c.plan.Quantized(), c.method), args, slices.Compact(files)...)
}

// PutModel makes m a file of tasks and returns the names of the file and of those
// beside it.
func PutModel(ctx context.Context, f *job.Folder, m *graph.Model) ([]string, error) {
	return f.Put(".onnx", func(path string) error { return onnxfile.Save(ctx, m, path, onnxfile.SaveOptions{}) })
}

// OpenModel opens what PutModel made. The caller closes it.
func OpenModel(path string) (*graph.Model, error) {
	m, err := onnxfile.Open(path)
	if err != nil {
		return nil, err
	}
	// The file says less about types than the model that it was written from.
	if _, err := ops.Infer(m); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// namedTensor is an input of a sample in a file, as a TensorProto.
type namedTensor struct {
	Name string
	Data []byte
}

// saveSamples writes samples of tensors, exactly.
func saveSamples(path string, list []map[string]ops.Data) error {
	out := make([][]namedTensor, len(list))
	for i, in := range list {
		for _, name := range slices.Sorted(maps.Keys(in)) {
			t, ok := in[name].(*tensor.Tensor)
			if !ok {
				return fmt.Errorf("input %q is no tensor, so it cannot be put into a file", name)
			}
			out[i] = append(out[i], namedTensor{name, onnxfile.EncodeTensor(name, t)})
		}
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(out); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o666)
}

// loadSamples reads what saveSamples wrote.
func loadSamples(path string) ([]map[string]ops.Data, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var in [][]namedTensor
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&in); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	out := make([]map[string]ops.Data, len(in))
	for i, list := range in {
		out[i] = map[string]ops.Data{}
		for _, x := range list {
			_, t, err := onnxfile.DecodeTensor(x.Data)
			if err != nil {
				return nil, fmt.Errorf("%s: %q: %w", path, x.Name, err)
			}
			out[i][x.Name] = t
		}
	}
	return out, nil
}

// Scorer does ScoreTasks and RoundTasks, one at a time. It keeps what the last ones needed.
type Scorer struct {
	session exec.SessionOptions
	mu      sync.Mutex
	models  job.Cache[*graph.Model]
	tables  job.Cache[*rangedTable]
	samples job.Cache[[]map[string]ops.Data]
	yards   job.Cache[*yardstick]
}

// rangedTable is a table with the ranges that are known of it.
type rangedTable struct {
	table  *calibration.Table
	ranges ranges
}

// NewScorer returns a Scorer that runs models as o says.
func NewScorer(o exec.SessionOptions) *Scorer {
	s := &Scorer{session: o}
	s.models = job.Cache[*graph.Model]{Most: 3, Drop: func(m *graph.Model) { m.Close() }}
	s.tables.Most, s.samples.Most, s.yards.Most = 3, 2, 1
	return s
}

// Close drops what the Scorer keeps.
func (s *Scorer) Close() {
	s.models.Close()
	s.tables.Close()
	s.samples.Close()
	s.yards.Close()
}

// Do does a ScoreTask or a RoundTask.
func (s *Scorer) Do(ctx context.Context, t *job.Task) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Kind == RoundTask {
		return s.round(ctx, t)
	}
	return s.measure(ctx, t)
}

// bounded returns how models run under limits.
func (s *Scorer) bounded(l Limits) exec.SessionOptions {
	o := s.session
	o.MaxBytes, o.MaxSteps = l.MaxBytes, l.MaxSteps
	return o
}

// visit returns samples that are in memory.
func visit(list []map[string]ops.Data) accuracy.Samples {
	return func(ctx context.Context, f func(map[string]ops.Data) error) error {
		for _, in := range list {
			if err := f(maps.Clone(in)); err != nil {
				return err
			}
		}
		return nil
	}
}

// saveVisits writes what samples gives.
func saveVisits(ctx context.Context, path string, samples accuracy.Samples) error {
	var list []map[string]ops.Data
	err := samples(ctx, func(in map[string]ops.Data) error {
		list = append(list, in)
		return nil
	})
	if err != nil {
		return err
	}
	return saveSamples(path, list)
}

func (s *Scorer) measure(ctx context.Context, t *job.Task) ([]byte, error) {
	var a scoreArgs
	if err := t.Decode(&a); err != nil {
		return nil, err
	}
	session := s.bounded(a.Limits)
	r := &scored{}
	use := func(y *yardstick, base *graph.Model, table *rangedTable, visits []map[string]ops.Data) error {
		way := a.Way.way(table.ranges, s.session.Threads)
		if a.Visits != "" {
			way.Means = func(params []quant.Params) (accuracy.Means, error) {
				return accuracy.MeasureMeans(ctx, base, a.Plan, params, visit(visits), session)
			}
		}
		m, _, bad, err := Apply(ctx, base, a.Plan, table.table, way)
		if r.Bad = len(bad) > 0; err != nil || r.Bad {
			return err
		}
		if m == nil {
			return fmt.Errorf("the plan of a task changes nothing")
		}
		score, compared, err := y.compare(ctx, m, a.Way.FitPairs, session, a.Places)
		if err != nil {
			return err
		}
		r.Bits, r.Short = math.Float64bits(score), a.Check.Check(y.kinds, compared.Outputs(), score)
		return nil
	}
	err := s.yardstick(ctx, t, &a, session, func(y *yardstick) error {
		return s.model(t, a.Base, func(base *graph.Model) error {
			return s.table(t, a.Table, func(table *rangedTable) error {
				return s.load(t, a.Visits, func(visits []map[string]ops.Data) error { return use(y, base, table, visits) })
			})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	return json.Marshal(r)
}

func (s *Scorer) model(t *job.Task, file string, f func(*graph.Model) error) error {
	return s.models.Use(t.Key(file), func() (*graph.Model, error) { return OpenModel(t.Path(file)) }, f)
}

func (s *Scorer) table(t *job.Task, file string, f func(*rangedTable) error) error {
	if file == "" {
		return f(&rangedTable{})
	}
	return s.tables.Use(t.Key(file), func() (*rangedTable, error) {
		table, err := calibration.Load(t.Path(file))
		return &rangedTable{table, ranges{}}, err
	}, f)
}

func (s *Scorer) load(t *job.Task, file string, f func([]map[string]ops.Data) error) error {
	if file == "" {
		return f(nil)
	}
	return s.samples.Use(t.Key(file), func() ([]map[string]ops.Data, error) { return loadSamples(t.Path(file)) }, f)
}

// yardstick calls f with what the candidate is held against.
func (s *Scorer) yardstick(ctx context.Context, t *job.Task, a *scoreArgs, session exec.SessionOptions, f func(*yardstick) error) error {
	return s.yards.Use(t.Key(a.Float)+" "+a.Samples, func() (y *yardstick, err error) {
		err = s.model(t, a.Float, func(m *graph.Model) error {
			return s.load(t, a.Samples, func(list []map[string]ops.Data) error {
				y, err = newYardstick(ctx, m, exec.Embedded{}, session, list)
				return err
			})
		})
		return y, err
	}, f)
}
