//go:build (!amd64 && !arm64) || noasm

package kernels

func detect() Level { return Generic }
