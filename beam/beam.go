// Package beam runs the work of onnxq as Apache Beam pipelines: on prism in this
// process, or on any portable runner that Beam's flags name.
//
// Tasks (see package job) are the elements. A DoFn does them with the one
// onnxq.Worker of its process, which keeps the compiled program from element to
// element; tables of parts of the samples are combined by MergeFn, other results
// go back to the caller through files. A folder for these, of any Beam
// filesystem, serves workers on other machines.
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

// results is the name behind a job's folder of the files of results.
const results = "results"

// stage makes the elements of tasks, whose files it puts where workers find
// them. Clean removes what it put there, and the results.
func (e Engine) stage(ctx context.Context, tasks []job.Task) (list [][]byte, outs []string, clean func(), err error) {
	var made []string
	local := ""
	clean = func() {
		remove(context.WithoutCancel(ctx), made)
		if local != "" {
			os.RemoveAll(local)
		}
	}
	defer func() {
		if err != nil {
			clean()
		}
	}()
	done := map[string]bool{}
	dir := e.Staging
	if dir == "" {
		if local, err = os.MkdirTemp("", "onnxq-beam-*"); err != nil {
			return nil, nil, clean, err
		}
		dir = local
	} else if dir, err = unique(dir); err != nil {
		return nil, nil, clean, err
	}
	for i, t := range tasks {
		x := element{Index: i, Task: t, Result: join(dir, fmt.Sprintf("%s/%d", results, i))}
		if e.Staging != "" {
			x.Staging = join(dir, filepath.Base(t.Dir))
			for _, f := range t.Files {
				if to := join(x.Staging, f); !done[to] {
					done[to] = true
					made = append(made, to)
					if err := upload(ctx, t.Path(f), to); err != nil {
						return nil, nil, clean, err
					}
				}
			}
		}
		x.Task.Result = nil
		b, err := json.Marshal(x)
		if err != nil {
			return nil, nil, clean, err
		}
		list, outs, made = append(list, b), append(outs, x.Result), append(made, x.Result)
	}
	return list, outs, clean, nil
}

// unique returns a folder in dir that no other job has.
func unique(dir string) (string, error) {
	f, err := os.MkdirTemp("", "onnxq-beam-*")
	if err != nil {
		return "", err
	}
	return join(dir, filepath.Base(f)), os.Remove(f)
}

// Run is a job.Runner: it does the tasks in a pipeline.
func (e Engine) Run(ctx context.Context, tasks []job.Task) error {
	list, outs, clean, err := e.stage(ctx, tasks)
	if err != nil {
		return err
	}
	defer clean()
	p, s := beam.NewPipelineWithRoot()
	col := beam.Reshuffle(s, beam.CreateList(s, list))
	beam.ParDo0(s, &taskFn{Threads: e.Threads}, col)
	if err := run(ctx, p); err != nil {
		return err
	}
	for i := range tasks {
		if tasks[i].Result, err = read(ctx, outs[i]); err != nil {
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

// here reports whether tasks are done in this process.
func here() bool {
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
// of parts → the table. Where out is not "" it is saved there, in any
// filesystem.
func (e Engine) Calibrate(ctx context.Context, model, out string, o onnxq.CalibrateOptions) (*calibration.Table, error) {
	if o.Parts == 0 && here() {
		o.Parts = partsHere
	}
	c, err := onnxq.NewCalibrateJob(ctx, model, o)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	list, outs, clean, err := e.stage(ctx, c.Tasks)
	if err != nil {
		return nil, err
	}
	defer clean()
	p, s := beam.NewPipelineWithRoot()
	parts := beam.ParDo(s, &calibrateFn{taskFn{Threads: e.Threads}}, beam.Reshuffle(s, beam.CreateList(s, list)))
	beam.ParDo0(s, &saveFn{outs[0]}, beam.Combine(s, &MergeFn{}, parts))
	if err := run(ctx, p); err != nil {
		return nil, err
	}
	b, err := read(ctx, outs[0])
	if err != nil {
		return nil, err
	}
	part, err := calibration.Decode(b)
	if err != nil {
		return nil, err
	}
	t, err := c.Table(part)
	if err != nil {
		return nil, err
	}
	if lacks := t.Lacks(); lacks != "" && o.Shards <= 1 {
		return nil, fmt.Errorf("the pipeline lost samples: %s", lacks)
	}
	if out == "" {
		return t, nil
	}
	return t, write(ctx, out, bytes.NewReader(b))
}

// process is what the DoFns of this process share.
var process struct {
	mu     sync.Mutex
	worker *onnxq.Worker
	cache  string // folder of copied files
	users  int
}

// taskFn does tasks and writes their results to files.
type taskFn struct {
	Threads int
	worker  *onnxq.Worker
	cache   string
}

// Setup takes part in the Worker of this process.
func (f *taskFn) Setup() error {
	process.mu.Lock()
	defer process.mu.Unlock()
	if process.worker == nil {
		dir, err := os.MkdirTemp("", "onnxq-worker-*")
		if err != nil {
			return err
		}
		n := f.Threads
		if n <= 0 {
			n = runtime.GOMAXPROCS(0)
		}
		process.worker, process.cache = onnxq.NewWorker(n), dir
	}
	process.users++
	f.worker, f.cache = process.worker, process.cache
	return nil
}

// Teardown ends that; the last one removes what is kept.
func (f *taskFn) Teardown() error {
	process.mu.Lock()
	defer process.mu.Unlock()
	if process.users--; process.users > 0 || process.worker == nil {
		return nil
	}
	process.worker.Close()
	err := os.RemoveAll(process.cache)
	process.worker, process.cache = nil, ""
	return err
}

// open reads an element and gets the files of its task.
func (f *taskFn) open(ctx context.Context, b []byte) (*element, error) {
	var x element
	if err := json.Unmarshal(b, &x); err != nil {
		return nil, err
	}
	if x.Staging != "" {
		x.Task.Dir = filepath.Join(f.cache, filepath.Base(x.Task.Dir))
		for _, name := range x.Task.Files {
			if err := download(ctx, join(x.Staging, name), x.Task.Path(name)); err != nil {
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
	if err := f.worker.Do(ctx, &x.Task); err != nil {
		return err
	}
	return write(ctx, x.Result, bytes.NewReader(x.Task.Result))
}

// calibrateFn does tasks that give tables.
type calibrateFn struct{ taskFn }

// ProcessElement does one task.
func (f *calibrateFn) ProcessElement(ctx context.Context, b []byte, emit func(Partial)) error {
	x, err := f.open(ctx, b)
	if err != nil {
		return err
	}
	t, err := f.worker.Calibrate(ctx, &x.Task)
	if err != nil {
		return err
	}
	emit(Partial{[]*calibration.Table{t}})
	return nil
}

// saveFn writes a table to a file.
type saveFn struct{ To string }

// ProcessElement writes one table.
func (f *saveFn) ProcessElement(ctx context.Context, p Partial) error {
	b, err := encodePartial(p)
	if err != nil {
		return err
	}
	return write(ctx, f.To, bytes.NewReader(b))
}
