package beam

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/apache/beam/sdks/v2/go/pkg/beam/io/filesystem"
	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/graph/onnxfile"
)

// bucket is a filesystem in memory that knows of no folders, tells what it was
// asked for, and refuses what a test says.
type bucket struct {
	mu    sync.Mutex
	files map[string][]byte
	reads map[string]int
	deny  string
}

var testBucket = &bucket{files: map[string][]byte{}, reads: map[string]int{}}

func init() {
	filesystem.Register("bucket", func(context.Context) filesystem.Interface { return testBucket })
	filesystem.Register("broken", func(context.Context) filesystem.Interface { panic("no credentials") })
}

var errDenied = errors.New("access denied")

func (b *bucket) Close() error { return nil }

func (b *bucket) List(_ context.Context, glob string) (out []string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name := range b.files {
		if ok, err := path.Match(glob, name); err != nil || ok {
			out = append(out, name)
		}
	}
	return out, nil
}

func (b *bucket) OpenRead(_ context.Context, name string) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads[name]++
	if b.deny != "" && strings.Contains(name, b.deny) {
		return nil, errDenied
	}
	data, ok := b.files[name]
	if !ok {
		return nil, errors.New("404")
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

type bucketWriter struct {
	bytes.Buffer
	close func([]byte)
}

func (w *bucketWriter) Close() error { w.close(w.Bytes()); return nil }

func (b *bucket) OpenWrite(_ context.Context, name string) (io.WriteCloser, error) {
	return &bucketWriter{close: func(data []byte) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.files[name] = bytes.Clone(data)
	}}, nil
}

func (b *bucket) Size(_ context.Context, name string) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if data, ok := b.files[name]; ok {
		return int64(len(data)), nil
	}
	return -1, errors.New("404")
}

func (b *bucket) Remove(_ context.Context, name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.files, name)
	return nil
}

// fill empties the bucket and puts what is below a folder to a URL.
func (b *bucket) fill(t *testing.T, folders map[string]string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.files)
	clear(b.reads)
	b.deny = ""
	for dir, url := range folders {
		err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			b.files[url+"/"+name], err = os.ReadFile(filepath.Join(dir, name))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// external saves a model with its weights beside it and returns the folder.
func external(t *testing.T, model string) string {
	t.Helper()
	m, err := onnxfile.Open(model)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dir := t.TempDir()
	if err := onnxfile.Save(t.Context(), m, filepath.Join(dir, "model.onnx"), onnxfile.SaveOptions{External: onnxfile.ExternalAlways}); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Fatalf("%v, %v", entries, err)
	}
	return dir
}

// temporary has temporary files in a folder that has to be empty in the end.
func temporary(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, err := filepath.Glob(filepath.Join(dir, "*onnxq*")); err != nil || len(left) > 0 {
			t.Errorf("temporary files are left: %q, %v", left, err)
		}
	})
}

// unnamed returns the file of a table without the names of its sources.
func unnamed(t *testing.T, table *calibration.Table) []byte {
	t.Helper()
	c := *table
	c.Sources = nil
	return encode(t, &c)
}

// Model, external data, samples, table and the files of tasks are in a store: the
// table is that of local files, each sample is read once, and nothing is left.
func TestCalibrateStored(t *testing.T) {
	temporary(t)
	s := sampleModels(t)[0]
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{s.data}, Parts: 3}}
	local, err := onnxq.CalibrateFile(t.Context(), s.model, "", o)
	if err != nil {
		t.Fatal(err)
	}
	testBucket.fill(t, map[string]string{external(t, s.model): "bucket://b/m", s.data: "bucket://b/samples/deep"})
	samples := len(local.Samples) + len(local.Skipped)
	for _, staging := range []string{"", "bucket://b/tmp"} {
		clear(testBucket.reads)
		o.Data = []string{"bucket://b/samples"}
		table, err := Engine{Staging: staging}.Calibrate(t.Context(), "bucket://b/m/model.onnx", "bucket://b/out/t.json", o)
		if err != nil {
			t.Fatal(err)
		}
		saved := testBucket.files["bucket://b/out/t.json"]
		if !bytes.Equal(saved, encode(t, table)) {
			t.Error("another table is saved")
		}
		if table.Data == local.Data {
			t.Error("the folder in between is not part of the names")
		}
		n := 0
		for name, times := range testBucket.reads {
			if strings.HasPrefix(name, "bucket://b/samples/") {
				n++
				if times != 1 {
					t.Errorf("%s was read %d times", name, times)
				}
			}
		}
		if n < samples {
			t.Errorf("%d of %d samples were read", n, samples)
		}
		o.Data = []string{"bucket://b/samples/deep/"}
		if table, err = (Engine{}).Calibrate(t.Context(), s.model, "", o); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(unnamed(t, table), unnamed(t, local)) {
			t.Error("the table is not that of local files")
		}
	}
	for name := range testBucket.files {
		if strings.HasPrefix(name, "bucket://b/tmp/") {
			t.Errorf("%s is left", name)
		}
	}
}

// A model that is quantized from a store to it is that of local files, and so are
// those of many.
func TestQuantizeStored(t *testing.T) {
	temporary(t)
	s := sampleModels(t)[0]
	dir := t.TempDir()
	o := onnxq.Options{Data: []string{s.data}, Mode: onnxq.Static, External: onnxfile.ExternalAlways}
	if _, err := onnxq.Quantize(t.Context(), s.model, filepath.Join(dir, "out.onnx"), o); err != nil {
		t.Fatal(err)
	}
	same := func(folder string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 {
			t.Fatalf("%v, %v", entries, err)
		}
		for _, e := range entries {
			want, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil || !bytes.Equal(testBucket.files[folder+"/"+e.Name()], want) {
				t.Errorf("%s is another one, %v", e.Name(), err)
			}
		}
	}
	testBucket.fill(t, map[string]string{external(t, s.model): "bucket://b/m", s.data: "bucket://b/samples"})
	o.Data, o.Report = []string{"bucket://b/samples"}, "bucket://b/report.html"
	if _, err := (Engine{}).Quantize(t.Context(), "bucket://b/m/model.onnx", "bucket://b/one/out.onnx", o); err != nil {
		t.Fatal(err)
	}
	same("bucket://b/one")
	if !bytes.Contains(testBucket.files["bucket://b/report.html"], []byte("<html")) {
		t.Error("no report")
	}
	o.Report = ""
	testBucket.files["bucket://b/m/out.onnx"] = testBucket.files["bucket://b/m/model.onnx"]
	testBucket.files["bucket://b/m/bad.onnx"] = []byte("no model")
	lost := bytes.Replace(testBucket.files["bucket://b/m/model.onnx"], []byte(".data"), []byte(".gone"), -1)
	testBucket.files["bucket://b/m/lost.onnx"] = lost
	ins, outs, err := Pair(t.Context(), []string{"bucket://b/m/*.onnx"}, "bucket://b/many/")
	if err != nil || len(ins) != 4 || !slices.IsSorted(ins) {
		t.Fatal(ins, outs, err)
	}
	list, err := Engine{}.Models(t.Context(), ins, outs, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range list {
		name := path.Base(ins[i])
		bad := name == "bad.onnx" || name == "lost.onnx"
		if bad != (r.Error != "") || bad && !strings.Contains(r.Error, ins[i]) || strings.Contains(r.Error, os.TempDir()) {
			t.Errorf("%s: %q", ins[i], r.Error)
		}
		if _, made := testBucket.files[outs[i]]; made == bad {
			t.Errorf("%s: made is %v", outs[i], made)
		}
	}
	same("bucket://b/many")
	// A store that fails is no fault of a model.
	testBucket.deny = ".data"
	if _, err := (Engine{}).Models(t.Context(), []string{"bucket://b/m/model.onnx"}, []string{"bucket://b/many/model.onnx"}, o); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Error(err)
	}
	if _, err := (Engine{}).Quantize(t.Context(), "bucket://b/m/model.onnx", "bucket://b/x.onnx", o); !errors.Is(err, errDenied) {
		t.Error(err)
	}
	testBucket.deny = ""
	if _, err := (Engine{}).Quantize(t.Context(), "bucket://b/m/model.onnx", "bucket://b/m/model.onnx", o); err == nil {
		t.Error("the output replaced the input")
	}
}

// Sources in a store are listed and named as those in folders are.
func TestStoredSources(t *testing.T) {
	temporary(t)
	root := t.TempDir()
	put := func(name, data string) {
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o777), os.WriteFile(name, []byte(data), 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		put(fmt.Sprintf("lines/%d.jsonl", i), "{\"x\": [1, 2]}\n{\"x\": [3, 4]}\n")
		put(fmt.Sprintf("lines/a/%d.jsonl", i), "[5, 6]\n")
		put(fmt.Sprintf("protos/set_%d/input_0.pb", i), "\x08\x02\x10\x01J\x08\x00\x00\x80?\x00\x00\x80@")
	}
	put("lines/a/.hidden/0.jsonl", "no JSON")
	put("lines/README", "text")
	put("lines/output_0.pb", "passed over")
	put("mixed/a.npz", "")
	put("mixed/b.npy", "")
	put("other/README", "")
	testBucket.fill(t, map[string]string{root: "bucket://b"})
	store := newFiles(t.TempDir())
	defer store.close()
	inputs := []calibration.Input{{Name: "x", Shape: []int{2}}}
	m, err := onnxfile.Open(filepath.Join("..", "models", "digits", "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	inputs[0].DType = onnxq.Inputs(m)[0].DType // float32
	for _, name := range []string{"lines", "lines/3.jsonl", "protos", "protos/set_1", "protos/set_1/input_0.pb", "mixed", "other", "other/README", "none"} {
		co := calibration.Options{ReadTensor: onnxfile.ReadTensor, Store: store}
		want, err1 := calibration.Open(t.Context(), []string{filepath.Join(root, name)}, inputs, co)
		got, err2 := calibration.Open(t.Context(), []string{"bucket://b/" + name}, inputs, co)
		if err1 != nil || err2 != nil {
			text := strings.ReplaceAll(fmt.Sprint(err1), root, "bucket://b")
			if text != fmt.Sprint(err2) {
				t.Errorf("%s: %v, want %v", name, err2, err1)
			}
			continue
		}
		if want.Len() != got.Len() || want.Hash() != got.Hash() {
			t.Errorf("%s: %d samples, want %d, or another hash", name, got.Len(), want.Len())
			continue
		}
		b, err := json.Marshal(got.Listed())
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &co.Listed); err != nil {
			t.Fatal(err)
		}
		again, err := calibration.Open(t.Context(), []string{"bucket://b/" + name}, inputs, co)
		if err != nil || again.Hash() != want.Hash() {
			t.Errorf("%s: from its list: %v", name, err)
			continue
		}
		for i := range want.Len() {
			a, err1 := want.Load(t.Context(), i)
			b, err2 := again.Load(t.Context(), i)
			if err1 != nil || err2 != nil || !bytes.Equal(a["x"].Bytes(), b["x"].Bytes()) || want.Sample(i).Name != again.Sample(i).Name {
				t.Errorf("%s: sample %d: %v, %v", name, i, err1, err2)
			}
		}
		if n := strings.ReplaceAll(strings.Join(want.Notes(), "\n"), root, "bucket://b"); n != strings.Join(got.Notes(), "\n") {
			t.Errorf("%s: notes %q, want %q", name, got.Notes(), n)
		}
		got.Close()
		want.Close()
		again.Close()
	}
}

// What a store cannot give is an error that names it.
func TestStoredErrors(t *testing.T) {
	temporary(t)
	s := sampleModels(t)[0]
	testBucket.fill(t, map[string]string{filepath.Dir(s.model): "bucket://b/m", s.data: "bucket://b/samples"})
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range testBucket.files {
			if strings.HasPrefix(name, "bucket://b/samples/") && !yield(name) {
				return
			}
		}
	})
	for _, c := range []struct{ model, data, deny, want string }{
		{"bucket://b/m/none.onnx", "bucket://b/samples", "", "bucket://b/m/none.onnx"},
		{"bucket://b/..", "bucket://b/samples", "", "not the name of a file"},
		{"bucket://b/m/model.onnx", "bucket://b/none", "", "bucket://b/none: no such file"},
		{"bucket://b/m/model.onnx", "bucket://b/samp*", "", "patterns"},
		{"bucket://b/m/model.onnx", "broken://b", "", "no credentials"},
		{"broken://b/m.onnx", "bucket://b/samples", "", "no credentials"},
		{"unknown://b/m.onnx", "bucket://b/samples", "", "unknown://b/m.onnx"},
		{"bucket://b/m/model.onnx", "bucket://b/samples", names[3], names[3]},
	} {
		testBucket.deny = c.deny
		o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{c.data}, Parts: 2}}
		if _, err := (Engine{}).Calibrate(t.Context(), c.model, "", o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v, want %q", c.model, c.data, err, c.want)
		}
	}
	testBucket.deny = ""
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{"bucket://b/samples"}}}
	if _, err := onnxq.CalibrateFile(t.Context(), s.model, "", o); err == nil || !strings.Contains(err.Error(), "is a URL") {
		t.Error(err)
	}
}
