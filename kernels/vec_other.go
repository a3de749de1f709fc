//go:build (!amd64 && !arm64) || noasm

package kernels

func unaryVec(op UnaryOp, dst, src *float32, n int) int                             { return 0 }
func binaryVec(op BinaryOp, dst, a, b *float32, n int) int                          { return 0 }
func binaryRightVec(op BinaryOp, dst, a, b *float32, n int) int                     { return 0 }
func binaryLeftVec(op BinaryOp, dst, a, b *float32, n int) int                      { return 0 }
func clipVec(dst, src *float32, n int, lo, hi float32) int                          { return 0 }
func hardSigmoidVec(dst, src *float32, n int, alpha, beta float32) int              { return 0 }
func expSumVec(dst, src *float32, n int, shift float32, sums *[16]float32) int      { return 0 }
func sumExpVec(src *float32, n int, shift float32, sums *[16]float32) int           { return 0 }
func normalizeVec(dst, src, gamma, beta *float32, n int, mean, inverse float32) int { return 0 }
func scaleByVec(dst, src, gamma *float32, n int, inverse float32) int               { return 0 }

func expLinearVec(dst, src *float32, n int, positive, negative, rate float32) int { return 0 }
