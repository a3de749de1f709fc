package beam

import (
	"bytes"
	"reflect"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/onnxq/onnxq/calibration"
)

// Partial is a table on its way through a pipeline: the one that Tables merge
// into, none for that of no samples. Between processes it is the table's file.
type Partial struct{ Tables []*calibration.Table }

// most is the number of tables that a Partial holds before they are merged:
// merging two at a time would copy what was merged before each time.
const most = 16

// table returns the merged table, nil for no samples.
func (p Partial) table() (*calibration.Table, error) {
	switch len(p.Tables) {
	case 0:
		return nil, nil
	case 1:
		return p.Tables[0], nil
	}
	return calibration.Merge(p.Tables...)
}

func init() {
	beam.RegisterCoder(reflect.TypeFor[Partial](), encodePartial, decodePartial)
}

func encodePartial(p Partial) ([]byte, error) {
	t, err := p.table()
	if t == nil {
		return []byte{}, err
	}
	var b bytes.Buffer
	err = t.Encode(&b)
	return b.Bytes(), err
}

func decodePartial(b []byte) (Partial, error) {
	if len(b) == 0 {
		return Partial{}, nil
	}
	t, err := calibration.Decode(b)
	if err != nil {
		return Partial{}, err
	}
	return Partial{[]*calibration.Table{t}}, nil
}
