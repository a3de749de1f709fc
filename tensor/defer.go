package tensor

import (
	"fmt"
	"sync"
	"unsafe"
	"weak"
)

// deferred makes the bytes of a tensor when they are asked for. It keeps them as
// long as somebody else does, so a model whose constants are deferred can be
// written one constant after the other.
type deferred struct {
	mu   sync.Mutex
	make func() []byte
	size int
	made weak.Pointer[byte]
}

func (d *deferred) bytes() []byte {
	if d.size == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.made.Value(); p != nil {
		return unsafe.Slice(p, d.size)
	}
	b := d.make()
	if len(b) != d.size {
		panic(fmt.Sprintf("tensor: %d bytes made for a deferred tensor of %d", len(b), d.size))
	}
	d.made = weak.Make(unsafe.SliceData(b))
	return b
}

// Deferred returns a tensor whose elements f makes, in the form of Bytes, each
// time that they are asked for and nobody holds them. f gives the same bytes
// every time, starting on an address that is aligned for the element type, and
// may be called from several goroutines, one at a time. It panics if the shape
// or element type is invalid, or if f returns another number of bytes than they
// ask for.
func Deferred(dtype DType, shape []int, f func() []byte) *Tensor {
	n, ok := NumElements(shape)
	if !ok || !dtype.Valid() || dtype == String {
		panic(fmt.Sprintf("tensor: Deferred(%v, %v)", dtype, shape))
	}
	return &Tensor{dtype: dtype, shape: append([]int{}, shape...), later: &deferred{make: f, size: dtype.Bytes(n)}}
}
