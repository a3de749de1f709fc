// Package passes brings a model into the form that quantization wants, and
// cleans up after it, without changing what the model computes.
//
// The passes stand in one list; each says what has to have run before it. A
// pass edits the model in place and returns what it did.
package passes

import (
	"context"
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
)

// Pass is one rewriting of a model.
type Pass struct {
	Name string
	// Does says in one sentence what the pass does and under which conditions
	// the outputs stay equal.
	Does string
	// After lists passes that have to stand before this one. Passes that are
	// ordered neither by it nor through others are independent: whichever comes
	// first, the model is the same to the byte.
	After []string
	Run   func(*State) error

	untyped bool // runs before inference
	rounds  bool // the result is computed in another way, which rounds differently
}

// State is a model on its way through the passes.
type State struct {
	Ctx     context.Context
	Model   *graph.Model
	Options Options
	// Types holds what inference knows; valid until a pass edits the model.
	Types *ops.Types
	// Changes counts edits of the running pass.
	Changes int
}

// Options of Prepare.
type Options struct {
	// MinOpset is the operator set of the default domain that is needed; a
	// lower one is lifted to it. 0 leaves the model where it is.
	MinOpset int
	// FoldBudget bounds the bytes that a folded constant may take beyond the
	// constants it replaces; 0 means DefaultFoldBudget.
	FoldBudget int64
	// SameRounding leaves out passes that have a function computed by another
	// formula, which serves a model that is to be quantized, but not one that is
	// to be run as it is.
	SameRounding bool
	// Widen makes models in float16 compute in float32, as quantization wants.
	Widen bool
	// Check runs graph.Verify after every pass.
	Check bool
}

// DefaultFoldBudget is the number of bytes by which folding one node may grow
// a model.
const DefaultFoldBudget = 4096

// Change is what one pass did.
type Change struct {
	Pass  string `json:"pass"`
	Count int    `json:"count"`
}

// Passes that callers ask for, or tell of, by name: that of Options.Widen, and the
// one that takes initializers out of the inputs.
const (
	WidenHalves = "widen-halves"
	SealWeights = "seal-weights"
)

var prepare = []Pass{
	{Name: "free-dimensions", Run: freeDimensions, untyped: true,
		Does: "Takes declared sizes of 0 or less for unknown."},
	{Name: "raise-ir", untyped: true, Run: func(s *State) error { s.raiseIR(4); return nil },
		Does: "Raises the IR version to 4, from which on initializers need not be inputs; those that had to be are inputs no more."},
	{Name: SealWeights, untyped: true, Run: sealWeights, After: []string{"free-dimensions", "raise-ir"},
		Does: "Takes initializers out of the inputs of a graph that lists most of its weights there, as some exporters do without meaning that a caller gives others."},
	{Name: "inline-functions", Run: inlineFunctions, After: []string{SealWeights},
		Does: "Puts the bodies of local functions in the place of their calls and drops the functions."},
	{Name: "lift-constants", Run: liftConstants, After: []string{"inline-functions"},
		Does: "Turns Constant nodes into initializers of the same graph."},
	{Name: "hoist-invariants", Run: hoistInvariants, After: []string{"lift-constants"},
		Does: "Lets the body of a Loop read what it only hands on from step to step from around the Loop, so that weights that an exporter passed in are constants."},
	{Name: WidenHalves, Run: widenHalves, After: []string{"hoist-invariants"},
		Does: "Makes what is computed in float16 float32, between casts of inputs and outputs, where that is asked for; models that hold quantization or operators of other domains stay as they are."},
	{Name: "fold-constants", Run: foldConstants, After: []string{"widen-halves"},
		Does: "Computes deterministic nodes whose inputs are constant, or whose integer result follows from shapes, unless the result would outgrow the budget. DequantizeLinear is left alone."},
	{Name: "choose-branches", Run: chooseBranches, After: []string{"fold-constants"},
		Does: "Puts the branch that an If with a constant condition takes in its place."},
	{Name: "lift-opset", Run: liftOpset, After: []string{"choose-branches"},
		Does: "Raises the operator set of the default domain as far as needed, adapting every operator whose definition changed on the way."},
	{Name: "simplify", Run: simplify, After: []string{"lift-opset"},
		Does: "Merges Transpose with Transpose, Reshape, Squeeze and Unsqueeze with each other, Relu, Clip, Min and Max with constant bounds into one; removes x + 0, x - 0, x * 1 and x / 1 and a Where that selects one input everywhere; gives Expand a constant shape where its output only repeats axes of known size."},
	{Name: "simplify-reshapes", Run: simplifyReshapes, After: []string{"simplify"},
		Does: "Gives Reshape a constant shape where at most one dimension, or dimensions copied from its input, are unknown."},
	{Name: "remove-identities", Run: removeIdentities, After: []string{"simplify-reshapes"},
		Does: "Removes Identity, inference-mode Dropout, and Pad, Cast, Transpose, Reshape, Slice, Expand and Concat that change nothing."},
	{Name: "fuse-matmul-add", Run: fuseMatMulAdd, After: []string{"remove-identities"},
		Does: "Makes MatMul of a matrix, or of more axes of known size, with a constant matrix, and the constant row that alone is added to it, one Gemm, as the runtime would."},
	{Name: "normalize-gemm", Run: normalizeGemm, After: []string{"fuse-matmul-add"},
		Does: "Gives Gemm a constant bias of rank 1 where it is constant along rows, and folds constant alpha and beta into weight and bias."},
	{Name: "fuse-pads", Run: fusePads, After: []string{"remove-identities"},
		Does: "Moves zero padding of spatial axes into the Conv and AveragePool nodes that read it, if nothing else does and the image is wider than 1."},
	{Name: "fuse-hard-sigmoid", Run: fuseHardSigmoid, rounds: true, After: []string{"normalize-gemm"},
		Does: "Makes Clip(x + c, 0, h) / h a HardSigmoid, and x * Clip(x + c, 0, h) a product with one, where nothing else reads the values between."},
	{Name: "fuse-tanh-gate", Run: fuseTanhGate, rounds: true, After: []string{"fuse-hard-sigmoid"},
		Does: "Makes (1 + tanh(s * q)) / 2, the gate of a GELU written out, a Sigmoid of 2 * s * q, where nothing else reads the values between."},
	{Name: "fuse-scales", Run: fuseScales, After: []string{"fuse-pads", "fuse-tanh-gate"},
		Does: "Multiplies BatchNormalization and constant per-channel Mul, Div, Add and Sub behind a Conv, ConvTranspose or Gemm into its weight and bias, where nothing else reads the value between; and the same before a Conv into it, as far as padding leaves that exact."},
	{Name: "fold-constants-again", Run: foldConstants, After: []string{"fuse-scales"},
		Does: "Computes what the other passes made constant."},
	{Name: "share-results", Run: shareResults, After: []string{"fold-constants-again"},
		Does: "Removes nodes that compute what an earlier node of the same graph computes, QuantizeLinear and DequantizeLinear excepted."},
	{Name: "remove-dead", Run: removeDead, After: []string{"share-results"},
		Does: "Removes nodes and initializers that no output depends on."},
	{Name: "share-nested-constants", Run: shareNestedConstants, After: []string{"remove-dead"},
		Does: "Stores constants of more than 1 KiB that several branches hold once, in the innermost graph around these."},
}

var cleanup = []Pass{
	{Name: "remove-dead", Run: removeDead,
		Does: "Removes nodes and initializers that no output depends on."},
	{Name: "share-constants", Run: shareConstants, After: []string{"remove-dead"},
		Does: "Stores small equal initializers of one graph once."},
}

func init() {
	for _, list := range [][]Pass{prepare, cleanup} {
		for i, p := range list {
			for _, need := range p.After {
				if !slices.ContainsFunc(list[:i], func(q Pass) bool { return q.Name == need }) {
					panic(fmt.Sprintf("passes: %s must stand after %s", p.Name, need))
				}
			}
		}
	}
}

// List returns the passes of Prepare in the order in which they run.
func List() []Pass { return slices.Clone(prepare) }

// Prepare runs the passes that precede quantization.
func Prepare(ctx context.Context, m *graph.Model, o Options) ([]Change, error) {
	return run(ctx, m, o, prepare)
}

// Cleanup runs the passes that follow quantization.
func Cleanup(ctx context.Context, m *graph.Model, o Options) ([]Change, error) {
	return run(ctx, m, o, cleanup)
}

func run(ctx context.Context, m *graph.Model, o Options, list []Pass) ([]Change, error) {
	if o.FoldBudget == 0 {
		o.FoldBudget = DefaultFoldBudget
	}
	s := &State{Ctx: ctx, Model: m, Options: o}
	var changes []Change
	stale := true
	for _, p := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if p.rounds && o.SameRounding {
			continue
		}
		if stale && !p.untyped {
			types, err := ops.Infer(m)
			if err != nil {
				return nil, err
			}
			s.Types, stale = types, false
		}
		s.Changes = 0
		if err := p.Run(s); err != nil {
			return nil, &graph.Error{Stage: "prepare", Pass: p.Name, Err: err}
		}
		changes = append(changes, Change{p.Name, s.Changes})
		stale = stale && p.untyped || s.Changes > 0
		if o.Check {
			if err := m.Verify(); err != nil {
				return nil, &graph.Error{Stage: "prepare", Pass: p.Name, Err: err}
			}
		}
	}
	if stale {
		if _, err := ops.Infer(m); err != nil {
			return nil, err
		}
	}
	return changes, nil
}
