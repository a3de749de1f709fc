package npy

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

// DefaultLimit is the number of bytes that the deflated arrays of one archive
// may expand to, if the caller does not say otherwise.
const DefaultLimit = 1 << 30

// Array is one array of a file, of which only the header has been read. It is
// safe for use by several goroutines.
type Array struct {
	Name string // key in the archive, "" for a .npy file
	Header

	r    io.ReaderAt // the data, where it lies in the file as it is
	off  int64
	file *zip.File // the entry of an archive
}

// Open reads the header of a .npy file of the given size in bytes. It is an
// error if the size is not that of header and data together.
func Open(r io.ReaderAt, size int64) (*Array, error) {
	h, n, err := readHeader(io.NewSectionReader(r, 0, size))
	if err != nil {
		return nil, err
	}
	if size-n != h.Bytes() {
		return nil, h.wrongSize(size - n)
	}
	return &Array{Header: h, r: r, off: n}, nil
}

func (h Header) wrongSize(got int64) error {
	if got < h.Bytes() {
		return fmt.Errorf("%d bytes of data, %v%s needs %d: file is cut off, or its header lies",
			got, h.DType, tensor.ShapeString(h.Shape), h.Bytes())
	}
	return fmt.Errorf("%d bytes of data, %v%s takes only %d",
		got, h.DType, tensor.ShapeString(h.Shape), h.Bytes())
}

// Archive is an open .npz file.
type Archive struct {
	Arrays []*Array // in the order of the file
}

// deflateRatio is the most that deflate can expand (RFC 1951: 258 bytes from a
// code of two bits for length and distance).
const deflateRatio = 1032

// OpenArchive reads the directory of an archive of the given size in bytes and
// the headers of its arrays. The deflated arrays may expand to limit bytes in
// all; 0 means DefaultLimit. Names have lost their extension .npy.
func OpenArchive(r io.ReaderAt, size, limit int64) (*Archive, error) {
	if limit <= 0 {
		limit = DefaultLimit
	}
	z, err := zip.NewReader(r, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, fmt.Errorf("not a readable .npz archive: %w", err)
	}
	a := &Archive{}
	seen := map[string]bool{}
	var total int64
	for _, f := range z.File {
		name, ok := strings.CutSuffix(f.Name, ".npy")
		if !ok {
			if strings.HasSuffix(f.Name, "/") {
				continue
			}
			return nil, fmt.Errorf("entry %q of the archive is no .npy array", f.Name)
		}
		if seen[name] {
			return nil, fmt.Errorf("array %q is there twice", name)
		}
		seen[name] = true
		if f.Flags&1 != 0 {
			return nil, fmt.Errorf("array %q is encrypted", name)
		}
		packed, plain := f.CompressedSize64, f.UncompressedSize64
		switch {
		case packed > uint64(size):
			return nil, fmt.Errorf("array %q claims %d bytes of a file of %d", name, packed, size)
		case f.Method == zip.Store && packed != plain:
			return nil, fmt.Errorf("array %q is stored, but its two sizes differ", name)
		case f.Method == zip.Deflate:
			if plain > packed*deflateRatio+deflateRatio {
				return nil, fmt.Errorf("array %q claims to expand from %d to %d bytes, which deflate cannot", name, packed, plain)
			}
			if total += int64(plain); total > limit {
				return nil, fmt.Errorf("the archive expands to more than the %d bytes allowed (at array %q)", limit, name)
			}
		case f.Method != zip.Store:
			return nil, fmt.Errorf("array %q is compressed by method %d: only stored and deflated arrays are read", name, f.Method)
		}
		rc, err := f.Open()
		if err != nil {
			return nil, fmt.Errorf("array %q: %w", name, err)
		}
		h, n, err := readHeader(rc)
		rc.Close()
		if err == nil && int64(plain)-n != h.Bytes() {
			err = h.wrongSize(int64(plain) - n)
		}
		if err != nil {
			return nil, fmt.Errorf("array %q: %w", name, err)
		}
		arr := &Array{Name: name, Header: h, file: f}
		if f.Method == zip.Store {
			off, err := f.DataOffset()
			if err != nil {
				return nil, fmt.Errorf("array %q: %w", name, err)
			}
			if off > size || int64(plain) > size-off {
				return nil, fmt.Errorf("array %q: file is cut off", name)
			}
			arr.r, arr.off = r, off+n
		}
		a.Arrays = append(a.Arrays, arr)
	}
	return a, nil
}

// Tensor reads the whole array, row major and little endian. The checksum of
// an archive is verified.
func (a *Array) Tensor() (*tensor.Tensor, error) {
	if a.file == nil {
		return a.read(io.NewSectionReader(a.r, a.off, a.Bytes()))
	}
	rc, err := a.file.Open()
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	if _, err := ReadHeader(rc); err != nil {
		return nil, err
	}
	t, err := a.read(rc)
	if err != nil {
		return nil, err
	}
	// The checksum is compared when the end is reached.
	var one [1]byte
	if _, err := io.ReadFull(rc, one[:]); err != io.EOF {
		return nil, err
	}
	return t, nil
}

// Direct reports whether Rows reads only the rows it is asked for; otherwise
// it reads the whole array each time.
func (a *Array) Direct() bool { return a.r != nil && (!a.Fortran || len(a.Shape) < 2) }

// Rows reads the elements [lo, hi) along axis 0.
func (a *Array) Rows(lo, hi int) (*tensor.Tensor, error) {
	if len(a.Shape) == 0 || lo < 0 || hi < lo || hi > a.Shape[0] {
		return nil, fmt.Errorf("rows %d to %d of an array of shape %s", lo, hi, tensor.ShapeString(a.Shape))
	}
	h := a.Header
	h.Shape = append([]int{hi - lo}, a.Shape[1:]...)
	if a.Direct() {
		var row int64
		if a.Shape[0] > 0 {
			row = a.Bytes() / int64(a.Shape[0])
		}
		return h.read(io.NewSectionReader(a.r, a.off+int64(lo)*row, h.Bytes()))
	}
	t, err := a.Tensor()
	if err != nil {
		return nil, err
	}
	return CutRows(t, lo, hi), nil
}

// CutRows returns the elements [lo, hi) of t along axis 0, over the same
// memory. It panics if there are no such rows.
func CutRows(t *tensor.Tensor, lo, hi int) *tensor.Tensor {
	shape := append([]int{hi - lo}, t.Shape()[1:]...)
	row := len(t.Bytes()) / max(t.Shape()[0], 1)
	cut, err := tensor.FromBytes(t.DType(), shape, t.Bytes()[lo*row:hi*row:hi*row])
	if err != nil {
		panic(err)
	}
	return cut
}

// Writer writes an .npz archive. Equal arrays give equal bytes: entries carry
// no time.
type Writer struct {
	z       *zip.Writer
	deflate bool
	seen    map[string]bool
}

// NewWriter starts an archive on w, whose entries are deflated if deflate is
// set and stored otherwise.
func NewWriter(w io.Writer, deflate bool) *Writer {
	return &Writer{z: zip.NewWriter(w), deflate: deflate, seen: map[string]bool{}}
}

// Add appends an array under the given key.
func (w *Writer) Add(name string, t *tensor.Tensor) error {
	if w.seen[name] {
		return fmt.Errorf("array %q is written twice", name)
	}
	if _, ok := codeOf(t.DType()); !ok {
		return fmt.Errorf("array %q: %v has no NumPy element type", name, t.DType())
	}
	w.seen[name] = true
	method := zip.Store
	if w.deflate {
		method = zip.Deflate
	}
	e, err := w.z.CreateHeader(&zip.FileHeader{Name: name + ".npy", Method: method})
	if err != nil {
		return err
	}
	return Write(e, t)
}

// Close writes the directory. It does not close the underlying writer.
func (w *Writer) Close() error { return w.z.Close() }
