package onnxq

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
)

// WholeChannels as Options.Block gives each output channel one scale.
const WholeChannels = -1

// DefaultBlock is the number of elements of weights of at most 4 bits that
// share a scale.
const DefaultBlock = 32

// settle sets the mode that other options imply.
func (o *Options) settle() {
	if o.Activations == NoActivations && o.Mode != Dynamic {
		o.Mode, o.Activations = Weights, ""
	}
	if o.Mode == Auto && o.fewBits() && !o.alone() {
		o.Mode = Weights
	}
}

// fewBits reports whether weights are to be stored as only mode Weights does.
func (o *Options) fewBits() bool {
	return o.BitsPerWeight > 0 || o.Weights != "" && o.Weights != "i8" && o.Weights != "u8" && !o.narrow() && !(o.real() && o.Weights == o.Activations) ||
		o.Block > 0 || o.WeightZero != "" && o.WeightZero != string(quant.Symmetric) || o.ScaleType != "" && o.ScaleType != "f32"
}

// alone reports whether weights are small floats that kernels of the target read, but
// activations are not.
func (o *Options) alone() bool {
	return o.Weights == quant.F8E4M3.Name && !o.real() && slices.Contains(o.target().Weights, o.Weights)
}

// real reports whether activations are small floats.
func (o *Options) real() bool { return o.Activations == quant.F8E4M3.Name }

// narrow reports whether weights are of a type of fewer than 8 bits that integer
// kernels of the target read.
func (o *Options) narrow() bool {
	t, err := targets.Type(o.Weights)
	return err == nil && t.DType.Bits() < 8 && slices.Contains(o.target().Weights, o.Weights)
}

// elsewhere says which targets have integer kernels for the type of weights that
// o.target() does not.
func (o *Options) elsewhere() string {
	var names []string
	for _, t := range targets.All() {
		if slices.Contains(t.Weights, o.Weights) {
			names = append(names, t.Name)
		}
	}
	if len(names) == 0 || slices.Contains(o.target().Weights, o.Weights) {
		return ""
	}
	return fmt.Sprintf("; %s are read by those of %s", o.Weights, strings.Join(names, ", "))
}

// weightName returns the storage type of weights.
func (o *Options) weightName() string {
	switch {
	case o.Weights != "":
		return o.Weights
	case o.BitsPerWeight > 0, o.spreads():
		return "i4"
	}
	return weightCodes
}

// blocks returns the scheme of weights in mode Weights, or nil for that of one
// symmetric scale for each channel of 8 bits or for float16.
func (o *Options) blocks() *quant.Blocks {
	if !o.fewBits() && !o.spreads() && (o.Weights == "" || o.Weights == "i8") && !slices.Contains(o.Algorithms, AWQ) || o.Weights == qdq.Float16 {
		return nil
	}
	b, err := o.scheme()
	if err != nil {
		return nil // check has said so
	}
	return &b
}

// scheme returns the scheme that the options on weights ask for.
func (o *Options) scheme() (quant.Blocks, error) {
	s, err := quant.ParseStorage(o.weightName())
	if err != nil {
		return quant.Blocks{}, err
	}
	b := quant.Blocks{Storage: s, PowerOfTwo: o.PowerOfTwo, Fit: o.fit(s)}
	if b.Zero, err = quant.ParseZeros(o.WeightZero); err != nil {
		return b, err
	}
	if o.ScaleType != "" {
		if b.ScaleType, err = quant.ParseScale(o.ScaleType); err != nil {
			return b, err
		}
	}
	switch {
	case o.Block > 0:
		b.Size = o.Block
	case o.Block == 0 && !o.PerTensor && s.Bits <= 4 && s.Block == 0:
		b.Size = DefaultBlock
	}
	return b.Complete()
}

// checkBlocks returns why weights cannot be stored as the options say.
func (o *Options) checkBlocks() error {
	if o.Block < WholeChannels || o.Block > 0 && o.PerTensor {
		return optionErrorf("block size %d", o.Block)
	}
	b, err := o.scheme()
	if err == nil && o.Plan == nil {
		err = qdq.CheckWeights(o.target(), b)
	}
	if err != nil {
		return &OptionError{err}
	}
	return nil
}

// weightsOpset is lowestOpset for mode Weights.
func (o *Options) weightsOpset() (version int, what string) {
	version, what = o.target().PerChannelOpset, "a scale for each channel"
	if b := o.blocks(); b != nil {
		if need := qdq.WeightOpset(o.target(), *b); need > version {
			return need, "weights of type " + b.Name
		}
	}
	return version, what
}

// blocksOpset returns the operator set from which most of the weights of a
// prepared model can be stored as the options say, or 0 if that is so already or
// no operator set makes it so.
func (o *Options) blocksOpset(m *graph.Model) (int, error) {
	b := o.blocks()
	if b == nil || o.check() != nil {
		return 0, nil // without blocks or, as the caller will say, at all
	}
	plan, err := qdq.Annotate(m, o.target(), o.qdq())
	if err != nil {
		return 0, err
	}
	values, err := plan.Values(m)
	if err != nil {
		return 0, err
	}
	stored, rest := 0, 0
	for i, v := range values {
		switch e := &plan.Tensors[i]; {
		case e.Kind != qdq.Weight:
		case e.Form != "" && e.Type == b.Name:
			stored += v.Const.Len()
		default:
			rest += v.Const.Len()
		}
	}
	if stored >= rest {
		return 0, nil
	}
	least := 0
	for _, f := range o.target().Forms {
		if f.Name == targets.Packed || f.Takes(b.Name, quant.ScaleName(b.ScaleType), b.Size) != "" {
			continue
		}
		if need := qdq.FormOpset(f.Name, b, b.Size > 0); need <= o.target().MaxOpset && (least == 0 || need < least) {
			least = need
		}
	}
	return least, nil
}

// fit returns how the parameters of blocks are found: as the algorithms say or,
// if they are left open, by the least squared error where bits are few and there
// are samples to weigh errors by. Without them only the range is taken, which
// costs no more than reading the weights.
func (o *Options) fit(s quant.Storage) quant.Fit {
	if o.Algorithms == nil {
		if s.Bits <= 4 && len(o.Data) > 0 {
			return quant.Clip
		}
		return quant.Cover
	}
	for _, a := range []struct {
		algorithm Algorithm
		fit       quant.Fit
	}{{HQQ, quant.HQQ}, {KQuant, quant.KQuant}, {Clip, quant.Clip}} {
		if slices.Contains(o.Algorithms, a.algorithm) {
			return a.fit
		}
	}
	return quant.Cover
}

// blockSamples is the number of calibration samples that GPTQ takes at most.
const blockSamples = 128

// visit calls f with n of the calibration samples.
func (q *quantization) visit(n int) accuracy.Samples {
	return func(ctx context.Context, f func(map[string]ops.Data) error) error {
		return q.spread(ctx, q.calib, n, f)
	}
}

// awqWorth is the factor by which the error of products has to fall where their
// scaled inputs take a multiplication of their own.
const awqWorth = 1.15

// scaleChannels scales the inputs of weights in the prepared model, and tells
// about it.
func (q *quantization) scaleChannels(ctx context.Context, qo qdq.Options) (note string, err error) {
	base := q.prepared.Clone()
	plan, err := qdq.Annotate(base, q.o.target(), qo)
	if err != nil || plan.Empty() {
		return "", err
	}
	n := min(blockSamples, q.calib.Len())
	scales, err := accuracy.AWQ(ctx, base, plan, q.visit(n), n, awqWorth, q.o.session())
	if err != nil || len(scales) == 0 {
		return "", err
	}
	q.prepared = base
	var shares []float64
	folded := 0
	for _, s := range scales {
		shares = append(shares, s.After/s.Before)
		if s.Folded {
			folded++
		}
	}
	slices.Sort(shares)
	return fmt.Sprintf("the channels of %d values scaled for weights to meet, %d of them by constants that were there: the squared error of products with the nearest codes is %.0f %% of what it was (median; %.0f to %.0f %%)",
		len(scales), folded, 100*shares[len(shares)/2], 100*shares[0], 100*shares[len(shares)-1]), nil
}

// inBlocks quantizes weights alone, in blocks.
func (q *quantization) inBlocks(ctx context.Context, qo qdq.Options) (*auto.Result, error) {
	for _, a := range []Algorithm{GPTQ, AWQ} {
		if slices.Contains(q.o.Algorithms, a) && q.calib == nil {
			return nil, fmt.Errorf("algorithm %s: %w", a, ErrNoData)
		}
	}
	var scaled string
	if slices.Contains(q.o.Algorithms, AWQ) {
		var err error
		if scaled, err = q.scaleChannels(ctx, qo); err != nil {
			return nil, err
		}
	}
	if q.o.BitsPerWeight > 0 {
		var err error
		if qo.BlocksOf, err = q.spreadBits(ctx, qo); err != nil {
			return nil, err
		}
	}
	code := q.coded
	if q.o.spreads() {
		code = q.asNeeded
	}
	res, err := code(ctx, qo)
	if err != nil {
		return nil, err
	}
	if scaled != "" {
		res.Notes = append(res.Notes, scaled)
	}
	return res, nil
}

// coded quantizes the weights of the prepared model as qo says.
func (q *quantization) coded(ctx context.Context, qo qdq.Options) (*auto.Result, error) {
	plan, err := qdq.Annotate(q.prepared, q.o.target(), qo)
	if err != nil || plan.Empty() {
		return &auto.Result{Plan: plan}, err
	}
	res := &auto.Result{Plan: plan}
	way := auto.Way{Threads: q.o.Threads}
	var errs []accuracy.BlockError
	if q.calib != nil && q.calib.Len() > 0 && (q.o.allows(GPTQ) || qo.Blocks.Fit != quant.Cover) {
		count := min(blockSamples, q.calib.Len())
		way.Round = func(params []quant.Params) (int, error) {
			layers := auto.Layers{
				Runner: q.o.Runner, Parts: q.o.parts(), Work: q.o.Work, Session: q.o.session(),
				Samples: q.visit(count), Count: count, Blocks: true, Nearest: !q.o.allows(GPTQ),
			}
			var n int
			var err error
			n, errs, err = layers.Round(ctx, q.prepared, plan, nil, way, params)
			return n, err
		}
	}
	res.Model, res.Notes, _, err = auto.Apply(ctx, q.prepared, plan, nil, way)
	if err != nil {
		return nil, suggest(q.original, err)
	}
	if len(errs) > 0 {
		var shares []float64
		for _, e := range errs {
			if e.Nearest > 0 {
				shares = append(shares, e.Chosen/e.Nearest)
			}
		}
		slices.Sort(shares)
		if len(shares) > 0 {
			res.Notes = append(res.Notes, fmt.Sprintf("codes of %d weights chosen on calibration samples: the squared error of their products is %.0f %% of that of the nearest codes (median; %.0f to %.0f %%)",
				len(errs), 100*shares[len(shares)/2], 100*shares[0], 100*shares[len(shares)-1]))
		}
	}
	return res, nil
}
