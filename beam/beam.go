// Package beam runs the work of onnxq as Apache Beam pipelines: on prism in this
// process, or on any portable runner that Beam's flags name.
//
// Tasks (see package job) are the elements. A DoFn does them with the one
// onnxq.Worker of its process, which keeps the compiled program from element to
// element; tables of parts of the samples are combined by MergeFn, other results
// go back to the caller through files. A folder for these, of any Beam
// filesystem, serves workers on other machines. Models, samples and outputs are
// paths that all workers see, or URLs of Beam filesystems that the program
// imports.
//
// As with every pipeline, a program parses its flags and calls Init of Beam's own
// package first: in processes that are workers that does not return.
package beam

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/options/jobopts"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/register"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/runners"

	// Reflection is spared where types are known, and these runners and the
	// filesystem of this machine are there.
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/core/runtime/exec/optimized"
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/io/filesystem/local"
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/runners/flink"
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/runners/prism"
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/runners/spark"
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/runners/universal"
	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/job"
)

func init() {
	register.DoFn3x1[context.Context, []byte, func(Partial), error](&calibrateFn{})
	register.DoFn2x1[context.Context, []byte, error](&taskFn{})
	register.DoFn2x1[context.Context, Partial, error](&saveFn{})
	register.Emitter1[Partial]()
}

// Engine says how pipelines run, besides Beam's own flags.
type Engine struct {
	// Staging is a folder that all workers reach, of any Beam filesystem. It
	// takes the files of tasks and results. With "" these stay in the folders
	// where they are made, which then all workers have to see.
	Staging string
	// Threads is the number of threads of a task; 0 means one per processor.
	Threads int
}

// element is a task in a pipeline.
type element struct {
	Index   int      `json:"index"`
	Task    job.Task `json:"task"`
	Staging string   `json:"staging,omitempty"` // where its files are; "": in Task.Dir
	Result  string   `json:"result"`            // the file for the result
}

// scratch has the files of a pipeline besides those of tasks.
type scratch struct {
	*shared
	dir     string   // a folder of any filesystem
	own     bool     // it is of this machine and this pipeline alone
	made    []string // files that have to be removed else
	results int
}

// begin makes a folder for the results of a pipeline. End it.
func (e Engine) begin(ctx context.Context) (*scratch, error) {
	h, err := enter(e.Threads, jobs)
	if err != nil {
		return nil, err
	}
	s := &scratch{shared: h, own: e.Staging == ""}
	if s.dir, err = os.MkdirTemp("", "onnxq-beam-*"); err == nil && !s.own {
		// Its name is one that no other job has.
		err = os.Remove(s.dir)
		s.dir = join(e.Staging, filepath.Base(s.dir))
	}
	if err != nil {
		h.leave(jobs)
		return nil, err
	}
	return s, nil
}

// result returns the file for the i-th result.
func (s *scratch) result(i int) string {
	s.results = max(s.results, i+1)
	return join(s.dir, fmt.Sprintf("results/%d", i))
}

// end removes all files.
func (s *scratch) end(ctx context.Context) {
	if s.own {
		os.RemoveAll(s.dir)
	} else {
		for i := range s.results {
			s.made = append(s.made, s.result(i))
		}
		s.files.remove(context.WithoutCancel(ctx), s.made)
	}
	s.leave(jobs)
}

// elements makes those of tasks, whose files it puts where workers find them.
func (s *scratch) elements(ctx context.Context, tasks []job.Task) ([][]byte, error) {
	var list [][]byte
	done := map[string]bool{}
	for i, t := range tasks {
		x := element{Index: i, Task: t, Result: s.result(i)}
		if !s.own {
			x.Staging = join(s.dir, filepath.Base(t.Dir))
			for _, f := range t.Files {
				if to := join(x.Staging, f); !done[to] {
					done[to] = true
					s.made = append(s.made, to)
					if err := s.files.upload(ctx, t.Path(f), to); err != nil {
						return nil, err
					}
				}
			}
		}
		x.Task.Result = nil
		b, err := json.Marshal(x)
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

// Run is a job.Runner: it does the tasks in a pipeline.
func (e Engine) Run(ctx context.Context, tasks []job.Task) error {
	s, err := e.begin(ctx)
	if err != nil {
		return err
	}
	defer s.end(ctx)
	list, err := s.elements(ctx, tasks)
	if err != nil {
		return err
	}
	p, root := beam.NewPipelineWithRoot()
	beam.ParDo0(root, &taskFn{Threads: e.Threads}, beam.Reshuffle(root, beam.CreateList(root, list)))
	if err := run(ctx, p); err != nil {
		return err
	}
	for i := range tasks {
		if tasks[i].Result, err = s.files.read(ctx, s.result(i)); err != nil {
			return err
		}
	}
	return nil
}

// partsHere is the number of parts that samples are cut into where all of them
// run in this process: each goes through all processors, and has a table.
const partsHere = 4

func runner() string {
	if name := *runners.Runner; name != "" {
		return name
	}
	return "prism"
}

// inProcess reports whether tasks are done in this process.
func inProcess() bool {
	kind := strings.ToLower(*jobopts.EnvironmentType)
	return strings.HasPrefix(strings.ToLower(runner()), "prism") && (kind == "" || kind == "loopback")
}

// run runs a pipeline and returns soon after its context has ended.
func run(ctx context.Context, p *beam.Pipeline) error {
	name := runner()
	done := make(chan error, 1)
	go func() {
		_, err := beam.Run(ctx, name, p)
		done <- err
	}()
	select {
	case err := <-done:
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Calibrate does what onnxq.CalibrateFile does, in a pipeline: samples → tables
// of parts → the table. Where out is not "" it is saved there. All paths may be
// of any Beam filesystem.
func (e Engine) Calibrate(ctx context.Context, model, out string, o onnxq.CalibrateOptions) (t *calibration.Table, err error) {
	if o.Parts == 0 && inProcess() {
		o.Parts = partsHere
	}
	s, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer s.end(ctx)
	o.Source.Store = s.files
	var c *onnxq.CalibrateJob
	err = s.files.withModel(ctx, model, o.Limits, func(model string) error {
		c, err = onnxq.NewCalibrateJob(ctx, model, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	list, err := s.elements(ctx, c.Tasks)
	if err != nil {
		return nil, err
	}
	p, root := beam.NewPipelineWithRoot()
	parts := beam.ParDo(root, &calibrateFn{taskFn{Threads: e.Threads}}, beam.Reshuffle(root, beam.CreateList(root, list)))
	beam.ParDo0(root, &saveFn{taskFn{Threads: e.Threads}, s.result(0)}, beam.Combine(root, &MergeFn{}, parts))
	if err := run(ctx, p); err != nil {
		return nil, err
	}
	b, err := s.files.read(ctx, s.result(0))
	if err != nil {
		return nil, err
	}
	part, err := calibration.Decode(b)
	if err != nil {
		return nil, err
	}
	if t, err = c.Table(part); err != nil {
		return nil, err
	}
	if lacks := t.Lacks(); lacks != "" && o.Shards <= 1 {
		return nil, fmt.Errorf("the pipeline lost samples: %s", lacks)
	}
	if out == "" {
		return t, nil
	}
	return t, s.files.write(ctx, out, bytes.NewReader(b))
}

// shared is what the DoFns and the jobs of a process have in common.
type shared struct {
	worker *onnxq.Worker
	files  *files
	// jobs and fns count its users. Runners do not tear down all DoFns, so that
	// these keep it only in processes without jobs.
	jobs, fns int
}

var process struct {
	mu     sync.Mutex
	shared *shared // nil without users
}

// enter takes part in what this process shares; the first one says on how many
// threads tasks run, with 0 for one per processor.
func enter(threads int, users func(*shared) *int) (*shared, error) {
	process.mu.Lock()
	defer process.mu.Unlock()
	if process.shared == nil {
		dir, err := os.MkdirTemp("", "onnxq-worker-*")
		if err != nil {
			return nil, err
		}
		if threads <= 0 {
			threads = runtime.GOMAXPROCS(0)
		}
		s := &shared{worker: onnxq.NewWorker(threads), files: newFiles(dir)}
		s.worker.Store = s.files
		process.shared = s
	}
	*users(process.shared)++
	return process.shared, nil
}

// leave ends what enter began; what is not used any more is removed.
func (s *shared) leave(users func(*shared) *int) error {
	process.mu.Lock()
	defer process.mu.Unlock()
	n := users(s)
	if *n--; *n > 0 || s.jobs > 0 || process.shared != s {
		return nil
	}
	process.shared = nil
	s.worker.Close()
	return s.files.close()
}

// The users of shared.
func jobs(s *shared) *int { return &s.jobs }
func fns(s *shared) *int  { return &s.fns }

// taskFn does tasks and writes their results to files.
type taskFn struct {
	Threads int
	shared  *shared
}

// Setup takes part in what the process shares.
func (f *taskFn) Setup() (err error) {
	f.shared, err = enter(f.Threads, fns)
	return err
}

// Teardown ends that.
func (f *taskFn) Teardown() error {
	if f.shared == nil {
		return nil
	}
	s := f.shared
	f.shared = nil
	return s.leave(fns)
}

// open reads an element and gets the files of its task.
func (f *taskFn) open(ctx context.Context, b []byte) (*element, error) {
	var x element
	if err := json.Unmarshal(b, &x); err != nil {
		return nil, err
	}
	if x.Staging != "" {
		x.Task.Dir = filepath.Join(f.shared.files.dir, filepath.Base(x.Task.Dir))
		for _, name := range x.Task.Files {
			if err := f.shared.files.download(ctx, join(x.Staging, name), x.Task.Path(name)); err != nil {
				return nil, err
			}
		}
	}
	return &x, nil
}

// ProcessElement does one task.
func (f *taskFn) ProcessElement(ctx context.Context, b []byte) error {
	x, err := f.open(ctx, b)
	if err != nil {
		return err
	}
	if err := f.shared.worker.Do(ctx, &x.Task); err != nil {
		return err
	}
	return f.shared.files.write(ctx, x.Result, bytes.NewReader(x.Task.Result))
}

// calibrateFn does tasks that give tables.
type calibrateFn struct{ taskFn }

// ProcessElement does one task.
func (f *calibrateFn) ProcessElement(ctx context.Context, b []byte, emit func(Partial)) error {
	x, err := f.open(ctx, b)
	if err != nil {
		return err
	}
	t, err := f.shared.worker.Calibrate(ctx, &x.Task)
	if err != nil {
		return err
	}
	emit(Partial{[]*calibration.Table{t}})
	return nil
}

// saveFn writes a table to a file.
type saveFn struct {
	taskFn
	To string
}

// ProcessElement writes one table.
func (f *saveFn) ProcessElement(ctx context.Context, p Partial) error {
	b, err := encodePartial(p)
	if err != nil {
		return err
	}
	return f.shared.files.write(ctx, f.To, bytes.NewReader(b))
}
