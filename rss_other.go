//go:build !linux

package onnxq

// peakRSS is not known on this system.
func peakRSS() int64 { return 0 }
