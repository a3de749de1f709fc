//go:build !amd64 || noasm

package kernels

func canBin() bool { return false }

func binsVec([]uint64, [][8]uint16, []float32, float32, int) int { return 0 }
func foldBinsVec(*uint64, *[8]uint16, int) int                   { return 0 }

func blockExtremaVec(low, high *[BlockSize]float32, src []float32) (done, finite bool) {
	return false, false
}
