package onnxq

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
)

// PrepareFile prepares the model in file in and saves it as out.
func PrepareFile(ctx context.Context, in, out string, o Options) (done []passes.Change, err error) {
	m, err := o.Load(in)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	defer watch(m, &err)()
	save := o.saveOptions()
	if err := onnxfile.CheckDestination(m, out, save); err != nil {
		return nil, err
	}
	p, changes, err := PrepareOnly(ctx, m, o)
	if err != nil {
		return nil, err
	}
	return changes, o.save(ctx, p, out)
}

// PrepareOnly is Prepare for a model that is to be stored: a weight that is read
// as it is and transposed is one, where integer kernels would want two.
func PrepareOnly(ctx context.Context, m *graph.Model, o Options) (*graph.Model, []passes.Change, error) {
	p, changes, err := Prepare(ctx, m, o)
	if err != nil || slices.ContainsFunc(changes, func(c passes.Change) bool { return c.Pass == tieWeights }) {
		return p, changes, err
	}
	return p, append(changes, passes.Change{Pass: tieWeights, Count: passes.TieWeights(p)}), nil
}

// PrintPasses lists the passes of Prepare with their constraints.
func PrintPasses(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PASS\tAFTER\tWHAT IT DOES")
	for _, p := range passes.List() {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", p.Name, strings.Join(p.After, ", "), p.Does)
	}
	return tw.Flush()
}

// CalibrateOptions say which part of the samples CalibrateFile takes, and what
// becomes of a run that does not get to its end.
type CalibrateOptions struct {
	Options
	// Shard of Shards, counted from 0, is the part of the samples to take: those
	// whose place, counted without what is held out, is Shard modulo Shards. With
	// Shards 0 it is all of them.
	Shard, Shards int
	// Resume takes up an earlier run with the same output, model, samples and
	// options that was stopped. There need not be one.
	Resume bool
}

// unknownMemory is what a machine is taken to have that does not say.
const unknownMemory = 16 << 30

// checkpointEvery is the time between two writings of a table that is not
// complete yet.
const checkpointEvery = 10 * time.Second

// CalibrateFile collects statistics of the model in file in on the samples
// that o names, without what is held out, and saves the table as out. While it
// runs it keeps the table of the samples that are through in the file
// out.partial, which it removes at the end. With an empty out nothing is
// written.
func CalibrateFile(ctx context.Context, in, out string, o CalibrateOptions) (table *calibration.Table, err error) {
	if len(o.Data) == 0 {
		return nil, ErrNoData
	}
	m, err := o.Load(in)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	defer watch(m, &err)()
	release, err := o.bound(m)
	if err != nil {
		return nil, err
	}
	defer release()
	if out != "" {
		if err := onnxfile.CheckDestination(m, out, onnxfile.SaveOptions{}); err != nil {
			return nil, err
		}
	}
	r, err := newCalibration(ctx, m, o)
	if err != nil {
		return nil, err
	}
	defer r.q.close()
	co, partial := r.co, out+".partial"
	if out != "" && o.Runner == nil {
		co.Checkpoint, co.CheckpointEvery = partial, checkpointEvery
	}
	if o.Resume && out != "" {
		co.Resume, err = calibration.Load(partial)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	t, err := collect(ctx, r.q.prepared, r.src, o.Options, co)
	if err != nil {
		return nil, err
	}
	o.note(r.q.calib)
	if out == "" {
		return t, nil
	}
	if err := t.Save(out); err != nil {
		return nil, err
	}
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return t, nil
}

// calibrationRun is what a run of CalibrateFile is about.
type calibrationRun struct {
	q   *quantization
	src *calibration.Source // the samples of the shard
	co  calibration.CollectOptions
}

func newCalibration(ctx context.Context, m *graph.Model, o CalibrateOptions) (r *calibrationRun, err error) {
	if len(o.Data) == 0 {
		return nil, ErrNoData
	}
	q, err := newQuantization(ctx, m, o.Options)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			q.close()
		}
	}()
	plan := o.Plan
	if plan == nil {
		if plan, err = MakePlan(q.prepared, o.Options); err != nil {
			return nil, err
		}
	}
	shard, shards := o.Shard, max(o.Shards, 1)
	if shard < 0 || shard >= shards {
		return nil, optionErrorf("shard %d of %d, want 0 to %d", shard, shards, shards-1)
	}
	src := q.calib.Shard(shard, shards)
	if shards > 1 && len(o.State) > 0 {
		for i := range q.calib.Len() {
			if q.calib.Sample(i).Row > 0 {
				return nil, optionErrorf("shards would cut the files, in which state is carried from sample to sample: give each shard files of its own with --data")
			}
		}
	}
	if src.Len() == 0 {
		return nil, &calibration.DataError{Path: strings.Join(o.Data, ", "), Err: fmt.Errorf("%d samples leave none for shard %d of %d", q.calib.Len(), shard, shards)}
	}
	r = &calibrationRun{q: q, src: src, co: calibration.CollectOptions{
		Model: Digest(m), Shard: shard, Shards: shards, Total: q.calib.Len(), Measured: q.measuredOn(),
	}}
	r.co.Settings = q.o.tableOptions(q.held)
	if !slices.Contains(o.Data, "-") { // which cannot be read again
		r.co.Sources = o.Data
	}
	r.co.Watch, err = plan.Wants(q.prepared)
	return r, err
}

// Digest identifies a model in a calibration table: a hash of its graphs and
// constants in hexadecimal.
func Digest(m *graph.Model) string {
	h := sha256.New()
	io.WriteString(h, graph.Text(m, 0))
	for g := range m.Scopes() {
		for _, v := range g.Initializers() {
			if v.Const != nil {
				h.Write(v.Const.Bytes())
			}
		}
		for n := range g.Nodes() {
			for _, a := range n.Attrs {
				if a.T != nil {
					h.Write(a.T.Bytes())
				}
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Run computes the outputs of m for the samples that o names, in order, and
// hands them to sink under the sample's name. It returns the number of
// samples.
func Run(ctx context.Context, m *graph.Model, o Options, sink func(name string, outputs []ops.Data) error) (samples int, err error) {
	defer watch(m, &err)()
	release, err := o.bound(m)
	if err != nil {
		return 0, err
	}
	defer release()
	m = o.renamed(ctx, m, o.Data)
	src, err := Open(ctx, m, o.Data, o)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	src = o.limit(src)
	r, err := newRunner(ctx, m, o)
	if err != nil {
		return 0, err
	}
	defer r.close()
	for i := range src.Len() {
		feed, err := src.Load(ctx, i)
		if err != nil {
			if src.Skip(i, err) {
				continue
			}
			return i, suggest(m, src.AllBad(ctx, err))
		}
		out, err := r.run(ctx, src.Sample(i), feedData(feed))
		if err != nil {
			return i, err
		}
		if err := sink(src.Sample(i).Name, out); err != nil {
			return i, err
		}
		o.progress("run", i+1, src.Len())
	}
	o.note(src)
	return src.Len() - len(src.Skipped()), nil
}

// Summary says what is in a model. Nodes, operators and constants are those of
// all its graphs, which are Scopes, nested ones and functions included.
type Summary struct {
	IRVersion int64         `json:"ir_version"`
	Producer  string        `json:"producer"`
	Opsets    []OpsetCount  `json:"opsets"`
	Inputs    []TypedName   `json:"inputs"`
	Outputs   []TypedName   `json:"outputs"`
	Nodes     int           `json:"nodes"`
	Scopes    int           `json:"scopes"`
	Functions int           `json:"functions"`
	Operators []OpCount     `json:"operators"`
	Constants []DTypeBytes  `json:"constants"`
	Schemes   []SchemeCount `json:"schemes,omitempty"` // of a quantized model
	// IntegerNodes counts the nodes that read what DequantizeLinear gives, and
	// those that compute on integers themselves.
	IntegerNodes int `json:"integer_nodes"`
}

// OpsetCount is an imported operator set.
type OpsetCount struct {
	Domain  string `json:"domain"`
	Version int64  `json:"version"`
}

// TypedName is a graph input or output.
type TypedName struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// OpCount is how often an operator occurs, and whether onnxq knows it.
type OpCount struct {
	Op    string `json:"op"`
	Count int    `json:"count"`
	Known bool   `json:"known"`
}

// DTypeBytes is what the constants of one element type take.
type DTypeBytes struct {
	DType string `json:"dtype"`
	Count int    `json:"count"` // of constants
	Bytes int64  `json:"bytes"`
}

// SchemeCount is how often DequantizeLinear reads codes of a type and
// granularity.
type SchemeCount struct {
	Scheme string `json:"scheme"`
	Count  int    `json:"count"`
}

// Inspect summarizes a model.
func Inspect(m *graph.Model) *Summary {
	s := &Summary{IRVersion: m.IRVersion, Producer: strings.TrimSpace(m.ProducerName + " " + m.ProducerVersion), Functions: len(m.Functions)}
	for _, o := range m.Opsets {
		s.Opsets = append(s.Opsets, OpsetCount{o.Domain, o.Version})
	}
	for _, v := range m.Graph.FeedInputs() {
		s.Inputs = append(s.Inputs, TypedName{v.Name(), v.Type.String()})
	}
	for _, v := range m.Graph.Outputs() {
		s.Outputs = append(s.Outputs, TypedName{v.Name(), v.Type.String()})
	}
	count := map[string]*OpCount{}
	consts := map[string]*DTypeBytes{}
	schemes := map[string]int{}
	constant := func(name string, bytes int) {
		c := consts[name]
		if c == nil {
			c = &DTypeBytes{DType: name}
			consts[name] = c
		}
		c.Count++
		c.Bytes += int64(bytes)
	}
	for g := range m.Scopes() {
		s.Scopes++
		for _, v := range g.Initializers() {
			if v.Const != nil {
				constant(v.Const.DType().String(), len(v.Const.Bytes()))
			}
		}
		for n := range g.Nodes() {
			s.Nodes++
			c := count[n.Op.String()]
			if c == nil {
				c = &OpCount{Op: n.Op.String(), Known: ops.Lookup(n) != nil || m.Function(n.Op) != nil}
				count[n.Op.String()] = c
			}
			c.Count++
			for _, a := range n.Attrs {
				if a.T != nil {
					constant(a.T.DType().String(), len(a.T.Bytes()))
				}
			}
			s.integers(n, schemes)
		}
	}
	for _, c := range count {
		s.Operators = append(s.Operators, *c)
	}
	slices.SortFunc(s.Operators, func(a, b OpCount) int {
		if a.Count != b.Count {
			return b.Count - a.Count
		}
		return strings.Compare(a.Op, b.Op)
	})
	for _, c := range consts {
		s.Constants = append(s.Constants, *c)
	}
	slices.SortFunc(s.Constants, func(a, b DTypeBytes) int { return strings.Compare(a.DType, b.DType) })
	for k, n := range schemes {
		s.Schemes = append(s.Schemes, SchemeCount{k, n})
	}
	slices.SortFunc(s.Schemes, func(a, b SchemeCount) int { return strings.Compare(a.Scheme, b.Scheme) })
	return s
}

func (s *Summary) integers(n *graph.Node, schemes map[string]int) {
	switch n.Op.Type {
	case "DequantizeLinear":
		codes, scale := n.Input(0), n.Input(1)
		if codes == nil {
			return
		}
		kind, dtype := "activation", codes.Type.Elem
		if codes.Const != nil {
			kind, dtype = "constant", codes.Const.DType()
		} else if z := n.Input(2); z != nil && z.Const != nil {
			dtype = z.Const.DType()
		}
		gran := "per tensor"
		if scale != nil && scale.Const != nil && scale.Const.Rank() > 0 && scale.Const.Len() > 1 {
			gran = "per axis"
		}
		if n.Int("block_size", 0) > 0 {
			gran = "block " + strconv.FormatInt(n.Int("block_size", 0), 10)
		}
		schemes[kind+" "+dtype.String()+" "+gran]++
	case "QuantizeLinear":
	case "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear", "MatMulNBits":
		s.IntegerNodes++
	default:
		for _, v := range n.Inputs() {
			if v == nil {
				continue
			}
			if d := v.DefNode(); d != nil && d.Op.Type == "DequantizeLinear" {
				s.IntegerNodes++
				return
			}
		}
	}
}

// Print writes the summary as tables.
func (s *Summary) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	clean := func(t string) string { q := strconv.Quote(t); return q[1 : len(q)-1] }
	fmt.Fprintf(tw, "producer\t%s\nIR version\t%d\n", clean(s.Producer), s.IRVersion)
	for _, o := range s.Opsets {
		d := o.Domain
		if d == "" {
			d = "ai.onnx"
		}
		fmt.Fprintf(tw, "opset\t%s %d\n", clean(d), o.Version)
	}
	for _, v := range s.Inputs {
		fmt.Fprintf(tw, "input\t%s: %s\n", clean(v.Name), clean(v.Type))
	}
	for _, v := range s.Outputs {
		fmt.Fprintf(tw, "output\t%s: %s\n", clean(v.Name), clean(v.Type))
	}
	fmt.Fprintf(tw, "nodes\t%d in %d graphs, %d local functions\n", s.Nodes, s.Scopes, s.Functions)
	for _, c := range s.Constants {
		fmt.Fprintf(tw, "constants\t%d of %s, %d bytes\n", c.Count, c.DType, c.Bytes)
	}
	for _, c := range s.Schemes {
		fmt.Fprintf(tw, "quantized\t%d × %s\n", c.Count, c.Scheme)
	}
	if len(s.Schemes) > 0 || s.IntegerNodes > 0 {
		fmt.Fprintf(tw, "integer nodes\t%d\n", s.IntegerNodes)
	}
	for _, c := range s.Operators {
		note := ""
		if !c.Known {
			note = " (not known to onnxq: kept as it is)"
		}
		fmt.Fprintf(tw, "operator\t%d × %s%s\n", c.Count, clean(c.Op), note)
	}
	return tw.Flush()
}

func feedData(feed calibration.Feed) map[string]ops.Data {
	in := make(map[string]ops.Data, len(feed))
	for k, t := range feed {
		in[k] = t
	}
	return in
}
