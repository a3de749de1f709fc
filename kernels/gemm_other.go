//go:build !amd64 || noasm

package kernels

func widen(_ Level, dst, src []byte, flip byte) { widenGo(dst, src, flip) }

func blockKernel(_ Level, t *blockTile, width int) { blockTileGo(t, width) }

func windowKernel(_ Level, op windowOp, t *blockWindows) { blockWindowsGo(t, op) }

func winogradKernel(_ Level, out bool, t *winogradTile) {
	if out {
		winogradOutGo(t)
	} else {
		winogradInGo(t)
	}
}

func transpose8(dst []float32, dstStep, dstNext int, src []float32, srcStep, srcNext, n int) {
	for s := range n {
		for i := range 8 {
			for j := range 8 {
				dst[s*dstNext+j*dstStep+i] = src[s*srcNext+i*srcStep+j]
			}
		}
	}
}

func packRows(_ Level, dst, src []float32, ld, k, n, nr int) { packRowsGo(dst, src, ld, k, n, nr) }
