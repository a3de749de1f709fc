package beam

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/apache/beam/sdks/v2/go/pkg/beam/io/filesystem"
	"github.com/onnxq/onnxq/internal/atomicfile"
)

// remote reports whether a path is one of a Beam filesystem that is not that of
// this machine.
func remote(path string) bool { return strings.Contains(path, "://") }

// join puts a name behind a folder of any filesystem.
func join(dir, name string) string {
	if remote(dir) {
		return strings.TrimSuffix(dir, "/") + "/" + name
	}
	return filepath.Join(dir, filepath.FromSlash(name))
}

// read returns a file of any filesystem.
func read(ctx context.Context, path string) (data []byte, err error) {
	fs, err := filesystem.New(ctx, path)
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	r, err := fs.OpenRead(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer r.Close()
	if data, err = io.ReadAll(r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

// write makes a file of any filesystem, which appears complete: here by renaming,
// elsewhere by the nature of the store. Writing the same contents again does no
// harm.
func write(ctx context.Context, path string, r io.Reader) (err error) {
	if !remote(path) {
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			return err
		}
		return atomicfile.Write(path, 0o644, func(w io.Writer) error {
			_, err := io.Copy(w, r)
			return err
		})
	}
	fs, err := filesystem.New(ctx, path)
	if err != nil {
		return err
	}
	defer fs.Close()
	w, err := fs.OpenWrite(ctx, path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	_, err = io.Copy(w, r)
	if err = errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// upload copies a local file to any filesystem.
func upload(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return write(ctx, to, f)
}

// download copies a file of any filesystem to this machine, unless it is there
// already; it appears complete.
func download(ctx context.Context, from, to string) (err error) {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	fs, err := filesystem.New(ctx, from)
	if err != nil {
		return err
	}
	defer fs.Close()
	r, err := fs.OpenRead(ctx, from)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	defer r.Close()
	if err := write(ctx, to, r); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

// remove removes files as far as their filesystem can.
func remove(ctx context.Context, paths []string) {
	for _, path := range paths {
		fs, err := filesystem.New(ctx, path)
		if err != nil {
			continue
		}
		if r, ok := fs.(filesystem.Remover); ok {
			_ = r.Remove(ctx, path) // what is left is small, and of no harm
		}
		fs.Close()
	}
}
