package calibration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/tensor"
)

const maxRandom = 1000000

// openRandom makes the samples of random:N.
func (o *opener) openRandom(spec string) ([]Sample, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(spec, "random:"))
	if err != nil || n < 1 || n > maxRandom {
		return nil, fmt.Errorf("want random:N with N from 1 to %d", maxRandom)
	}
	var fields []field
	for i := range o.inputs {
		in := &o.inputs[i]
		if in.Optional {
			continue
		}
		shape := make([]int, len(in.Shape))
		for k, d := range in.Shape {
			if shape[k] = d; d < 0 {
				shape[k] = 1
			}
		}
		size, ok := tensor.NumElements(shape)
		switch {
		case in.Shape == nil:
			err = fmt.Errorf("values cannot be made up for an input of unknown rank")
		case !in.DType.Convertible():
			err = fmt.Errorf("values cannot be made up for an input of type %v", in.DType)
		case !ok || int64(size) > o.opts.maxBytes()/max(int64(in.DType.Bits()/8), 1):
			err = fmt.Errorf("shape %s takes more than the %d bytes allowed", shapeText(shape), o.opts.maxBytes())
		}
		if err != nil {
			return nil, &DataError{Path: spec, Input: in.Name, Err: err}
		}
		fields = append(fields, field{name: in.Name, index: -1, typed: true, dtype: in.DType, shape: shape})
	}
	samples := make([]Sample, n)
	for k := range samples {
		name := fmt.Sprintf("%06d", k)
		samples[k] = Sample{Name: name, Path: spec, Row: k, rel: name}
		samples[k].load = func(context.Context) (opened, error) {
			op := opened{fields: append([]field{}, fields...)}
			for i := range op.fields {
				f := &op.fields[i]
				f.read = func(*Input) (*tensor.Tensor, error) {
					r := rand.New(rand.NewPCG(o.opts.Seed, uint64(k)<<20|uint64(i)))
					return randomTensor(r, f.dtype, f.shape), nil
				}
			}
			return op, nil
		}
	}
	return samples, nil
}

// randomTensor draws values with arithmetic that gives the same bits on every
// machine: the sum of 12 uniform numbers less 6 is about normal.
func randomTensor(r *rand.Rand, d tensor.DType, shape []int) *tensor.Tensor {
	t := tensor.New(d, shape...)
	n := t.Len()
	if d.IsInt() && d.Bits() <= 8 {
		b := t.Bytes()
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return t
	}
	if !d.IsFloat() {
		v := make([]int64, n)
		for i := range v {
			v[i] = int64(r.Uint32() >> 31)
		}
		tensor.Write(t, 0, v)
		return t
	}
	v := make([]float32, n)
	for i := range v {
		var sum uint64
		for range 6 {
			u := r.Uint64()
			sum += u>>40 + u<<24>>40 // two numbers of 24 bits
		}
		v[i] = float32(float64(sum)*0x1p-24 - 6)
	}
	tensor.Write(t, 0, v)
	return t
}
