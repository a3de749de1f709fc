package ops

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Map is the value of a map type: element i of Values, a vector, belongs to
// element i of Keys, a vector of int64 or strings that are all different.
type Map struct{ Keys, Values *tensor.Tensor }

// Value returns element i of the values as a tensor of rank 0.
func (m *Map) Value(i int) *tensor.Tensor {
	t := tensor.New(m.Values.DType())
	if m.Values.DType() == tensor.String {
		t.Strings()[0] = m.Values.Strings()[i]
	} else {
		copy(t.Bytes(), m.Values.Bytes()[i*len(t.Bytes()):])
	}
	return t
}

func mapSpecs() []Spec {
	spec := func(name, in, out string, infer func(*Inference) error, compile func(*Site) (Kernel, error), a ...AttrSpec) Spec {
		return Spec{Domain: mlDomain, Type: name, Flow: Opaque, Pure: true, In: []Port{{Name: in}}, Out: []Port{{Name: out}}, Attrs: a, Infer: infer, Compile: compile}
	}
	return []Spec{
		spec("ZipMap", "X", "Z", inferZipMap, compileZipMap, AttrSpec{Name: "classlabels_int64s", Kind: graph.AttrInts}, AttrSpec{Name: "classlabels_strings", Kind: graph.AttrStrings}),
		spec("DictVectorizer", "X", "Y", inferDictVectorizer, compileDictVectorizer,
			AttrSpec{Name: "int64_vocabulary", Kind: graph.AttrInts}, AttrSpec{Name: "string_vocabulary", Kind: graph.AttrStrings}),
		spec("CastMap", "X", "Y", inferCastMap, compileCastMap,
			AttrSpec{Name: "cast_to", Kind: graph.AttrString}, AttrSpec{Name: "map_form", Kind: graph.AttrString}, AttrSpec{Name: "max_map", Kind: graph.AttrInt}),
	}
}

// mapInput returns input i as a map.
func (c *Call) mapInput(i int) (*Map, error) {
	m, ok := c.Ins[i].(*Map)
	if !ok || m == nil || m.Keys.Len() != m.Values.Len() {
		return nil, fmt.Errorf("input %d is no map", i)
	}
	return m, nil
}

func inferZipMap(c *Inference) error {
	if s := c.Shape(0); s != nil && (len(s) < 1 || len(s) > 2) {
		return c.Errorf("input of shape %v", s)
	}
	key := tensor.Int64
	if labelsOf(c.Node).strings != nil {
		key = tensor.String
	}
	value := graph.TensorType(tensor.Float32, nil)
	c.Out(0, graph.Type{Kind: graph.KindSequence, Inner: &graph.Type{Kind: graph.KindMap, Elem: key, Inner: &value}})
	return nil
}

// compileZipMap compiles the operator that makes a map of each row, with its
// keys in ascending order; of equal keys the last one counts.
func compileZipMap(s *Site) (Kernel, error) {
	names := labelsOf(s.Node)
	n := names.len()
	if n == 0 {
		return nil, s.Errorf("no class labels")
	}
	compare := func(a, b int) int {
		if names.strings != nil {
			return strings.Compare(names.strings[a], names.strings[b])
		}
		return cmp.Compare(names.ints[a], names.ints[b])
	}
	order := make([]int, n)
	for i := range order {
		order[i] = n - 1 - i
	}
	slices.SortStableFunc(order, compare)
	order = slices.CompactFunc(order, func(a, b int) bool { return compare(a, b) == 0 })
	var keys *tensor.Tensor
	if names.strings != nil {
		keys = tensor.New(tensor.String, len(order))
		for i, k := range order {
			keys.Strings()[i] = names.strings[k]
		}
	} else {
		ids := make([]int64, len(order))
		for i, k := range order {
			ids[i] = names.ints[k]
		}
		keys = tensor.Of(ids)
	}
	return func(c *Call) error {
		x := c.In(0)
		rows, cols, err := rowsOf(x)
		if err != nil {
			return err
		}
		if cols != n || x.DType() != tensor.Float32 {
			return fmt.Errorf("input %v for %d keys", x, n)
		}
		seq := make(Sequence, rows)
		for r := range seq {
			row := tensor.As[float32](x)[r*cols:][:cols]
			values := tensor.New(tensor.Float32, len(order))
			for i, k := range order {
				tensor.As[float32](values)[i] = row[k]
			}
			seq[r] = &Map{Keys: keys, Values: values}
		}
		c.Outs[0] = seq
		return nil
	}, nil
}

func inferDictVectorizer(c *Inference) error {
	elem := tensor.Undefined
	if t := c.In(0); t.Kind == graph.KindMap && t.Inner != nil {
		elem = t.Inner.Elem
	}
	n := max(len(c.Node.Ints("int64_vocabulary")), len(stringsAttr(c.Node, "string_vocabulary")))
	c.Tensor(0, elem, graph.ShapeOf(1, n))
	return nil
}

// compileDictVectorizer compiles the operator that puts the values of a map in
// the order of a vocabulary, zeros where it has none. As in ONNX Runtime, the
// result is a row, and keys outside of the vocabulary are left out.
func compileDictVectorizer(s *Site) (Kernel, error) {
	ints, names := s.Node.Ints("int64_vocabulary"), stringsAttr(s.Node, "string_vocabulary")
	if len(ints) == 0 == (len(names) == 0) {
		return nil, s.Errorf("%d integers and %d strings in the vocabulary", len(ints), len(names))
	}
	return func(c *Call) error {
		m, err := c.mapInput(0)
		if err != nil {
			return err
		}
		if (m.Keys.DType() == tensor.String) != (len(names) > 0) {
			return fmt.Errorf("keys %v", m.Keys)
		}
		out := tensor.New(m.Values.DType(), 1, max(len(ints), len(names)))
		if len(names) > 0 {
			at := indexed(m.Keys.Strings())
			return vectorize(c, m, out, func(i int) (int, bool) { k, ok := at[names[i]]; return k, ok })
		}
		keys, err := tensor.Int64s(m.Keys)
		if err != nil {
			return err
		}
		at := indexed(keys)
		return vectorize(c, m, out, func(i int) (int, bool) { k, ok := at[ints[i]]; return k, ok })
	}, nil
}

func indexed[K comparable](keys []K) map[K]int {
	at := make(map[K]int, len(keys))
	for i, k := range keys {
		at[k] = i
	}
	return at
}

func vectorize(c *Call, m *Map, out *tensor.Tensor, find func(i int) (int, bool)) error {
	size := out.DType().Bits() / 8
	for i := range out.Len() {
		k, ok := find(i)
		switch {
		case !ok:
		case out.DType() == tensor.String:
			out.Strings()[i] = m.Values.Strings()[k]
		default:
			copy(out.Bytes()[i*size:][:size], m.Values.Bytes()[k*size:])
		}
	}
	c.SetOut(0, out)
	return nil
}

func castMapType(n *graph.Node) (tensor.DType, error) {
	switch to := n.String("cast_to", "TO_FLOAT"); to {
	case "TO_FLOAT":
		return tensor.Float32, nil
	case "TO_INT64":
		return tensor.Int64, nil
	case "TO_STRING":
		return tensor.String, nil
	default:
		return tensor.Undefined, fmt.Errorf("cast_to is %q", to)
	}
}

func inferCastMap(c *Inference) error {
	to, err := castMapType(c.Node)
	if err != nil {
		return err
	}
	shape := graph.Shape{graph.D(1), graph.Dim{}}
	if c.Node.String("map_form", "DENSE") == "SPARSE" {
		shape[1] = graph.D(c.Node.Int("max_map", 1))
	}
	c.Tensor(0, to, shape)
	return nil
}

// compileCastMap compiles the operator that lists the values of a map by their
// keys: one behind the other, or each at the place that is its key, those from
// max_map on left out. Places without a value are 0; of strings, as ONNX Runtime
// has it, "0.f". The result is a row.
func compileCastMap(s *Site) (Kernel, error) {
	to, err := castMapType(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	form, width := s.Node.String("map_form", "DENSE"), s.Node.Int("max_map", 1)
	if form != "DENSE" && form != "SPARSE" || form == "SPARSE" && (width < 1 || width > 1<<24) {
		return nil, s.Errorf("map_form is %q, max_map %d", form, width)
	}
	return func(c *Call) error {
		m, err := c.mapInput(0)
		if err != nil {
			return err
		}
		if m.Keys.DType() != tensor.Int64 {
			return fmt.Errorf("keys %v", m.Keys)
		}
		keys := tensor.As[int64](m.Keys)
		order := make([]int, len(keys))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(keys[a], keys[b]) })
		n := len(keys)
		if form == "SPARSE" {
			n = int(width)
		}
		out := tensor.New(to, 1, n)
		if to == tensor.String {
			fill(out.Strings(), "0.f")
		}
		for i, k := range order {
			if form == "SPARSE" {
				if keys[k] < 0 {
					return fmt.Errorf("key %d of a sparse map", keys[k])
				}
				if keys[k] >= width {
					break
				}
				i = int(keys[k])
			}
			if err := castValue(out, i, m.Values, k); err != nil {
				return err
			}
		}
		c.SetOut(0, out)
		return nil
	}, nil
}

// castValue stores element k of from in element i of to. Numbers become strings
// with six digits behind the point.
func castValue(to *tensor.Tensor, i int, from *tensor.Tensor, k int) error {
	if from.DType() == tensor.String && to.DType() == tensor.String {
		to.Strings()[i] = from.Strings()[k]
		return nil
	}
	if from.DType() == tensor.String {
		v, err := strconv.ParseFloat(strings.TrimSpace(from.Strings()[k]), 64)
		if err != nil {
			return fmt.Errorf("value %.40q is no number", from.Strings()[k])
		}
		tensor.Write(to, i, []float64{v})
		return nil
	}
	if !from.DType().Convertible() {
		return fmt.Errorf("values %v", from)
	}
	var v [1]float64
	tensor.Read(from, k, v[:])
	if to.DType() == tensor.String {
		to.Strings()[i] = strconv.FormatFloat(v[0], 'f', 6, 64)
		return nil
	}
	tensor.Write(to, i, v[:])
	return nil
}
