package accuracy

import (
	"slices"
	"weak"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// Memo keeps what FitPairs and CorrectBias found for weights, for plans that are
// tried one after the other and differ in few layers. What depends on other
// parameters than before is found anew, so that results are those without a
// Memo. It keeps no tensors alive. The zero value and nil can be used; one Memo
// must not be used by several calls at once. Weights that it has seen must not be
// written to.
type Memo struct {
	pairs  map[weightUse][]pairEntry
	shifts map[weightUse][]shiftEntry
}

// weightUse is a weight and how a node multiplies with it.
type weightUse struct {
	w      weak.Pointer[tensor.Tensor]
	op     graph.OpKey
	groups int64
	turned int64
	port   int
}

func useOf(n *graph.Node, port int) weightUse {
	return weightUse{weak.Make(n.Input(port).Const), n.Op, n.Int("group", 1), n.Int("transB", 0), port}
}

// pairEntry is what (*PairSums).find found.
type pairEntry struct {
	known  bool // px is given
	px, pw parameters
	lo, hi []float32
	sums   PairSums
	found  bool
}

// shiftEntry is what shiftOf found.
type shiftEntry struct {
	p           parameters
	mean, after []float64
	shift       []float64
}

// parameters are quantization parameters without what they chose the codes of.
type parameters struct {
	quant.Params
	codes weak.Pointer[tensor.Tensor]
	coded weak.Pointer[quant.Coded]
}

// parametersOf returns parameters that stay when those of p are edited.
func parametersOf(p *quant.Params) parameters {
	q := parameters{*p, weak.Make(p.Codes), weak.Make(p.Coded)}
	q.Scale, q.Codes, q.Coded = slices.Clone(p.Scale), nil, nil
	return q
}

// are reports whether p gives every value the same code, chosen codes included.
func (q *parameters) are(p *quant.Params) bool {
	return p.Type == q.Type && weak.Make(p.Codes) == q.codes && weak.Make(p.Coded) == q.coded && p.Equal(q.Params)
}

// pair returns what is known of the pair sums of s.
func (m *Memo) pair(use weightUse, px, pw *quant.Params, lo, hi []float32) *pairEntry {
	if m == nil {
		return nil
	}
	for i := range m.pairs[use] {
		e := &m.pairs[use][i]
		if e.known == (px != nil) && (px == nil || e.px.are(px)) && e.pw.are(pw) && slices.Equal(lo, e.lo) && slices.Equal(hi, e.hi) {
			return e
		}
	}
	return nil
}

func (m *Memo) keepPair(use weightUse, px, pw *quant.Params, lo, hi []float32, s *PairSums, found bool) {
	if m == nil {
		return
	}
	if m.pairs == nil {
		m.pairs = map[weightUse][]pairEntry{}
	}
	e := pairEntry{pw: parametersOf(pw), lo: lo, hi: hi, sums: *s, found: found}
	e.sums.Node = nil // keeps its model alive
	if px != nil {
		e.known, e.px = true, parametersOf(px)
	}
	m.pairs[use] = append(m.pairs[use], e)
}

// shift returns what is known of the mean errors of a weight.
func (m *Memo) shift(use weightUse, p *quant.Params, mean, after []float64) *shiftEntry {
	if m == nil {
		return nil
	}
	for i := range m.shifts[use] {
		e := &m.shifts[use][i]
		if e.p.are(p) && slices.Equal(mean, e.mean) && slices.Equal(after, e.after) {
			return e
		}
	}
	return nil
}

func (m *Memo) keepShift(use weightUse, p *quant.Params, mean, after, shift []float64) {
	if m == nil {
		return
	}
	if m.shifts == nil {
		m.shifts = map[weightUse][]shiftEntry{}
	}
	m.shifts[use] = append(m.shifts[use], shiftEntry{parametersOf(p), mean, after, shift})
}
