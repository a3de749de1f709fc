package kernels

import "unsafe"

// ptr returns a pointer to the first element, for assembly.
func ptr[T any](s []T) *T { return unsafe.SliceData(s) }

// cast returns ptr(s) as a pointer to U, which has the size of T.
func cast[U, T any](s []T) *U { return (*U)(unsafe.Pointer(unsafe.SliceData(s))) }

// asBytes returns s, of at least one element, as bytes.
func asBytes[T int32 | float32](s []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), 4*len(s))
}
