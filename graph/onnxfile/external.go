package onnxfile

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

type property struct{ key, value string }

func decodeProperty(b []byte) (kv property, err error) {
	s := scan(b)
	for s.next() {
		switch s.tag {
		case 1<<3 | blob:
			kv.key = string(s.b)
		case 2<<3 | blob:
			kv.value = string(s.b)
		}
	}
	return kv, s.err
}

// external returns size bytes of a file in the model's folder, as the keys of
// TensorProto.external_data say (onnx docs/ExternalData.md). Unknown keys are
// tolerated.
func (l *loader) external(keys []property, size int) ([]byte, error) {
	vals := map[string]string{}
	for _, kv := range keys {
		switch kv.key {
		case "location", "offset", "length", "checksum":
			if _, dup := vals[kv.key]; dup {
				return nil, fmt.Errorf("external data: key %s is given twice", kv.key)
			}
			vals[kv.key] = kv.value
		}
	}
	loc := vals["location"]
	number := func(key string, def uint64) (uint64, error) {
		s, ok := vals[key]
		if !ok {
			return def, nil
		}
		n, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return 0, fmt.Errorf("external data in %q: %s %q is not a number of bytes", loc, key, s)
		}
		return n, nil
	}
	off, err := number("offset", 0)
	if err != nil {
		return nil, err
	}
	length, err := number("length", uint64(size))
	if err != nil {
		return nil, err
	}
	if length != uint64(size) {
		return nil, fmt.Errorf("external data in %q: length %d, but the tensor needs %d", loc, length, size)
	}
	m, err := l.externalFile(loc, vals["checksum"])
	if err != nil {
		return nil, fmt.Errorf("external data: %w", err)
	}
	total := uint64(len(m.data))
	if length > total || off > total-length {
		return nil, fmt.Errorf("external data in %q: %d bytes from %d on, but the file has %d", loc, length, off, total)
	}
	return m.data[off : off+length : off+length], nil
}

// externalFile returns the mapped file at loc, which must lie in the model's
// folder after links are resolved and be a regular file without further hard
// links.
func (l *loader) externalFile(loc, checksum string) (*mapping, error) {
	clean := filepath.Clean(loc)
	switch {
	case loc == "":
		return nil, errors.New("no location")
	case l.dir == "":
		return nil, fmt.Errorf("location %q: a model from a stream has no folder", loc)
	case strings.ContainsAny(loc, "\x00\\") || !filepath.IsLocal(clean) || clean == "." || strings.HasPrefix(loc, "/"):
		return nil, fmt.Errorf("location %q is not a file in the model's folder", loc)
	}
	m := l.files[clean]
	if m == nil {
		if len(l.files) >= l.limits.Files {
			return nil, &LimitError{"files", int64(l.limits.Files)}
		}
		if l.fetch != nil {
			if err := l.fetch(filepath.ToSlash(clean)); err != nil {
				return nil, fmt.Errorf("location %q: %w", loc, err)
			}
		}
		if l.root == nil {
			root, err := os.OpenRoot(l.dir)
			if err != nil {
				return nil, err
			}
			l.root = root
		}
		f, err := l.root.OpenFile(clean, os.O_RDONLY|openNonblock, 0)
		if err != nil {
			// An escape from the folder is no condition of the file system.
			var errno syscall.Errno
			if !errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("location %q leads out of the model's folder", loc)
			}
			var pe *fs.PathError // has the name as it is, control characters included
			if errors.As(err, &pe) {
				err = pe.Err
			}
			return nil, &fs.PathError{Op: "location", Path: strconv.Quote(loc), Err: err}
		}
		defer f.Close()
		info, err := f.Stat()
		switch {
		case err != nil:
			return nil, err
		case !info.Mode().IsRegular():
			return nil, fmt.Errorf("location %q is not a regular file", loc)
		case hardLinks(info) > 1:
			return nil, fmt.Errorf("location %q has further hard links", loc)
		case l.origin.file != nil && os.SameFile(info, l.origin.file.info):
			return nil, fmt.Errorf("location %q is the model itself", loc)
		}
		if m, err = mapFile(f, info, filepath.Join(l.dir, clean)); err != nil {
			return nil, err
		}
		l.files[clean] = m
		l.origin.data = append(l.origin.data, m)
	}
	if len(checksum) == 2*sha1.Size && !strings.EqualFold(checksum, m.checked) {
		sum := sha1.Sum(m.data)
		m.checked = hex.EncodeToString(sum[:])
		if !strings.EqualFold(checksum, m.checked) {
			return nil, fmt.Errorf("location %q: checksum is %s, the model states %s", loc, m.checked, checksum)
		}
	}
	return m, nil
}
