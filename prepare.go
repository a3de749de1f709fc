package onnxq

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/validate"
)

// Load opens a model file. The model aliases the file, so Close it when done.
// A model that ONNX Runtime would not load, as far as package validate can
// tell, is a *onnxfile.ContentError.
func Load(path string, opts ...onnxfile.Option) (*graph.Model, error) {
	return open(path, validate.Options{}, opts...)
}

// Load opens a model file under the limits and with the custom domains of o.
func (o *Options) Load(path string) (*graph.Model, error) {
	return open(path, validate.Options{Domains: o.Domains}, onnxfile.WithLimits(o.Limits))
}

func open(path string, v validate.Options, opts ...onnxfile.Option) (*graph.Model, error) {
	m, err := onnxfile.Open(path, opts...)
	if err != nil {
		return nil, err
	}
	if err := onnxfile.Guard(func() error { return validate.Model(m, v) }); err != nil {
		m.Close()
		if errors.Is(err, onnxfile.ErrChanged) {
			return nil, err
		}
		return nil, &onnxfile.ContentError{Path: path, Err: err}
	}
	if _, err := passes.ReplaceWithdrawn(m); err != nil {
		m.Close()
		return nil, &onnxfile.ContentError{Path: path, Err: err}
	}
	return m, nil
}

// tieWeights names passes.TieWeights in a list of changes.
const tieWeights = "tie-weights"

// Prepare returns a copy of m in the form that quantization wants: at least
// the operator set that the target's quantized form needs, constants folded,
// normalization folded into weights. It computes the same.
func Prepare(ctx context.Context, m *graph.Model, o Options) (*graph.Model, []passes.Change, error) {
	o.settle()
	need := o.Opset
	if need == 0 {
		need, _ = o.lowestOpset()
	}
	if need > o.target().MaxOpset {
		return nil, nil, optionErrorf("%s runs quantized models up to opset %d, not %d", o.target().Name, o.target().MaxOpset, need)
	}
	var p *graph.Model
	var changes []passes.Change
	prepare := func(opset int) (err error) {
		p = m.Clone()
		changes, err = passes.Prepare(ctx, p, passes.Options{MinOpset: opset, Widen: o.Mode != Float16})
		return err
	}
	if err := prepare(need); err != nil {
		return nil, nil, err
	}
	if o.Opset == 0 && o.Mode == Weights {
		more, err := o.blocksOpset(p)
		if err != nil {
			return nil, nil, err
		}
		if more > p.Opset(graph.OnnxDomain) {
			if err := prepare(more); err != nil {
				return nil, nil, err
			}
		}
	}
	if got := p.Opset(graph.OnnxDomain); o.Opset > 0 && got > o.Opset {
		return nil, nil, optionErrorf("the model is of opset %d and is not lowered to %d", got, o.Opset)
	}
	if o.Mode == Weights || o.Mode == Float16 {
		changes = append(changes, passes.Change{Pass: tieWeights, Count: passes.TieWeights(p)})
	}
	return p, changes, o.checkRanges(p)
}

// lowestOpset returns the operator set that the quantized form needs at least,
// and what needs it.
func (o *Options) lowestOpset() (version int, what string) {
	t := o.target()
	wide := ""
	switch {
	case o.Activations == "u16" || o.Activations == "i16":
		wide = "16 bits in activations"
	case o.Mode != Weights && o.Mode != Float16 && o.narrow():
		wide = "4 bits in weights"
	}
	switch {
	case o.Mode == Float16 && o.Weights == qdq.BFloat16:
		return min(22, t.MaxOpset), "bfloat16"
	case wide != "" && !t.MSDomain:
		return t.WideOpset, wide
	case o.real():
		return max(t.PerChannelOpset, qdq.TypeOpset(o.Activations)), "float8 in activations"
	case o.PerTensor && o.Mode == Dynamic:
		return 11, "DynamicQuantizeLinear"
	case o.Mode == Weights:
		return o.weightsOpset()
	case o.PerTensor:
		return t.PerTensorOpset, "quantization"
	}
	return t.PerChannelOpset, "a scale for each channel"
}

// checkRanges returns an error if a range is given for a tensor that a
// prepared model does not have.
func (o *Options) checkRanges(m *graph.Model) error {
	left := maps.Clone(o.Ranges)
	for g := range m.Scopes() {
		for _, v := range g.Inputs() {
			delete(left, v.Name())
		}
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				if v != nil {
					delete(left, v.Name())
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		return optionErrorf("a range is given for tensor %q, which is not computed once the model is prepared; onnxq prepare shows what is", name)
	}
	return nil
}

// MakePlan decides what to quantize in a prepared model.
func MakePlan(m *graph.Model, o Options) (*qdq.Plan, error) {
	o.settle()
	if err := o.check(); err != nil {
		return nil, err
	}
	return qdq.Annotate(m, o.target(), o.qdq())
}
