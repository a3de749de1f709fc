package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// dictionary maps the elements of a tensor to those of another type.
type dictionary struct {
	strings map[string]int
	ints    map[int64]int
	floats  map[float64]int
	nan     int            // entry for NaN, or -1; before opset 4 NaN matches nothing
	values  *tensor.Tensor // the entries; the last one is the default
}

// listAttr returns the attribute name+"_tensor", or the list with one of the
// suffixes s, strings, int64s or floats, as a vector; nil if there is none.
func listAttr(n *graph.Node, name string) *tensor.Tensor {
	if a := n.Attr(name + "_tensor"); a != nil && a.Kind == graph.AttrTensor && a.T != nil {
		t, err := a.T.Reshape([]int{a.T.Len()})
		if err == nil {
			return t
		}
	}
	if v := stringsAttr(n, name+"_strings"); len(v) > 0 {
		return tensor.FromStrings([]int{len(v)}, v)
	}
	if v := n.Ints(name + "_int64s"); len(v) > 0 {
		return tensor.Of(v)
	}
	if a := n.Attr(name + "_floats"); a != nil && a.Kind == graph.AttrFloats {
		return tensor.Of(a.Floats)
	}
	return nil
}

// dictionaryLists returns keys and values of a LabelEncoder or CategoryMapper
// for an input of strings or of something else.
func dictionaryLists(n *graph.Node, opset int, fromStrings bool) (keys, values *tensor.Tensor, err error) {
	names, ids := stringsAttr(n, "cats_strings"), n.Ints("cats_int64s")
	switch {
	case n.Op.Type == "LabelEncoder" && opset >= 2:
		keys, values = listAttr(n, "keys"), listAttr(n, "values")
		if keys == nil || values == nil || keys.Len() != values.Len() {
			return nil, nil, fmt.Errorf("keys %v and values %v", keys, values)
		}
		return keys, values, nil
	case n.Op.Type == "LabelEncoder":
		names = stringsAttr(n, "classes_strings")
		ids = make([]int64, len(names))
		for i := range ids {
			ids[i] = int64(i)
		}
	}
	if len(names) != len(ids) {
		return nil, nil, fmt.Errorf("%d strings and %d integers", len(names), len(ids))
	}
	keys, values = tensor.FromStrings([]int{len(names)}, names), tensor.Of(ids, len(ids))
	if !fromStrings {
		keys, values = values, keys
	}
	return keys, values, nil
}

func newDictionary(n *graph.Node, opset int, fromStrings bool) (*dictionary, error) {
	keys, values, err := dictionaryLists(n, opset, fromStrings)
	if err != nil {
		return nil, err
	}
	d := &dictionary{nan: -1}
	count := keys.Len()
	switch t := keys.DType(); {
	case t == tensor.String:
		d.strings = make(map[string]int, count)
		for i, k := range keys.Strings() {
			d.strings[k] = i
		}
	case t.IsFloat():
		v, err := tensor.Float64s(keys)
		if err != nil {
			return nil, err
		}
		d.floats = make(map[float64]int, count)
		for i, k := range v {
			if k != k && opset >= 4 {
				d.nan = i
			}
			d.floats[k] = i
		}
	default:
		v, err := tensor.Int64s(keys)
		if err != nil {
			return nil, err
		}
		d.ints = make(map[int64]int, count)
		for i, k := range v {
			d.ints[k] = i
		}
	}
	if bits := values.DType().Bits(); values.DType() != tensor.String && (!values.DType().Convertible() || bits < 8) {
		return nil, fmt.Errorf("values %v", values)
	}
	d.values = tensor.New(values.DType(), count+1)
	if values.DType() == tensor.String {
		copy(d.values.Strings(), values.Strings())
		d.values.Strings()[count] = n.String("default_string", "_Unused")
	} else {
		copy(d.values.Bytes(), values.Bytes())
		if values.DType().IsFloat() {
			tensor.Write(d.values, count, []float32{n.Float("default_float", float32(math.Copysign(0, -1)))})
		} else {
			tensor.Write(d.values, count, []int64{n.Int("default_int64", -1)})
		}
	}
	if a := n.Attr("default_tensor"); a != nil && a.Kind == graph.AttrTensor && a.T != nil {
		if a.T.DType() != values.DType() || a.T.Len() != 1 {
			return nil, fmt.Errorf("default %v for values %v", a.T, values)
		}
		if values.DType() == tensor.String {
			d.values.Strings()[count] = a.T.Strings()[0]
		} else {
			copy(d.values.Bytes()[count*len(a.T.Bytes()):], a.T.Bytes())
		}
	}
	return d, nil
}

// entry returns the entry of values for element i of x.
func (d *dictionary) entry(x *tensor.Tensor, i int) int {
	last := d.values.Len() - 1
	at, ok := 0, false
	switch {
	case d.strings != nil && x.DType() == tensor.String:
		at, ok = d.strings[x.Strings()[i]]
	case x.DType() == tensor.String:
	case d.floats != nil:
		var v [1]float64
		tensor.Read(x, i, v[:])
		if at, ok = d.floats[v[0]]; v[0] != v[0] {
			at, ok = d.nan, d.nan >= 0
		}
	case d.ints != nil:
		var v [1]int64
		tensor.Read(x, i, v[:])
		at, ok = d.ints[v[0]]
	}
	if !ok {
		return last
	}
	return at
}

func inferLabelEncoder(c *Inference) error {
	t := tensor.Undefined
	if e := c.Elem(0); e != tensor.Undefined {
		_, values, err := dictionaryLists(c.Node, c.Opset, e == tensor.String)
		if err != nil {
			return c.Errorf("%w", err)
		}
		t = values.DType()
	}
	c.Tensor(0, t, c.Shape(0))
	return nil
}

func compileLabelEncoder(s *Site) (Kernel, error) {
	var dicts [2]*dictionary // for other inputs, for strings
	for i := range dicts {
		var err error
		if dicts[i], err = newDictionary(s.Node, s.Opset, i == 1); err != nil {
			return nil, s.Errorf("%w", err)
		}
	}
	return func(c *Call) error {
		x := c.In(0)
		d := dicts[0]
		if x.DType() == tensor.String {
			d = dicts[1]
		} else if !x.DType().Convertible() {
			return fmt.Errorf("input %v", x)
		}
		y, err := c.Out(0, d.values.DType(), x.Shape()...)
		if err != nil {
			return err
		}
		size := d.values.DType().Bits() / 8
		for i := range x.Len() {
			k := d.entry(x, i)
			if size == 0 {
				y.Strings()[i] = d.values.Strings()[k]
			} else {
				copy(y.Bytes()[i*size:][:size], d.values.Bytes()[k*size:])
			}
		}
		return nil
	}, nil
}

func inferOneHotEncoder(c *Inference) error {
	n := max(len(c.Node.Ints("cats_int64s")), len(stringsAttr(c.Node, "cats_strings")))
	var out graph.Shape
	if x := c.Shape(0); x != nil {
		for _, d := range x {
			out = append(out, bareDim(d))
		}
		out = append(out, graph.D(int64(n)))
	}
	c.Tensor(0, tensor.Float32, out)
	return nil
}

func compileOneHotEncoder(s *Site) (Kernel, error) {
	ints, names := s.Node.Ints("cats_int64s"), stringsAttr(s.Node, "cats_strings")
	zeros := s.Node.Int("zeros", 1) != 0
	d := &dictionary{nan: -1, ints: map[int64]int{}, strings: map[string]int{}}
	for i, v := range ints {
		d.ints[v] = i
	}
	for i, v := range names {
		d.strings[v] = i
	}
	return func(c *Call) error {
		x := c.In(0)
		n := len(ints)
		if x.DType() == tensor.String {
			n = len(names)
		} else if !x.DType().Convertible() {
			return fmt.Errorf("input %v", x)
		}
		d := *d
		d.values = tensor.New(tensor.Uint8, n+1)
		y, err := c.Out(0, tensor.Float32, append(append([]int{}, x.Shape()...), n)...)
		if err != nil {
			return err
		}
		out := tensor.As[float32](y)
		clear(out)
		for i := range x.Len() {
			switch k := d.entry(x, i); {
			case k < n:
				out[i*n+k] = 1
			case !zeros:
				return fmt.Errorf("element %d is in no category", i)
			}
		}
		return nil
	}, nil
}
