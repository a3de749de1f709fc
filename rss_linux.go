package onnxq

import (
	"bytes"
	"os"
	"strconv"
)

// memory returns the bytes of memory that this process can hope for: those of
// the machine, or of its control group.
func memory() int64 {
	total := int64(unknownMemory)
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if n := kilobytes(b, "MemTotal:"); n > 0 {
			total = n
		}
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64); err == nil && n > 0 {
			total = min(total, n)
		}
	}
	return total
}

// peakRSS returns the high-water mark of the resident set in bytes, 0 if it is
// not known.
func peakRSS() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	return kilobytes(b, "VmHWM:")
}

// kilobytes returns, in bytes, what a line of b that begins with key says in
// units of 1024 bytes; 0 if there is none.
func kilobytes(b []byte, key string) int64 {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			if f := bytes.Fields(rest); len(f) > 0 {
				kb, _ := strconv.ParseInt(string(f[0]), 10, 64)
				return kb << 10
			}
		}
	}
	return 0
}
