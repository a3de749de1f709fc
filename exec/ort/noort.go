//go:build noort || !(linux || darwin || windows) || !(amd64 || arm64)

package ort

import "github.com/onnxq/onnxq/exec"

// Open returns ErrLeftOut.
func Open(Options) (exec.Engine, error) { return nil, ErrLeftOut }
