package onnxfile

import (
	"bytes"
	"fmt"
	"math"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/fuzztest"
	"github.com/onnxq/onnxq/internal/onnxpb"
	"github.com/onnxq/onnxq/tensor"
)

func entries(kv ...string) (list []*onnxpb.StringStringEntryProto) {
	for i := 0; i < len(kv); i += 2 {
		list = append(list, &onnxpb.StringStringEntryProto{Key: &kv[i], Value: &kv[i+1]})
	}
	return list
}

func tensorType(elem tensor.DType, dims ...any) *onnxpb.TypeProto {
	shape := &onnxpb.TensorShapeProto{}
	for _, d := range dims {
		p := &onnxpb.TensorShapeProto_Dimension{}
		switch d := d.(type) {
		case int:
			p.Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: int64(d)}
		case string:
			p.Value = &onnxpb.TensorShapeProto_Dimension_DimParam{DimParam: d}
		}
		shape.Dim = append(shape.Dim, p)
	}
	return &onnxpb.TypeProto{Value: &onnxpb.TypeProto_TensorType{TensorType: &onnxpb.TypeProto_Tensor{ElemType: proto.Int32(int32(elem)), Shape: shape}}}
}

func valueInfoOf(name string, typ *onnxpb.TypeProto) *onnxpb.ValueInfoProto {
	return &onnxpb.ValueInfoProto{Name: &name, Type: typ}
}

func nodeOf(op, ins, outs string, attrs ...*onnxpb.AttributeProto) *onnxpb.NodeProto {
	split := func(s string) []string {
		if s == "" {
			return nil
		}
		var list []string
		for _, p := range bytes.Split([]byte(s), []byte(" ")) {
			name := string(p)
			if name == "-" {
				name = ""
			}
			list = append(list, name)
		}
		return list
	}
	return &onnxpb.NodeProto{OpType: &op, Input: split(ins), Output: split(outs), Attribute: attrs}
}

func attrOf(name string, kind graph.AttrKind, set func(a *onnxpb.AttributeProto)) *onnxpb.AttributeProto {
	a := &onnxpb.AttributeProto{Name: &name, Type: onnxpb.AttributeProto_AttributeType(kind).Enum()}
	set(a)
	return a
}

func floatTensor(name string, v ...float32) *onnxpb.TensorProto {
	return &onnxpb.TensorProto{Name: &name, DataType: proto.Int32(1), Dims: []int64{int64(len(v))}, FloatData: v}
}

// plainModel is a small model without peculiarities: y = x + w.
func plainModel() *onnxpb.ModelProto {
	return &onnxpb.ModelProto{
		IrVersion:   proto.Int64(8),
		OpsetImport: []*onnxpb.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(17)}},
		Graph: &onnxpb.GraphProto{
			Name:        proto.String("g"),
			Node:        []*onnxpb.NodeProto{nodeOf("Add", "x w", "y")},
			Initializer: []*onnxpb.TensorProto{{Name: proto.String("w"), DataType: proto.Int32(1), Dims: []int64{2}, RawData: []byte{0, 0, 128, 63, 0, 0, 0, 64}}},
			Input:       []*onnxpb.ValueInfoProto{valueInfoOf("x", tensorType(tensor.Float32, 2))},
			Output:      []*onnxpb.ValueInfoProto{valueInfoOf("y", tensorType(tensor.Float32, 2))},
		},
	}
}

// richModel uses every message and nearly every field of the schema.
func richModel() *onnxpb.ModelProto {
	raw := func(name string, d tensor.DType, n int, dims ...int64) *onnxpb.TensorProto {
		return &onnxpb.TensorProto{Name: &name, DataType: proto.Int32(int32(d)), Dims: dims, RawData: make([]byte, n)}
	}
	sparse := func(name string) *onnxpb.SparseTensorProto {
		return &onnxpb.SparseTensorProto{Values: floatTensor(name, 1, 2), Dims: []int64{2, 3},
			Indices: &onnxpb.TensorProto{DataType: proto.Int32(7), Dims: []int64{2}, Int64Data: []int64{0, 5}}}
	}
	body := func(out string, nodes ...*onnxpb.NodeProto) *onnxpb.GraphProto {
		return &onnxpb.GraphProto{Name: proto.String("b_" + out), Node: nodes, Output: []*onnxpb.ValueInfoProto{valueInfoOf(out, nil)}}
	}
	seq := &onnxpb.TypeProto{Value: &onnxpb.TypeProto_SequenceType{SequenceType: &onnxpb.TypeProto_Sequence{ElemType: tensorType(1)}}}
	mapType := &onnxpb.TypeProto{Value: &onnxpb.TypeProto_MapType{MapType: &onnxpb.TypeProto_Map{KeyType: proto.Int32(7), ValueType: seq}}}
	opt := &onnxpb.TypeProto{Value: &onnxpb.TypeProto_OptionalType{OptionalType: &onnxpb.TypeProto_Optional{ElemType: mapType}}, Denotation: proto.String("OPT")}
	opaque := &onnxpb.TypeProto{Value: &onnxpb.TypeProto_OpaqueType{OpaqueType: &onnxpb.TypeProto_Opaque{Domain: proto.String("d"), Name: proto.String("n")}}}
	sparseType := &onnxpb.TypeProto{Value: &onnxpb.TypeProto_SparseTensorType{SparseTensorType: &onnxpb.TypeProto_SparseTensor{ElemType: proto.Int32(1)}}}
	denoted := tensorType(1, "N", 3, nil)
	denoted.GetTensorType().Shape.Dim[0].Denotation = proto.String("DATA_BATCH")
	denoted.GetTensorType().Shape.Dim[1].Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: -1}
	denoted.GetTensorType().Shape.Dim[2].Value = &onnxpb.TensorShapeProto_Dimension_DimParam{}

	many := nodeOf("Many", "x - w", "a -",
		attrOf("f", 1, func(a *onnxpb.AttributeProto) { a.F = proto.Float32(0.5) }),
		attrOf("negative zero", 1, func(a *onnxpb.AttributeProto) { a.F = proto.Float32(float32(math.Copysign(0, -1))) }),
		attrOf("i", 2, func(a *onnxpb.AttributeProto) { a.I = proto.Int64(-1) }),
		attrOf("zero", 2, func(a *onnxpb.AttributeProto) { a.I = proto.Int64(0) }),
		attrOf("unset", 2, func(a *onnxpb.AttributeProto) {}),
		attrOf("s", 3, func(a *onnxpb.AttributeProto) { a.S = []byte("\xff\x00") }),
		attrOf("empty", 3, func(a *onnxpb.AttributeProto) { a.S = []byte{} }),
		attrOf("t", 4, func(a *onnxpb.AttributeProto) { a.T = raw("inner", 10, 4, 2); a.DocString = proto.String("doc") }),
		attrOf("floats", 6, func(a *onnxpb.AttributeProto) { a.Floats = []float32{1, 2} }),
		attrOf("ints", 7, func(a *onnxpb.AttributeProto) { a.Ints = []int64{1, -2}; a.I = proto.Int64(9) }),
		attrOf("strings", 8, func(a *onnxpb.AttributeProto) { a.Strings = [][]byte{{'a'}, {}} }),
		attrOf("tensors", 9, func(a *onnxpb.AttributeProto) {
			a.Tensors = []*onnxpb.TensorProto{floatTensor("", 1), raw("", 9, 0, 0)}
		}),
		attrOf("sparse", 11, func(a *onnxpb.AttributeProto) { a.SparseTensor = sparse("") }),
		attrOf("sparses", 12, func(a *onnxpb.AttributeProto) {
			a.SparseTensors = []*onnxpb.SparseTensorProto{sparse(""), sparse("q")}
		}),
		attrOf("type", 13, func(a *onnxpb.AttributeProto) { a.Tp = opt }),
		attrOf("types", 14, func(a *onnxpb.AttributeProto) { a.TypeProtos = []*onnxpb.TypeProto{seq, opaque, {}} }),
		attrOf("no ints", 7, func(a *onnxpb.AttributeProto) {}),
		&onnxpb.AttributeProto{Name: proto.String("untyped"), I: proto.Int64(3)},
		&onnxpb.AttributeProto{Name: proto.String("nothing"), Type: onnxpb.AttributeProto_UNDEFINED.Enum()},
	)
	many.Domain, many.Overload, many.DocString, many.Name = proto.String("com.example"), proto.String("v2"), proto.String("a node"), proto.String("")
	many.MetadataProps = entries("k", "", "", "v")
	many.DeviceConfigurations = []*onnxpb.NodeDeviceConfigurationProto{{ConfigurationId: proto.String("c"), PipelineStage: proto.Int32(1),
		ShardingSpec: []*onnxpb.ShardingSpecProto{{TensorName: proto.String("x"), Device: []int64{0, 1}}}}}
	nested := nodeOf("If", "cond", "n",
		attrOf("then_branch", 5, func(a *onnxpb.AttributeProto) { a.G = body("t1", nodeOf("Neg", "a", "t1")) }),
		attrOf("else_branch", 5, func(a *onnxpb.AttributeProto) {
			inner := body("e2", nodeOf("Add", "e1 iw", "e2"))
			inner.Initializer = []*onnxpb.TensorProto{floatTensor("iw", 1, 2)}
			inner.ValueInfo = []*onnxpb.ValueInfoProto{valueInfoOf("e2", tensorType(1, 2)), valueInfoOf("a", tensorType(1, 2))}
			a.G = body("e3", nodeOf("Neg", "a", "e1"), nodeOf("If", "cond", "e3",
				attrOf("then_branch", 5, func(a *onnxpb.AttributeProto) { a.G = inner }),
				attrOf("else_branch", 5, func(a *onnxpb.AttributeProto) { a.G = body("a") })))
		}),
	)
	graphs := nodeOf("Switch", "", "sw", attrOf("cases", 10, func(a *onnxpb.AttributeProto) {
		a.Graphs = []*onnxpb.GraphProto{body("c1", nodeOf("C", "", "c1")), body("c2", nodeOf("C", "x", "c2"))}
	}))
	call := nodeOf("Fn", "n a", "called", attrOf("alpha", 1, func(a *onnxpb.AttributeProto) { a.F = proto.Float32(2) }))
	call.Domain = proto.String("loc")
	alias := nodeOf("Identity", "called", "y")
	alias.Domain = proto.String("ai.onnx")

	ref := &onnxpb.AttributeProto{Name: proto.String("alpha"), RefAttrName: proto.String("alpha"), Type: onnxpb.AttributeProto_FLOAT.Enum()}
	ints32 := func(name string, d tensor.DType, n int64, v ...int32) *onnxpb.TensorProto {
		return &onnxpb.TensorProto{Name: &name, DataType: proto.Int32(int32(d)), Dims: []int64{n}, Int32Data: v}
	}
	w := raw("w", 1, 8, 2)
	w.DocString, w.MetadataProps = proto.String("weights"), entries("a", "b")
	return &onnxpb.ModelProto{
		IrVersion: proto.Int64(10), ProducerName: proto.String("p"), ProducerVersion: proto.String(""), Domain: proto.String("dom"),
		ModelVersion: proto.Int64(0), DocString: proto.String("model"),
		OpsetImport: []*onnxpb.OperatorSetIdProto{{Domain: proto.String("ai.onnx"), Version: proto.Int64(21)}, {Version: proto.Int64(21)},
			{Domain: proto.String("loc"), Version: proto.Int64(1)}, {Domain: proto.String("com.example"), Version: proto.Int64(1)}},
		MetadataProps: entries("k", "v", "", ""),
		TrainingInfo:  []*onnxpb.TrainingInfoProto{{Initialization: body("x"), InitializationBinding: entries("w", "x")}},
		Configuration: []*onnxpb.DeviceConfigurationProto{{Name: proto.String("c"), NumDevices: proto.Int32(2), Device: []string{"a", "b"}}},
		Functions: []*onnxpb.FunctionProto{{
			Name: proto.String("Fn"), Domain: proto.String("loc"), Overload: proto.String(""), Input: []string{"p", "q"}, Output: []string{"r"},
			Attribute: []string{"alpha"}, DocString: proto.String("fn"), MetadataProps: entries("f", "g"),
			AttributeProto: []*onnxpb.AttributeProto{attrOf("beta", 4, func(a *onnxpb.AttributeProto) { a.T = raw("", 1, 4) })},
			OpsetImport:    []*onnxpb.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(21)}},
			Node:           []*onnxpb.NodeProto{nodeOf("LeakyRelu", "p", "l", ref), nodeOf("Add", "l q", "r")},
			ValueInfo:      []*onnxpb.ValueInfoProto{valueInfoOf("nowhere", seq), valueInfoOf("l", tensorType(1, "N"))},
		}},
		Graph: &onnxpb.GraphProto{
			Name: proto.String(""), DocString: proto.String("graph"), MetadataProps: entries("m", "n"),
			Node: []*onnxpb.NodeProto{many, nested, graphs, call, alias},
			Initializer: []*onnxpb.TensorProto{w, floatTensor("typed", 1, 2, 3), raw("zero", 7, 0, 0, 3),
				{Name: proto.String("absent"), DataType: proto.Int32(1), Dims: []int64{0}},
				{Name: proto.String("str"), DataType: proto.Int32(8), Dims: []int64{2}, StringData: [][]byte{{}, {0xff}}},
				{Name: proto.String("dbl"), DataType: proto.Int32(11), DoubleData: []float64{1.5}},
				{Name: proto.String("c64"), DataType: proto.Int32(14), Dims: []int64{1}, FloatData: []float32{1, 2}},
				{Name: proto.String("u32"), DataType: proto.Int32(12), Dims: []int64{1}, Uint64Data: []uint64{math.MaxUint32}},
				ints32("i8", 3, 2, -128, 127), ints32("u8", 2, 2, 0, 255), ints32("f16", 10, 2, 0x3c00, 0xfc00), ints32("bool", 9, 2, 0, 1),
				ints32("i4", 22, 3, 0x7f, 0x08), ints32("u2", 25, 5, 0xe4, 1), ints32("i32", 6, 2, math.MinInt32, math.MaxInt32), ints32("i16", 5, 1, -2),
				raw("default", 1, 4, 1)},
			SparseInitializer: []*onnxpb.SparseTensorProto{sparse("sp")},
			Input: []*onnxpb.ValueInfoProto{valueInfoOf("x", denoted), valueInfoOf("cond", tensorType(9)), valueInfoOf("default", nil),
				{Name: proto.String("meta"), Type: sparseType, DocString: proto.String(""), MetadataProps: entries("a", "b")}},
			Output: []*onnxpb.ValueInfoProto{valueInfoOf("y", nil), valueInfoOf("x", tensorType(1, "other")), valueInfoOf("w", opt), valueInfoOf("sw", &onnxpb.TypeProto{})},
			ValueInfo: []*onnxpb.ValueInfoProto{valueInfoOf("gone", mapType), valueInfoOf("a", tensorType(0, "N")), valueInfoOf("y", tensorType(1, "N")),
				valueInfoOf("gone too", nil), valueInfoOf("w", tensorType(1)), valueInfoOf("a", seq), valueInfoOf("n", opaque)},
			QuantizationAnnotation: []*onnxpb.TensorAnnotation{{TensorName: proto.String("w"), QuantParameterTensorNames: entries("SCALE_TENSOR", "typed")}},
		},
	}
}

// spoil adds an unknown field to every message of m; the fields have numbers
// below, between and above the known ones.
func spoil(m protoreflect.Message, n *int) {
	*n++
	var b []byte
	b = protowire.AppendTag(b, 300, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(*n))
	b = protowire.AppendTag(b, 31, protowire.BytesType)
	b = protowire.AppendString(b, fmt.Sprint("unknown ", *n))
	b = protowire.AppendTag(b, 32, protowire.StartGroupType)
	b = protowire.AppendTag(b, 1, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, 7)
	b = protowire.AppendTag(b, 32, protowire.EndGroupType)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Message() == nil {
			return true
		}
		if fd.IsList() {
			for i := range v.List().Len() {
				spoil(v.List().Get(i).Message(), n)
			}
		} else {
			spoil(v.Message(), n)
		}
		return true
	})
	m.SetUnknown(b)
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkLossless loads b and saves it and compares with the other decoder.
func checkLossless(t *testing.T, b []byte) *graph.Model {
	t.Helper()
	m, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(); err != nil {
		t.Error(err)
	}
	var want, got onnxpb.ModelProto
	if err := proto.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	out := write(t, m)
	if err := proto.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(&want, &got) {
		t.Errorf("lost:\n%v\n%v", &want, &got)
	}
	again, err := Decode(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(write(t, again), out) {
		t.Error("the second round differs from the first")
	}
	return m
}

func TestLossless(t *testing.T) {
	b := marshal(t, plainModel())
	if got := write(t, checkLossless(t, b)); !bytes.Equal(got, b) {
		t.Error("not identical byte by byte")
	}
	// Go's encoder puts a oneof behind fields of higher numbers, unlike those
	// that write models, so the rest can only be equal.
	rich := richModel()
	m := checkLossless(t, marshal(t, rich))
	if !bytes.Equal(write(t, m.Clone()), write(t, m)) {
		t.Error("a copy is written otherwise")
	}
	n := 0
	spoil(rich.ProtoReflect(), &n)
	if n < 150 {
		t.Errorf("only %d messages", n)
	}
	checkLossless(t, marshal(t, rich))
}

// reversed returns the message with its fields in the reverse order, those of
// one number staying in theirs, and so on in the messages inside.
func reversed(m protoreflect.MessageDescriptor, b []byte) []byte {
	var groups [][]byte
	last := protowire.Number(0)
	s := scan(b)
	for s.next() {
		raw := s.raw()
		if fd := m.Fields().ByNumber(s.num()); fd != nil && fd.Message() != nil && s.tag&7 == blob {
			inner := reversed(fd.Message(), s.b)
			raw = protowire.AppendBytes(protowire.AppendTag(nil, s.num(), protowire.BytesType), inner)
		}
		if s.num() != last {
			groups = append(groups, nil)
			last = s.num()
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], raw...)
	}
	var out []byte
	for i := len(groups) - 1; i >= 0; i-- {
		out = append(out, groups[i]...)
	}
	return out
}

// Files need not be canonical: any order of fields, packed lists where the
// schema has them plain and the other way round.
func TestNotCanonical(t *testing.T) {
	rich := richModel()
	b := marshal(t, rich)
	back := reversed(rich.ProtoReflect().Descriptor(), b)
	if bytes.Equal(b, back) {
		t.Fatal("nothing was reversed")
	}
	m := checkLossless(t, back)
	if len(m.Graph.Initializers()) != len(rich.Graph.Initializer)+1 {
		t.Error("initializers are missing")
	}

	// w with packed dims and single elements of float_data.
	var w []byte
	w = protowire.AppendTag(w, 1, protowire.BytesType)
	w = protowire.AppendBytes(w, []byte{1, 2})
	w = protowire.AppendTag(w, 2, protowire.VarintType)
	w = protowire.AppendVarint(w, 1)
	for _, v := range []float32{3, 4} {
		w = protowire.AppendTag(w, 4, protowire.Fixed32Type)
		w = protowire.AppendFixed32(w, math.Float32bits(v))
	}
	_, x, err := DecodeTensor(w)
	if err != nil || x.String() != "float[1,2]" || tensor.As[float32](x)[1] != 4 {
		t.Error(x, err)
	}
	// An attribute with packed ints.
	var a []byte
	a = protowire.AppendTag(a, 1, protowire.BytesType)
	a = protowire.AppendString(a, "pads")
	a = protowire.AppendTag(a, 8, protowire.BytesType)
	a = protowire.AppendBytes(a, []byte{1, 0})
	a = protowire.AppendTag(a, 20, protowire.VarintType)
	a = protowire.AppendVarint(a, 7)
	attr, err := newLoader(nil).attr(a, nil)
	if err != nil || len(attr.Ints) != 2 || attr.Ints[0] != 1 {
		t.Error(attr, err)
	}
}

// Elements in typed fields, as the comments of TensorProto place them.
func TestTypedFields(t *testing.T) {
	m, err := Decode(marshal(t, richModel()))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	want := map[string][]byte{
		"typed": {0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64},
		"i8":    {0x80, 0x7f}, "u8": {0, 255}, "f16": {0, 0x3c, 0, 0xfc}, "bool": {0, 1}, "i4": {0x7f, 0x08}, "u2": {0xe4, 1},
		"i32": {0, 0, 0, 0x80, 0xff, 0xff, 0xff, 0x7f}, "i16": {0xfe, 0xff}, "u32": {0xff, 0xff, 0xff, 0xff},
		"dbl": {0, 0, 0, 0, 0, 0, 0xf8, 0x3f}, "c64": {0, 0, 128, 63, 0, 0, 0, 64}, "absent": {}, "zero": {},
	}
	for _, v := range m.Graph.Initializers() {
		if w, ok := want[v.Name()]; ok {
			if !bytes.Equal(v.Const.Bytes(), w) {
				t.Errorf("%s: % x, want % x", v.Name(), v.Const.Bytes(), w)
			}
			delete(want, v.Name())
		}
		if v.Name() == "str" && (v.Const.Strings()[0] != "" || v.Const.Strings()[1] != "\xff") {
			t.Errorf("%q", v.Const.Strings())
		}
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}

// What is edited is written as edited, and nothing else changes.
func TestEditsAreWritten(t *testing.T) {
	rich := richModel()
	m, err := Decode(marshal(t, rich))
	if err != nil {
		t.Fatal(err)
	}
	m.ProducerVersion, m.ModelVersion = "2", 5 // both were stated as zero
	g := m.Graph
	w := g.Initializers()[0]
	w.Rename("w2")
	w.Type = graph.TensorType(tensor.Float32, graph.ShapeOf(2))
	typed := g.Initializers()[1]
	typed.Const = tensor.Of([]float32{7})
	g.Inputs()[0].Type = graph.TensorType(tensor.Float32, graph.ShapeOf(4))
	g.First().Name = "named"
	g.First().SetAttr(graph.Int("unset", 3))
	g.First().Attr("i").I = 0

	want := rich
	want.ProducerVersion, want.ModelVersion = proto.String("2"), proto.Int64(5)
	pg := want.Graph
	pg.Initializer[0].Name = proto.String("w2")
	pg.Initializer[1] = &onnxpb.TensorProto{Name: proto.String("typed"), DataType: proto.Int32(1), Dims: []int64{1}, RawData: []byte{0, 0, 224, 64}}
	pg.Input[0].Type = tensorType(1, 4)
	pg.Output[1].Type = tensorType(1, 4)
	pg.Output[2] = valueInfoOf("w2", tensorType(1, 2))
	pg.ValueInfo[4] = valueInfoOf("w2", tensorType(1, 2))
	pg.Node[0].Name = proto.String("named")
	pg.Node[0].Input[2] = "w2"
	for _, a := range pg.Node[0].Attribute {
		switch a.GetName() {
		case "unset":
			a.I = proto.Int64(3)
		case "i":
			a.I = proto.Int64(0)
		}
	}
	var got onnxpb.ModelProto
	if err := proto.Unmarshal(write(t, m), &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(&got, want) {
		t.Errorf("%v\nwant\n%v", &got, want)
	}
}

func FuzzLoad(f *testing.F) {
	rich := richModel()
	b := marshal(f, rich)
	f.Add(marshal(f, plainModel()))
	f.Add(b)
	f.Add(reversed(rich.ProtoReflect().Descriptor(), b))
	n := 0
	spoil(rich.ProtoReflect(), &n)
	f.Add(marshal(f, rich))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bound(t)
		m, err := Decode(b, WithLimits(Limits{Objects: 1 << 16, Memory: 1 << 24}))
		if err != nil {
			return
		}
		if err := m.Verify(); err != nil {
			t.Fatal(err)
		}
		out := write(t, m)
		again, err := Decode(out)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(write(t, again), out) {
			t.Fatal("the second round differs from the first")
		}
		var want, got onnxpb.ModelProto
		if proto.Unmarshal(b, &want) != nil {
			return
		}
		if err := proto.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(&want, &got) {
			t.Fatalf("lost:\n%v\n%v", &want, &got)
		}
	})
}
