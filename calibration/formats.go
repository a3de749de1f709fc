package calibration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/onnxq/onnxq/calibration/images"
	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/tensor"
)

// openArrays opens a .npz, .npy or .safetensors file. Plain files are read
// array by array, so the limit bounds only what archives expand to.
func (o *opener) openArrays(ctx context.Context, f file) (opened, error) {
	r, size, err := o.openFile(ctx, f.path)
	if err != nil {
		return opened{}, err
	}
	var op opened
	switch f.kind {
	case kindNpz:
		op, err = npzFields(r, size, o.opts.maxBytes())
	case kindNpy:
		var a *npy.Array
		if a, err = npy.Open(r, size); err == nil {
			op.fields = []field{arrayField(a)}
		}
	default:
		op, err = safetensorsFields(r, size)
	}
	op.close = func() { r.Close() }
	return op, err
}

func npzFields(r io.ReaderAt, size, limit int64) (opened, error) {
	z, err := npy.OpenArchive(r, size, limit)
	if err != nil {
		return opened{}, err
	}
	var op opened
	for _, a := range z.Arrays {
		op.fields = append(op.fields, arrayField(a))
	}
	return op, nil
}

// archiveEnds finds where each of several .npz archives, one behind the other,
// ends. An archive ends with a record that holds the place of its directory,
// so a chance match of the record's signature within data is told apart.
func archiveEnds(r io.ReaderAt, size int64) ([]int64, error) {
	const (
		endSize     = 22 // end of central directory (APPNOTE.TXT of PKWARE, 4.3.16)
		end64Size   = 56
		locatorSize = 20
	)
	var ends []int64
	var start int64
	buf := make([]byte, 1<<20)
	for at := int64(0); at < size; {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		b := buf[:n]
		next := at + max(int64(n)-endSize+1, 1)
		for i := 0; ; i++ {
			j := bytes.Index(b[i:], []byte("PK\x05\x06"))
			if j < 0 || i+j+endSize > len(b) {
				break
			}
			i += j
			pos := at + int64(i)
			if pos < start {
				continue
			}
			dirSize := int64(binary.LittleEndian.Uint32(b[i+12:]))
			dirOff := int64(binary.LittleEndian.Uint32(b[i+16:]))
			dirEnd := pos
			if loc := make([]byte, locatorSize); pos-start >= locatorSize+end64Size {
				if _, err := r.ReadAt(loc, pos-locatorSize); err == nil && string(loc[:4]) == "PK\x06\x07" {
					rec := make([]byte, end64Size)
					off := start + int64(binary.LittleEndian.Uint64(loc[8:])&(1<<56-1))
					if _, err := r.ReadAt(rec, off); err != nil || string(rec[:4]) != "PK\x06\x06" {
						continue
					}
					dirSize = int64(binary.LittleEndian.Uint64(rec[40:]) & (1<<56 - 1))
					dirOff = int64(binary.LittleEndian.Uint64(rec[48:]) & (1<<56 - 1))
					dirEnd = off
				}
			}
			end := pos + endSize + int64(binary.LittleEndian.Uint16(b[i+20:]))
			if start+dirOff+dirSize != dirEnd || end > size {
				continue
			}
			ends = append(ends, end)
			start = end
		}
		at = next
	}
	if start != size {
		return nil, fmt.Errorf("the stream is no sequence of .npz archives: %d bytes from byte %d on are none (cut off?)", size-start, start)
	}
	return ends, nil
}

// The format's reference reader refuses longer headers as well.
const maxSafetensorsHeader = 100 << 20

var safetensorsTypes = map[string]tensor.DType{
	"BOOL": tensor.Bool, "U8": tensor.Uint8, "I8": tensor.Int8, "U16": tensor.Uint16, "I16": tensor.Int16,
	"U32": tensor.Uint32, "I32": tensor.Int32, "U64": tensor.Uint64, "I64": tensor.Int64,
	"F16": tensor.Float16, "BF16": tensor.BFloat16, "F32": tensor.Float32, "F64": tensor.Float64,
	"F8_E4M3": tensor.Float8E4M3FN, "F8_E5M2": tensor.Float8E5M2,
}

// safetensorsFields reads the header of a .safetensors file.
func safetensorsFields(r io.ReaderAt, size int64) (opened, error) {
	var lead [8]byte
	if _, err := r.ReadAt(lead[:], 0); err != nil {
		return opened{}, errors.New("not a .safetensors file: it has fewer than 8 bytes")
	}
	n := binary.LittleEndian.Uint64(lead[:])
	if n > maxSafetensorsHeader || int64(n) > size-8 {
		return opened{}, fmt.Errorf("not a .safetensors file, or cut off: a header of %d bytes in a file of %d", n, size)
	}
	var header map[string]json.RawMessage
	text := json.NewDecoder(io.NewSectionReader(r, 8, int64(n)))
	if err := text.Decode(&header); err != nil {
		return opened{}, fmt.Errorf("header: %w", err)
	}
	if _, err := text.Token(); err != io.EOF {
		return opened{}, errors.New("header: more than one JSON object")
	}
	data := 8 + int64(n)
	var op opened
	for _, name := range slices.Sorted(mapKeys(header)) {
		if name == "__metadata__" {
			continue
		}
		var e struct {
			DType   string   `json:"dtype"`
			Shape   []int    `json:"shape"`
			Offsets [2]int64 `json:"data_offsets"`
		}
		if err := json.Unmarshal(header[name], &e); err != nil {
			return opened{}, fmt.Errorf("tensor %q: header: %w", name, err)
		}
		d, ok := safetensorsTypes[e.DType]
		if !ok {
			return opened{}, fmt.Errorf("tensor %q: unknown element type %q", name, e.DType)
		}
		if e.Shape == nil {
			e.Shape = []int{}
		}
		count, ok := tensor.NumElements(e.Shape)
		lo, hi := e.Offsets[0], e.Offsets[1]
		if !ok || count > 1<<56 || lo < 0 || hi < lo || hi > size-data || hi-lo != int64(d.Bytes(count)) {
			return opened{}, fmt.Errorf("tensor %q: %v%s at bytes %d to %d of %d: file is cut off, or its header lies",
				name, d, tensor.ShapeString(e.Shape), lo, hi, size-data)
		}
		readRow := func(from, to int) (*tensor.Tensor, error) {
			shape := append([]int{to - from}, e.Shape[1:]...)
			t := tensor.New(d, shape...)
			row := (hi - lo) / int64(max(e.Shape[0], 1))
			_, err := r.ReadAt(t.Bytes(), data+lo+int64(from)*row)
			return t, err
		}
		op.fields = append(op.fields, field{
			name: name, index: -1, typed: true, dtype: d, shape: e.Shape, readRow: readRow, direct: true,
			read: func(*Input) (*tensor.Tensor, error) {
				t := tensor.New(d, e.Shape...)
				if len(t.Bytes()) == 0 {
					return t, nil
				}
				_, err := r.ReadAt(t.Bytes(), data+lo)
				return t, err
			},
		})
	}
	return op, nil
}

func (o *opener) readImage(ctx context.Context, path string) (opened, error) {
	f, size, err := o.openFile(ctx, path)
	if err != nil {
		return opened{}, err
	}
	defer f.Close()
	im, err := images.Decode(f, size)
	if err != nil {
		return opened{}, err
	}
	t, err := o.fitted.Apply(im)
	if err != nil {
		return opened{}, err
	}
	in, _ := o.singleInput()
	return opened{fields: []field{{name: in.Name, index: -1, read: func(in *Input) (*tensor.Tensor, error) {
		if in.DType == tensor.Float32 {
			return t, nil
		}
		return castTensor(t, in.DType)
	}}}}, nil
}

// readProtos reads the files input_J.pb of a folder.
func (o *opener) readProtos(ctx context.Context, f file) (opened, error) {
	var op opened
	var total int64
	for _, j := range slices.Sorted(mapKeys(f.protos)) {
		path := f.protos[j]
		if j >= len(o.inputs) {
			return opened{}, &DataError{Path: path, Err: fmt.Errorf("the model has only %d inputs", len(o.inputs))}
		}
		in := &o.inputs[j]
		fail := func(err error) error {
			var de *DataError
			if errors.As(err, &de) {
				return err
			}
			return &DataError{Path: path, Input: in.Name, Err: err}
		}
		r, size, err := o.openFile(ctx, path)
		if err != nil {
			return opened{}, fail(err)
		}
		if total += size; total > o.opts.maxBytes() {
			r.Close()
			return opened{}, fail(fmt.Errorf("the sample takes more than the %d bytes allowed", o.opts.maxBytes()))
		}
		_, t, err := o.opts.ReadTensor(r, size)
		r.Close()
		if err != nil {
			return opened{}, fail(err)
		}
		if t.DType() != in.DType && !o.opts.Cast {
			return opened{}, fail(wrongType(t.DType(), in))
		}
		if err := checkShape(t.Shape(), in); err != nil {
			return opened{}, fail(err)
		}
		op.fields = append(op.fields, field{
			name: filepath.Base(path), index: j,
			read: func(*Input) (*tensor.Tensor, error) { return t, nil },
		})
	}
	return op, nil
}

// readLine reads one line of a .jsonl file.
func (o *opener) readLine(ctx context.Context, path string, off, size int64) (opened, error) {
	f, _, err := o.openFile(ctx, path)
	if err != nil {
		return opened{}, err
	}
	defer f.Close()
	// Read as it is parsed, since it may be large and no JSON at all.
	r := bufio.NewReader(io.NewSectionReader(f, off, size))
	object, err := beginsObject(r)
	if err != nil {
		return opened{}, err
	}
	dec := json.NewDecoder(r)
	dec.UseNumber()
	var op opened
	add := func(name string, raw json.RawMessage) {
		op.fields = append(op.fields, field{name: name, index: -1, read: func(in *Input) (*tensor.Tensor, error) {
			return parseNested(raw, in.DType)
		}})
	}
	end := func() (opened, error) {
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return opened{}, errors.New("more than one value in a line")
		}
		return op, nil
	}
	if !object {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return opened{}, jsonError(err)
		}
		add("", raw)
		return end()
	}
	if _, err := dec.Token(); err != nil {
		return opened{}, jsonError(err)
	}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return opened{}, jsonError(err)
		}
		name, _ := tok.(string)
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return opened{}, jsonError(err)
		}
		if seen[name] {
			return opened{}, fmt.Errorf("the key %q is there twice", name)
		}
		seen[name] = true
		add(name, raw)
	}
	if _, err := dec.Token(); err != nil {
		return opened{}, jsonError(err)
	}
	return end()
}

// beginsObject reports whether the first byte of r that is no white space,
// which it passes over, is a brace.
func beginsObject(r *bufio.Reader) (bool, error) {
	for {
		switch c, err := r.ReadByte(); {
		case errors.Is(err, io.EOF):
			return false, errors.New("the file has changed since it was opened")
		case err != nil:
			return false, err
		case c != ' ' && c != '\t' && c != '\r' && c != '\n':
			return c == '{', r.UnreadByte()
		}
	}
}

func jsonError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("not JSON: the line is cut off")
	}
	return fmt.Errorf("not JSON: %w", err)
}

// nested collects the numbers of nested arrays.
type nested struct {
	dec   *json.Decoder
	dtype tensor.DType
	dims  []int // -1 until the first array of a depth is closed
	depth int   // of the numbers, -1 before the first

	floats []float64
	ints   []int64
	uints  []uint64
	strs   []string
	n      int
}

const maxNesting = 64

// parseNested reads nested arrays of equal lengths as a tensor of the given
// type; it is an error if a number is not exactly one of an integer type.
func parseNested(raw []byte, d tensor.DType) (*tensor.Tensor, error) {
	if !d.Convertible() && d != tensor.String {
		return nil, fmt.Errorf("JSON has no values of type %v", d)
	}
	p := &nested{dec: json.NewDecoder(bytes.NewReader(raw)), dtype: d, depth: -1}
	p.dec.UseNumber()
	if err := p.value(0); err != nil {
		return nil, err
	}
	if p.depth >= 0 && p.depth != len(p.dims) {
		return nil, errors.New("arrays are ragged: numbers at different depths")
	}
	shape := append([]int{}, p.dims...)
	if n, ok := tensor.NumElements(shape); !ok || n != p.n {
		return nil, fmt.Errorf("arrays are ragged: %d values in shape %s", p.n, tensor.ShapeString(shape))
	}
	switch {
	case d == tensor.String:
		return tensor.FromStrings(shape, p.strs), nil
	case d.IsFloat():
		t := tensor.New(d, shape...)
		tensor.Write(t, 0, p.floats)
		return t, nil
	case d == tensor.Uint64:
		return tensor.Of(p.uints, shape...), nil
	}
	return castTensor(tensor.Of(p.ints, shape...), d)
}

func (p *nested) value(depth int) error {
	tok, err := p.dec.Token()
	if err != nil {
		return jsonError(err)
	}
	if tok != json.Delim('[') {
		if p.depth < 0 {
			p.depth = depth
		}
		if p.depth != depth {
			return errors.New("arrays are ragged: numbers at different depths")
		}
		p.n++
		return p.add(tok)
	}
	if depth == maxNesting {
		return fmt.Errorf("arrays are nested more than %d deep", maxNesting)
	}
	if len(p.dims) == depth {
		p.dims = append(p.dims, -1)
	}
	n := 0
	for ; p.dec.More(); n++ {
		if err := p.value(depth + 1); err != nil {
			return err
		}
	}
	if _, err := p.dec.Token(); err != nil {
		return jsonError(err)
	}
	if p.dims[depth] >= 0 && p.dims[depth] != n {
		return fmt.Errorf("arrays are ragged: %d and %d elements at depth %d", p.dims[depth], n, depth)
	}
	p.dims[depth] = n
	return nil
}

func (p *nested) add(tok json.Token) error {
	if b, ok := tok.(bool); ok && (p.dtype == tensor.Bool || p.dtype.IsInt()) {
		tok = json.Number("0")
		if b {
			tok = json.Number("1")
		}
	}
	if s, ok := tok.(string); ok && p.dtype == tensor.String {
		p.strs = append(p.strs, s)
		return nil
	}
	num, ok := tok.(json.Number)
	if !ok || p.dtype == tensor.String {
		return fmt.Errorf("%v is no value of type %v", tok, p.dtype)
	}
	var err error
	switch {
	case p.dtype.IsFloat():
		bits := 64
		if p.dtype == tensor.Float32 {
			bits = 32
		}
		var v float64
		v, err = strconv.ParseFloat(string(num), bits)
		p.floats = append(p.floats, v)
	case p.dtype == tensor.Uint64:
		var v uint64
		v, err = strconv.ParseUint(string(num), 10, 64)
		p.uints = append(p.uints, v)
	default:
		var v int64
		v, err = strconv.ParseInt(string(num), 10, 64)
		p.ints = append(p.ints, v)
	}
	if err != nil {
		return fmt.Errorf("%s is no value of type %v", num, p.dtype)
	}
	return nil
}
