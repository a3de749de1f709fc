package calibration

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"

	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// field is one value of a sample before it is read. Where the file says its
// type and shape up front they are checked first; typed is false where they
// follow from the input.
type field struct {
	name    string
	index   int // J of input_J.pb, which counts before the name; else -1
	typed   bool
	dtype   tensor.DType
	shape   []int
	read    func(in *Input) (*tensor.Tensor, error)
	readRow func(lo, hi int) (*tensor.Tensor, error) // of typed ones, along axis 0
	direct  bool                                     // readRow reads no more than the rows
}

// opened is a sample whose fields can be read until close.
type opened struct {
	fields []field
	close  func()
}

// read loads, checks and converts the values of a sample.
func (s *shared) read(ctx context.Context, sm *Sample) (Feed, error) {
	op, err := sm.load(ctx)
	if op.close != nil {
		defer op.close()
	}
	if err != nil {
		return nil, err
	}
	chosen, err := s.match(op.fields)
	if err != nil {
		return nil, err
	}
	var total int64
	for i := range s.inputs {
		if f := chosen[i]; f != nil && f.typed {
			if err := s.checkField(f, &s.inputs[i]); err != nil {
				return nil, err
			}
			n, _ := tensor.NumElements(f.shape)
			if total += int64(f.dtype.Bytes(n)); total > s.opts.maxBytes() {
				return nil, fmt.Errorf("the sample takes more than the %d bytes allowed", s.opts.maxBytes())
			}
		}
	}
	feed, bound := Feed{}, symbols{}
	for i := range s.inputs {
		f, in := chosen[i], &s.inputs[i]
		if f == nil {
			continue
		}
		t, err := f.read(in)
		if err == nil {
			t, err = s.convert(t, in)
		}
		if err == nil {
			err = checkShape(t.Shape(), in)
		}
		if err == nil {
			err = bound.bind(t.Shape(), in)
		}
		if err == nil {
			err = checkValues(t)
		}
		if err != nil {
			return nil, inputError(in, err)
		}
		feed[in.Name] = t
	}
	return feed, nil
}

func inputError(in *Input, err error) error {
	var de *DataError
	if errors.As(err, &de) {
		return err
	}
	return &DataError{Input: in.Name, Err: err}
}

// match returns the field of each input, nil for optional ones without.
func (s *shared) match(fields []field) ([]*field, error) {
	chosen := make([]*field, len(s.inputs))
	byName := map[string]int{}
	for i, in := range s.inputs {
		byName[in.Name] = i
	}
	var has, extra []string
	var unnamed []*field
	for k := range fields {
		f := &fields[k]
		if f.name != "" {
			has = append(has, f.name)
		}
		i, ok := f.index, f.index >= 0 && f.index < len(s.inputs)
		if f.index < 0 {
			if i, ok = byName[f.name]; !ok {
				i, ok = s.positional(f.name)
			}
		}
		switch {
		case !ok:
			unnamed = append(unnamed, f)
		case chosen[i] != nil:
			return nil, &DataError{Input: s.inputs[i].Name, Err: fmt.Errorf("%q and %q are both values for it", chosen[i].name, f.name)}
		default:
			chosen[i] = f
		}
	}
	if in, ok := s.singleInput(); ok && len(unnamed) == 1 && len(fields) == 1 {
		chosen[byName[in.Name]] = unnamed[0]
		unnamed = nil
	}
	missing := &MissingError{Has: has}
	for i, in := range s.inputs {
		if chosen[i] == nil && !in.Optional {
			missing.Inputs = append(missing.Inputs, in.Name)
		}
	}
	if len(missing.Inputs) > 0 {
		return nil, missing
	}
	for _, f := range unnamed {
		extra = append(extra, strconv.Quote(f.name))
	}
	if len(extra) > 0 {
		s.note("values that are no inputs of the model left out: %s", strings.Join(extra, ", "))
	}
	return chosen, nil
}

// positional reads input_J and arr_J, NumPy's name for the J-th array of
// savez.
func (s *shared) positional(name string) (int, bool) {
	for _, prefix := range []string{"input_", "arr_"} {
		if j, ok := protoIndex(name+".pb", prefix); ok && j < len(s.inputs) {
			return j, true
		}
	}
	return 0, false
}

// checkField compares what a file says about a value with the input.
func (s *shared) checkField(f *field, in *Input) error {
	if f.dtype != in.DType && !s.opts.Cast {
		return &DataError{Input: in.Name, Err: wrongType(f.dtype, in)}
	}
	if err := checkShape(f.shape, in); err != nil {
		return &DataError{Input: in.Name, Err: err}
	}
	return nil
}

func wrongType(got tensor.DType, in *Input) error {
	return fmt.Errorf("expected element type %v, got %v (--cast converts)", in.DType, got)
}

func checkShape(shape []int, in *Input) error {
	if in.Shape == nil {
		return nil
	}
	bad := len(shape) != len(in.Shape)
	for i := 0; !bad && i < len(shape); i++ {
		bad = in.Shape[i] >= 0 && in.Shape[i] != shape[i]
	}
	if bad {
		return fmt.Errorf("expected shape %s, got %s", shapeText(in.Shape), shapeText(shape))
	}
	return nil
}

// symbols holds the size of each symbolic dimension within a sample, and the
// input that gave it.
type symbols map[string]struct {
	size int
	by   string
}

// bind notes the sizes that an input of the given shape, which checkShape
// accepts, gives to symbols; it is an error if one has another size already.
func (b symbols) bind(shape []int, in *Input) error {
	for i, name := range in.Symbols {
		if name == "" || in.Shape[i] >= 0 {
			continue
		}
		was, ok := b[name]
		if ok && was.size != shape[i] {
			return fmt.Errorf("shape %s makes the dimension %q %d, input %q makes it %d", shapeText(shape), name, shape[i], was.by, was.size)
		}
		was.size, was.by = shape[i], in.Name
		b[name] = was
	}
	return nil
}

// convert changes the element type under Options.Cast.
func (s *shared) convert(t *tensor.Tensor, in *Input) (*tensor.Tensor, error) {
	from, to := t.DType(), in.DType
	if from == to {
		return t, nil
	}
	if !s.opts.Cast {
		return nil, wrongType(from, in)
	}
	out, err := castTensor(t, to)
	if err == nil {
		s.note("input %q: %v converted to %v", in.Name, from, to)
	}
	return out, err
}

// castTensor converts t. Between floating-point types values are rounded;
// otherwise every value must be kept exactly.
func castTensor(t *tensor.Tensor, to tensor.DType) (*tensor.Tensor, error) {
	from := t.DType()
	if !from.Convertible() || !to.Convertible() {
		return nil, fmt.Errorf("%v cannot be converted to %v", from, to)
	}
	out := tensor.New(to, t.Shape()...)
	n := t.Len()
	if err := tensor.Convert(out, t, 0, n, tensor.ConvertOptions{}); err != nil {
		return nil, err
	}
	at := -1
	switch {
	case from.IsFloat() && to.IsFloat():
		at = firstDifference(t, out, func(a, b float64) bool { return math.IsInf(b, 0) == math.IsInf(a, 0) })
	case from.IsFloat():
		at = firstDifference(t, out, func(a, b float64) bool { return a == b })
	case from == tensor.Uint64:
		at = firstDifference(t, out, func(a, b uint64) bool { return a == b })
	default:
		at = firstDifference(t, out, func(a, b int64) bool { return a == b })
	}
	if at >= 0 {
		one := make([]float64, 1)
		tensor.Read(t, at, one)
		return nil, fmt.Errorf("element %d is %v, which %v cannot hold", at, one[0], to)
	}
	return out, nil
}

// firstDifference returns the first element for which same is false, or -1.
func firstDifference[T tensor.Real](a, b *tensor.Tensor, same func(x, y T) bool) int {
	var x, y [512]T
	for at, n := 0, a.Len(); at < n; at += len(x) {
		m := min(len(x), n-at)
		tensor.Read(a, at, x[:m])
		tensor.Read(b, at, y[:m])
		for i := range m {
			if !same(x[i], y[i]) {
				return at + i
			}
		}
	}
	return -1
}

// checkValues refuses NaN and infinite elements, and bytes that are no bool.
func checkValues(t *tensor.Tensor) error {
	if t.DType() == tensor.Bool {
		for i, b := range t.Bytes() {
			if b > 1 {
				return fmt.Errorf("element %d of type bool is %d", i, b)
			}
		}
	}
	if !t.DType().IsFloat() {
		return nil
	}
	nans, infs, n := 0, 0, t.Len()
	var buf [1024]float32
	for at := 0; at < n; {
		var part []float32
		if t.DType() == tensor.Float32 {
			part = tensor.As[float32](t)
		} else {
			part = buf[:min(len(buf), n-at)]
			if t.DType() == tensor.Float64 {
				// A large float64 is no infinity.
				for i, v := range tensor.As[float64](t)[at : at+len(part)] {
					part[i] = float32(v - v)
				}
			} else {
				tensor.Read(t, at, part)
			}
		}
		e := kernels.MinMax(part)
		nans, infs = nans+e.NaN, infs+e.Inf
		at += len(part)
	}
	if t.DType() == tensor.Float64 && nans > 0 {
		nans, infs = 0, 0
		for _, v := range tensor.As[float64](t) {
			switch {
			case v != v:
				nans++
			case v-v != 0:
				infs++
			}
		}
	}
	if nans+infs == 0 {
		return nil
	}
	return fmt.Errorf("%d NaN and %d infinite of %d values", nans, infs, n)
}

// cut says how the rows of a field become values of an input.
type cut struct {
	step int  // rows a sample, 0 for the whole
	drop bool // axis 0 goes
}

func (s *shared) cutOf(f *field, in *Input) (cut, error) {
	rank := len(f.shape)
	switch {
	case rank == 0:
		return cut{}, nil
	case in.Shape == nil, rank == len(in.Shape):
		c := cut{step: 1}
		if in.Shape != nil {
			c.step = max(in.Shape[0], 1)
		}
		return c, nil
	case rank == len(in.Shape)+1:
		return cut{step: 1, drop: true}, nil
	}
	return cut{}, fmt.Errorf("expected rows of shape %s, got an array of shape %s", shapeText(in.Shape), shapeText(f.shape))
}

// openRows cuts a file into samples along axis 0.
func (o *opener) openRows(base Sample) ([]Sample, error) {
	op, err := base.load(o.ctx)
	if op.close != nil {
		defer op.close()
	}
	if err != nil {
		return nil, err
	}
	chosen, err := o.match(op.fields)
	if err != nil {
		return nil, err
	}
	n, first := -1, ""
	for i := range o.inputs {
		f, in := chosen[i], &o.inputs[i]
		if f == nil {
			continue
		}
		c, err := o.cutOf(f, in)
		if err != nil {
			return nil, inputError(in, err)
		}
		if c.step == 0 {
			continue
		}
		if f.shape[0]%c.step != 0 {
			return nil, inputError(in, fmt.Errorf("%d rows do not divide into samples of %d", f.shape[0], c.step))
		}
		rows := f.shape[0] / c.step
		if n < 0 {
			n, first = rows, in.Name
		} else if n != rows {
			return nil, inputError(in, fmt.Errorf("axis 0 gives %d samples, that of input %q gives %d", rows, first, n))
		}
	}
	if n < 0 {
		return nil, errors.New("no array has an axis 0 to cut along")
	}
	if n == 0 {
		return nil, errors.New("the arrays have no rows")
	}
	load := base.load
	samples := make([]Sample, n)
	for k := range samples {
		sm := row(base, k)
		sm.load = func(ctx context.Context) (opened, error) {
			op, err := load(ctx)
			if err != nil {
				return op, err
			}
			for i := range op.fields {
				if f := &op.fields[i]; f.readRow != nil && !f.direct {
					o.throughCache(f, base.Path+"\x00"+base.rel)
				}
			}
			op.fields, err = o.cutFields(op.fields, k, n)
			return op, err
		}
		samples[k] = sm
	}
	return samples, nil
}

// cutFields narrows fields to row k of n.
func (s *shared) cutFields(fields []field, k, n int) ([]field, error) {
	chosen, err := s.match(fields)
	if err != nil {
		return nil, err
	}
	var out []field
	for i := range s.inputs {
		if chosen[i] == nil {
			continue
		}
		f, in := *chosen[i], &s.inputs[i]
		f.name, f.index = in.Name, -1
		c, err := s.cutOf(&f, in)
		if err != nil {
			return nil, inputError(in, err)
		}
		if c.step > 0 {
			if f.shape[0] != c.step*n {
				return nil, inputError(in, errors.New("the file has changed since it was opened"))
			}
			lo := k * c.step
			readRow := f.readRow
			f.shape = append([]int{c.step}, f.shape[1:]...)
			if c.drop {
				f.shape = f.shape[1:]
			}
			shape := f.shape
			f.read = func(*Input) (*tensor.Tensor, error) {
				t, err := readRow(lo, lo+c.step)
				if err != nil || !c.drop {
					return t, err
				}
				return t.Reshape(shape)
			}
		}
		out = append(out, f)
	}
	return out, nil
}

func arrayField(a *npy.Array) field {
	return field{
		name: a.Name, index: -1, typed: true, dtype: a.DType, shape: a.Shape,
		read:    func(*Input) (*tensor.Tensor, error) { return a.Tensor() },
		readRow: a.Rows, direct: a.Direct(),
	}
}

// wholeCache keeps arrays of which rows cannot be read alone.
type wholeCache struct {
	mu    sync.Mutex
	keys  []string // oldest first
	whole map[string]*tensor.Tensor
	bytes int64
}

// throughCache makes readRow cut from a cached copy of the whole array.
func (s *shared) throughCache(f *field, file string) {
	key, read := file+"\x00"+f.name, f.read
	f.readRow = func(lo, hi int) (*tensor.Tensor, error) {
		c := &s.cache
		c.mu.Lock()
		defer c.mu.Unlock()
		t := c.whole[key]
		if t == nil {
			var err error
			if t, err = read(nil); err != nil {
				return nil, err
			}
			if c.whole == nil {
				c.whole = map[string]*tensor.Tensor{}
			}
			c.whole[key] = t
			c.keys = append(c.keys, key)
			c.bytes += int64(len(t.Bytes()))
			for c.bytes > s.opts.maxBytes() && len(c.keys) > 1 {
				c.bytes -= int64(len(c.whole[c.keys[0]].Bytes()))
				delete(c.whole, c.keys[0])
				c.keys = c.keys[1:]
			}
		}
		if hi > t.Shape()[0] {
			return nil, errors.New("the file has changed since it was opened")
		}
		return npy.CutRows(t, lo, hi), nil
	}
}
