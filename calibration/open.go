package calibration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/onnxq/onnxq/calibration/images"
)

func mapKeys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }

func stem(name string) string { return strings.TrimSuffix(name, filepath.Ext(name)) }

// The kinds of sources, as they are called in messages.
const (
	kindNpz         = ".npz"
	kindNpy         = ".npy"
	kindJSONL       = ".jsonl"
	kindSafetensors = ".safetensors"
	kindImage       = "image"
	kindProto       = "input_J.pb folder"
)

var kindOf = map[string]string{
	".npz": kindNpz, ".npy": kindNpy, ".jsonl": kindJSONL, ".safetensors": kindSafetensors,
	".jpg": kindImage, ".jpeg": kindImage, ".png": kindImage, ".gif": kindImage,
	".webp": kindImage, ".bmp": kindImage, ".tif": kindImage, ".tiff": kindImage,
}

const supported = "*.npz, *.npy, *.jsonl, *.safetensors, images, or folders with input_0.pb"

// Limits on what a folder may hold.
const (
	maxEntries = 1 << 22
	maxDepth   = 64
)

// file is a file that holds samples, or a folder with input_J.pb files.
type file struct {
	path, rel string
	kind      string
	size      int64
	protos    map[int]string // paths by J
}

// opener turns one source into samples.
type opener struct {
	*shared
	recipe  *images.Recipe
	fitted  *images.Recipe
	ctx     context.Context
	files   []file
	others  []string
	entries int
}

func (o *opener) open(spec string) ([]Sample, error) {
	switch {
	case spec == "-":
		return o.openStream()
	case strings.HasPrefix(spec, "random:"):
		return o.openRandom(spec)
	}
	list := o.local
	if IsURL(spec) {
		list = o.stored
	}
	if err := list(spec); err != nil {
		return nil, err
	}
	if err := o.oneKind(spec); err != nil {
		return nil, err
	}
	slices.SortFunc(o.files, func(a, b file) int { return strings.Compare(a.rel, b.rel) })
	var samples []Sample
	for _, f := range o.files {
		if err := o.ctx.Err(); err != nil {
			return nil, err
		}
		sms, err := o.samplesOf(f)
		if err != nil {
			var de *DataError
			if !errors.As(err, &de) {
				err = &DataError{Path: f.path, Err: err}
			}
			return nil, err
		}
		samples = append(samples, sms...)
	}
	return samples, nil
}

// local lists the files at a path.
func (o *opener) local(spec string) error {
	info, err := os.Stat(spec)
	switch {
	case err != nil:
		return pathError(spec, err)
	case info.IsDir():
		return o.walk(spec, "", []fs.FileInfo{info})
	case !info.Mode().IsRegular():
		return &DataError{Path: spec, Err: errIrregular}
	}
	return o.single(spec, info.Size())
}

// pathError says what is wrong with a path without repeating it.
func pathError(path string, err error) *DataError {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	switch {
	case errors.Is(err, syscall.ELOOP):
		err = fmt.Errorf("symbolic links form a loop (%w)", err)
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("no such file or folder (%w)", fs.ErrNotExist)
	}
	return &DataError{Path: path, Err: err}
}

var errIrregular = errors.New("is not a regular file (a pipe, socket or device)")

// single takes one file of the given size.
func (o *opener) single(spec string, size int64) error {
	base := filepath.Base(spec)
	if j, ok := protoIndex(base, "input_"); ok {
		o.files = append(o.files, file{path: spec, rel: stem(base), kind: kindProto, size: size, protos: map[int]string{j: spec}})
		return nil
	}
	kind := kindOf[strings.ToLower(filepath.Ext(base))]
	if kind == "" {
		return &DataError{Path: spec, Err: errors.New("not a kind of data that is read: want " + supported)}
	}
	o.files = append(o.files, file{path: spec, rel: base, kind: kind, size: size})
	return nil
}

// kindIn returns the kind of a file in a folder by its name, "" if it is no data,
// and J of input_J.pb; ok is false where it is passed over without a word.
func kindIn(name string) (kind string, j int, ok bool) {
	if _, out := protoIndex(name, "output_"); out || strings.HasPrefix(name, ".") {
		return "", 0, false
	}
	if j, ok := protoIndex(name, "input_"); ok {
		return kindProto, j, true
	}
	return kindOf[strings.ToLower(filepath.Ext(name))], 0, true
}

// protoIndex returns J of PREFIXJ.pb.
func protoIndex(name, prefix string) (int, bool) {
	s, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	s, ok = strings.CutSuffix(s, ".pb")
	if !ok || s == "" || len(s) > 6 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	j, err := strconv.ParseUint(s, 10, 32)
	return int(j), err == nil
}

// walk lists a folder and those below it; above holds the folders on the way.
func (o *opener) walk(dir, rel string, above []fs.FileInfo) error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
	if len(above) > maxDepth {
		return &DataError{Path: dir, Err: fmt.Errorf("folders are nested more than %d deep", maxDepth)}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return pathError(dir, err)
	}
	if o.entries += len(entries); o.entries > maxEntries {
		return &DataError{Path: dir, Err: fmt.Errorf("more than %d files", maxEntries)}
	}
	protos := file{path: dir, rel: rel, kind: kindProto, protos: map[int]string{}}
	for _, e := range entries {
		name := e.Name()
		p, r := filepath.Join(dir, name), path.Join(rel, name)
		kind, j, ok := kindIn(name)
		if !ok {
			continue
		}
		info, err := e.Info()
		if err == nil && info.Mode()&fs.ModeSymlink != 0 {
			info, err = os.Stat(p)
		}
		switch {
		case err != nil:
			return pathError(p, err)
		case info.IsDir():
			for _, a := range above {
				if os.SameFile(a, info) {
					return &DataError{Path: p, Err: errors.New("symbolic links form a loop: the folder holds itself")}
				}
			}
			if err := o.walk(p, r, append(above[:len(above):len(above)], info)); err != nil {
				return err
			}
		case kind == "":
			o.others = append(o.others, r)
		case !info.Mode().IsRegular():
			return &DataError{Path: p, Err: errIrregular}
		case kind == kindProto:
			protos.protos[j] = p
			protos.size += info.Size()
		default:
			o.files = append(o.files, file{path: p, rel: r, kind: kind, size: info.Size()})
		}
	}
	if len(protos.protos) > 0 {
		if protos.rel == "" {
			protos.rel = filepath.Base(filepath.Clean(dir))
		}
		o.files = append(o.files, protos)
	}
	return nil
}

func (o *opener) oneKind(spec string) error {
	count := map[string]int{}
	for _, f := range o.files {
		count[f.kind]++
	}
	if len(count) > 1 {
		var parts []string
		for _, k := range slices.Sorted(mapKeys(count)) {
			parts = append(parts, fmt.Sprintf("%d of kind %s", count[k], k))
		}
		return &DataError{Path: spec, Err: fmt.Errorf("a folder must hold data of one kind, this one mixes %s", strings.Join(parts, ", "))}
	}
	list := ""
	slices.Sort(o.others)
	if n := len(o.others); n > 0 {
		shown := make([]string, 0, 5)
		for _, name := range o.others[:min(n, 5)] {
			shown = append(shown, printable(name))
		}
		list = strings.Join(shown, ", ")
		if n > 5 {
			list += ", ..."
		}
	}
	if len(o.files) == 0 {
		err := errors.New("the folder is empty")
		if list != "" {
			err = fmt.Errorf("no data in the folder: want %s; it holds %d other files: %s", supported, len(o.others), list)
		}
		return &DataError{Path: spec, Err: err}
	}
	if list != "" {
		o.note("%s: %d files that are no data left out: %s", spec, len(o.others), list)
	}
	return nil
}

// openRegular opens a file for reading and refuses what is not a regular file,
// without waiting for the other end of a pipe.
func openRegular(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, pathError(path, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errIrregular
	}
	if err != nil {
		f.Close()
		return nil, 0, pathError(path, err)
	}
	return f, info.Size(), nil
}

// readAll reads a whole file of at most limit bytes.
func readAll(path string, limit int64) ([]byte, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fmt.Errorf("the file has %d bytes, at most %d are allowed", size, limit)
	}
	b := make([]byte, size)
	if n, err := io.ReadFull(f, b); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			err = fmt.Errorf("the file shrank from %d to %d bytes", size, n)
		}
		return nil, err
	}
	return b, nil
}

// samplesOf lists the samples of one file.
func (o *opener) samplesOf(f file) ([]Sample, error) {
	base := Sample{Name: stem(path.Base(f.rel)), Path: f.path, rel: f.rel, size: f.size}
	if f.kind == kindProto {
		base.Name = path.Base(f.rel)
	}
	switch f.kind {
	case kindJSONL:
		return o.openLines(f, base)
	case kindImage:
		if err := o.fitRecipe(f.path); err != nil {
			return nil, err
		}
		base.load = func(ctx context.Context) (opened, error) { return o.readImage(ctx, f.path) }
	case kindProto:
		if o.opts.ReadTensor == nil {
			return nil, errors.New(".pb files are not read here")
		}
		base.load = func(ctx context.Context) (opened, error) { return o.readProtos(ctx, f) }
	default:
		base.load = func(ctx context.Context) (opened, error) { return o.openArrays(ctx, f) }
		if o.opts.Batched {
			return o.openRows(base)
		}
	}
	return []Sample{base}, nil
}

func row(s Sample, k int) Sample {
	s.Name = fmt.Sprintf("%s_%06d", s.Name, k)
	s.Row = k
	return s
}

// openLines finds the lines of a .jsonl file.
func (o *opener) openLines(f file, base Sample) ([]Sample, error) {
	r, size, err := o.openFile(o.ctx, f.path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var samples []Sample
	var at, start, n int64
	blank := true
	add := func() {
		if !blank {
			off, size := start, n
			s := row(base, len(samples))
			s.load = func(ctx context.Context) (opened, error) { return o.readLine(ctx, f.path, off, size) }
			samples = append(samples, s)
		}
		start, n, blank = at, 0, true
	}
	br := bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 1<<18)
	for {
		part, err := br.ReadSlice('\n')
		at += int64(len(part))
		n += int64(len(part))
		blank = blank && len(strings.TrimSpace(string(part))) == 0
		if n > o.opts.maxBytes() {
			return nil, fmt.Errorf("line %d has more than %d bytes", len(samples)+1, o.opts.maxBytes())
		}
		switch {
		case err == nil:
			add()
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			add()
			if len(samples) == 0 {
				return nil, errors.New("the file is empty")
			}
			return samples, nil
		default:
			return nil, err
		}
		if err := o.ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// singleInput returns the one input that a value without a name is for.
func (s *shared) singleInput() (*Input, bool) {
	var found *Input
	for i := range s.inputs {
		if !s.inputs[i].Optional {
			if found != nil {
				return nil, false
			}
			found = &s.inputs[i]
		}
	}
	return found, found != nil
}

// fitRecipe settles how images become the model's input.
func (o *opener) fitRecipe(path string) error {
	if o.fitted != nil {
		return nil
	}
	in, ok := o.singleInput()
	if !ok {
		return fmt.Errorf("images can feed a model of one input, this one has %d", len(o.inputs))
	}
	fit := images.Default
	if o.recipe != nil {
		fit = o.recipe.Fit
	}
	fitted, note, err := fit(in.DType, in.Shape)
	if err != nil {
		return &DataError{Path: path, Input: in.Name, Err: err}
	}
	if note != "" {
		o.note("%s", note)
	}
	o.fitted = fitted
	return nil
}

// openStream copies a stream of .npz archives to a temporary file, so that it
// can be read again, and finds the archives in it.
func (o *opener) openStream() ([]Sample, error) {
	if o.opts.Stdin == nil {
		return nil, errors.New("there is no stream to read")
	}
	f, err := os.CreateTemp("", ".onnxq-stream-*")
	if err != nil {
		return nil, err
	}
	// The file goes when it is closed; where a system cannot remove an open
	// file, Close does.
	removed := os.Remove(f.Name()) == nil
	o.closer = append(o.closer, closeFunc(func() error {
		err := f.Close()
		if !removed {
			os.Remove(f.Name())
		}
		return err
	}))
	// Something else may never end.
	in := bufio.NewReader(contextReader{o.ctx, o.opts.Stdin})
	if head, _ := in.Peek(2); len(head) > 0 && string(head) != "PK" {
		return nil, errors.New("the stream is no sequence of .npz archives: it does not begin as one")
	}
	size, err := io.Copy(f, in)
	if err != nil {
		return nil, fmt.Errorf("cannot keep the stream: %w", err)
	}
	if size == 0 {
		return nil, errors.New("the stream is empty")
	}
	ends, err := archiveEnds(f, size)
	if err != nil {
		return nil, err
	}
	var samples []Sample
	var start int64
	archives := 0
	for _, end := range ends {
		r := io.NewSectionReader(f, start, end-start)
		start = end
		name := fmt.Sprintf("%06d", archives)
		archives++
		s := Sample{Name: name, Path: "-", rel: name, size: r.Size()}
		s.load = func(context.Context) (opened, error) { return npzFields(r, r.Size(), o.opts.maxBytes()) }
		if !o.opts.Batched {
			samples = append(samples, s)
			continue
		}
		rows, err := o.openRows(s)
		if err != nil {
			return nil, err
		}
		samples = append(samples, rows...)
	}
	return samples, nil
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}
