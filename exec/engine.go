package exec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Engine is something that runs models: the executor of this package, or
// another runtime.
type Engine interface {
	Name() string    // as the command line has it
	Version() string // of a runtime outside of this program, else ""
	// Compile prepares m to be run. The model must not be changed while the
	// result is in use.
	Compile(ctx context.Context, m *graph.Model, o Options) (Executable, error)
}

// Executable is a model that an Engine has prepared. It may be shared.
type Executable interface {
	Model() *graph.Model
	// Untapped returns how many of the values of Options.Taps no run reports,
	// whatever it computes.
	Untapped() int
	// Open returns a Runner. Those of one Executable can run at the same time
	// and share weights.
	Open(ctx context.Context, o SessionOptions) (Runner, error)
	// Close gives back what the Executable holds, its Runners being closed.
	Close() error
}

// Runner runs a model, one run at a time.
type Runner interface {
	// Run computes the graph outputs from the feeds, keyed by input name;
	// inputs that are initializers may be left out. With a tap, the values
	// that wanted lists by Value.ID (nil means all that the engine can tell)
	// are reported, those of Options.Taps at least, as far as the engine sees
	// them. The outputs belong to the caller, unless SessionOptions.Transient is
	// set. Run returns within a second after ctx has ended.
	Run(ctx context.Context, feeds map[string]ops.Data, tap Tap, wanted []bool) ([]ops.Data, error)
	// Profile returns the time that each operator took in all runs, the
	// longest first; nil unless SessionOptions.Profile is set. No run may
	// follow.
	Profile() ([]OpTime, error)
	Close() error
}

// Embedded is the executor of this package as an Engine.
type Embedded struct {
	Saturate bool // in all models; see Options.Saturate
}

// Name returns "embedded".
func (Embedded) Name() string { return "embedded" }

// Version returns "".
func (Embedded) Version() string { return "" }

// Compile returns a *Program.
func (e Embedded) Compile(_ context.Context, m *graph.Model, o Options) (Executable, error) {
	o.Saturate = o.Saturate || e.Saturate
	p, err := Compile(m, o)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Untapped returns 0.
func (p *Program) Untapped() int { return 0 }

// Open returns a *Session.
func (p *Program) Open(_ context.Context, o SessionOptions) (Runner, error) {
	return p.NewSession(o), nil
}

// Close does nothing.
func (p *Program) Close() error { return nil }

// Close does nothing.
func (s *Session) Close() error { return nil }

// CheckFeeds returns an error if the feeds, keyed by name, lack one of the
// inputs that is no initializer, or hold what is no input or not of its type.
func CheckFeeds(inputs []*graph.Value, feeds map[string]ops.Data) error {
	known := 0
	for _, v := range inputs {
		d, ok := feeds[v.Name()]
		switch {
		case ok:
			known++
		case v.Const == nil:
			return graph.ValueError("run", v, errors.New("input is missing"))
		default:
			continue
		}
		if t, ok := d.(*tensor.Tensor); ok {
			if err := checkFeed(v, t); err != nil {
				return graph.ValueError("run", v, err)
			}
		}
	}
	if known == len(feeds) {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(feeds)) {
		if !slices.ContainsFunc(inputs, func(v *graph.Value) bool { return v.Name() == name }) {
			return fmt.Errorf("run: the model has no input %q", name)
		}
	}
	return nil
}
