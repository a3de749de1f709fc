package onnxfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/onnxq/onnxq/tensor"
)

// stored says how a file holds a tensor.
type stored struct {
	wire     []byte // the TensorProto, aliasing the file
	name     string
	external bool // the elements are in another file
}

// Data fields of TensorProto.
const (
	fieldFloat  = 4
	fieldInt32  = 5
	fieldString = 6
	fieldInt64  = 7
	fieldRaw    = 9
	fieldDouble = 10
	fieldUint64 = 11
)

// dataField returns the typed field that the specification gives an element
// type (onnx.proto, TensorProto).
func dataField(d tensor.DType) protowire.Number {
	switch d {
	case tensor.Float32, tensor.Complex64:
		return fieldFloat
	case tensor.Float64, tensor.Complex128:
		return fieldDouble
	case tensor.Int64:
		return fieldInt64
	case tensor.Uint32, tensor.Uint64:
		return fieldUint64
	case tensor.String:
		return fieldString
	}
	return fieldInt32
}

var fieldNames = map[protowire.Number]string{
	fieldFloat: "float_data", fieldInt32: "int32_data", fieldString: "string_data",
	fieldInt64: "int64_data", fieldRaw: "raw_data", fieldDouble: "double_data", fieldUint64: "uint64_data",
}

// tensor decodes a TensorProto and remembers how it was stored. The elements
// alias b where the file has them in the layout of raw_data.
func (l *loader) tensor(b []byte) (*tensor.Tensor, *stored, error) {
	if err := l.charge(tensorCost); err != nil {
		return nil, nil, err
	}
	var (
		dims     []int64
		dtype    int64
		st       = &stored{wire: b}
		raw      []byte
		hasRaw   bool
		field    protowire.Number // the typed field in use
		parts    [][]byte         // its occurrences
		single   bool             // the last part is gathered from single elements
		ext      []property
		location int64
		err      error
	)
	s := scan(b)
	for s.next() {
		switch s.tag {
		case 1<<3 | vint, 1<<3 | blob:
			dims, err = l.dims(dims, &s)
		case 2<<3 | vint:
			dtype = int64(int32(s.u))
		case 3<<3 | blob:
			err = errors.New("tensors in segments are not supported")
		case fieldFloat<<3 | blob, fieldInt32<<3 | blob, fieldInt64<<3 | blob, fieldDouble<<3 | blob, fieldUint64<<3 | blob, fieldString<<3 | blob,
			fieldFloat<<3 | fx32, fieldInt32<<3 | vint, fieldInt64<<3 | vint, fieldDouble<<3 | fx64, fieldUint64<<3 | vint:
			if s.tag&7 == blob && len(s.b) == 0 && s.num() != fieldString {
				continue
			}
			if field != 0 && field != s.num() {
				err = fmt.Errorf("data in both %s and %s", fieldNames[field], fieldNames[s.num()])
			}
			field = s.num()
			if s.tag&7 == blob {
				parts = append(parts, s.b)
				single = false
				err = errors.Join(err, l.charge(1))
				break
			}
			// Elements that are not packed are gathered as if they were.
			if !single {
				parts = append(parts, nil)
				single = true
			}
			_, n := protowire.ConsumeVarint(s.raw())
			last := &parts[len(parts)-1]
			*last = append(*last, s.raw()[n:]...)
		case 8<<3 | blob:
			st.name = string(s.b)
		case fieldRaw<<3 | blob:
			raw, hasRaw = s.b, true
		case 13<<3 | blob:
			var kv property
			if kv, err = decodeProperty(s.b); err == nil {
				ext = append(ext, kv)
			}
		case 14<<3 | vint:
			location = int64(s.u)
		}
		if len(ext) > 64 {
			err = errors.New("more than 64 keys of external data")
		}
		if err != nil {
			return nil, st, err
		}
	}
	if s.err != nil {
		return nil, st, s.err
	}

	d := tensor.DType(dtype)
	if dtype < 0 || dtype > 255 || !d.Valid() {
		return nil, st, fmt.Errorf("element type %d is not supported", dtype)
	}
	shape := make([]int, len(dims))
	for i, v := range dims {
		if v < 0 || v > math.MaxInt {
			return nil, st, fmt.Errorf("dimension %d of shape %v is negative or too large", i, dims)
		}
		shape[i] = int(v)
	}
	n, ok := tensor.NumElements(shape)
	if !ok || n > math.MaxInt/16 {
		return nil, st, fmt.Errorf("shape %v has too many elements", dims)
	}

	switch {
	case location == 1:
		if len(raw) > 0 || field != 0 {
			return nil, st, errors.New("data both in the file and external")
		}
		st.external = true
		if d == tensor.String {
			return nil, st, errors.New("strings can not be external data")
		}
		raw, err = l.external(ext, d.Bytes(n))
	case location != 0:
		return nil, st, fmt.Errorf("unknown data location %d", location)
	case len(raw) > 0 && field != 0:
		return nil, st, fmt.Errorf("data in both raw_data and %s", fieldNames[field])
	case len(raw) > 0 || hasRaw && field == 0:
		if d == tensor.String {
			return nil, st, errors.New("strings in raw_data")
		}
	case field == 0 && n > 0:
		return nil, st, fmt.Errorf("no data for %v%v", d, shape)
	case field != 0 && field != dataField(d):
		return nil, st, fmt.Errorf("%v elements in %s", d, fieldNames[field])
	case d == tensor.String:
		if len(parts) != n {
			return nil, st, fmt.Errorf("%d strings for shape %v", len(parts), shape)
		}
		strs := make([]string, n)
		for i, p := range parts {
			strs[i] = string(p)
		}
		return tensor.FromStrings(shape, strs), st, nil
	default:
		raw, err = l.typed(d, field, parts, n)
	}
	if err != nil {
		return nil, st, err
	}
	if d == tensor.Bool {
		raw = cleanBools(raw)
	}
	t, err := tensor.FromBytes(d, shape, raw)
	return t, st, err
}

// dims appends the current field, a dimension or a packed list of them.
func (l *loader) dims(dims []int64, s *scanner) ([]int64, error) {
	n := len(dims) + 1
	if s.tag&7 == blob {
		n = len(dims) + countVarints(s.b)
	}
	if n > l.limits.Rank {
		return nil, &LimitError{"rank", int64(l.limits.Rank)}
	}
	if s.tag&7 == blob {
		return varints(dims, s.b)
	}
	return append(dims, int64(s.u)), nil
}

// countVarints returns the number of varints in a packed field.
func countVarints(b []byte) int {
	n := 0
	for _, c := range b {
		if c < 0x80 {
			n++
		}
	}
	return n
}

// cleanBools returns b with every byte 0 or 1, b itself if it is so.
func cleanBools(b []byte) []byte {
	for i, v := range b {
		if v > 1 {
			c := append([]byte(nil), b...)
			for ; i < len(c); i++ {
				if c[i] > 1 {
					c[i] = 1
				}
			}
			return c
		}
	}
	return b
}

// typed returns the elements of a typed field in the layout of raw_data.
func (l *loader) typed(d tensor.DType, field protowire.Number, parts [][]byte, n int) ([]byte, error) {
	want := d.Bytes(n)
	if field == fieldFloat || field == fieldDouble {
		if len(parts) == 1 {
			return parts[0], nil // packed floats are laid out as raw_data
		}
		var out []byte
		for _, p := range parts {
			out = append(out, p...)
		}
		return out, l.memory(len(out))
	}
	width := max(d.Bits()/8, 1) // bytes of one entry: packed elements come by the byte
	count := 0
	for _, p := range parts {
		count += countVarints(p)
	}
	if count*width != want {
		return nil, fmt.Errorf("%d entries of %s for %v%v elements, %d needed", count, fieldNames[field], d, []int{n}, want/width)
	}
	if err := l.memory(want); err != nil {
		return nil, err
	}
	out := tensor.AlignedBytes(want)[:0]
	for _, p := range parts {
		for len(p) > 0 {
			u, k := protowire.ConsumeVarint(p)
			if k < 0 {
				return nil, errWire
			}
			p = p[k:]
			if field == fieldInt32 {
				// Signed types may be given by value or by bits.
				v := int64(int32(u))
				if bits := 8 * width; v < -1<<(bits-1) || v >= 1<<bits {
					return nil, fmt.Errorf("%d in int32_data is out of the range of %v", v, d)
				}
				if d == tensor.Bool && v != 0 {
					v = 1
				}
				u = uint64(v)
			}
			switch width {
			case 1:
				out = append(out, byte(u))
			case 2:
				out = binary.LittleEndian.AppendUint16(out, uint16(u))
			case 4:
				if d == tensor.Uint32 && u > math.MaxUint32 {
					return nil, fmt.Errorf("%d in uint64_data is out of the range of %v", u, d)
				}
				out = binary.LittleEndian.AppendUint32(out, uint32(u))
			case 8:
				out = binary.LittleEndian.AppendUint64(out, u)
			}
		}
	}
	return out, nil
}

// DecodeTensor decodes a TensorProto, such as a .pb file of a test data set,
// and returns the name it carries. The tensor aliases b where it can. External
// data is an error.
func DecodeTensor(b []byte) (name string, t *tensor.Tensor, err error) {
	l := newLoader(nil)
	t, st, err := l.tensor(b)
	if err != nil {
		return "", nil, classify("", err)
	}
	return st.name, t, nil
}

// ReadTensor reads a TensorProto that fills size bytes of r, as DecodeTensor
// does. A file that is none takes no memory, whatever its size.
func ReadTensor(r io.ReaderAt, size int64) (name string, t *tensor.Tensor, err error) {
	if err := checkMessage(r, size); err != nil {
		return "", nil, err
	}
	b := make([]byte, size)
	if n, err := r.ReadAt(b, 0); int64(n) < size {
		return "", nil, fmt.Errorf("the file shrank from %d to %d bytes: %w", size, n, err)
	}
	return DecodeTensor(b)
}

// checkMessage returns an error unless fields fill r as they fill a protobuf
// message.
func checkMessage(r io.ReaderAt, size int64) error {
	var head [2 * binary.MaxVarintLen64]byte
	for at := int64(0); at < size; {
		n, err := r.ReadAt(head[:min(int64(len(head)), size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		b := head[:n]
		_, typ, k := protowire.ConsumeTag(b)
		var length uint64
		ok := k >= 0
		switch {
		case !ok:
		case typ == protowire.VarintType:
			_, n := protowire.ConsumeVarint(b[k:])
			ok, length = n >= 0, uint64(n)
		case typ == protowire.Fixed32Type:
			length = 4
		case typ == protowire.Fixed64Type:
			length = 8
		case typ == protowire.BytesType:
			v, n := protowire.ConsumeVarint(b[k:])
			ok, length = n >= 0, v
			k += n
		default:
			ok = false
		}
		if !ok {
			return fmt.Errorf("malformed protobuf at byte %d", at)
		}
		if at += int64(k); length > uint64(size-at) {
			return fmt.Errorf("protobuf is cut off: a field of %d bytes begins at byte %d of %d", length, at, size)
		}
		at += int64(length)
	}
	return nil
}

// EncodeTensor encodes t as a TensorProto with raw_data, or string_data.
func EncodeTensor(name string, t *tensor.Tensor) []byte {
	return encodeBytes(func(e *encoder) { e.freshTensor(t, name, nil) })
}
