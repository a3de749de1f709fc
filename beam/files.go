package beam

import (
	"context"
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

	"github.com/apache/beam/sdks/v2/go/pkg/beam/io/filesystem"
	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/atomicfile"
	"github.com/onnxq/onnxq/job"
)

// files are those of Beam's filesystems. They are a calibration.Store.
type files struct {
	dir string // for copies

	mu      sync.Mutex
	systems map[string]filesystem.Interface // by scheme
	copies  job.Cache[string]               // of samples, by URL
}

// keptCopies is how many files of samples are kept: of several rows in one file
// each opens it.
const keptCopies = 64

// newFiles returns files that puts copies into dir, which is removed on close.
func newFiles(dir string) *files {
	return &files{dir: dir, systems: map[string]filesystem.Interface{}, copies: job.Cache[string]{
		Most: keptCopies, Drop: func(name string) { os.Remove(name) },
	}}
}

// close removes all copies.
func (f *files) close() error {
	f.copies.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := []error{os.RemoveAll(f.dir)}
	for _, s := range f.systems {
		errs = append(errs, s.Close())
	}
	clear(f.systems)
	return errors.Join(errs...)
}

// system returns the filesystem of a path, which is used until close.
func (f *files) system(ctx context.Context, name string) (s filesystem.Interface, err error) {
	scheme := ""
	if calibration.IsURL(name) {
		scheme, _, _ = strings.Cut(name, "://")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.systems[scheme]; s != nil {
		return s, nil
	}
	defer func() { // as some do without credentials
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("%s: %v", name, r)
		}
	}()
	// It is used when ctx has ended, too, to clean up.
	if s, err = filesystem.New(context.WithoutCancel(ctx), name); err == nil {
		f.systems[scheme] = s
	}
	return s, err
}

// join puts a name behind a folder of any filesystem.
func join(dir, name string) string {
	if calibration.IsURL(dir) {
		return strings.TrimRight(dir, "/") + "/" + name
	}
	return filepath.Join(dir, filepath.FromSlash(name))
}

// base returns the last part of a path of any filesystem.
func base(name string) (string, error) {
	b := filepath.Base(name)
	if calibration.IsURL(name) {
		b = path.Base(name)
	}
	if !filepath.IsLocal(b) || b == "." || strings.Contains(b, "\x00") {
		return "", fmt.Errorf("%s: not the name of a file", name)
	}
	return b, nil
}

// open opens a file of any filesystem. Where there is none, that is
// fs.ErrNotExist.
func (f *files) open(ctx context.Context, name string) (io.ReadCloser, error) {
	s, err := f.system(ctx, name)
	if err != nil {
		return nil, err
	}
	r, err := s.OpenRead(ctx, name)
	if err == nil {
		return r, nil
	}
	if !errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(name, pattern) {
		if found, none := s.List(ctx, name); none == nil && len(found) == 0 {
			err = fs.ErrNotExist
		}
	}
	return nil, fmt.Errorf("%s: %w", name, err)
}

// pattern has what stands for other characters in Beam's patterns.
const pattern = `*?[\`

// read returns a file of any filesystem.
func (f *files) read(ctx context.Context, name string) (data []byte, err error) {
	r, err := f.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if data, err = io.ReadAll(r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

// write makes a file of any filesystem, which appears complete: here by renaming,
// elsewhere by the nature of the store. Writing the same contents again does no
// harm.
func (f *files) write(ctx context.Context, name string, r io.Reader) error {
	if !calibration.IsURL(name) {
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			return err
		}
		return atomicfile.Write(name, 0o644, func(w io.Writer) error {
			_, err := io.Copy(w, r)
			return err
		})
	}
	s, err := f.system(ctx, name)
	if err != nil {
		return err
	}
	w, err := s.OpenWrite(ctx, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = io.Copy(w, r)
	if err = errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// upload copies a local file to any filesystem.
func (f *files) upload(ctx context.Context, from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	return f.write(ctx, to, r)
}

// download copies a file of any filesystem to this machine, unless it is there
// already; it appears complete.
func (f *files) download(ctx context.Context, from, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	r, err := f.open(ctx, from)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := f.write(ctx, to, r); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

// remove removes files as far as their filesystem can.
func (f *files) remove(ctx context.Context, names []string) {
	for _, name := range names {
		s, err := f.system(ctx, name)
		if err != nil {
			continue
		}
		if r, ok := s.(filesystem.Remover); ok {
			_ = r.Remove(ctx, name) // what is left is small, and of no harm
		}
	}
}

// Bounds of List: how deep folders are nested, how many levels above the first
// file may hold none, and how many sizes are asked for at a time.
const (
	mostDepth   = 64
	emptyTop    = 4
	sizesAtOnce = 32
)

// List lists a folder of a Beam filesystem as a calibration.Store does. These know
// of no folders, but list the files of a depth: it goes on until one has none.
func (f *files) List(ctx context.Context, url string) ([]calibration.StoredFile, error) {
	if strings.ContainsAny(url, pattern) {
		return nil, errors.New("patterns are not taken for samples")
	}
	s, err := f.system(ctx, url)
	if err != nil {
		return nil, err
	}
	if size, err := s.Size(ctx, url); err == nil && !strings.HasSuffix(url, "/") {
		return []calibration.StoredFile{{Size: size}}, nil
	}
	root := strings.TrimRight(url, "/")
	var list []calibration.StoredFile
	glob := root
	for depth := 1; depth <= mostDepth; depth++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		glob += "/*"
		found, err := s.List(ctx, glob)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 && (len(list) > 0 || depth == emptyTop) {
			break
		}
		for _, name := range found {
			if p, ok := strings.CutPrefix(name, root+"/"); ok && p != "" {
				list = append(list, calibration.StoredFile{Path: p})
			}
		}
	}
	if len(list) == 0 {
		return nil, fs.ErrNotExist
	}
	slices.SortFunc(list, func(a, b calibration.StoredFile) int { return strings.Compare(a.Path, b.Path) })
	next := make(chan *calibration.StoredFile)
	errs := make(chan error, sizesAtOnce)
	sizes, stop := context.WithCancel(ctx)
	defer stop()
	for range sizesAtOnce {
		go func() {
			var failed error
			for x := range next {
				if failed == nil {
					if x.Size, failed = s.Size(sizes, root+"/"+x.Path); failed != nil {
						failed = fmt.Errorf("%s: %w", x.Path, failed)
						stop()
					}
				}
			}
			errs <- failed
		}()
	}
	for i := range list {
		next <- &list[i]
	}
	close(next)
	for range sizesAtOnce {
		if e := <-errs; e != nil && (err == nil || errors.Is(err, context.Canceled)) {
			err = e
		}
	}
	return list, err
}

// Open opens a copy of a file, which is kept for the next who wants it.
func (f *files) Open(ctx context.Context, url string) (calibration.File, int64, error) {
	var file *os.File
	err := f.copies.Use(url, func() (string, error) { return f.copy(ctx, url) }, func(name string) (err error) {
		file, err = os.Open(name)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// copy copies a file to a new one here.
func (f *files) copy(ctx context.Context, url string) (name string, err error) {
	r, err := f.open(ctx, url)
	if err != nil {
		return "", err
	}
	defer r.Close()
	w, err := os.CreateTemp(f.dir, "sample-*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.Remove(w.Name())
		}
	}()
	_, err = io.Copy(w, r)
	return w.Name(), errors.Join(err, w.Close())
}

// withModel calls g with a path of this machine for the model at any path, with its
// external data beside it. Errors name the model as it was given.
func (f *files) withModel(ctx context.Context, model string, limits onnxfile.Limits, g func(local string) error) error {
	if !calibration.IsURL(model) {
		return g(model)
	}
	name, err := base(model)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(f.dir, "model-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	local, beside := filepath.Join(dir, name), strings.TrimSuffix(model, name)
	if err := f.download(ctx, model, local); err != nil {
		return err
	}
	var failed error
	m, err := onnxfile.Open(local, onnxfile.WithLimits(limits), onnxfile.WithFetch(func(name string) error {
		err := f.download(ctx, beside+name, filepath.Join(dir, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the error is that of a file that is not there
		}
		failed = err
		return err
	}))
	if failed != nil {
		return failed
	}
	if err == nil {
		m.Close()
	} // else g says what is wrong
	return moved(g(local), dir, beside)
}

// withOutput calls g with a path of this machine for an output at any path, and puts
// what g writes to it and beside it where it belongs, also if g fails. With ""
// there is no output.
func (f *files) withOutput(ctx context.Context, out string, g func(local string) error) error {
	if !calibration.IsURL(out) {
		return g(out)
	}
	name, err := base(out)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(f.dir, "out-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	beside := strings.TrimSuffix(out, name)
	failed := moved(g(filepath.Join(dir, name)), dir, beside)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	// The file itself is last, so that it appears with all that it needs.
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return len(b.Name()) - len(a.Name()) })
	for _, e := range entries {
		if err := f.upload(ctx, filepath.Join(dir, e.Name()), beside+e.Name()); err != nil {
			return err
		}
	}
	return failed
}

// quantize calls g with paths of this machine for a model, its quantized form and
// the report of o at any paths.
func (f *files) quantize(ctx context.Context, in, out string, o onnxq.Options, g func(in, out string, o onnxq.Options) error) error {
	if in == out && calibration.IsURL(out) && !o.InPlace {
		return fmt.Errorf("%s: the output would replace the input", out)
	}
	return f.withModel(ctx, in, o.Limits, func(in string) error {
		return f.withOutput(ctx, out, func(out string) error {
			return f.withOutput(ctx, o.Report, func(report string) error {
				o := o
				o.Report = report
				return g(in, out, o)
			})
		})
	})
}

// movedError is an error about files that are copies of others.
type movedError struct {
	error
	here, there string // the folder, and the URL that stands for it and a slash
}

func (e *movedError) Error() string {
	return strings.ReplaceAll(e.error.Error(), e.here+string(filepath.Separator), e.there)
}

func (e *movedError) Unwrap() error { return e.error }

func moved(err error, here, there string) error {
	if err == nil {
		return nil
	}
	return &movedError{err, here, there}
}
