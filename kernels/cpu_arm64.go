//go:build !noasm

package kernels

func detect() Level { return NEON }
