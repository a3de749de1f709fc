package exec

import (
	"errors"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// ErrSteps is wrapped by errors that say that a run would compute more nodes
// than its Session allows.
var ErrSteps = errors.New("step limit reached")

// DefaultMaxSteps is the bound on the nodes of a run, the nodes in loops
// counted each time.
const DefaultMaxSteps = 1 << 22

const (
	minRunBytes  = 256 << 20
	runBytesEach = 64
	bodySteps    = 4 // steps that running a nested graph counts as besides its nodes
)

func (s *Session) maxSteps() int64 {
	if s.budget.MaxSteps > 0 {
		return s.budget.MaxSteps
	}
	return DefaultMaxSteps
}

// limitFor returns the bound on the memory of a run with the given inputs.
func (s *Session) limitFor(in []ops.Data) int64 {
	if s.budget.MaxBytes > 0 {
		return s.budget.MaxBytes
	}
	size := s.prog.constBytes
	for _, d := range in {
		if t, ok := d.(*tensor.Tensor); ok {
			size += int64(len(t.Bytes()))
		}
	}
	limit := int64(math.MaxInt64)
	if size < limit/runBytesEach {
		limit = max(minRunBytes, runBytesEach*size)
	}
	if c := s.budget.Ceiling; c > 0 {
		limit = min(limit, c)
	}
	return limit
}

// constBytes returns what the constants of m take.
func constBytes(m *graph.Model) int64 {
	size := int64(0)
	for g := range m.Scopes() {
		for _, v := range g.Initializers() {
			if v.Const != nil {
				size += int64(len(v.Const.Bytes()))
			}
		}
		for n := range g.Nodes() {
			if t := ops.ConstantValue(n); t != nil {
				size += int64(len(t.Bytes()))
			}
		}
	}
	return size
}
