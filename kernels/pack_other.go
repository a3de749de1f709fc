//go:build !amd64 || noasm

package kernels

func packVec(bits int, dst, src *uint8, n int, offset uint8) int { return 0 }
