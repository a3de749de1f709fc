//go:build noonnxgo

package main

import (
	"io"

	"github.com/onnxq/onnxq/graph"
)

type crossCheckReport struct{}

func checkCrossCheck() error {
	return usagef("--cross-check: this onnxq was built without onnx-go (build tag noonnxgo)")
}

func crossCheck(string, *graph.Model) (*crossCheckReport, error) { return nil, checkCrossCheck() }

func printCrossCheck(io.Writer, *crossCheckReport) error { return nil }

func crossCheckError(string, *crossCheckReport) error { return nil }
