package beam

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/job"
)

// Quantize quantizes several models under the same options, one task each: the
// file ins[i] to outs[i], which all workers see. A model that cannot be
// quantized has an error in its result.
func (e Engine) Quantize(ctx context.Context, ins, outs []string, o onnxq.Options) ([]onnxq.QuantizeTaskResult, error) {
	tasks, err := onnxq.QuantizeTasks(ins, outs, o)
	if err != nil {
		return nil, err
	}
	if err := job.Run(ctx, e.Run, tasks); err != nil {
		return nil, err
	}
	list := make([]onnxq.QuantizeTaskResult, len(tasks))
	for i := range tasks {
		if err := json.Unmarshal(tasks[i].Result, &list[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", tasks[i].Name, err)
		}
	}
	return list, nil
}
