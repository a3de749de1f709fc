//go:build !amd64 || noasm

package kernels

func pack4Vec(dst, src *uint8, n int, offset uint8) int { return 0 }

func pack2Vec(dst, src *uint8, n int, offset uint8) int { return 0 }

func pack8Vec(dst, src *uint8, n int, offset uint8) int { return 0 }
