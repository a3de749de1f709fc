package onnxq

import (
	"slices"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// Result says what Quantize did. Its JSON form is that of `quantize --json`.
type Result struct {
	// Nodes counts those of the prepared model, Quantized those of them that are
	// quantized; Float lists the others.
	Nodes     int         `json:"nodes"`
	Quantized int         `json:"quantized"`
	Float     []FloatNode `json:"float"`
	BytesIn   int64       `json:"bytes_in"` // files, with external data
	BytesOut  int64       `json:"bytes_out"`
	// Weight bytes count the constants that reach a weight port, with the
	// scales and zero points of the quantized ones.
	WeightBytesIn  int64        `json:"weight_bytes_in"`
	WeightBytesOut int64        `json:"weight_bytes_out"`
	Weights        []WeightSize `json:"weights"`
	// Int8MACs is the share of multiply-adds that run on 8-bit integers, 0 to 1.
	Int8MACs float64       `json:"int8_macs_share"`
	SQNR     *float64      `json:"sqnr_db"` // of the worst output; nil without samples or if exact
	Outputs  []eval.Output `json:"outputs"`
	// Measured says on which samples the outputs were compared.
	Measured string          `json:"measured_on"`
	Seconds  float64         `json:"seconds"`
	PeakRSS  int64           `json:"peak_rss_bytes"` // of the process; 0 where the system does not tell
	Mode     string          `json:"mode"`
	Target   string          `json:"target"`
	Notes    []string        `json:"notes,omitempty"`
	Metric   *Metric         `json:"metric,omitempty"` // of Options.Eval
	Passes   []passes.Change `json:"passes"`
	// Difference and Lint are there if Options.Report is set.
	Difference *Difference     `json:"difference,omitempty"`
	Lint       *qdq.LintReport `json:"lint,omitempty"`

	Plan  *qdq.Plan          `json:"-"`
	Table *calibration.Table `json:"-"`
}

// FloatNode is a node that stays float.
type FloatNode struct {
	Node  string `json:"node"` // as graph.Node.Label
	Op    string `json:"op"`
	Scope string `json:"scope"` // as graph.Graph.Scope
	Why   string `json:"why"`
	// MACs is its share of the model's multiply-adds, 0 to 1.
	MACs float64 `json:"macs_share"`
}

// WeightSize is what storing one weight takes before and after.
type WeightSize struct {
	Name     string `json:"name"`
	Op       string `json:"op"`
	BytesIn  int64  `json:"bytes_in"`
	BytesOut int64  `json:"bytes_out"`
}

// Stored returns the number of weights of nodes that stay float that are stored
// in fewer bits.
func (r *Result) Stored() int {
	n := 0
	for i := range r.Plan.Tensors {
		if r.Plan.Tensors[i].AtLoad {
			n++
		}
	}
	return n
}

// unchanged makes r that of a model which is best left as it is.
func (r *Result) unchanged() {
	r.Plan.Tensors = nil
	r.WeightBytesOut = r.WeightBytesIn
	for i := range r.Weights {
		r.Weights[i].BytesOut = r.Weights[i].BytesIn
	}
}

// describe fills in what follows from the plan and the models.
func (r *Result) describe(q *quantization) {
	r.Float, r.Weights, r.Outputs = []FloatNode{}, []WeightSize{}, []eval.Output{}
	r.Nodes, r.Quantized, r.WeightBytesIn, r.WeightBytesOut, r.Int8MACs = 0, 0, 0, 0, 0
	half := map[[2]string]bool{}
	for _, n := range r.Plan.Nodes {
		r.Nodes++
		half[[2]string{n.Scope, n.Node}] = n.How == qdq.Half || n.How == qdq.Brain
		if n.Quantized {
			r.Quantized++
			continue
		}
		r.Float = append(r.Float, FloatNode{Node: n.Node, Op: n.Op, Scope: n.Scope, Why: n.Why})
	}
	stored, wide := map[[2]string]*qdq.TensorPlan{}, map[[2]string]bool{}
	for i := range r.Plan.Tensors {
		switch t := &r.Plan.Tensors[i]; t.Kind {
		case qdq.Weight:
			stored[[2]string{t.Scope, t.Tensor}] = t
		case qdq.Activation:
			wide[[2]string{t.Scope, t.Tensor}] = t.Type == "u16" || t.Type == "i16" || t.Type == quant.F8E4M3.Name
		}
	}
	var on, all float64
	i, float := 0, 0
	for g := range q.planned.Scopes() {
		for n := range g.Nodes() {
			e := r.Plan.Nodes[i]
			i++
			macs := MACs(n)
			all += macs
			if x := n.Input(0); e.Int8() && x != nil && !wide[[2]string{x.Graph().Scope(), x.Name()}] {
				on += macs
			}
			if !e.Quantized {
				r.Float[float].MACs = macs
				float++
			}
		}
	}
	beside := map[[2]string]bool{}
	if q.result != nil {
		for g := range q.result.Scopes() {
			for _, v := range g.Initializers() {
				beside[[2]string{g.Scope(), v.Name()}] = true
			}
		}
	}
	for g := range q.prepared.Scopes() {
		for n := range g.Nodes() {
			r.weights(n, stored, beside, half[[2]string{g.Scope(), n.Label()}])
		}
	}
	if all > 0 {
		r.Int8MACs = on / all
		for i := range r.Float {
			r.Float[i].MACs /= all
		}
	}
}

// weights lists the weights of n, by what they are stored as, and those that are in the
// model beside their codes, since some nodes read them as floats; half says that n
// computes in 16-bit floats.
func (r *Result) weights(n *graph.Node, stored map[[2]string]*qdq.TensorPlan, beside map[[2]string]bool, half bool) {
	spec := ops.Lookup(n)
	if spec == nil {
		return
	}
	for i, v := range n.Inputs() {
		if v == nil || !v.IsConst() || !v.Const.DType().IsFloat() {
			continue
		}
		if p, _ := spec.InPort(i); p.Role != ops.Weight || n.Op.Type == "Gather" && v.Const.Rank() < 2 {
			continue
		}
		if slices.ContainsFunc(r.Weights, func(w WeightSize) bool { return w.Name == v.Name() }) {
			continue
		}
		w := WeightSize{Name: v.Name(), Op: n.Op.String(), BytesIn: int64(v.Const.Size())}
		w.BytesOut = w.BytesIn
		if half && v.Const.DType() == tensor.Float32 {
			w.BytesOut = w.BytesIn / 2
		}
		key := [2]string{v.Graph().Scope(), v.Name()}
		if t := stored[key]; t != nil {
			w.BytesOut = t.StoredBytes(v.Const)
			if beside[key] {
				w.BytesOut += w.BytesIn
			}
		}
		r.Weights = append(r.Weights, w)
		r.WeightBytesIn += w.BytesIn
		r.WeightBytesOut += w.BytesOut
	}
}

// MACs estimates the multiply-adds of n from its constant weight and output
// shape; unknown dimensions count as 1.
func MACs(n *graph.Node) float64 {
	if len(n.Inputs()) < 2 || n.Output(0) == nil {
		return 0
	}
	w := n.Input(1)
	if w != nil && !w.IsConst() && w.DefNode() != nil && w.DefNode().Op.Type == "DequantizeLinear" {
		w = w.DefNode().Input(0) // codes that the model came with
	} else if w != nil && w.IsConst() && w.Const.DType() != tensor.Float32 {
		return 0
	}
	if w == nil || !w.IsConst() {
		return 0
	}
	positions := 1.0
	shape := n.Output(0).Type.Shape
	size := func(dims graph.Shape) float64 {
		p := 1.0
		for _, d := range dims {
			if d.Known {
				p *= float64(d.Size)
			}
		}
		return p
	}
	switch n.Op.Type {
	case "Conv":
		if len(shape) > 2 {
			positions = size(shape[2:])
		}
	case "ConvTranspose":
		if x := n.Input(0); x != nil && len(x.Type.Shape) > 2 {
			positions = size(x.Type.Shape[2:])
		}
	case "MatMul", "Gemm":
		if len(shape) > 1 {
			positions = size(shape[:len(shape)-1])
		}
	case "LSTM", "GRU", "RNN":
		// A step multiplies with the weights of input and state.
		both := w.Const.Len()
		if r := n.Input(2); r != nil && r.IsConst() {
			both += r.Const.Len()
		}
		time := 0
		if n.Int("layout", 0) == 1 {
			time = 1
		}
		if x := n.Input(0); x != nil && len(x.Type.Shape) == 3 {
			positions = size(x.Type.Shape[time : time+1])
		}
		return positions * float64(both)
	default:
		return 0
	}
	return positions * float64(w.Const.Len())
}
