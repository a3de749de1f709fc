package calibration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Store gives the files of sources that are URLs ("s3://bucket/samples"). Its
// methods may be called by several goroutines at once.
type Store interface {
	// List returns the file at a URL or, if that is a folder, the files below
	// it, in any order. It is an error if nothing is there.
	List(ctx context.Context, url string) ([]StoredFile, error)
	// Open opens the file at a URL, which has the returned number of bytes. The
	// caller closes it.
	Open(ctx context.Context, url string) (File, int64, error)
}

// StoredFile is a file that Store.List found.
type StoredFile struct {
	// Path is what has to be put behind the listed URL and a slash; "" for the
	// file at that URL itself.
	Path string `json:"path"`
	Size int64  `json:"size"` // in bytes
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.Closer
}

// IsURL reports whether a source is one that Options.Store gives.
func IsURL(spec string) bool {
	scheme, _, ok := strings.Cut(spec, "://")
	return ok && len(scheme) > 1 && !strings.ContainsFunc(scheme, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("+-.", r)
	})
}

// Listed returns what Store.List said of each source that is a URL, for the
// Options.Listed of the same sources elsewhere.
func (s *Source) Listed() map[string][]StoredFile { return s.listed }

// stored lists the files at a URL.
func (o *opener) stored(url string) error {
	if o.opts.Store == nil {
		return errors.New("is a URL, which only programs read that have a store for them (onnxq-beam has)")
	}
	list, ok := o.opts.Listed[url]
	if !ok {
		var err error
		if list, err = o.opts.Store.List(o.ctx, url); err != nil {
			return pathError(url, err)
		}
	}
	if o.listed == nil {
		o.listed = map[string][]StoredFile{}
	}
	o.listed[url] = list
	if o.entries += len(list); o.entries > maxEntries {
		return &DataError{Path: url, Err: fmt.Errorf("more than %d files", maxEntries)}
	}
	root := strings.TrimRight(url, "/")
	folders := map[string]*file{} // with input_J.pb
	for _, f := range list {
		if f.Path == "" {
			if err := o.single(url, f.Size); err != nil {
				return err
			}
			continue
		}
		parts := strings.Split(f.Path, "/")
		if len(parts) > maxDepth+1 {
			return &DataError{Path: url, Err: fmt.Errorf("folders are nested more than %d deep", maxDepth)}
		}
		if slices.ContainsFunc(parts, func(p string) bool { return p == "" || strings.HasPrefix(p, ".") }) {
			continue
		}
		kind, j, ok := kindIn(parts[len(parts)-1])
		p := root + "/" + f.Path
		switch {
		case !ok:
		case kind == "":
			o.others = append(o.others, f.Path)
		case kind == kindProto:
			rel := path.Dir(f.Path)
			if rel == "." {
				rel = ""
			}
			if folders[rel] == nil {
				folders[rel] = &file{path: strings.TrimRight(root+"/"+rel, "/"), rel: rel, kind: kindProto, protos: map[int]string{}}
			}
			folders[rel].protos[j] = p
			folders[rel].size += f.Size
		default:
			o.files = append(o.files, file{path: p, rel: f.Path, kind: kind, size: f.Size})
		}
	}
	for _, f := range folders {
		if f.rel == "" {
			f.rel = path.Base(root)
		}
		o.files = append(o.files, *f)
	}
	return nil
}

// openFile opens a file of a source.
func (o *opener) openFile(ctx context.Context, path string) (File, int64, error) {
	if !IsURL(path) {
		return openRegular(path)
	}
	f, size, err := o.opts.Store.Open(ctx, path)
	if err != nil {
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		return nil, 0, pathError(path, err)
	}
	return f, size, nil
}
