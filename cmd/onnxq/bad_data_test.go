//go:build linux

package main

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"image"
	"image/jpeg"
	"image/png"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// badDataMemory is what a process may take that is given bad data, in bytes.
const badDataMemory = 200 << 20

const (
	// pointModel has an input of a free and a fixed dimension.
	pointModel = `<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3] x) => (float[n,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }`
	// pairModel has two inputs that share a symbolic dimension.
	pairModel = `<ir_version: 8, opset_import: ["" : 17]>
g (float[n,3] x, int64[n] ids) => (float[n,3] y) { f = Cast<to = 1>(ids)
 a = Constant<value = int64[1] {1}>()
 c = Unsqueeze(f, a)
 y = Add(x, c) }`
	// photoModel takes images.
	photoModel = `<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,8,8] img) => (float[1,3,8,8] y) { y = Relu(img) }`
)

type entry struct {
	name string
	data []byte
}

// archive is an .npz file.
func archive(t *testing.T, method uint16, entries ...entry) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		w, err := z.CreateHeader(&zip.FileHeader{Name: e.name, Method: method})
		if err == nil {
			_, err = w.Write(e.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// expanding is an archive whose array of the given header is n bytes of zeros.
func expanding(t *testing.T, header string, n int) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("x.npy")
	if err != nil {
		t.Fatal(err)
	}
	w.Write(npyFile(header, nil))
	for zeros := make([]byte, 1<<20); n > 0; n -= len(zeros) {
		w.Write(zeros[:min(n, len(zeros))])
	}
	z.Close()
	return b.Bytes()
}

func npyHeader(descr, shape string) string {
	return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }"
}

// jpegHeader begins a JPEG image of the given size.
func jpegHeader(t *testing.T, w, h uint16) []byte {
	b := bytes.Clone(photo(t, "jpeg"))
	at := bytes.Index(b, []byte{0xff, 0xc0})
	binary.BigEndian.PutUint16(b[at+5:], h)
	binary.BigEndian.PutUint16(b[at+7:], w)
	return b
}

func photo(t *testing.T, format string) []byte {
	m := image.NewRGBA(image.Rect(0, 0, 16, 16))
	for i := range m.Pix {
		m.Pix[i] = byte(i * i)
	}
	var b bytes.Buffer
	err := png.Encode(&b, m)
	if format == "jpeg" {
		b.Reset()
		err = jpeg.Encode(&b, m, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// filledPNG is a PNG file that claims w x h pixels and holds bytes of zeros.
func filledPNG(w, h uint32) []byte {
	return append(pngFile(w, h), bytes.Repeat([]byte{0}, 64)...)
}

// wireTensor is a TensorProto of a field raw_data longer than the file.
func wireTensor() []byte { return []byte{0x08, 1, 0x08, 3, 0x10, 1, 0x4a, 0xff, 0xff, 0xff, 0x7f, 0} }

func safetensorsFile(header string, data []byte) []byte {
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...), data...)
}

// sparse makes a file of n bytes of zeros behind head that takes no disk.
func sparse(t *testing.T, path string, head []byte, n int64) {
	if err := os.WriteFile(path, head, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

// TestFaultData is F12 to F18: it gives bad data of every kind that is known of to whole
// processes: each ends with exit code 4 and one line that names the file, and
// the input where there is one, within badDataMemory.
func TestFaultData(t *testing.T) {
	point := npyHeader("<f4", "(1, 3)")
	row := floats(1, 2, 3)
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	good := archive(t, zip.Store, entry{"x.npy", npyFile(point, row)})
	file := func(name string, data []byte) func(*testing.T) {
		return func(t *testing.T) {
			if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, data, 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := func(to, name string) func(*testing.T) {
		return func(t *testing.T) {
			file("data/a.npz", good)(t)
			if err := os.Symlink(to, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	recipe := []string{"--image", "resize=8,crop=8,layout=nchw"}
	const npz, npy = "data/b.npz", "data/b.npy"
	for _, c := range []struct {
		name  string
		model string
		make  func(*testing.T)
		data  string // "" for the folder data
		stdin []byte
		more  []string
		code  int // 0 for exitData
		want  []string
	}{
		{name: "truncated npz", make: file(npz, good[:len(good)-30]), want: []string{npz}},
		{name: "truncated npz data", make: file(npz, append(bytes.Clone(good[:60]), good[70:]...)), want: []string{npz}},
		{name: "npz without bytes", make: file(npz, nil), want: []string{npz}},
		{name: "npz without arrays", make: file(npz, archive(t, zip.Store)), want: []string{npz, `"x"`}},
		{name: "npz without the input", model: pairModel, make: file(npz, good), want: []string{npz, `"ids"`}},
		{name: "npz with a wrong checksum", make: func(t *testing.T) {
			b := archive(t, zip.Deflate, entry{"x.npy", npyFile(point, row)})
			i := bytes.Index(b, []byte("PK\x01\x02"))
			b[i+16] ^= 0xff
			file(npz, b)(t)
		}, want: []string{npz, `"x"`}},
		{name: "npz of text files", make: file(npz, archive(t, zip.Store, entry{"x.txt", []byte("1 2 3")})), want: []string{npz, "x.txt"}},
		{name: "objects", make: file(npz, archive(t, zip.Store, entry{"x.npy", npyFile(npyHeader("|O", "(1, 3)"), []byte("\x80\x04]\x94."))})), want: []string{npz, `"x"`, "Python objects"}},
		{name: "archive that expands to a lie", make: file(npz, expanding(t, npyHeader("<f4", "(1, 3)"), 256<<20)), want: []string{npz, `"x"`}},
		{name: "archive that expands past the limit", make: file(npz, expanding(t, npyHeader("<f4", "(93323264, 3)"), 93323264*12)), want: []string{npz, `"x"`}},
		{name: "archive that expands to the wrong shape", make: file(npz, expanding(t, npyHeader("<f4", "(17000000, 4)"), 17000000*16)), want: []string{npz, `"x"`, "[17000000,4]"}},
		{name: "archive that expands to the wrong type", make: file(npz, expanding(t, npyHeader("|u1", "(90000000, 3)"), 90000000*3)), want: []string{npz, `"x"`, "uint8"}},
		{name: "npy with a huge shape", make: file(npy, npyFile(npyHeader("<f4", "(99999999999, 3)"), row)), want: []string{npy, "lies"}},
		{name: "npy whose shape overflows", make: file(npy, npyFile(npyHeader("<f4", "(4611686018427387904, 4)"), row)), want: []string{npy}},
		{name: "npy whose dimension overflows", make: file(npy, npyFile(npyHeader("<f4", "(99999999999999999999999, 3)"), row)), want: []string{npy, "too large"}},
		{name: "npy with a negative dimension", make: file(npy, npyFile(npyHeader("<f4", "(-1, 3)"), row)), want: []string{npy}},
		{name: "npy that is cut off", make: file(npy, npyFile(point, row[:7])), want: []string{npy, "cut off"}},
		{name: "npy of records", make: file(npy, npyFile("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 3), }", row)), want: []string{npy, "records"}},
		{name: "npy of text", make: file(npy, npyFile(npyHeader("<U4", "(1, 3)"), make([]byte, 48))), want: []string{npy}},
		{name: "rank", make: file(npy, npyFile(npyHeader("<f4", "(3,)"), row)), want: []string{npy, `"x"`, "expected shape [?,3], got [3]"}},
		{name: "dimension", make: file(npy, npyFile(npyHeader("<f4", "(3, 1)"), row)), want: []string{npy, `"x"`, "expected shape [?,3], got [3,1]"}},
		{name: "type", make: file(npy, npyFile(npyHeader("<f8", "(1, 3)"), make([]byte, 24))), want: []string{npy, `"x"`, "expected element type float, got double"}},
		{name: "symbolic dimension of two sizes", model: pairModel, make: file(npz, archive(t, zip.Store,
			entry{"x.npy", npyFile(npyHeader("<f4", "(2, 3)"), append(row, row...))}, entry{"ids.npy", npyFile(npyHeader("<i8", "(5,)"), make([]byte, 40))})),
			want: []string{npz, `"ids"`, `"n" 5`, "2"}},
		{name: "no rows", make: file(npy, npyFile(npyHeader("<f4", "(0, 3)"), nil)), more: []string{"--batched"}, want: []string{npy, "no rows"}},
		{name: "NaN", make: file(npy, npyFile(point, floats(1, nan, 3))), want: []string{npy, `"x"`, "1 NaN"}},
		{name: "infinity", make: file(npy, npyFile(point, floats(inf, 2, -inf))), want: []string{npy, `"x"`, "2 infinite"}},
		{name: "cast out of range", make: file(npy, npyFile(npyHeader("<f8", "(1, 3)"), binary.LittleEndian.AppendUint64(make([]byte, 16), math.Float64bits(1e300)))), more: []string{"--cast"}, want: []string{npy, `"x"`, "1e+300"}},

		{name: "missing folder", make: func(*testing.T) {}, data: "none/of/these", want: []string{"none/of/these", "no such file"}},
		{name: "empty folder", make: func(t *testing.T) { os.Mkdir("data", 0o777) }, want: []string{"data", "empty"}},
		{name: "folder of other files", make: file("data/notes.txt", []byte("hello")), want: []string{"data", "notes.txt"}},
		{name: "file of another kind", make: file("data/notes.txt", []byte("hello")), data: "data/notes.txt", want: []string{"data/notes.txt", "not a kind"}},
		{name: "mixed kinds", make: func(t *testing.T) { file(npz, good)(t); file("data/a.jsonl", []byte("[[1,2,3]]"))(t) }, want: []string{"data", "mixes"}},
		{name: "link to itself", make: link("l.npz", "data/l.npz"), want: []string{"data/l.npz", "loop"}},
		{name: "link to the folder above", make: link("..", "data/up"), want: []string{"loop"}},
		{name: "dangling link", make: link("gone.npz", "data/l.npz"), want: []string{"data/l.npz", "no such file"}},
		{name: "device", make: link("/dev/zero", "data/zero.npz"), want: []string{"data/zero.npz", "not a regular file"}},
		{name: "pipe", make: func(t *testing.T) {
			os.Mkdir("data", 0o777)
			if err := syscall.Mkfifo("data/p.npz", 0o666); err != nil {
				t.Fatal(err)
			}
		}, data: "data/p.npz", want: []string{"data/p.npz", "not a regular file"}},
		{name: "name of an array that is a folder", make: func(t *testing.T) { os.MkdirAll("data/b.npz", 0o777) }, want: []string{"data"}},

		{name: "PNG that claims 60000x60000", model: photoModel, make: file("data/b.png", pngFile(60000, 60000)), more: recipe, want: []string{"data/b.png", "60000x60000"}},
		{name: "PNG that claims 12000x12000", model: photoModel, make: file("data/b.png", filledPNG(12000, 12000)), more: recipe, want: []string{"data/b.png"}},
		{name: "JPEG that claims 65000x65000", model: photoModel, make: file("data/b.jpg", jpegHeader(t, 65000, 65000)), more: recipe, want: []string{"data/b.jpg", "65000x65000"}},
		{name: "JPEG that claims 12000x12000", model: photoModel, make: file("data/b.jpg", jpegHeader(t, 12000, 12000)), more: recipe, want: []string{"data/b.jpg"}},
		{name: "truncated PNG", model: photoModel, make: file("data/b.png", photo(t, "png")[:100]), more: recipe, want: []string{"data/b.png"}},
		{name: "truncated JPEG", model: photoModel, make: file("data/b.jpg", photo(t, "jpeg")[:700]), more: recipe, want: []string{"data/b.jpg"}},
		{name: "image without bytes", model: photoModel, make: file("data/b.png", nil), more: recipe, want: []string{"data/b.png"}},
		{name: "web page as image", model: photoModel, make: file("data/b.jpg", []byte("<html></html>")), more: recipe, want: []string{"data/b.jpg", "not an image"}},
		{name: "zeros as image", model: photoModel, make: func(t *testing.T) { os.Mkdir("data", 0o777); sparse(t, "data/b.png", nil, 255<<20) }, more: recipe, want: []string{"data/b.png", "not an image"}},
		{name: "image without recipe", model: photoModel, make: file("data/b.png", photo(t, "png")), want: []string{"data/b.png", `"img"`, "--image"}},
		{name: "image of another size", model: photoModel, make: file("data/b.png", photo(t, "png")), more: []string{"--image", "crop=4"}, want: []string{"data/b.png", `"img"`}},

		{name: "broken line", make: file("data/b.jsonl", []byte("{\"x\": [[1,2,3]]}\n{\"x\": [[1,2,\n{\"x\": [[1,2,3]]}\n")), want: []string{"data/b.jsonl", "000001", "not JSON"}},
		{name: "missing key", model: pairModel, make: file("data/b.jsonl", []byte(`{"x": [[1,2,3]]}`)), want: []string{"data/b.jsonl", `"ids"`}},
		{name: "ragged lines", make: file("data/b.jsonl", []byte(`{"x": [[1,2,3],[1,2]]}`)), want: []string{"data/b.jsonl", `"x"`, "ragged"}},
		{name: "fraction for an integer", model: pairModel, make: file("data/b.jsonl", []byte(`{"x": [[1,2,3]], "ids": [1.5]}`)), want: []string{"data/b.jsonl", `"ids"`, "1.5"}},
		{name: "zeros as lines", make: func(t *testing.T) { os.Mkdir("data", 0o777); sparse(t, "data/b.jsonl", nil, 300<<20) }, want: []string{"data/b.jsonl", "not JSON"}},

		{name: "safetensors with a header past the end", make: file("data/b.safetensors", binary.LittleEndian.AppendUint64(nil, 1<<40)), want: []string{"data/b.safetensors", "header"}},
		{name: "safetensors with offsets past the end", make: file("data/b.safetensors", safetensorsFile(`{"x":{"dtype":"F32","shape":[1,3],"data_offsets":[1000,1012]}}`, row)), want: []string{"data/b.safetensors", `"x"`, "lies"}},
		{name: "safetensors whose shape overflows", make: file("data/b.safetensors", safetensorsFile(`{"x":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}`, make([]byte, 16))), want: []string{"data/b.safetensors", `"x"`, "lies"}},
		{name: "safetensors with a header of zeros", make: func(t *testing.T) {
			os.Mkdir("data", 0o777)
			sparse(t, "data/b.safetensors", binary.LittleEndian.AppendUint64(nil, 100<<20), 1<<30)
		}, want: []string{"data/b.safetensors", "header"}},
		{name: "proto that is cut off", make: file("data/input_0.pb", wireTensor()), want: []string{"data/input_0.pb", `"x"`}},
		{name: "proto without bytes", make: file("data/input_0.pb", nil), want: []string{"data/input_0.pb", `"x"`}},
		{name: "zeros as proto", make: func(t *testing.T) { os.Mkdir("data", 0o777); sparse(t, "data/input_0.pb", nil, 1<<29) }, want: []string{"data/input_0.pb", `"x"`}},

		{name: "truncated stream", make: func(*testing.T) {}, data: "-", stdin: append(bytes.Clone(good), good[:90]...), want: []string{"-"}},
		{name: "empty stream", make: func(*testing.T) {}, data: "-", stdin: []byte{}, want: []string{"empty"}},
		{name: "stream of text", make: func(*testing.T) {}, data: "-", stdin: []byte("hello"), want: []string{".npz"}},
		{name: "no random samples", make: func(*testing.T) {}, data: "random:0", want: []string{"random:0"}},
		{name: "fewer than no random samples", make: func(*testing.T) {}, data: "random:-1", want: []string{"random:-1"}},
		{name: "random samples without number", make: func(*testing.T) {}, data: "random:abc", want: []string{"random:abc"}},
		{name: "more random samples than there are numbers", make: func(*testing.T) {}, data: "random:99999999999999999999", want: []string{"random:99999999999999999999"}},
		{name: "state that the model lacks", make: file(npz, good), more: []string{"--state", "h=hn"}, code: exitUsage, want: []string{`"h"`}},

		{name: "big endian", make: file(npy, npyFile(npyHeader(">f4", "(1, 3)"), []byte{0x3f, 0x80, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0})), code: -1},
		{name: "column order", make: file(npy, npyFile("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", floats(1, 2, 3, 4, 5, 6))), code: -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			model := c.model
			if model == "" {
				model = pointModel
			}
			if err := saveText(model, "model.onnx"); err != nil {
				t.Fatal(err)
			}
			c.make(t)
			data := c.data
			if data == "" {
				data = "data"
			}
			for _, command := range []string{"calibrate", "quantize"} {
				var cmd *exec.Cmd
				code, _, text := process(t, func(started *exec.Cmd) {
					cmd, started.Stdin = started, bytes.NewReader(c.stdin)
				}, append([]string{command, "model.onnx", "-o", "out", "--data", data}, c.more...)...)
				want := c.code
				switch want {
				case 0:
					want = exitData
				case -1:
					want = 0
				}
				if code != want {
					t.Errorf("%s: exit %d, want %d; stderr %s", command, code, want, text)
					continue
				}
				if kb := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss; kb<<10 > badDataMemory {
					t.Errorf("%s: %d MB", command, kb>>10)
				}
				if want == 0 {
					continue
				}
				if strings.Count(text, "\n") != 1 {
					t.Errorf("%s: not one line:\n%s", command, text)
				}
				for _, w := range c.want {
					if !strings.Contains(text, w) {
						t.Errorf("%s: %s lacks %q", command, text, w)
					}
				}
				if _, err := os.Lstat("out"); err == nil {
					t.Errorf("%s: the output was written", command)
				}
			}
		})
	}
}
