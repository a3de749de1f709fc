package ops

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// textSpecs are the operators on strings.
func textSpecs() []Spec {
	x, y := Port{Name: "X"}, Port{Name: "Y"}
	return []Spec{
		{Type: "StringConcat", Since: 20, Flow: Integers, Pure: true,
			In: []Port{x, y}, Out: []Port{{Name: "Z"}},
			Infer: func(c *Inference) error {
				s, err := BroadcastShapes(c.Shape(0), c.Shape(1))
				c.Tensor(0, tensor.String, s)
				return err
			},
			Compile: compileStringConcat},
		{Type: "StringSplit", Since: 20, Flow: Integers, Pure: true,
			In: []Port{x}, Out: []Port{y, {Name: "Z", Role: Index}},
			Attrs: []AttrSpec{{Name: "delimiter", Kind: graph.AttrString}, {Name: "maxsplit", Kind: graph.AttrInt}},
			Infer: func(c *Inference) error {
				in := bare(c.Shape(0))
				c.Tensor(1, tensor.Int64, in)
				if in != nil {
					in = append(slices.Clone(in), graph.Dim{})
				}
				c.Tensor(0, tensor.String, in)
				return nil
			},
			Compile: compileStringSplit},
		{Type: "StringNormalizer", Since: 10, Flow: Integers, Pure: true,
			In: []Port{x}, Out: []Port{y},
			Attrs: []AttrSpec{{Name: "case_change_action", Kind: graph.AttrString}, {Name: "is_case_sensitive", Kind: graph.AttrInt},
				{Name: "locale", Kind: graph.AttrString}, {Name: "stopwords", Kind: graph.AttrStrings}},
			Infer: func(c *Inference) error {
				in := c.Shape(0)
				switch {
				case len(in) == 1:
					c.Tensor(0, tensor.String, graph.UnknownShape(1))
				case len(in) == 2:
					c.Tensor(0, tensor.String, graph.Shape{graph.D(1), {}})
				default:
					c.Tensor(0, tensor.String, nil)
				}
				return nil
			},
			Compile: compileStringNormalizer},
		{Type: "RegexFullMatch", Since: 20, Flow: Integers, Pure: true,
			In: []Port{x}, Out: []Port{y},
			Attrs: []AttrSpec{{Name: "pattern", Kind: graph.AttrString}},
			Infer: func(c *Inference) error {
				c.Tensor(0, tensor.Bool, bare(c.Shape(0)))
				return nil
			},
			Compile: compileRegexFullMatch},
		{Type: "TfIdfVectorizer", Since: 9, Flow: Opaque, Pure: true,
			In: []Port{{Name: "X", Role: Index}}, Out: []Port{{Name: "Y", Role: Activation}},
			Attrs: []AttrSpec{{Name: "mode", Kind: graph.AttrString, Required: true}, {Name: "min_gram_length", Kind: graph.AttrInt, Required: true},
				{Name: "max_gram_length", Kind: graph.AttrInt, Required: true}, {Name: "max_skip_count", Kind: graph.AttrInt, Required: true},
				{Name: "ngram_counts", Kind: graph.AttrInts, Required: true}, {Name: "ngram_indexes", Kind: graph.AttrInts, Required: true},
				{Name: "pool_int64s", Kind: graph.AttrInts}, {Name: "pool_strings", Kind: graph.AttrStrings}, {Name: "weights", Kind: graph.AttrFloats}},
			Infer: inferTfIdf, Compile: compileTfIdf},
	}
}

// texts returns input i, a tensor of strings.
func (c *Call) texts(i int) (*tensor.Tensor, error) {
	t := c.In(i)
	if t == nil || t.DType() != tensor.String {
		return nil, fmt.Errorf("input %d is %v, want strings", i, t)
	}
	return t, nil
}

func compileStringConcat(*Site) (Kernel, error) {
	return func(c *Call) error {
		a, err := c.texts(0)
		if err != nil {
			return err
		}
		b, err := c.texts(1)
		if err != nil {
			return err
		}
		shape, err := BroadcastDims(a.Shape(), b.Shape())
		if err != nil {
			return err
		}
		out, err := c.Out(0, tensor.String, shape...)
		if err != nil {
			return err
		}
		walk := newStepper(shape, readStrides(a.Shape(), shape), readStrides(b.Shape(), shape), 0)
		for i := range out.Strings() {
			out.Strings()[i] = a.Strings()[walk.oa] + b.Strings()[walk.ob]
			walk.next()
		}
		return nil
	}, nil
}

func compileStringSplit(s *Site) (Kernel, error) {
	delimiter := s.Node.String("delimiter", "")
	limit := s.Node.Int("maxsplit", -1)
	if s.Node.Attr("maxsplit") == nil {
		limit = -1
	}
	return func(c *Call) error {
		x, err := c.texts(0)
		if err != nil {
			return err
		}
		parts := make([][]string, x.Len())
		longest := 0
		for i, text := range x.Strings() {
			if delimiter == "" {
				parts[i] = splitSpace(text, limit)
			} else {
				n := -1
				if limit >= 0 && limit < int64(len(text)) {
					n = int(limit) + 1
				}
				parts[i] = strings.SplitN(text, delimiter, n)
			}
			longest = max(longest, len(parts[i]))
		}
		out, err := c.Out(0, tensor.String, append(append([]int{}, x.Shape()...), longest)...)
		if err != nil {
			return err
		}
		clear(out.Strings())
		for i, p := range parts {
			copy(out.Strings()[i*longest:], p)
		}
		if len(c.Outs) < 2 || !c.Wanted[1] {
			return nil
		}
		counts, err := c.Out(1, tensor.Int64, x.Shape()...)
		if err != nil {
			return err
		}
		for i, v := 0, tensor.As[int64](counts); i < len(v); i++ {
			v[i] = int64(len(parts[i]))
		}
		return nil
	}, nil
}

// splitSpace splits at runs of white space, at most limit times unless it is
// negative; the rest keeps its inner white space.
func splitSpace(text string, limit int64) []string {
	var out []string
	for {
		text = strings.TrimSpace(text)
		if text == "" {
			return out
		}
		i := strings.IndexFunc(text, isSpace)
		if i < 0 || limit >= 0 && int64(len(out)) >= limit {
			return append(out, text)
		}
		out = append(out, text[:i])
		text = text[i:]
	}
}

func isSpace(r rune) bool { return strings.TrimSpace(string(r)) == "" }

func compileStringNormalizer(s *Site) (Kernel, error) {
	action := s.Node.String("case_change_action", "NONE")
	sensitive := s.Node.Int("is_case_sensitive", 0) != 0
	change := func(t string) string { return t }
	switch action {
	case "LOWER":
		change = strings.ToLower
	case "UPPER":
		change = strings.ToUpper
	case "NONE":
	default:
		return nil, s.Errorf("case_change_action %q", action)
	}
	fold := strings.ToLower
	if sensitive {
		fold = func(t string) string { return t }
	}
	stop := map[string]bool{}
	if a := s.Node.Attr("stopwords"); a != nil {
		for _, w := range a.Strings {
			stop[fold(w)] = true
		}
	}
	return func(c *Call) error {
		x, err := c.texts(0)
		if err != nil {
			return err
		}
		if x.Rank() != 1 && (x.Rank() != 2 || x.Shape()[0] != 1) {
			return fmt.Errorf("input is %v, want a vector or one row", x)
		}
		var keep []string
		for _, t := range x.Strings() {
			if !stop[fold(t)] {
				keep = append(keep, change(t))
			}
		}
		if len(keep) == 0 {
			keep = []string{""}
		}
		shape := []int{1, len(keep)}[2-x.Rank():]
		out, err := c.Out(0, tensor.String, shape...)
		if err == nil {
			copy(out.Strings(), keep)
		}
		return err
	}, nil
}

func compileRegexFullMatch(s *Site) (Kernel, error) {
	re, err := regexp.Compile(`\A(?:` + s.Node.String("pattern", "") + `)\z`)
	if err != nil {
		return nil, s.Errorf("pattern: %v", err)
	}
	return func(c *Call) error {
		x, err := c.texts(0)
		if err != nil {
			return err
		}
		out, err := c.Out(0, tensor.Bool, x.Shape()...)
		if err != nil {
			return err
		}
		for i, v := 0, tensor.As[bool](out); i < len(v); i++ {
			v[i] = re.MatchString(x.Strings()[i])
		}
		return nil
	}, nil
}

// tfIdf is a TfIdfVectorizer with its pool of n-grams.
type tfIdf struct {
	mode                  string
	minLen, maxLen, skips int
	columns               int
	entry                 map[string]int // place in the pool, by n-gram
	weights               []float32      // by place; empty for none
}

func newTfIdf(n *graph.Node) (*tfIdf, error) {
	t := &tfIdf{mode: n.String("mode", ""), entry: map[string]int{}}
	minLen, maxLen, skips := n.Int("min_gram_length", 0), n.Int("max_gram_length", 0), n.Int("max_skip_count", 0)
	if minLen < 1 || maxLen < minLen || maxLen > 1<<16 || skips < 0 || skips > 1<<31 {
		return nil, fmt.Errorf("n-grams of %d to %d elements with %d skipped", minLen, maxLen, skips)
	}
	t.minLen, t.maxLen, t.skips = int(minLen), int(maxLen), int(skips)
	if t.mode != "TF" && t.mode != "IDF" && t.mode != "TFIDF" {
		return nil, fmt.Errorf("mode %q", t.mode)
	}
	counts, columns := n.Ints("ngram_counts"), n.Ints("ngram_indexes")
	var pool []string
	for _, v := range n.Ints("pool_int64s") {
		pool = append(pool, gramKey(v))
	}
	if a := n.Attr("pool_strings"); a != nil && len(a.Strings) > 0 {
		pool = nil
		for _, s := range a.Strings {
			pool = append(pool, gramText(s))
		}
	}
	var weights []float32
	if a := n.Attr("weights"); a != nil {
		weights = a.Floats
	}
	entry := 0
	for i, start := range counts {
		end := int64(len(pool))
		if i+1 < len(counts) {
			end = counts[i+1]
		}
		if start < 0 || end < start || end > int64(len(pool)) || (end-start)%int64(i+1) != 0 {
			return nil, fmt.Errorf("ngram_counts %v for a pool of %d", counts, len(pool))
		}
		for at := int(start); at < int(end); at += i + 1 {
			if entry >= len(columns) || columns[entry] < 0 || columns[entry] > 1<<31 {
				return nil, fmt.Errorf("ngram_indexes %v for %d n-grams", columns, entry+1)
			}
			if i+1 >= t.minLen && i+1 <= t.maxLen {
				t.entry[strings.Join(pool[at:at+i+1], "")] = entry
			}
			entry++
		}
	}
	for _, k := range columns {
		t.columns = max(t.columns, int(k)+1)
	}
	if len(weights) > 0 && len(weights) != len(columns) {
		return nil, fmt.Errorf("%d weights for %d n-grams", len(weights), len(columns))
	}
	t.weights = weights
	return t, nil
}

// gramKey and gramText encode an element such that joined elements stay
// distinct.
func gramKey(v int64) string   { return fmt.Sprintf("%d,", v) }
func gramText(s string) string { return fmt.Sprintf("%d:%s", len(s), s) }

func inferTfIdf(c *Inference) error {
	t, err := newTfIdf(c.Node)
	if err != nil {
		return err
	}
	in := c.Shape(0)
	if in == nil {
		c.Tensor(0, tensor.Float32, nil)
		return nil
	}
	out := append(graph.Shape(bare(in)), graph.D(int64(t.columns)))
	switch len(in) {
	case 0, 1:
		out = graph.Shape{graph.D(int64(t.columns))}
	case 2:
		out = slices.Delete(out, 1, 2)
	default:
		return c.Errorf("input has shape %v", in)
	}
	c.Tensor(0, tensor.Float32, out)
	return nil
}

func compileTfIdf(s *Site) (Kernel, error) {
	t, err := newTfIdf(s.Node)
	if err != nil {
		return nil, s.Errorf("%v", err)
	}
	columns := s.Node.Ints("ngram_indexes")
	return func(c *Call) error {
		x := c.In(0)
		if x.Rank() > 2 {
			return fmt.Errorf("input is %v", x)
		}
		var elems []string
		if x.DType() == tensor.String {
			for _, v := range x.Strings() {
				elems = append(elems, gramText(v))
			}
		} else {
			v, err := c.ints(0)
			if err != nil {
				return err
			}
			for _, k := range v {
				elems = append(elems, gramKey(k))
			}
		}
		rows, n, shape := 1, len(elems), []int{t.columns}
		if x.Rank() == 2 {
			rows, n = x.Shape()[0], x.Shape()[1]
			shape = []int{rows, t.columns}
		}
		out, err := c.Out(0, tensor.Float32, shape...)
		if err != nil {
			return err
		}
		y := tensor.As[float32](out)
		clear(y)
		for r := range rows {
			if err := c.Ctx.Err(); err != nil {
				return err
			}
			t.count(y[r*t.columns:(r+1)*t.columns], elems[r*n:(r+1)*n], columns)
		}
		return nil
	}, nil
}

// count adds up the n-grams of one row. N-grams of more than one element are
// taken at every distance from 1 to skips+1 between their elements.
func (t *tfIdf) count(y []float32, row []string, columns []int64) {
	see := func(at, n, step int) {
		var key strings.Builder
		for k := range n {
			key.WriteString(row[at+k*step])
		}
		entry, ok := t.entry[key.String()]
		if !ok {
			return
		}
		w := float32(1)
		if len(t.weights) > 0 {
			w = t.weights[entry]
		}
		col := columns[entry]
		switch t.mode {
		case "TF":
			y[col]++
		case "IDF":
			y[col] = w
		default:
			y[col] += w
		}
	}
	for n := t.minLen; n <= t.maxLen && n <= len(row); n++ {
		steps := t.skips + 1
		if n == 1 {
			steps = 1
		}
		for step := 1; step <= steps && (n-1)*step < len(row); step++ {
			for at := 0; at+(n-1)*step < len(row); at++ {
				see(at, n, step)
			}
		}
	}
}
