package onnxfile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/atomicfile"
	"github.com/onnxq/onnxq/tensor"
)

// External says whether tensors go to a file of their own.
type External uint8

// Choices of External.
const (
	ExternalAuto   External = iota // if the model would be larger than MaxInline
	ExternalAlways                 // every tensor of at least 1 KiB
	ExternalNever                  // an error if the model is larger than 2 GiB - 1
)

// SaveOptions change how a model is saved. The zero value is the default.
type SaveOptions struct {
	External External
	// MaxInline is the largest file that ExternalAuto writes without external
	// data, in bytes; 0 stands for the 2 GiB - 1 that readers accept.
	MaxInline int64
	// InPlace allows the destination to be the file that the model was
	// loaded from. Its external data is never written over.
	InPlace bool
	// Check, if set, is called with the path of the complete file before it
	// takes the place of the destination. An error leaves that as it was.
	Check func(path string) error
}

const (
	minExternal = 1 << 10 // bytes below which a tensor stays in the model
	pageAlign   = 4096    // offset of tensors of at least a page, so that readers can map them
	lineAlign   = 64      // offset of others
)

// Save writes the model to a file, which appears complete or not at all; a
// destination that is a symbolic link stays one. External data goes to one
// file beside it, named OUT.HASH.data with the first 16 hex digits of the
// SHA-256 of its contents, which is written first; so an older pair of files
// stays valid until the model is replaced. Save refuses to write over a file
// that the model was loaded from, whatever its path is, and fails if one of
// those has changed since. It returns within a second after ctx has ended.
func Save(ctx context.Context, m *graph.Model, path string, opt SaveOptions) error {
	o := originOf(m)
	if err := checkDestination(o, path, opt); err != nil {
		return err
	}
	e := &encoder{ctx: ctx, origin: o}
	err := Guard(func() error { return e.chooseExternal(m, path, opt) })
	var size *sizeError
	if errors.As(err, &size) {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	if err != nil {
		return err
	}
	var data string
	if e.ext != nil {
		if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return &fs.PathError{Op: "write", Path: path, Err: errors.New("a symbolic link can not get external data: readers would look for it beside the link")}
		}
		h := sha256.New()
		taken := false
		err := atomicfile.WriteNamed(filepath.Join(filepath.Dir(path), e.ext.location), 0o666, func(w io.Writer) error {
			return Guard(func() error { return e.writeExternal(io.MultiWriter(w, h)) })
		}, func() (string, error) {
			e.ext.location = dataName(path, h)
			data = filepath.Join(filepath.Dir(path), e.ext.location)
			info, err := os.Lstat(data)
			taken = err == nil
			if taken && !info.Mode().IsRegular() {
				return "", &fs.PathError{Op: "write", Path: data, Err: errors.New("is not a regular file")}
			}
			return e.ext.location, nil
		})
		if err != nil {
			return e.sourceError(err)
		}
		if taken {
			data = "" // not ours to remove
		}
	}
	err = atomicfile.WriteChecked(path, 0o666, func(w io.Writer) error {
		return Guard(func() error { return e.run(w, func(e *encoder) { e.model(m) }) })
	}, func(temp string) error {
		if opt.Check != nil {
			if err := opt.Check(temp); err != nil {
				return err
			}
		}
		return o.unchanged()
	})
	if err != nil && data != "" {
		os.Remove(data)
	}
	return e.sourceError(err)
}

// sourceError gives an error about reading a source its name.
func (e *encoder) sourceError(err error) error {
	if err == nil || !errors.Is(err, ErrChanged) && !isFault(err) {
		return err
	}
	if changed := e.origin.unchanged(); changed != nil {
		return changed
	}
	return ErrChanged
}

func checkDestination(o *origin, path string, opt SaveOptions) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil // a new file, or an error that creating it reports better
	}
	for i, m := range o.mappings() {
		if !os.SameFile(info, m.info) {
			continue
		}
		if i > 0 {
			return &fs.PathError{Op: "write", Path: path, Err: errors.New("the file holds external data of the input")}
		}
		if !opt.InPlace {
			return &fs.PathError{Op: "write", Path: path, Err: ErrInput}
		}
	}
	return nil
}

func dataName(path string, h hash.Hash) string {
	base := strings.Map(func(r rune) rune {
		if r == '\\' || r == 0xFFFD || r < ' ' {
			return '_'
		}
		return r
	}, filepath.Base(path))
	return base + "." + hex.EncodeToString(h.Sum(nil)[:8]) + ".data"
}

// chooseExternal decides what leaves the file. Initializers go first; tensors
// in attributes follow only where the rest is still too large.
func (e *encoder) chooseExternal(m *graph.Model, path string, opt SaveOptions) error {
	e.model(m)
	inline := e.n
	limit := int64(maxMessage)
	if opt.MaxInline > 0 {
		limit = min(limit, opt.MaxInline)
	}
	if opt.External == ExternalNever || opt.External == ExternalAuto && inline <= limit {
		if inline > maxMessage {
			return tooLarge(inline)
		}
		return nil
	}
	p := &externalPlan{places: map[*tensor.Tensor]*placement{}, location: dataName(path, sha256.New())}
	for g := range m.Scopes() {
		for _, v := range g.Initializers() {
			if v.Const != nil {
				p.add(v.Const)
			}
		}
	}
	if p.size > 0 {
		e.ext = p
	}
	e.n = 0
	if e.model(m); e.n <= limit {
		return nil
	}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			for _, a := range n.Attrs {
				if a.T != nil && a.RefName == "" {
					p.add(a.T)
				}
			}
		}
	}
	e.ext, e.n = p, 0
	if e.model(m); e.n > maxMessage {
		return &sizeError{e.n, "without its tensors, and a file"}
	}
	return nil
}

func (p *externalPlan) add(t *tensor.Tensor) {
	size := int64(t.Size())
	if size < minExternal || p.places[t] != nil {
		return
	}
	align := int64(lineAlign)
	if size >= pageAlign {
		align = pageAlign
	}
	off := (p.size + align - 1) / align * align
	p.places[t] = &placement{off, size}
	p.order = append(p.order, t)
	p.size = off + size
}

func (e *encoder) writeExternal(w io.Writer) error {
	var zero [pageAlign]byte
	pos := int64(0)
	for _, t := range e.ext.order {
		at := e.ext.places[t]
		if _, err := w.Write(zero[:at.offset-pos]); err != nil {
			return err
		}
		for b := t.Bytes(); len(b) > 0; {
			if err := e.ctx.Err(); err != nil {
				return err
			}
			k := min(len(b), chunk)
			if _, err := w.Write(b[:k]); err != nil {
				return err
			}
			e.origin.release(b[:k])
			b = b[k:]
		}
		pos = at.offset + at.length
	}
	return nil
}

// CheckDestination reports why Save could not write m to path: the folder is
// missing or not writable, or the file is one that m was loaded from. It
// writes and removes an empty temporary file.
func CheckDestination(m *graph.Model, path string, opt SaveOptions) error {
	if err := checkDestination(originOf(m), path, opt); err != nil {
		return err
	}
	return atomicfile.Check(path)
}

// Copy writes the file that m was loaded from to path, byte for byte. A model
// that came from elsewhere, or with external data, is saved instead.
func Copy(ctx context.Context, m *graph.Model, path string, opt SaveOptions) error {
	o := originOf(m)
	if o == nil || o.file == nil || len(o.data) > 0 || opt.External == ExternalAlways {
		return Save(ctx, m, path, opt)
	}
	if err := checkDestination(o, path, opt); err != nil {
		return err
	}
	return atomicfile.Write(path, 0o666, func(w io.Writer) error {
		return Guard(func() error {
			e := &encoder{ctx: ctx, origin: o}
			if err := e.run(w, func(e *encoder) { e.bulk(o.file.data) }); err != nil {
				return e.sourceError(err)
			}
			return o.unchanged()
		})
	})
}

// Size returns the number of bytes that Write would write.
func Size(m *graph.Model) int64 {
	e := &encoder{ctx: context.Background(), origin: originOf(m)}
	e.model(m)
	return e.n
}
