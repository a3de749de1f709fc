//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// A write beyond RLIMIT_FSIZE is to be an error, not the end of the process.
func init() { signal.Notify(make(chan os.Signal, 1), syscall.SIGXFSZ) }
