// Package report writes what is known of a quantized model as one HTML file that
// needs nothing else: no network, no other file. The same data stand in it as
// JSON.
package report

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
)

// Report is what the page shows. What is not known is left at its zero value,
// and its section out.
type Report struct {
	Float     string `json:"float"`     // the file of the float model
	Quantized string `json:"quantized"` // that of the quantized one
	Mode      string `json:"mode,omitempty"`
	Target    string `json:"target,omitempty"`
	Version   string `json:"version,omitempty"` // of the program

	BytesIn        int64 `json:"bytes_in"`
	BytesOut       int64 `json:"bytes_out"`
	WeightBytesIn  int64 `json:"weight_bytes_in,omitempty"`
	WeightBytesOut int64 `json:"weight_bytes_out,omitempty"`
	// Sizes are the weights by operator.
	Sizes []Size `json:"sizes,omitempty"`
	// Nodes counts those of the plan, Quantized those that are quantized.
	Nodes          int      `json:"nodes,omitempty"`
	QuantizedNodes int      `json:"quantized_nodes,omitempty"`
	Int8MACs       *float64 `json:"int8_macs_share,omitempty"`

	Samples  int           `json:"samples"`
	Measured string        `json:"measured_on,omitempty"`
	SQNR     *float64      `json:"sqnr_db"` // of the worst output
	Outputs  []eval.Output `json:"outputs"`

	Values    []eval.Value     `json:"values"`
	Unmatched int              `json:"unmatched"`
	Errors    []eval.NodeError `json:"errors"`
	Tensors   []eval.Tensor    `json:"tensors"`
	Weights   []eval.Weight    `json:"weights"`

	Notes   []string        `json:"notes,omitempty"` // what was decided on the way, and why
	Plan    []qdq.NodePlan  `json:"plan,omitempty"`
	Lint    *qdq.LintReport `json:"lint,omitempty"`
	Seconds float64         `json:"seconds"`
}

// Size is what the weights of one operator take.
type Size struct {
	Op  string `json:"op"`
	In  int64  `json:"bytes_in"`
	Out int64  `json:"bytes_out"`
}

//go:embed page.html
var page string

var tmpl = template.Must(template.New("page").Funcs(template.FuncMap{
	"bytes": size, "db": eval.Decibel, "percent": percent, "optional": optional, "number": number, "short": short, "place": place, "width": width,
}).Parse(page))

// WriteHTML writes the page.
func (r *Report) WriteHTML(w io.Writer) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return tmpl.Execute(w, &view{Report: r, JSON: template.JS(data)}) // json.Marshal escapes what ends a script
}

// view is what the template reads.
type view struct {
	*Report
	JSON template.JS
}

// Limits of what the page shows; the JSON in it is complete.
const (
	mostErrors  = 12
	mostTensors = 9
	mostWeights = 6
	mostUnfused = 40
)

// Ratio is the size of the quantized file relative to the float one.
func (v *view) Ratio() float64 {
	if v.BytesIn == 0 {
		return 0
	}
	return float64(v.BytesOut) / float64(v.BytesIn)
}

// Share is a in percent of b.
func (v *view) Share(a, b int64) string { return percent(float64(a) / math.Max(float64(b), 1)) }

// Headline says in a sentence how it went.
func (v *view) Headline() string {
	var parts []string
	if v.BytesIn > 0 && v.BytesOut > 0 {
		if r := v.Ratio(); r > 0.995 {
			parts = append(parts, "the file is as large as before")
		} else {
			parts = append(parts, fmt.Sprintf("the file is %.1f times smaller", 1/r))
		}
	}
	if v.Int8MACs != nil {
		parts = append(parts, fmt.Sprintf("%s of the multiply-adds run on integers", percent(*v.Int8MACs)))
	}
	switch {
	case len(v.Outputs) == 0:
		parts = append(parts, "nothing was measured, since there were no samples")
	case v.SQNR != nil && *v.SQNR == eval.Lost:
		parts = append(parts, "an output is lost: not finite, or not zero as it has to be")
	case v.SQNR == nil:
		parts = append(parts, "every output is the same")
	default:
		parts = append(parts, fmt.Sprintf("the worst output has %.1f dB of signal to noise", *v.SQNR))
	}
	s := strings.Join(parts, ", ")
	if i := strings.LastIndex(s, ", "); i >= 0 && len(parts) > 1 {
		s = s[:i] + ", and " + s[i+2:]
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// Agreement is the lowest agreement of the arg-max of an output, nil if none has
// one.
func (v *view) Agreement() *float64 {
	var low *float64
	for _, o := range v.Outputs {
		if o.Argmax != nil && (low == nil || *o.Argmax < *low) {
			low = o.Argmax
		}
	}
	return low
}

// TopErrors are the nodes that add most.
func (v *view) TopErrors() []eval.NodeError { return v.Errors[:min(mostErrors, len(v.Errors))] }

// MoreErrors counts the others.
func (v *view) MoreErrors() int { return len(v.Errors) - len(v.TopErrors()) }

// LargestShare is that of the first of them.
func (v *view) LargestShare() float64 {
	if len(v.Errors) == 0 {
		return 0
	}
	return v.Errors[0].Share
}

// tensorView is a tensor with what its codes add to the noise of the outputs.
type tensorView struct {
	eval.Tensor
	Share float64
	Added *float64
	SVG   template.HTML
}

// Heavy reports whether a share of values is clipped that may be felt.
func (t tensorView) Heavy() bool { return t.Clipped >= 0.001 }

// WorstTensors are the quantized activations that cost most: by the share of the
// error that starts where they are made, then by what is clipped. Those that add
// nothing, such as codes that were only moved, are left out.
func (v *view) WorstTensors() []tensorView {
	share := map[string]*eval.NodeError{}
	for i := range v.Errors {
		share[v.Errors[i].Output] = &v.Errors[i]
	}
	list := make([]tensorView, 0, len(v.Tensors))
	for _, t := range v.Tensors {
		w := tensorView{Tensor: t}
		if e := share[t.Name]; e != nil && t.Scope == graph.MainScope {
			w.Share, w.Added = e.Share, e.Added
		}
		if w.Share >= 0.0005 || w.Heavy() {
			list = append(list, w)
		}
	}
	slices.SortStableFunc(list, func(a, b tensorView) int {
		switch {
		case a.Share != b.Share:
			return sign(b.Share - a.Share)
		case a.Clipped != b.Clipped:
			return sign(b.Clipped - a.Clipped)
		}
		return 0
	})
	list = list[:min(mostTensors, len(list))]
	for i := range list {
		list[i].SVG = histogram(&list[i].Tensor)
	}
	return list
}

func sign(x float64) int {
	switch {
	case x > 0:
		return 1
	case x < 0:
		return -1
	}
	return 0
}

// weightView is a weight with how unequal its channels are.
type weightView struct {
	eval.Weight
	Spread, SpreadAfter float64 // the largest channel relative to the median one
	Moved               bool
	SVG                 template.HTML
}

// WidestWeights are the weights whose channels differ most, those first that a
// pass changed.
func (v *view) WidestWeights() []weightView {
	list := make([]weightView, 0, len(v.Weights))
	for _, w := range v.Weights {
		if len(w.Before) < 2 {
			continue
		}
		e := weightView{Weight: w, Spread: spread(w.Before), SpreadAfter: spread(w.After)}
		for i := range w.Before {
			a, b := extent(w.Before[i]), extent(w.After[i])
			e.Moved = e.Moved || math.Abs(a-b) > 0.05*math.Max(a, b)
		}
		list = append(list, e)
	}
	slices.SortStableFunc(list, func(a, b weightView) int {
		if a.Moved != b.Moved {
			if a.Moved {
				return -1
			}
			return 1
		}
		return sign(b.Spread - a.Spread)
	})
	list = list[:min(mostWeights, len(list))]
	for i := range list {
		list[i].SVG = channels(&list[i].Weight)
	}
	return list
}

func extent(r [2]float32) float64 {
	return math.Max(math.Abs(float64(r[0])), math.Abs(float64(r[1])))
}

// spread is the largest magnitude of a channel relative to the median one.
func spread(ranges [][2]float32) float64 {
	var all []float64
	for _, r := range ranges {
		all = append(all, extent(r))
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)-1] / math.Max(all[len(all)/2], 1e-30)
}

// Course draws the SQNR along the network for a page of the given width.
func (v *view) Course(width int) template.HTML { return course(v.Values, v.Errors, width) }

// Measurable reports whether there is a course to draw.
func (v *view) Measurable() bool { return len(v.Values) > 1 }

// planView is a row of the plan.
type planView struct {
	qdq.NodePlan
	Decision string
	Added    *float64
	Share    float64
}

// Rows are the rows of the plan.
func (v *view) Rows() []planView {
	found := map[string]*eval.NodeError{}
	for i := range v.Errors {
		found[v.Errors[i].Node] = &v.Errors[i]
	}
	list := make([]planView, 0, len(v.Plan))
	for _, n := range v.Plan {
		r := planView{NodePlan: n, Decision: string(n.How)}
		if !n.Quantized {
			r.Decision = "float"
		}
		if e := found[n.Node]; e != nil && n.Scope == graph.MainScope {
			r.Added, r.Share = e.Added, e.Share
		}
		list = append(list, r)
	}
	return list
}

// Unfused are groups that the runtime computes on floats.
func (v *view) Unfused() []qdq.LintGroup {
	var list []qdq.LintGroup
	for _, g := range v.Lint.Groups {
		if !g.Fused && len(list) < mostUnfused {
			list = append(list, g)
		}
	}
	return list
}

// MoreUnfused counts those that Unfused leaves out.
func (v *view) MoreUnfused() int { return v.Lint.Float - len(v.Unfused()) }

// DecodedBytes is what the constants take that are dequantized at every
// inference.
func (v *view) DecodedBytes() int64 {
	var n int64
	for _, d := range v.Lint.Decoded {
		n += d.Bytes
	}
	return n
}

// The functions below put figures into words.

func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.2f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

func optional(format string, x *float64) string {
	if x == nil {
		return "–"
	}
	return fmt.Sprintf(format, *x)
}

// percent keeps what matters of a share: 100 % is all of it.
func percent(x float64) string {
	switch p := 100 * x; {
	case p == 0 || p == 100:
		return fmt.Sprintf("%.0f %%", p)
	case p < 0.01:
		return "<0.01 %"
	case p > 99.9:
		return fmt.Sprintf("%.2f %%", math.Min(p, 99.99))
	case p < 1:
		return fmt.Sprintf("%.2f %%", p)
	default:
		return fmt.Sprintf("%.1f %%", p)
	}
}

func number(x float64) string {
	s := fmt.Sprintf("%.3g", x)
	return strings.Replace(s, "-", "−", 1)
}

// short keeps the end of a long name, which tells nodes apart.
func short(name string) string {
	const most = 44
	r := []rune(name)
	if len(r) <= most {
		return name
	}
	end := string(r[len(r)-most+1:])
	if i := strings.IndexAny(end, "/."); i >= 0 && i < most/3 {
		end = end[i:]
	}
	return "…\u2060" + end // no line ends between the two
}

// place is a name with its scope.
func place(scope, name string) string {
	if scope == graph.MainScope || scope == "" {
		return name
	}
	return scope + "/" + name
}

// width is a share of a bar in percent of the largest.
func width(x, most float64) string {
	if !(most > 0) {
		return "0"
	}
	return fmt.Sprintf("%.1f", 100*math.Max(0, math.Min(1, x/most)))
}
