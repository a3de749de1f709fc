//go:build !noort && (linux || darwin) && (amd64 || arm64)

package ort

import (
	"unsafe"

	"github.com/ebitengine/purego"
)

// load loads a library and returns the address of a symbol in it. The library
// stays loaded.
func load(path, symbol string) (uintptr, error) {
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return 0, err
	}
	return purego.Dlsym(lib, symbol)
}

// pathString returns a path as the runtime takes it.
func pathString(path string) (unsafe.Pointer, error) { return unsafe.Pointer(cString(path)), nil }
