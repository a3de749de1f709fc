package onnxfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/onnxpb"
	"github.com/onnxq/onnxq/tensor"
)

var ctx = context.Background()

// weights returns a model y = x + w0 + w1 ... with float weights of the given
// numbers of elements, whose values count up from 0 through all of them.
func weights(sizes ...int) *graph.Model {
	m := graph.NewModel(8, graph.Opset{Version: 17})
	g := m.Graph
	g.Name = "weights"
	v := g.NewValue("x", graph.TensorType(tensor.Float32, graph.Shape{graph.Sym("N")}))
	g.AddInput(v)
	next := float32(0)
	for i, n := range sizes {
		t := tensor.New(tensor.Float32, n)
		for k := range tensor.As[float32](t) {
			tensor.As[float32](t)[k] = next
			next++
		}
		w := g.NewInitializer(fmt.Sprint("w", i), t)
		y := g.NewValue(fmt.Sprint("y", i), graph.Type{})
		g.Append(g.NewNode(graph.OpKey{Type: "Add"}, "", []*graph.Value{v, w}, []*graph.Value{y}))
		v = y
	}
	v.Type = graph.TensorType(tensor.Float32, graph.Shape{graph.Sym("N")})
	g.AddOutput(v)
	return m
}

func save(t *testing.T, m *graph.Model, path string, opt SaveOptions) {
	t.Helper()
	if err := Save(ctx, m, path, opt); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string) *graph.Model {
	t.Helper()
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func sameWeights(t *testing.T, a, b *graph.Model) {
	t.Helper()
	x, y := a.Graph.Initializers(), b.Graph.Initializers()
	if len(x) != len(y) {
		t.Fatalf("%d initializers, want %d", len(y), len(x))
	}
	for i := range x {
		if x[i].Name() != y[i].Name() || !x[i].Const.Equal(y[i].Const) {
			t.Errorf("initializer %s differs", x[i].Name())
		}
	}
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestSaveInline(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.onnx")
	m := weights(3, 1000)
	save(t, m, path, SaveOptions{})
	sameWeights(t, m, open(t, path))
	var p onnxpb.ModelProto
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, &p); err != nil || !bytes.Equal(marshal(t, &p), b) {
		t.Errorf("not in canonical form: %v", err)
	}
	if err := Save(ctx, m, path, SaveOptions{External: ExternalNever}); err != nil {
		t.Error("a file that no model was loaded from may be replaced:", err)
	}
}

func TestSaveExternal(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.onnx")
	m := weights(10, 300, 5000, 300, 1024)
	save(t, m, path, SaveOptions{MaxInline: 1 << 20})
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("a small model has external data: %v", got)
	}
	save(t, m, path, SaveOptions{MaxInline: 10000})
	files := names(t, dir)
	if len(files) != 2 || !strings.HasPrefix(files[1], "m.onnx.") || len(files[1]) != len("m.onnx..data")+16 || !strings.HasSuffix(files[1], ".data") {
		t.Fatalf("files %v", files)
	}
	m2 := open(t, path)
	sameWeights(t, m, m2)
	o := originOf(m2)
	var p onnxpb.ModelProto
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	wantOffsets := []string{"", "0", "4096", "24128", "28672"} // lines of 64 bytes, pages from 4096 bytes on
	for i, tp := range p.Graph.Initializer {
		if i == 0 {
			if tp.DataLocation != nil || len(tp.RawData) != 40 {
				t.Error("a tensor of 40 bytes belongs into the model")
			}
			continue
		}
		e := tp.ExternalData
		if tp.GetDataLocation() != onnxpb.TensorProto_EXTERNAL || tp.RawData != nil || len(e) != 3 || e[0].GetValue() != files[1] || e[1].GetValue() != wantOffsets[i] {
			t.Errorf("%s: %v", tp.GetName(), e)
		}
	}
	if len(o.data) != 1 {
		t.Error("the data file is mapped more than once")
	}

	// From external data to the same elsewhere, to inline data, and back.
	again := filepath.Join(dir, "again.onnx")
	save(t, m2, again, SaveOptions{External: ExternalAlways})
	sameWeights(t, m, open(t, again))
	inline := filepath.Join(dir, "inline.onnx")
	save(t, m2, inline, SaveOptions{External: ExternalNever})
	m3 := open(t, inline)
	sameWeights(t, m, m3)
	if len(originOf(m3).data) != 0 {
		t.Error("still external")
	}
	direct := filepath.Join(t.TempDir(), "inline.onnx")
	save(t, m, direct, SaveOptions{})
	x, err := os.ReadFile(inline)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(direct)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Error("data that were external come out otherwise than data that never were")
	}
	if _, err := Read(bytes.NewReader(b)); err == nil || !strings.Contains(err.Error(), "no folder") {
		t.Errorf("external data of a stream: error %v", err)
	}
	if m4, err := Read(bytes.NewReader(x)); err != nil {
		t.Error(err)
	} else {
		sameWeights(t, m, m4)
	}
}

// Tensors in attributes leave the file only if nothing else helps.
func TestSaveExternalAttributes(t *testing.T) {
	m := weights(2000)
	g := m.Graph
	c := g.NewValue("c", graph.Type{})
	g.InsertBefore(g.NewNode(graph.OpKey{Type: "Constant"}, "", nil, []*graph.Value{c},
		graph.TensorAttr("value", tensor.New(tensor.Float32, 3000))), g.First())
	for _, limit := range []int64{15000, 5000} {
		dir := t.TempDir()
		path := filepath.Join(dir, "m.onnx")
		save(t, m, path, SaveOptions{MaxInline: limit})
		info, err := os.Stat(path)
		if err != nil || info.Size() > limit {
			t.Errorf("%d bytes, at most %d allowed, %v", info.Size(), limit, err)
		}
		m2 := open(t, path)
		sameWeights(t, m, m2)
		if a := m2.Graph.First().Attr("value"); a.T.Len() != 3000 {
			t.Error("the constant is lost")
		}
	}
}

func TestSaveLeavesOldPair(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.onnx")
	save(t, weights(2000), path, SaveOptions{External: ExternalAlways})
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	save(t, weights(3000), path, SaveOptions{External: ExternalAlways})
	if err := os.WriteFile(filepath.Join(dir, "old.onnx"), old, 0o666); err != nil {
		t.Fatal(err)
	}
	sameWeights(t, weights(2000), open(t, filepath.Join(dir, "old.onnx")))
	sameWeights(t, weights(3000), open(t, path))
}

func TestSaveRefusesInput(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.onnx")
	save(t, weights(2000), path, SaveOptions{External: ExternalAlways})
	before := names(t, dir)
	m := open(t, path)
	data := filepath.Join(dir, before[1])
	links := t.TempDir()
	soft, hard, softData := filepath.Join(links, "soft"), filepath.Join(links, "hard"), filepath.Join(links, "data")
	for _, err := range []error{os.Symlink(path, soft), os.Link(path, hard), os.Symlink(data, softData)} {
		if err != nil {
			t.Skip("SKIPPED: no links on this file system: ", err)
		}
	}
	for _, out := range []string{path, dir + "/./m.onnx", soft, hard, data, softData} {
		err := Save(ctx, m, out, SaveOptions{})
		var pe *fs.PathError
		if !errors.As(err, &pe) || !strings.Contains(err.Error(), "input") {
			t.Errorf("%s: error %v", out, err)
		}
	}
	if err := Save(ctx, m, data, SaveOptions{InPlace: true}); err == nil {
		t.Error("external data were written over")
	}
	if got := names(t, dir); len(got) != len(before) {
		t.Errorf("files left: %v", got)
	}
	if err := os.Remove(hard); err != nil {
		t.Fatal(err)
	}
	save(t, m, path, SaveOptions{InPlace: true})
	sameWeights(t, weights(2000), m) // the mapping holds on to the old file
	sameWeights(t, weights(2000), open(t, path))
}

func TestSaveDestinations(t *testing.T) {
	dir := t.TempDir()
	m := weights(2000)
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.Symlink("target", link); err != nil {
		t.Skip("SKIPPED: no links on this file system: ", err)
	}
	for _, c := range []struct {
		path string
		opt  SaveOptions
		want string
	}{
		{filepath.Join(dir, "missing", "m.onnx"), SaveOptions{}, "there is no folder"},
		{filepath.Join(dir, "missing", "m.onnx"), SaveOptions{External: ExternalAlways}, "there is no folder"},
		{dir, SaveOptions{}, "directory"},
		{link, SaveOptions{External: ExternalAlways}, "symbolic link"},
	} {
		if err := Save(ctx, m, c.path, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.path, err, c.want)
		}
	}
	save(t, m, link, SaveOptions{})
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	sameWeights(t, m, open(t, target))
}

func TestCheckDestination(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.onnx"), filepath.Join(dir, "out.onnx")
	save(t, weights(2000), in, SaveOptions{})
	m := open(t, in)
	for _, c := range []struct {
		path string
		opt  SaveOptions
		ok   bool
	}{
		{out, SaveOptions{}, true}, {in, SaveOptions{}, false}, {in, SaveOptions{InPlace: true}, true},
		{dir, SaveOptions{}, false}, {filepath.Join(dir, "missing", "out.onnx"), SaveOptions{}, false},
	} {
		if err := CheckDestination(m, c.path, c.opt); (err == nil) != c.ok {
			t.Errorf("%s: error %v", c.path, err)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("files left: %v", got)
	}
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.onnx"), filepath.Join(dir, "out.onnx")
	rich := richModel()
	b := reversed(rich.ProtoReflect().Descriptor(), marshal(t, rich)) // Save would bring it into order
	if err := os.WriteFile(in, b, 0o666); err != nil {
		t.Fatal(err)
	}
	m := open(t, in)
	if err := Copy(ctx, m, in, SaveOptions{}); err == nil {
		t.Error("copied over the input")
	}
	if err := Copy(ctx, m, out, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the copy differs, %v", err)
	}
	if n := Size(m); n != int64(len(write(t, m))) {
		t.Errorf("size %d", n)
	}
	save(t, weights(2000), in, SaveOptions{External: ExternalAlways})
	if err := Copy(ctx, open(t, in), filepath.Join(t.TempDir(), "m.onnx"), SaveOptions{}); err != nil {
		t.Error(err)
	}
}

func TestSaveCancelled(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.onnx")
	if err := os.WriteFile(path, []byte("old"), 0o666); err != nil {
		t.Fatal(err)
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	for _, opt := range []SaveOptions{{}, {External: ExternalAlways}} {
		if err := Save(stopped, weights(5000), path, opt); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "old" || len(names(t, dir)) != 1 {
		t.Errorf("%q, %v, %v", b, err, names(t, dir))
	}
}

// failing fails after n bytes.
type failing struct{ n int }

func (f *failing) Write(b []byte) (int, error) {
	if f.n -= len(b); f.n < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}

func TestWriteFails(t *testing.T) {
	m, err := Decode(marshal(t, richModel()))
	if err != nil {
		t.Fatal(err)
	}
	total := len(write(t, m))
	for n := range total {
		if err := Write(ctx, &failing{n}, m); err == nil {
			t.Fatalf("no error for a writer that fails at byte %d of %d", n, total)
		}
	}
	if err := Write(ctx, &failing{total}, m); err != nil {
		t.Error(err)
	}
}

func TestChangedWhileMapped(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: files are not mapped on this system")
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.onnx"), filepath.Join(dir, "out.onnx")
	for _, opt := range []SaveOptions{{}, {External: ExternalAlways}} {
		save(t, weights(100000), in, SaveOptions{})
		m := open(t, in)
		if err := os.Truncate(in, 100); err != nil {
			t.Fatal(err)
		}
		err := Save(ctx, m, out, opt)
		if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "in.onnx") {
			t.Errorf("truncated: error %v", err)
		}
		if err := Write(ctx, &bytes.Buffer{}, m); !errors.Is(err, ErrChanged) {
			t.Errorf("truncated: error %v", err)
		}

		save(t, weights(1000), in, SaveOptions{})
		m = open(t, in)
		save(t, weights(1001), in, SaveOptions{}) // another file in its place
		if err := Save(ctx, m, out, opt); !errors.Is(err, ErrChanged) {
			t.Errorf("replaced: error %v", err)
		}
		if got := names(t, dir); len(got) != 1 {
			t.Errorf("files left: %v", got)
		}
	}
}

func allocated(f func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	f()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

// Memory must not depend on the size of the tensors.
func TestMemory(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.onnx"), filepath.Join(dir, "out.onnx")
	save(t, weights(4<<20, 4<<20), in, SaveOptions{})
	var m *graph.Model
	if n := allocated(func() { m = open(t, in) }); n > 1<<20 && runtime.GOOS != "windows" {
		t.Errorf("opening 32 MiB allocates %d bytes", n)
	}
	for _, e := range []External{ExternalNever, ExternalAlways} {
		if n := allocated(func() { save(t, m, out, SaveOptions{External: e}) }); n > 1<<20 {
			t.Errorf("saving 32 MiB allocates %d bytes", n)
		}
	}
}

func TestGuardLeavesBugs(t *testing.T) {
	defer func() {
		if recover() != "a bug" {
			t.Error("a panic that is no fault was swallowed")
		}
	}()
	Guard(func() error { panic("a bug") })
}

func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "m.onnx")
	if err := Save(ctx, weights(8<<20), path, SaveOptions{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m, err := Open(path)
		if err != nil {
			b.Fatal(err)
		}
		m.Close()
	}
}

// BenchmarkNodes loads and writes a model of 10,000 nodes and small tensors.
func BenchmarkNodes(b *testing.B) {
	sizes := make([]int, 10000)
	for i := range sizes {
		sizes[i] = 1
	}
	file := write(b, weights(sizes...))
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		m, err := Decode(file)
		if err != nil {
			b.Fatal(err)
		}
		if err := Write(ctx, io.Discard, m); err != nil {
			b.Fatal(err)
		}
	}
}

// TestNamelessDims: names of dimensions without a letter or digit, which stand for
// several sizes at once, name nothing, and are written as they were read.
func TestNamelessDims(t *testing.T) {
	m := weights(3)
	x := m.Graph.FeedInputs()[0]
	x.Type = graph.TensorType(tensor.Float32, graph.Shape{graph.Sym("batch"), graph.Sym("?"), graph.Sym("?")})
	path := filepath.Join(t.TempDir(), "m.onnx")
	save(t, m, path, SaveOptions{})
	first, err := os.ReadFile(path)
	if err != nil || bytes.Count(first, []byte("?")) < 2 {
		t.Fatalf("%q, %v", first, err)
	}
	back := open(t, path)
	d := back.Graph.FeedInputs()[0].Type.Shape
	if d[0].Sym != "batch" || d[1].Sym != "" || d[1].Known || d[1].Same(d[2]) {
		t.Errorf("dimensions %v", d)
	}
	again := filepath.Join(t.TempDir(), "again.onnx")
	save(t, back, again, SaveOptions{})
	if second, err := os.ReadFile(again); err != nil || !bytes.Equal(first, second) {
		t.Errorf("written as %q, read from %q: %v", second, first, err)
	}
}
