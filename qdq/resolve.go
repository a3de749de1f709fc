package qdq

import (
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// Wants returns, by value ID, how the values of m have to be observed for the
// plan: every activation, and along its channels where it is multiplied with a
// weight; and what nodes in float16 read and give. What is multiplied with a weight
// that is decoded when the model is loaded has Channels without Observe.
func (p *Plan) Wants(m *graph.Model) ([]quant.Watch, error) {
	b, err := p.bind(m)
	if err != nil {
		return nil, err
	}
	want := make([]quant.Watch, m.NumValues())
	for i, v := range b.values {
		if p.Tensors[i].Kind != Activation {
			continue
		}
		want[v.ID].Observe = true
	}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if n.NumInputs() < 2 || n.Input(0) == nil || n.Input(1) == nil || !n.Input(1).IsConst() {
				continue
			}
			x, e := &want[n.Input(0).ID], b.tensors[n.Input(1).ID]
			if !(x.Observe && b.nodes[n.ID].Quantized) && (e == nil || !e.AtLoad || e.Form != "") {
				continue
			}
			switch n.Op.Type {
			case "Conv":
				x.Channels, x.Axis = true, 1
			case "MatMul", "Gemm":
				x.Channels, x.Axis = true, -1
			}
		}
	}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if b.nodes[n.ID].How != Half {
				continue
			}
			for _, v := range slices.Concat(n.Inputs(), n.Outputs()) {
				if v != nil && !v.IsConst() && v.Type.Elem == tensor.Float32 {
					want[v.ID].Observe = true
				}
			}
		}
	}
	return want, nil
}

// Ranges gives the range of a value, or why there is none.
type Ranges func(v *graph.Value, e *TensorPlan) (r quant.Range, why string)

// Resolve returns the parameters of each planned tensor, in the order of
// p.Tensors, for m, the model that the plan was made from. Biases get theirs
// from Rewrite. Activations without a usable range are returned by value ID
// with the reason; if there are any, there are no parameters. Weights are looked
// at on the given number of threads (0: one per processor).
func (p *Plan) Resolve(m *graph.Model, ranges Ranges, threads int) ([]quant.Params, map[int]string, error) {
	b, err := p.bind(m)
	if err != nil {
		return nil, nil, err
	}
	at := map[nameKey]int{}
	for i := range p.Tensors {
		at[nameKey{p.Tensors[i].Scope, p.Tensors[i].Tensor}] = i
	}
	root := make([]int, len(p.Tensors))
	group := make([]quant.Range, len(p.Tensors))
	fixed := make([]bool, len(p.Tensors))
	unusable := map[int]string{}
	for i := range p.Tensors {
		e := &p.Tensors[i]
		root[i] = i
		for r, steps := e, 0; r.SameAs != ""; steps++ {
			k, ok := at[nameKey{r.Scope, r.SameAs}]
			if !ok || steps > len(p.Tensors) {
				return nil, nil, &graph.Error{Stage: "plan", Scope: e.Scope, Value: e.Tensor, Err: fmt.Errorf("same_as names %q, which the plan does not list or which leads in a circle", r.SameAs)}
			}
			root[i], r = k, &p.Tensors[k]
		}
		if e.Kind != Activation {
			continue
		}
		r := quant.Range{}
		if e.Range != nil {
			r = quant.Range{Min: e.Range[0], Max: e.Range[1]}
			// A range beyond the bounds of an absorbed clamp would not replace it.
			if n := b.values[i].DefNode(); n != nil && b.nodes[n.ID].How == Absorbed {
				lo, hi, _ := ops.ClampBounds(n)
				r = quant.Range{Min: min(max(r.Min, lo), hi), Max: max(min(r.Max, hi), lo)}
			}
		} else {
			var why string
			if r, why = ranges(b.values[i], e); why != "" {
				unusable[b.values[i].ID] = why
				continue
			}
		}
		g := &group[root[i]]
		switch {
		case root[i] == i && e.Range != nil:
			*g, fixed[i] = r, true
		case !fixed[root[i]]:
			g.Min, g.Max = min(g.Min, r.Min), max(g.Max, r.Max)
		}
	}
	if len(unusable) > 0 {
		return nil, unusable, nil
	}
	shared := make([]bool, len(p.Tensors)) // groups of more than one tensor, or with a range from outside
	for i := range p.Tensors {
		if root[i] != i || p.Tensors[i].Range != nil {
			shared[root[i]] = true
		}
	}
	params := make([]quant.Params, len(p.Tensors))
	errs := make([]error, len(p.Tensors))
	par.Each(threads, len(p.Tensors), func(i int) {
		e := &p.Tensors[i]
		if e.Kind == Bias || e.Type == Float16 && e.Form == "" {
			return
		}
		if e.Form != "" {
			errs[i] = finite(b.values[i])
			return
		}
		s, err := e.Scheme()
		if err == nil {
			if e.Kind == Weight {
				params[i], err = s.Weights(b.values[i].Const)
			} else {
				params[i], err = s.Tensor(group[root[i]])
				if !shared[root[i]] && castCodes(b.values[i], params[i].Type.DType) {
					params[i].Scale[0], params[i].Zero[0] = 1, 0
				}
			}
		}
		errs[i] = err
	})
	for i, err := range errs {
		if err != nil {
			e := &p.Tensors[i]
			return nil, nil, &graph.Error{Stage: "resolve", Scope: e.Scope, Value: e.Tensor, Err: err}
		}
	}
	return params, nil, nil
}

// castCodes reports whether v is a Cast of values that are codes of type t with
// scale 1 and zero point 0 already: bools, or integers of that very type.
func castCodes(v *graph.Value, t tensor.DType) bool {
	n := v.DefNode()
	if n == nil || n.Op != (graph.OpKey{Type: "Cast"}) || n.Input(0) == nil || t != tensor.Uint8 {
		return false
	}
	from := n.Input(0).Type
	return from.IsTensor() && (from.Elem == tensor.Bool || from.Elem == tensor.Uint8)
}

// finite returns an error if the constant v holds NaN or Inf.
func finite(v *graph.Value) error {
	return quant.Lines{T: v.Const, Outer: 1, K: v.Const.Len(), Inner: 1}.Finite(nil)
}
