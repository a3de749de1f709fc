package beam

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/register"
	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
)

func init() {
	register.DoFn2x1[context.Context, []byte, error](&modelFn{})
}

// Quantize is onnxq.Quantize with the tasks of its calibration, search and
// rounding in pipelines. Paths, those of the samples and the report among them,
// may be of any Beam filesystem.
func (e Engine) Quantize(ctx context.Context, in, out string, o onnxq.Options) (res *onnxq.Result, err error) {
	h, err := enter(e.Threads, jobs)
	if err != nil {
		return nil, err
	}
	defer h.leave(jobs)
	o.Runner, o.Source.Store = e.Run, h.files
	err = h.files.quantize(ctx, in, out, o, func(in, out string, o onnxq.Options) (err error) {
		res, err = onnxq.Quantize(ctx, in, out, o)
		return err
	})
	return res, err
}

// modelElement is a model in a pipeline.
type modelElement struct {
	In      string        `json:"in"`
	Out     string        `json:"out"`
	Options onnxq.Options `json:"options"`
	Result  string        `json:"result"` // the file for the result
}

// Models quantizes several models under the same options, one element each: the
// file ins[i] to outs[i], which all workers reach, of any Beam filesystem. A model
// that cannot be quantized has an error in its result.
func (e Engine) Models(ctx context.Context, ins, outs []string, o onnxq.Options) ([]onnxq.QuantizeTaskResult, error) {
	if _, err := onnxq.QuantizeTasks(ins, outs, o); err != nil { // which says what cannot leave this process
		return nil, err
	}
	s, err := e.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer s.end(ctx)
	var elements [][]byte
	for i := range ins {
		b, err := json.Marshal(modelElement{ins[i], outs[i], o, s.result(i)})
		if err != nil {
			return nil, err
		}
		elements = append(elements, b)
	}
	p, root := beam.NewPipelineWithRoot()
	beam.ParDo0(root, &modelFn{taskFn{Threads: e.Threads}}, beam.Reshuffle(root, beam.CreateList(root, elements)))
	if err := run(ctx, p); err != nil {
		return nil, err
	}
	list := make([]onnxq.QuantizeTaskResult, len(ins))
	for i := range list {
		b, err := s.files.read(ctx, s.result(i))
		if err == nil {
			err = json.Unmarshal(b, &list[i])
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ins[i], err)
		}
	}
	return list, nil
}

// modelFn quantizes models.
type modelFn struct{ taskFn }

// failure is what is wrong with a model.
type failure struct{ text string }

func (f *failure) Error() string { return f.text }

// ProcessElement quantizes one model.
func (f *modelFn) ProcessElement(ctx context.Context, b []byte) error {
	var x modelElement
	if err := json.Unmarshal(b, &x); err != nil {
		return err
	}
	var res onnxq.QuantizeTaskResult
	err := f.shared.files.quantize(ctx, x.In, x.Out, x.Options, func(in, out string, o onnxq.Options) error {
		tasks, err := onnxq.QuantizeTasks([]string{in}, []string{out}, o)
		if err != nil {
			return err
		}
		if err := f.shared.worker.Run(ctx, tasks); err != nil {
			return err
		}
		if err := json.Unmarshal(tasks[0].Result, &res); err != nil || res.Error == "" {
			return err
		}
		return &failure{res.Error}
	})
	if bad := (*failure)(nil); errors.As(err, &bad) {
		res.Error, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	b, err = json.Marshal(res)
	if err != nil {
		return err
	}
	return f.shared.files.write(ctx, x.Result, bytes.NewReader(b))
}

// Pair expands patterns of models, of this machine or of Beam filesystems, and
// returns the models with the paths of files of the same names in a folder.
func Pair(ctx context.Context, patterns []string, folder string) (ins, outs []string, err error) {
	h, err := enter(0, jobs)
	if err != nil {
		return nil, nil, err
	}
	defer h.leave(jobs)
	absolute := func(name *string) (err error) {
		if !calibration.IsURL(*name) {
			*name, err = filepath.Abs(*name)
		}
		return err
	}
	taken := map[string]string{}
	for _, p := range patterns {
		s, err := h.files.system(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		found, err := s.List(ctx, p)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", p, err)
		}
		if len(found) == 0 {
			return nil, nil, fmt.Errorf("%s: no such model", p)
		}
		slices.Sort(found)
		for _, in := range found {
			name, err := base(in)
			if err != nil {
				return nil, nil, err
			}
			out := join(folder, name)
			if err := errors.Join(absolute(&in), absolute(&out)); err != nil {
				return nil, nil, err
			}
			if taken[out] != "" {
				return nil, nil, fmt.Errorf("%s and %s would both become %s", taken[out], in, out)
			}
			taken[out] = in
			ins, outs = append(ins, in), append(outs, out)
		}
	}
	return ins, outs, nil
}
