// Package exec is the embedded executor. Compile turns a model into an
// immutable Program once: kernels bound to attributes and constant weights,
// and a plan that says which value dies where. A Session runs a Program any
// number of times, one run at a time; sessions of one Program share its
// weights. Any value can be tapped while it is produced, without being kept.
package exec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// ErrLimit is wrapped by errors that say that a run would take more memory
// than its Session allows.
var ErrLimit = errors.New("memory limit reached")

// ErrUnsupported is wrapped by errors that say that a node's operator has no
// kernel.
var ErrUnsupported = errors.New("operator has no kernel in the embedded executor")

// Program is a compiled model. It is immutable and may be shared.
type Program struct {
	model      *graph.Model
	main       *block
	constBytes int64
	blocked    map[int]int
}

// block is a compiled graph. Values live in slots; constants and captured
// values have slots too.
type block struct {
	graph    *graph.Graph
	slotOf   map[*graph.Value]int
	values   []*graph.Value // by slot
	consts   []ops.Data     // by slot; nil where the value is computed
	inputs   []int
	fed      []*graph.Value // those of inputs
	outputs  []int
	captures []capture
	steps    []step
}

// capture binds a slot of the enclosing block to one of this block.
type capture struct{ outer, inner int }

type step struct {
	node   *graph.Node
	kernel ops.Kernel
	ins    []int // slots; -1 where omitted
	outs   []int
	wanted []bool
	dies   []int // slots that nothing reads after this step
	bodies []*block
}

// Options of Compile.
type Options struct {
	// Taps lists, by Value.ID, the values that runs will tap. Others may be
	// moved into kernels or computed once and not be reported.
	Taps []bool
	// Blocks has values tapped in blocks of channels where the program keeps them
	// so: see Blocked.
	Blocks bool
	// Saturate makes integer products of uint8 with int8 those that ONNX Runtime
	// computes on x86 processors without VNNI, where sums of two products
	// saturate at 16 bits. Without it they are exact, as on other processors.
	Saturate bool
}

// Compile prepares m to be run. The model must not be changed afterwards. The
// error names the first node that has no kernel or does not fit its operator.
//
// Groups of DequantizeLinear, operator and QuantizeLinear that ONNX Runtime
// runs on integers run on integers here as well; float values inside of them
// cannot be tapped.
func Compile(m *graph.Model, o Options) (*Program, error) {
	c := &compiler{taps: o.Taps, blocks: o.Blocks, saturate: o.Saturate}
	main, err := c.graph(c.fuse(IntegerForm(m)).Graph, nil)
	if err != nil {
		return nil, err
	}
	return &Program{model: m, main: main, constBytes: constBytes(m), blocked: c.blocked}, nil
}

// compiler is the state of Compile.
type compiler struct {
	taps     []bool
	blocks   bool
	saturate bool
	blocked  map[int]int // channels of the tapped values that are in blocks, by Value.ID
	fused    map[*graph.Node]*ops.Fusion
	runs     map[*graph.Node]*ops.Pointwise
	chains   map[*graph.Node]*ops.Chain
}

func (c *compiler) tapped(v *graph.Value) bool { return v.ID < len(c.taps) && c.taps[v.ID] }

// Blocked returns the number of channels C of a value that taps get in blocks of
// 16 channels, as a tensor of the shape [N, C, ...] with C rounded up whose
// elements lie as [N, C/16, ..., 16], and 0 for others. What is behind C is
// undefined. Without Options.Blocks there are no such values.
func (p *Program) Blocked(v *graph.Value) int { return p.blocked[v.ID] }

// Model returns the model that the program was compiled from.
func (p *Program) Model() *graph.Model { return p.model }

func (b *block) slot(v *graph.Value) int {
	if s, ok := b.slotOf[v]; ok {
		return s
	}
	s := len(b.values)
	b.slotOf[v] = s
	b.values = append(b.values, v)
	b.consts = append(b.consts, nil)
	return s
}

// resolve returns the slot of a value that a node or output of b reads:
// computed before, constant, or captured from the enclosing block.
func (b *block) resolve(v *graph.Value, outer *block) (int, error) {
	if s, ok := b.slotOf[v]; ok {
		return s, nil
	}
	if v.Const != nil && v.DefNode() == nil && (v.IsConst() || v.Graph() != b.graph) {
		s := b.slot(v)
		b.consts[s] = v.Const
		return s, nil
	}
	if v.Sparse != nil {
		return 0, graph.ValueError("compile", v, errors.New("sparse initializers are not supported by the executor"))
	}
	if outer == nil || v.Graph() == b.graph {
		return 0, graph.ValueError("compile", v, errors.New("read before anything defines it"))
	}
	from, err := outer.resolve(v, nil)
	if err != nil {
		return 0, err
	}
	s := b.slot(v)
	b.captures = append(b.captures, capture{outer: from, inner: s})
	return s, nil
}

func (c *compiler) graph(g *graph.Graph, outer *block) (*block, error) {
	b := &block{graph: g, slotOf: map[*graph.Value]int{}}
	if outer != nil {
		importCaptures(b, g, outer)
	}
	for _, v := range g.Inputs() {
		if v.IsConst() { // listed only because old files had to
			b.consts[b.slot(v)] = v.Const
			continue
		}
		b.inputs, b.fed = append(b.inputs, b.slot(v)), append(b.fed, v)
	}
	for n := range g.Nodes() {
		s, err := c.node(b, n, outer)
		if err != nil {
			return nil, graph.NodeError("compile", n, err)
		}
		if !c.precompute(b, &s) {
			b.steps = append(b.steps, s)
		}
	}
	for _, v := range g.Outputs() {
		s, err := b.resolve(v, outer)
		if err != nil {
			return nil, err
		}
		b.outputs = append(b.outputs, s)
	}
	b.findDeaths()
	return b, nil
}

// importCaptures gives every value that g or a graph nested in g reads from
// around g a slot in b, so that inner blocks find it there.
func importCaptures(b *block, g *graph.Graph, outer *block) {
	inside := map[*graph.Graph]bool{}
	var mark func(*graph.Graph)
	mark = func(s *graph.Graph) {
		inside[s] = true
		for n := range s.Nodes() {
			for _, a := range n.Attrs {
				for _, c := range a.Subgraphs() {
					mark(c)
				}
			}
		}
	}
	mark(g)
	visit := func(v *graph.Value) {
		if v == nil || inside[v.Graph()] {
			return
		}
		// What cannot be resolved is reported where it is read.
		_, _ = b.resolve(v, outer)
	}
	var walk func(*graph.Graph)
	walk = func(s *graph.Graph) {
		for n := range s.Nodes() {
			for _, v := range n.Inputs() {
				visit(v)
			}
			for _, a := range n.Attrs {
				for _, c := range a.Subgraphs() {
					walk(c)
				}
			}
		}
		for _, v := range s.Outputs() {
			visit(v)
		}
	}
	walk(g)
}

func (c *compiler) node(b *block, n *graph.Node, outer *block) (step, error) {
	s := step{node: n}
	spec, run := ops.Lookup(n), c.runs[n]
	if run == nil {
		if spec == nil || spec.Compile == nil {
			return s, fmt.Errorf("%w (opset %d)", ErrUnsupported, n.Opset())
		}
		if err := spec.Check(n); err != nil {
			return s, err
		}
	}
	site := &ops.Site{Node: n, Opset: n.Opset(), Consts: make([]*tensor.Tensor, n.NumInputs()), Saturate: c.saturate, Fused: c.fused[n], Chain: c.chains[n]}
	for i, v := range n.Inputs() {
		slot := -1
		if v != nil {
			var err error
			if slot, err = b.resolve(v, outer); err != nil {
				return s, err
			}
			if t, ok := b.consts[slot].(*tensor.Tensor); ok {
				site.Consts[i] = t
			}
		}
		s.ins = append(s.ins, slot)
	}
	site.Body = func(g *graph.Graph) (ops.Body, error) {
		body, err := c.graph(g, b)
		if err != nil {
			return nil, err
		}
		s.bodies = append(s.bodies, body)
		return body, nil
	}
	if run != nil {
		s.kernel = run.Kernel()
	} else {
		var err error
		if s.kernel, err = spec.Compile(site); err != nil {
			return s, err
		}
	}
	for _, v := range n.Outputs() {
		if v == nil {
			s.outs, s.wanted = append(s.outs, -1), append(s.wanted, false)
			continue
		}
		s.outs, s.wanted = append(s.outs, b.slot(v)), append(s.wanted, true)
	}
	return s, nil
}

// foldBudget bounds the bytes of a constant that Compile computes.
const foldBudget = 1 << 26

// precompute computes a step that reads constants only and makes its outputs
// constants, unless they are tapped or large. What fails is left to the run.
func (c *compiler) precompute(b *block, s *step) bool {
	if spec := ops.Lookup(s.node); spec == nil || !spec.Pure || len(s.bodies) > 0 {
		return false
	}
	for _, v := range s.node.Outputs() {
		if v != nil && c.tapped(v) {
			return false
		}
	}
	call := &ops.Call{Ctx: context.Background(), Mem: heap{foldBudget}, Outs: make([]ops.Data, len(s.outs)), Wanted: s.wanted}
	for _, slot := range s.ins {
		var d ops.Data
		if slot >= 0 {
			if d = b.consts[slot]; d == nil {
				return false
			}
		}
		call.Ins = append(call.Ins, d)
	}
	if invoke(s.kernel, call) != nil {
		return false
	}
	for i, slot := range s.outs {
		if _, ok := call.Outs[i].(*tensor.Tensor); slot >= 0 && !ok {
			return false
		}
	}
	for i, slot := range s.outs {
		if slot >= 0 {
			b.consts[slot] = call.Outs[i]
		}
	}
	return true
}

// findDeaths computes after which step each slot is dead. Inputs, constants
// and captured values are not owned by the block and never die.
func (b *block) findDeaths() {
	last := make([]int, len(b.values))
	for i := range last {
		last[i] = -1
	}
	for i, s := range b.steps {
		for _, o := range s.outs {
			if o >= 0 {
				last[o] = i
			}
		}
		for _, in := range s.ins {
			if in >= 0 {
				last[in] = i
			}
		}
		for _, body := range s.bodies {
			for _, c := range body.captures {
				last[c.outer] = i
			}
		}
	}
	keep := make([]bool, len(b.values))
	for _, o := range b.outputs {
		keep[o] = true
	}
	for slot, i := range last {
		if i >= 0 && !keep[slot] && b.consts[slot] == nil {
			b.steps[i].dies = append(b.steps[i].dies, slot)
		}
	}
}

// Tap receives a value as it is produced. The tensor is valid during the call
// only, unless it is cloned. A sequence or optional is not reported.
type Tap func(v *graph.Value, t *tensor.Tensor) error

// SessionOptions configure a Session.
type SessionOptions struct {
	Threads int // threads of a run; 0 means one per processor
	// MaxBytes bounds the memory of one run's tensors; 0 means 256 MiB, or 64
	// times what the model's constants and the run's inputs take if that is
	// more.
	MaxBytes int64
	// Ceiling bounds MaxBytes where that is 0; 0 means that nothing does.
	Ceiling int64
	// MaxSteps bounds the nodes that one run computes, those of a nested graph
	// each time, and each time that it runs counts as 4 more; 0 means
	// DefaultMaxSteps.
	MaxSteps int64
	// Process, if given, bounds the whole process; it is held against each
	// larger piece of memory that a run takes.
	Process *Memory
	// Frugal gives up, after a run, memory that the run did not need. Else up to
	// as much again is kept for inputs of other sizes.
	Frugal bool
	// Transient lets a run have the memory of outputs of the last run but one:
	// outputs are valid until the next run has ended, so that they can be its
	// feeds. An engine need not make use of it.
	Transient bool
	Profile   bool // measure the time that each operator takes
}

// Session runs a Program, one run at a time, and keeps its memory between
// runs.
type Session struct {
	prog   *Program
	pool   *par.Pool
	mem    arena
	frames map[*block][]*frame // not in use
	last   time.Duration       // of the last run
	budget SessionOptions
	times  map[graph.OpKey]*OpTime
}

// serialRun is the length of a run below which waking the workers costs more
// than they save.
const serialRun = 150 * time.Microsecond

// OpTime is the time that the nodes of one operator took.
type OpTime struct {
	Op    graph.OpKey
	Count int           // executions
	Time  time.Duration // without that of nested graphs
}

// NewSession returns a session of p.
func (p *Program) NewSession(o SessionOptions) *Session {
	s := &Session{prog: p, pool: par.New(o.Threads), mem: arena{limit: o.MaxBytes, process: o.Process, frugal: o.Frugal, lends: o.Transient}, frames: map[*block][]*frame{}, last: serialRun, budget: o}
	if o.Profile {
		s.times = map[graph.OpKey]*OpTime{}
	}
	return s
}

// Profile returns the times of all runs, the longest first; nil unless
// SessionOptions.Profile is set. The error is nil.
func (s *Session) Profile() ([]OpTime, error) {
	var list []OpTime
	for _, t := range s.times {
		list = append(list, *t)
	}
	SortTimes(list)
	return list, nil
}

// SortTimes puts the longest times first.
func SortTimes(list []OpTime) {
	slices.SortFunc(list, func(a, b OpTime) int {
		return cmp.Or(cmp.Compare(b.Time, a.Time), strings.Compare(a.Op.String(), b.Op.String()))
	})
}

// Run computes the graph outputs from the feeds, keyed by input name; inputs
// that are initializers may be left out. With a tap, every value listed in
// wanted (by Value.ID; nil means all) is reported as it is produced, inputs
// and values of nested graphs included. The outputs belong to the caller, unless
// SessionOptions.Transient is set.
func (s *Session) Run(ctx context.Context, feeds map[string]ops.Data, tap Tap, wanted []bool) ([]ops.Data, error) {
	b := s.prog.main
	if err := CheckFeeds(b.fed, feeds); err != nil {
		return nil, err
	}
	in := make([]ops.Data, len(b.inputs))
	for i, v := range b.fed {
		if d, ok := feeds[v.Name()]; ok {
			in[i] = d
		} else {
			in[i] = v.Const
		}
	}
	if err := s.mem.process.Check(); err != nil {
		return nil, err
	}
	start := time.Now()
	if s.last >= serialRun {
		s.pool.Begin()
		defer s.pool.End()
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	s.mem.escaped = s.mem.escaped[:0]
	s.mem.limit = s.limitFor(in)
	r := &run{ctx: ctx, session: s, tap: tap, wanted: wanted, steps: s.maxSteps()}
	out, err := r.block(b, in, nil)
	if err != nil {
		s.mem.reset()
		return nil, err
	}
	for i, d := range out {
		if b.consts[b.outputs[i]] != nil {
			in = append(in, d)
		}
		out[i] = own(d, in)
	}
	s.mem.endRun()
	s.last = time.Since(start)
	return out, nil
}

// own returns d, or a copy where it is one of the given values.
func own(d ops.Data, in []ops.Data) ops.Data {
	t, ok := d.(*tensor.Tensor)
	if !ok || t.Len() == 0 {
		return d
	}
	for _, i := range in {
		if u, ok := i.(*tensor.Tensor); ok && sameMemory(t, u) {
			return t.Clone()
		}
	}
	return d
}

func checkFeed(v *graph.Value, t *tensor.Tensor) error {
	if v.Type.Kind != graph.KindTensor {
		return nil
	}
	want := v.Type
	ok := want.Elem == tensor.Undefined || want.Elem == t.DType()
	if want.Shape != nil {
		ok = ok && len(want.Shape) == t.Rank()
		for i := 0; ok && i < t.Rank(); i++ {
			d := want.Shape[i]
			// Some producers write 0 for a dimension that they do not know.
			ok = !d.Known || d.Size == 0 || d.Size == int64(t.Shape()[i])
		}
	}
	if !ok {
		return fmt.Errorf("got %v, the model wants %v", t, want)
	}
	return nil
}

// run is the state that the blocks of one run share.
type run struct {
	ctx     context.Context
	session *Session
	tap     Tap
	wanted  []bool
	nested  time.Duration // of the steps of nested graphs, while profiling
	steps   int64         // that are left
}

func (r *run) report(v *graph.Value, d ops.Data) error {
	if r.tap == nil || r.wanted != nil && (v.ID >= len(r.wanted) || !r.wanted[v.ID]) {
		return nil
	}
	if t, ok := d.(*tensor.Tensor); ok {
		var err error
		r.session.pool.Lend(func() { err = r.tap(v, t) })
		return err
	}
	return nil
}

// frame is one activation of a block.
type frame struct {
	run   *run
	block *block
	data  []ops.Data
	bufs  []*buffer // the buffer that each slot's tensor lives in, if it is the arena's
	calls []call    // by step
}

// frame returns an activation of b.
func (r *run) frame(b *block) *frame {
	free := r.session.frames[b]
	if n := len(free); n > 0 {
		f := free[n-1]
		r.session.frames[b] = free[:n-1]
		f.run = r
		return f
	}
	f := &frame{run: r, block: b, data: slices.Clone(b.consts), bufs: make([]*buffer, len(b.values)), calls: make([]call, len(b.steps))}
	n := 0
	for i := range b.steps {
		n += len(b.steps[i].ins) + len(b.steps[i].outs)
	}
	slab := make([]ops.Data, n)
	cut := func(n int) []ops.Data {
		s := slab[:n:n]
		slab = slab[n:]
		return s
	}
	for i := range b.steps {
		s, m := &b.steps[i], &f.calls[i]
		m.frame, m.step = f, s
		m.call = ops.Call{Pool: r.session.pool, Mem: m, Ins: cut(len(s.ins)), Outs: cut(len(s.outs)), Wanted: s.wanted}
	}
	return f
}

// block runs b; outer is the step that holds b in an attribute, or nil.
func (r *run) block(b *block, in []ops.Data, outer *call) ([]ops.Data, error) {
	if r.steps -= int64(len(b.steps)) + bodySteps; r.steps < 0 {
		return nil, fmt.Errorf("%w: %d nodes computed, those in loops each time", ErrSteps, r.session.maxSteps())
	}
	if len(in) != len(b.inputs) {
		return nil, fmt.Errorf("run: graph %q takes %d inputs, got %d", b.graph.Scope(), len(b.inputs), len(in))
	}
	f := r.frame(b)
	for i, slot := range b.inputs {
		f.data[slot] = in[i]
		if err := r.report(b.values[slot], in[i]); err != nil {
			return nil, err
		}
	}
	for _, c := range b.captures {
		f.data[c.inner] = outer.frame.data[c.outer]
	}
	for i := range b.steps {
		if err := r.ctx.Err(); err != nil {
			return nil, err
		}
		if err := f.step(i); err != nil {
			if r.ctx.Err() != nil {
				return nil, r.ctx.Err()
			}
			return nil, graph.NodeError("run", b.steps[i].node, err)
		}
	}
	out := make([]ops.Data, len(b.outputs))
	for i, slot := range b.outputs {
		out[i] = f.data[slot]
		switch buf := f.bufs[slot]; {
		case buf == nil:
		case outer == nil:
			r.session.mem.escape(buf)
		default:
			outer.adopt(buf)
		}
	}
	// A frame of a run that failed is not used again.
	copy(f.data, b.consts)
	clear(f.bufs)
	f.run = nil
	r.session.frames[b] = append(r.session.frames[b], f)
	return out, nil
}

// adopt makes b, which an output of a nested graph lives in, a buffer of this
// call.
func (m *call) adopt(b *buffer) {
	if !slices.Contains(m.pending, b) {
		b.refs = 0
		m.pending = append(m.pending, b)
	}
}

// call is the Memory of one execution of a step.
type call struct {
	call    ops.Call
	frame   *frame
	step    *step
	pending []*buffer
	reused  int // input whose buffer an output took over, or -1
	scratch []*buffer
}

func (f *frame) step(i int) error {
	if f.run.session.times == nil {
		return f.exec(i)
	}
	r := f.run
	outer := r.nested
	r.nested = 0
	start := time.Now()
	err := f.exec(i)
	d := time.Since(start)
	op := f.block.steps[i].node.Op
	t := r.session.times[op]
	if t == nil {
		t = &OpTime{Op: op}
		r.session.times[op] = t
	}
	t.Count++
	t.Time += d - r.nested
	r.nested = outer + d
	return err
}

func (f *frame) exec(i int) error {
	m := &f.calls[i]
	s, c := m.step, &m.call
	c.Ctx, m.reused = f.run.ctx, -1
	for k, slot := range s.ins {
		if slot >= 0 {
			c.Ins[k] = f.data[slot]
		}
	}
	if err := invoke(s.kernel, c); err != nil {
		return err
	}
	arena := &f.run.session.mem
	for _, b := range m.scratch {
		arena.release(b)
	}
	for k, slot := range s.outs {
		d := c.Outs[k]
		if slot < 0 {
			continue
		}
		if d == nil {
			return fmt.Errorf("output %d was not computed", k)
		}
		f.data[slot] = d
		if t, ok := d.(*tensor.Tensor); ok {
			f.bufs[slot] = m.bufferOf(t)
		} else {
			m.escapeAll()
		}
	}
	for _, b := range m.pending {
		if b.refs == 0 {
			arena.release(b)
		}
	}
	if f.run.tap != nil {
		for k, slot := range s.outs {
			if slot < 0 {
				continue
			}
			if err := f.run.report(f.block.values[slot], c.Outs[k]); err != nil {
				return err
			}
		}
	}
	for _, slot := range s.dies {
		if b := f.bufs[slot]; b != nil {
			if b.refs--; b.refs == 0 {
				arena.release(b)
			}
			f.bufs[slot] = nil
		}
		f.data[slot] = nil
	}
	clear(c.Ins)
	clear(c.Outs)
	clear(m.scratch)
	clear(m.pending)
	m.scratch, m.pending = m.scratch[:0], m.pending[:0]
	return nil
}

// ErrFault is the error of a kernel that met a memory fault: the file that
// holds a weight was cut short while the model was in use.
var ErrFault = errors.New("memory fault: a file of the model was cut short while it was in use")

// invoke runs a kernel and turns a panic, which is a defect of the kernel or
// a memory fault of a mapped file, into an error.
func invoke(k ops.Kernel, c *ops.Call) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			err = ErrFault
		default:
			err = &PanicError{Value: r, Stack: debug.Stack()}
		}
	}()
	return k(c)
}

// PanicError is a defect: a kernel panicked.
type PanicError struct {
	Value any
	Stack []byte
}

// Error describes the panic without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("internal error in kernel: %v", e.Value) }

// bufferOf finds the arena buffer that t lives in, counts the reference, and
// returns nil for foreign memory.
func (m *call) bufferOf(t *tensor.Tensor) *buffer {
	if len(t.Bytes()) == 0 {
		return nil
	}
	for _, b := range m.pending {
		if b.holds(t) {
			b.refs++
			return b
		}
	}
	for slot := range m.visible() {
		if b := m.frame.bufs[slot]; b != nil && b.holds(t) {
			b.refs++
			return b
		}
	}
	return nil
}

// visible yields the slots that the step reads, directly or in a nested graph.
func (m *call) visible() iter.Seq[int] {
	return func(yield func(int) bool) {
		for _, slot := range m.step.ins {
			if slot >= 0 && !yield(slot) {
				return
			}
		}
		for _, body := range m.step.bodies {
			for _, c := range body.captures {
				if !yield(c.outer) {
					return
				}
			}
		}
	}
}

// escapeAll keeps every buffer that a non-tensor output may refer to from
// being recycled.
func (m *call) escapeAll() {
	arena := &m.frame.run.session.mem
	for _, b := range m.pending {
		arena.escape(b)
	}
	for slot := range m.visible() {
		if b := m.frame.bufs[slot]; b != nil {
			arena.escape(b)
		}
	}
}

// New implements ops.Memory.
func (m *call) New(dtype tensor.DType, shape []int) (*tensor.Tensor, error) {
	n, ok := tensor.NumElements(shape)
	if !ok || !dtype.Valid() {
		return nil, fmt.Errorf("cannot make a tensor %v%v", dtype, tensor.ShapeString(shape))
	}
	if dtype == tensor.String {
		if n > maxStrings {
			return nil, fmt.Errorf("%w: %d strings", ErrLimit, n)
		}
		return tensor.New(dtype, shape...), nil
	}
	if n > maxElements {
		return nil, fmt.Errorf("%w: tensor %v%v", ErrLimit, dtype, tensor.ShapeString(shape))
	}
	b, err := m.frame.run.session.mem.get(dtype.Bytes(n))
	if err != nil {
		return nil, fmt.Errorf("%w for %v%v", err, dtype, tensor.ShapeString(shape))
	}
	m.pending = append(m.pending, b)
	return tensor.FromBytes(dtype, append([]int{}, shape...), b.mem[:dtype.Bytes(n)])
}

// Reuse implements ops.Memory.
func (m *call) Reuse(c *ops.Call, i int, dtype tensor.DType, shape []int) (*tensor.Tensor, error) {
	t := c.In(i)
	slot := -1
	if i < len(m.step.ins) {
		slot = m.step.ins[i]
	}
	n, ok := tensor.NumElements(shape)
	if t != nil && slot >= 0 && ok && m.reused < 0 && len(t.Bytes()) > 0 && len(t.Bytes()) == dtype.Bytes(n) {
		b := m.frame.bufs[slot]
		if b != nil && b.refs == 1 && m.diesHere(slot) && m.readOnce(slot) {
			m.reused = i
			return tensor.FromBytes(dtype, append([]int{}, shape...), b.mem[:dtype.Bytes(n)])
		}
	}
	return m.New(dtype, shape)
}

func (m *call) diesHere(slot int) bool {
	for _, d := range m.step.dies {
		if d == slot {
			return true
		}
	}
	return false
}

// readOnce reports whether the step reads the slot in one place, so that
// overwriting it harms no other input.
func (m *call) readOnce(slot int) bool {
	n := 0
	for _, s := range m.step.ins {
		if s == slot {
			n++
		}
	}
	return n == 1
}

// Free implements ops.Memory.
func (m *call) Free(t *tensor.Tensor) {
	for i, b := range m.pending {
		if b.holds(t) {
			m.pending = slices.Delete(m.pending, i, i+1)
			m.frame.run.session.mem.release(b)
			return
		}
	}
}

// Scratch implements ops.Memory.
func (m *call) Scratch(n int) ([]byte, error) {
	b, err := m.frame.run.session.mem.get(n)
	if err != nil {
		return nil, err
	}
	m.scratch = append(m.scratch, b)
	return b.mem[:n], nil
}

// Run implements ops.Body: the block runs within the run that c belongs to.
func (b *block) Run(c *ops.Call, in []ops.Data) ([]ops.Data, error) {
	m, ok := c.Mem.(*call)
	if !ok {
		return nil, errors.New("body called outside a run")
	}
	return m.frame.run.block(b, in, m)
}
