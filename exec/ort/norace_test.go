//go:build !race

package ort

const detector = false
