package calibration

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/internal/fuzztest"
	"github.com/onnxq/onnxq/tensor"
)

// tableOf makes the table that a run over a source's shard would.
func tableOf(t testing.TB, parts map[string][]part, total, shard, shards int) *Table {
	t.Helper()
	tab := &Table{
		Model: "m", Data: "d", Options: TableOptions{Bins: 16, Holdout: 1, State: []string{"a=b"}},
		Total: total, Shards: shards, Have: []int{shard}, Values: map[string]*Stats{},
	}
	for k := shard; k < total; k += shards {
		if k == 5 {
			tab.Skipped = append(tab.Skipped, SkippedSample{5, "five", "1 NaN"})
			continue
		}
		tab.Samples = append(tab.Samples, TableSample{k, uint64(k) << 60})
	}
	tab.Measured, tab.Sources, tab.Unseen = []int{0, 4, 7}, []string{"folder"}, map[string]*Stats{}
	for name, ps := range parts {
		axis := -1
		if name == "conv<1>/out" {
			axis = 0
		}
		all, unseen := NewObserver(16, axis), NewObserver(16, axis)
		for _, p := range ps {
			if p.sample%shards != shard || p.sample == 5 || p.sample >= total {
				continue
			}
			list := []*Observer{all, unseen}
			if slices.Contains(tab.Measured, p.sample) {
				list = list[:1]
			}
			for _, o := range list {
				if err := o.Update(p.sample, []int{12, len(p.x) / 12}, p.x); err != nil {
					t.Fatal(err)
				}
			}
		}
		if all.Stats().Count > 0 {
			tab.Values[name] = all.Stats()
		} else {
			tab.Unreached = append(tab.Unreached, name)
		}
		if unseen.Stats().Count > 0 {
			tab.Unseen[name] = unseen.Stats()
		}
	}
	tab.Unreached = append(tab.Unreached, "z/never")
	slices.Sort(tab.Unreached)
	return tab
}

func encode(t testing.TB, tab *Table) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tab.Encode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tableParts(seed uint64) map[string][]part {
	r := rand.New(rand.NewPCG(seed, 1))
	rare := randomParts(r, 11)[3:5] // a value that few samples produce
	return map[string][]part{"conv<1>/out": randomParts(r, 11), "y": randomParts(r, 11), "rare \"x\"\n": rare}
}

// TestTableMerge: shards, written and read, merge into the file of one run, in
// any order and grouping.
func TestTableMerge(t *testing.T) {
	parts := tableParts(1)
	want := encode(t, tableOf(t, parts, 11, 0, 1))
	r := rand.New(rand.NewPCG(2, 2))
	for range 20 {
		n := 1 + r.IntN(5)
		tabs := make([]*Table, n)
		for i := range tabs {
			var err error
			if tabs[i], err = Decode(encode(t, tableOf(t, parts, 11, i, n))); err != nil {
				t.Fatal(err)
			}
		}
		r.Shuffle(n, func(i, j int) { tabs[i], tabs[j] = tabs[j], tabs[i] })
		for len(tabs) > 1 {
			k := 2 + r.IntN(len(tabs)-1)
			m, err := Merge(tabs[:k]...)
			if err != nil {
				t.Fatal(err)
			}
			if len(tabs) > k && (len(m.Missing()) == 0 || m.Complete()) {
				t.Fatalf("%d shards of %d miss nothing", k, n)
			}
			tabs = append(tabs[k:], m)
		}
		if !tabs[0].Complete() {
			t.Error("not complete")
		}
		if got := encode(t, tabs[0]); !bytes.Equal(got, want) {
			t.Fatalf("merged from %d:\n%s\nat once:\n%s", n, got, want)
		}
	}
}

// TestMergeAgain: tables of parts that ran several times, alone or in what was
// merged before, count once, in any order and grouping.
func TestMergeAgain(t *testing.T) {
	parts := tableParts(8)
	want := encode(t, tableOf(t, parts, 11, 0, 1))
	r := rand.New(rand.NewPCG(5, 2))
	for range 40 {
		n := 1 + r.IntN(5)
		var tabs []*Table
		for i := range n {
			for range 1 + r.IntN(3) {
				tabs = append(tabs, tableOf(t, parts, 11, i, n))
			}
		}
		for range 2 { // what attempts merged whose result was lost or used
			a, b := tabs[r.IntN(len(tabs))], tabs[r.IntN(len(tabs))]
			m, err := Merge(a, b)
			if err != nil {
				t.Fatal(err)
			}
			tabs = append(tabs, m)
		}
		r.Shuffle(len(tabs), func(i, j int) { tabs[i], tabs[j] = tabs[j], tabs[i] })
		all, err := Merge(tabs...)
		if err != nil {
			t.Fatal(err)
		}
		if got := encode(t, all); !bytes.Equal(got, want) {
			t.Fatalf("merged from %d:\n%s\nat once:\n%s", n, got, want)
		}
	}
}

func TestTableFile(t *testing.T) {
	tab := tableOf(t, tableParts(3), 11, 0, 1)
	path := filepath.Join(t.TempDir(), "t.json")
	if err := tab.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, tab) {
		t.Errorf("read back %+v\nwant %+v", got, tab)
	}
	data, _ := os.ReadFile(path)
	if !json.Valid(data) || !strings.Contains(string(data), `"samples": "0-4,6-10"`) || !strings.Contains(string(data), "\n  \"conv<1>/out\": {\"count\":") {
		t.Errorf("file:\n%s", data)
	}
	if done := got.Done(); len(done) != 11 || done[5] != 5 {
		t.Errorf("done %v", done)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.json")); err == nil || !strings.Contains(err.Error(), "none.json: no such file") {
		t.Errorf("missing file: %v", err)
	}
	tab.Values["\xff"] = tab.Values["y"]
	if err := tab.Save(path); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("a name that is no UTF-8: %v", err)
	}
	if again, _ := os.ReadFile(path); !bytes.Equal(again, data) {
		t.Error("a failed Save changed the file")
	}
}

func TestMergeErrors(t *testing.T) {
	parts := tableParts(4)
	a := tableOf(t, parts, 11, 0, 3)
	b := func() *Table { return tableOf(t, parts, 11, 1, 3) }
	for want, change := range map[string]func(*Table){
		"different models":            func(t *Table) { t.Model = "other" },
		"different data":              func(t *Table) { t.Data = "other" },
		"different options":           func(t *Table) { t.Options.State = nil },
		"different numbers of shards": func(t *Table) { t.Shards = 4 },
		"tables 1 and 2 overlap in part: sample 8 is in one of them only": func(t *Table) { t.Samples = []TableSample{{3, 0}, {8, 0}} },
		`value "y": histograms of`:                                        func(t *Table) { t.Values["y"] = NewObserver(8, -1).Stats() },
	} {
		other := b()
		change(other)
		if _, err := Merge(a, other); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	again := tableOf(t, parts, 11, 0, 3)
	again.Values["y"].Count++
	again.Values["y"].Hist.Counts[0]++
	if _, err := Merge(a, again); err == nil || !strings.Contains(err.Error(), "tables 1 and 2 are of the same samples, but differ") {
		t.Errorf("a shard with two results: %v", err)
	}
	again = tableOf(t, parts, 11, 0, 3)
	again.Samples[1].Digest++
	if _, err := Merge(again, a, b()); err == nil || !strings.Contains(err.Error(), "tables 1 and 2 hold different values of sample 3") {
		t.Errorf("a shard of files that changed: %v", err)
	}
	if _, err := Merge(); err == nil {
		t.Error("nothing was merged")
	}
	m, err := Merge(a, b())
	if err != nil || fmt.Sprint(m.Missing()) != "[2]" || m.Complete() || m.Lacks() != "of 3 shards these are missing: 2" {
		t.Errorf("missing %v, %v", m.Missing(), err)
	}
	short := tableOf(t, parts, 11, 0, 1)
	short.Samples = short.Samples[:4]
	if !strings.HasPrefix(short.Lacks(), "6 of 11 samples are missing") {
		t.Error(short.Lacks())
	}
}

func TestDiff(t *testing.T) {
	parts := tableParts(6)
	a, b := tableOf(t, parts, 11, 0, 1), tableOf(t, parts, 11, 0, 1)
	if d := Diff(a, b, MinMax, MethodOptions{}); len(d) != 0 {
		t.Errorf("equal tables differ: %v", d)
	}
	y := *b.Values["y"]
	y.Max *= 2
	y.Hist.Counts = append([]uint64{}, y.Hist.Counts...)
	b.Values["y"] = &y
	delete(b.Values, "conv<1>/out")
	d := Diff(a, b, MinMax, MethodOptions{})
	if len(d) != 2 || d[0].Name != "conv<1>/out" || d[0].B != nil || d[0].Moved != 1 || d[1].Name != "y" || d[1].Moved <= 0 || d[1].Moved > 0.5 {
		t.Errorf("%+v", d)
	}
}

func TestDecodeErrors(t *testing.T) {
	tab := tableOf(t, tableParts(7), 11, 0, 1)
	good := string(encode(t, tab))
	for _, c := range []struct{ old, new, want string }{
		{good, "", "not a calibration table"},
		{good, "{}", "not a calibration table"},
		{good, "[1]", "not a calibration table"},
		{tableFormat, "something", "not a calibration table"},
		{`"version": 3`, `"version": 9`, "version 9"},
		{`"bins": 16`, `"bins": 1000000000`, "1000000000 histogram bins"},
		{`"bins": 16`, `"bins": 2`, ""},
		{`"shards": 1`, `"shards": 0`, "in 0 shards"},
		{`"have": "0"`, `"have": "0-1"`, "shards: "},
		{`"0-4,6-10"`, `"0-4,3"`, "ascending list"},
		{`"0-4,6-10"`, `"0-999999999"`, "ascending list"},
		{`"y": {"count":`, `"y": {"count":1`, `value "y": histogram: it counts`},
		{`"y": {"count":`, `"y": {"count":-`, `value "y"`},
		{`"min":-`, `"min":1e30,"mean":-`, "min and max"},
		{`"exp":`, `"exp":9`, "2^"},
		{`"exp":`, `"exp":-1`, "outside the histogram"},
		{`"hist":"`, `"hist":"!`, "histogram: "},
		{`"samples":"`, `"samples":"!`, "samples: "},
		{`"samples":"`, `"samples":"AAAA`, "sample"},
		{`"sum":"`, `"sum":"z`, "exact sum"},
		{`"lowest":[`, `"lowest":[1,`, "lowest and highest"},
		{`"highest":[`, `"higher":[`, "lowest and highest"},
		{`"axis":0`, `"axis":-1`, "axis -1"},
		{`"sum":["`, `"sum":["0","`, "channels: "},
	} {
		bad := strings.Replace(good, c.old, c.new, 1)
		if bad == good {
			t.Fatalf("%q is not in the file:\n%s", c.old, good)
		}
		if _, err := Decode([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v, want %q", c.new, c.old, err, c.want)
		}
	}
	for i := range len(good) - 1 {
		if _, err := Decode([]byte(good[:i])); err == nil {
			t.Fatalf("cut after %d bytes: no error", i)
		}
		if good[i:] == "}\n" {
			break
		}
	}
}

func FuzzTable(f *testing.F) {
	f.Add(encode(f, tableOf(f, tableParts(8), 11, 0, 1)))
	f.Add(encode(f, tableOf(f, tableParts(9), 11, 1, 3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bound(t)
		tab, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Decode(encode(t, tab))
		if err != nil || !reflect.DeepEqual(again, tab) {
			t.Fatalf("written and read: %v", err)
		}
		for _, s := range tab.Values {
			if tab.Options.Bins > 256 {
				break
			}
			for _, m := range Methods() {
				Range(s, m, MethodOptions{Levels: 2})
			}
		}
	})
}

// TestVerify changes a file without changing its size.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	x := tensor.Of([]float32{1, 2, 3, 4}, 4)
	s := tensor.FromStrings([]int{2}, []string{"a", "bc"})
	feed := Feed{"x": x, "s": s}
	for name, other := range map[string]Feed{
		"name": {"y": x, "s": s}, "shape": {"x": tensor.Of([]float32{1, 2, 3, 4}, 2, 2), "s": s},
		"value": {"x": tensor.Of([]float32{1, 2, 3, 5}, 4), "s": s},
		"type":  {"x": tensor.Of([]int32{1, 2, 3, 4}, 4), "s": s},
		"text":  {"x": x, "s": tensor.FromStrings([]int{2}, []string{"ab", "c"})},
	} {
		if feed.Digest() == other.Digest() {
			t.Errorf("another %s has the same digest", name)
		}
	}
	write := func(v float32) {
		b := []byte("\x93NUMPY\x01\x00\x46\x00" + fmt.Sprintf("%-69s\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"))
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		if err := os.WriteFile(filepath.Join(dir, "a.npy"), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	open := func() *Source {
		src, err := Open(t.Context(), []string{dir}, []Input{{Name: "x", DType: tensor.Float32, Shape: []int{1}}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		return src
	}
	src := open()
	f, err := src.Load(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	table := &Table{Data: src.Hash(), Samples: []TableSample{{0, f.Digest()}}}
	if err := table.Verify(t.Context(), open()); err != nil {
		t.Fatal(err)
	}
	write(2)
	var de *DataError
	if err := table.Verify(t.Context(), open()); !errors.As(err, &de) || !strings.HasSuffix(de.Path, "a.npy") {
		t.Errorf("a changed file gives %v", err)
	}
	table.Data = "other"
	if err := table.Verify(t.Context(), open()); err == nil {
		t.Error("other samples are accepted")
	}
}
