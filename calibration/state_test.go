package calibration

import (
	"reflect"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

func stateGraph(t *testing.T) *graph.Graph {
	t.Helper()
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 13]>
cell (float[N, 3] x, float[2, N, 4] h, float[2, N, 4] c, int64[1] step, float free)
  => (float[N, 3] y, float[2, N, 4] hn, float[2, M, 4] cn, int64[1] next_step, float[2, 5, 5] odd)
{
  y = Identity (x)
  hn = Identity (h)
  cn = Identity (c)
  next_step = Identity (step)
  odd = Identity (free)
}
`)
	if err != nil {
		t.Fatal(err)
	}
	return m.Graph
}

func TestNewState(t *testing.T) {
	g := stateGraph(t)
	for _, c := range []struct {
		pairs []Feedback
		want  string // of the error; "" for none
	}{
		{nil, ""},
		{[]Feedback{{"h", "hn"}, {"c", "cn"}, {"step", "next_step"}}, ""},
		{[]Feedback{{"h", "hn"}, {"c", "hn"}}, ""},
		{[]Feedback{{"hidden", "hn"}}, `no input "hidden"`},
		{[]Feedback{{"h", "hidden"}}, `no output "hidden"`},
		{[]Feedback{{"h", "hn"}, {"h", "cn"}}, `"h" is fed back twice`},
		{[]Feedback{{"h", "next_step"}}, `wants float[2,N,4]`},
		{[]Feedback{{"h", "odd"}}, `wants float[2,N,4]`},
	} {
		_, err := NewState(g, c.pairs)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.pairs, err, c.want)
		}
	}
}

func TestStateFollowsSamples(t *testing.T) {
	s, err := NewState(stateGraph(t), []Feedback{{"h", "hn"}})
	if err != nil {
		t.Fatal(err)
	}
	x := tensor.New(tensor.Float32, 6, 3)
	first := map[string]ops.Data{"x": x}
	if err := s.Feed(first); err != nil {
		t.Fatal(err)
	}
	zero := first["h"].(*tensor.Tensor)
	if !reflect.DeepEqual(zero.Shape(), []int{2, 6, 4}) || zero.DType() != tensor.Float32 {
		t.Errorf("the first state is %v, want zeros of the batch of x", zero)
	}
	for _, v := range tensor.As[float32](zero) {
		if v != 0 {
			t.Fatal("the first state is not zero")
		}
	}
	out := tensor.New(tensor.Float32, 2, 6, 4)
	s.Keep([]ops.Data{x, out, nil, nil, nil})
	second := map[string]ops.Data{"x": x}
	if err := s.Feed(second); err != nil || second["h"] != ops.Data(out) {
		t.Errorf("the second state is %v, %v", second["h"], err)
	}
	s.Reset()
	own := tensor.New(tensor.Float32, 2, 6, 4)
	third := map[string]ops.Data{"x": x, "h": own}
	if err := s.Feed(third); err != nil || third["h"] != ops.Data(own) {
		t.Errorf("the state that a sample starts with is not used: %v, %v", third["h"], err)
	}
}

func TestSuggest(t *testing.T) {
	g := stateGraph(t)
	for _, c := range []struct {
		missing []string
		want    []Feedback
	}{
		{[]string{"h"}, []Feedback{{"h", "hn"}}},
		{[]string{"h", "c"}, []Feedback{{"h", "hn"}, {"c", "cn"}}},
		{[]string{"step"}, []Feedback{{"step", "next_step"}}},
		{[]string{"free"}, nil},
		{[]string{"nothing"}, nil},
	} {
		if got := Suggest(g, c.missing); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %v, want %v", c.missing, got, c.want)
		}
	}
}

// A size of another name speaks against state, unless the names of the values are
// alike.
func TestSuggestSymbols(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 13]>
g (float[1,samples] audio, float[1,past] keys) => (float[1,frames] pitch, float[1,all] keys_out) { pitch = Relu (audio)
 keys_out = Relu (keys) }`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Feedback{{"keys", "keys_out"}}
	if got := Suggest(m.Graph, []string{"audio", "keys"}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestSequences(t *testing.T) {
	src := &Source{shared: &shared{}, samples: []Sample{
		{Path: "a", Row: 0}, {Path: "a", Row: 1}, {Path: "b", Row: 0}, {Path: "c", Row: 2}, {Path: "c", Row: 3}, {Path: "d", Row: 0},
	}}
	if got, want := sequences(src, true), [][2]int{{0, 2}, {2, 3}, {3, 5}, {5, 6}}; !reflect.DeepEqual(got, want) {
		t.Errorf("with state %v, want %v", got, want)
	}
	if got := sequences(src, false); len(got) != 6 {
		t.Errorf("without state %v", got)
	}
}
