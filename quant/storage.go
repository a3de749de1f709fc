package quant

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

// Kind says how the codes of a Storage stand for values.
type Kind uint8

// Kinds of storage.
const (
	Integer  Kind = iota // integers with a scale and a zero point
	Real                 // numbers of a small floating-point type with a scale
	Cast                 // numbers of a 16-bit floating-point type, without a scale
	Codebook             // indices into a list of values, with a scale unless the list is made for the tensor
)

// Storage is how the elements of a weight are stored.
type Storage struct {
	Name  string // as --weights has it
	Kind  Kind
	DType tensor.DType // the element type of the codes in a file
	Bits  int          // information of a code; DType may take more
	// Min and Max are the codes of an Integer.
	Min, Max int32
	// Grid holds the values of a Codebook in rising order. It is empty for one
	// of Levels values that are chosen for each tensor.
	Grid   []float32
	Levels int
	// Block and Scale are the block size and the scale type that belong to the
	// type, as in the OCP microscaling formats; 0 leaves them open.
	Block int
	Scale tensor.DType
}

// nf4 holds the quantiles of the normal distribution that are the values of
// NF4 (T. Dettmers et al., "QLoRA", 2023, appendix E).
var nf4 = []float32{
	-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
	0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
}

// storages lists the types that have no parameter. mxfp4 is that of OCP
// Microscaling Formats 1.0; nvfp4 has scales of float8e4m3 for blocks of 16 and
// a float32 scale for the tensor.
var storages = []Storage{
	{Name: "i8", DType: tensor.Int8, Bits: 8, Min: -128, Max: 127},
	{Name: "u8", DType: tensor.Uint8, Bits: 8, Max: 255},
	{Name: "i4", DType: tensor.Int4, Bits: 4, Min: -8, Max: 7},
	{Name: "u4", DType: tensor.Uint4, Bits: 4, Max: 15},
	{Name: "i3", DType: tensor.Int4, Bits: 3, Min: -4, Max: 3},
	{Name: "u3", DType: tensor.Uint4, Bits: 3, Max: 7},
	{Name: "i2", DType: tensor.Int2, Bits: 2, Min: -2, Max: 1},
	{Name: "u2", DType: tensor.Uint2, Bits: 2, Max: 3},
	{Name: "ternary", DType: tensor.Int2, Bits: 2, Min: -1, Max: 1},
	{Name: "binary", Kind: Codebook, DType: tensor.Uint2, Bits: 1, Grid: []float32{-1, 1}},
	{Name: "f16", Kind: Cast, DType: tensor.Float16, Bits: 16},
	{Name: "bf16", Kind: Cast, DType: tensor.BFloat16, Bits: 16},
	{Name: "f8e4m3", Kind: Real, DType: tensor.Float8E4M3FN, Bits: 8},
	{Name: "f8e5m2", Kind: Real, DType: tensor.Float8E5M2, Bits: 8},
	{Name: "f4e2m1", Kind: Real, DType: tensor.Float4E2M1, Bits: 4},
	{Name: "mxfp4", Kind: Real, DType: tensor.Float4E2M1, Bits: 4, Block: 32, Scale: tensor.Float8E8M0},
	{Name: "nvfp4", Kind: Real, DType: tensor.Float4E2M1, Bits: 4, Block: 16, Scale: tensor.Float8E4M3FN},
	{Name: "nf4", Kind: Codebook, DType: tensor.Uint4, Bits: 4, Grid: nf4},
}

// MaxLevels is the largest number of values of a codebook.
const MaxLevels = 256

// Storages lists the names that ParseStorage knows; the last one has a
// parameter N from 2 to MaxLevels.
func Storages() []string {
	var names []string
	for _, s := range storages {
		names = append(names, s.Name)
	}
	return append(names, "kmeans:N")
}

// ParseStorage returns the storage type of the given name, one of those that
// Storages lists.
func ParseStorage(name string) (Storage, error) {
	for _, s := range storages {
		if s.Name == name {
			return s, nil
		}
	}
	if text, ok := strings.CutPrefix(name, "kmeans:"); ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 2 || n > MaxLevels {
			return Storage{}, fmt.Errorf("storage type %q: want 2 to %d levels", name, MaxLevels)
		}
		s := Storage{Name: name, Kind: Codebook, DType: tensor.Uint8, Levels: n}
		for s.Bits = 1; 1<<s.Bits < n; s.Bits++ {
		}
		switch {
		case s.Bits <= 2:
			s.DType = tensor.Uint2
		case s.Bits <= 4:
			s.DType = tensor.Uint4
		}
		return s, nil
	}
	return Storage{}, fmt.Errorf("unknown storage type %q; known are %s", name, strings.Join(Storages(), ", "))
}

// Signed reports whether codes of an Integer may be negative.
func (s *Storage) Signed() bool { return s.Min < 0 }

// limit returns the largest magnitude that a scaled value may have.
func (s *Storage) limit() float64 {
	switch {
	case s.Kind == Codebook && len(s.Grid) > 0:
		return math.Max(-float64(s.Grid[0]), float64(s.Grid[len(s.Grid)-1]))
	case s.DType == tensor.Float4E2M1:
		return 6
	case s.DType == tensor.Float8E4M3FN:
		return 448
	case s.DType == tensor.Float8E5M2:
		return 57344
	}
	return 1
}

// Zeros says where the zero points of integer codes lie.
type Zeros string

// Zero points.
const (
	// Symmetric is 0, with the lowest code of a signed type left out. Unsigned
	// types have the middle of their codes.
	Symmetric Zeros = "symmetric"
	// Full is Symmetric with all codes. The scale is negative where the value
	// of the largest magnitude is positive, so that the lowest code, which is
	// one more than the highest, stands for it.
	Full Zeros = "full"
	// Asymmetric gives each block the zero point that its range asks for.
	Asymmetric Zeros = "asymmetric"
)

// ParseZeros returns the Zeros of the given name; "" is Symmetric.
func ParseZeros(name string) (Zeros, error) {
	z := Zeros(name)
	if name == "" {
		z = Symmetric
	}
	if !slices.Contains([]Zeros{Symmetric, Full, Asymmetric}, z) {
		return "", fmt.Errorf("zero points %q are none of %s, %s, %s", name, Symmetric, Full, Asymmetric)
	}
	return z, nil
}

// ParseScale returns the type of scales of the given name: f32, f16 or bf16;
// "" is f32.
func ParseScale(name string) (tensor.DType, error) {
	switch name {
	case "", "f32":
		return tensor.Float32, nil
	case "f16":
		return tensor.Float16, nil
	case "bf16":
		return tensor.BFloat16, nil
	}
	return tensor.Undefined, fmt.Errorf("scale type %q is none of f32, f16, bf16", name)
}

// ScaleName is the inverse of ParseScale; types that belong to a Storage have
// the names of onnx.
func ScaleName(t tensor.DType) string {
	switch t {
	case tensor.Float32:
		return "f32"
	case tensor.Float16:
		return "f16"
	case tensor.BFloat16:
		return "bf16"
	}
	return t.String()
}
