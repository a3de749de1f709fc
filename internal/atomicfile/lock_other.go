//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package atomicfile

import "os"

func lock(*os.File) bool { return true }

func removeIfStale(string) {}

func syncDir(string) error { return nil }
