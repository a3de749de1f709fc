//go:build unix

package fuzztest

import (
	"runtime"
	"syscall"
	"time"
)

func usage() used {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return used{}
	}
	memory := int64(r.Maxrss)
	if runtime.GOOS != "darwin" {
		memory <<= 10 // others count in KiB
	}
	return used{time.Duration(r.Utime.Nano() + r.Stime.Nano()), memory}
}
