package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// mlDomain is the domain of the classical machine-learning operators.
const mlDomain = "ai.onnx.ml"

func mlSpecs() []Spec {
	x := []Port{{Name: "X", Role: Activation}}
	y := []Port{{Name: "Y", Role: Activation}}
	ids := []Port{{Name: "Y"}}
	classes := []Port{{Name: "Y"}, {Name: "Z", Role: Activation}}
	attrs := func(kind graph.AttrKind, names ...string) (a []AttrSpec) {
		for _, n := range names {
			a = append(a, AttrSpec{Name: n, Kind: kind})
		}
		return a
	}
	join := func(lists ...[]AttrSpec) (all []AttrSpec) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	post := attrs(graph.AttrString, "post_transform")
	tree := join(
		attrs(graph.AttrInts, "nodes_falsenodeids", "nodes_featureids", "nodes_missing_value_tracks_true", "nodes_nodeids", "nodes_treeids", "nodes_truenodeids"),
		attrs(graph.AttrFloats, "base_values", "nodes_hitrates", "nodes_values"), attrs(graph.AttrStrings, "nodes_modes"),
		attrs(graph.AttrTensor, "base_values_as_tensor", "nodes_hitrates_as_tensor", "nodes_values_as_tensor"), post)
	svm := join(attrs(graph.AttrFloats, "coefficients", "kernel_params", "rho", "support_vectors"), attrs(graph.AttrString, "kernel_type"), post)
	spec := func(name string, out []Port, infer func(*Inference) error, compile func(*Site) (Kernel, error), a ...[]AttrSpec) Spec {
		return Spec{Domain: mlDomain, Type: name, Flow: Opaque, Pure: true, In: x, Out: out, Attrs: join(a...), Infer: infer, Compile: compile}
	}
	extractor := spec("ArrayFeatureExtractor", y, inferExtractor, compileExtractor)
	extractor.In = []Port{{Name: "X", Role: Activation}, {Name: "Y", Role: Index}}
	vectorizer := spec("FeatureVectorizer", y, inferVectorizer, compileVectorizer, attrs(graph.AttrInts, "inputdimensions"))
	vectorizer.In = []Port{{Name: "X", Role: Activation, Variadic: true}}
	return []Spec{
		extractor, vectorizer,
		spec("Binarizer", y, (*Inference).Same, compileBinarizer, attrs(graph.AttrFloat, "threshold")),
		spec("Imputer", y, (*Inference).Same, compileImputer, attrs(graph.AttrFloats, "imputed_value_floats"), attrs(graph.AttrInts, "imputed_value_int64s"),
			attrs(graph.AttrFloat, "replaced_value_float"), attrs(graph.AttrInt, "replaced_value_int64")),
		spec("Scaler", y, inferFloat, compileScaler, attrs(graph.AttrFloats, "offset", "scale")),
		spec("Normalizer", y, inferFloat, compileNormalizer, attrs(graph.AttrString, "norm")),
		spec("LinearRegressor", y, inferRegressor, compileLinear, attrs(graph.AttrFloats, "coefficients", "intercepts"), attrs(graph.AttrInt, "targets"), post),
		spec("LinearClassifier", classes, inferClassifier, compileLinear, attrs(graph.AttrFloats, "coefficients", "intercepts"),
			attrs(graph.AttrInts, "classlabels_ints"), attrs(graph.AttrStrings, "classlabels_strings"), attrs(graph.AttrInt, "multi_class"), post),
		spec("SVMRegressor", y, inferSVMRegressor, compileSVMRegressor, svm, attrs(graph.AttrInt, "n_supports", "one_class")),
		spec("SVMClassifier", classes, inferClassifier, compileSVMClassifier, svm, attrs(graph.AttrFloats, "prob_a", "prob_b"),
			attrs(graph.AttrInts, "classlabels_ints", "vectors_per_class"), attrs(graph.AttrStrings, "classlabels_strings")),
		spec("TreeEnsembleRegressor", y, inferRegressor, compileForest, tree, attrs(graph.AttrString, "aggregate_function"), attrs(graph.AttrInt, "n_targets"),
			attrs(graph.AttrInts, "target_ids", "target_nodeids", "target_treeids"), attrs(graph.AttrFloats, "target_weights"), attrs(graph.AttrTensor, "target_weights_as_tensor")),
		spec("TreeEnsembleClassifier", classes, inferClassifier, compileForest, tree,
			attrs(graph.AttrInts, "class_ids", "class_nodeids", "class_treeids", "classlabels_int64s"), attrs(graph.AttrFloats, "class_weights"),
			attrs(graph.AttrTensor, "class_weights_as_tensor"), attrs(graph.AttrStrings, "classlabels_strings")),
		spec("TreeEnsemble", y, inferRegressor, compileTreeEnsemble, attrs(graph.AttrInt, "aggregate_function", "n_targets", "post_transform"),
			attrs(graph.AttrInts, "leaf_targetids", "nodes_falseleafs", "nodes_falsenodeids", "nodes_featureids", "nodes_missing_value_tracks_true", "nodes_trueleafs", "nodes_truenodeids", "tree_roots"),
			attrs(graph.AttrTensor, "leaf_weights", "membership_values", "nodes_hitrates", "nodes_modes", "nodes_splits")),
		spec("LabelEncoder", ids, inferLabelEncoder, compileLabelEncoder,
			attrs(graph.AttrInts, "keys_int64s", "values_int64s"), attrs(graph.AttrFloats, "keys_floats", "values_floats"),
			attrs(graph.AttrStrings, "classes_strings", "keys_strings", "values_strings"), attrs(graph.AttrTensor, "default_tensor", "keys_tensor", "values_tensor"),
			attrs(graph.AttrInt, "default_int64"), attrs(graph.AttrFloat, "default_float"), attrs(graph.AttrString, "default_string")),
		spec("CategoryMapper", ids, inferLabelEncoder, compileLabelEncoder, attrs(graph.AttrInts, "cats_int64s"), attrs(graph.AttrStrings, "cats_strings"),
			attrs(graph.AttrInt, "default_int64"), attrs(graph.AttrString, "default_string")),
		spec("OneHotEncoder", y, inferOneHotEncoder, compileOneHotEncoder, attrs(graph.AttrInts, "cats_int64s"), attrs(graph.AttrStrings, "cats_strings"), attrs(graph.AttrInt, "zeros")),
	}
}

// realAttr returns the float values of an attribute, or of its form as a
// tensor; nil if there is neither.
func realAttr(n *graph.Node, name string) ([]float64, error) {
	if a := n.Attr(name); a != nil && a.Kind == graph.AttrFloats {
		out := make([]float64, len(a.Floats))
		for i, v := range a.Floats {
			out[i] = float64(v)
		}
		return out, nil
	}
	for _, s := range []string{name, name + "_as_tensor"} {
		if a := n.Attr(s); a != nil && a.Kind == graph.AttrTensor && a.T != nil {
			return tensor.Float64s(a.T)
		}
	}
	return nil, nil
}

func stringsAttr(n *graph.Node, name string) []string {
	if a := n.Attr(name); a != nil && a.Kind == graph.AttrStrings {
		return a.Strings
	}
	return nil
}

func inferFloat(c *Inference) error {
	c.Tensor(0, tensor.Float32, c.Shape(0))
	return nil
}

// rowsOf returns the shape of x as rows and columns: a vector is one row.
func rowsOf(x *tensor.Tensor) (rows, cols int, err error) {
	switch s := x.Shape(); len(s) {
	case 1:
		return 1, s[0], nil
	case 2:
		return s[0], s[1], nil
	}
	return 0, 0, fmt.Errorf("input %v, a matrix is needed", x)
}

// rowDim is the first dimension of the outputs for an input of shape s.
func rowDim(s graph.Shape) graph.Dim {
	switch len(s) {
	case 1:
		return graph.D(1)
	case 2:
		return bareDim(s[0])
	}
	return graph.Dim{}
}

func compileBinarizer(s *Site) (Kernel, error) {
	limit := float64(s.Node.Float("threshold", 0))
	return func(c *Call) error {
		x := c.In(0)
		v, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		y, err := c.Out(0, x.DType(), x.Shape()...)
		if err != nil {
			return err
		}
		out := make([]float64, len(v))
		for i, a := range v {
			if a > limit {
				out[i] = 1
			}
		}
		tensor.Write(y, 0, out)
		return nil
	}, nil
}

func compileImputer(s *Site) (Kernel, error) {
	n := s.Node
	values, err := realAttr(n, "imputed_value_floats")
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	ints := n.Ints("imputed_value_int64s")
	from, fromInt := float64(n.Float("replaced_value_float", 0)), n.Int("replaced_value_int64", 0)
	if len(values) == 0 && len(ints) == 0 {
		return nil, s.Errorf("no imputed values")
	}
	return func(c *Call) error {
		x := c.In(0)
		y, err := c.Out(0, x.DType(), x.Shape()...)
		if err != nil {
			return err
		}
		last := 1
		if x.Rank() > 0 {
			last = max(x.Shape()[x.Rank()-1], 1)
		}
		if x.DType().IsInt() {
			return impute(x, y, last, ints, func(v int64) bool { return v == fromInt })
		}
		return impute(x, y, last, values, func(v float64) bool { return v == from || v != v && from != from })
	}, nil
}

func impute[T int64 | float64](x, y *tensor.Tensor, last int, values []T, missing func(T) bool) error {
	if len(values) != 1 && len(values) != last || !x.DType().Convertible() {
		return fmt.Errorf("%d imputed values for input %v", len(values), x)
	}
	v := make([]T, x.Len())
	tensor.Read(x, 0, v)
	for i, a := range v {
		if missing(a) {
			v[i] = values[i%last%len(values)]
		}
	}
	tensor.Write(y, 0, v)
	return nil
}

func compileScaler(s *Site) (Kernel, error) {
	offset, err := realAttr(s.Node, "offset")
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	scale, err := realAttr(s.Node, "scale")
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	if len(offset) == 0 || len(offset) != len(scale) {
		return nil, s.Errorf("%d offsets and %d scales", len(offset), len(scale))
	}
	return func(c *Call) error {
		x := c.In(0)
		v, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		if n := len(scale); n > 1 && (x.Rank() == 0 || x.Shape()[x.Rank()-1] != n) {
			return fmt.Errorf("%d scales for input %v", n, x)
		}
		y, err := c.Out(0, tensor.Float32, x.Shape()...)
		if err != nil {
			return err
		}
		for i, a := range v {
			k := i % len(scale)
			tensor.As[float32](y)[i] = float32(float32(a)-float32(offset[k])) * float32(scale[k])
		}
		return nil
	}, nil
}

func compileNormalizer(s *Site) (Kernel, error) {
	norm := s.Node.String("norm", "MAX")
	if norm != "MAX" && norm != "L1" && norm != "L2" {
		return nil, s.Errorf("norm is %q", norm)
	}
	return func(c *Call) error {
		x := c.In(0)
		rows, cols, err := rowsOf(x)
		if err != nil {
			return err
		}
		v, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		y, err := c.Out(0, tensor.Float32, x.Shape()...)
		if err != nil {
			return err
		}
		out := tensor.As[float32](y)
		for r := range rows {
			row := v[r*cols:][:cols]
			d := math.Inf(-1)
			if norm != "MAX" {
				d = 0
			}
			for _, a := range row {
				switch norm {
				case "MAX":
					d = max(d, a)
				case "L1":
					d += math.Abs(a)
				case "L2":
					d += a * a
				}
			}
			if norm == "L2" {
				d = math.Sqrt(d)
			}
			if d == 0 {
				d = 1
			}
			for i, a := range row {
				out[r*cols+i] = float32(a / d)
			}
		}
		return nil
	}, nil
}

func inferExtractor(c *Inference) error {
	x, idx := c.Shape(0), c.Shape(1)
	if x == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	if len(x) == 0 {
		return c.Errorf("input of shape %v", x)
	}
	out := graph.Shape{graph.D(1)}
	if len(x) > 1 {
		out = nil
		for _, d := range x[:len(x)-1] {
			out = append(out, bareDim(d))
		}
	}
	n := graph.Dim{}
	if dims, ok := idx.Dims(); ok {
		k, _ := tensor.NumElements(dims)
		n = graph.D(int64(k))
	}
	c.Tensor(0, c.Elem(0), append(out, n))
	return nil
}

func compileExtractor(*Site) (Kernel, error) {
	return func(c *Call) error {
		x, t := c.In(0), c.In(1)
		idx, err := tensor.Int64s(t)
		if err != nil {
			return err
		}
		if x.Rank() == 0 {
			return fmt.Errorf("input %v", x)
		}
		last := x.Shape()[x.Rank()-1]
		for _, i := range idx {
			if i < 0 || i >= int64(last) {
				return fmt.Errorf("index %d of %d", i, last)
			}
		}
		shape := append([]int{}, x.Shape()...)
		if len(shape) == 1 {
			shape = []int{1, 0}
		}
		shape[len(shape)-1] = len(idx)
		y, err := c.Out(0, x.DType(), shape...)
		if err != nil || y.Len() == 0 {
			return err
		}
		size := x.DType().Bits() / 8
		for o := range x.Len() / last {
			for k, i := range idx {
				from, to := o*last+int(i), o*len(idx)+k
				if x.DType() == tensor.String {
					y.Strings()[to] = x.Strings()[from]
				} else {
					copy(y.Bytes()[to*size:][:size], x.Bytes()[from*size:])
				}
			}
		}
		return nil
	}, nil
}

func inferVectorizer(c *Inference) error {
	out := graph.Shape{graph.Dim{}, graph.D(0)}
	for i := range c.Node.NumInputs() {
		s := c.Shape(i)
		if i == 0 {
			out[0] = rowDim(s)
		}
		if len(s) == 0 || !s[len(s)-1].Known || !out[1].Known {
			out[1] = graph.Dim{}
			continue
		}
		out[1].Size += s[len(s)-1].Size
	}
	c.Tensor(0, tensor.Float32, out)
	return nil
}

func compileVectorizer(*Site) (Kernel, error) {
	return func(c *Call) error {
		rows, width := 0, 0
		for i := range c.NumIn() {
			r, n, err := rowsOf(c.In(i))
			if err != nil {
				return err
			}
			if i > 0 && r != rows {
				return fmt.Errorf("input %v after %d rows", c.In(i), rows)
			}
			rows, width = r, width+n
		}
		y, err := c.Out(0, tensor.Float32, rows, width)
		if err != nil {
			return err
		}
		at := 0
		for i := range c.NumIn() {
			v, err := tensor.Float32s(c.In(i))
			if err != nil {
				return err
			}
			_, n, _ := rowsOf(c.In(i))
			for r := range rows {
				copy(tensor.As[float32](y)[r*width+at:][:n], v[r*n:])
			}
			at += n
		}
		return nil
	}, nil
}

func inferRegressor(c *Inference) error {
	targets := graph.Dim{}
	name := "n_targets"
	if c.Node.Op.Type == "LinearRegressor" {
		name = "targets"
	}
	if n := c.Node.Int(name, 1); n > 0 {
		targets = graph.D(n)
	}
	t := tensor.Float32
	if c.Node.Op.Type == "TreeEnsemble" {
		t = c.Elem(0)
	}
	c.Tensor(0, t, graph.Shape{rowDim(c.Shape(0)), targets})
	return nil
}

func inferClassifier(c *Inference) error {
	l := labelsOf(c.Node)
	t := tensor.Int64
	if l.strings != nil {
		t = tensor.String
	}
	rows := rowDim(c.Shape(0))
	c.Tensor(0, t, graph.Shape{rows})
	c.Tensor(1, tensor.Float32, graph.Shape{rows, graph.Dim{}})
	return nil
}

// labels are the class labels of a classifier, of one kind.
type labels struct {
	ints    []int64
	strings []string
}

func labelsOf(n *graph.Node) labels {
	for _, name := range []string{"classlabels_ints", "classlabels_int64s"} {
		if v := n.Ints(name); len(v) > 0 {
			return labels{ints: v}
		}
	}
	return labels{strings: stringsAttr(n, "classlabels_strings")}
}

func (l labels) len() int { return max(len(l.ints), len(l.strings)) }

// out makes output 0 the labels of the given classes.
func (l labels) out(c *Call, classes []int) error {
	if l.strings == nil {
		ids := make([]int64, len(classes))
		for i, k := range classes {
			ids[i] = l.ints[k]
		}
		c.SetOut(0, tensor.Of(ids, len(ids)))
		return nil
	}
	names := make([]string, len(classes))
	for i, k := range classes {
		names[i] = l.strings[k]
	}
	c.SetOut(0, tensor.FromStrings([]int{len(names)}, names))
	return nil
}

// postTransform is what turns scores into the output.
type postTransform uint8

// Transforms, by their numbers in TreeEnsemble.
const (
	noTransform postTransform = iota
	softmaxTransform
	logisticTransform
	softmaxZeroTransform
	probitTransform
)

func postOf(n *graph.Node) (postTransform, error) {
	if a := n.Attr("post_transform"); a != nil && a.Kind == graph.AttrInt {
		if a.I < 0 || a.I > int64(probitTransform) {
			return 0, fmt.Errorf("post_transform is %d", a.I)
		}
		return postTransform(a.I), nil
	}
	name := n.String("post_transform", "NONE")
	for i, s := range []string{"NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"} {
		if s == name {
			return postTransform(i), nil
		}
	}
	return 0, fmt.Errorf("post_transform is %q", name)
}

func logistic(v float64) float64 { return 1 / (1 + math.Exp(-v)) }

// apply transforms the scores of one row.
func (p postTransform) apply(s []float64) {
	switch p {
	case logisticTransform:
		for i, v := range s {
			s[i] = logistic(v)
		}
	case probitTransform:
		for i, v := range s {
			s[i] = math.Sqrt2 * math.Erfinv(2*v-1)
		}
	case softmaxTransform, softmaxZeroTransform:
		top := math.Inf(-1)
		for _, v := range s {
			top = max(top, v)
		}
		sum := 0.0
		for i, v := range s {
			// SOFTMAX_ZERO leaves scores of 0 out.
			if p == softmaxZeroTransform && math.Abs(v) <= 1e-7 {
				s[i] = v * math.Exp(-top)
				continue
			}
			s[i] = math.Exp(v - top)
			sum += s[i]
		}
		for i := range s {
			if sum != 0 {
				s[i] /= sum
			}
		}
	}
}

// argmax returns the index of the first greatest value.
func argmax(s []float64) int {
	best := 0
	for i, v := range s {
		if v > s[best] {
			best = i
		}
	}
	return best
}

// compileLinear compiles a LinearRegressor or LinearClassifier.
func compileLinear(s *Site) (Kernel, error) {
	n := s.Node
	post, err := postOf(n)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	coef, err := realAttr(n, "coefficients")
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	base, err := realAttr(n, "intercepts")
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	classifier := n.Op.Type == "LinearClassifier"
	names := labelsOf(n)
	targets := int(n.Int("targets", 1))
	if classifier {
		targets = max(len(base), 1)
		if len(base) == 0 {
			targets = names.len()
		}
	}
	if targets < 1 || len(coef)%targets != 0 || len(base) != 0 && len(base) != targets {
		return nil, s.Errorf("%d coefficients and %d intercepts for %d targets", len(coef), len(base), targets)
	}
	if classifier && names.len() < targets {
		return nil, s.Errorf("%d labels for %d classes", names.len(), targets)
	}
	width := len(coef) / targets
	return func(c *Call) error {
		x := c.In(0)
		rows, cols, err := rowsOf(x)
		if err != nil {
			return err
		}
		if cols != width {
			return fmt.Errorf("input %v for %d coefficients a target", x, width)
		}
		v, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		out := targets
		binary := classifier && targets == 1 && names.len() == 2
		if binary {
			out = 2
		}
		y, err := c.Mem.New(tensor.Float32, []int{rows, out})
		if err != nil {
			return err
		}
		class, score := make([]int, rows), make([]float64, targets)
		for r := range rows {
			for t := range score {
				score[t] = 0
				for i, a := range v[r*cols:][:cols] {
					score[t] += a * coef[t*width+i]
				}
				if len(base) > 0 {
					score[t] += base[t]
				}
			}
			dst := tensor.As[float32](y)[r*out:][:out]
			if binary {
				if score[0] > 0 {
					class[r] = 1
				}
				post.apply(score)
				dst[0], dst[1] = float32(1-score[0]), float32(score[0])
				continue
			}
			class[r] = argmax(score)
			post.apply(score)
			for t, a := range score {
				dst[t] = float32(a)
			}
		}
		if !classifier {
			c.SetOut(0, y)
			return nil
		}
		if c.wants(1) {
			c.SetOut(1, y)
		}
		return names.out(c, class)
	}, nil
}
