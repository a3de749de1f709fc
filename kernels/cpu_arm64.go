//go:build !noasm

package kernels

import "golang.org/x/sys/cpu"

func detect() Level {
	if cpu.ARM64.HasASIMDDP {
		return NEONDot
	}
	return NEON
}
