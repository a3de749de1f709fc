package beam

import (
	"slices"

	"github.com/apache/beam/sdks/v2/go/pkg/beam/register"
	"github.com/onnxq/onnxq/calibration"
)

func init() {
	register.Combiner1[Partial](&MergeFn{})
}

// MergeFn is the merge of calibration tables as a CombineFn: the order and the
// grouping of its calls do not matter, and what comes twice counts once.
type MergeFn struct{}

// CreateAccumulator returns the table of no samples.
func (*MergeFn) CreateAccumulator() Partial { return Partial{} }

// MergeAccumulators returns the table of the samples of both. It changes
// neither, so that a runner may use them again.
func (*MergeFn) MergeAccumulators(a, b Partial) (Partial, error) {
	p := Partial{slices.Concat(a.Tables, b.Tables)}
	if len(p.Tables) <= most {
		return p, nil
	}
	t, err := p.table()
	return Partial{[]*calibration.Table{t}}, err
}
