package onnxfile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/onnxpb"
	"github.com/onnxq/onnxq/tensor"
)

// checkRejected checks that err is a ContentError (or, for limits, a
// LimitError) that says want.
func checkRejected(t *testing.T, name string, err error, want string) {
	t.Helper()
	var ce *ContentError
	var le *LimitError
	switch {
	case err == nil:
		t.Errorf("%s: no error", name)
	case !strings.Contains(err.Error(), want):
		t.Errorf("%s: %q does not say %q", name, err, want)
	case errors.As(err, &le) == errors.As(err, &ce):
		t.Errorf("%s: error of type %T", name, err)
	case strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f }):
		t.Errorf("%s: control characters in %q", name, err)
	}
}

func TestRejected(t *testing.T) {
	type model = onnxpb.ModelProto
	type tensorProto = onnxpb.TensorProto
	w := func(edit func(w *tensorProto)) func(m *model) {
		return func(m *model) { edit(m.Graph.Initializer[0]) }
	}
	typed := func(d tensor.DType, dims []int64, edit func(w *tensorProto)) func(m *model) {
		return w(func(w *tensorProto) {
			w.DataType, w.Dims, w.RawData = proto.Int32(int32(d)), dims, nil
			edit(w)
		})
	}
	fn := func(name string, calls ...string) *onnxpb.FunctionProto {
		f := &onnxpb.FunctionProto{Name: &name, Domain: proto.String("loc")}
		for i, c := range calls {
			n := nodeOf(c, "", fmt.Sprint("v", i))
			n.Domain = proto.String("loc")
			f.Node = append(f.Node, n)
		}
		return f
	}
	sparse := func(edit func(s *onnxpb.SparseTensorProto)) func(m *model) {
		return func(m *model) {
			s := &onnxpb.SparseTensorProto{Values: floatTensor("s", 1, 2), Dims: []int64{2, 3},
				Indices: &tensorProto{DataType: proto.Int32(7), Dims: []int64{2}, Int64Data: []int64{0, 5}}}
			edit(s)
			m.Graph.SparseInitializer = append(m.Graph.SparseInitializer, s)
		}
	}
	addNode := func(n *onnxpb.NodeProto) func(m *model) {
		return func(m *model) { m.Graph.Node = append(m.Graph.Node, n) }
	}
	for _, c := range []struct {
		name, want string
		edit       func(m *model)
	}{
		{"no graph", "holds no graph", func(m *model) { m.Graph = nil }},
		{"opset 0", "version 0", func(m *model) { m.OpsetImport[0].Version = nil }},
		{"two opsets", `imported in the versions 17 and 11`, func(m *model) {
			m.OpsetImport = append(m.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: proto.String("ai.onnx"), Version: proto.Int64(11)})
		}},
		{"input without a type", `tensor "x": the input has no type`, func(m *model) { m.Graph.Input[0].Type = nil }},
		{"two inputs of a name", `tensor "x": the name is defined twice`, func(m *model) { m.Graph.Input = append(m.Graph.Input, m.Graph.Input[0]) }},
		{"output of nobody", `tensor "ghost": the graph output is defined nowhere`, func(m *model) { m.Graph.Output[0].Name = proto.String("ghost") }},
		{"input of nobody", `node "y" (Add), tensor "ghost": the input is defined nowhere`, func(m *model) { m.Graph.Node[0].Input[1] = "ghost" }},
		{"self-loop", `node "y" (Add), tensor "y": the node reads its own output`, func(m *model) { m.Graph.Node[0].Input[1] = "y" }},
		{"cycle", `tensor "z": the input is used before its definition`, func(m *model) {
			m.Graph.Node[0].Input[1] = "z"
			m.Graph.Node = append(m.Graph.Node, nodeOf("Neg", "y", "z"))
		}},
		{"two initializers of a name", `tensor "w": the name is defined twice: two initializers`, func(m *model) { m.Graph.Initializer = append(m.Graph.Initializer, m.Graph.Initializer[0]) }},
		{"initializer and output of a name", `node "w" (Neg), tensor "w": the name is defined twice`, addNode(nodeOf("Neg", "x", "w"))},
		{"no operator", "without an operator", addNode(nodeOf("", "x", "z"))},
		{"operator with escapes", `(a\x1b[2J)`, addNode(nodeOf("a\x1b[2J", "nil", "z"))},
		{"attribute twice", `attribute "a" is given twice`, addNode(nodeOf("Op", "", "z", attrOf("a", 2, func(*onnxpb.AttributeProto) {}), attrOf("a", 2, func(*onnxpb.AttributeProto) {})))},
		{"attribute without a name", "it has no name", addNode(nodeOf("Op", "", "z", &onnxpb.AttributeProto{}))},
		{"attribute of unknown type", `attribute "a": unknown type 15`, addNode(nodeOf("Op", "", "z", attrOf("a", 15, func(*onnxpb.AttributeProto) {})))},
		{"tensor attribute without a tensor", `attribute "a": it has no value`, addNode(nodeOf("Op", "", "z", attrOf("a", 4, func(*onnxpb.AttributeProto) {})))},
		{"tensor attribute with a bad tensor", `node "z" (Op): attribute "a": tensor "t": no data`, addNode(nodeOf("Op", "", "z", attrOf("a", 4, func(a *onnxpb.AttributeProto) {
			a.T = &tensorProto{Name: proto.String("t"), DataType: proto.Int32(1)}
		})))},
		{"shadowing", `scope "z/b", node "x" (Neg), tensor "x": the name is taken`, addNode(nodeOf("If", "", "z", attrOf("b", 5, func(a *onnxpb.AttributeProto) {
			a.G = &onnxpb.GraphProto{Node: []*onnxpb.NodeProto{nodeOf("Neg", "y", "x")}}
		})))},
		{"own output in a body", `scope "z/b", tensor "z": the graph output is defined nowhere`, addNode(nodeOf("If", "", "z", attrOf("b", 5, func(a *onnxpb.AttributeProto) {
			a.G = &onnxpb.GraphProto{Output: []*onnxpb.ValueInfoProto{valueInfoOf("z", nil)}}
		})))},
		{"deep bodies", "limit depth=100", func(m *model) {
			g := &onnxpb.GraphProto{}
			for range 200 {
				a := attrOf("b", 5, func(a *onnxpb.AttributeProto) {})
				a.G = g
				g = &onnxpb.GraphProto{Node: []*onnxpb.NodeProto{nodeOf("If", "", "", a)}}
			}
			m.Graph.Node = append(m.Graph.Node, g.Node...)
		}},
		{"deep type", "limit depth=100", func(m *model) {
			for range 200 {
				m.Graph.Input[0].Type = &onnxpb.TypeProto{Value: &onnxpb.TypeProto_SequenceType{SequenceType: &onnxpb.TypeProto_Sequence{ElemType: m.Graph.Input[0].Type}}}
			}
		}},
		{"unknown element type of a value", "unknown element type 999", func(m *model) {
			m.Graph.Input[0].Type = tensorType(0)
			m.Graph.Input[0].Type.GetTensorType().ElemType = proto.Int32(999)
		}},

		{"function twice", `two functions are called "loc.F"`, func(m *model) { m.Functions = append(m.Functions, fn("F"), fn("F")) }},
		{"function calls itself", `function "loc.F" calls itself`, func(m *model) { m.Functions = append(m.Functions, fn("F", "F")) }},
		{"functions in a circle", `calls itself`, func(m *model) { m.Functions = append(m.Functions, fn("F", "G"), fn("G", "H"), fn("H", "F")) }},
		{"function sees the graph", `scope "function loc.F", node "r" (Neg), tensor "x": the input is defined nowhere`, func(m *model) {
			f := fn("F")
			f.Node = []*onnxpb.NodeProto{nodeOf("Neg", "x", "r")}
			m.Functions = append(m.Functions, f)
		}},
		{"function without its output", `tensor "r": the function's output is defined nowhere`, func(m *model) {
			f := fn("F")
			f.Output = []string{"r"}
			m.Functions = append(m.Functions, f)
		}},

		{"raw short", `tensor "w": 4 bytes of data, float[2] needs 8`, w(func(w *tensorProto) { w.RawData = w.RawData[:4] })},
		{"raw odd", `7 bytes of data`, w(func(w *tensorProto) { w.RawData = w.RawData[:7] })},
		{"raw long", `9 bytes of data`, w(func(w *tensorProto) { w.RawData = make([]byte, 9) })},
		{"no data", `no data for float[2]`, w(func(w *tensorProto) { w.RawData = nil })},
		{"no name", "initializer without a name", w(func(w *tensorProto) { w.Name = nil })},
		{"data twice", "both raw_data and float_data", w(func(w *tensorProto) { w.FloatData = []float32{1, 2} })},
		{"two typed fields", "both float_data and double_data", typed(1, []int64{1}, func(w *tensorProto) { w.FloatData, w.DoubleData = []float32{1}, []float64{1} })},
		{"wrong field", "float elements in int32_data", typed(1, []int64{1}, func(w *tensorProto) { w.Int32Data = []int32{1} })},
		{"float_data short", "4 bytes of data, float[2] needs 8", typed(1, []int64{2}, func(w *tensorProto) { w.FloatData = []float32{1} })},
		{"int32_data short", "1 entries of int32_data", typed(3, []int64{2}, func(w *tensorProto) { w.Int32Data = []int32{1} })},
		{"int4 unpacked", "3 entries of int32_data", typed(22, []int64{3}, func(w *tensorProto) { w.Int32Data = []int32{1, 2, 3} })},
		{"int8 out of range", "256 in int32_data is out of the range of int8", typed(3, []int64{1}, func(w *tensorProto) { w.Int32Data = []int32{256} })},
		{"uint32 out of range", "out of the range of uint32", typed(12, []int64{1}, func(w *tensorProto) { w.Uint64Data = []uint64{1 << 32} })},
		{"strings missing", "1 strings for shape [2]", typed(8, []int64{2}, func(w *tensorProto) { w.StringData = [][]byte{{}} })},
		{"raw strings", "strings in raw_data", w(func(w *tensorProto) { w.DataType = proto.Int32(8) })},
		{"element type -1", "element type -1 is not supported", w(func(w *tensorProto) { w.DataType = proto.Int32(-1) })},
		{"element type 0", "element type 0 is not supported", w(func(w *tensorProto) { w.DataType = nil })},
		{"element type 257", "element type 257 is not supported", w(func(w *tensorProto) { w.DataType = proto.Int32(257) })},
		{"dimension -1", "dimension 0 of shape [-1 8] is negative", w(func(w *tensorProto) { w.Dims = []int64{-1, 8} })},
		{"product 2^64", "too many elements", w(func(w *tensorProto) { w.Dims = []int64{1 << 32, 1 << 32} })},
		{"product wraps to 2", "too many elements", w(func(w *tensorProto) { w.Dims = []int64{1<<63 - 1, 2, math.MaxInt64, 2} })},
		{"bytes wrap", "too many elements", w(func(w *tensorProto) { w.Dims = []int64{1 << 62} })},
		{"rank", "limit rank=256", w(func(w *tensorProto) {
			w.Dims = nil
			for range 300 {
				w.Dims = append(w.Dims, 1)
			}
		})},
		{"segment", "segments", w(func(w *tensorProto) { w.Segment = &onnxpb.TensorProto_Segment{} })},
		{"external", "no folder", w(func(w *tensorProto) {
			w.RawData, w.DataLocation, w.ExternalData = nil, onnxpb.TensorProto_EXTERNAL.Enum(), entries("location", "x")
		})},

		{"sparse index", "index 1 is 6, out of range for shape [2 3]", sparse(func(s *onnxpb.SparseTensorProto) { s.Indices.Int64Data[1] = 6 })},
		{"sparse index -1", "index 0 is -1", sparse(func(s *onnxpb.SparseTensorProto) { s.Indices.Int64Data[0] = -1 })},
		{"sparse coordinates", "out of range for dimension 1", sparse(func(s *onnxpb.SparseTensorProto) {
			s.Indices.Dims, s.Indices.Int64Data = []int64{2, 2}, []int64{0, 0, 0, 3}
		})},
		{"sparse shapes", "indices of shape [1] for 2 values", sparse(func(s *onnxpb.SparseTensorProto) { s.Indices.Dims, s.Indices.Int64Data = []int64{1}, []int64{0} })},
		{"sparse without indices", "values or indices are missing", sparse(func(s *onnxpb.SparseTensorProto) { s.Indices = nil })},
		{"sparse index type", "int64 needed", sparse(func(s *onnxpb.SparseTensorProto) { s.Indices = floatTensor("", 0, 1) })},
		{"sparse dims", "too many elements", sparse(func(s *onnxpb.SparseTensorProto) { s.Dims = []int64{1 << 62, 1 << 62} })},
		{"sparse of no name", "without a name", sparse(func(s *onnxpb.SparseTensorProto) { s.Values.Name = nil })},
	} {
		m := plainModel()
		c.edit(m)
		_, err := Decode(marshal(t, m))
		checkRejected(t, c.name, err, c.want)
	}
}

func TestNoModel(t *testing.T) {
	two := marshal(t, plainModel())
	for _, c := range []struct{ content, want string }{
		{"", "the file is empty"},
		{"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"},
		{"\n<!DOCTYPE html>\n<html>", "HTML"},
		{"<html><body>404</body></html>", "HTML"},
		{"PK\x03\x04aaaaaaaaaaaa", "zip archive"},
		{"ir_version: 8\ngraph {\n}", "text form"},
		{"\x10\x00\x00\x00ORTMaaaaa", "ONNX Runtime's own format"},
		{"\x08\x08", "holds no graph"},
		{"\xff\xff\xff\xff", "malformed protobuf"},
		{"\x3a\x80\x80\x80\x80\x08", "malformed protobuf"},                                           // 2 GiB graph
		{"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + string(two), "malformed protobuf"}, // varint of 12 bytes
		{string(two) + string(two), "two main graphs"},
		{strings.Repeat("\x0b", 20000), "malformed protobuf"}, // groups without end
	} {
		path := filepath.Join(t.TempDir(), "m.onnx")
		if err := os.WriteFile(path, []byte(c.content), 0o666); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		checkRejected(t, c.content[:min(len(c.content), 20)], err, c.want)
		if err != nil && !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%q does not name the file", err)
		}
	}
	var pe *fs.PathError
	for _, path := range []string{filepath.Join(t.TempDir(), "missing.onnx"), t.TempDir()} {
		if _, err := Open(path); !errors.As(err, &pe) {
			t.Errorf("%s: error %v", path, err)
		}
	}
}

// Any part of a file is an error or a model, and nothing else.
func TestTruncated(t *testing.T) {
	b := marshal(t, richModel())
	loaded := 0
	for i := range b {
		if m, err := Decode(b[:i]); err == nil {
			loaded++
			if err := m.Verify(); err != nil {
				t.Error(err)
			}
		}
	}
	if loaded > 20 {
		t.Errorf("%d parts of %d load", loaded, len(b))
	}
}

func TestLimits(t *testing.T) {
	b := marshal(t, richModel())
	for _, c := range []struct {
		lim  Limits
		name string
	}{
		{Limits{Depth: 5}, "depth"}, {Limits{Rank: 1}, "rank"}, {Limits{Nodes: 3}, "nodes"}, {Limits{Objects: 50}, "objects"}, {Limits{Memory: 4}, "memory"},
	} {
		_, err := Decode(b, WithLimits(c.lim))
		var le *LimitError
		if !errors.As(err, &le) || le.Name != c.name {
			t.Errorf("%+v: error %v", c.lim, err)
		}
		var ce *ContentError
		if errors.As(err, &ce) {
			t.Error("a limit is no bad content")
		}
	}
	var le *LimitError
	if _, err := Read(bytes.NewReader(b), WithLimits(Limits{Memory: 100})); !errors.As(err, &le) {
		t.Errorf("stream: error %v", err)
	}
	// What few bytes can ask for: nodes, attributes, values, strings.
	for name, entry := range map[string][]byte{
		"nodes":      field(1, append(field(4, []byte("a")), field(5, field(1, []byte("b")))...)),
		"empty":      field(1, nil),
		"values":     field(13, nil),
		"properties": field(16, nil),
		"outputs":    field(1, append(field(4, []byte("a")), bytes.Repeat(field(2, nil), 1000)...)),
		"strings":    field(5, bytes.Repeat(field(6, nil), 1000)),
		"sparse":     field(15, nil),
	} {
		g := field(7, bytes.Repeat(entry, 5<<20/len(entry)))
		n := allocated(func() {
			if _, err := Decode(g, WithLimits(Limits{Objects: 1 << 20})); err == nil {
				t.Errorf("%s: no error", name)
			}
		})
		if n > 128<<20 { // an eighth of 1 GiB for an eighth of the default limit
			t.Errorf("%s: %d MiB allocated", name, n>>20)
		}
	}
}

func field(num protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
}

// within fails the test if f does not end soon, as it would on a named pipe.
func within(t *testing.T, d time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatal("hangs")
	}
}

func TestExternalData(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "models")
	data := make([]byte, 16)
	for i := range data {
		data[i] = byte(i)
	}
	sum := sha1.Sum(data)
	put := func(name string) {
		if err := os.WriteFile(filepath.Join(outer, name), data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"secret", "models/ok.data", "models/sub/ok.data", "models/blob", "models/linked"} {
		put(name)
	}
	links := true
	for link, target := range map[string]string{"escape": "../secret", "dirlink": "..", "inside": "blob", "absolute": filepath.Join(outer, "secret"), "loop": "loop"} {
		links = links && os.Symlink(target, filepath.Join(dir, link)) == nil
	}
	links = links && os.Link(filepath.Join(dir, "linked"), filepath.Join(dir, "linked2")) == nil
	if !links {
		t.Log("no links on this file system: their cases are skipped")
	}
	pipe := makePipe(filepath.Join(dir, "pipe")) == nil
	if !pipe {
		t.Log("no named pipes on this system: their case is skipped")
	}
	const accepted = ""
	for _, c := range []struct {
		name, want string
		keys       []string
	}{
		{"plain", accepted, []string{"location", "ok.data"}},
		{"all keys", accepted, []string{"location", "ok.data", "offset", "0", "length", "8", "checksum", hex.EncodeToString(sum[:])}},
		{"upper-case checksum", accepted, []string{"location", "ok.data", "checksum", strings.ToUpper(hex.EncodeToString(sum[:]))}},
		{"odd offset", accepted, []string{"location", "ok.data", "offset", "3"}},
		{"folder", accepted, []string{"location", "sub/ok.data"}},
		{"dot slash", accepted, []string{"location", "./sub/../ok.data"}},
		{"unknown key", accepted, []string{"location", "ok.data", "__class__", "x"}},
		{"link inside", accepted, []string{"location", "inside"}},

		{"wrong checksum", "checksum is", []string{"location", "ok.data", "checksum", strings.Repeat("0", 40)}},
		{"no location", "no location", []string{"offset", "0"}},
		{"up", "is not a file in the model's folder", []string{"location", "../secret"}},
		{"hidden up", "is not a file in the model's folder", []string{"location", "sub/../../secret"}},
		{"absolute", "is not a file in the model's folder", []string{"location", filepath.Join(outer, "secret")}},
		{"device", "is not a file in the model's folder", []string{"location", "/dev/zero"}},
		{"dot", "is not a file in the model's folder", []string{"location", "."}},
		{"backslash", "is not a file in the model's folder", []string{"location", `..\secret`}},
		{"NUL", `"ok.data\x00/../../secret" is not`, []string{"location", "ok.data\x00/../../secret"}},
		{"escaping link", "leads out of the model's folder", []string{"location", "escape"}},
		{"escaping folder link", "leads out of the model's folder", []string{"location", "dirlink/secret"}},
		{"absolute link", "leads out of the model's folder", []string{"location", "absolute"}},
		{"hard link", "further hard links", []string{"location", "linked"}},
		{"directory", "not a regular file", []string{"location", "sub"}},
		{"pipe", "not a regular file", []string{"location", "pipe"}},
		{"itself", "is the model itself", []string{"location", "m.onnx"}},
		{"two locations", "key location is given twice", []string{"location", "ok.data", "location", "../secret"}},
		{"offset past the end", "8 bytes from 9 on, but the file has 16", []string{"location", "ok.data", "offset", "9"}},
		{"offset wraps", "not a number of bytes", []string{"location", "ok.data", "offset", "18446744073709551608"}},
		{"large offset", "but the file has 16", []string{"location", "ok.data", "offset", "9223372036854775807"}},
		{"negative offset", "not a number of bytes", []string{"location", "ok.data", "offset", "-1"}},
		{"offset in words", "not a number of bytes", []string{"location", "ok.data", "offset", "one"}},
		{"negative length", "not a number of bytes", []string{"location", "ok.data", "length", "-1"}},
		{"huge length", "length 1125899906842624, but the tensor needs 8", []string{"location", "ok.data", "length", "1125899906842624"}},
		{"short length", "length 4, but the tensor needs 8", []string{"location", "ok.data", "length", "4"}},
	} {
		if !links && strings.Contains(c.name, "link") || !pipe && c.name == "pipe" {
			continue
		}
		p := plainModel()
		w := p.Graph.Initializer[0]
		w.RawData, w.DataLocation, w.ExternalData = nil, onnxpb.TensorProto_EXTERNAL.Enum(), entries(c.keys...)
		path := filepath.Join(dir, "m.onnx")
		if err := os.WriteFile(path, marshal(t, p), 0o666); err != nil {
			t.Fatal(err)
		}
		var m *graph.Model
		var err error
		within(t, time.Minute, func() { m, err = Open(path) })
		if c.want != accepted {
			checkRejected(t, c.name, err, c.want)
			if err != nil && c.name != "no location" && !strings.Contains(err.Error(), `tensor "w"`) {
				t.Errorf("%s: %q does not name the tensor", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		off := 0
		for i, k := range c.keys {
			if k == "offset" {
				fmt.Sscan(c.keys[i+1], &off)
			}
		}
		if got := m.Graph.Initializers()[0].Const.Bytes(); !bytes.Equal(got, data[off:off+8]) {
			t.Errorf("%s: % x", c.name, got)
		}
		m.Close()
	}

	for name, loc := range map[string]string{"missing": "missing.data", "memory marker": "*/_ORT_MEM_ADDR_/*", "loop": "loop"} {
		if !links && name == "loop" {
			continue
		}
		p := plainModel()
		w := p.Graph.Initializer[0]
		w.RawData, w.DataLocation, w.ExternalData = nil, onnxpb.TensorProto_EXTERNAL.Enum(), entries("location", loc)
		path := filepath.Join(dir, "m.onnx")
		if err := os.WriteFile(path, marshal(t, p), 0o666); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		var pe *fs.PathError
		var ce *ContentError
		if !errors.As(err, &pe) || errors.As(err, &ce) || !strings.Contains(err.Error(), path+": ") || !strings.Contains(err.Error(), loc) {
			t.Errorf("%s: a condition of the file system expected: %v", name, err)
		}
	}
	for name, edit := range map[string]func(w *onnxpb.TensorProto){
		"both in the file and external": func(w *onnxpb.TensorProto) { w.RawData = make([]byte, 8) },
		"strings can not be external":   func(w *onnxpb.TensorProto) { w.DataType = proto.Int32(8) },
		"4503599627370496 bytes from 0": func(w *onnxpb.TensorProto) { w.Dims = []int64{1 << 50} },
		"more than 64 keys of external": func(w *onnxpb.TensorProto) {
			w.ExternalData = entries(strings.Split(strings.Repeat("a,", 200), ",")[:200]...)
		},
		"unknown data location 2": func(w *onnxpb.TensorProto) { w.DataLocation = onnxpb.TensorProto_DataLocation(2).Enum() },
	} {
		p := plainModel()
		w := p.Graph.Initializer[0]
		w.RawData, w.DataLocation, w.ExternalData = nil, onnxpb.TensorProto_EXTERNAL.Enum(), entries("location", "ok.data")
		edit(w)
		path := filepath.Join(dir, "m.onnx")
		if err := os.WriteFile(path, marshal(t, p), 0o666); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		checkRejected(t, name, err, name)
	}
}

// TestHostileCorpus runs the shared corpus of malformed and awkward models as
// far as loading has to decide on them.
func TestHostileCorpus(t *testing.T) {
	src := shared(t, "hostile")
	dir := t.TempDir()
	unpack(t, filepath.Join(src, "cases.tar.gz"), dir)
	var cases map[string]struct {
		File, Expect, Category string
		Alt                    bool
	}
	b, err := os.ReadFile(filepath.Join(src, "expect.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	var order []string
	for name := range cases {
		order = append(order, name)
	}
	sort.Strings(order)
	counts := map[string]int{}
	for _, name := range order {
		c := cases[name]
		var m *graph.Model
		var err error
		within(t, time.Minute, func() { m, err = Open(filepath.Join(dir, c.File)) })
		var ce *ContentError
		var le *LimitError
		switch mustReject := c.Category == "wire" || c.Category == "nesting" || c.Category == "external" || c.Category == "graph" || c.Category == "tensor"; {
		case err == nil && c.Expect == "reject" && mustReject && !c.Alt:
			t.Errorf("%s: loaded", name)
		case err != nil && c.Expect == "accept" && !c.Alt:
			t.Errorf("%s: %v", name, err)
		case err != nil && !errors.As(err, &ce) && !errors.As(err, &le):
			t.Errorf("%s: error of type %T: %v", name, err, err)
		case err != nil:
			counts["rejected"]++
		default:
			counts["loaded"]++
			out := filepath.Join(dir, "out.onnx")
			save(t, m, out, SaveOptions{})
			again := open(t, out)
			if !bytes.Equal(write(t, again), write(t, m)) {
				t.Errorf("%s: not the same after saving", name)
			}
		}
		if m != nil {
			m.Close()
		}
	}
	t.Logf("%d cases: %v; the others of the corpus are for later stages", len(cases), counts)
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if !strings.HasPrefix(path, dir) || strings.HasPrefix(h.Name, "./calib") || strings.HasPrefix(h.Name, "calib") {
			continue
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o777)
		case tar.TypeReg:
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				os.MkdirAll(filepath.Dir(path), 0o777)
				err = os.WriteFile(path, b, 0o666)
			}
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, path)
		case tar.TypeLink:
			err = os.Link(filepath.Join(dir, h.Linkname), path)
		case tar.TypeFifo:
			err = makePipe(path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
