package kernels

import (
	"syscall"
	"testing"
	"unsafe"
)

// guarded returns a slice of n elements that ends where the next page cannot
// be touched, so that any access past the end is a fault.
func guarded[T any](t testing.TB, n int) []T {
	t.Helper()
	var z T
	page := syscall.Getpagesize()
	size := n * int(unsafe.Sizeof(z))
	body := (size + page - 1) / page * page
	mem, err := syscall.Mmap(-1, 0, body+page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mprotect(mem[body:], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Munmap(mem) })
	if n == 0 {
		return []T{}
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&mem[body-size])), n)
}
