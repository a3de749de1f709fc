//go:build !unix

package onnxfile

import (
	"io/fs"
	"os"
)

const openNonblock = 0

func hardLinks(fs.FileInfo) uint64 { return 1 }

func mapFile(f *os.File, info fs.FileInfo, path string) (*mapping, error) {
	m := &mapping{path: path, info: info}
	return m, m.read(f)
}

func isFault(error) bool { return false }

func dropPages([]byte, int, int) {}
