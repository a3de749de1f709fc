// Command gemm generates the amd64 assembly of the matrix and convolution
// kernels of package kernels.
package main

import (
	. "github.com/mmcloughlin/avo/build"
)

func main() {
	ConstraintExpr("!noasm")
	masks()
	for _, v := range []isa{avx2, avx512} {
		gemmRows(v, 2)
		gemmWide(v)
		packRows(v)
		depthwise(v)
	}
	gemmRows(avx512, 1)
	qgemmRows(avx2, qPairs)
	qgemmRows(avx2, qSaturating)
	qgemmRows(avx512, qPairs)
	qgemmRows(avx512, qQuads)
	qgemmRows(avx512, qSaturating)
	blockRows(avx2Narrow, 1)
	blockRows(avx2, 2)
	blockRows(avx512, 1)
	blockRows(avx512, 2)
	for _, op := range []string{"Taps", "Max", "Mean"} {
		blockWindow(avx2, op)
		blockWindow(avx512, op)
	}
	for _, v := range []isa{avx2, avx512} {
		winogradIn(v)
		winogradOut(v)
	}
	transpose8()
	byteSum()
	widen()
	qdepthwisePairs()
	qdepthwise(avx512)
	qdepthwiseVNNI()
	Generate()
}
