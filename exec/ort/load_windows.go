//go:build !noort && (amd64 || arm64)

package ort

import (
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

// load loads a library and returns the address of a symbol in it. The library
// stays loaded. What it needs itself is looked for beside it first.
func load(path, symbol string) (uintptr, error) {
	flags := uintptr(windows.LOAD_LIBRARY_SEARCH_DEFAULT_DIRS)
	if filepath.IsAbs(path) {
		flags = windows.LOAD_WITH_ALTERED_SEARCH_PATH
	}
	lib, err := windows.LoadLibraryEx(path, 0, flags)
	if err != nil {
		return 0, err
	}
	return windows.GetProcAddress(lib, symbol)
}

// pathString returns a path as the runtime takes it.
func pathString(path string) (unsafe.Pointer, error) {
	p, err := windows.UTF16PtrFromString(path)
	return unsafe.Pointer(p), err
}
