//go:build !linux

package par

import "runtime"

func yield() { runtime.Gosched() }
