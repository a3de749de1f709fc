//go:build !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// elementTypes is the enumeration ONNXTensorElementDataType: the numbers of
// TensorProto.DataType up to 23, others behind it.
var elementTypes = func() (list [27]tensor.DType) {
	for i := range list {
		list[i] = tensor.DType(i)
	}
	list[24], list[25], list[26] = tensor.Uint2, tensor.Int2, tensor.Float8E8M0
	return list
}()

func elementType(d tensor.DType) (uintptr, bool) {
	for i, e := range elementTypes {
		if e == d && d != tensor.Undefined {
			return uintptr(i), true
		}
	}
	return 0, false
}

// zero stands in for memory that is empty.
var zero [1]int64

// newValue makes the runtime's form of d. A tensor's memory is not copied where
// it is aligned for its elements: pin keeps it in its place.
func (a *api) newValue(d ops.Data, pin *runtime.Pinner) (handle, error) {
	switch d := d.(type) {
	case *tensor.Tensor:
		return a.newTensor(d, pin)
	case ops.Sequence:
		if len(d) == 0 {
			return 0, errors.New("an empty sequence cannot be fed to ONNX Runtime")
		}
		items := make([]handle, 0, len(d))
		defer func() { a.release(items) }()
		for _, x := range d {
			v, err := a.newValue(x, pin)
			if err != nil {
				return 0, err
			}
			items = append(items, v)
		}
		var out handle
		err := a.do(createValue, uintptr(unsafe.Pointer(&items[0])), uintptr(len(items)), typeSequence, uintptr(unsafe.Pointer(&out)))
		return out, err
	case *ops.Optional:
		if d.Elem == nil {
			return 0, errors.New("an empty optional cannot be fed to ONNX Runtime")
		}
		return a.newValue(d.Elem, pin)
	}
	return 0, fmt.Errorf("a value of type %T cannot be fed to ONNX Runtime", d)
}

func (a *api) newTensor(t *tensor.Tensor, pin *runtime.Pinner) (handle, error) {
	elem, ok := elementType(t.DType())
	if !ok {
		return 0, fmt.Errorf("ONNX Runtime has no tensors of %v", t.DType())
	}
	dims := make([]int64, t.Rank(), t.Rank()+1)
	for i, d := range t.Shape() {
		dims[i] = int64(d)
	}
	shape := unsafe.Pointer(unsafe.SliceData(dims))
	var out handle
	if t.DType() == tensor.String {
		if err := a.do(createTensorAsOrtValue, a.allocator, uintptr(shape), uintptr(len(dims)), elem, uintptr(unsafe.Pointer(&out))); err != nil {
			return 0, err
		}
		for i, s := range t.Strings() {
			var to handle
			if err := a.do(getResizedStringElementBuffer, out, uintptr(i), uintptr(len(s)), uintptr(unsafe.Pointer(&to))); err != nil {
				a.call(releaseValue, out)
				return 0, err
			}
			if len(s) > 0 {
				copy(unsafe.Slice((*byte)(pointer(to)), len(s)), s)
			}
		}
		return out, nil
	}
	b := t.Bytes()
	data := unsafe.Pointer(unsafe.SliceData(b))
	if len(b) == 0 {
		data = unsafe.Pointer(&zero)
	} else if align := uintptr(max(1, t.DType().Bits()/8)); uintptr(data)%align != 0 {
		b = t.Clone().Bytes()
		data = unsafe.Pointer(unsafe.SliceData(b))
	}
	pin.Pin(data)
	err := a.do(createTensorWithDataAsOrtValue, a.memory, uintptr(data), uintptr(len(b)), uintptr(shape), uintptr(len(dims)), elem, uintptr(unsafe.Pointer(&out)))
	return out, err
}

// release gives values back; 0 is none.
func (a *api) release(values []handle) {
	for _, v := range values {
		if v != 0 {
			a.call(releaseValue, v)
		}
	}
}

// data returns a copy of a value of the runtime that has the given type.
func (a *api) data(v handle, t graph.Type) (ops.Data, error) {
	if t.Kind == graph.KindOptional {
		var has int32
		if v != 0 {
			if err := a.do(hasValue, v, uintptr(unsafe.Pointer(&has))); err != nil {
				return nil, err
			}
		}
		if has == 0 {
			return &ops.Optional{}, nil
		}
		inner := graph.Type{}
		if t.Inner != nil {
			inner = *t.Inner
		}
		d, err := a.data(v, inner)
		if err != nil {
			return nil, err
		}
		return &ops.Optional{Elem: d}, nil
	}
	var kind int32
	if err := a.do(getValueType, v, uintptr(unsafe.Pointer(&kind))); err != nil {
		return nil, err
	}
	switch kind {
	case typeTensor:
		d, err := a.view(v)
		if err != nil {
			return nil, err
		}
		return d.Clone(), nil
	case typeSequence:
		var n uintptr
		if err := a.do(getValueCount, v, uintptr(unsafe.Pointer(&n))); err != nil {
			return nil, err
		}
		out := make(ops.Sequence, n)
		for i := range out {
			var item handle
			if err := a.do(getValue, v, uintptr(i), a.allocator, uintptr(unsafe.Pointer(&item))); err != nil {
				return nil, err
			}
			d, err := a.data(item, graph.Type{})
			a.call(releaseValue, item)
			if err != nil {
				return nil, err
			}
			out[i] = d
		}
		return out, nil
	case typeMap:
		return nil, errors.New("a map cannot be taken out of ONNX Runtime; for a classifier of scikit-learn, convert it with zipmap=False")
	case typeSparse:
		return nil, errors.New("a sparse tensor cannot be taken out of ONNX Runtime")
	}
	return nil, fmt.Errorf("a value of kind %d (ONNXType) cannot be taken out of ONNX Runtime", kind)
}

// view returns a tensor over the memory of a value, which has to outlive it.
// Strings are copied.
func (a *api) view(v handle) (*tensor.Tensor, error) {
	var info handle
	if err := a.do(getTensorTypeAndShape, v, uintptr(unsafe.Pointer(&info))); err != nil {
		return nil, err
	}
	defer a.call(releaseTensorTypeAndShapeInfo, info)
	var elem int32
	var rank uintptr
	if err := a.do(getTensorElementType, info, uintptr(unsafe.Pointer(&elem))); err != nil {
		return nil, err
	}
	if err := a.do(getDimensionsCount, info, uintptr(unsafe.Pointer(&rank))); err != nil {
		return nil, err
	}
	dims := make([]int64, rank, rank+1)
	if err := a.do(getDimensions, info, uintptr(unsafe.Pointer(unsafe.SliceData(dims))), rank); err != nil {
		return nil, err
	}
	shape := make([]int, rank)
	for i, d := range dims {
		shape[i] = int(d)
	}
	n, ok := tensor.NumElements(shape)
	if !ok || elem <= 0 || int(elem) >= len(elementTypes) {
		return nil, fmt.Errorf("ONNX Runtime gave a tensor of type %d and shape %v", elem, dims)
	}
	dtype := elementTypes[elem]
	if dtype == tensor.String {
		s, err := a.strings(v, n)
		if err != nil {
			return nil, err
		}
		return tensor.FromStrings(shape, s), nil
	}
	size := dtype.Bytes(n)
	if size == 0 {
		return tensor.FromBytes(dtype, shape, nil)
	}
	var data handle
	if err := a.do(getTensorMutableData, v, uintptr(unsafe.Pointer(&data))); err != nil {
		return nil, err
	}
	return tensor.FromBytes(dtype, shape, unsafe.Slice((*byte)(pointer(data)), size))
}

// strings returns the n elements of a tensor of strings.
func (a *api) strings(v handle, n int) ([]string, error) {
	if n == 0 {
		return nil, nil
	}
	var size uintptr
	if err := a.do(getStringTensorDataLength, v, uintptr(unsafe.Pointer(&size))); err != nil {
		return nil, err
	}
	if size > math.MaxInt {
		return nil, fmt.Errorf("ONNX Runtime gave %d bytes of strings", size)
	}
	text, offsets := make([]byte, size, size+1), make([]uintptr, n, n+1)
	err := a.do(getStringTensorContent, v, uintptr(unsafe.Pointer(unsafe.SliceData(text))), size, uintptr(unsafe.Pointer(unsafe.SliceData(offsets))), uintptr(n))
	if err != nil {
		return nil, err
	}
	out := make([]string, n)
	for i, from := range offsets {
		to := size
		if i+1 < n {
			to = offsets[i+1]
		}
		out[i] = string(text[from:to])
	}
	return out, nil
}
