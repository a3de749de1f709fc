package npy

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/internal/fuzztest"
	"github.com/onnxq/onnxq/tensor"
)

func load(t *testing.T, name string) *tensor.Tensor {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	x, err := decode(b)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return x
}

func decode(b []byte) (*tensor.Tensor, error) {
	a, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	return a.Tensor()
}

// numbers returns arange(24)-shift of testdata/make.py.
func numbers[T float32 | float64 | int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64](shift int) *tensor.Tensor {
	s := make([]T, 24)
	for i := range s {
		s[i] = T(i - shift)
	}
	return tensor.Of(s, 2, 3, 4)
}

func TestReadNumPy(t *testing.T) {
	b := make([]bool, 24)
	c := make([]complex64, 24)
	cc := make([]complex128, 24)
	for i := range b {
		b[i], c[i], cc[i] = i%2 == 1, complex(float32(i-5), 0), complex(float64(i-5), 0)
	}
	for name, want := range map[string]*tensor.Tensor{
		"b1": tensor.Of(b, 2, 3, 4), "c8": tensor.Of(c, 2, 3, 4), "c16": tensor.Of(cc, 2, 3, 4),
		"i1": numbers[int8](5), "i2": numbers[int16](5), "i4": numbers[int32](5), "i8": numbers[int64](5),
		"u1": numbers[uint8](0), "u2": numbers[uint16](0), "u4": numbers[uint32](0), "u8": numbers[uint64](0),
		"f4": numbers[float32](5), "f8": numbers[float64](5),
		"fortran_f4": numbers[float32](5), "big_f4": numbers[float32](5), "big_c8": tensor.Of(c, 2, 3, 4),
		"scalar": tensor.Scalar(float32(1.5)),
		"empty":  tensor.New(tensor.Int64, 0, 3),
		"vector": tensor.Of([]int16{0, 1, 2, 3, 4}),
	} {
		if got := load(t, name+".npy"); !got.Equal(want) {
			t.Errorf("%s: %v differs from %v", name, got, want)
		}
	}
	half := load(t, "f2.npy")
	if half.DType() != tensor.Float16 || tensor.As[uint16](half)[6] != 0x3c00 { // 1.0
		t.Errorf("float16: %v %x", half, half.Bytes())
	}
	for name, want := range map[string]string{
		"objects": "Python objects", "strings": "array of strings", "records": "arrays of records",
	} {
		b, err := os.ReadFile(filepath.Join("testdata", name+".npy"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestReadNumPyArchives(t *testing.T) {
	for name, keys := range map[string]string{"stored.npz": "x in/put:0", "deflated.npz": "x z"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		a, err := OpenArchive(bytes.NewReader(b), int64(len(b)), 0)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, arr := range a.Arrays {
			got = append(got, arr.Name)
		}
		if strings.Join(got, " ") != keys {
			t.Errorf("%s holds %q, want %q", name, got, keys)
		}
		x, err := a.Arrays[0].Tensor()
		if err != nil || !x.Equal(numbers[float32](0)) {
			t.Errorf("%s: x = %v, %v", name, x, err)
		}
		row, err := a.Arrays[0].Rows(1, 2)
		want, _ := tensor.FromBytes(tensor.Float32, []int{1, 3, 4}, x.Bytes()[48:])
		if err != nil || !row.Equal(want) {
			t.Errorf("%s: second row = %v, %v", name, row, err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for d := tensor.Float32; d <= tensor.Int2; d++ {
		x := tensor.New(d, 3, 5)
		for i := range x.Bytes() {
			x.Bytes()[i] = byte(r.Uint32())
			if d == tensor.Bool {
				x.Bytes()[i] &= 1
			}
		}
		var b bytes.Buffer
		err := Write(&b, x)
		if _, ok := codeOf(d); !ok {
			if err == nil {
				t.Errorf("%v: written", d)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(b.Bytes())
		if err != nil || !got.Equal(x) {
			t.Errorf("%v: %v", d, err)
		}
		if b.Bytes()[b.Len()-len(x.Bytes())-1] != '\n' || (b.Len()-len(x.Bytes()))%64 != 0 {
			t.Errorf("%v: data is not aligned to 64 bytes", d)
		}
	}
	for _, deflate := range []bool{false, true} {
		var b bytes.Buffer
		w := NewWriter(&b, deflate)
		x, y := numbers[int32](3), tensor.Scalar(2.5)
		for name, v := range map[string]*tensor.Tensor{"a/b": x, "": y} {
			if err := w.Add(name, v); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Add("a/b", y); err == nil {
			t.Error("the same name twice was taken")
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		a, err := OpenArchive(bytes.NewReader(b.Bytes()), int64(b.Len()), 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, arr := range a.Arrays {
			got, err := arr.Tensor()
			if want := map[string]*tensor.Tensor{"a/b": x, "": y}[arr.Name]; err != nil || !got.Equal(want) {
				t.Errorf("deflate %v: %q: %v", deflate, arr.Name, err)
			}
		}
	}
}

// TestRows compares Rows with a cut of the whole, direct and through a copy.
func TestRows(t *testing.T) {
	for _, name := range []string{"f4.npy", "fortran_f4.npy", "big_f4.npy", "empty.npy"} {
		b, _ := os.ReadFile(filepath.Join("testdata", name))
		a, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		whole := load(t, name)
		for lo := 0; lo <= a.Shape[0]; lo++ {
			for hi := lo; hi <= a.Shape[0]; hi++ {
				got, err := a.Rows(lo, hi)
				if err != nil || !got.Equal(CutRows(whole, lo, hi)) {
					t.Errorf("%s: rows %d to %d: %v", name, lo, hi, err)
				}
			}
		}
		if _, err := a.Rows(0, a.Shape[0]+1); err == nil {
			t.Errorf("%s: rows behind the end", name)
		}
	}
}

func file(version byte, header string, data int) []byte {
	b := []byte(magic)
	b = append(b, version, 0)
	if version == 1 {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(header)))
	} else {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(header)))
	}
	return append(append(b, header...), make([]byte, data)...)
}

func dict(descr, shape string) string {
	return fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': %s}", descr, shape)
}

func TestHostileArrays(t *testing.T) {
	bad := file(1, dict("|b1", "(3,)"), 3)
	bad[len(bad)-1] = 2
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":            {nil, "magic"},
		"text":             {[]byte("hello, this is no array"), "magic"},
		"cut magic":        {[]byte(magic), "magic"},
		"cut header":       {file(1, dict("<f4", "(3,)"), 0)[:30], "cut off"},
		"cut data":         {file(1, dict("<f4", "(3,)"), 11), "cut off, or its header lies"},
		"spare data":       {file(1, dict("<f4", "(3,)"), 13), "takes only 12"},
		"huge shape":       {file(1, dict("<f4", "(1000000, 1000000)"), 8), "header lies"},
		"overflow":         {file(1, dict("<f4", "(4294967296, 4294967296, 2)"), 8), "too large"},
		"wrap to 4":        {file(1, dict("<i1", "(4611686018427387905, 4)"), 4), "too large"},
		"enormous":         {file(1, dict("<f4", "(99999999999999999999,)"), 8), "too large"},
		"negative":         {file(1, dict("<f4", "(-1,)"), 8), "no tuple"},
		"no tuple":         {file(1, dict("<f4", "3"), 12), "no tuple"},
		"missing comma":    {file(1, dict("<f4", "(1 2)"), 8), "no tuple"},
		"rank":             {file(1, dict("<f4", "("+strings.Repeat("1,", 65)+")"), 4), "more than 64"},
		"header of 4 GB":   {[]byte(magic + "\x02\x00\xff\xff\xff\xff"), "at most"},
		"version":          {file(9, dict("<f4", "(1,)"), 4), "version 9.0"},
		"code in the dict": {file(1, "{'descr': __import__('os').system('true')}", 0), "arrays of records"},
		"unclosed":         {file(1, "{'descr': '<f4', ", 0), "malformed"},
		"missing key":      {file(1, "{'descr': '<f4', 'shape': (1,)}", 4), "fortran_order is missing"},
		"key twice":        {file(1, "{'descr': '<f4', 'descr': '<f4'}", 4), "malformed"},
		"unknown key":      {file(1, "{'evil': 1}", 4), "unknown key"},
		"objects":          {file(1, dict("|O", "(1,)"), 8), "Python objects"},
		"dates":            {file(1, dict("<M8[ns]", "(1,)"), 8), "no ONNX equivalent"},
		"long double":      {file(1, dict("<f16", "(1,)"), 16), "no ONNX equivalent"},
		"bool of 2":        {bad, "bool"},
	} {
		if _, err := decode(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if x, err := decode(file(3, dict("<f4", "(3L,)")+"\n", 12)); err != nil || x.Len() != 3 {
		t.Errorf("version 3: %v, %v", x, err)
	}
}

func archive(entries map[string][]byte, deflate bool) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, data := range entries {
		m := zip.Store
		if deflate {
			m = zip.Deflate
		}
		e, _ := w.CreateHeader(&zip.FileHeader{Name: name, Method: m})
		e.Write(data)
	}
	w.Close()
	return b.Bytes()
}

func TestHostileArchives(t *testing.T) {
	good := file(1, dict("<f4", "(3,)"), 12)
	stored := archive(map[string][]byte{"x.npy": good}, false)
	flipped := bytes.Clone(stored)
	flipped[30+5+len(good)-1] ^= 1 // the last byte of the data
	claim := bytes.Clone(archive(map[string][]byte{"x.npy": good}, true))
	dir := bytes.LastIndex(claim, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(claim[dir+24:], 0xfffffff0)
	bomb := archive(map[string][]byte{"x.npy": file(1, dict("<f4", "(16777216,)"), 1<<26)}, true)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"not a zip":   {[]byte("hello"), "archive"},
		"cut":         {stored[:len(stored)-30], "archive"},
		"cut inside":  {append(bytes.Clone(stored[:40]), stored[90:]...), ""},
		"other entry": {archive(map[string][]byte{"x.txt": good}, false), "no .npy"},
		"lying entry": {archive(map[string][]byte{"x.npy": good[:len(good)-4]}, false), `"x": 8 bytes`},
		"checksum":    {flipped, "checksum"},
		"claim":       {claim, "deflate cannot"},
		"bomb":        {bomb, "more than the 1048576 bytes allowed"},
	} {
		a, err := OpenArchive(bytes.NewReader(c.data), int64(len(c.data)), 1<<20)
		for i := 0; err == nil && i < len(a.Arrays); i++ {
			_, err = a.Arrays[i].Tensor()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzNpy(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.np?")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bound(t)
		if x, err := decode(b); err == nil {
			var w bytes.Buffer
			if err := Write(&w, x); err != nil {
				t.Fatal(err)
			}
			if y, err := decode(w.Bytes()); err != nil || !y.Equal(x) {
				t.Fatalf("written and read: %v", err)
			}
		}
		if a, err := OpenArchive(bytes.NewReader(b), int64(len(b)), 1<<20); err == nil {
			for _, x := range a.Arrays {
				x.Tensor()
			}
		}
	})
}
