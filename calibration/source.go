package calibration

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/onnxq/onnxq/calibration/images"
	"github.com/onnxq/onnxq/tensor"
)

// Input describes a graph input that is not an initializer.
type Input struct {
	Name  string
	DType tensor.DType
	// Shape holds the dimensions, negative ones where any size fits; nil means
	// that even the rank is free.
	Shape []int
	// Symbols names free dimensions, "" for one without a name; nil means that
	// none has one. Within a sample all dimensions of one name are equal.
	Symbols []string
	// Optional inputs may be missing from samples, since the caller feeds them
	// (recurrent state, say).
	Optional bool
}

// String returns the element type and the shape, such as "float[?,3]".
func (in Input) String() string {
	if in.Shape == nil {
		return in.DType.String() + "[...]"
	}
	return in.DType.String() + shapeText(in.Shape)
}

func shapeText(shape []int) string {
	parts := make([]string, len(shape))
	for i, d := range shape {
		parts[i] = "?"
		if d >= 0 {
			parts[i] = strconv.Itoa(d)
		}
	}
	return "[" + strings.Join(parts, ",") + "]"
}

// Options say how sources are read.
type Options struct {
	// Batched cuts the arrays of .npz, .npy and .safetensors files along axis
	// 0: each row (or each group of as many rows as the input's first
	// dimension demands) is a sample.
	Batched bool
	// Cast allows conversion to the input's element type: between
	// floating-point types with rounding, otherwise only of values that are
	// kept exactly.
	Cast bool
	// Image is a recipe of package images; "" for none.
	Image string
	// Seed starts the values of random:N.
	Seed uint64
	// SkipBad is the number of bad samples that Skip accepts.
	SkipBad int
	// MaxBytes bounds the memory of one sample; 0 means 1 GiB.
	MaxBytes int64
	// Stdin is read for the source "-".
	Stdin io.Reader `json:"-"`
	// Store has what sources name by URL.
	Store Store `json:"-"`
	// Listed has what Source.Listed gave for the same sources, so that they are
	// not listed again.
	Listed map[string][]StoredFile `json:"-"`
	// ReadTensor reads a file of size bytes that is one TensorProto; nil where
	// .pb files are not read.
	ReadTensor func(r io.ReaderAt, size int64) (name string, t *tensor.Tensor, err error) `json:"-"`
}

const defaultMaxBytes = 1 << 30

func (o *Options) maxBytes() int64 {
	if o.MaxBytes > 0 {
		return o.MaxBytes
	}
	return defaultMaxBytes
}

// DataError is an error about what a source names. Fields that do not apply
// are "".
type DataError struct {
	Path   string // file or folder, or the source as it was given
	Sample string
	Input  string
	Err    error
	// Every is set where no sample of the source can be used.
	Every bool
}

// Error names the path, the sample where the path does not say it, and the
// input.
func (e *DataError) Error() string {
	var b strings.Builder
	b.WriteString(printable(e.Path))
	if base := filepath.Base(e.Path); e.Sample != "" && e.Sample != base && e.Sample != stem(base) {
		b.WriteString(": sample " + printable(e.Sample))
	}
	if e.Input != "" {
		fmt.Fprintf(&b, ": input %q", e.Input)
	}
	return b.String() + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *DataError) Unwrap() error { return e.Err }

// printable quotes a name that a terminal could not show.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) || !utf8.ValidString(s) {
		return strconv.Quote(s)
	}
	return s
}

// MissingError says which inputs a sample does not hold.
type MissingError struct {
	Inputs []string // the inputs that are missing, in the order of the model
	Has    []string // what the sample holds
}

// Error names the inputs, and what the sample holds instead.
func (e *MissingError) Error() string {
	quoted := make([]string, len(e.Inputs))
	for i, n := range e.Inputs {
		quoted[i] = strconv.Quote(n)
	}
	s := "no value for input " + quoted[0]
	if len(quoted) > 1 {
		s = "no values for inputs " + strings.Join(quoted, ", ")
	}
	if len(e.Has) == 0 {
		return s + " (the sample is empty)"
	}
	return s + fmt.Sprintf(" (the sample holds %q)", e.Has)
}

// Feed is a value for each input of one run, by input name.
type Feed map[string]*tensor.Tensor

// Sample describes one sample without its values.
type Sample struct {
	// Name is the file name without extension or the folder's name, with the
	// row behind it where one file holds several ("batch_000012"). It is
	// unique within a source.
	Name string
	// Path is the file or folder that the sample comes from.
	Path string
	// Index is the sample's place in the whole source that was opened; it
	// stays what it is in parts of it.
	Index int
	// Row is the sample's place within its file; 0 starts a new sequence for
	// models whose state is fed back.
	Row int

	rel  string
	size int64
	load func(ctx context.Context) (opened, error)
}

// Source is an ordered list of samples, each read when it is asked for. All
// methods may be called by several goroutines at once.
type Source struct {
	samples []Sample
	*shared
}

// shared is what the parts of a source have in common.
type shared struct {
	inputs []Input
	opts   Options
	hash   string
	closer []io.Closer
	listed map[string][]StoredFile
	cache  wholeCache

	mu    sync.Mutex
	notes map[string]bool
	bad   map[int]*DataError
}

// Open lists the samples of the given sources, one after another, for a model
// with the given inputs. A source is
//
//   - a file *.npz, *.npy or *.safetensors (one feed), or *.jsonl (one feed a
//     line: an object from input names to nested arrays), or an image;
//   - a folder with input_0.pb, input_1.pb ... (one feed; J counts the inputs);
//   - a folder of such files or folders, all of one kind, at any depth, in
//     bytewise order of the relative path; other files are noted, hidden ones
//     and output_*.pb are not;
//   - a URL ("s3://bucket/samples") of such a file or folder in Options.Store;
//   - "-", a stream of .npz archives one behind the other;
//   - "random:N", N samples of made-up values: about normally distributed for
//     floating-point inputs, any value for those of 8 bits, and 0 or 1 for
//     other integers and bool; free dimensions are 1.
//
// Values go to inputs by name. Names that no input has may be input_J or arr_J
// for the J-th input, and a single value for a single input needs none. All
// errors are of type *DataError, except for those of ctx and one about a
// malformed Options.Image. Close the source.
func Open(ctx context.Context, specs []string, inputs []Input, opts Options) (*Source, error) {
	s := &Source{shared: &shared{
		inputs: slices.Clone(inputs), opts: opts,
		notes: map[string]bool{}, bad: map[int]*DataError{},
	}}
	var recipe *images.Recipe
	if opts.Image != "" {
		var err error
		if recipe, err = images.ParseRecipe(opts.Image); err != nil {
			return nil, err
		}
	}
	for _, spec := range specs {
		o := &opener{shared: s.shared, recipe: recipe, ctx: ctx}
		samples, err := o.open(spec)
		if err != nil {
			s.Close()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			var de *DataError
			if !errors.As(err, &de) {
				err = &DataError{Path: spec, Err: err}
			}
			return nil, err
		}
		s.samples = append(s.samples, samples...)
	}
	if len(s.samples) == 0 {
		s.Close()
		return nil, &DataError{Path: strings.Join(specs, ", "), Err: errors.New("no samples")}
	}
	h := sha256.New()
	for i := range s.samples {
		sm := &s.samples[i]
		sm.Index = i
		if i%4096 == 0 && ctx.Err() != nil {
			s.Close()
			return nil, ctx.Err()
		}
		fmt.Fprintf(h, "%d %d %q\n", sm.size, sm.Row, sm.rel)
	}
	s.hash = hex.EncodeToString(h.Sum(nil))
	unique(s.samples)
	return s, nil
}

// unique gives samples of equal names longer ones.
func unique(samples []Sample) {
	count := map[string]int{}
	for _, sm := range samples {
		count[sm.Name]++
	}
	taken := map[string]bool{}
	for i := range samples {
		sm := &samples[i]
		switch sm.Name {
		case "", ".", "..": // no names for files of results
			sm.Name = "sample"
		}
		if count[sm.Name] > 1 {
			dir, _ := filepath.Split(filepath.FromSlash(sm.rel))
			sm.Name = strings.NewReplacer("/", "_", `\`, "_").Replace(filepath.ToSlash(dir)) + sm.Name
		}
		name := sm.Name
		for k := 2; taken[name]; k++ {
			name = fmt.Sprintf("%s-%d", sm.Name, k)
		}
		taken[name] = true
		sm.Name = name
	}
}

// Close frees what the source holds open.
func (s *Source) Close() error {
	var errs []error
	for _, c := range s.closer {
		errs = append(errs, c.Close())
	}
	s.closer = nil
	return errors.Join(errs...)
}

// Len returns the number of samples.
func (s *Source) Len() int { return len(s.samples) }

// Sample describes sample i, from 0 to Len()-1.
func (s *Source) Sample(i int) Sample { return s.samples[i] }

// Hash returns a digest, in hexadecimal, of the order, relative names and sizes
// of all samples of the opened source; parts of a source have its hash. It is
// the same on every machine that holds the same files.
func (s *Source) Hash() string { return s.hash }

// Load reads sample i and checks it: every input has a value of its element
// type and shape, and no value is NaN or infinite. Errors are of type
// *DataError, except for those of ctx.
func (s *Source) Load(ctx context.Context, i int) (Feed, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sm := &s.samples[i]
	feed, err := s.read(ctx, sm)
	if err == nil {
		return feed, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var de *DataError
	if !errors.As(err, &de) {
		de = &DataError{Err: err}
	}
	d := *de
	if d.Path == "" {
		d.Path = sm.Path
	}
	d.Sample = sm.Name
	return nil, &d
}

// Skip reports whether the error, which Load returned for sample i, may be
// passed over: the first Options.SkipBad bad samples of a source may. They are
// listed by Skipped.
func (s *Source) Skip(i int, err error) bool {
	var de *DataError
	if !errors.As(err, &de) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.samples[i].Index
	if s.bad[k] == nil && len(s.bad) >= s.opts.SkipBad {
		return false
	}
	s.bad[k] = de
	return true
}

// Skipped returns the errors of the samples that were passed over, by index.
func (s *Source) Skipped() []*DataError {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*DataError
	for _, k := range slices.Sorted(mapKeys(s.bad)) {
		out = append(out, s.bad[k])
	}
	return out
}

// Check loads every sample once. Up to Options.SkipBad bad ones are skipped; the
// error on more is a DataError about the first, which names the others too.
func (s *Source) Check(ctx context.Context) error {
	var bad []*DataError
	var at []int
	for i := range s.samples {
		_, err := s.Load(ctx, i)
		var de *DataError
		switch {
		case err == nil:
		case errors.As(err, &de):
			bad, at = append(bad, de), append(at, i)
		default:
			return err
		}
	}
	if len(bad) > s.opts.SkipBad {
		return s.tooMany(bad)
	}
	for k, i := range at {
		s.Skip(i, bad[k])
	}
	return nil
}

// AllBad returns err, or where that is about a sample and more of them are bad,
// the error of Check, which names these too.
func (s *Source) AllBad(ctx context.Context, err error) error {
	var de *DataError
	if errors.As(err, &de) {
		if all := s.Check(ctx); errors.As(all, &de) {
			return all
		}
	}
	return err
}

// tooMany joins errors about samples, more than may be skipped, into one.
func (s *Source) tooMany(bad []*DataError) error {
	if len(bad) == 1 {
		return bad[0]
	}
	const most = 20
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d samples are bad", len(bad), len(s.samples))
	if n := s.opts.SkipBad; n > 0 {
		fmt.Fprintf(&b, ", %d may be skipped", n)
	}
	for _, e := range bad[1:min(len(bad), most)] {
		b.WriteString("\n  " + e.Error())
	}
	if len(bad) > most {
		fmt.Fprintf(&b, "\n  and %d more", len(bad)-most)
	}
	first := *bad[0]
	first.Err, first.Every = fmt.Errorf("%w; %s", first.Err, b.String()), len(bad) == len(s.samples)
	return &first
}

// Notes returns what the user should know about the source, sorted: files left
// out, arrays that are no inputs, conversions made, how images are cut. Notes
// about samples appear when these are loaded.
func (s *Source) Notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(mapKeys(s.notes))
}

func (s *shared) note(format string, args ...any) {
	s.mu.Lock()
	s.notes[fmt.Sprintf(format, args...)] = true
	s.mu.Unlock()
}

func (s *Source) part(keep func(k int) bool) *Source {
	p := &Source{shared: s.shared}
	for k, sm := range s.samples {
		if keep(k) {
			p.samples = append(p.samples, sm)
		}
	}
	return p
}

// Split cuts off the last n samples as held out; a negative n means a tenth of
// the samples, rounded down. It is an error if none would be left.
func (s *Source) Split(n int) (rest, held *Source, err error) {
	total := len(s.samples)
	if n < 0 {
		n = total / 10
	}
	if n >= total {
		return nil, nil, &DataError{Path: s.samples[0].Path, Err: fmt.Errorf("%d samples held out of %d leave none to calibrate on", n, total)}
	}
	cut := total - n
	return s.part(func(k int) bool { return k < cut }), s.part(func(k int) bool { return k >= cut }), nil
}

// Shard returns the samples k of s with k mod n = i, counted from the start of
// s; it may be empty. It panics unless 0 <= i < n.
func (s *Source) Shard(i, n int) *Source {
	if i < 0 || i >= n {
		panic(fmt.Sprintf("calibration: shard %d of %d", i, n))
	}
	return s.part(func(k int) bool { return k%n == i })
}

// Limit returns at most n samples, spread evenly from the first on.
func (s *Source) Limit(n int) *Source {
	total := len(s.samples)
	if n >= total || n < 0 {
		return s
	}
	p := &Source{shared: s.shared}
	for j := range n {
		p.samples = append(p.samples, s.samples[int(int64(j)*int64(total)/int64(n))])
	}
	return p
}

// First returns the first n samples, or all where there are fewer: for
// recurrent models, whose samples follow one another.
func (s *Source) First(n int) *Source { return s.part(func(k int) bool { return k < n }) }

// Without returns the samples whose Index is not in done, which is sorted.
func (s *Source) Without(done []int) *Source {
	return s.part(func(k int) bool {
		_, found := slices.BinarySearchFunc(done, s.samples[k].Index, cmp.Compare[int])
		return !found
	})
}

// Parts cuts s into at most n parts of about equal numbers of samples, none
// empty, in order. With files set, a file is never cut, so that state can be
// carried through it.
func (s *Source) Parts(n int, files bool) []*Source {
	units := sequences(s, files)
	n = max(1, min(n, len(units)))
	parts := make([]*Source, 0, n)
	at := 0
	for i := range n {
		// As many units as bring the part's end to its share.
		end := at + 1
		for len(units)-end > n-1-i && int64(units[end-1][1])*int64(n) < int64(i+1)*int64(s.Len()) {
			end++
		}
		if i == n-1 {
			end = len(units)
		}
		parts = append(parts, &Source{samples: s.samples[units[at][0]:units[end-1][1]], shared: s.shared})
		at = end
	}
	return parts
}

// Indices writes the Index of each sample as "0-3,5"; Pick reads it.
func (s *Source) Indices() string {
	list := make([]int, len(s.samples))
	for i := range list {
		list[i] = s.samples[i].Index
	}
	return formatRuns(list)
}

// Pick returns the samples that Indices of a part of an equal source names. The
// error says which of them s does not have.
func (s *Source) Pick(indices string) (*Source, error) {
	want, err := parseRuns(indices, maxRunEnd)
	if err != nil {
		return nil, err
	}
	p := &Source{shared: s.shared}
	k := 0
	for _, index := range want {
		for k < len(s.samples) && s.samples[k].Index < index {
			k++
		}
		if k == len(s.samples) || s.samples[k].Index != index {
			return nil, fmt.Errorf("there is no sample %d", index)
		}
		p.samples = append(p.samples, s.samples[k])
	}
	return p, nil
}
