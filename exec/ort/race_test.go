//go:build race && !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

// detector is the race detector, which keeps memory for every goroutine.
const detector = true
