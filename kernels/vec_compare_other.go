//go:build !amd64 || noasm

package kernels

func compareF32Vec(op CompareOp, dst *uint8, a, b *float32, n int) int { return 0 }

func compareF32RightVec(op CompareOp, dst *uint8, a, b *float32, n int) int { return 0 }

func compareI32Vec(op CompareOp, dst *uint8, a, b *int32, n int) int { return 0 }

func compareI32RightVec(op CompareOp, dst *uint8, a, b *int32, n int) int { return 0 }
