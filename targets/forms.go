package targets

import (
	"fmt"
	"slices"
	"strings"
)

// FormName is how a weight is stored that nodes compute with in float.
type FormName string

// Forms of stored weights.
const (
	// Packed stores codes for com.microsoft's MatMulNBits and
	// GatherBlockQuantized, which decode them as they compute.
	Packed FormName = "packed"
	// Dequantize decodes with DequantizeLinear.
	Dequantize FormName = "dequantize"
	// AtLoad decodes with Cast, Sub, Mul and Gather from constants, which runtimes
	// compute once, when they load the model.
	AtLoad FormName = "load"
)

// Form is one of the forms in which a target takes the weights of nodes that
// compute in float.
type Form struct {
	Name   FormName `json:"form" yaml:"form"`
	Types  []string `json:"types" yaml:"types"`   // storage types, as quant.ParseStorage knows them; kmeans stands for all kmeans:N
	Scales []string `json:"scales" yaml:"scales"` // types of scales, as quant.ScaleName has them
	// MinBlock and MaxBlock bound block sizes, which are powers of two; 0 and 0
	// allow every size, and one scale for a whole line.
	MinBlock int `json:"min_block,omitempty" yaml:"min_block,omitempty"`
	MaxBlock int `json:"max_block,omitempty" yaml:"max_block,omitempty"`
}

// Refusal says why a target does not take some storage types or types of
// scales.
type Refusal struct {
	Types  []string `json:"types,omitempty" yaml:"types,omitempty"`
	Scales []string `json:"scales,omitempty" yaml:"scales,omitempty"`
	Why    string   `json:"why" yaml:"why"`
}

// takes reports whether name is in list, kmeans:N counting as kmeans.
func takes(list []string, name string) bool {
	kind, _, _ := strings.Cut(name, ":")
	return slices.Contains(list, kind)
}

// Takes returns why f does not take a storage type with the given type of
// scales and block size (0: one scale for a line), or "".
func (f *Form) Takes(storage, scale string, block int) string {
	switch {
	case !takes(f.Types, storage):
		return fmt.Sprintf("%s takes no %s weights", f.Name, storage)
	case !slices.Contains(f.Scales, scale):
		return fmt.Sprintf("%s takes no %s scales", f.Name, scale)
	case f.MaxBlock > 0 && (block < f.MinBlock || block > f.MaxBlock || block&(block-1) != 0):
		return fmt.Sprintf("%s takes blocks of %d to %d elements, powers of two, not %d", f.Name, f.MinBlock, f.MaxBlock, block)
	}
	return ""
}

// Refuses returns why t takes no weights of the given storage type and type of
// scales, or "".
func (t *Target) Refuses(storage, scale string) string {
	for _, r := range t.Refusals {
		if takes(r.Types, storage) || slices.Contains(r.Scales, scale) {
			return r.Why
		}
	}
	if !slices.ContainsFunc(t.Forms, func(f Form) bool { return f.Takes(storage, scale, f.MinBlock) == "" }) {
		return fmt.Sprintf("%s has no form for %s weights with %s scales", t.Name, storage, scale)
	}
	return ""
}

// What ONNX Runtime 1.32 takes on CPU, as runs of it show: MatMulNBits of 2, 4
// and 8 bits in blocks that are powers of two from 16 on (of 2 bits: to 256),
// and GatherBlockQuantized alike; Cast of integers of 4 bits from opset 21, of 2
// bits from 25, of float8 from 19. Neither has a kernel for float4.
var ortForms = []Form{
	{Name: Packed, Types: []string{"i8", "u8", "i4", "u4", "i3", "u3", "i2", "u2", "ternary", "binary"}, Scales: []string{"f32", "f16"}, MinBlock: 16, MaxBlock: 256},
	{Name: AtLoad, Types: []string{"i8", "u8", "i4", "u4", "i3", "u3", "i2", "u2", "ternary", "binary", "f8e4m3", "f8e5m2", "bf16", "f16", "nf4", "kmeans"}, Scales: []string{"f32", "f16"}},
}

var ortRefusals = []Refusal{
	{Types: []string{"f4e2m1", "mxfp4", "nvfp4"}, Why: "ONNX Runtime has no kernel on CPU for DequantizeLinear or Cast of float4e2m1"},
	{Scales: []string{"bf16", "float8e8m0"}, Why: "ONNX Runtime has no kernel on CPU for DequantizeLinear with scales of bfloat16 or float8e8m0"},
}

// standard is ONNX itself.
var standard = Target{
	Name:        "onnx",
	Title:       "The operators of the ONNX standard, for a runtime that has all of opset 25; also what onnxq run computes",
	Sources:     []string{"ONNX operator specification, QuantizeLinear and DequantizeLinear of opsets 10 to 25"},
	Activations: []string{"u8", "i8"},
	Weights:     []string{"i8", "u8"},

	PerTensorOpset:  10,
	PerChannelOpset: 13,
	MaxOpset:        25,
	Rules:           onnxruntime,
	Forms: []Form{
		{Name: Dequantize, Types: []string{"i8", "u8", "i4", "u4", "i3", "u3", "i2", "u2", "ternary", "f8e4m3", "f8e5m2", "f4e2m1", "mxfp4", "nvfp4"}, Scales: []string{"f32", "f16", "bf16", "float8e8m0", "float8e4m3fn"}},
		{Name: AtLoad, Types: []string{"binary", "bf16", "f16", "nf4", "kmeans"}, Scales: []string{"f32", "f16", "bf16"}},
	},
}
