//go:build !linux

package onnxq

// peakRSS is not known on this system.
func peakRSS() int64 { return 0 }

// memory is not known either.
func memory() int64 { return unknownMemory }
