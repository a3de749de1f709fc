//go:build unix

package calibration

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/onnxq/onnxq/tensor"
)

// TestBadData makes every kind of bad data that is known of; each has to give
// a DataError that names the path and says what is wrong.
func TestBadData(t *testing.T) {
	good := npzBytes(false, "x", seq(3, 1, 3))
	jpg := func() []byte {
		b, err := os.ReadFile(filepath.Join("images", "testdata", "420.jpg"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}()
	pngBomb := func() []byte {
		b := pngBytes(8, 8)
		return append(append(bytes.Clone(b[:16]), 0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60), b[24:]...)
	}()
	var de *DataError
	if _, err := Open(ctx, []string{"random:1"}, matrix, Options{Image: "scale"}); err == nil || errors.As(err, &de) {
		t.Errorf("a malformed recipe is an error about the option: %v", err)
	}
	if os.Geteuid() == 0 {
		t.Log("running as root, who may read everything: files without permission are not tried")
	}
	of := func(v ...float32) *tensor.Tensor { return tensor.Of(v, 1, len(v)) }
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	half := tensor.New(tensor.Float16, 1, 3)
	tensor.Write(half, 0, []float32{nan, inf, 1})

	type env struct {
		dir  string
		opts Options
	}
	put := func(name string, data []byte) func(*env) string {
		return func(e *env) string { return write(t, e.dir, name, data) }
	}
	batched := func(name string, data []byte) func(*env) string {
		return func(e *env) string { e.opts.Batched = true; return write(t, e.dir, name, data) }
	}
	cast := func(name string, data []byte) func(*env) string {
		return func(e *env) string { e.opts.Cast = true; return write(t, e.dir, name, data) }
	}
	stream := func(data []byte) func(*env) string {
		return func(e *env) string { e.opts.Stdin = bytes.NewReader(data); return "-" }
	}
	recipe := func(r, name string, data []byte) func(*env) string {
		return func(e *env) string { e.opts.Image = r; return write(t, e.dir, name, data) }
	}
	for _, c := range []struct {
		name   string
		inputs []Input
		make   func(e *env) string
		want   []string
	}{
		{"missing path", matrix, func(e *env) string { return filepath.Join(e.dir, "none") }, []string{"none", "no such file"}},
		{"empty folder", matrix, func(e *env) string { return e.dir }, []string{"folder is empty"}},
		{"folder of other files", matrix, func(e *env) string { write(t, e.dir, "a.txt", nil); return e.dir }, []string{"no data in the folder", "1 other files: a.txt"}},
		{"unknown kind", matrix, put("a.bin", good), []string{"a.bin", "not a kind"}},
		{"mixed kinds", matrix, func(e *env) string {
			write(t, e.dir, "a.npz", good)
			write(t, e.dir, "b.png", pngBytes(2, 2))
			return e.dir
		}, []string{"mixes 1 of kind .npz, 1 of kind image"}},
		{"pipe", matrix, func(e *env) string {
			p := filepath.Join(e.dir, "p.npz")
			syscall.Mkfifo(p, 0o644)
			return p
		}, []string{"p.npz", "not a regular file"}},
		{"pipe in a folder", matrix, func(e *env) string {
			syscall.Mkfifo(filepath.Join(e.dir, "p.npy"), 0o644)
			return e.dir
		}, []string{"p.npy", "not a regular file"}},
		{"device", matrix, func(e *env) string {
			os.Symlink("/dev/zero", filepath.Join(e.dir, "z.npy"))
			return e.dir
		}, []string{"z.npy", "not a regular file"}},
		{"link to itself", matrix, func(e *env) string {
			os.Symlink("l.npz", filepath.Join(e.dir, "l.npz"))
			return e.dir
		}, []string{"l.npz", "loop"}},
		{"folder that holds itself", matrix, func(e *env) string {
			write(t, e.dir, "a.npz", good)
			os.Symlink("..", filepath.Join(e.dir, "up"))
			os.Symlink(".", filepath.Join(e.dir, "again"))
			return e.dir
		}, []string{"again", "loop"}},
		{"dangling link", matrix, func(e *env) string {
			os.Symlink("gone.npz", filepath.Join(e.dir, "l.npz"))
			return e.dir
		}, []string{"l.npz", "no such file"}},
		{"deep folders", matrix, func(e *env) string {
			write(t, e.dir, strings.Repeat("d/", maxDepth+1)+"a.npz", good)
			return e.dir
		}, []string{"nested more than"}},
		{"no permission", matrix, func(e *env) string {
			p := write(t, e.dir, "a.npz", good)
			if os.Geteuid() == 0 {
				return filepath.Join(p, "below")
			}
			os.Chmod(p, 0)
			return p
		}, []string{"a.npz"}},
		{"cut archive", matrix, put("a.npz", good[:len(good)-10]), []string{"a.npz", "archive"}},
		{"empty file", matrix, put("a.npz", nil), []string{"a.npz", "archive"}},
		{"web page", matrix, put("a.npz", []byte("<html>not found</html>")), []string{"archive"}},
		{"cut array", matrix, put("a.npy", npyBytes(seq(3, 1, 3))[:130]), []string{"a.npy", "cut off"}},
		{"huge header", matrix, put("a.npy", bytes.Replace(npyBytes(seq(3, 1, 3)), []byte("(1, 3), }      "), []byte("(99999999, 3),}"), 1)), []string{"header lies"}},
		{"pickle", matrix, put("a.npy", bytes.Replace(npyBytes(seq(3, 1, 3)), []byte("'<f4'"), []byte("'|O8'"), 1)), []string{"Python objects"}},
		{"zip bomb", matrix, func(e *env) string { e.opts.MaxBytes = 1 << 20; return write(t, e.dir, "a.npz", zipBomb()) }, []string{"more than the 1048576 bytes"}},
		{"too large", matrix, func(e *env) string {
			e.opts.MaxBytes = 1 << 10
			return write(t, e.dir, "a.npy", npyBytes(seq(3000, 1000, 3)))
		}, []string{"more than the 1024 bytes"}},
		{"NaN", matrix, put("a.npz", npzBytes(true, "x", of(nan, 1, nan))), []string{"a.npz", `input "x"`, "2 NaN and 0 infinite of 3"}},
		{"infinity", matrix, put("a.npz", npzBytes(true, "x", of(-inf, 1, 2))), []string{"0 NaN and 1 infinite"}},
		{"NaN in float16", []Input{{Name: "x", DType: tensor.Float16}}, put("a.npy", npyBytes(half)), []string{"1 NaN and 1 infinite"}},
		{"infinity in float64", []Input{{Name: "x", DType: tensor.Float64}}, put("a.npy", npyBytes(tensor.Of([]float64{1e300, math.Inf(-1)}))), []string{"0 NaN and 1 infinite of 2"}},
		{"rank", matrix, put("a.npz", npzBytes(false, "x", seq(3))), []string{`input "x"`, "expected shape [?,3], got [3]"}},
		{"dimension", matrix, put("a.npz", npzBytes(false, "x", seq(4, 1, 4))), []string{"expected shape [?,3], got [1,4]"}},
		{"type", matrix, put("a.npz", npzBytes(false, "x", tensor.Of([]float64{1, 2, 3}, 1, 3))), []string{`input "x"`, "expected element type float, got double"}},
		{"missing input", twoIn, put("a.npz", good), []string{`no value for input "ids"`, `["x"]`}},
		{"misspelt input", twoIn, put("a.npz", npzBytes(false, "x", seq(3, 1, 3), "idz", seq(2))), []string{`no value for input "ids"`, `["x" "idz"]`}},
		{"no arrays", matrix, put("a.npz", npzBytes(false)), []string{"sample is empty"}},
		{"input twice", matrix, put("a.npz", npzBytes(false, "x", seq(3, 1, 3), "input_0", seq(3, 1, 3))), []string{"both values for it"}},
		{"array without a name for two inputs", twoIn, put("a.npy", npyBytes(seq(3, 1, 3))), []string{"no values for inputs"}},
		{"rows that differ", twoIn, batched("a.npz", npzBytes(false, "x", seq(9, 3, 3), "ids", tensor.New(tensor.Int64, 2))), []string{`input "ids"`, "axis 0 gives 1 samples", `"x" gives 3`}},
		{"rows that do not divide", twoIn, batched("a.npz", npzBytes(false, "x", seq(9, 3, 3), "ids", tensor.New(tensor.Int64, 3))), []string{"3 rows do not divide"}},
		{"no rows", matrix, batched("a.npy", npyBytes(seq(0, 0, 3))), []string{"no rows"}},
		{"nothing to cut", []Input{{Name: "x", DType: tensor.Float32, Shape: []int{}}}, batched("a.npy", npyBytes(tensor.Scalar(float32(1)))), []string{"no array has an axis 0"}},
		{"rows of another rank", matrix, batched("a.npy", npyBytes(seq(3))), []string{"expected rows of shape [?,3]"}},
		{"cast of a fraction", twoIn, cast("a.npz", npzBytes(false, "x", seq(3, 1, 3), "ids", tensor.Of([]float32{1.5, 2}))), []string{"element 0 is 1.5, which int64 cannot hold"}},
		{"cast out of range", matrix, cast("a.npz", npzBytes(false, "x", tensor.Of([]float64{1, 1e300, 1}, 1, 3))), []string{"element 1 is 1e+300, which float cannot hold"}},
		{"cast that rounds", matrix, cast("a.npz", npzBytes(false, "x", tensor.Of([]int32{1, 2, 1<<24 + 1}, 1, 3))), []string{"element 2 is 1.6777217e+07, which float"}},
		{"no JSON", matrix, put("a.jsonl", []byte("{'x': 1}\n")), []string{"a_000000", "not JSON"}},
		{"cut JSON", matrix, put("a.jsonl", []byte(`{"x": [[1, 2`)), []string{"not JSON"}},
		{"two values in a line", matrix, put("a.jsonl", []byte(`{"x": [[1,2,3]]} {}`)), []string{"more than one value"}},
		{"ragged JSON", matrix, put("a.jsonl", []byte(`{"x": [[1,2,3],[1,2]]}`)), []string{"ragged: 3 and 2"}},
		{"ragged depth", matrix, put("a.jsonl", []byte(`{"x": [[1,2,3],4]}`)), []string{"different depths"}},
		{"deep JSON", matrix, put("a.jsonl", []byte(`{"x": `+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`}`)), []string{"nested more than"}},
		{"null", matrix, put("a.jsonl", []byte(`{"x": [[1,null,3]]}`)), []string{"no value of type float"}},
		{"text for a number", matrix, put("a.jsonl", []byte(`{"x": [["a",1,3]]}`)), []string{"a is no value of type float"}},
		{"fraction for an integer", twoIn, put("a.jsonl", []byte(`{"x": [[1,2,3]], "ids": [1, 2.5]}`)), []string{`input "ids"`, "2.5 is no value of type int64"}},
		{"number out of range", matrix, put("a.jsonl", []byte(`{"x": [[1,2,1e39]]}`)), []string{"1e39 is no value of type float"}},
		{"key twice", matrix, put("a.jsonl", []byte(`{"x": [[1,2,3]], "x": [[1,2,3]]}`)), []string{`"x" is there twice`}},
		{"empty lines", matrix, put("a.jsonl", []byte("\n \n")), []string{"file is empty"}},
		{"long line", matrix, func(e *env) string {
			e.opts.MaxBytes = 1 << 10
			return write(t, e.dir, "a.jsonl", bytes.Repeat([]byte(" "), 1<<11))
		}, []string{"more than 1024 bytes"}},
		{"safetensors header", matrix, put("a.safetensors", bytes.Repeat([]byte{0xff}, 64)), []string{"a header of"}},
		{"short safetensors", matrix, put("a.safetensors", []byte("abc")), []string{"fewer than 8 bytes"}},
		{"safetensors offsets", matrix, put("a.safetensors", safetensors(`{"x":{"dtype":"F32","shape":[1,3],"data_offsets":[4,16]}}`, make([]byte, 12))), []string{`tensor "x"`, "header lies"}},
		{"safetensors wrap", matrix, put("a.safetensors", safetensors(`{"x":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}`, make([]byte, 16))), []string{"header lies"}},
		{"safetensors type", matrix, put("a.safetensors", safetensors(`{"x":{"dtype":"Q9","shape":[3],"data_offsets":[0,12]}}`, make([]byte, 12))), []string{`"Q9"`}},
		{"safetensors bool", []Input{{Name: "x", DType: tensor.Bool}}, put("a.safetensors", safetensors(`{"x":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}}`, []byte{0, 1, 2})), []string{"element 2 of type bool is 2"}},
		{"cut protobuf", matrix, func(e *env) string { write(t, e.dir, "input_0.pb", npyBytes(seq(3, 1, 3))[:129]); return e.dir }, []string{"input_0.pb", "cut off"}},
		{"too many protobufs", matrix, func(e *env) string {
			write(t, e.dir, "input_0.pb", npyBytes(seq(3, 1, 3)))
			write(t, e.dir, "input_1.pb", npyBytes(seq(3, 1, 3)))
			return e.dir
		}, []string{"input_1.pb", "only 1 inputs"}},
		{"missing protobuf", twoIn, func(e *env) string { write(t, e.dir, "input_0.pb", npyBytes(seq(3, 1, 3))); return e.dir }, []string{`no value for input "ids"`}},
		{"protobuf shape", matrix, func(e *env) string { write(t, e.dir, "input_0.pb", npyBytes(seq(3))); return e.dir }, []string{"input_0.pb", `input "x"`, "got [3]"}},
		{"image without recipe", picture, put("a.png", pngBytes(8, 8)), []string{"a.png", `input "img"`, "--image resize="}},
		{"image of another size", picture, recipe("crop=4", "a.png", pngBytes(8, 8)), []string{"a.png", "4x4 (width x height)", "wants 8x8"}},
		{"image smaller than the crop", picture, recipe("crop=8", "a.png", pngBytes(7, 9)), []string{"a.png", "crop of 8x8 from an image of 7x9"}},
		{"image for two inputs", twoIn, recipe("crop=8", "a.png", pngBytes(8, 8)), []string{"one input, this one has 2"}},
		{"image bomb", picture, recipe("scale=1", "a.png", pngBomb), []string{"a.png"}},
		{"cut image", picture, recipe("scale=1", "a.jpg", jpg[:len(jpg)/2]), []string{"a.jpg", "jpeg image"}},
		{"text as image", picture, recipe("scale=1", "a.jpg", []byte("hello")), []string{"not an image"}},
		{"garbage stream", matrix, stream([]byte("hello, this is not an archive")), []string{"-", "no sequence of .npz"}},
		{"cut stream", matrix, stream(append(bytes.Clone(good), good[:100]...)), []string{"100 bytes from byte"}},
		{"empty stream", matrix, stream(nil), []string{"stream is empty"}},
		{"bad archive in a stream", matrix, stream(append(bytes.Clone(good), npzBytes(false, "x", of(nan, 1, 2))...)), []string{"000001", "1 NaN"}},
		{"random without number", matrix, func(*env) string { return "random:many" }, []string{"want random:N"}},
		{"no random samples", matrix, func(*env) string { return "random:0" }, []string{"want random:N"}},
		{"random strings", []Input{{Name: "s", DType: tensor.String, Shape: []int{1}}}, func(*env) string { return "random:1" }, []string{`input "s"`, "cannot be made up"}},
		{"random of no rank", []Input{{Name: "s", DType: tensor.Float32}}, func(*env) string { return "random:1" }, []string{"unknown rank"}},
		{"random of terabytes", []Input{{Name: "s", DType: tensor.Float32, Shape: []int{1 << 40}}}, func(*env) string { return "random:1" }, []string{"more than the"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &env{dir: t.TempDir()}
			spec := c.make(e)
			e.opts.ReadTensor = readNpy
			s, err := Open(ctx, []string{spec}, c.inputs, e.opts)
			if err == nil {
				err = s.Check(ctx)
				s.Close()
			}
			var de *DataError
			if !errors.As(err, &de) {
				t.Fatalf("error %v of type %T", err, err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v\nlacks %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
		})
	}
}

// TestTerminalNames makes sure that names cannot play tricks on a terminal.
func TestTerminalNames(t *testing.T) {
	p := write(t, t.TempDir(), "a\x1b[2J.npy", npyBytes(seq(4, 1, 4)))
	s, err := Open(ctx, []string{p}, matrix, Options{})
	if err == nil {
		err = s.Check(ctx)
	}
	if err == nil || strings.Contains(err.Error(), "\x1b") || !strings.Contains(err.Error(), `\x1b[2J`) {
		t.Errorf("%q", err)
	}
}
