package beam

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	beamsdk "github.com/apache/beam/sdks/v2/go/pkg/beam"
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/io/filesystem/memfs"
	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/job"
)

func TestMain(m *testing.M) {
	flag.Parse()
	beamsdk.Init()
	os.Exit(m.Run())
}

// sample is a model with samples.
type sample struct {
	name, model, data string
}

// sampleModels returns the models of the repository and, where they are, the
// real ones of these names.
func sampleModels(t *testing.T, zoo ...string) []sample {
	t.Helper()
	var list []sample
	for _, name := range []string{"digits", "text"} {
		dir := filepath.Join("..", "models", name)
		list = append(list, sample{name, filepath.Join(dir, "model.onnx"), filepath.Join(dir, "calib")})
	}
	shared := os.Getenv("ONNXQ_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "..", "shared")
	}
	for _, name := range zoo {
		dir := filepath.Join(shared, "zoo", name)
		if _, err := os.Stat(dir); err != nil {
			t.Logf("SKIPPED %s, which is not there: %v", name, err)
			fmt.Fprintf(os.Stderr, "SKIPPED %s: %s: no model %s\n", t.Name(), name, dir)
			continue
		}
		list = append(list, sample{name, filepath.Join(dir, "model.onnx"), filepath.Join(dir, "calib")})
	}
	return list
}

func encode(t *testing.T, table *calibration.Table) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := table.Encode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The table of a pipeline is that of one process, in any number of parts.
func TestCalibrate(t *testing.T) {
	for _, s := range sampleModels(t, "efficientnet_lite0", "minilm", "gru_shakespeare") {
		t.Run(s.name, func(t *testing.T) {
			o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{s.data}}}
			if testing.Short() {
				o.Samples = 20
			}
			whole, err := onnxq.CalibrateFile(t.Context(), s.model, "", o)
			if err != nil {
				t.Fatal(err)
			}
			want := encode(t, whole)
			for _, parts := range []int{1, 2, 4, 9} {
				o.Parts = parts
				out := filepath.Join(t.TempDir(), "table.json")
				if _, err := (Engine{}).Calibrate(t.Context(), s.model, out, o); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d parts give another table, %v", parts, err)
				}
			}
		})
	}
}

// Files reach workers through a folder of any filesystem, which is empty at the
// end.
func TestStaging(t *testing.T) {
	s := sampleModels(t)[0]
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{s.data}, Parts: 3}}
	whole, err := onnxq.CalibrateFile(t.Context(), s.model, "", o)
	if err != nil {
		t.Fatal(err)
	}
	local, here := t.TempDir(), newFiles(t.TempDir())
	for _, staging := range []string{local, "memfs://staging"} {
		got, err := Engine{Staging: staging}.Calibrate(t.Context(), s.model, join(staging, "out.json"), o)
		if err != nil {
			t.Fatal(err)
		}
		saved, err := here.read(t.Context(), join(staging, "out.json"))
		if err != nil || !bytes.Equal(saved, encode(t, whole)) || !bytes.Equal(encode(t, got), saved) {
			t.Errorf("%s: another table, %v", staging, err)
		}
	}
	var left []string
	err = filepath.WalkDir(local, func(path string, d os.DirEntry, err error) error {
		if !d.IsDir() {
			left = append(left, filepath.Base(path))
		}
		return err
	})
	if err != nil || !slices.Equal(left, []string{"out.json"}) {
		t.Errorf("left: %q, %v", left, err)
	}
}

// A sample that cannot be read ends the job with an error that names it.
func TestFailingElement(t *testing.T) {
	s := sampleModels(t)[0]
	dir := t.TempDir()
	entries, err := os.ReadDir(s.data)
	if err != nil {
		t.Fatal(err)
	}
	bad := entries[len(entries)/2].Name()
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(s.data, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if e.Name() == bad {
			b = b[:len(b)/2]
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{dir}, Parts: 4}}
	if _, err := (Engine{}).Calibrate(t.Context(), s.model, "", o); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("%v, want one that names %s", err, bad)
	}
	// Where it may be passed over, the table is that of one process.
	o.Source.SkipBad = 1
	whole, err := onnxq.CalibrateFile(t.Context(), s.model, "", o)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Engine{}.Calibrate(t.Context(), s.model, "", o)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Skipped) != 1 || !bytes.Equal(encode(t, got), encode(t, whole)) {
		t.Error("another table")
	}
}

// The search chooses the plan of one process, and makes the same model.
func TestQuantize(t *testing.T) {
	contract := 40.0
	var zoo []string
	if !testing.Short() {
		zoo = []string{"efficientnet_lite0"}
	}
	for _, s := range sampleModels(t, zoo...) {
		for what, o := range map[string]onnxq.Options{
			"auto":     {},
			"contract": {MinSQNR: &contract, KeepFailed: true},
			"static":   {Mode: onnxq.Static, ReduceRange: true},
			"gptq":     {Mode: onnxq.Weights, Weights: "i4", Algorithms: []onnxq.Algorithm{onnxq.GPTQ}},
		} {
			switch {
			case slices.Contains(zoo, s.name):
				if o.Samples = 16; what != "auto" {
					continue
				}
			case s.name == "text" && what == "contract":
				continue // takes long, and digits has as many steps
			case s.name == "digits" && what == "gptq":
				continue // each of its layers depends on the one before
			}
			t.Run(s.name+" "+what, func(t *testing.T) {
				o.Data = []string{s.data}
				dir := t.TempDir()
				a, b := filepath.Join(dir, "a.onnx"), filepath.Join(dir, "b.onnx")
				want, err := onnxq.Quantize(t.Context(), s.model, a, o)
				if want == nil {
					t.Fatal(err)
				}
				kinds := map[string]int{}
				e := Engine{Staging: dir}
				o.Parts, o.Runner = 3, func(ctx context.Context, tasks []job.Task) error {
					kinds[tasks[0].Kind] += len(tasks)
					return e.Run(ctx, tasks)
				}
				got, err := onnxq.Quantize(t.Context(), s.model, b, o)
				if got == nil {
					t.Fatal(err)
				}
				x, err1 := os.ReadFile(a)
				y, err2 := os.ReadFile(b)
				if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
					t.Errorf("another model, %v, %v", err1, err2)
				}
				if !slices.Equal(want.Notes, got.Notes) {
					t.Errorf("notes %q\nwant %q", got.Notes, want.Notes)
				}
				t.Log(kinds)
				if kinds[onnxq.CalibrateTask] == 0 && what != "gptq" || what == "contract" && len(kinds) < 2 || (what == "gptq" || slices.Contains(zoo, s.name)) && kinds[auto.RoundTask] == 0 {
					t.Errorf("tasks: %v", kinds)
				}
			})
		}
	}
}

// Many models under one configuration.
func TestModels(t *testing.T) {
	s := sampleModels(t)
	dir := t.TempDir()
	abs := func(p string) string {
		p, err := filepath.Abs(p)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	o := onnxq.Options{Mode: onnxq.Weights, Weights: "i4"}
	ins := []string{abs(s[0].model), abs("beam_test.go"), abs(s[1].model)}
	outs := []string{filepath.Join(dir, "a.onnx"), filepath.Join(dir, "b.onnx"), filepath.Join(dir, "c.onnx")}
	list, err := Engine{}.Models(t.Context(), ins, outs, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range list {
		if i == 1 {
			if !strings.Contains(r.Error, "beam_test.go") {
				t.Errorf("what is no model: %q", r.Error)
			}
			continue
		}
		want := filepath.Join(dir, "want.onnx")
		if _, err := onnxq.Quantize(t.Context(), ins[i], want, o); err != nil {
			t.Fatal(err)
		}
		x, err1 := os.ReadFile(want)
		y, err2 := os.ReadFile(outs[i])
		if r.Error != "" || err1 != nil || err2 != nil || !bytes.Equal(x, y) {
			t.Errorf("%s: another model, %s, %v, %v", ins[i], r.Error, err1, err2)
		}
	}
}

// wire returns what goes between processes for a Partial.
func wire(t *testing.T, p Partial) []byte {
	t.Helper()
	b, err := encodePartial(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What a runner may do with a CombineFn: bundles run again and their results
// are lost or kept, accumulators are dropped and made again, sent through their
// coder, and merged in any order and grouping.
func TestMergeFn(t *testing.T) {
	s := sampleModels(t)[0]
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{s.data}, Parts: 29}}
	whole, err := onnxq.CalibrateFile(t.Context(), s.model, "", o)
	if err != nil {
		t.Fatal(err)
	}
	want := encode(t, whole)
	c, err := onnxq.NewCalibrateJob(t.Context(), s.model, o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := onnxq.NewWorker(0)
	defer w.Close()
	if err := w.Run(t.Context(), c.Tasks); err != nil {
		t.Fatal(err)
	}
	part := func(i int) Partial {
		p, err := decodePartial(c.Tasks[i].Result)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	fn := &MergeFn{}
	merge := func(a, b Partial) Partial {
		m, err := fn.MergeAccumulators(a, b)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	bundle := func(list []int) Partial {
		acc := fn.CreateAccumulator()
		for _, i := range list {
			acc = merge(acc, part(i))
		}
		return acc
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		order := r.Perm(len(c.Tasks))
		var accs []Partial
		for len(order) > 0 {
			n := 1 + r.IntN(len(order))
			list := order[:n]
			order = order[n:]
			acc := bundle(list)
			switch r.IntN(4) {
			case 0: // the bundle runs again, and the first result is lost
				slices.Reverse(list)
				acc = bundle(list)
			case 1: // it runs again, and both results are merged
				acc = merge(bundle(list), acc)
			case 2: // it goes over the wire
				if acc, err = decodePartial(wire(t, acc)); err != nil {
					t.Fatal(err)
				}
			}
			accs = append(accs, acc, fn.CreateAccumulator())
		}
		for len(accs) > 1 {
			r.Shuffle(len(accs), func(i, j int) { accs[i], accs[j] = accs[j], accs[i] })
			lost := merge(accs[0], accs[1]) // a merge whose result is dropped changes nothing
			accs = append(accs[2:], merge(accs[1], accs[0]))
			if !bytes.Equal(wire(t, lost), wire(t, accs[len(accs)-1])) {
				t.Fatal("a merge depends on its order")
			}
		}
		if !bytes.Equal(wire(t, accs[0]), want) {
			t.Fatalf("seed %d: another table", seed)
		}
	}
}
