package quant

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// gaussian returns a tensor of normal values of which a few are large.
func gaussian(seed uint64, shape ...int) *tensor.Tensor {
	t := tensor.New(tensor.Float32, shape...)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range tensor.As[float32](t) {
		x := r.NormFloat64()
		if r.IntN(50) == 0 {
			x *= 4
		}
		tensor.As[float32](t)[i] = float32(x)
	}
	return t
}

// schemes lists every storage type with every kind of zero points, and the fits
// that apply.
func schemes(t testing.TB) []Blocks {
	var out []Blocks
	for _, name := range append(Storages()[:len(Storages())-1], "kmeans:7", "kmeans:16", "kmeans:200") {
		s := storage(t, name)
		zeros := []Zeros{Symmetric}
		fits := []Fit{Cover}
		switch s.Kind {
		case Integer:
			zeros = []Zeros{Symmetric, Full, Asymmetric}
			fits = []Fit{Cover, Clip, HQQ, KQuant}
		case Real:
			fits = append(fits, Clip)
		case Codebook:
			if s.Levels == 0 {
				fits = append(fits, Clip)
			}
		}
		for _, z := range zeros {
			for _, f := range fits {
				out = append(out, Blocks{Storage: s, Zero: z, Fit: f})
			}
		}
	}
	return out
}

func (b Blocks) label() string {
	return fmt.Sprintf("%s %s block %d scale %v fit %q", b.Name, b.Zero, b.Size, b.ScaleType, b.Fit)
}

func sse(x *tensor.Tensor, c *Coded) float64 {
	sum := 0.0
	row := make([]float32, c.K)
	for i := range c.Lines {
		c.Decode(row, i)
		for j, v := range tensor.As[float32](x)[i*c.K:][:c.K] {
			sum += float64(v-row[j]) * float64(v-row[j])
		}
	}
	return sum
}

// TestBlocks has every code be the nearest of those that its parameters allow,
// for all schemes, block sizes and tails.
func TestBlocks(t *testing.T) {
	for _, b := range schemes(t) {
		for _, size := range []int{0, 16, 32, 64, 128, 256} {
			for _, k := range []int{1, 15, 32, 33, 130} {
				for _, scale := range []tensor.DType{tensor.Float32, tensor.Float16, tensor.BFloat16} {
					if b.Storage.Block > 0 && (size != b.Storage.Block || scale != tensor.Float32) || b.Fit != Cover && k != 33 || scale != tensor.Float32 && size != 32 {
						continue
					}
					b.Size, b.ScaleType = size, scale
					x := gaussian(7, 2, k)
					c := encode(t, b, x)
					checkNearest(t, b, x, c)
				}
			}
		}
	}
}

func checkNearest(t *testing.T, b Blocks, x *tensor.Tensor, c *Coded) {
	t.Helper()
	lo, hi, _ := c.codeRange()
	codes := 1 << c.DType.Bits()
	if c.Kind == Codebook {
		codes = len(c.Grid)
	}
	if c.Kind == Cast {
		return
	}
	got, other := make([]float32, c.K), make([]float32, c.K)
	try := *c.Slice(0, 1)
	best := make([]float64, c.K)
	for i := range c.Lines {
		c.Decode(got, i)
		line := tensor.As[float32](x)[i*c.K:][:c.K]
		for j := range best {
			best[j] = math.Inf(1)
		}
		try = *c.Slice(i, i+1)
		for q := range codes {
			if c.Kind == Integer {
				if n := int32(int8(q)); c.Signed() && (n < lo || n > hi) || !c.Signed() && int32(q) > hi {
					continue
				}
			}
			try.Codes = bytes.Repeat([]byte{byte(q)}, c.K)
			if c.Kind == Integer && c.Signed() && c.DType.Bits() < 8 {
				n := int8(byte(q) << (8 - c.DType.Bits()))
				try.Codes = bytes.Repeat([]byte{byte(n >> (8 - c.DType.Bits()))}, c.K)
			}
			try.Decode(other, 0)
			for j, v := range line {
				if d := math.Abs(float64(v - other[j])); d < best[j] {
					best[j] = d
				}
			}
		}
		for j, v := range line {
			if d := math.Abs(float64(v - got[j])); d > best[j]+1e-5*math.Abs(float64(v)) {
				t.Fatalf("%s, %d elements: %v becomes %v, off by %v where %v is possible", b.label(), c.K, v, got[j], d, best[j])
			}
		}
	}
}

// TestFits has each fit lower the error that it looks at.
func TestFits(t *testing.T) {
	x := gaussian(3, 12, 256)
	for _, b := range schemes(t) {
		if b.Fit == Cover || b.Name == "ternary" { // whose plain scale is the best one
			continue
		}
		if b.Storage.Block == 0 {
			b.Size = 32
		}
		b.ScaleType = tensor.Undefined
		fitted := sse(x, encode(t, b, x))
		b.Fit = Cover
		plain := sse(x, encode(t, b, x))
		if fitted > plain*1.02 {
			t.Errorf("%s: squared error %v, %v without", b.label(), fitted, plain)
		}
	}
	// The search for the least squared error gains where bits are few.
	b := Blocks{Storage: storage(t, "i4"), Zero: Symmetric, Size: 32}
	plain := sse(x, encode(t, b, x))
	for f, most := range map[Fit]float64{Clip: 0.93, KQuant: 0.97} {
		b.Fit = f
		if got := sse(x, encode(t, b, x)); got > most*plain {
			t.Errorf("%s: squared error %v of %v", b.label(), got, plain)
		}
	}
	// Full range with a sign of its own beats the narrow one.
	b.Fit, b.Zero = Cover, Full
	if got := sse(x, encode(t, b, x)); got > plain {
		t.Errorf("full range: squared error %v, narrow %v", got, plain)
	}
}

// TestImportance has errors move to the elements that count less.
func TestImportance(t *testing.T) {
	x := gaussian(5, 20, 64)
	importance := make([]float32, 64)
	for i := range importance {
		importance[i] = 0.01
		if i%8 == 0 {
			importance[i] = 100
		}
	}
	for _, f := range []Fit{Clip, KQuant} {
		b, _ := Blocks{Storage: storage(t, "u4"), Zero: Asymmetric, Size: 32, Fit: f}.Complete()
		l, _ := LinesOf(x, 1)
		loss := func(importance []float32) float64 {
			c, err := b.Encode(context.Background(), nil, l, Shared{Global: 1}, 0, 20, importance)
			if err != nil {
				t.Fatal(err)
			}
			sum := 0.0
			row := make([]float32, 64)
			for i := range 20 {
				c.Decode(row, i)
				for j := 0; j < 64; j += 8 {
					d := float64(row[j] - tensor.As[float32](x)[i*64+j])
					sum += d * d
				}
			}
			return sum
		}
		if with, without := loss(importance), loss(nil); with > 0.5*without {
			t.Errorf("%s: error of what counts is %v, %v if all count alike", f, with, without)
		}
	}
}

var update = flag.Bool("update", false, "write the golden files")

// TestEncode has the same bits from any number of threads and any division into
// ranges of lines, and those of the golden file from every set of kernels: run
// it with ONNXQ_CPU=generic as well. Integer codes are those of the definition.
func TestEncode(t *testing.T) {
	x := gaussian(11, 70, 100) // 100 lines of 70 along axis 0
	l, err := LinesOf(x, 0)
	if err != nil {
		t.Fatal(err)
	}
	pool := par.New(3)
	pool.Begin()
	defer pool.End()
	var golden bytes.Buffer
	for _, b := range schemes(t) {
		if b.Storage.Block == 0 {
			b.Size = 32
		}
		b, err := b.Complete()
		if err != nil {
			t.Fatal(err)
		}
		shared, err := b.Share(pool, l)
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		want, err := b.Encode(ctx, pool, l, shared, 0, 100, nil)
		if err != nil {
			t.Fatal(err)
		}
		part, err := b.Encode(ctx, nil, l, shared, 37, 80, nil)
		if err != nil {
			t.Fatal(err)
		}
		if w := want.Slice(37, 80); !bytes.Equal(part.Codes, w.Codes) || !slices.Equal(part.Scale, w.Scale) || !slices.Equal(part.Zero, w.Zero) {
			t.Errorf("%s: a part on one thread has other bits", b.label())
		}
		h := sha256.New()
		h.Write(want.Codes)
		binary.Write(h, binary.LittleEndian, want.Scale)
		binary.Write(h, binary.LittleEndian, want.Zero)
		fmt.Fprintf(&golden, "%s: %x\n", b.label(), h.Sum(nil)[:8])
		if b.Kind != Integer {
			continue
		}
		row := make([]float32, 70)
		lo, hi, base := b.codeRange()
		for i := range 100 {
			l.Read(row, i, i+1)
			for k, v := range row {
				at := i*3 + k/32
				z := base
				if want.Zero != nil {
					z = want.Zero[at]
				}
				q := math.RoundToEven(float64(v/want.Scale[at])) + float64(z)
				if q = max(float64(lo), min(float64(hi), q)); want.Code(i*70+k) != int(q) {
					t.Fatalf("%s: code of %v is %d, want %v", b.label(), v, want.Code(i*70+k), q)
				}
			}
		}
	}
	const path = "testdata/encode.golden"
	if *update {
		if err := os.WriteFile(path, golden.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := golden.String(); got != string(want) {
		t.Errorf("other bits than in %s:\n%s", path, got)
	}
}

// TestPack reads back what the packed forms hold.
func TestPack(t *testing.T) {
	for _, b := range schemes(t) {
		if !b.Plain() || b.Fit != Cover {
			continue
		}
		for _, size := range []int{16, 32, 64} {
			for _, k := range []int{1, 16, 45, 100} {
				b.Size, b.ScaleType = size, tensor.Undefined
				x := gaussian(13, 5, k)
				c := encode(t, b, x)
				bits := c.DType.Bits()
				line, zline := c.PackedBytes(k)
				packed, tight := make([]byte, 5*line), make([]byte, 5*((k*bits+7)/8))
				c.PackBlocks(packed)
				c.PackCodes(tight)
				zeros := make([]byte, 5*zline)
				if c.Zero != nil {
					c.PackZeros(zeros)
				}
				at := func(p []byte, row, i int) int {
					return int(p[row+i*bits/8] >> (i * bits % 8) & (1<<bits - 1))
				}
				n := c.blocks(k)
				want := make([]float32, k)
				for i := range 5 {
					c.Decode(want, i)
					for j := range n * size {
						z := 1 << (bits - 1)
						if c.Zero != nil {
							z = at(zeros, i*zline, j/size)
						}
						v := float32(at(packed, i*line, j)-z) * c.Scale[i*n+j/size]
						if j >= k {
							if v != 0 {
								t.Fatalf("%s: padding holds %v", b.label(), v)
							}
							continue
						}
						if v != want[j] {
							t.Fatalf("%s, %d elements: packed element %d is %v, want %v", b.label(), k, j, v, want[j])
						}
						if q, p := at(tight, i*((k*bits+7)/8), j), at(packed, i*line, j); q != p {
							t.Fatalf("%s: tight code %d, packed code %d", b.label(), q, p)
						}
					}
				}
			}
		}
	}
}

// TestTensorForm reads codes, scales and zero points as DequantizeLinear does.
func TestTensorForm(t *testing.T) {
	x := gaussian(17, 3, 40, 5)
	for _, b := range schemes(t) {
		if b.Kind == Cast || b.Levels > 0 || b.Fit != Cover {
			continue
		}
		for axis := range 3 {
			b.Size, b.ScaleType = 16, tensor.Undefined
			if b.Storage.Block > 0 {
				b.Size = b.Storage.Block
			}
			b, err := b.Complete()
			if err != nil {
				t.Fatal(err)
			}
			l, err := LinesOf(x, axis)
			if err != nil {
				t.Fatal(err)
			}
			shared, _ := b.Share(nil, l)
			c, err := b.Encode(context.Background(), nil, l, shared, 0, l.N(), nil)
			if err != nil {
				t.Fatal(err)
			}
			codes, _ := tensor.Float32s(c.Tensor(l))
			scales, _ := tensor.Float32s(c.Scales(l))
			var zeros []float32
			if c.Zero != nil {
				zeros, _ = tensor.Float32s(c.Zeros(l))
			}
			n := c.blocks(l.K)
			_, _, base := c.codeRange()
			row := make([]float32, l.K)
			for i := range l.N() {
				c.Decode(row, i)
				o, in := i/l.Inner, i%l.Inner
				for k, want := range row {
					q := codes[(o*l.K+k)*l.Inner+in]
					at := (o*n+k/b.Size)*l.Inner + in
					if c.Kind == Codebook {
						q = c.Grid[int(q)]
					} else if c.Kind == Integer {
						z := float32(base)
						if zeros != nil {
							z = zeros[at]
						}
						q -= z
					}
					if v := q * scales[at] * c.Global; !near(float64(v), float64(want), 1e-6) {
						t.Fatalf("%s, axis %d: element %d of line %d is %v, want %v", b.label(), axis, k, i, v, want)
					}
				}
			}
		}
	}
}

func TestSixteenBitSources(t *testing.T) {
	x := gaussian(19, 20, 64)
	for _, d := range []tensor.DType{tensor.Float16, tensor.BFloat16, tensor.Float64} {
		half := tensor.New(d, 20, 64)
		tensor.Write(half, 0, tensor.As[float32](x))
		rounded, _ := tensor.Float32s(half)
		for axis := range 2 {
			b, _ := Blocks{Storage: storage(t, "i4"), Size: 16}.Complete()
			l, _ := LinesOf(half, axis)
			r, _ := LinesOf(tensor.Of(rounded, 20, 64), axis)
			ctx := context.Background()
			got, err := b.Encode(ctx, nil, l, Shared{Global: 1}, 0, l.N(), nil)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := b.Encode(ctx, nil, r, Shared{Global: 1}, 0, r.N(), nil)
			if !bytes.Equal(got.Codes, want.Codes) || !slices.Equal(got.Scale, want.Scale) {
				t.Errorf("%v, axis %d: codes differ from those of the same values in float32", d, axis)
			}
		}
	}
}

func TestBlocksRefuse(t *testing.T) {
	x := gaussian(1, 2, 32)
	tensor.As[float32](x)[40] = float32(math.NaN())
	l, _ := LinesOf(x, 1)
	b, _ := Blocks{Storage: storage(t, "i4"), Size: 16}.Complete()
	if _, err := b.Encode(context.Background(), nil, l, Shared{}, 0, 2, nil); err == nil || !strings.Contains(err.Error(), "1 of 64") {
		t.Errorf("NaN: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Encode(ctx, nil, l, Shared{}, 0, 2, nil); err != context.Canceled {
		t.Errorf("canceled: %v", err)
	}
	for _, name := range []string{"", "i5", "kmeans:1", "kmeans:257", "kmeans:x"} {
		if _, err := ParseStorage(name); err == nil {
			t.Errorf("storage type %q accepted", name)
		}
	}
	for _, b := range []Blocks{
		{Storage: storage(t, "mxfp4"), Size: 16},
		{Storage: storage(t, "nvfp4"), ScaleType: tensor.Float16},
		{Storage: storage(t, "nf4"), Zero: Asymmetric},
		{Storage: storage(t, "i4"), Size: -1},
	} {
		if _, err := b.Complete(); err == nil {
			t.Errorf("%s accepted", b.label())
		}
	}
	if _, err := LinesOf(tensor.Of([]int64{1}), 0); err == nil {
		t.Error("integers accepted")
	}
}

func TestBitsPerWeight(t *testing.T) {
	for _, c := range []struct {
		b    Blocks
		k    int
		want float64
	}{
		{Blocks{Storage: storage(t, "i4"), Size: 32, ScaleType: tensor.Float16}, 4096, 4.5},
		{Blocks{Storage: storage(t, "i4"), Size: 32}, 4096, 5},
		{Blocks{Storage: storage(t, "i4"), Size: 128}, 4096, 4.25},
		{Blocks{Storage: storage(t, "u4"), Size: 32, ScaleType: tensor.Float16, Zero: Asymmetric}, 4096, 4.625},
		{Blocks{Storage: storage(t, "mxfp4")}, 4096, 4.25},
		{Blocks{Storage: storage(t, "nvfp4")}, 4096, 4.5},
		{Blocks{Storage: storage(t, "f16")}, 10, 16},
		{Blocks{Storage: storage(t, "kmeans:16")}, 10, 4},
	} {
		b, err := c.b.Complete()
		if err != nil {
			t.Fatal(err)
		}
		if got := b.BitsPerWeight(c.k, false); got != c.want {
			t.Errorf("%s: %v bits, want %v", b.label(), got, c.want)
		}
	}
}

func TestLloyd(t *testing.T) {
	// Clusters that are told apart easily become the values.
	x := tensor.New(tensor.Float32, 3, 400)
	centers := []float32{-3, -1, 0.5, 4}
	for i := range tensor.As[float32](x) {
		tensor.As[float32](x)[i] = centers[i%4] + float32(i%7-3)*0.01
	}
	c := encode(t, Blocks{Storage: storage(t, "kmeans:4")}, x)
	for i, v := range c.Grid {
		if math.Abs(float64(v-centers[i])) > 0.02 {
			t.Errorf("value %d is %v, want %v", i, v, centers[i])
		}
	}
	// Constant and empty tensors have a codebook as well.
	for _, x := range []*tensor.Tensor{tensor.New(tensor.Float32, 2, 3), tensor.New(tensor.Float32, 0, 3)} {
		encode(t, Blocks{Storage: storage(t, "kmeans:4")}, x)
	}
}

// TestColumns encodes lines whose elements lie apart, and the same lines one
// behind the other.
func TestColumns(t *testing.T) {
	const outer, k, inner = 2, 75, abreast + 21
	x := gaussian(9, outer, k, inner)
	values := tensor.As[float32](x)
	for i := range inner { // a block of zeros
		values[3*inner+i] = 0
	}
	for j := range 16 {
		values[j*inner+5] = 0
	}
	rows := tensor.New(tensor.Float32, outer, inner, k)
	for o := range outer {
		kernels.Transpose(tensor.As[float32](rows)[o*k*inner:], k, values[o*k*inner:], inner, k, inner)
	}
	apart, err := LinesOf(x, 1)
	if err != nil {
		t.Fatal(err)
	}
	together, err := LinesOf(rows, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"i8", "u8", "i4", "u4", "i3", "u3", "i2", "u2"} {
		for _, zero := range []Zeros{Symmetric, Full, Asymmetric} {
			for _, size := range []int{0, 16, 32, 50, 128} {
				for _, scales := range []tensor.DType{tensor.Float32, tensor.Float16} {
					s, err := ParseStorage(name)
					if err != nil {
						t.Fatal(err)
					}
					b, err := Blocks{Storage: s, Zero: zero, Size: size, ScaleType: scales}.Complete()
					if err != nil {
						t.Fatal(err)
					}
					shared := Shared{Global: 1}
					got, err := b.Encode(t.Context(), nil, apart, shared, 3, outer*inner-1, nil)
					if err != nil {
						t.Fatal(err)
					}
					want, err := b.Encode(t.Context(), nil, together, shared, 3, outer*inner-1, nil)
					if err != nil {
						t.Fatal(err)
					}
					if !slices.Equal(got.Codes, want.Codes) || !slices.Equal(got.Scale, want.Scale) || !slices.Equal(got.Zero, want.Zero) {
						t.Fatalf("%s %s in blocks of %d with %v scales: columns differ from lines", name, zero, size, scales)
					}
				}
			}
		}
	}
	values[len(values)-1] = float32(math.NaN())
	b, _ := Blocks{Storage: storages[0]}.Complete()
	if _, err := b.Encode(t.Context(), nil, apart, Shared{Global: 1}, 0, outer*inner, nil); !errors.Is(err, ErrNotFinite) {
		t.Errorf("NaN among the elements: %v", err)
	}
}
