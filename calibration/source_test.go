package calibration

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/tensor"
)

func seq(n int, shape ...int) *tensor.Tensor {
	s := make([]float32, n)
	for i := range s {
		s[i] = float32(i)
	}
	return tensor.Of(s, shape...)
}

func npyBytes(t *tensor.Tensor) []byte {
	var b bytes.Buffer
	if err := npy.Write(&b, t); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// npzBytes takes name, tensor, name, tensor ...
func npzBytes(deflate bool, kv ...any) []byte {
	var b bytes.Buffer
	w := npy.NewWriter(&b, deflate)
	for i := 0; i < len(kv); i += 2 {
		if err := w.Add(kv[i].(string), kv[i+1].(*tensor.Tensor)); err != nil {
			panic(err)
		}
	}
	w.Close()
	return b.Bytes()
}

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// readNpy stands in for the reader of TensorProto.
func readNpy(r io.ReaderAt, size int64) (string, *tensor.Tensor, error) {
	a, err := npy.Open(r, size)
	if err != nil {
		return "", nil, err
	}
	t, err := a.Tensor()
	return "ignored", t, err
}

var (
	ctx     = context.Background()
	matrix  = []Input{{Name: "x", DType: tensor.Float32, Shape: []int{-1, 3}}}
	twoIn   = []Input{{Name: "x", DType: tensor.Float32, Shape: []int{-1, 3}}, {Name: "ids", DType: tensor.Int64, Shape: []int{2}}}
	picture = []Input{{Name: "img", DType: tensor.Float32, Shape: []int{1, 3, 8, 8}}}
)

// all opens a source and returns "name: values" of each sample.
func all(t *testing.T, spec string, inputs []Input, opts Options) []string {
	t.Helper()
	opts.ReadTensor = readNpy
	s, err := Open(ctx, []string{spec}, inputs, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out []string
	for i := range s.Len() {
		feed, err := s.Load(ctx, i)
		if err != nil {
			t.Fatal(err)
		}
		line := s.Sample(i).Name + ":"
		for _, in := range inputs {
			v := feed[in.Name]
			if v == nil {
				continue
			}
			f, err := tensor.Float64s(v)
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprintf(" %s%v%v", in.Name, v.Shape(), f)
		}
		out = append(out, line)
	}
	return out
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func TestKinds(t *testing.T) {
	dir := t.TempDir()
	ids := tensor.Of([]int64{7, 8})
	x := seq(3, 1, 3)
	const xs, is = "x[1 3][0 1 2]", "ids[2][7 8]"

	write(t, dir, "npz/b.npz", npzBytes(false, "ids", ids, "x", x))
	write(t, dir, "npz/a.npz", npzBytes(true, "x", x, "ids", ids))
	write(t, dir, "npz/A/z.NPZ", npzBytes(true, "x", x, "ids", ids))
	write(t, dir, "npz/readme.txt", nil)
	write(t, dir, "npz/.hidden", nil)
	same(t, "npz", all(t, filepath.Join(dir, "npz"), twoIn, Options{}), "z: "+xs+" "+is, "a: "+xs+" "+is, "b: "+xs+" "+is)
	same(t, "one npz", all(t, filepath.Join(dir, "npz", "b.npz"), twoIn, Options{}), "b: "+xs+" "+is)

	write(t, dir, "pos.npz", npzBytes(false, "arr_1", ids, "input_0", x))
	same(t, "by place", all(t, filepath.Join(dir, "pos.npz"), twoIn, Options{}), "pos: "+xs+" "+is)
	write(t, dir, "any.npz", npzBytes(false, "whatever", x))
	same(t, "single", all(t, filepath.Join(dir, "any.npz"), matrix, Options{}), "any: "+xs)
	write(t, dir, "v.npy", npyBytes(x))
	same(t, "npy", all(t, filepath.Join(dir, "v.npy"), matrix, Options{}), "v: "+xs)

	write(t, dir, "sets/test_data_set_1/input_1.pb", npyBytes(ids))
	write(t, dir, "sets/test_data_set_1/input_0.pb", npyBytes(x))
	write(t, dir, "sets/test_data_set_1/output_0.pb", []byte("junk"))
	write(t, dir, "sets/test_data_set_0/input_1.pb", npyBytes(ids))
	write(t, dir, "sets/test_data_set_0/input_0.pb", npyBytes(x))
	write(t, dir, "sets/model.onnx", []byte("junk"))
	same(t, "sets", all(t, filepath.Join(dir, "sets"), twoIn, Options{}),
		"test_data_set_0: "+xs+" "+is, "test_data_set_1: "+xs+" "+is)
	same(t, "one set", all(t, filepath.Join(dir, "sets", "test_data_set_1")+"/", twoIn, Options{}), "test_data_set_1: "+xs+" "+is)

	write(t, dir, "l.jsonl", []byte(`{"x": [[0, 1e0, 2.0]], "ids": [7, 8]}`+"\n\n"+`{"ids": [7, 8], "x": [[0,1,2],[3,4,5]]}`))
	same(t, "jsonl", all(t, filepath.Join(dir, "l.jsonl"), twoIn, Options{}),
		"l_000000: "+xs+" "+is, "l_000001: x[2 3][0 1 2 3 4 5] "+is)
	write(t, dir, "bare.jsonl", []byte("[[0,1,2]]\n"))
	same(t, "bare jsonl", all(t, filepath.Join(dir, "bare.jsonl"), matrix, Options{}), "bare_000000: "+xs)

	write(t, dir, "s.safetensors", safetensors(`{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[1,3],"data_offsets":[16,28]},"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}`,
		append(bytes.Clone(ids.Bytes()), x.Bytes()...)))
	same(t, "safetensors", all(t, filepath.Join(dir, "s.safetensors"), twoIn, Options{}), "s: "+xs+" "+is)

	stream := append(npzBytes(false, "x", x, "ids", ids), npzBytes(true, "ids", ids, "x", seq(6, 2, 3))...)
	same(t, "stream", all(t, "-", twoIn, Options{Stdin: bytes.NewReader(stream)}),
		"000000: "+xs+" "+is, "000001: x[2 3][0 1 2 3 4 5] "+is)
}

func safetensors(header string, data []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

func TestBatched(t *testing.T) {
	dir := t.TempDir()
	shape := func(d ...int) []Input { return []Input{{Name: "x", DType: tensor.Float32, Shape: d}} }
	want := []string{"b_000000: x[1 3][0 1 2]", "b_000001: x[1 3][3 4 5]", "b_000002: x[1 3][6 7 8]", "b_000003: x[1 3][9 10 11]"}
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"b.npy", npyBytes(seq(12, 4, 3))},
		{"b.npz", npzBytes(false, "x", seq(12, 4, 3))},
		{"b.npz", npzBytes(true, "x", seq(12, 4, 3))},
		{"b.safetensors", safetensors(`{"x":{"dtype":"F32","shape":[4,3],"data_offsets":[0,48]}}`, seq(12).Bytes())},
	} {
		p := write(t, t.TempDir(), c.name, c.data)
		same(t, c.name, all(t, p, shape(-1, 3), Options{Batched: true}), want...)
		same(t, c.name+" twos", all(t, p, shape(2, 3), Options{Batched: true}), "b_000000: x[2 3][0 1 2 3 4 5]", "b_000001: x[2 3][6 7 8 9 10 11]")
		same(t, c.name+" dropped", all(t, p, shape(3), Options{Batched: true})[3:], "b_000003: x[3][9 10 11]")
	}
	rate := []Input{{Name: "x", DType: tensor.Float32, Shape: []int{-1, 3}}, {Name: "sr", DType: tensor.Int64, Shape: []int{}}}
	p := write(t, dir, "r.npz", npzBytes(false, "x", seq(6, 2, 3), "sr", tensor.Scalar(int64(9))))
	same(t, "scalars stay", all(t, p, rate, Options{Batched: true}), "r_000000: x[1 3][0 1 2] sr[][9]", "r_000001: x[1 3][3 4 5] sr[][9]")
	same(t, "stream", all(t, "-", matrix, Options{Batched: true, Stdin: bytes.NewReader(npzBytes(true, "x", seq(6, 2, 3)))}),
		"000000_000000: x[1 3][0 1 2]", "000000_000001: x[1 3][3 4 5]")
}

func pngBytes(w, h int) []byte {
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range m.Pix {
		m.Pix[i] = byte(i)
	}
	var b bytes.Buffer
	png.Encode(&b, m)
	return b.Bytes()
}

func TestImages(t *testing.T) {
	dir := t.TempDir()
	var jpg bytes.Buffer
	m := image.NewRGBA(image.Rect(0, 0, 16, 12))
	for i := range 16 * 12 {
		m.Set(i%16, i/16, color.RGBA{200, 100, 50, 255})
	}
	jpeg.Encode(&jpg, m, nil)
	write(t, dir, "b.jpg", jpg.Bytes())
	write(t, dir, "a.PNG", pngBytes(20, 10))
	s, err := Open(ctx, []string{dir}, picture, Options{Image: "scale=255,mean=0.5,std=0.5"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Len() != 2 || s.Sample(0).Name != "a" || !strings.Contains(strings.Join(s.Notes(), "\n"), "cover 8x8") {
		t.Errorf("%d samples, notes %q", s.Len(), s.Notes())
	}
	feed, err := s.Load(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	v := tensor.As[float32](feed["img"])
	for c, want := range []float64{200, 100, 50} {
		if got := float64(v[c*64+9]); math.Abs(got-(want/127.5-1)) > 3/127.5 {
			t.Errorf("channel %d is %v", c, got)
		}
	}
	half := []Input{{Name: "img", DType: tensor.Float16, Shape: []int{1, 8, 8, 3}}}
	if s, err = Open(ctx, []string{dir}, half, Options{Image: "resize=8x8"}); err != nil {
		t.Fatal(err)
	}
	if feed, err = s.Load(ctx, 0); err != nil || feed["img"].DType() != tensor.Float16 {
		t.Errorf("float16: %v, %v", feed["img"], err)
	}
	u8 := []Input{{Name: "img", DType: tensor.Uint8, Shape: []int{1, 8, 8, 3}}}
	if s, err = Open(ctx, []string{dir}, u8, Options{}); err != nil {
		t.Fatal(err)
	}
	if feed, err = s.Load(ctx, 0); err != nil || feed["img"].DType() != tensor.Uint8 || len(s.Notes()) != 1 {
		t.Errorf("uint8 without recipe: %v, %v, %q", feed["img"], err, s.Notes())
	}
}

func TestRandom(t *testing.T) {
	inputs := []Input{
		{Name: "f", DType: tensor.Float32, Shape: []int{-1, 10000}}, {Name: "h", DType: tensor.Float16, Shape: []int{4}},
		{Name: "b", DType: tensor.Uint8, Shape: []int{5000}}, {Name: "i", DType: tensor.Int64, Shape: []int{1000}},
		{Name: "m", DType: tensor.Bool, Shape: []int{1000}}, {Name: "state", DType: tensor.Float32, Optional: true},
	}
	open := func(seed uint64) *Source {
		s, err := Open(ctx, []string{"random:3"}, inputs, Options{Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b, other := open(1), open(1), open(2)
	if a.Len() != 3 || a.Sample(2).Name != "000002" {
		t.Fatalf("%d samples, last %q", a.Len(), a.Sample(2).Name)
	}
	for i := range 3 {
		x, err := a.Load(ctx, i)
		if err != nil {
			t.Fatal(err)
		}
		y, _ := b.Load(ctx, i)
		z, _ := other.Load(ctx, i)
		for _, in := range inputs[:5] {
			if !x[in.Name].Equal(y[in.Name]) || x[in.Name].Equal(z[in.Name]) {
				t.Errorf("sample %d input %s does not follow the seed", i, in.Name)
			}
		}
		if x["state"] != nil {
			t.Error("an optional input was made up")
		}
		var sum, squares float64
		for _, v := range tensor.As[float32](x["f"]) {
			sum += float64(v)
			squares += float64(v) * float64(v)
		}
		if sum /= 1e4; math.Abs(sum) > 0.05 || math.Abs(squares/1e4-1) > 0.06 {
			t.Errorf("mean %v, mean square %v", sum, squares/1e4)
		}
		for _, v := range tensor.As[int64](x["i"]) {
			if v != 0 && v != 1 {
				t.Fatalf("integer %d", v)
			}
		}
	}
}

func TestCast(t *testing.T) {
	dir := t.TempDir()
	p := write(t, dir, "d.npz", npzBytes(false, "x", tensor.Of([]float64{0, 1, 2}, 1, 3), "ids", tensor.Of([]float32{7, 8})))
	same(t, "cast", all(t, p, twoIn, Options{Cast: true}), "d: x[1 3][0 1 2] ids[2][7 8]")
	s, err := Open(ctx, []string{p}, twoIn, Options{Cast: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(ctx); err != nil {
		t.Fatal(err)
	}
	want := []string{`input "ids": float converted to int64`, `input "x": double converted to float`}
	same(t, "notes", s.Notes(), want...)
}

func TestParts(t *testing.T) {
	s, err := Open(ctx, []string{"random:23"}, matrix, Options{})
	if err != nil {
		t.Fatal(err)
	}
	indices := func(s *Source) string {
		var b strings.Builder
		for i := range s.Len() {
			fmt.Fprintf(&b, "%d ", s.Sample(i).Index)
		}
		return strings.TrimSpace(b.String())
	}
	rest, held, err := s.Split(-1)
	if err != nil || rest.Len() != 21 || indices(held) != "21 22" {
		t.Errorf("split: %s | %s, %v", indices(rest), indices(held), err)
	}
	if _, held, _ := rest.First(9).Split(-1); held.Len() != 0 {
		t.Errorf("9 samples hold out %d", held.Len())
	}
	if r, h, err := s.Split(0); err != nil || r.Len() != 23 || h.Len() != 0 {
		t.Errorf("no holdout: %v", err)
	}
	if _, _, err := s.Split(23); err == nil {
		t.Error("all samples held out")
	}
	if got := indices(rest.Shard(1, 4)); got != "1 5 9 13 17" {
		t.Errorf("shard: %s", got)
	}
	if got := indices(rest.Limit(4)); got != "0 5 10 15" {
		t.Errorf("limit: %s", got)
	}
	if got := indices(rest.First(3).Without([]int{1})); got != "0 2" {
		t.Errorf("without: %s", got)
	}
	if s.Hash() != rest.Hash() {
		t.Error("a part has another hash")
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"a/0.npy", "b/0.npy", "c/1.npy"} {
		write(t, dir, n, npyBytes(seq(3, 1, 3)))
	}
	hidden := write(t, t.TempDir(), "..npy", npyBytes(seq(3, 1, 3)))
	s, err := Open(ctx, []string{dir, filepath.Join(dir, "c", "1.npy"), hidden}, matrix, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range s.Len() {
		got = append(got, s.Sample(i).Name)
	}
	same(t, "names", got, "a_0", "b_0", "c_1", "1", "sample")
}

func TestSkip(t *testing.T) {
	dir := t.TempDir()
	nan := float32(math.NaN())
	for i, v := range []float32{1, nan, 2, nan, 3} {
		write(t, dir, fmt.Sprintf("%d.npy", i), npyBytes(tensor.Of([]float32{v, 0, 0}, 1, 3)))
	}
	open := func(n int) *Source {
		s, err := Open(ctx, []string{dir}, matrix, Options{SkipBad: n})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(2)
	if err := s.Check(ctx); err != nil || len(s.Skipped()) != 2 || s.Skipped()[1].Sample != "3" {
		t.Errorf("two may be skipped: %v, %v", err, s.Skipped())
	}
	for _, n := range []int{0, 1} {
		err := open(n).Check(ctx)
		var de *DataError
		if !errors.As(err, &de) || !strings.Contains(err.Error(), "2 of 5 samples are bad") || !strings.Contains(err.Error(), "3.npy") {
			t.Errorf("%d may be skipped: %v", n, err)
		}
	}
}

// TestParallel reads rows from several goroutines, through one cache that is too
// small for all files.
func TestParallel(t *testing.T) {
	dir := t.TempDir()
	for i := range 4 {
		write(t, dir, fmt.Sprintf("%d.npz", i), npzBytes(true, "x", seq(300, 100, 3)))
	}
	s, err := Open(ctx, []string{dir}, matrix, Options{Batched: true, MaxBytes: 2000})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < s.Len(); i += 3 {
				feed, err := s.Load(ctx, i)
				if err != nil {
					t.Error(err)
					return
				}
				if got, want := tensor.As[float32](feed["x"])[0], float32(3*(i%100)); got != want {
					t.Errorf("row %d starts with %v, want %v", i, got, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestCancel(t *testing.T) {
	c, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Open(c, []string{t.TempDir()}, matrix, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open: %v", err)
	}
	s, err := Open(ctx, []string{"random:2"}, matrix, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(c); !errors.Is(err, context.Canceled) {
		t.Errorf("Check: %v", err)
	}
}

func zipBomb() []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	e, _ := w.Create("x.npy")
	e.Write(npyBytes(tensor.New(tensor.Float32, 1<<20, 3)))
	w.Close()
	return b.Bytes()
}
