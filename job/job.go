// Package job describes work that is divided among processes: a Task says what
// to do as JSON and names the files it needs, so that any engine that ships bytes
// can run it, and a Runner is such an engine. What kinds of tasks there are, and
// how each is done, is known to the packages that make them; Worker of the front
// door does them all.
package job

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Task is a piece of a job. It depends on nothing but its fields and the files
// that they name, and gives the same Result wherever and however often it is
// done on processors of the same kind.
type Task struct {
	// Kind says how Args are read.
	Kind string `json:"kind"`
	// Name says in messages what the task is about.
	Name string          `json:"name"`
	Args json.RawMessage `json:"args"`
	// Dir is the folder that holds Files. They are complete before the task is
	// handed out and never change; no two jobs have folders of the same last
	// name, so that copies can be kept by that and the file's name.
	Dir   string   `json:"dir"`
	Files []string `json:"files"`
	// Result is set by who does the task.
	Result []byte `json:"result,omitempty"`
}

// Runner does all tasks, in any order and at any place, and sets the Result of
// each. It may do a task several times. The first error of a task that cannot
// be done ends the job.
type Runner func(ctx context.Context, tasks []Task) error

// Run hands the tasks to r. It is an error if one is left without a result.
func Run(ctx context.Context, r Runner, tasks []Task) error {
	if err := r(ctx, tasks); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	for i := range tasks {
		if tasks[i].Result == nil {
			return fmt.Errorf("the job runner gave no result for the task %q", tasks[i].Name)
		}
	}
	return nil
}

// Folder holds the files of a job's tasks.
type Folder struct {
	dir  string
	next int
}

// NewFolder makes an empty folder in dir; "" is the system's for temporary
// files. Close removes it.
func NewFolder(dir string) (*Folder, error) {
	if dir != "" {
		var err error
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, err
		}
	}
	path, err := os.MkdirTemp(dir, "onnxq-job-*")
	if err != nil {
		return nil, err
	}
	return &Folder{dir: path}, nil
}

// Close removes the folder.
func (f *Folder) Close() error { return os.RemoveAll(f.dir) }

// Put makes a file, which write is to write to the given path, and returns the
// names of it and of what write put beside it with a name that begins so.
func (f *Folder) Put(ext string, write func(path string) error) ([]string, error) {
	f.next++
	name := fmt.Sprintf("%d%s", f.next, ext)
	if err := write(filepath.Join(f.dir, name)); err != nil {
		return nil, err
	}
	beside, err := filepath.Glob(filepath.Join(f.dir, name+".*"))
	names := []string{name}
	for _, path := range beside {
		names = append(names, filepath.Base(path))
	}
	return names, err
}

// Task returns a task on files of the folder.
func (f *Folder) Task(kind, name string, args any, files ...string) (Task, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return Task{}, fmt.Errorf("task %q: %w", name, err)
	}
	return Task{Kind: kind, Name: name, Args: b, Dir: f.dir, Files: files}, nil
}

// Decode reads Args.
func (t *Task) Decode(args any) error {
	if err := json.Unmarshal(t.Args, args); err != nil {
		return fmt.Errorf("task %q: %w", t.Name, err)
	}
	return nil
}

// Path returns where a file of the task is.
func (t *Task) Path(file string) string { return filepath.Join(t.Dir, file) }

// Key names a file of the task, and is the same for tasks that have it in
// common, wherever copies of it are.
func (t *Task) Key(file string) string { return filepath.Base(t.Dir) + "/" + file }
