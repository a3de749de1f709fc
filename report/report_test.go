package report

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/qdq"
)

// evil is a name that would do harm where it is not escaped.
const evil = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;<!--"

func f(x float64) *float64 { return &x }

func sample() *Report {
	return &Report{
		Float: evil + ".onnx", Quantized: evil, Mode: "static", Target: evil, Version: evil,
		BytesIn: 1000, BytesOut: 260, WeightBytesIn: 900, WeightBytesOut: 230, Sizes: []Size{{evil, 900, 230}},
		Nodes: 3, QuantizedNodes: 2, Int8MACs: f(0.5), Samples: 2, Measured: "held-out samples", SQNR: f(31.25),
		Outputs: []eval.Output{{Name: evil, SQNR: f(31.25), Cosine: f(0.999), Argmax: f(0.75), KL: f(0.01)}, {Name: "exact"}},
		Values: []eval.Value{
			{Scope: "main", Name: "x"}, {Scope: "main", Name: evil, Op: "Conv", SQNR: f(35), Cosine: f(1)}, {Scope: evil, Name: "z", Op: evil, SQNR: f(-5), Rescaled: true},
			{Scope: "main", Name: "y", Op: "Conv", SQNR: f(31.25)},
		},
		Unmatched: 2,
		Errors:    []eval.NodeError{{Node: evil, Op: evil, Output: evil, In: f(40), Added: f(36), Out: f(35), Share: 0.9}, {Node: "n", Op: "Conv", Output: "y", Added: f(50), Out: f(31.25), Share: 0.1}},
		Tensors:   []eval.Tensor{{Scope: "main", Name: evil, Type: "uint8", Range: [2]float64{-1, 2}, Seen: [2]float64{-1.5, 2}, Clipped: 0.25, Histogram: eval.Histogram{Start: -1.5, Width: 0.5, Counts: []uint64{1, 0, 5, 9, 3, 2, 1}}}},
		Weights:   []eval.Weight{{Node: evil, Name: evil, Before: [][2]float32{{-1, 2}, {-0.1, 0.2}}, After: [][2]float32{{-0.5, 1}, {-0.1, 0.2}}}},
		Notes:     []string{evil},
		Plan:      []qdq.NodePlan{{Scope: "main", Node: evil, Op: evil, Quantized: true, How: qdq.Integer}, {Scope: evil, Node: "n", Op: "Softmax", Why: evil}},
		Lint:      &qdq.LintReport{Target: evil, Groups: []qdq.LintGroup{{Scope: "main", Node: evil, Op: evil, Why: evil}}, Float: 1, Decoded: []qdq.Decoded{{Tensor: evil, Bytes: 10, Reader: evil}}},
		Seconds:   1.5,
	}
}

func html(t *testing.T, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Names come from model files, so nothing in them may become markup, and the
// page asks for nothing from elsewhere.
func TestHostile(t *testing.T) {
	whole := html(t, sample())
	// Names that are escaped, whole or cut short.
	s := regexp.MustCompile(`(?:&lt;|\\u003c)[^<>]*?(?:&lt;|\\u003c)!--|…[^<>]*`).ReplaceAllString(whole, "NAME")
	if n := strings.Count(whole, "<script"); n != 2 {
		t.Errorf("%d scripts", n)
	}
	for _, bad := range []string{"<img", "alert(1)</script>", "<!--", "onerror=alert(2)>", "@import", "url(", " src=", "href=\"http", "//cdn", "ZgotmplZ"} {
		if strings.Contains(s, bad) {
			t.Errorf("the page holds %s", bad)
		}
	}
	// Every attribute value is quoted, so that no name ends one.
	if m := regexp.MustCompile(`<(?:td|span|figure|text|title|circle)[^<>]*=[^"\s][^<>]*>`).FindString(strings.Split(s, "<script")[0]); m != "" {
		t.Errorf("unquoted: %s", m)
	}
	for _, part := range []string{"31.2", "26.0 %", "25.0 % clipped", "Quantization report"} {
		if !strings.Contains(s, part) {
			t.Errorf("the page lacks %q", part)
		}
	}
}

// The data in the page are the report.
func TestJSON(t *testing.T) {
	s := html(t, sample())
	_, rest, ok := strings.Cut(s, `<script type="application/json" id="data">`)
	data, _, _ := strings.Cut(rest, "</script>")
	var got Report
	if err := json.Unmarshal([]byte(data), &got); !ok || err != nil {
		t.Fatal(err)
	}
	if want := sample(); !reflect.DeepEqual(&got, want) {
		t.Errorf("%+v\nwant %+v", &got, want)
	}
	if html(t, sample()) != s {
		t.Error("not the same page again")
	}
}

// What is not known is left out, and odd figures draw no odd numbers.
func TestOdd(t *testing.T) {
	s := html(t, &Report{Float: "a", Quantized: "b"})
	for _, title := range []string{"Along the network", "The plan", "Outputs", "Weights"} {
		if strings.Contains(s, "<h2>"+title) {
			t.Errorf("an empty report holds %q", title)
		}
	}
	if !strings.Contains(s, "Nothing was measured") {
		t.Error(s[:3000])
	}
	r := sample()
	r.Tensors = []eval.Tensor{
		{Name: "one", Clipped: 1, Range: [2]float64{0, 0}, Histogram: eval.Histogram{Start: 5, Width: 1, Counts: []uint64{3}}},
		{Name: "none", Clipped: 1, Histogram: eval.Histogram{}},
		{Name: "far", Clipped: 1, Range: [2]float64{-1e30, 1e30}, Histogram: eval.Histogram{Start: 0, Width: 1e-38, Counts: []uint64{math.MaxUint64}}},
	}
	r.Weights = []eval.Weight{{Before: [][2]float32{{0, 0}, {0, 0}}, After: [][2]float32{{0, 0}, {0, 0}}}}
	for range 500 {
		r.Weights[0].Before = append(r.Weights[0].Before, [2]float32{-1, 1})
		r.Weights[0].After = append(r.Weights[0].After, [2]float32{-1, 1})
	}
	r.Values = []eval.Value{{Name: "a", SQNR: f(-400)}, {Name: "b", SQNR: f(400)}}
	s = html(t, r)
	body, _, _ := strings.Cut(s, "<script")
	if m := regexp.MustCompile(`"[^"]*(?:NaN|Inf)[^"]*"`).FindString(body); m != "" {
		t.Errorf("the page holds %s", m)
	}
}

func TestPercent(t *testing.T) {
	for x, want := range map[float64]string{0: "0 %", 1: "100 %", 0.5: "50.0 %", 0.99996: "99.99 %", 0.9995: "99.95 %", 0.00001: "<0.01 %", 0.005: "0.50 %"} {
		if got := percent(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
}
