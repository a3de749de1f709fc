// Package npy reads and writes NumPy's array files: .npy (one array, format
// versions 1 to 3 of numpy.lib.format) and .npz (a zip archive of them, stored
// or deflated).
//
// Files are taken as hostile: what a header claims is checked against the
// bytes that are there before memory is allocated, arrays of Python objects
// (pickle, which can run code) are refused, and deflated data is bounded.
package npy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

const (
	magic     = "\x93NUMPY"
	maxHeader = 1 << 20
	maxRank   = 64
)

// Header is what stands before the data of an array.
type Header struct {
	DType     tensor.DType
	Shape     []int
	Fortran   bool // column-major data
	BigEndian bool
}

var codes = map[string]tensor.DType{
	"b1": tensor.Bool,
	"i1": tensor.Int8, "i2": tensor.Int16, "i4": tensor.Int32, "i8": tensor.Int64,
	"u1": tensor.Uint8, "u2": tensor.Uint16, "u4": tensor.Uint32, "u8": tensor.Uint64,
	"f2": tensor.Float16, "f4": tensor.Float32, "f8": tensor.Float64,
	"c8": tensor.Complex64, "c16": tensor.Complex128,
}

// Bytes returns the size of the data in bytes.
func (h Header) Bytes() int64 {
	n, _ := tensor.NumElements(h.Shape)
	return int64(h.DType.Bytes(n))
}

// ReadHeader reads the header of an array and leaves r at its data.
func ReadHeader(r io.Reader) (Header, error) {
	h, _, err := readHeader(r)
	return h, err
}

// readHeader also returns the number of bytes that it took from r.
func readHeader(r io.Reader) (h Header, size int64, err error) {
	var b [12]byte
	if _, err := io.ReadFull(r, b[:8]); err != nil || string(b[:6]) != magic {
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return h, 0, err
		}
		return h, 0, errors.New("not a .npy array: the magic bytes are missing")
	}
	lenBytes := 4
	switch b[6] {
	case 1:
		lenBytes = 2
	case 2, 3:
	default:
		return h, 0, fmt.Errorf("version %d.%d of the .npy format is unknown", b[6], b[7])
	}
	if _, err := io.ReadFull(r, b[8:8+lenBytes]); err != nil {
		return h, 0, cut(err)
	}
	n := binary.LittleEndian.Uint32(b[8:12])
	if n > maxHeader {
		return h, 0, fmt.Errorf("header of %d bytes, at most %d are allowed", n, maxHeader)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return h, 0, cut(err)
	}
	h, err = parseHeader(string(text))
	return h, int64(8 + lenBytes + int(n)), err
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("file is cut off")
	}
	return err
}

// literal parses the part of Python's literals that headers are made of.
type literal struct{ s string }

func (p *literal) space() { p.s = strings.TrimLeft(p.s, " \t\r\n") }

func (p *literal) take(c byte) bool {
	p.space()
	if p.s == "" || p.s[0] != c {
		return false
	}
	p.s = p.s[1:]
	return true
}

func (p *literal) str() (string, bool) {
	p.space()
	if p.s == "" || p.s[0] != '\'' && p.s[0] != '"' {
		return "", false
	}
	end := strings.IndexByte(p.s[1:], p.s[0])
	if end < 0 {
		return "", false
	}
	v := p.s[1 : 1+end]
	p.s = p.s[end+2:]
	return v, !strings.Contains(v, `\`)
}

func (p *literal) word(w string) bool {
	p.space()
	rest, ok := strings.CutPrefix(p.s, w)
	if ok {
		p.s = rest
	}
	return ok
}

func (p *literal) dims() ([]int, error) {
	bad := errors.New("header: shape is no tuple of sizes")
	if !p.take('(') {
		return nil, bad
	}
	shape := []int{}
	for !p.take(')') {
		p.space()
		i := 0
		for i < len(p.s) && p.s[i] >= '0' && p.s[i] <= '9' {
			i++
		}
		d, err := strconv.Atoi(p.s[:i])
		if err != nil {
			if i > 0 {
				return nil, fmt.Errorf("header: dimension %s is too large", p.s[:i])
			}
			return nil, bad
		}
		p.s = strings.TrimPrefix(p.s[i:], "L")
		if shape = append(shape, d); len(shape) > maxRank {
			return nil, fmt.Errorf("header: more than %d dimensions", maxRank)
		}
		if !p.take(',') && !strings.HasPrefix(strings.TrimLeft(p.s, " "), ")") {
			return nil, bad
		}
	}
	return shape, nil
}

func parseHeader(text string) (h Header, err error) {
	p := &literal{text}
	if !p.take('{') {
		return h, errors.New("header is no dictionary")
	}
	seen := map[string]bool{}
	for !p.take('}') {
		key, ok := p.str()
		if !ok || !p.take(':') || seen[key] {
			return h, errors.New("header is malformed")
		}
		seen[key] = true
		switch key {
		case "descr":
			descr, ok := p.str()
			if !ok {
				return h, errors.New("arrays of records are not read: one number type per array")
			}
			if err := h.setType(descr); err != nil {
				return h, err
			}
		case "fortran_order":
			if p.word("True") {
				h.Fortran = true
			} else if !p.word("False") {
				return h, errors.New("header: fortran_order is neither True nor False")
			}
		case "shape":
			if h.Shape, err = p.dims(); err != nil {
				return h, err
			}
		default:
			return h, fmt.Errorf("header: unknown key %q", key)
		}
		if !p.take(',') {
			if p.take('}') {
				break
			}
			return h, errors.New("header is malformed")
		}
	}
	for _, key := range []string{"descr", "fortran_order", "shape"} {
		if !seen[key] {
			return h, fmt.Errorf("header: %s is missing", key)
		}
	}
	if strings.TrimSpace(p.s) != "" {
		return h, errors.New("header is malformed")
	}
	n, ok := tensor.NumElements(h.Shape)
	if !ok || n > 1<<56 {
		return h, fmt.Errorf("shape %s is too large", tensor.ShapeString(h.Shape))
	}
	return h, nil
}

func (h *Header) setType(descr string) error {
	if descr == "" {
		return errors.New("header: empty descr")
	}
	code := descr
	switch descr[0] {
	case '<', '|', '=':
		code = descr[1:]
	case '>':
		code = descr[1:]
		h.BigEndian = true
	}
	if d, ok := codes[code]; ok {
		h.DType = d
		return nil
	}
	switch {
	case strings.HasPrefix(code, "O"):
		return errors.New("array of Python objects: refused, since reading one can run code; save numbers, all of one shape")
	case strings.HasPrefix(code, "S"), strings.HasPrefix(code, "U"), strings.HasPrefix(code, "a"):
		return fmt.Errorf("array of strings (%s) is not read", descr)
	}
	return fmt.Errorf("element type %q has no ONNX equivalent", descr)
}

// read fills a tensor with the data that r stands at and converts it to row
// major, little endian.
func (h Header) read(r io.Reader) (*tensor.Tensor, error) {
	t := tensor.New(h.DType, h.Shape...)
	if _, err := io.ReadFull(r, t.Bytes()); err != nil {
		return nil, cut(err)
	}
	return h.finish(t)
}

func (h Header) finish(t *tensor.Tensor) (*tensor.Tensor, error) {
	b := t.Bytes()
	if h.BigEndian {
		swapBytes(b, h.unit())
	}
	if h.DType == tensor.Bool {
		for i, v := range b {
			if v > 1 {
				return nil, fmt.Errorf("element %d of a bool array is %d", i, v)
			}
		}
	}
	if h.Fortran && len(h.Shape) > 1 {
		t = fromFortran(t)
	}
	return t, nil
}

// unit returns the number of bytes that are swapped together.
func (h Header) unit() int {
	size := h.DType.Bits() / 8
	if h.DType == tensor.Complex64 || h.DType == tensor.Complex128 {
		size /= 2
	}
	return size
}

func swapBytes(b []byte, size int) {
	if size == 1 {
		return
	}
	for ; len(b) >= size; b = b[size:] {
		for i, j := 0, size-1; i < j; i, j = i+1, j-1 {
			b[i], b[j] = b[j], b[i]
		}
	}
}

func fromFortran(t *tensor.Tensor) *tensor.Tensor {
	shape := t.Shape()
	out := tensor.New(t.DType(), shape...)
	size := t.DType().Bits() / 8
	src, dst := t.Bytes(), out.Bytes()
	stride := make([]int, len(shape))
	s := size
	for i, d := range shape {
		stride[i] = s
		s *= d
	}
	idx := make([]int, len(shape))
	at := 0
	for o := 0; o < len(dst); o += size {
		copy(dst[o:o+size], src[at:at+size])
		for i := len(idx) - 1; i >= 0; i-- {
			idx[i]++
			at += stride[i]
			if idx[i] < shape[i] {
				break
			}
			at -= idx[i] * stride[i]
			idx[i] = 0
		}
	}
	return out
}

// Write writes t as an array of format version 1.0 (2.0 where the header is
// long), row major and little endian. It is an error if NumPy has no such
// element type: strings, bfloat16, and the types of 8 bits and fewer that are
// neither integers nor bool.
func Write(w io.Writer, t *tensor.Tensor) error {
	code, ok := codeOf(t.DType())
	if !ok {
		return fmt.Errorf("%v has no NumPy element type", t.DType())
	}
	var dims strings.Builder
	for _, d := range t.Shape() {
		fmt.Fprintf(&dims, "%d, ", d)
	}
	shape := strings.TrimSuffix(dims.String(), " ")
	if len(t.Shape()) > 1 {
		shape = strings.TrimSuffix(shape, ",")
	}
	text := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", code, shape)
	pre := []byte(magic + "\x01\x00\x00\x00")
	if len(text)+len(pre)+64 > 1<<16 {
		pre = []byte(magic + "\x02\x00\x00\x00\x00\x00")
	}
	pad := 64 - (len(pre)+len(text)+1)%64
	n := len(text) + pad + 1
	if len(pre) == 10 {
		binary.LittleEndian.PutUint16(pre[8:], uint16(n))
	} else {
		binary.LittleEndian.PutUint32(pre[8:], uint32(n))
	}
	head := append(pre, text...)
	head = append(head, strings.Repeat(" ", pad)...)
	if _, err := w.Write(append(head, '\n')); err != nil {
		return err
	}
	_, err := w.Write(t.Bytes())
	return err
}

func codeOf(d tensor.DType) (string, bool) {
	for code, c := range codes {
		if c == d {
			if d.Bits() == 8 {
				return "|" + code, true
			}
			return "<" + code, true
		}
	}
	return "", false
}
