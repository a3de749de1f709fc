package onnxfile

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"unsafe"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// origin is what a loaded model's Origin holds: the files it aliases and what
// the representation has no place for.
type origin struct {
	file    *mapping // of the model; nil for a stream
	data    []*mapping
	tensors map[*tensor.Tensor]*stored
	infos   map[infoKey]info
	// dangling says where among the value_info entries of a graph, by its scope,
	// those without a value stood.
	dangling map[string][]int
}

// infoKey finds a ValueInfoProto that repeats a value which is described
// elsewhere: an output that is an input too, a value_info of an output.
type infoKey struct {
	field, value, index int
}

// info is such an entry and the value as it was when loaded; the entry is
// written again if the value is still the same.
type info struct {
	wire  []byte
	name  string
	typ   graph.Type
	value *graph.Value // while loading
}

// mapping is a file in memory, mapped where the system can.
type mapping struct {
	path    string
	info    fs.FileInfo
	data    []byte
	unmap   func() error
	checked string // SHA-1 of data in hex, once it has been computed
}

func (m *mapping) close() error {
	if m == nil || m.unmap == nil {
		return nil
	}
	u := m.unmap
	m.unmap, m.data = nil, nil
	return u()
}

// Close releases the files.
func (o *origin) Close() error {
	err := o.file.close()
	for _, m := range o.data {
		err = errors.Join(err, m.close())
	}
	return err
}

func (o *origin) mappings() []*mapping {
	if o == nil || o.file == nil {
		return nil
	}
	return append([]*mapping{o.file}, o.data...)
}

// unchanged returns an error if one of the files is not what it was when it
// was opened.
func (o *origin) unchanged() error {
	for _, m := range o.mappings() {
		now, err := os.Stat(m.path)
		if err != nil {
			return err
		}
		if !os.SameFile(now, m.info) || now.Size() != m.info.Size() || !now.ModTime().Equal(m.info.ModTime()) {
			return &fs.PathError{Op: "read", Path: m.path, Err: ErrChanged}
		}
	}
	return nil
}

// Source returns the path of the file that m was loaded from, and whether m is
// still what that file, and those of external data, say. It reads no tensors.
func Source(m *graph.Model) (path string, ok bool) {
	o := originOf(m)
	if len(o.mappings()) == 0 || o.unchanged() != nil {
		return "", false
	}
	now, err := Open(o.file.path)
	if err != nil {
		return "", false
	}
	defer now.Close()
	a, err := outline(m)
	if err != nil {
		return "", false
	}
	b, err := outline(now)
	return o.file.path, err == nil && a == b
}

// outline returns a hash of a loaded model in which what aliases its files
// counts by its place.
func outline(m *graph.Model) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	e := &encoder{ctx: context.Background(), origin: originOf(m), places: true}
	err = Guard(func() error { return e.run(h, func(e *encoder) { e.model(m) }) })
	return [sha256.Size]byte(h.Sum(nil)), err
}

// release gives back the memory of what has been read of b, if b lies in a
// mapped file: the next access reads it again. Saving a model thus takes up no
// more memory than a few tensors.
func (o *origin) release(b []byte) {
	if len(b) < releaseMin {
		return
	}
	for _, m := range o.mappings() {
		if m.unmap != nil {
			if off, ok := offsetIn(m.data, b); ok {
				dropPages(m.data, off, off+len(b))
				return
			}
		}
	}
}

// releaseMin is the least number of bytes worth a system call.
const releaseMin = 1 << 20

// offsetIn returns where b starts in data, if it lies in it.
func offsetIn(data, b []byte) (int, bool) {
	d, p := uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	if p < d || p-d > uintptr(len(data)) || uintptr(len(b)) > uintptr(len(data))-(p-d) {
		return 0, false
	}
	return int(p - d), true
}

func originOf(m *graph.Model) *origin {
	o, _ := m.Origin.(*origin)
	return o
}

func (m *mapping) read(f *os.File) error {
	size := m.info.Size()
	if size > math.MaxInt {
		return &fs.PathError{Op: "read", Path: m.path, Err: errors.New("larger than the address space")}
	}
	m.data = tensor.AlignedBytes(int(size))
	if _, err := io.ReadFull(f, m.data); err != nil {
		return &fs.PathError{Op: "read", Path: m.path, Err: err}
	}
	return nil
}
