package onnxq

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
)

// Metric is what Options.Eval measured.
type Metric struct {
	Float     float64 `json:"float"`
	Quantized float64 `json:"quantized"`
	// Drop is the loss relative to Float, negative if the quantized model is
	// better.
	Drop float64 `json:"drop"`
}

// DefaultMaxDrop is the relative loss of the number of Options.Eval that is
// allowed where Options.MaxDrop does not say.
const DefaultMaxDrop = 0.005

// evalDelay is how long a command that is stopped may take to end.
const evalDelay = 500 * time.Millisecond

// verdict says how a quantized model does.
type verdict struct {
	outputs []eval.Output
	metric  *Metric
	short   auto.Shortfall
	loss    float64 // less is closer to the demands
}

// contract is what the search aims at. With a metric of the user's, that alone
// decides.
func (o *Options) contract() auto.Contract {
	if o.Eval != "" {
		return auto.Contract{Off: o.MinSQNR == nil, MinSQNR: o.MinSQNR}
	}
	return auto.Contract{MinSQNR: o.MinSQNR, MaxDrop: o.MaxDrop}
}

// judge measures m, as it is once it has been written to a file, on the samples
// to measure on and by the user's metric.
func (q *quantization) judge(ctx context.Context, m *graph.Model) (v *verdict, err error) {
	if v := q.verdicts[m]; v != nil {
		return v, nil
	}
	v = &verdict{}
	samples := q.eval != nil && q.eval.Len() > 0
	if !samples && q.o.Eval == "" {
		return v, nil
	}
	path, written, done, err := q.write(ctx, m)
	if err != nil {
		return nil, err
	}
	defer done()
	if samples {
		var score float64
		var selection *eval.Selection
		o := q.o
		if e, own := o.engine().(exec.Embedded); own && o.target().PairSums {
			e.Saturate = true // as on the processors that lose most
			o.Engine = e
		}
		if v.outputs, selection, score, err = compare(ctx, q.original, written, q.eval, o); err != nil {
			return nil, err
		}
		contract := q.o.contract()
		v.short = contract.Check(auto.Kinds(q.original, selection.Beside()), v.outputs, score)
		v.loss = -score
	}
	if q.o.Eval != "" {
		if v.metric, err = q.measure(ctx, path); err != nil {
			return nil, err
		}
		most := DefaultMaxDrop
		if q.o.MaxDrop != nil {
			most = *q.o.MaxDrop
		}
		v.loss = v.metric.Drop
		if v.metric.Drop > most && v.short.Text == "" {
			v.short.Text = fmt.Sprintf("the metric is %g, of the float model %g: a drop of %.4g, %g was allowed", v.metric.Quantized, v.metric.Float, v.metric.Drop, most)
		}
	}
	if q.verdicts == nil {
		q.verdicts = map[*graph.Model]*verdict{}
	}
	q.verdicts[m] = v
	return v, nil
}

// write writes m to a file of its own and opens that; done removes it. Where
// there is no room and no metric that needs a file, m stands for itself.
func (q *quantization) write(ctx context.Context, m *graph.Model) (path string, written *graph.Model, done func(), err error) {
	dir, err := os.MkdirTemp("", "onnxq-*")
	if err == nil {
		path = filepath.Join(dir, "model.onnx")
		if err = q.o.save(ctx, m, path); err == nil {
			if written, err = q.o.Load(path); err != nil {
				err = fmt.Errorf("the quantized model cannot be read back: %w", err)
				os.RemoveAll(dir)
				return "", nil, nil, err
			}
			return path, written, func() { written.Close(); os.RemoveAll(dir) }, nil
		}
		os.RemoveAll(dir)
	}
	if ctx.Err() != nil || q.o.Eval != "" {
		return "", nil, nil, err
	}
	return "", m, func() {}, nil
}

// measure runs the user's metric on the model at path and, the first time, on
// the float one.
func (q *quantization) measure(ctx context.Context, path string) (*Metric, error) {
	if q.metric == nil {
		float := q.path
		if float == "" {
			dir, err := os.MkdirTemp("", "onnxq-*")
			if err != nil {
				return nil, err
			}
			defer os.RemoveAll(dir)
			float = filepath.Join(dir, "model.onnx")
			if err := q.o.save(ctx, q.original, float); err != nil {
				return nil, err
			}
		}
		x, err := q.o.evaluate(ctx, float)
		if err != nil {
			return nil, err
		}
		q.metric = &x
	}
	x, err := q.o.evaluate(ctx, path)
	if err != nil {
		return nil, err
	}
	m := &Metric{Float: *q.metric, Quantized: x}
	switch loss := m.Float - m.Quantized; {
	case loss == 0:
	case q.o.EvalLowerIsBetter:
		m.Drop = -loss / math.Abs(m.Float)
	default:
		m.Drop = loss / math.Abs(m.Float)
	}
	return m, nil
}

// evaluate runs the command of o.Eval on the model at path and returns the
// number that is the last line of what it prints.
func (o *Options) evaluate(ctx context.Context, path string) (float64, error) {
	shell := []string{"sh", "-c", o.Eval + ` "$1"`, "sh", path}
	if runtime.GOOS == "windows" {
		shell = []string{"cmd", "/C", o.Eval, path}
	}
	cmd := osexec.CommandContext(ctx, shell[0], shell[1:]...)
	cmd.WaitDelay = evalDelay
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	o.progress("metric", 0, 1)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if text := lastLine(msg.String()); text != "" {
			err = fmt.Errorf("%w: %s", err, strconv.Quote(text))
		}
		return 0, &OptionError{fmt.Errorf("the command of --eval failed on %s: %w", strconv.Quote(path), err)}
	}
	o.progress("metric", 1, 1)
	text := lastLine(out.String())
	x, err := strconv.ParseFloat(text, 64)
	if err != nil || x-x != 0 {
		return 0, optionErrorf("the command of --eval has to print a number as its last line, not %q", text)
	}
	return x, nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}

// broken returns the demand that the judged result does not meet, or nil.
func (q *quantization) broken(v *verdict) *ContractError {
	demands := q.o.MinSQNR != nil || q.o.MaxDrop != nil || q.o.Eval != ""
	switch {
	case q.result == nil:
		return nil // the float model itself
	case (q.o.MinSQNR != nil || q.o.MaxDrop != nil && q.o.Eval == "") && len(v.outputs) == 0:
		return &ContractError{"there are no samples to measure the accuracy on"}
	case v.short.Text != "" && (demands || q.o.Mode == Auto && q.o.Plan == nil):
		return &ContractError{v.short.Text}
	}
	return nil
}
