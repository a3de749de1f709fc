//go:build (!amd64 && !arm64) || noasm

package kernels

func gemmKernel(_ Level, t *gemmTile, _ tileForm) { gemmTileGo(t) }

func tapKernel(_ Level, t *tapTile) { tapTileGo(t) }
