package models

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/tensor"
)

const maxTotal = 3 << 20

// feed reads the only array of an .npz file, which must have the given key.
func feed(t *testing.T, fsys fs.FS, name, key string) *tensor.Tensor {
	t.Helper()
	b, err := fs.ReadFile(fsys, name)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := npy.OpenArchive(bytes.NewReader(b), int64(len(b)), 0)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if len(archive.Arrays) != 1 || archive.Arrays[0].Name != key {
		t.Fatalf("%s: want the one array %q", name, key)
	}
	x, err := archive.Arrays[0].Tensor()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return x
}

func names(t *testing.T, fsys fs.FS) []string {
	t.Helper()
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range entries {
		s = append(s, e.Name())
	}
	return s
}

func TestFilesAreThoseOfTheCard(t *testing.T) {
	for _, s := range All() {
		root, err := fs.Sub(files, s.Name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := readCard(root)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]fileSum{}
		err = fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || path == "sample.json" {
				return err
			}
			b, err := fs.ReadFile(root, path)
			sum := sha256.Sum256(b)
			got[path] = fileSum{len(b), hex.EncodeToString(sum[:])}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got, c.Files) {
			t.Errorf("%s: embedded files differ from those of sample.json: train again or restore them", s.Name)
		}
	}
}

func TestTotalSize(t *testing.T) {
	var total int64
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && d.Name() == "__pycache__" {
				return fs.SkipDir
			}
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if total > maxTotal {
		t.Errorf("models/ has %d bytes, more than %d", total, maxTotal)
	}
}

func TestSamples(t *testing.T) {
	cases := []struct {
		sample         Sample
		input          string
		dtype          tensor.DType
		perPosition    int // input elements that share a label
		minW, maxW     int // size of the model file
		metric         Metric
		atLeast, below float64 // of the float metric
	}{
		{Digits(), "image", tensor.Float32, 64, 60e3, 200e3, Accuracy, 0.97, 1.0001},
		{Text(), "tokens", tensor.Int64, 1, 100e3, 600e3, Perplexity, 1, 5},
	}
	for _, c := range cases {
		s := c.sample
		t.Run(s.Name, func(t *testing.T) {
			if s.Title == "" || s.Source == "" || s.Metric != c.metric {
				t.Errorf("title %q, source %q, metric %q", s.Title, s.Source, s.Metric)
			}
			if len(s.Model) < c.minW || len(s.Model) > c.maxW {
				t.Errorf("model of %d bytes", len(s.Model))
			}
			if s.Float < c.atLeast || s.Float >= c.below {
				t.Errorf("float %s is %v", s.Metric, s.Float)
			}
			if n := len(names(t, s.Calib)); n < 10 {
				t.Errorf("%d calibration files", n)
			}
			eval := names(t, s.Eval)
			if len(eval) != len(s.Labels) {
				t.Fatalf("%d files, %d arrays of labels", len(eval), len(s.Labels))
			}
			for i, name := range eval {
				x := feed(t, s.Eval, name, c.input)
				if x.DType() != c.dtype || x.Len() != c.perPosition*len(s.Labels[i]) {
					t.Errorf("%s: %v %v for %d labels", name, x.DType(), x.Shape(), len(s.Labels[i]))
				}
				if m := slices.Max(s.Labels[i]); int(m) >= s.Classes {
					t.Errorf("%s: label %d of %d classes", name, m, s.Classes)
				}
			}
			readme, err := os.ReadFile("README.md")
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{fmt.Sprintf("%s **%.4f**", s.Metric, s.Float), s.Source} {
				if !strings.Contains(string(readme), want) {
					t.Errorf("README.md does not say %q", want)
				}
			}
		})
	}
}

// TestLabelsAreTheNextBytes ties labels to inputs: they are the text moved by one.
func TestLabelsAreTheNextBytes(t *testing.T) {
	s := Text()
	for i, name := range names(t, s.Eval) {
		tokens := tensor.As[int64](feed(t, s.Eval, name, "tokens"))
		for j, v := range tokens[1:] {
			if byte(v) != s.Labels[i][j] {
				t.Fatalf("%s: label %d is %d, the next byte is %d", name, j, s.Labels[i][j], v)
			}
		}
	}
}

func TestCalibAndEvalAreDisjoint(t *testing.T) {
	// pieces of a feed: whole images, or every stretch of 48 bytes of text.
	images := func(x *tensor.Tensor) (pieces []string) {
		for p := range slices.Chunk(x.Bytes(), 64*4) {
			pieces = append(pieces, string(p))
		}
		return pieces
	}
	stretches := func(x *tensor.Tensor) (pieces []string) {
		var text []byte
		for _, v := range tensor.As[int64](x) {
			text = append(text, byte(v))
		}
		for i := 48; i <= len(text); i++ {
			pieces = append(pieces, string(text[i-48:i]))
		}
		return pieces
	}
	for _, c := range []struct {
		sample Sample
		input  string
		pieces func(*tensor.Tensor) []string
	}{{Digits(), "image", images}, {Text(), "tokens", stretches}} {
		seen := map[string]string{}
		for _, name := range names(t, c.sample.Calib) {
			for _, p := range c.pieces(feed(t, c.sample.Calib, name, c.input)) {
				seen[p] = name
			}
		}
		if len(seen) == 0 {
			t.Errorf("%s: no calibration data", c.sample.Name)
		}
		for _, name := range names(t, c.sample.Eval) {
			for _, p := range c.pieces(feed(t, c.sample.Eval, name, c.input)) {
				if from, ok := seen[p]; ok {
					t.Errorf("%s: eval/%s shares data with calib/%s", c.sample.Name, name, from)
				}
			}
		}
	}
}

func TestScore(t *testing.T) {
	nan := float32(math.NaN())
	labels := [][]uint8{{0, 2}, {1}}
	for _, c := range []struct {
		name    string
		metric  Metric
		outputs [][]float32
		want    float64
	}{
		// Values of accuracy and perplexity of sample.py, numpy 2.4.6.
		{"accuracy", Accuracy, [][]float32{{2, 1, -1, 0.5, 0.25, 0}, {-3, 4, 0}}, 2. / 3},
		{"first of equals", Accuracy, [][]float32{{1, 1, 1, 1, 1, 1}, {0, 1, 1}}, 2. / 3},
		{"perplexity", Perplexity, [][]float32{{2, 1, -1, 0.5, 0.25, 0}, {-3, 4, 0}}, 1.7844884110240513},
		{"large logits", Perplexity, [][]float32{{1000, 999, 998, 0, 1, 2}, {-500, -500, -501}}, 1.7490432269745047},
		{"uniform", Perplexity, [][]float32{make([]float32, 6), make([]float32, 3)}, 3},
		// Contract of Score.
		{"nan is wrong", Accuracy, [][]float32{{2, nan, -1, 0, 0, 1}, {0, 1, 0}}, 2. / 3},
		{"nan stays", Perplexity, [][]float32{{2, nan, -1, 0, 0, 1}, {0, 1, 0}}, math.NaN()},
	} {
		s := Sample{Name: "test", Labels: labels, Classes: 3, Metric: c.metric}
		got, err := s.Score(c.outputs)
		if err != nil || !(math.Abs(got-c.want) < 1e-12) && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
		}
	}
	s := Sample{Name: "test", Labels: labels, Classes: 3, Metric: Accuracy}
	for _, outputs := range [][][]float32{nil, {make([]float32, 6)}, {make([]float32, 6), make([]float32, 4)}} {
		if _, err := s.Score(outputs); err == nil {
			t.Errorf("no error for %d outputs of the wrong size", len(outputs))
		}
	}
}
