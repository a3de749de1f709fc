package auto

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/job"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// RoundTask is the kind of the tasks that choose the codes of the weights of
// some layers.
const RoundTask = "round"

// Layers rounds weights by what this does to samples: here or, with a Runner and
// where one does not depend on the other, a few layers a task.
type Layers struct {
	Runner  job.Runner
	Parts   int // the most tasks
	Work    string
	Session exec.SessionOptions
	// Samples are those that count, of which there are Count.
	Samples accuracy.Samples
	Count   int
	// Blocks says that weights are stored in blocks: accuracy.GPTQ chooses their
	// codes, or the best parameters alone with Nearest set. Else accuracy.Round
	// does.
	Blocks, Nearest bool
}

// roundArgs are those of a RoundTask. Strings name files of the task.
type roundArgs struct {
	Base    string    `json:"base"`
	Plan    *qdq.Plan `json:"plan"`
	Table   string    `json:"table,omitempty"`
	Samples string    `json:"samples"`
	Way     taskWay   `json:"way"`
	Layers  []int     `json:"layers"` // as of accuracy.Layers
	Count   int       `json:"count"`
	Blocks  bool      `json:"blocks,omitempty"`
	Nearest bool      `json:"nearest,omitempty"`
	Limits  Limits    `json:"limits"`
}

// roundedLayer is what a RoundTask gives for a layer.
type roundedLayer struct {
	Tensor int // index in plan.Tensors
	Codes  []byte
	Coded  *quant.Coded
	Error  *accuracy.BlockError
}

// Round sets the codes of params, those that the plan, the table and way give
// for m, and returns the number of weights and, for blocks, their errors.
func (l *Layers) Round(ctx context.Context, m *graph.Model, plan *qdq.Plan, table *calibration.Table, way Way, params []quant.Params) (int, []accuracy.BlockError, error) {
	// GPTQ takes each weight behind those that its inputs depend on.
	if l.Runner != nil && (!l.Blocks || l.Nearest) {
		layers, err := accuracy.Layers(m, plan, l.Blocks)
		if err != nil {
			return 0, nil, err
		}
		if len(layers) > 1 {
			return l.share(ctx, m, plan, table, way, params, layers)
		}
	}
	return l.here(ctx, m, plan, params, nil)
}

// here rounds some layers in this process; nil stands for all.
func (l *Layers) here(ctx context.Context, m *graph.Model, plan *qdq.Plan, params []quant.Params, layers []int) (int, []accuracy.BlockError, error) {
	if l.Blocks {
		errs, err := accuracy.GPTQ(ctx, m, plan, params, layers, l.Samples, l.Count, l.Nearest, l.Session)
		return len(errs), errs, err
	}
	n, err := accuracy.Round(ctx, m, plan, params, layers, l.Samples, l.Count, l.Session)
	return n, nil, err
}

// share rounds layers by tasks.
func (l *Layers) share(ctx context.Context, m *graph.Model, plan *qdq.Plan, table *calibration.Table, way Way, params []quant.Params, layers []int) (int, []accuracy.BlockError, error) {
	folder, err := job.NewFolder(l.Work)
	if err != nil {
		return 0, nil, err
	}
	defer folder.Close()
	files, err := PutModel(ctx, folder, m)
	if err != nil {
		return 0, nil, err
	}
	args := roundArgs{
		Base: files[0], Plan: plan, Way: way.task(), Count: l.Count, Blocks: l.Blocks, Nearest: l.Nearest,
		Limits: Limits{l.Session.MaxBytes, l.Session.MaxSteps},
	}
	names, err := folder.Put(".samples", func(path string) error { return saveVisits(ctx, path, l.Samples) })
	if err != nil {
		return 0, nil, err
	}
	args.Samples = names[0]
	files = append(files, names...)
	if table != nil {
		if names, err = folder.Put(".json", table.Save); err != nil {
			return 0, nil, err
		}
		args.Table = names[0]
		files = append(files, names...)
	}
	n := max(1, min(l.Parts, len(layers)))
	var tasks []job.Task
	for i := range n {
		args.Layers = layers[i*len(layers)/n : (i+1)*len(layers)/n]
		t, err := folder.Task(RoundTask, fmt.Sprintf("round the weights %q and what follows", plan.Tensors[args.Layers[0]].Tensor), args, files...)
		if err != nil {
			return 0, nil, err
		}
		tasks = append(tasks, t)
	}
	if err := job.Run(ctx, l.Runner, tasks); err != nil {
		return 0, nil, err
	}
	values, err := plan.Values(m)
	if err != nil {
		return 0, nil, err
	}
	count := 0
	var errs []accuracy.BlockError
	for _, t := range tasks {
		var list []roundedLayer
		if err := gob.NewDecoder(bytes.NewReader(t.Result)).Decode(&list); err != nil {
			return 0, nil, fmt.Errorf("%s: %w", t.Name, err)
		}
		for _, r := range list {
			if r.Tensor < 0 || r.Tensor >= len(params) || !values[r.Tensor].IsConst() {
				return 0, nil, fmt.Errorf("%s: the result is of another plan", t.Name)
			}
			p := &params[r.Tensor]
			p.Coded = r.Coded
			if r.Coded == nil {
				p.Codes = tensor.New(p.Type.DType, values[r.Tensor].Const.Shape()...)
				if copy(p.Codes.Bytes(), r.Codes) != len(r.Codes) || len(r.Codes) != len(p.Codes.Bytes()) {
					return 0, nil, fmt.Errorf("%s: %d bytes of codes for %q", t.Name, len(r.Codes), values[r.Tensor].Name())
				}
			}
			if r.Error != nil {
				errs = append(errs, *r.Error)
			}
			count++
		}
	}
	return count, errs, nil
}

// errRounded ends Apply once the codes are known.
var errRounded = errors.New("rounded")

// round does a RoundTask.
func (s *Scorer) round(ctx context.Context, t *job.Task) ([]byte, error) {
	var a roundArgs
	if err := t.Decode(&a); err != nil {
		return nil, err
	}
	list := []roundedLayer{}
	err := s.model(t, a.Base, func(base *graph.Model) error {
		return s.table(t, a.Table, func(table *rangedTable) error {
			return s.load(t, a.Samples, func(samples []map[string]ops.Data) error {
				l := Layers{Session: s.bounded(a.Limits), Samples: visit(samples), Count: a.Count, Blocks: a.Blocks, Nearest: a.Nearest}
				way := a.Way.way(table.ranges)
				way.Round = func(params []quant.Params) (int, error) {
					_, errs, err := l.here(ctx, base, a.Plan, params, a.Layers)
					if err != nil {
						return 0, err
					}
					for _, i := range a.Layers {
						r := roundedLayer{Tensor: i, Coded: params[i].Coded}
						if params[i].Codes != nil {
							r.Codes = params[i].Codes.Bytes()
						}
						for k := range errs {
							if errs[k].Tensor == i {
								r.Error = &errs[k]
							}
						}
						if r.Codes != nil || r.Coded != nil {
							list = append(list, r)
						}
					}
					return 0, errRounded
				}
				_, _, bad, err := Apply(ctx, base, a.Plan, table.table, way)
				if len(bad) > 0 {
					return errors.New("the plan has activations without a range")
				}
				if errors.Is(err, errRounded) {
					return nil
				}
				return err
			})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	var b bytes.Buffer
	err = gob.NewEncoder(&b).Encode(list)
	return b.Bytes(), err
}
