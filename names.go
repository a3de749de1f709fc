package onnxq

import (
	"context"
	"slices"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
)

// renamed returns m, or a copy without those names of dimensions that the first
// sample of specs contradicts, if that runs: exporters give one name to dimensions
// of several sizes, which runtimes do not mind. What the names say must not be
// built upon then.
func (o *Options) renamed(ctx context.Context, m *graph.Model, specs []string) *graph.Model {
	in := Inputs(m)
	if !repeated(in) || len(specs) == 0 || slices.Contains(specs, "-") { // which cannot be read twice
		return m
	}
	named := make([][]string, len(in))
	for i := range in {
		named[i], in[i].Symbols = in[i].Symbols, nil
	}
	so := *o
	so.Source.SkipBad = 0
	src, err := so.source(ctx, specs, in)
	if err != nil {
		return m
	}
	defer src.Close()
	feed, err := src.Load(ctx, 0)
	if err != nil {
		return m
	}
	sizes, wrong := map[string]int{}, map[string]bool{}
	for i := range in {
		t := feed[in[i].Name]
		if t == nil {
			continue
		}
		for k, name := range named[i] {
			if name == "" || in[i].Shape[k] >= 0 {
				continue
			}
			if size, ok := sizes[name]; ok && size != t.Shape()[k] {
				wrong[name] = true
			}
			sizes[name] = t.Shape()[k]
		}
	}
	if len(wrong) == 0 {
		return m
	}
	out := m.Clone()
	forget(out, wrong)
	r, err := newRunner(ctx, out, *o)
	if err != nil {
		return m
	}
	defer r.close()
	values := map[string]ops.Data{}
	for name, t := range feed {
		values[name] = t
	}
	if _, err := r.run(ctx, src.Sample(0), values); err != nil {
		return m // it is the sample that is wrong
	}
	return out
}

// repeated reports whether a name stands for several free dimensions.
func repeated(in []calibration.Input) bool {
	seen := map[string]bool{}
	for _, i := range in {
		for k, name := range i.Symbols {
			if name == "" || i.Shape[k] >= 0 {
				continue
			}
			if seen[name] {
				return true
			}
			seen[name] = true
		}
	}
	return false
}

// forget makes dimensions of the given names nameless.
func forget(m *graph.Model, names map[string]bool) {
	clear := func(v *graph.Value) {
		if v == nil || !slices.ContainsFunc(v.Type.Shape, func(d graph.Dim) bool { return names[d.Sym] }) {
			return
		}
		v.Type.Shape = slices.Clone(v.Type.Shape)
		for i := range v.Type.Shape {
			if d := &v.Type.Shape[i]; names[d.Sym] {
				d.Sym = ""
			}
		}
	}
	for g := range m.Scopes() {
		for _, v := range g.Inputs() {
			clear(v)
		}
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				clear(v)
			}
		}
	}
}
