//go:build !noonnxgo

package onnxgo

import (
	"fmt"

	"github.com/onnxq/onnxq/tensor"
	gorgonia "gorgonia.org/tensor"
)

// fromGorgonia returns t as a tensor of ours. It aliases t where t is dense and
// row-major, and is a copy otherwise. Go's int and uint become 64 bits wide.
func fromGorgonia(t gorgonia.Tensor) (out *tensor.Tensor, err error) {
	d, ok := t.(*gorgonia.Dense)
	if !ok || !d.IsNativelyAccessible() {
		return nil, fmt.Errorf("tensor of type %T is not dense memory", t)
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("tensor of shape %v: %v", d.Shape(), r)
		}
	}()
	shape := append([]int{}, d.Shape()...)
	if d.IsScalar() {
		// Data would not return a slice.
		d = d.ShallowClone()
		if err := d.Reshape(1); err != nil {
			return nil, err
		}
	}
	switch data := d.Data().(type) {
	case []float32:
		return dense(d, shape, data)
	case []float64:
		return dense(d, shape, data)
	case []int8:
		return dense(d, shape, data)
	case []int16:
		return dense(d, shape, data)
	case []int32:
		return dense(d, shape, data)
	case []int64:
		return dense(d, shape, data)
	case []uint8:
		return dense(d, shape, data)
	case []uint16:
		return dense(d, shape, data)
	case []uint32:
		return dense(d, shape, data)
	case []uint64:
		return dense(d, shape, data)
	case []bool:
		return dense(d, shape, data)
	case []complex64:
		return dense(d, shape, data)
	case []complex128:
		return dense(d, shape, data)
	case []int:
		return dense(d, shape, widen[int64](data))
	case []uint:
		return dense(d, shape, widen[uint64](data))
	case []string:
		s, err := rows(d, shape, data)
		if err != nil {
			return nil, err
		}
		return tensor.FromStrings(shape, s), nil
	default:
		return nil, fmt.Errorf("elements of type %v have no ONNX type", d.Dtype())
	}
}

func widen[T, S int | int64 | uint | uint64](s []S) []T {
	out := make([]T, len(s))
	for i, v := range s {
		out[i] = T(v)
	}
	return out
}

func dense[T tensor.Number](d *gorgonia.Dense, shape []int, data []T) (*tensor.Tensor, error) {
	data, err := rows(d, shape, data)
	if err != nil {
		return nil, err
	}
	return tensor.Of(data, shape...), nil
}

// rows returns the elements in row-major order: data itself unless d is a
// transposed or sliced view, or column-major.
func rows[T any](d *gorgonia.Dense, shape []int, data []T) ([]T, error) {
	n, ok := tensor.NumElements(shape)
	if !ok {
		return nil, fmt.Errorf("shape %v", shape)
	}
	if d.RequiresIterator() || d.DataOrder().IsColMajor() {
		out := make([]T, 0, n)
		it := gorgonia.FlatIteratorFromDense(d)
		for i, err := it.Start(); err == nil; i, err = it.Next() {
			out = append(out, data[i])
		}
		data = out
	}
	if len(data) != n {
		return nil, fmt.Errorf("%d elements in a tensor of shape %v", len(data), shape)
	}
	return data, nil
}

// toGorgonia returns t as a dense tensor of gorgonia's, which aliases t where
// it can.
func toGorgonia(t *tensor.Tensor) (out gorgonia.Tensor, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("onnx-go has no tensor like %v: %v", t, r)
		}
	}()
	switch t.DType() {
	case tensor.Float32:
		return backed[float32](t), nil
	case tensor.Float64:
		return backed[float64](t), nil
	case tensor.Int8:
		return backed[int8](t), nil
	case tensor.Int16:
		return backed[int16](t), nil
	case tensor.Int32:
		return backed[int32](t), nil
	case tensor.Int64:
		return backed[int64](t), nil
	case tensor.Uint8:
		return backed[uint8](t), nil
	case tensor.Uint16:
		return backed[uint16](t), nil
	case tensor.Uint32:
		return backed[uint32](t), nil
	case tensor.Uint64:
		return backed[uint64](t), nil
	case tensor.Bool:
		return backed[bool](t), nil
	case tensor.Complex64:
		return backed[complex64](t), nil
	case tensor.Complex128:
		return backed[complex128](t), nil
	case tensor.String:
		return newDense(t.Shape(), t.Strings()), nil
	}
	return nil, fmt.Errorf("onnx-go has no tensors of %v", t.DType())
}

func backed[T tensor.Number](t *tensor.Tensor) gorgonia.Tensor {
	return newDense(t.Shape(), tensor.As[T](t))
}

func newDense[T any](shape []int, data []T) gorgonia.Tensor {
	if len(shape) == 0 {
		return gorgonia.New(gorgonia.FromScalar(data[0]))
	}
	return gorgonia.New(gorgonia.WithShape(shape...), gorgonia.WithBacking(data))
}
