//go:build !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// engine is a loaded library.
type engine struct {
	api *api
	o   Options
}

// Name returns Name.
func (e *engine) Name() string { return Name }

// Version returns that of the library.
func (e *engine) Version() string { return e.api.version }

// maxEncoded is the size of the largest model that is handed over encoded.
const maxEncoded = 1<<31 - 1

// patience is how long a call may go on after the end of its context; then it
// is left to end by itself.
const patience = 500 * time.Millisecond

// executable is a model with the taps as outputs.
type executable struct {
	engine  *engine
	model   *graph.Model
	encoded *graph.Model // what the runtime gets: model, or a copy with more outputs
	path    string       // of the file that holds it; "" if it is to be encoded
	temp    string       // folder to be removed
	inputs  []*graph.Value
	inNames []*byte
	outputs []*byte // names; those of taps follow those of the graph's outputs
	taps    []tapped
	nested  int // values that were to be tapped, but are those of nested graphs

	mu       sync.Mutex
	sessions map[int]*native // by number of threads
}

// tapped is a value to report: a graph input, or the output of that place.
type tapped struct {
	value  *graph.Value
	output int // -1 for an input
}

// Compile finds out how the model gets to the runtime. What the runtime says
// of it is known when a Runner is opened.
func (e *engine) Compile(ctx context.Context, m *graph.Model, o exec.Options) (exec.Executable, error) {
	x := &executable{engine: e, model: m, encoded: m, sessions: map[int]*native{}}
	for _, v := range m.Graph.Inputs() {
		if !v.IsConst() {
			x.inputs, x.inNames = append(x.inputs, v), append(x.inNames, cString(v.Name()))
		}
	}
	at := map[int]int{} // place by Value.ID
	for i, v := range m.Graph.Outputs() {
		at[v.ID] = i
		x.outputs = append(x.outputs, cString(v.Name()))
	}
	var extra []int
	tap := func(v *graph.Value, input bool) {
		if v == nil || v.ID >= len(o.Taps) || !o.Taps[v.ID] || v.Type.Kind != graph.KindTensor && v.Type.Kind != graph.KindUnknown {
			return
		}
		place, ok := at[v.ID]
		switch {
		case input:
			place = -1
		case !ok:
			place = len(x.outputs)
			x.outputs = append(x.outputs, cString(v.Name()))
			extra = append(extra, v.ID)
		}
		x.taps = append(x.taps, tapped{v, place})
	}
	for _, v := range x.inputs {
		tap(v, true)
	}
	for n := range m.Graph.Nodes() {
		for _, v := range n.Outputs() {
			tap(v, false)
		}
	}
	for g := range m.Scopes() {
		if g != m.Graph {
			x.nested += count(g, o.Taps)
		}
	}
	if len(extra) > 0 {
		x.encoded = withOutputs(m, extra)
	} else if path, ok := onnxfile.Source(m); ok {
		x.path = path
	}
	if x.path == "" && onnxfile.Size(x.encoded) > maxEncoded {
		var err error
		if x.temp, err = os.MkdirTemp("", "onnxq-"); err != nil {
			return nil, err
		}
		x.path = filepath.Join(x.temp, "model.onnx")
		if err := onnxfile.Save(ctx, x.encoded, x.path, onnxfile.SaveOptions{}); err != nil {
			os.RemoveAll(x.temp)
			return nil, err
		}
	}
	return x, nil
}

// count returns how many inputs of g and outputs of its nodes are in taps.
func count(g *graph.Graph, taps []bool) int {
	n := 0
	add := func(list []*graph.Value) {
		for _, v := range list {
			if v != nil && v.ID < len(taps) && taps[v.ID] {
				n++
			}
		}
	}
	add(g.Inputs())
	for node := range g.Nodes() {
		add(node.Outputs())
	}
	return n
}

// withOutputs returns a copy of m that has the values of the given IDs as
// outputs.
func withOutputs(m *graph.Model, ids []int) *graph.Model {
	c := m.Clone()
	byID := map[int]*graph.Value{}
	for n := range c.Graph.Nodes() {
		for _, v := range n.Outputs() {
			if v != nil {
				byID[v.ID] = v
			}
		}
	}
	for _, id := range ids {
		c.Graph.AddOutput(byID[id])
	}
	return c
}

// Model returns the model that was compiled.
func (x *executable) Model() *graph.Model { return x.model }

// Untapped returns the number of values of nested graphs that were to be
// tapped.
func (x *executable) Untapped() int { return x.nested }

// Close removes temporary files.
func (x *executable) Close() error {
	if x.temp == "" {
		return nil
	}
	return os.RemoveAll(x.temp)
}

// native is a session of the runtime, which several Runners and runs share.
type native struct {
	api   *api
	ptr   handle
	mu    sync.Mutex
	users int
}

func (s *native) acquire() {
	s.mu.Lock()
	s.users++
	s.mu.Unlock()
}

func (s *native) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		s.api.call(releaseSession, s.ptr)
		s.ptr = 0
	}
}

// Open makes a session of the runtime, or returns a Runner of one that there
// is. MaxBytes, Ceiling and MaxSteps do not bound its runs.
func (x *executable) Open(ctx context.Context, o exec.SessionOptions) (exec.Runner, error) {
	threads := o.Threads
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	r := &runner{x: x}
	if o.Profile {
		dir, err := os.MkdirTemp("", "onnxq-")
		if err != nil {
			return nil, err
		}
		if r.session, err = x.create(ctx, threads, filepath.Join(dir, "profile")); err != nil {
			os.RemoveAll(dir)
			return nil, err
		}
		r.profile = dir
		return r, nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.sessions[threads]; s != nil && s.share() {
		r.session = s
		return r, nil
	}
	s, err := x.create(ctx, threads, "")
	if err != nil {
		return nil, err
	}
	x.sessions[threads] = s
	r.session = s
	return r, nil
}

// share adds a user unless the session has been released.
func (s *native) share() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		return false
	}
	s.users++
	return true
}

// create makes a session. profile is the beginning of the path of the file
// that times go to, or "".
func (x *executable) create(ctx context.Context, threads int, profile string) (*native, error) {
	var data bytes.Buffer
	if x.path == "" {
		data.Grow(int(onnxfile.Size(x.encoded)))
		if err := onnxfile.Write(ctx, &data, x.encoded); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &native{api: x.engine.api, users: 1}
	done := make(chan error, 1)
	go func() { done <- s.load(x.path, data.Bytes(), threads, profile, x.engine.o) }()
	select {
	case err := <-done:
		return s, x.refused(err)
	case <-ctx.Done():
		go func() {
			if <-done == nil {
				s.release()
			}
		}()
		return nil, ctx.Err()
	}
}

// load creates the session from a file, or from data if there is none.
func (s *native) load(path string, data []byte, threads int, profile string, o Options) error {
	a := s.api
	var so handle
	if err := a.do(createSessionOptions, uintptr(unsafe.Pointer(&so))); err != nil {
		return err
	}
	defer a.call(releaseSessionOptions, so)
	level := [...]uintptr{OptimizeAll: 99, OptimizeExtended: 2, OptimizeBasic: 1, OptimizeNone: 0}[min(o.Optimization, OptimizeNone)]
	for _, err := range []error{
		a.do(setIntraOpNumThreads, so, uintptr(threads)),
		a.do(setInterOpNumThreads, so, 1),
		a.do(setGraphOptimizationLevel, so, level),
		a.do(setSessionLogSeverityLevel, so, o.severity()),
	} {
		if err != nil {
			return err
		}
	}
	if profile != "" {
		p, err := pathString(profile)
		if err != nil {
			return err
		}
		if err := a.do(enableProfiling, so, uintptr(p)); err != nil {
			return err
		}
	}
	env, out := a.env, uintptr(0)
	if path != "" {
		p, err := pathString(path)
		if err != nil {
			return err
		}
		err = a.do(createSession, env, uintptr(p), so, uintptr(unsafe.Pointer(&out)))
		s.ptr = out
		return err
	}
	err := a.do(createSessionFromArray, env, uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data)), so, uintptr(unsafe.Pointer(&out)))
	s.ptr = out
	return err
}

// severity returns the runtime's number of o.Log.
func (o Options) severity() uintptr { return uintptr(levelFatal - min(o.Log, LogVerbose)) }

// refused returns err, which the runtime gave when it read the model, with its
// place.
func (x *executable) refused(err error) error {
	if err == nil {
		return nil
	}
	path := x.model.Path
	if path == "" {
		path = x.path
	}
	return &onnxfile.ContentError{Path: path, Err: placed("load", err)}
}

// The ways in which the runtime's messages name a node.
var nodeNames = []*regexp.Regexp{
	regexp.MustCompile(`while running (?P<op>\S+) node\. Name:\s*'(?P<node>.*?)'`),
	regexp.MustCompile(`Node\s*\((?P<node>.*?)\)\s+Op\s*\((?P<op>.*?)\)`),
	regexp.MustCompile(`operator '(?P<op>[^']*)' node name:\s*(?P<node>\S+)`),
	regexp.MustCompile(`implementation for (?P<op>[^\s(]+)\S* node with name '(?P<node>.*?)'`),
	regexp.MustCompile(`kernel for (?P<op>[^\s(]+)\S* \(node:'(?P<node>.*?)'`),
	regexp.MustCompile(`[Nn]ode\s*:\s*'?(?P<node>[^\s']+)`),
}

// placed returns an error of the runtime with the node that it names.
func placed(stage string, err error) error {
	e := &graph.Error{Stage: stage, Err: err}
	var from *Error
	if !errors.As(err, &from) {
		return e
	}
	for _, re := range nodeNames {
		if m := re.FindStringSubmatch(from.Message); m != nil {
			for i, name := range re.SubexpNames() {
				switch name {
				case "node":
					e.Node = m[i]
				case "op":
					e.Op = m[i]
				}
			}
			break
		}
	}
	return e
}

// runner is a user of a session.
type runner struct {
	x       *executable
	session *native
	profile string // folder of the profile; "" without one
	times   []exec.OpTime
	short   bool // the last run was: the next need not be left to itself
	closed  bool
}

// call is what one run hands over.
type call struct {
	api      *api
	mu       sync.Mutex // guards options, which terminate uses at any time
	options  handle
	in, out  []handle
	inNames  []*byte
	outNames []*byte
	pin      runtime.Pinner
}

func (c *call) terminate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.options != 0 {
		c.api.do(runOptionsSetTerminate, c.options)
	}
}

func (c *call) release() {
	c.mu.Lock()
	c.api.call(releaseRunOptions, c.options)
	c.options = 0
	c.mu.Unlock()
	c.api.release(c.in)
	c.api.release(c.out)
	c.pin.Unpin()
}

// Run computes the outputs; see exec.Runner. Values are reported when the run
// has ended, inputs first and then in the order of the nodes. A run that does
// not end in time after ctx has is left to itself, and the feeds must not be
// changed until the process ends.
func (r *runner) Run(ctx context.Context, feeds map[string]ops.Data, tap exec.Tap, wanted []bool) ([]ops.Data, error) {
	x, a := r.x, r.x.engine.api
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := exec.CheckFeeds(x.inputs, feeds); err != nil {
		return nil, err
	}
	c := &call{api: a}
	if err := a.do(createRunOptions, uintptr(unsafe.Pointer(&c.options))); err != nil {
		return nil, err
	}
	left := false
	defer func() {
		if !left {
			c.release()
		}
	}()
	if err := a.do(runOptionsSetLogSeverityLevel, c.options, x.engine.o.severity()); err != nil {
		return nil, err
	}
	for i, v := range x.inputs {
		d, ok := feeds[v.Name()]
		if !ok {
			continue
		}
		h, err := a.newValue(d, &c.pin)
		if err != nil {
			return nil, graph.ValueError("run", v, err)
		}
		c.in, c.inNames = append(c.in, h), append(c.inNames, x.inNames[i])
		c.pin.Pin(x.inNames[i])
	}
	results := len(x.model.Graph.Outputs())
	c.outNames = x.outputs[:results:results]
	var report []tapped // output is the place in c.out
	if tap != nil {
		for _, t := range x.taps {
			if wanted != nil && (t.value.ID >= len(wanted) || !wanted[t.value.ID]) {
				continue
			}
			if t.output >= results {
				c.outNames = append(c.outNames, x.outputs[t.output])
				t.output = len(c.outNames) - 1
			}
			report = append(report, t)
		}
	}
	for _, name := range c.outNames {
		c.pin.Pin(name)
	}
	c.out = make([]handle, len(c.outNames))

	stop := context.AfterFunc(ctx, c.terminate)
	defer stop()
	begin := time.Now()
	var err error
	if r.short {
		err = c.run(r.session.ptr)
	} else if left, err = r.await(ctx, c); left {
		return nil, ctx.Err()
	}
	r.short = time.Since(begin) < patience/4
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, placed("run", err)
	}
	for _, t := range report {
		if err := c.report(t, feeds, tap); err != nil {
			return nil, err
		}
	}
	out := make([]ops.Data, results)
	for i, v := range x.model.Graph.Outputs() {
		if out[i], err = a.data(c.out[i], v.Type); err != nil {
			return nil, graph.ValueError("run", v, err)
		}
	}
	return out, nil
}

// await runs c in a goroutine of its own. left says that the context has ended
// and the run has not, which then goes on and releases c.
func (r *runner) await(ctx context.Context, c *call) (left bool, err error) {
	done := make(chan error, 1)
	r.session.acquire()
	go func() {
		defer r.session.release()
		done <- c.run(r.session.ptr)
	}()
	select {
	case err = <-done:
		return false, err
	case <-ctx.Done():
	}
	select {
	case err = <-done:
		return false, err
	case <-time.After(patience):
		go func() {
			<-done
			c.release()
		}()
		return true, nil
	}
}

func (c *call) run(session handle) error {
	return c.api.do(runSession, session, c.options,
		uintptr(unsafe.Pointer(unsafe.SliceData(c.inNames))), uintptr(unsafe.Pointer(unsafe.SliceData(c.in))), uintptr(len(c.in)),
		uintptr(unsafe.Pointer(unsafe.SliceData(c.outNames))), uintptr(len(c.outNames)), uintptr(unsafe.Pointer(unsafe.SliceData(c.out))))
}

// report calls tap with a value if that is a tensor.
func (c *call) report(t tapped, feeds map[string]ops.Data, tap exec.Tap) error {
	if t.output < 0 {
		if d, ok := feeds[t.value.Name()].(*tensor.Tensor); ok {
			return tap(t.value, d)
		}
		if t.value.Const != nil {
			return tap(t.value, t.value.Const)
		}
		return nil
	}
	var kind int32
	if err := c.api.do(getValueType, c.out[t.output], uintptr(unsafe.Pointer(&kind))); err != nil {
		return graph.ValueError("run", t.value, err)
	}
	if kind != typeTensor {
		return nil
	}
	d, err := c.api.view(c.out[t.output])
	if err != nil {
		return graph.ValueError("run", t.value, err)
	}
	return tap(t.value, d)
}

// Profile ends profiling and reads what the runtime wrote.
func (r *runner) Profile() ([]exec.OpTime, error) {
	if r.profile == "" || r.times != nil {
		return r.times, nil
	}
	a := r.x.engine.api
	var name handle
	if err := a.do(sessionEndProfiling, r.session.ptr, a.allocator, uintptr(unsafe.Pointer(&name))); err != nil {
		return nil, err
	}
	path := goString(name)
	if err := a.do(allocatorFree, a.allocator, name); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if r.times, err = readProfile(f); err != nil {
		return nil, fmt.Errorf("profile of ONNX Runtime: %w", err)
	}
	return r.times, nil
}

// Close gives the session back when nobody else uses it.
func (r *runner) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.session.release()
	if r.profile != "" {
		return os.RemoveAll(r.profile)
	}
	return nil
}
