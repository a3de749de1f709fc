package onnxq

import (
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
)

// Lint predicts which groups of DequantizeLinear, operator and QuantizeLinear
// in m, a quantized model from any tool, the target's runtime replaces by
// integer kernels, and why not the others. Nothing is run.
func Lint(m *graph.Model, o Options) (*qdq.LintReport, error) {
	return qdq.Lint(m, o.target())
}
