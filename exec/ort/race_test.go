//go:build race

package ort

// detector is the race detector, which keeps memory for every goroutine.
const detector = true
