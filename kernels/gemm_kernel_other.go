//go:build (!amd64 && !arm64) || noasm

package kernels

func gemmKernel(_ Level, t *gemmTile, _ tileForm) { gemmTileGo(t) }

func tapKernel(_ Level, t *tapTile) { tapTileGo(t) }

func qKernel(_ Level, t *qTile, words []int32, floats []float32) { qTileGo(t, words, floats) }

func byteSum(_ Level, p []byte, flip byte) int32 { return byteSumGo(p, flip) }

func qTapKernel(_ Level, t *qTapTile, words []int32, floats []float32) {
	qTapTileGo(t, words, floats)
}
