package beam

import (
	"bytes"
	"reflect"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/onnxq/onnxq/calibration"
)

// Partial is a table on its way through a pipeline, as its file between
// processes; nil is that of no samples.
type Partial struct{ Table *calibration.Table }

func init() {
	beam.RegisterCoder(reflect.TypeFor[Partial](), encodePartial, decodePartial)
}

func encodePartial(p Partial) ([]byte, error) {
	if p.Table == nil {
		return []byte{}, nil
	}
	var b bytes.Buffer
	err := p.Table.Encode(&b)
	return b.Bytes(), err
}

func decodePartial(b []byte) (Partial, error) {
	if len(b) == 0 {
		return Partial{}, nil
	}
	t, err := calibration.Decode(b)
	return Partial{t}, err
}
