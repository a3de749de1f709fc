// Package atomicfile replaces files as a whole: a reader sees the old contents
// or the complete new ones, also after a crash. The bytes go to a temporary
// file named ".onnxq-*" in the folder of the destination, which is synced,
// renamed over it, and the folder synced.
//
// A temporary file is locked by its writer as long as the writer lives, so a
// later Create in the same folder finds those of killed writers by the absent
// lock and removes them (on systems with flock).
package atomicfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const prefix = ".onnxq-"

// maxLinks bounds the symbolic links followed from the destination.
const maxLinks = 40

// File is a temporary file on its way to a destination. It may be written in
// any order, WriteAt included. Exactly one of Commit and Close ends it; Close
// after Commit does nothing, so that it can be deferred.
type File struct {
	*os.File
	dest string
	done bool
}

// Create starts a replacement of the file at path. A symbolic link is
// followed: what it points to is replaced, and the link stays. A destination
// that exists keeps its permission bits; a new one gets perm less the umask.
// It is an error if the folder is missing or not writable, or if the
// destination is anything but a regular file.
func Create(path string, perm fs.FileMode) (*File, error) {
	dest, err := resolve(path)
	if err != nil {
		return nil, err
	}
	switch info, err := os.Lstat(dest); {
	case err == nil && info.IsDir():
		return nil, &fs.PathError{Op: "write", Path: path, Err: errors.New("is a directory")}
	case err == nil && !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "write", Path: path, Err: errors.New("is not a regular file")}
	case err == nil:
		perm = info.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist):
		return nil, renamed(err, dest, path)
	}
	dir := filepath.Dir(dest)
	removeStale(dir)
	for range 100 {
		var r [8]byte
		rand.Read(r[:])
		name := filepath.Join(dir, prefix+hex.EncodeToString(r[:]))
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &fs.PathError{Op: "write", Path: path, Err: noFolder(dir)}
		}
		if err != nil {
			return nil, renamed(err, name, path)
		}
		// Another Create may have taken the file for a stale one before the
		// lock was held.
		if !lock(f) || !stillAt(f, name) {
			f.Close()
			continue
		}
		return &File{File: f, dest: dest}, nil
	}
	return nil, &fs.PathError{Op: "write", Path: path, Err: errors.New("no free temporary name in the folder")}
}

// noFolder is the error about a destination whose folder is missing.
type noFolder string

func (f noFolder) Error() string { return "there is no folder " + string(f) }

func (f noFolder) Unwrap() error { return fs.ErrNotExist }

// Check returns the error of Create, and leaves nothing behind.
func Check(path string) error {
	f, err := Create(path, 0o666)
	if err != nil {
		return err
	}
	return f.Close()
}

// Commit syncs the file, puts it in the place of the destination and closes
// it. After an error the destination is what it was and the temporary file is
// gone.
func (f *File) Commit() error {
	if f.done {
		return fs.ErrClosed
	}
	temp := f.Name()
	err := f.Sync()
	if err == nil {
		err = os.Rename(temp, f.dest)
	}
	if err != nil {
		f.Close()
		return renamed(err, temp, f.dest)
	}
	f.done = true
	if err := f.File.Close(); err != nil {
		return renamed(err, temp, f.dest)
	}
	return syncDir(filepath.Dir(f.dest))
}

// Close gives up: it removes the temporary file and leaves the destination
// alone.
func (f *File) Close() error {
	if f.done {
		return nil
	}
	f.done = true
	err := os.Remove(f.Name())
	if cerr := f.File.Close(); err == nil {
		err = cerr
	}
	return err
}

// Write replaces the file at path, as Create does, with what write puts out.
// If write fails its error is returned and the destination is left alone.
func Write(path string, perm fs.FileMode, write func(w io.Writer) error) error {
	return WriteChecked(path, perm, write, func(string) error { return nil })
}

// WriteChecked is Write with a last look at the temporary file, which is
// complete when check is called with its path. If check fails its error is
// returned and the destination is left alone.
func WriteChecked(path string, perm fs.FileMode, write func(w io.Writer) error, check func(temp string) error) error {
	return writeThen(path, perm, write, func(f *File) error { return check(f.Name()) })
}

// WriteNamed is Write for a file whose name follows from its contents: name is
// called when they are complete and returns the name in the folder of path. What
// has this name is replaced.
func WriteNamed(path string, perm fs.FileMode, write func(w io.Writer) error, name func() (string, error)) error {
	return writeThen(path, perm, write, func(f *File) error {
		base, err := name()
		f.dest = filepath.Join(filepath.Dir(f.dest), base)
		return err
	})
}

// writeThen commits what write puts out after last, which gets it complete.
func writeThen(path string, perm fs.FileMode, write func(w io.Writer) error, last func(*File) error) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer f.Close()
	err = write(f.File)
	if err == nil {
		err = last(f)
	}
	if err != nil {
		return renamed(err, f.Name(), path)
	}
	return f.Commit()
}

// resolve follows the symbolic links at path, of which the last may point to
// nothing yet.
func resolve(path string) (string, error) {
	p := path
	for range maxLinks {
		info, err := os.Lstat(p)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return p, nil
		}
		target, err := os.Readlink(p)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(p), target)
		}
		p = target
	}
	return "", &fs.PathError{Op: "write", Path: path, Err: errors.New("too many symbolic links")}
}

// renamed makes an error about the temporary file one about the path that the
// caller knows.
func renamed(err error, temp, path string) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe) && pe.Path == temp:
		return &fs.PathError{Op: pe.Op, Path: path, Err: pe.Err}
	case errors.As(err, &le) && le.Old == temp:
		return fmt.Errorf("replace %s: %w", path, le.Err)
	}
	return err
}

func stillAt(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(name)
	return err == nil && os.SameFile(a, b)
}

func removeStale(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && len(e.Name()) == len(prefix)+16 && e.Type().IsRegular() {
			removeIfStale(filepath.Join(dir, e.Name()))
		}
	}
}
