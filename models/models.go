package models

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"

	"github.com/onnxq/onnxq/calibration/npy"
)

//go:embed */model.onnx */labels.npz */sample.json */calib/*.npz */eval/*.npz
var files embed.FS

// Metric is what Score measures.
type Metric string

const (
	// Accuracy is the share of positions whose largest output is that of the
	// label, from 0 to 1; higher is better.
	Accuracy Metric = "accuracy"
	// Perplexity is exp of the mean over all positions of -log softmax(output)
	// at the label, at least 1; lower is better.
	Perplexity Metric = "perplexity"
)

// LowerIsBetter reports whether the better of two models has the smaller value.
func (m Metric) LowerIsBetter() bool { return m == Perplexity }

// Sample is a float model with one input and one output of shape
// [positions ..., Classes], and data to quantize and measure it with.
type Sample struct {
	Name   string // short and lower case
	Title  string // one line: what the model does and is
	Source string // the data, its authors and licence, to be named where the model is shown
	Model  []byte // the .onnx file
	Calib  fs.FS  // calibration samples: .npz files in the root, one feed a file, keys are input names
	Eval   fs.FS  // test samples in the same form; none is in Calib or was trained on

	// Labels has, for each file of Eval in the order of names, the class of
	// every position, row major: one an image, or one a byte of text.
	Labels  [][]uint8
	Classes int

	Metric Metric
	Float  float64 // Metric of Model over Eval, measured with ONNX Runtime
}

// All returns the samples, each as its own function does.
func All() []Sample { return []Sample{Digits(), Text()} }

// Digits returns a residual convolutional network (opset 13; batch
// normalization, depthwise convolution) that classifies images of digits: input
// "image" [batch, 1, 8, 8] from 0 (paper) to 1 (ink), output "logits" [batch, 10].
func Digits() Sample { return mustLoad("digits") }

// Text returns a transformer (opset 17; layer normalization, GELU, causal
// attention) that predicts the next byte of English prose: input "tokens"
// int64 [batch, length], bytes below 128, length at most 128; output "logits"
// [batch, length, 128].
func Text() Sample { return mustLoad("text") }

// Score returns the Metric of a model from its outputs: one slice for each file
// of Eval in the order of names, row major, len(Labels[i])*Classes values. In
// Accuracy the first of equal outputs counts, and a position with a NaN is
// wrong; a NaN makes Perplexity NaN. It is an error if a number of values differs.
func (s Sample) Score(outputs [][]float32) (float64, error) {
	if len(outputs) != len(s.Labels) {
		return 0, fmt.Errorf("sample %s: %d outputs for %d files", s.Name, len(outputs), len(s.Labels))
	}
	var sum float64
	count := 0
	for i, out := range outputs {
		labels := s.Labels[i]
		if len(out) != len(labels)*s.Classes {
			return 0, fmt.Errorf("sample %s: output %d has %d values, want %d positions of %d",
				s.Name, i, len(out), len(labels), s.Classes)
		}
		for j, label := range labels {
			row := out[j*s.Classes:][:s.Classes]
			if s.Metric == Perplexity {
				sum += negLogSoftmax(row, int(label))
			} else if argMax(row) == int(label) {
				sum++
			}
		}
		count += len(labels)
	}
	mean := sum / float64(count)
	if s.Metric == Perplexity {
		return math.Exp(mean), nil
	}
	return mean, nil
}

// argMax returns the index of the first largest value, -1 if one is NaN.
func argMax(row []float32) int {
	best := 0
	for i, v := range row {
		if v != v {
			return -1
		}
		if v > row[best] {
			best = i
		}
	}
	return best
}

func negLogSoftmax(row []float32, label int) float64 {
	top := math.Inf(-1)
	for _, v := range row {
		top = max(top, float64(v))
	}
	var sum float64
	for _, v := range row {
		sum += math.Exp(float64(v) - top)
	}
	return math.Log(sum) + top - float64(row[label])
}

// card is sample.json, as the training scripts write it.
type card struct {
	Title   string             `json:"title"`
	Source  string             `json:"source"`
	Metric  Metric             `json:"metric"`
	Float   float64            `json:"float"`
	Classes int                `json:"classes"`
	Files   map[string]fileSum `json:"files"`
}

type fileSum struct {
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// mustLoad panics only on a damaged binary: tests load every sample.
func mustLoad(name string) Sample {
	s, err := load(name)
	if err != nil {
		panic(fmt.Errorf("sample %s: %w", name, err))
	}
	return s
}

func load(name string) (Sample, error) {
	root, err := fs.Sub(files, name)
	if err != nil {
		return Sample{}, err
	}
	c, err := readCard(root)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{
		Name: name, Title: c.Title, Source: c.Source,
		Classes: c.Classes, Metric: c.Metric, Float: c.Float,
	}
	if s.Model, err = fs.ReadFile(root, "model.onnx"); err != nil {
		return Sample{}, err
	}
	if s.Calib, err = fs.Sub(root, "calib"); err != nil {
		return Sample{}, err
	}
	if s.Eval, err = fs.Sub(root, "eval"); err != nil {
		return Sample{}, err
	}
	s.Labels, err = readLabels(root)
	return s, err
}

func readCard(root fs.FS) (card, error) {
	var c card
	b, err := fs.ReadFile(root, "sample.json")
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}

// readLabels reads the arrays of labels.npz, which stand in the order of Eval.
func readLabels(root fs.FS) ([][]uint8, error) {
	b, err := fs.ReadFile(root, "labels.npz")
	if err != nil {
		return nil, err
	}
	archive, err := npy.OpenArchive(bytes.NewReader(b), int64(len(b)), 0)
	if err != nil {
		return nil, err
	}
	var labels [][]uint8
	for _, a := range archive.Arrays {
		t, err := a.Tensor()
		if err != nil {
			return nil, err
		}
		labels = append(labels, t.Bytes())
	}
	return labels, nil
}
