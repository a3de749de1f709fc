package calibration

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/onnxq/onnxq/internal/atomicfile"
	"github.com/onnxq/onnxq/quant"
)

const (
	tableFormat  = "onnxq calibration table"
	tableVersion = 3

	maxTableFile = 1 << 30
	maxTableBins = 1 << 26 // of one side, over all values
	maxShards    = 1 << 20
)

// TableOptions are the settings that the statistics depend on. Tables merge
// only where they are equal.
type TableOptions struct {
	Bins    int    `json:"bins"`            // histogram bins on each side of 0
	Holdout int    `json:"holdout"`         // samples left out at the end
	Limit   int    `json:"limit,omitempty"` // most samples taken, 0 for all
	Batched bool   `json:"batched,omitempty"`
	Cast    bool   `json:"cast,omitempty"`
	Image   string `json:"image,omitempty"`
	Seed    uint64 `json:"seed,omitempty"`
	// State lists INPUT=OUTPUT pairs that are fed back, sorted.
	State []string `json:"state,omitempty"`
}

func (o TableOptions) equal(p TableOptions) bool {
	states := slices.Equal(o.State, p.State)
	o.State, p.State = nil, nil
	a, _ := json.Marshal(o)
	b, _ := json.Marshal(p)
	return states && bytes.Equal(a, b)
}

// TableSample is a sample whose values are in a table.
type TableSample struct {
	Index  int
	Digest uint64 // Feed.Digest of its inputs
}

// SkippedSample is a bad sample that was passed over.
type SkippedSample struct {
	Index int    `json:"index"`
	Name  string `json:"name"`
	Error string `json:"error"`
}

// Table holds the statistics of the values of one model over samples, or over
// one or several of Shards equal parts of them. Its file is JSON with values
// sorted by name, one a line, and the same for the same contents; tables of all
// shards merge into the file that one run over all samples writes.
type Table struct {
	Model   string // digest of the model
	Data    string // Source.Hash
	Options TableOptions
	Total   int             // samples of all shards, those skipped included
	Shards  int             // 1 for a table of everything
	Have    []int           // the shards that this table covers, counted from 0, sorted
	Samples []TableSample   // those that entered, by Index
	Skipped []SkippedSample // by Index
	Values  map[string]*Stats
	// Unreached lists, sorted, the values that were looked for and that no
	// sample produced: those of a branch that was never taken, say.
	Unreached []string
	// Measured holds the Index of each sample that decisions are measured on,
	// sorted; Unseen has the statistics of the other samples alone. Both are
	// empty where decisions are measured on samples that all ranges know.
	Measured []int
	Unseen   map[string]*Stats
	// Sources are the samples as they were named, so that a later stage can
	// find them again; nil where tables of several names were merged.
	Sources []string
}

// OfUnseen returns the table of the samples that are not in Measured.
func (t *Table) OfUnseen() *Table {
	u := *t
	u.Values, u.Unseen, u.Measured = t.Unseen, nil, nil
	return &u
}

// Missing returns the shards that the table does not cover.
func (t *Table) Missing() []int {
	var out []int
	for i := range t.Shards {
		if _, ok := slices.BinarySearch(t.Have, i); !ok {
			out = append(out, i)
		}
	}
	return out
}

// Done returns the Index of each sample that has been dealt with, sorted: what
// a run that is taken up again leaves out.
func (t *Table) Done() []int {
	out := t.indices()
	for _, s := range t.Skipped {
		out = append(out, s.Index)
	}
	slices.Sort(out)
	return out
}

// indices returns the Index of each of Samples.
func (t *Table) indices() []int {
	out := make([]int, len(t.Samples))
	for i, s := range t.Samples {
		out[i] = s.Index
	}
	return out
}

// Digest returns what the sample of an Index held when it entered the table,
// and whether it did.
func (t *Table) Digest(index int) (uint64, bool) {
	i, ok := slices.BinarySearchFunc(t.Samples, index, func(s TableSample, k int) int { return cmp.Compare(s.Index, k) })
	if !ok {
		return 0, false
	}
	return t.Samples[i].Digest, true
}

// Verify returns an error unless src lists the samples that the table was made
// from, and those that decisions are measured on (all, where Measured is empty)
// hold what they held then. Only these are read.
func (t *Table) Verify(ctx context.Context, src *Source) error {
	if src.Hash() != t.Data {
		return errors.New("the samples have other names, sizes or another order")
	}
	for i := range src.Len() {
		info := src.Sample(i)
		was, ok := t.Digest(info.Index)
		if !ok || len(t.Measured) > 0 && !slices.Contains(t.Measured, info.Index) {
			continue
		}
		feed, err := src.Load(ctx, i)
		if err != nil {
			return err
		}
		if feed.Digest() != was {
			return &DataError{Path: info.Path, Sample: info.Name, Err: errors.New("its values are not those that the table was made from")}
		}
	}
	return nil
}

// Zeros returns, sorted, the values that were zero in every sample, of which no
// range can be made.
func (t *Table) Zeros() []string {
	var out []string
	for _, name := range slices.Sorted(mapKeys(t.Values)) {
		if s := t.Values[name]; s.Count > 0 && s.Min == 0 && s.Max == 0 {
			out = append(out, name)
		}
	}
	return out
}

// sortSamples brings Samples and Skipped in their order.
func (t *Table) sortSamples() {
	slices.SortFunc(t.Samples, func(a, b TableSample) int { return cmp.Compare(a.Index, b.Index) })
	slices.SortFunc(t.Skipped, func(a, b SkippedSample) int { return cmp.Compare(a.Index, b.Index) })
}

// Complete reports whether every sample of every shard has been dealt with.
func (t *Table) Complete() bool {
	return t.Shards == 1 && len(t.Samples)+len(t.Skipped) == t.Total
}

// MergeError says why tables do not merge. Table and Other count the tables
// from 0; Other is -1 where the error is about one table.
type MergeError struct {
	Table, Other int
	Err          error
}

// Error counts the tables from 1.
func (e *MergeError) Error() string {
	if e.Other < 0 {
		return fmt.Sprintf("table %d: %v", e.Table+1, e.Err)
	}
	return fmt.Sprintf("tables %d and %d %v", e.Other+1, e.Table+1, e.Err)
}

// Unwrap returns the cause.
func (e *MergeError) Unwrap() error { return e.Err }

// belongs returns an error unless t and u are parts of one run.
func (t *Table) belongs(u *Table) error {
	for _, c := range []struct {
		what string
		same bool
	}{
		{"models", t.Model == u.Model},
		{"data", t.Data == u.Data && t.Total == u.Total},
		{"options", t.Options.equal(u.Options) && slices.Equal(t.Measured, u.Measured) && (t.Unseen == nil) == (u.Unseen == nil)},
		{"numbers of shards", t.Shards == u.Shards || t.Complete() || u.Complete()},
	} {
		if !c.same {
			return fmt.Errorf("are of different %s", c.what)
		}
	}
	return nil
}

// Lacks says what of its run t does not cover: "" if nothing.
func (t *Table) Lacks() string {
	if miss := t.Missing(); len(miss) > 0 {
		return fmt.Sprintf("of %d shards these are missing: %s", t.Shards, formatRuns(miss))
	}
	if !t.Complete() {
		return fmt.Sprintf("%d of %d samples are missing, so a shard was stopped before its end", t.Total-len(t.Samples)-len(t.Skipped), t.Total)
	}
	return ""
}

// Merge returns the table of all samples of the given ones, which it leaves
// alone. They must be parts of one run: the same model, data, options and
// number of shards. No sample counts twice: a table all of whose samples are in
// others, such as that of a shard that was run again, adds nothing, but it is
// an error if two tables of the same samples differ, and if two overlap in part.
// The order of the tables does not matter. The result covers the shards of all
// of them; where none is missing it is the table of an undivided run.
func Merge(tables ...*Table) (*Table, error) {
	if len(tables) == 0 {
		return nil, errors.New("no tables to merge")
	}
	first := tables[0]
	out := &Table{
		Model: first.Model, Data: first.Data, Options: first.Options,
		Total: first.Total, Shards: first.Shards, Values: map[string]*Stats{},
		Measured: first.Measured, Sources: first.Sources,
	}
	if first.Unseen != nil {
		out.Unseen = map[string]*Stats{}
	}
	for i, t := range tables {
		if err := first.belongs(t); err != nil {
			return nil, &MergeError{i, 0, err}
		}
		if !slices.Equal(t.Sources, first.Sources) {
			out.Sources = nil
		}
	}
	chosen, err := disjoint(tables)
	if err != nil {
		return nil, err
	}
	unreached := map[string]bool{}
	for _, i := range chosen {
		t := tables[i]
		out.Shards = t.Shards
		out.Have = append(out.Have, t.Have...)
		out.Samples = append(out.Samples, t.Samples...)
		out.Skipped = append(out.Skipped, t.Skipped...)
		for _, m := range [2]struct{ to, from map[string]*Stats }{{out.Values, t.Values}, {out.Unseen, t.Unseen}} {
			for _, name := range slices.Sorted(mapKeys(m.from)) {
				s := m.to[name]
				if s == nil {
					m.to[name] = m.from[name].Clone()
				} else if err := s.Merge(m.from[name]); err != nil {
					return nil, &MergeError{i, -1, fmt.Errorf("value %q: %w", name, err)}
				}
			}
		}
		for _, name := range t.Unreached {
			unreached[name] = true
		}
	}
	for _, name := range slices.Sorted(mapKeys(unreached)) {
		if out.Values[name] == nil {
			out.Unreached = append(out.Unreached, name)
		}
	}
	slices.Sort(out.Have)
	out.Have = slices.Compact(out.Have)
	out.sortSamples()
	if len(out.Missing()) == 0 {
		out.Shards, out.Have = 1, []int{0}
	}
	return out, nil
}

// disjoint chooses of tables of one run those that cover the samples of all,
// each once, those of most samples first.
func disjoint(tables []*Table) ([]int, error) {
	done := make([][]int, len(tables))
	order := make([]int, len(tables))
	for i, t := range tables {
		done[i], order[i] = t.Done(), i
	}
	slices.SortStableFunc(order, func(a, b int) int { return len(done[b]) - len(done[a]) })
	by := map[int]int{} // table by sample
	var chosen, others []int
	for _, i := range order {
		if slices.ContainsFunc(done[i], func(k int) bool { _, taken := by[k]; return taken }) {
			others = append(others, i)
			continue
		}
		chosen = append(chosen, i)
		for _, k := range done[i] {
			by[k] = i
		}
	}
	for _, i := range others {
		j, first := -1, -1
		for _, k := range done[i] {
			if _, taken := by[k]; !taken && first < 0 {
				first = k
			} else if taken && j < 0 {
				j = by[k]
			}
		}
		if first >= 0 {
			return nil, &MergeError{max(i, j), min(i, j), fmt.Errorf("overlap in part: sample %d is in one of them only", first)}
		}
		for _, s := range tables[i].Samples {
			if d, ok := tables[by[s.Index]].Digest(s.Index); ok && d != s.Digest {
				j = by[s.Index]
				return nil, &MergeError{max(i, j), min(i, j), fmt.Errorf("hold different values of sample %d", s.Index)}
			}
		}
		if slices.Equal(done[i], done[j]) && slices.Equal(tables[i].Have, tables[j].Have) && !tables[i].same(tables[j]) {
			return nil, &MergeError{max(i, j), min(i, j), errors.New("are of the same samples, but differ: made by other versions or on other kinds of processors")}
		}
	}
	slices.Sort(chosen)
	return chosen, nil
}

// same reports whether two tables have the same file.
func (t *Table) same(u *Table) bool {
	var a, b bytes.Buffer
	v := *u
	v.Sources = t.Sources
	return t.Encode(&a) == nil && v.Encode(&b) == nil && bytes.Equal(a.Bytes(), b.Bytes())
}

// Change is a value whose range differs between two tables.
type Change struct {
	Name string
	// A and B are the ranges; one is nil where the table lacks the value.
	A, B *quant.Range
	// Moved is the largest move of a bound, as a share of the wider range; 1
	// where one is missing.
	Moved float64
}

// Diff compares the ranges that a method makes of two tables and returns those
// that differ, the most moved first. A value without a range (never produced,
// NaN) counts as missing.
func Diff(a, b *Table, m Method, o MethodOptions) []Change {
	names := map[string]bool{}
	for n := range a.Values {
		names[n] = true
	}
	for n := range b.Values {
		names[n] = true
	}
	get := func(t *Table, name string) *quant.Range {
		if s := t.Values[name]; s != nil {
			if r, err := Range(s, m, o); err == nil {
				return &r
			}
		}
		return nil
	}
	var out []Change
	for _, n := range slices.Sorted(mapKeys(names)) {
		c := Change{Name: n, A: get(a, n), B: get(b, n), Moved: 1}
		switch {
		case c.A == nil && c.B == nil:
			continue
		case c.A != nil && c.B != nil:
			if *c.A == *c.B {
				continue
			}
			move := math.Max(math.Abs(c.A.Min-c.B.Min), math.Abs(c.A.Max-c.B.Max))
			wide := math.Max(c.A.Max-c.A.Min, c.B.Max-c.B.Min)
			if wide > 0 {
				c.Moved = math.Min(move/wide, 1)
			}
		}
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(x, y Change) int { return cmp.Compare(y.Moved, x.Moved) })
	return out
}

// Save writes the table to a file, which is replaced as a whole.
func (t *Table) Save(path string) error {
	return atomicfile.Write(path, 0o644, t.Encode)
}

// tableHead is what stands in a file before the values.
type tableHead struct {
	Format  string          `json:"format"`
	Version int             `json:"version"`
	Model   string          `json:"model"`
	Data    string          `json:"data"`
	Options TableOptions    `json:"options"`
	Total   int             `json:"total"`
	Shards  int             `json:"shards"`
	Have    string          `json:"have"`
	Samples string          `json:"samples"`
	Digests string          `json:"digests"` // 8 bytes for each of Samples
	Skipped []SkippedSample `json:"skipped,omitempty"`
	Sources []string        `json:"sources,omitempty"`

	Unreached []string `json:"unreached,omitempty"`
	Measured  string   `json:"measured,omitempty"`
}

// valueJSON is the form of Stats in a file. Mean, MeanSquare and MeanMagnitude
// are for people and not read back.
type valueJSON struct {
	Count      uint64        `json:"count"`
	NaN        uint64        `json:"nan,omitempty"`
	Inf        uint64        `json:"inf,omitempty"`
	Masked     uint64        `json:"masked,omitempty"`
	Min        *float32      `json:"min,omitempty"`
	Max        *float32      `json:"max,omitempty"`
	Mean       float64       `json:"mean"`
	MeanSquare float64       `json:"mean_square"`
	MeanMag    float64       `json:"mean_magnitude"`
	Sum        Sum           `json:"sum"`
	Squares    Sum           `json:"squares"`
	Magnitudes Sum           `json:"magnitudes"`
	Lowest     []float32     `json:"lowest,omitempty"`
	Highest    []float32     `json:"highest,omitempty"`
	Exp        int           `json:"exp"`
	Hist       string        `json:"hist,omitempty"`
	Samples    string        `json:"samples,omitempty"`
	Channels   *channelsJSON `json:"channels,omitempty"`
}

type channelsJSON struct {
	Axis  int    `json:"axis"`
	Min   string `json:"min,omitempty"`
	Max   string `json:"max,omitempty"`
	Count string `json:"count,omitempty"`
	Sum   []Sum  `json:"sum,omitempty"`
}

// writer makes the parts of a table's file, in memory that it uses again.
type writer struct {
	text   bytes.Buffer
	packed []byte
}

// json returns a value's JSON, valid until the next call.
func (w *writer) json(v any) ([]byte, error) {
	w.text.Reset()
	e := json.NewEncoder(&w.text)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(w.text.Bytes(), []byte("\n")), err
}

// byName yields the values in the order of their names.
func byName(values map[string]*Stats) iter.Seq2[string, *Stats] {
	return func(yield func(string, *Stats) bool) {
		for _, name := range slices.Sorted(mapKeys(values)) {
			if !yield(name, values[name]) {
				return
			}
		}
	}
}

// Encode writes the table's file.
func (t *Table) Encode(w io.Writer) error {
	return t.encode(w, byName(t.Values), byName(t.Unseen))
}

// encode writes the table's file with the given Values and Unseen, by name.
func (t *Table) encode(w io.Writer, values, unseen iter.Seq2[string, *Stats]) error {
	b := bufio.NewWriter(w)
	var digests []byte
	for _, s := range t.Samples {
		digests = binary.BigEndian.AppendUint64(digests, s.Digest)
	}
	var wr writer
	head, err := wr.json(tableHead{
		tableFormat, tableVersion, t.Model, t.Data, t.Options, t.Total, t.Shards,
		formatRuns(t.Have), formatRuns(t.indices()), base64.RawStdEncoding.EncodeToString(digests), t.Skipped, t.Sources, t.Unreached, formatRuns(t.Measured),
	})
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := json.Indent(&text, head, "", " "); err != nil {
		return err
	}
	b.Write(bytes.TrimSuffix(text.Bytes(), []byte("\n}")))
	if err := t.encodeValues(b, &wr, "values", values); err != nil {
		return err
	}
	if t.Unseen != nil {
		if err := t.encodeValues(b, &wr, "unseen", unseen); err != nil {
			return err
		}
	}
	b.WriteString("\n}\n")
	return b.Flush()
}

// encodeValues writes a member of the file's object, with a value a line.
func (t *Table) encodeValues(b *bufio.Writer, wr *writer, member string, values iter.Seq2[string, *Stats]) error {
	fmt.Fprintf(b, ",\n %q: {", member)
	separator := ""
	for name, s := range values {
		if !utf8.ValidString(name) {
			return fmt.Errorf("value %q: its name is not valid UTF-8, so it cannot be written as JSON", name)
		}
		if len(s.Hist.Counts) != 2*t.Options.Bins {
			return fmt.Errorf("value %q has %d bins a side, the table %d", name, len(s.Hist.Counts)/2, t.Options.Bins)
		}
		b.WriteString(separator + "\n  ")
		separator = ","
		key, err := wr.json(name)
		if err != nil {
			return err
		}
		b.Write(key)
		b.WriteString(": ")
		val, err := wr.stats(s)
		if err != nil {
			return err
		}
		b.Write(val)
	}
	_, err := b.WriteString("\n }")
	return err
}

// stats returns the form of statistics in a file, valid until the next call.
func (w *writer) stats(s *Stats) ([]byte, error) {
	v := valueJSON{
		Count: s.Count, NaN: s.NaN, Inf: s.Inf, Masked: s.Masked,
		Mean: s.Mean(), MeanSquare: s.MeanSquare(), MeanMag: s.MeanMagnitude(),
		Sum: s.Sum, Squares: s.Squares, Magnitudes: s.Magnitudes, Lowest: s.Lowest, Highest: s.Highest,
		Exp: s.Hist.Exp, Hist: w.counts(s.Hist.Counts), Samples: w.ranges(s.Samples),
	}
	if s.Count > 0 {
		v.Min, v.Max = &s.Min, &s.Max
	}
	if c := s.Channels; c != nil {
		v.Channels = &channelsJSON{c.Axis, w.floats(c.Min), w.floats(c.Max), w.counts(c.Count), c.Sum}
	}
	return w.json(&v)
}

// Load reads a table from a file. The error names the file, and the value where
// it is about one.
func Load(path string) (*Table, error) {
	data, err := readAll(path, maxTableFile)
	if err != nil {
		var de *DataError
		if errors.As(err, &de) {
			err = de.Err
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t, err := Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// Decode reads the contents of a table's file.
func Decode(data []byte) (*Table, error) {
	var f struct {
		tableHead
		Values map[string]json.RawMessage `json:"values"`
		Unseen map[string]json.RawMessage `json:"unseen"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("not a calibration table: %w", err)
	}
	switch {
	case f.Format != tableFormat:
		return nil, errors.New("not a calibration table")
	case f.Version != tableVersion:
		return nil, fmt.Errorf("calibration table of version %d, this program reads %d", f.Version, tableVersion)
	case f.Options.Bins < 1 || f.Options.Bins > min(MaxBins, maxTableBins/max(len(f.Values)+len(f.Unseen), 1)):
		return nil, fmt.Errorf("%d histogram bins for each of %d values", f.Options.Bins, len(f.Values)+len(f.Unseen))
	case f.Shards < 1 || f.Total < 0 || f.Shards > maxShards || f.Total > maxRunEnd:
		return nil, fmt.Errorf("%d samples in %d shards", f.Total, f.Shards)
	}
	t := &Table{
		Model: f.Model, Data: f.Data, Options: f.Options, Total: f.Total, Shards: f.Shards,
		Skipped: f.Skipped, Sources: f.Sources, Unreached: f.Unreached, Values: map[string]*Stats{},
	}
	// An empty list is written as none.
	for _, list := range []*[]string{&t.Options.State, &t.Sources, &t.Unreached} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	if len(t.Skipped) == 0 {
		t.Skipped = nil
	}
	if f.Unseen != nil {
		t.Unseen = map[string]*Stats{}
	}
	var err error
	if t.Have, err = parseRuns(f.Have, f.Shards); err != nil {
		return nil, fmt.Errorf("shards: %w", err)
	}
	// Indices count the samples of the source, held out ones included.
	indices, err := parseRuns(f.Samples, maxRunEnd)
	if err != nil {
		return nil, fmt.Errorf("samples: %w", err)
	}
	digests, err := base64.RawStdEncoding.DecodeString(f.Digests)
	if err != nil {
		return nil, fmt.Errorf("digests: %w", err)
	}
	if len(digests) != 8*len(indices) {
		return nil, fmt.Errorf("digests: %d bytes for %d samples", len(digests), len(indices))
	}
	for i, k := range indices {
		t.Samples = append(t.Samples, TableSample{k, binary.BigEndian.Uint64(digests[8*i:])})
	}
	if t.Measured, err = parseRuns(f.Measured, maxRunEnd); err != nil {
		return nil, fmt.Errorf("measured: %w", err)
	}
	if !slices.IsSorted(t.Unreached) {
		return nil, errors.New("unreached: the names are not sorted")
	}
	for _, m := range [2]struct {
		to   map[string]*Stats
		from map[string]json.RawMessage
	}{{t.Values, f.Values}, {t.Unseen, f.Unseen}} {
		for _, name := range slices.Sorted(mapKeys(m.from)) {
			if m.to[name], err = decodeStats(m.from[name], f.Options.Bins); err != nil {
				return nil, fmt.Errorf("value %q: %w", name, err)
			}
		}
	}
	return t, nil
}

// decodeStats reads what a file says of a value, and checks that its parts fit
// each other.
func decodeStats(data []byte, bins int) (*Stats, error) {
	var v valueJSON
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	inf := float32(math.Inf(1))
	s := &Stats{
		Count: v.Count, NaN: v.NaN, Inf: v.Inf, Masked: v.Masked, Min: inf, Max: -inf,
		Sum: v.Sum, Squares: v.Squares, Magnitudes: v.Magnitudes, Hist: Histogram{Exp: v.Exp},
		Lowest: v.Lowest, Highest: v.Highest,
	}
	var err error
	if s.Hist.Counts, err = unpackCounts(v.Hist, 2*bins); err != nil {
		return nil, fmt.Errorf("histogram: %w", err)
	}
	var total uint64
	for _, n := range s.Hist.Counts {
		if n > math.MaxUint64-total {
			return nil, errors.New("histogram: the counts overflow")
		}
		total += n
	}
	if total != v.Count {
		return nil, fmt.Errorf("histogram: it counts %d elements of %d", total, v.Count)
	}
	if v.Exp < minExp || v.Exp > 128 {
		return nil, fmt.Errorf("histogram: bins of width 2^%d", v.Exp)
	}
	if v.Count > 0 {
		if v.Min == nil || v.Max == nil || !(*v.Min <= *v.Max) || !s.Hist.fits(*v.Min, *v.Max, v.Exp) {
			return nil, errors.New("min and max are missing, in the wrong order, or outside the histogram")
		}
		if v.Exp > minExp && s.Hist.fits(*v.Min, *v.Max, v.Exp-1) {
			return nil, fmt.Errorf("histogram: bins of width 2^%d are wider than min and max need", v.Exp)
		}
		s.Min, s.Max = *v.Min, *v.Max
	}
	for k, list := range [2][]float32{s.Lowest, s.Highest} {
		sign := float32(2*k - 1)
		n := int(min(v.Count, extremes))
		if len(list) != n || n > 0 && list[0] != [2]float32{s.Min, s.Max}[k] || !slices.IsSortedFunc(list, func(a, b float32) int { return cmp.Compare(b*sign, a*sign) }) || n > 0 && !(list[n-1] >= s.Min && list[n-1] <= s.Max) {
			return nil, errors.New("lowest and highest do not fit count, min and max")
		}
	}
	b, err := base64.RawStdEncoding.DecodeString(v.Samples)
	if err != nil {
		return nil, fmt.Errorf("samples: %w", err)
	}
	for last := -1; len(b) > 0; {
		d, n := binary.Uvarint(b)
		if n <= 0 || d > maxRunEnd || last+1+int(d) > maxRunEnd || len(b) < n+8 {
			return nil, errors.New("samples: malformed")
		}
		last += 1 + int(d)
		r := SampleRange{last, math.Float32frombits(binary.LittleEndian.Uint32(b[n:])), math.Float32frombits(binary.LittleEndian.Uint32(b[n+4:]))}
		if !(r.Min <= r.Max && r.Min >= s.Min && r.Max <= s.Max) {
			return nil, fmt.Errorf("sample %d: range [%v, %v]", last, r.Min, r.Max)
		}
		s.Samples = append(s.Samples, r)
		b = b[n+8:]
	}
	if c := v.Channels; c != nil {
		n := len(c.Sum)
		ch := &Channels{Axis: c.Axis, Sum: c.Sum}
		if ch.Min, err = unpackFloats(c.Min, n); err == nil {
			ch.Max, err = unpackFloats(c.Max, n)
		}
		if err == nil && n > 0 {
			ch.Count, err = unpackCounts(c.Count, n)
		}
		if err == nil && c.Axis < 0 {
			err = fmt.Errorf("axis %d", c.Axis)
		}
		if err != nil {
			return nil, fmt.Errorf("channels: %w", err)
		}
		s.Channels = ch
	}
	return s, nil
}

// counts writes numbers as base64 of varints; a zero is followed by the number
// of further zeros, and those at the end are left out.
func (w *writer) counts(counts []uint64) string {
	n := len(counts)
	for n > 0 && counts[n-1] == 0 {
		n--
	}
	b := w.packed[:0]
	for i := 0; i < n; i++ {
		b = binary.AppendUvarint(b, counts[i])
		if counts[i] == 0 {
			run := i
			for counts[i+1] == 0 {
				i++
			}
			b = binary.AppendUvarint(b, uint64(i-run))
		}
	}
	w.packed = b
	return base64.RawStdEncoding.EncodeToString(b)
}

// ranges writes ranges as base64 of the distance from the index before as a
// varint, and the bounds.
func (w *writer) ranges(list []SampleRange) string {
	b := w.packed[:0]
	last := -1
	for _, r := range list {
		b = binary.AppendUvarint(b, uint64(r.Index-last-1))
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(r.Min))
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(r.Max))
		last = r.Index
	}
	w.packed = b
	return base64.RawStdEncoding.EncodeToString(b)
}

func unpackCounts(s string, n int) ([]uint64, error) {
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, err
	}
	out := make([]uint64, n)
	for i := 0; len(b) > 0; i++ {
		v, k := binary.Uvarint(b)
		if k <= 0 || i >= n {
			return nil, errors.New("malformed counts")
		}
		out[i] = v
		b = b[k:]
		if v == 0 {
			run, k := binary.Uvarint(b)
			if k <= 0 || run > uint64(n-i) {
				return nil, errors.New("malformed counts")
			}
			i += int(run)
			b = b[k:]
		}
	}
	return out, nil
}

func (w *writer) floats(v []float32) string {
	b := w.packed[:0]
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	w.packed = b
	return base64.RawStdEncoding.EncodeToString(b)
}

func unpackFloats(s string, n int) ([]float32, error) {
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, err
	}
	if len(b) != 4*n {
		return nil, fmt.Errorf("%d bytes for %d numbers", len(b), n)
	}
	var out []float32
	for ; len(b) > 0; b = b[4:] {
		x := math.Float32frombits(binary.LittleEndian.Uint32(b))
		if x != x {
			return nil, errors.New("NaN")
		}
		out = append(out, x)
	}
	return out, nil
}

const maxRunEnd = 1 << 30

// formatRuns writes sorted numbers as "0-3,5".
func formatRuns(v []int) string {
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(v[i]))
		j := i
		for j+1 < len(v) && v[j+1] == v[j]+1 {
			j++
		}
		if j > i {
			b.WriteString("-" + strconv.Itoa(v[j]))
		}
		i = j
	}
	return b.String()
}

// parseRuns reads what formatRuns writes; all numbers are below end. The form
// is short for its contents, so their number is bounded as well.
func parseRuns(s string, end int) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	const most = 1 << 24
	var out []int
	last := -1
	for _, p := range strings.Split(s, ",") {
		a, z, both := strings.Cut(p, "-")
		if !both {
			z = a
		}
		lo, err1 := strconv.Atoi(a)
		hi, err2 := strconv.Atoi(z)
		if err1 != nil || err2 != nil || lo <= last || hi < lo || hi >= end || hi-lo >= most-len(out) {
			return nil, fmt.Errorf("%.40q is no ascending list such as 0-3,5", s)
		}
		for k := lo; k <= hi; k++ {
			out = append(out, k)
		}
		last = hi
	}
	return out, nil
}
