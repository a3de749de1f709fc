//go:build unix

package onnxfile

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const openNonblock = unix.O_NONBLOCK

func hardLinks(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}

// mapFile maps f privately and read-only, or reads it where the file system
// does not support that.
func mapFile(f *os.File, info fs.FileInfo, path string) (*mapping, error) {
	m := &mapping{path: path, info: info}
	size := info.Size()
	if size == 0 {
		return m, nil
	}
	if size <= math.MaxInt {
		data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_PRIVATE)
		if err == nil {
			m.data = data
			m.unmap = func() error { return unix.Munmap(data) }
			return m, nil
		}
	}
	return m, m.read(f)
}

// isFault reports whether the system refused to read from a mapping.
func isFault(err error) bool { return errors.Is(err, unix.EFAULT) }

// dropPages tells the system that the whole pages of data[from:to], a mapping,
// need not stay in memory.
func dropPages(data []byte, from, to int) {
	page := unix.Getpagesize()
	from, to = (from+page-1)/page*page, to/page*page
	if from < to {
		unix.Madvise(data[from:to], unix.MADV_DONTNEED) // a failure costs memory only
	}
}
