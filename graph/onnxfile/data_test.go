package onnxfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/onnxpb"
	"github.com/onnxq/onnxq/tensor"
)

// message returns an empty message for values of a kind, of the other decoder.
func message(kind graph.Kind) proto.Message {
	switch kind {
	case graph.KindSequence:
		return &onnxpb.SequenceProto{}
	case graph.KindOptional:
		return &onnxpb.OptionalProto{}
	case graph.KindMap:
		return &onnxpb.MapProto{}
	}
	return &onnxpb.TensorProto{}
}

func TestConformanceData(t *testing.T) {
	dir := os.Getenv("ONNXQ_CONFORMANCE")
	if dir == "" {
		t.Skip("SKIPPED: ONNXQ_CONFORMANCE does not name the folder of the ONNX node cases: their data are not tested")
	}
	n, sequences, optionals := 0, 0, 0
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "model.onnx") {
			return err
		}
		m, err := Open(path)
		if err != nil {
			return err
		}
		defer m.Close()
		for _, c := range []struct {
			name   string
			values []*graph.Value
		}{{"input", m.Graph.FeedInputs()}, {"output", m.Graph.Outputs()}} {
			files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "test_data_set_0", c.name+"_*.pb"))
			if err != nil {
				return err
			}
			for _, f := range files {
				var i int
				for _, r := range strings.TrimSuffix(filepath.Base(f)[len(c.name)+1:], ".pb") {
					i = 10*i + int(r-'0')
				}
				if i >= len(c.values) {
					t.Errorf("%s: the model has %d", f, len(c.values))
					continue
				}
				kind := c.values[i].Type.Kind
				b, err := os.ReadFile(f)
				if err != nil {
					return err
				}
				d, err := DecodeDatum(kind, b)
				if err != nil {
					t.Errorf("%s: %v", f, err)
					continue
				}
				n++
				switch kind {
				case graph.KindSequence:
					sequences++
				case graph.KindOptional:
					optionals++
				}
				want, got := message(kind), message(kind)
				if err := proto.Unmarshal(b, want); err != nil {
					return err
				}
				if err := proto.Unmarshal(EncodeDatum(d), got); err != nil {
					return err
				}
				if !proto.Equal(want, got) && !otherForm(kind, b) {
					t.Errorf("%s: not the same after decoding and encoding", f)
				}
				again, err := DecodeDatum(kind, EncodeDatum(d))
				if err != nil || !sameDatum(d, again) {
					t.Errorf("%s: changed, %v", f, err)
				}
			}
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Fatal("no data", err)
	}
	t.Logf("%d values, of them %d sequences and %d optionals", n, sequences, optionals)
}

// otherForm reports whether b is a TensorProto without raw_data and
// string_data, which Encode would write with raw_data.
func otherForm(kind graph.Kind, b []byte) bool {
	s := scan(b)
	for s.next() {
		if n := s.num(); n == fieldRaw || n == fieldString {
			return false
		}
	}
	return kind == graph.KindTensor
}

func sameDatum(a, b *Datum) bool {
	same := func(a, b *tensor.Tensor) bool { return (a == nil) == (b == nil) && (a == nil || a.Equal(b)) }
	if a.Name != b.Name || a.Kind != b.Kind || a.Elem != b.Elem || len(a.Items) != len(b.Items) || !same(a.Tensor, b.Tensor) || !same(a.Keys, b.Keys) {
		return false
	}
	if a.Sparse != nil && (!same(a.Sparse.Values, b.Sparse.Values) || !same(a.Sparse.Indices, b.Sparse.Indices)) {
		return false
	}
	for i := range a.Items {
		if !sameDatum(a.Items[i], b.Items[i]) {
			return false
		}
	}
	return true
}

func TestDatum(t *testing.T) {
	scalar := func(v float32) *Datum { return &Datum{Kind: graph.KindTensor, Tensor: tensor.Scalar(v)} }
	mapOf := func(keys *tensor.Tensor) *Datum {
		return &Datum{Kind: graph.KindMap, Keys: keys, Elem: graph.KindTensor, Items: []*Datum{scalar(1), scalar(2)}}
	}
	for _, d := range []*Datum{
		{Kind: graph.KindTensor, Name: "x", Tensor: tensor.Of([]int16{1, -2})},
		{Kind: graph.KindTensor, Tensor: tensor.FromStrings([]int{2}, []string{"a", ""})},
		{Kind: graph.KindSparseTensor, Name: "s", Sparse: &graph.SparseTensor{Values: tensor.Of([]float32{1}), Indices: tensor.Of([]int64{3}), Dims: []int64{2, 2}}},
		{Kind: graph.KindSequence, Name: "s", Elem: graph.KindTensor, Items: []*Datum{scalar(1), scalar(2)}},
		{Kind: graph.KindSequence, Elem: graph.KindMap, Items: []*Datum{mapOf(tensor.Of([]int64{-1, 7})), mapOf(tensor.FromStrings([]int{2}, []string{"a", "b"}))}},
		{Kind: graph.KindMap, Keys: tensor.Of([]int8{}), Elem: graph.KindTensor},
		{Kind: graph.KindOptional},
		{Kind: graph.KindOptional, Elem: graph.KindSequence, Items: []*Datum{{Kind: graph.KindSequence, Elem: graph.KindOptional}}},
	} {
		b := EncodeDatum(d)
		if err := proto.Unmarshal(b, message(d.Kind)); err != nil && d.Kind != graph.KindSparseTensor {
			t.Errorf("%+v: %v", d, err)
		}
		got, err := DecodeDatum(d.Kind, b)
		if err != nil || !sameDatum(d, got) {
			t.Errorf("%+v: %+v, %v", d, got, err)
		}
	}
	name, x, err := DecodeTensor(EncodeTensor("n", tensor.Of([]float32{1, 2}, 2, 1)))
	if err != nil || name != "n" || x.String() != "float[2,1]" {
		t.Error(name, x, err)
	}
}

func TestDatumErrors(t *testing.T) {
	raw := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	float := &onnxpb.TensorProto{DataType: proto.Int32(1), FloatData: []float32{1}}
	external := &onnxpb.TensorProto{DataType: proto.Int32(1), DataLocation: onnxpb.TensorProto_EXTERNAL.Enum(),
		ExternalData: []*onnxpb.StringStringEntryProto{{Key: proto.String("location"), Value: proto.String("x")}}}
	for _, c := range []struct {
		kind graph.Kind
		b    []byte
		want string
	}{
		{graph.KindTensor, []byte{0x0a}, "malformed"},
		{graph.KindTensor, raw(external), "no folder"},
		{graph.KindUnknown, nil, "no file form"},
		{graph.KindSequence, raw(&onnxpb.SequenceProto{ElemType: proto.Int32(9)}), "unknown kind 9"},
		{graph.KindSequence, raw(&onnxpb.SequenceProto{ElemType: proto.Int32(3), TensorValues: []*onnxpb.TensorProto{float}}), "other than declared"},
		{graph.KindMap, raw(&onnxpb.MapProto{KeyType: proto.Int32(7), Keys: []int64{1}}), "1 keys and 0 values"},
		{graph.KindMap, raw(&onnxpb.MapProto{KeyType: proto.Int32(3), Keys: []int64{1000}}), "out of the range of int8"},
		{graph.KindMap, raw(&onnxpb.MapProto{KeyType: proto.Int32(1)}), "keys of type float"},
	} {
		if _, err := DecodeDatum(c.kind, c.b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	deep := []byte(nil)
	for range 120 {
		deep = append([]byte{5<<3 | 2}, append(appendLen(nil, len(deep)), deep...)...)
	}
	if _, err := DecodeDatum(graph.KindSequence, deep); err == nil || !strings.Contains(err.Error(), "limit depth") {
		t.Errorf("error %v for nested sequences", err)
	}
}

func appendLen(b []byte, n int) []byte {
	for ; n > 127; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}
