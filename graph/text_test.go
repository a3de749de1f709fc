package graph_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/fuzztest"
	"github.com/onnxq/onnxq/tensor"
)

// outline is the part of a model that a text can say, except the elements of
// tensors, which it appends to ts.
func outline(m *graph.Model, ts *[]*tensor.Tensor) string {
	var b strings.Builder
	value := func(v *graph.Value) string {
		if v == nil {
			return "-"
		}
		return fmt.Sprintf("%q:%s:%v%v", v.Name(), typeOutline(v.Type), v.IsInput(), v.IsInitializer())
	}
	values := func(list []*graph.Value) {
		for _, v := range list {
			b.WriteString(value(v) + " ")
		}
		b.WriteByte('\n')
	}
	attrs := func(list []*graph.Attr) {
		for _, a := range list {
			fmt.Fprintf(&b, "  %q %d %x %d %q %q %x %v %q %d%d%d%d\n", a.Name, a.Kind, a.F, a.I, a.S, a.RefName, a.Floats, a.Ints, a.Strings,
				len(a.Tensors), len(a.Graphs), len(a.Sparses), len(a.Types))
			if a.Type != nil {
				fmt.Fprintln(&b, typeOutline(*a.Type))
			}
			if a.T != nil {
				*ts = append(*ts, a.T)
			}
			*ts = append(*ts, a.Tensors...)
			for _, s := range append(a.Sparses, a.Sparse) {
				if s != nil {
					fmt.Fprintln(&b, s.Dims)
					*ts = append(*ts, s.Values, s.Indices)
				}
			}
		}
	}
	fmt.Fprintln(&b, m.IRVersion, m.ProducerName, m.ProducerVersion, m.Domain, m.ModelVersion, m.Doc)
	for _, o := range m.Opsets {
		fmt.Fprintf(&b, "%q %d\n", o.Domain, o.Version)
	}
	for _, p := range m.Metadata {
		fmt.Fprintf(&b, "%q %q\n", p.Key, p.Value)
	}
	for _, f := range m.Functions {
		fmt.Fprintf(&b, "%q %q %q %q %q\n", f.Domain, f.Name, f.Overload, f.Doc, f.Attrs)
		for _, o := range f.Opsets {
			fmt.Fprintf(&b, "%q %d\n", o.Domain, o.Version)
		}
		attrs(f.AttrDefaults)
	}
	for g := range m.Scopes() {
		fmt.Fprintf(&b, "graph %q %q\n", g.Name, g.Scope())
		values(g.Inputs())
		values(g.Outputs())
		values(g.Initializers())
		values(g.ValueInfo)
		for _, v := range g.Initializers() {
			if v.Const != nil {
				*ts = append(*ts, v.Const)
			} else {
				*ts = append(*ts, v.Sparse.Values, v.Sparse.Indices)
			}
		}
		for n := range g.Nodes() {
			fmt.Fprintf(&b, "%+v %v %q\n", n.Op, n.DomainAlias, n.Name)
			values(n.Inputs())
			values(n.Outputs())
			attrs(n.Attrs)
		}
	}
	return b.String()
}

func typeOutline(t graph.Type) string {
	s := fmt.Sprint(t.Kind, t.Elem, t.Shape == nil)
	for _, d := range t.Shape {
		s += fmt.Sprint(" ", d.Known, d.Size, d.Sym)
	}
	if t.Inner != nil {
		s += "(" + typeOutline(*t.Inner) + ")"
	}
	return s
}

// checkText checks that m survives being written as text, and that its short
// form parses too.
func checkText(t *testing.T, name string, m *graph.Model) {
	t.Helper()
	var full bytes.Buffer
	if err := graph.Fprint(&full, m); err != nil {
		t.Fatal(err)
	}
	got, err := graph.Parse(full.String())
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if err := got.Verify(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	var a, b []*tensor.Tensor
	if want, have := outline(m, &a), outline(got, &b); want != have {
		w, h := strings.Split(want, "\n"), strings.Split(have, "\n")
		for i := range w {
			if i >= len(h) || w[i] != h[i] {
				t.Errorf("%s: not the same after printing and parsing: %s, want %s", name, strings.Join(h[i:min(i+1, len(h))], ""), w[i])
				return
			}
		}
	}
	if len(a) != len(b) {
		t.Fatalf("%s: %d tensors, want %d", name, len(b), len(a))
	}
	for i := range a {
		if (a[i] == nil) != (b[i] == nil) || a[i] != nil && !a[i].Equal(b[i]) && !hasNaN(a[i]) {
			t.Errorf("%s: tensor %d differs: %v, want %v", name, i, b[i], a[i])
		}
	}
	short := graph.Text(m, 16)
	again, err := graph.Parse(short)
	if err != nil {
		t.Errorf("%s: short form: %v", name, err)
		return
	}
	if graph.Text(again, 16) != short {
		t.Errorf("%s: the short form changes when parsed and printed", name)
	}
}

func hasNaN(t *tensor.Tensor) bool {
	if t.DType() == tensor.Float32 {
		for _, f := range tensor.As[float32](t) {
			if f != f {
				return true
			}
		}
	}
	return false
}

func TestTextOfFiles(t *testing.T) {
	shared := os.Getenv("ONNXQ_SHARED")
	if shared == "" {
		shared = "../../shared"
	}
	conformance := os.Getenv("ONNXQ_CONFORMANCE")
	n := 0
	for _, dir := range []string{filepath.Join(shared, "zoo"), conformance} {
		if _, err := os.Stat(dir); err != nil {
			t.Logf("SKIPPED: no folder %q (set ONNXQ_SHARED and ONNXQ_CONFORMANCE)", dir)
			continue
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".onnx") {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			m, err := onnxfile.Open(path)
			if err != nil {
				return err
			}
			defer m.Close()
			n++
			if info.Size() < 4<<20 {
				checkText(t, path, m)
			} else if short := graph.Text(m, 16); true {
				if again, err := graph.Parse(short); err != nil || graph.Text(again, 16) != short {
					t.Errorf("%s: short form: %v", path, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n == 0 {
		t.Skip("SKIPPED: no real models")
	}
	t.Logf("%d models", n)
}

// everything uses each construct once, in the form in which it is printed.
const everything = `<
   ir_version: 10,
   opset_import: ["" : 21, "loc.al" : 1],
   producer_name: "a \"quoted\" \\ name",
   domain: "d",
   model_version: 3,
   doc_string: "two
lines",
   metadata_props: ["k" : "v", "k2" : ""]
>
main (float[N,3] x, "no type", bool cond, int64[2,?] "i d") => (float[N,"a b"] y, seq(map(int64, float[])) s, optional(sparse_tensor(float[2,3])) o)
   <float[3] w = {1,-0.5,1e-05},
   float f = {inf},
   double[2] d = {nan,-inf},
   int4[3] i4 = {-8,7,-1},
   uint4[3] u4 = {15,0,9},
   int2[5] i2 = {-2,1,0,-1,1},
   float16[2] h = {15360,64512},
   bool[2] b = {0,1},
   uint64[1] u = {18446744073709551615},
   int64[1] "seq" = {-9223372036854775808},
   complex64[1] c = {1,-2},
   string[2] str = {"a\"b","\\"},
   float[0,2] none = {},
   sparse_tensor(float[2,3]) sp = {float[2] {1,2}, int64[2] {0,5}},
   float[N,3] t,
   float[3] w>
{
   [n1] t = Mul (x, w)
   ["n 2"] "", k = com.microsoft.Odd:v2 <alpha: float = 0.5, n: int = -3, name: string = "q", axes: ints = [1, 2], fs: floats = [1, 0.25], ss: strings = ["a", "b"], none: ints = []> (t, "", f)
   "u v" = "my-domain.x"."Op-1" <"odd name": int = 1, ty: type_proto = float[N], tys: type_protos = [float, seq(int8[2])]> ()
   q = ai.onnx.Constant <value: tensor = float[2] {1,2}> ()
   ts = loc.al.Many <list: tensors = [float {1}, int8[2] {-1,2}], sparse: sparse_tensor = sparse_tensor(int32[4]) {int32[1] {7}, int64[1] {3}}, sl: sparse_tensors = [sparse_tensor(float[2]) {float[0] {}, int64[0] {}}]> ()
    = Sink (q)
   y = If (cond) <then_branch: graph = "" () => (yt)
         <float[1] one = {1}>
      {
         yt = Add (t, one)
      }, else_branch: graph = e () => (ye)
      {
         ye = If (cond) <then_branch: graph = a () => (ya)
            {
               ya = Identity (t)
            }, else_branch: graph = b () => (yb)
            {
               yb = Identity (x)
            }>
      }>
   s, o = loc.al.Fn <slope: float = 2> (y)
}

<
   domain: "loc.al",
   overload: "v",
   opset_import: ["" : 21],
   doc_string: "fn"
>
Fn <slope, axis: int = 1> (a) => (s, o)
   <float[N] z>
{
   z = LeakyRelu <alpha: float = @slope> (a)
   s = SequenceConstruct (z)
   o = Optional (s)
}
`

func TestTextSyntax(t *testing.T) {
	m, err := graph.Parse(everything)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := graph.Fprint(&b, m); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != everything {
		g, w := strings.Split(got, "\n"), strings.Split(everything, "\n")
		for i := range w {
			if i >= len(g) || g[i] != w[i] {
				t.Fatalf("line %d: %q, want %q", i+1, g[i], w[i])
			}
		}
	}
	checkText(t, "everything", m)
}

// The left sides are what onnx.parser of onnx 1.23.2 accepts besides the form
// that Fprint writes.
func TestParseLenient(t *testing.T) {
	body := func(s string) string {
		return "agraph (float[2] x, float[2] d = {1, 2}) => (float[2] y) {" + s + "}"
	}
	for _, c := range []struct{ text, want string }{
		{`y = Add(x, x)`, `y = Add (x, x)`},
		{"# a comment\n y=Add(x,x) # another\n", `y = Add (x, x)`},
		{`y = LeakyRelu <alpha = 0.5> (x)`, `y = LeakyRelu <alpha: float = 0.5> (x)`},
		{`y = LeakyRelu (x) <alpha: float = 1>`, `y = LeakyRelu <alpha: float = 1> (x)`},
		{`y = Op <a = 1, b = -1.5e3, c = "s", d = [1, 2], e = [1, 0.5], f = ["a"], g = nan, h = float[2]> (x)`,
			`y = Op <a: int = 1, b: float = -1500, c: string = "s", d: ints = [1, 2], e: floats = [1, 0.5], f: strings = ["a"], g: float = nan, h: type_proto = float[2]> (x)`},
		{`y = Op <t = int64[2] name = {1, 2}> (x)`, `y = Op <t: tensor = int64[2] {1,2}> (x)`},
		{`y = Op (,x,)`, `y = Op ("", x)`},
		{`y = Op <b = g () => (z) { z = Neg(x) }> ()`, "y = Op () <b: graph = g () => (z)\n      {\n         z = Neg (x)\n      }>"},
	} {
		m, err := graph.Parse(body(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		got := graph.Text(m, -1)
		got = strings.TrimSuffix(got[strings.LastIndex(got, "\n{\n   ")+6:], "\n}\n")
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.text, got, c.want)
		}
		if d := m.Graph.Inputs()[1]; !d.IsInitializer() || d.Const.Len() != 2 {
			t.Error("the input's default value is lost")
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{``, `line 1, column 1: a name expected`},
		{`<ir_version: 8> g (float[2] x) => (float y) { y = Neg(z) }`, `column 55: "z" is not defined before its use`},
		{"g (float x) => (y) {\n  y = Neg(x)\n  y = Neg(x)\n}", `line 4, column 1: the name "y" is empty or defined twice`},
		{`g (float x) => (y) { }`, `column 17: "y" is defined nowhere`},
		{`g (float x) => () <float[2] w = {1}> { }`, `1 elements, 2 needed`},
		{`g (float x) => () <float[2] w = {1,2,3}> { }`, `more than 2 elements`},
		{`g (float x) => () <float[4611686018427387904,4] w = {1}> { }`, `needs an element type and sizes`},
		{`g (float x) => () <float[100000] w = {1}> { }`, `fewer than 100000 elements`},
		{`g (float x) => () <float[100000000000] w = {...}> { }`, `elided tensor of 100000000000`},
		{`g (float x) => () <int8[1] w = {128}> { }`, `"128" is no int8`},
		{`g (float x) => () <uint8[1] w = {-1}> { }`, `"-1" is no uint8`},
		{`g (float x) => () <float[N] w = {1}> { }`, `needs an element type and sizes`},
		{`g (float x) => () <float[1] w = {1}, float[1] w = {2}> { }`, `the name "w" is defined twice`},
		{`g (float x) => () { y = Op <a: int = 0.5> (x) }`, `an integer expected`},
		{`g (float x) => () { y = Op <a: ints = 5> (x) }`, `can not be a single value`},
		{`g (float x) => () { y = Op <a = []> (x) }`, `needs the type`},
		{`g (float x) => () { y = Op <a = [1, "b"]> (x) }`, `mixed types`},
		{`g (float x) => () { y = Op <a: thing = 1> (x) }`, `unknown type "thing"`},
		{`g (float x) => () { y = Op ("x }`, `the string has no end`},
		{`<colour: 3> g () => () {}`, `unknown key "colour"`},
		{strings.Repeat("g () => () { y = If <b: graph = ", 100), `nested deeper than`},
		{`g (` + strings.Repeat("seq(", 100) + `) => () {}`, `nested deeper than`},
	} {
		if _, err := graph.Parse(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: error %v, want %q", c.text, err, c.want)
		}
	}
}

func TestParseElided(t *testing.T) {
	const text = `g (float x) => () <float[1000] a = {...}, float[1000] b = {...}, int8[3] i = {...}, float16[100] h = {...}> { }`
	m, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	again, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	inits := m.Graph.Initializers()
	a, b := inits[0].Const, inits[1].Const
	if !a.Equal(again.Graph.Initializers()[0].Const) || a.Equal(b) {
		t.Error("elided elements have to depend on the name alone")
	}
	sum := 0.0
	for _, v := range tensor.As[float32](a) {
		if v < -1 || v >= 1 {
			t.Fatalf("%g is out of [-1, 1)", v)
		}
		sum += float64(v)
	}
	if sum < -60 || sum > 60 { // 3.3 standard deviations
		t.Errorf("mean %g", sum/1000)
	}
	for _, v := range inits[2].Const.Bytes() {
		if v != 0 {
			t.Error("elided integers are zero")
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add(everything)
	f.Add(`g (float[2] x) => (y) { y = Neg(x) }`)
	f.Fuzz(func(t *testing.T, text string) {
		fuzztest.Bound(t)
		m, err := graph.Parse(text)
		if err != nil {
			return
		}
		out := graph.Text(m, -1)
		again, err := graph.Parse(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := graph.Text(again, -1); got != out {
			t.Fatalf("%s\n%s", out, got)
		}
	})
}
