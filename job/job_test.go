package job_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/onnxq/onnxq/job"
)

func TestFolder(t *testing.T) {
	f, err := job.NewFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string) error {
		if err := os.WriteFile(path+".1a.data", []byte("weights"), 0o666); err != nil {
			return err
		}
		return os.WriteFile(path, []byte("model"), 0o666)
	}
	a, err := f.Put(".onnx", write)
	if err != nil || len(a) != 2 || a[1] != a[0]+".1a.data" {
		t.Fatalf("%q, %v", a, err)
	}
	b, err := f.Put(".onnx", write)
	if err != nil || b[0] == a[0] {
		t.Fatalf("%q again, %v", b, err)
	}
	task, err := f.Task("kind", "name", map[string]int{"n": 3}, a...)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(task.Path(a[0])); err != nil || string(data) != "model" {
		t.Errorf("%q, %v", data, err)
	}
	moved := task
	moved.Dir = filepath.Join("elsewhere", filepath.Base(task.Dir))
	if moved.Key(a[0]) != task.Key(a[0]) || task.Key(a[0]) == task.Key(b[0]) {
		t.Error("keys")
	}
	var args struct{ N int }
	if err := task.Decode(&args); err != nil || args.N != 3 {
		t.Error(args, err)
	}
	var wrong []int
	if err := task.Decode(&wrong); err == nil || !strings.Contains(err.Error(), `task "name"`) {
		t.Error(err)
	}
	if _, err := f.Task("kind", "name", func() {}); err == nil {
		t.Error("arguments without a JSON form")
	}
	if _, err := f.Put(".x", func(string) error { return os.ErrPermission }); !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(task.Dir); !os.IsNotExist(err) {
		t.Error("the folder is left:", err)
	}
}

// Values are made once while they are kept, failures are not kept, and what is
// in use is not dropped.
func TestCache(t *testing.T) {
	var made, dropped atomic.Int32
	c := job.Cache[*int]{Most: 2, Drop: func(*int) { dropped.Add(1) }}
	use := func(key string, f func() error) error {
		return c.Use(key, func() (*int, error) { made.Add(1); return new(int), nil }, func(*int) error { return f() })
	}
	none := func() error { return nil }
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := use("a", none); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d times", made.Load())
	}
	failed := errors.New("failed")
	if err := use("a", func() error { return failed }); !errors.Is(err, failed) || made.Load() != 1 {
		t.Error(err, made.Load())
	}
	for range 2 {
		err := c.Use("bad", func() (*int, error) { made.Add(1); return nil, failed }, func(*int) error { t.Error("used"); return nil })
		if !errors.Is(err, failed) {
			t.Error(err)
		}
	}
	if made.Load() != 3 {
		t.Errorf("a failure was kept: made %d", made.Load())
	}
	err := use("a", func() error {
		for i := range 4 {
			if err := use(fmt.Sprint(i), none); err != nil {
				return err
			}
		}
		return use("a", none)
	})
	if err != nil || made.Load() != 7 || dropped.Load() != 3 {
		t.Errorf("made %d, dropped %d, %v", made.Load(), dropped.Load(), err)
	}
	c.Close()
	if dropped.Load() != 5 {
		t.Errorf("dropped %d of 5", dropped.Load())
	}
}
