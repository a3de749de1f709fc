//go:build !race && !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

const detector = false
