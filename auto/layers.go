package auto

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"slices"

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

// Layers rounds weights by what this does to samples: here or, with a Runner,
// those that do not depend on each other a few a task.
type Layers struct {
	Runner  job.Runner
	Parts   int // the most tasks at a time
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
	Chosen  []string  `json:"chosen,omitempty"` // what is known of the layers before these
	Way     taskWay   `json:"way"`
	Layers  []int     `json:"layers"` // of one stage, by index in plan.Tensors
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

// rounding is the rounding of the weights of a model.
type rounding struct {
	l      *Layers
	m      *graph.Model
	plan   *qdq.Plan
	params []quant.Params
	gptq   *accuracy.GPTQ // where weights are stored in blocks
	// stages has the weights by index in plan.Tensors; what is chosen for one
	// depends on those of the stages before its own.
	stages [][]int
}

func (l *Layers) start(m *graph.Model, plan *qdq.Plan, params []quant.Params) (*rounding, error) {
	r := &rounding{l: l, m: m, plan: plan, params: params}
	if l.Count == 0 {
		return r, nil
	}
	if !l.Blocks {
		layers, err := accuracy.Layers(m, plan)
		layers = slices.DeleteFunc(layers, func(i int) bool { return params[i].Codes != nil })
		if len(layers) > 0 {
			r.stages = [][]int{layers}
		}
		return r, err
	}
	var err error
	if r.gptq, err = accuracy.NewGPTQ(m, plan, params, l.Samples, l.Count, l.Nearest, l.Session); err == nil {
		r.stages = r.gptq.Stages()
	}
	return r, err
}

// choose rounds some layers of a stage in this process.
func (r *rounding) choose(ctx context.Context, layers []int) ([]roundedLayer, error) {
	var errs []accuracy.BlockError
	var err error
	if r.gptq != nil {
		errs, err = r.gptq.Choose(ctx, layers)
	} else {
		err = accuracy.Round(ctx, r.m, r.plan, r.params, layers, r.l.Samples, r.l.Count, r.l.Session)
	}
	if err != nil {
		return nil, err
	}
	list := make([]roundedLayer, len(layers))
	for k, i := range layers {
		list[k] = roundedLayer{Tensor: i, Coded: r.params[i].Coded}
		if r.params[i].Codes != nil {
			list[k].Codes = r.params[i].Codes.Bytes()
		}
		if at := slices.IndexFunc(errs, func(e accuracy.BlockError) bool { return e.Tensor == i }); at >= 0 {
			list[k].Error = &errs[at]
		}
	}
	return list, nil
}

// take sets what was chosen elsewhere.
func (r *rounding) take(list []roundedLayer) error {
	values, err := r.plan.Values(r.m)
	if err != nil {
		return err
	}
	for _, x := range list {
		if x.Tensor < 0 || x.Tensor >= len(r.params) || !values[x.Tensor].IsConst() {
			return errors.New("the result is of another plan")
		}
		if r.gptq != nil {
			if err := r.gptq.Take(x.Tensor, x.Coded); err != nil {
				return err
			}
			continue
		}
		p := &r.params[x.Tensor]
		p.Codes = tensor.New(p.Type.Held(), values[x.Tensor].Const.Shape()...)
		if len(x.Codes) != len(p.Codes.Bytes()) {
			return fmt.Errorf("%d bytes of codes for %q", len(x.Codes), values[x.Tensor].Name())
		}
		copy(p.Codes.Bytes(), x.Codes)
	}
	return nil
}

// Round sets the codes of params, those that the plan, the table and way give
// for m, where there are none yet, and returns the number of weights and, for blocks,
// their errors.
func (l *Layers) Round(ctx context.Context, m *graph.Model, plan *qdq.Plan, table *calibration.Table, way Way, params []quant.Params) (int, []accuracy.BlockError, error) {
	r, err := l.start(m, plan, params)
	if err != nil {
		return 0, nil, err
	}
	var t *roundTasks
	n := 0
	var errs []accuracy.BlockError
	for k, stage := range r.stages {
		var list []roundedLayer
		if l.Runner == nil || len(stage) == 1 {
			list, err = r.choose(ctx, stage)
		} else {
			if t == nil {
				if t, err = newRoundTasks(ctx, r, table, way); err != nil {
					return 0, nil, err
				}
				defer t.folder.Close()
			}
			list, err = t.do(ctx, stage)
		}
		if err != nil {
			return 0, nil, err
		}
		for _, x := range list {
			if x.Error != nil {
				errs = append(errs, *x.Error)
			}
		}
		n += len(list)
		if t != nil && r.gptq != nil && !l.Nearest && k < len(r.stages)-1 {
			t.before = append(t.before, list...)
		}
	}
	return n, errs, nil
}

// roundTasks shares out the layers of a stage.
type roundTasks struct {
	r      *rounding
	folder *job.Folder
	args   roundArgs
	files  []string
	before []roundedLayer // what is in no file yet of the stages before
}

// newRoundTasks makes the files that all tasks have. Close its folder.
func newRoundTasks(ctx context.Context, r *rounding, table *calibration.Table, way Way) (t *roundTasks, err error) {
	l := r.l
	folder, err := job.NewFolder(l.Work)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			folder.Close()
		}
	}()
	files, err := PutModel(ctx, folder, r.m)
	if err != nil {
		return nil, err
	}
	t = &roundTasks{r: r, folder: folder, files: files, args: roundArgs{
		Base: files[0], Plan: r.plan, Way: way.task(), Count: l.Count, Blocks: l.Blocks, Nearest: l.Nearest,
		Limits: Limits{l.Session.MaxBytes, l.Session.MaxSteps},
	}}
	put := func(name *string, ext string, write func(path string) error) error {
		names, err := folder.Put(ext, write)
		if err != nil {
			return err
		}
		*name = names[0]
		t.files = append(t.files, names...)
		return nil
	}
	if err := put(&t.args.Samples, ".samples", func(path string) error { return saveVisits(ctx, path, l.Samples) }); err != nil {
		return nil, err
	}
	if table != nil {
		if err := put(&t.args.Table, ".json", table.Save); err != nil {
			return nil, err
		}
	}
	// The stages so far, which had one layer each, were done here.
	for _, stage := range r.stages {
		for _, i := range stage {
			if r.gptq != nil && r.params[i].Coded != nil {
				t.before = append(t.before, roundedLayer{Tensor: i, Coded: r.params[i].Coded})
			}
		}
	}
	return t, nil
}

// do rounds the layers of a stage by tasks.
func (t *roundTasks) do(ctx context.Context, stage []int) ([]roundedLayer, error) {
	if len(t.before) > 0 {
		var b bytes.Buffer
		if err := gob.NewEncoder(&b).Encode(t.before); err != nil {
			return nil, err
		}
		names, err := t.folder.Put(".codes", func(path string) error { return os.WriteFile(path, b.Bytes(), 0o666) })
		if err != nil {
			return nil, err
		}
		t.before, t.args.Chosen, t.files = nil, append(t.args.Chosen, names...), append(t.files, names...)
	}
	n := max(1, min(t.r.l.Parts, len(stage)))
	var tasks []job.Task
	for i := range n {
		t.args.Layers = stage[i*len(stage)/n : (i+1)*len(stage)/n]
		name := fmt.Sprintf("round the weights %q and what follows", t.r.plan.Tensors[t.args.Layers[0]].Tensor)
		task, err := t.folder.Task(RoundTask, name, t.args, slices.Clone(t.files)...)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, task)
	}
	if err := job.Run(ctx, t.r.l.Runner, tasks); err != nil {
		return nil, err
	}
	var all []roundedLayer
	for _, task := range tasks {
		list, err := decodeLayers(task.Result)
		if err == nil {
			err = t.r.take(list)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", task.Name, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

func decodeLayers(b []byte) (list []roundedLayer, err error) {
	err = gob.NewDecoder(bytes.NewReader(b)).Decode(&list)
	return list, err
}

// errRounded ends Apply once the codes are known.
var errRounded = errors.New("rounded")

// round does a RoundTask.
func (s *Scorer) round(ctx context.Context, t *job.Task) ([]byte, error) {
	var a roundArgs
	if err := t.Decode(&a); err != nil {
		return nil, err
	}
	var list []roundedLayer
	err := s.model(t, a.Base, func(base *graph.Model) error {
		return s.table(t, a.Table, func(table *rangedTable) error {
			return s.load(t, a.Samples, func(samples []map[string]ops.Data) error {
				l := Layers{Session: s.bounded(a.Limits), Samples: visit(samples), Count: a.Count, Blocks: a.Blocks, Nearest: a.Nearest}
				way := a.Way.way(table.ranges, s.session.Threads)
				way.Round = func(params []quant.Params) (int, error) {
					r, err := l.start(base, a.Plan, params)
					if err != nil {
						return 0, err
					}
					for _, name := range a.Chosen {
						b, err := os.ReadFile(t.Path(name))
						if err != nil {
							return 0, err
						}
						before, err := decodeLayers(b)
						if err == nil {
							err = r.take(before)
						}
						if err != nil {
							return 0, fmt.Errorf("%s: %w", t.Path(name), err)
						}
					}
					if list, err = r.choose(ctx, a.Layers); err != nil {
						return 0, err
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
