package onnxq

import (
	"context"
	"errors"
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/validate"
)

// saveOptions returns how models are saved.
func (o *Options) saveOptions() onnxfile.SaveOptions {
	return onnxfile.SaveOptions{External: o.External, InPlace: o.InPlace}
}

// save writes m. The file is opened again and held against m before it takes
// the place of the destination.
func (o *Options) save(ctx context.Context, m *graph.Model, path string) error {
	so := o.saveOptions()
	so.Check = func(temp string) error {
		if err := o.verifyFile(temp, m); err != nil {
			return fmt.Errorf("defect: the written model is not what was meant: %v", err)
		}
		return nil
	}
	return onnxfile.Save(ctx, m, path, so)
}

// verifyFile reports how the model in a file differs from want, or why it is
// none that ONNX Runtime would load. The limits on what may be loaded concern
// the input only.
func (o *Options) verifyFile(path string, want *graph.Model) error {
	got, err := onnxfile.Open(path, onnxfile.WithLimits(o.Limits))
	if err != nil {
		var limit *onnxfile.LimitError
		if errors.As(err, &limit) {
			return nil
		}
		return err
	}
	defer got.Close()
	if err := validate.Model(got, validate.Options{Domains: o.Domains}); err != nil {
		return err
	}
	return sameStructure(got, want)
}

// sameStructure compares opsets, inputs and outputs with their types, and the
// operators of each graph with the names that they read and define.
func sameStructure(got, want *graph.Model) error {
	if a, b := fmt.Sprint(got.IRVersion, got.Opsets), fmt.Sprint(want.IRVersion, want.Opsets); a != b {
		return fmt.Errorf("IR version and operator sets %s instead of %s", a, b)
	}
	var graphs []*graph.Graph
	for g := range got.Scopes() {
		graphs = append(graphs, g)
	}
	i := 0
	for w := range want.Scopes() {
		if i == len(graphs) {
			return fmt.Errorf("%d graphs, more were meant", i)
		}
		g := graphs[i]
		i++
		if err := sameValues("input", g.Inputs(), w.Inputs()); err != nil {
			return err
		}
		if err := sameValues("output", g.Outputs(), w.Outputs()); err != nil {
			return err
		}
		if g.NumNodes() != w.NumNodes() || len(g.Initializers()) != len(w.Initializers()) {
			return fmt.Errorf("graph %q has %d nodes and %d initializers instead of %d and %d", g.Scope(), g.NumNodes(), len(g.Initializers()), w.NumNodes(), len(w.Initializers()))
		}
		for a, b := g.First(), w.First(); a != nil && b != nil; a, b = a.Next(), b.Next() {
			if a.Op != b.Op || len(a.Attrs) != len(b.Attrs) || !sameNames(a.Inputs(), b.Inputs()) || !sameNames(a.Outputs(), b.Outputs()) {
				return fmt.Errorf("node %q (%s) in the place of %q (%s)", a.Label(), a.Op, b.Label(), b.Op)
			}
		}
		for k, v := range g.Initializers() {
			u := w.Initializers()[k]
			if v.Name() != u.Name() || (v.Const == nil) != (u.Const == nil) || v.Const != nil && v.Const.String() != u.Const.String() {
				return fmt.Errorf("initializer %q in the place of %q", v.Name(), u.Name())
			}
		}
	}
	if i < len(graphs) {
		return fmt.Errorf("%d graphs instead of %d", len(graphs), i)
	}
	return nil
}

func sameValues(what string, got, want []*graph.Value) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d %ss instead of %d", len(got), what, len(want))
	}
	for i, v := range got {
		if u := want[i]; v.Name() != u.Name() || v.Type.String() != u.Type.String() {
			return fmt.Errorf("%s %q of type %v instead of %q of type %v", what, v.Name(), v.Type, u.Name(), u.Type)
		}
	}
	return nil
}

// sameNames compares lists of values but for omitted ones at their ends.
func sameNames(got, want []*graph.Value) bool {
	for i := range max(len(got), len(want)) {
		if at(got, i) != at(want, i) {
			return false
		}
	}
	return true
}

func at(vs []*graph.Value, i int) string {
	if i < len(vs) && vs[i] != nil {
		return vs[i].Name()
	}
	return ""
}
