package onnxfile

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/fuzztest"
)

const fuzzModel = `<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,-1,-2,-3,0.5,0.25,0.125,4,5,6}> { y = MatMul(x, w) }`

// FuzzRoundTrip writes what was read and reads that again: the second writing
// gives the same bytes.
func FuzzRoundTrip(f *testing.F) {
	m, err := graph.Parse(fuzzModel)
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := Write(context.Background(), &b, m); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bound(t)
		m, err := Decode(b)
		if err != nil {
			return
		}
		var one, two bytes.Buffer
		if err := Write(t.Context(), &one, m); err != nil {
			t.Fatal(err)
		}
		again, err := Decode(one.Bytes())
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if err := Write(t.Context(), &two, again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Error("the second writing differs")
		}
	})
}

// FuzzExternalData varies what a model says about its external data. Whatever
// it says, no byte from outside the model's folder becomes part of a tensor.
func FuzzExternalData(f *testing.F) {
	f.Add("data.bin", "0", "48", "ok")
	f.Add("../secret.bin", "0", "48", "")
	f.Add("./data.bin", "16", "48", "location")
	f.Add("/etc/passwd", "-1", "99999999999999999999", "length")
	f.Add("link", "18446744073709551615", "1", "offset")
	f.Fuzz(func(t *testing.T, location, offset, length, key string) {
		fuzztest.Bound(t)
		dir := t.TempDir()
		folder := filepath.Join(dir, "model")
		secret := bytes.Repeat([]byte("SECRET!!"), 64)
		if err := os.Mkdir(folder, 0o777); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"secret.bin": secret, "model/data.bin": make([]byte, 128)} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("../secret.bin", filepath.Join(folder, "link")); err != nil {
			t.Skip("SKIPPED: no symbolic links here")
		}
		path := filepath.Join(folder, "m.onnx")
		if err := os.WriteFile(path, externalModel(location, offset, length, key), 0o666); err != nil {
			t.Fatal(err)
		}
		m, err := Open(path)
		if err != nil {
			if strings.Contains(err.Error(), "\x1b") {
				t.Errorf("an escape in %q", err)
			}
			return
		}
		defer m.Close()
		for _, v := range m.Graph.Initializers() {
			if bytes.Contains(v.Const.Bytes(), []byte("SECRET")) {
				t.Errorf("location %q leads outside", location)
			}
		}
	})
}

// externalModel is a model with one tensor float[4,3] of external data.
func externalModel(location, offset, length, key string) []byte {
	field := func(n int, b []byte) []byte {
		out := append([]byte{byte(n<<3 | 2)}, uvarint(len(b))...)
		return append(out, b...)
	}
	entry := func(k, v string) []byte {
		return field(13, append(field(1, []byte(k)), field(2, []byte(v))...))
	}
	w := append([]byte{1 << 3, 4, 1 << 3, 3, 2 << 3, 1}, field(8, []byte("w"))...)
	w = append(w, entry("location", location)...)
	w = append(w, entry("offset", offset)...)
	w = append(w, entry("length", length)...)
	w = append(w, entry(key, location)...)
	w = append(w, 14<<3, 1)
	node := append(append(append(field(1, []byte("x")), field(1, []byte("w"))...), field(2, []byte("y"))...), field(4, []byte("MatMul"))...)
	typ := field(2, field(1, []byte{1 << 3, 1})) // TypeProto.tensor_type.elem_type float
	g := append(field(1, node), field(2, []byte("g"))...)
	g = append(g, field(5, w)...)
	g = append(g, field(11, append(field(1, []byte("x")), typ...))...)
	g = append(g, field(12, append(field(1, []byte("y")), typ...))...)
	return append(append([]byte{1 << 3, 8}, field(7, g)...), field(8, []byte{2 << 3, 17})...)
}

func uvarint(n int) []byte {
	var b []byte
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}
