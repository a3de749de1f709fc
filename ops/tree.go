package ops

import (
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// forest is an ensemble of decision trees.
type forest struct {
	nodes   []treeNode
	roots   []int32
	votes   []vote
	targets int
	merge   int64 // aggregate_function: 0 average, 1 sum, 2 minimum, 3 maximum
	post    postTransform
	base    []float64
	// Of classifiers with two classes whose votes are all for one class.
	binary, positive bool
	columns          int        // that the trees read
	paths            []junction // of nodes, where all decisions are of one of the modes < and <=
	strict           bool       // they are <
}

// junction is a decision as forest.leaf reads it, by the number of the node; a
// leaf leads to itself.
type junction struct {
	value   float64
	feature int32
	next    [2]int32 // where the test fails, and where it holds
}

// treeNode is a decision, or with mode leafMode the votes [yes, no).
type treeNode struct {
	mode    uint8
	missing bool // a NaN takes the true branch
	feature int32
	yes, no int32
	value   float64
	members []float64 // of BRANCH_MEMBER
}

type vote struct {
	target int32
	weight float64
}

// treeModes are the names of the modes; the first seven are numbered as in
// TreeEnsemble.
var treeModes = []string{"BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF"}

const leafMode = 7

func (n *treeNode) test(v float64) bool {
	if v != v {
		return n.missing || n.mode == 5
	}
	switch n.mode {
	case 0:
		return v <= n.value
	case 1:
		return v < n.value
	case 2:
		return v >= n.value
	case 3:
		return v > n.value
	case 4:
		return v == n.value
	case 5:
		return v != n.value
	}
	return slices.Contains(n.members, v)
}

// check reports whether the trees are trees: children within range, no cycle,
// features and targets not negative.
func (f *forest) check() error {
	state := make([]uint8, len(f.nodes)) // 1: being visited, 2: done
	var stack []int32
	for _, root := range f.roots {
		stack = append(stack[:0], root)
		for len(stack) > 0 {
			i := stack[len(stack)-1]
			if i < 0 || int(i) >= len(f.nodes) {
				return fmt.Errorf("tree with a branch to node %d of %d", i, len(f.nodes))
			}
			n := &f.nodes[i]
			switch {
			case state[i] == 2 || state[i] == 1:
				state[i] = 2
				stack = stack[:len(stack)-1]
			case n.mode == leafMode:
				if n.yes < 0 || n.no < n.yes || int(n.no) > len(f.votes) {
					return fmt.Errorf("leaf with the votes %d to %d of %d", n.yes, n.no, len(f.votes))
				}
				state[i] = 2
			default:
				if n.feature < 0 {
					return fmt.Errorf("node with feature %d", n.feature)
				}
				state[i] = 1
				for _, k := range []int32{n.yes, n.no} {
					if k >= 0 && int(k) < len(f.nodes) && state[k] == 1 {
						return fmt.Errorf("tree with a cycle through node %d", k)
					}
					stack = append(stack, k)
				}
			}
		}
	}
	for _, v := range f.votes {
		if v.target < 0 || int(v.target) >= f.targets {
			return fmt.Errorf("vote for target %d of %d", v.target, f.targets)
		}
	}
	if n := len(f.base); n > f.targets {
		return fmt.Errorf("%d base values for %d targets", n, f.targets)
	}
	return nil
}

// prepare computes what score reads besides the nodes.
func (f *forest) prepare() {
	modes, missing := 0, false
	for i := range f.nodes {
		if n := &f.nodes[i]; n.mode != leafMode {
			f.columns = max(f.columns, int(n.feature)+1)
			modes |= 1 << n.mode
			missing = missing || n.missing
		}
	}
	if missing || modes != 1<<0 && modes != 1<<1 {
		return
	}
	f.strict = modes == 1<<1
	f.paths = make([]junction, len(f.nodes))
	for i := range f.nodes {
		n, to := &f.nodes[i], int32(i)
		if n.mode == leafMode {
			f.paths[i].next = [2]int32{to, to}
			continue
		}
		f.paths[i] = junction{value: n.value, feature: n.feature, next: [2]int32{n.no, n.yes}}
	}
}

// leaves stores the leaves that x leads to from the given roots in at. The
// trees are walked side by side, because each step waits for the one before.
func (f *forest) leaves(x []float64, at *[4]int32) {
	paths := f.paths
	a, b, c, d := at[0], at[1], at[2], at[3]
	for {
		pa, pb, pc, pd := &paths[a], &paths[b], &paths[c], &paths[d]
		va, vb, vc, vd := x[pa.feature], x[pb.feature], x[pc.feature], x[pd.feature]
		var ta, tb, tc, td uint8
		if f.strict {
			ta, tb, tc, td = truth(va < pa.value), truth(vb < pb.value), truth(vc < pc.value), truth(vd < pd.value)
		} else {
			ta, tb, tc, td = truth(va <= pa.value), truth(vb <= pb.value), truth(vc <= pc.value), truth(vd <= pd.value)
		}
		na, nb, nc, nd := pa.next[ta&1], pb.next[tb&1], pc.next[tc&1], pd.next[td&1]
		if na == a && nb == b && nc == c && nd == d {
			break
		}
		a, b, c, d = na, nb, nc, nd
	}
	*at = [4]int32{a, b, c, d}
}

// score stores the aggregated votes for x in s; voted is room of the same
// length.
func (f *forest) score(x, s []float64, voted []bool) {
	clear(s)
	clear(voted)
	roots := f.roots
	for f.paths != nil && f.columns > 0 && len(roots) >= 4 {
		at := [4]int32(roots)
		f.leaves(x, &at)
		for _, i := range at {
			f.count(&f.nodes[i], s, voted)
		}
		roots = roots[4:]
	}
	for _, i := range roots {
		n := &f.nodes[i]
		for n.mode != leafMode {
			if n.test(x[n.feature]) {
				n = &f.nodes[n.yes]
			} else {
				n = &f.nodes[n.no]
			}
		}
		f.count(n, s, voted)
	}
	if f.merge == 0 && len(f.roots) > 0 {
		for t := range s {
			s[t] /= float64(len(f.roots))
		}
	}
}

// count adds the votes of a leaf.
func (f *forest) count(n *treeNode, s []float64, voted []bool) {
	votes := f.votes[n.yes:n.no]
	if f.merge < 2 {
		for _, v := range votes {
			s[v.target] += v.weight
		}
		return
	}
	for _, v := range votes {
		t := v.target
		switch {
		case !voted[t]:
			s[t] += v.weight
		case f.merge == 2:
			s[t] = min(s[t], v.weight)
		default:
			s[t] = max(s[t], v.weight)
		}
		voted[t] = true
	}
}

// compileForest compiles a TreeEnsembleRegressor or TreeEnsembleClassifier.
func compileForest(s *Site) (Kernel, error) {
	n := s.Node
	f := &forest{merge: 1}
	var err error
	if f.post, err = postOf(n); err != nil {
		return nil, s.Errorf("%w", err)
	}
	if f.base, err = realAttr(n, "base_values"); err != nil {
		return nil, s.Errorf("%w", err)
	}
	prefix, names := "target", labels{}
	if n.Op.Type == "TreeEnsembleClassifier" {
		prefix, names = "class", labelsOf(n)
		f.targets = names.len()
	} else {
		f.targets = int(n.Int("n_targets", 1))
		name := n.String("aggregate_function", "SUM")
		if f.merge = int64(slices.Index([]string{"AVERAGE", "SUM", "MIN", "MAX"}, name)); f.merge < 0 {
			return nil, s.Errorf("aggregate_function is %q", name)
		}
	}
	if f.targets < 1 {
		return nil, s.Errorf("%d targets", f.targets)
	}
	if err := f.readNodes(n, prefix); err != nil {
		return nil, s.Errorf("%w", err)
	}
	if err := f.check(); err != nil {
		return nil, s.Errorf("%w", err)
	}
	f.prepare()
	if prefix == "target" {
		return f.regress(tensor.Float32), nil
	}
	if f.targets == 2 {
		f.binary, f.positive = len(f.votes) > 0, true
		for _, v := range f.votes {
			f.binary = f.binary && v.target == f.votes[0].target
			f.positive = f.positive && v.weight >= 0
		}
	}
	return f.classify(names), nil
}

// readNodes reads the lists nodes_* and the votes PREFIX_*.
func (f *forest) readNodes(n *graph.Node, prefix string) error {
	modes := stringsAttr(n, "nodes_modes")
	values, err := realAttr(n, "nodes_values")
	if err != nil {
		return err
	}
	trees, ids, feature := n.Ints("nodes_treeids"), n.Ints("nodes_nodeids"), n.Ints("nodes_featureids")
	yes, no, missing := n.Ints("nodes_truenodeids"), n.Ints("nodes_falsenodeids"), n.Ints("nodes_missing_value_tracks_true")
	count := len(modes)
	for _, l := range []int{len(values), len(trees), len(ids), len(feature), len(yes), len(no)} {
		if l != count {
			return fmt.Errorf("lists of %d and %d nodes", count, l)
		}
	}
	if len(missing) != 0 && len(missing) != count {
		return fmt.Errorf("lists of %d and %d nodes", count, len(missing))
	}
	type key struct{ tree, id int64 }
	at := make(map[key]int32, count)
	inner := make(map[key]bool) // nodes that are children
	for i := range count {
		k := key{trees[i], ids[i]}
		if _, twice := at[k]; twice {
			return fmt.Errorf("node %d of tree %d occurs twice", k.id, k.tree)
		}
		at[k] = int32(i)
		if modes[i] != treeModes[leafMode] {
			inner[key{trees[i], yes[i]}], inner[key{trees[i], no[i]}] = true, true
		}
	}
	f.nodes = make([]treeNode, count)
	for i := range count {
		t := &f.nodes[i]
		mode := slices.Index(treeModes, modes[i])
		if mode < 0 || mode == 6 {
			return fmt.Errorf("node of mode %q", modes[i])
		}
		*t = treeNode{mode: uint8(mode), missing: missing != nil && missing[i] != 0, value: values[i]}
		if mode != leafMode {
			var okYes, okNo bool
			t.yes, okYes = at[key{trees[i], yes[i]}]
			t.no, okNo = at[key{trees[i], no[i]}]
			if !okYes || !okNo || feature[i] < 0 || feature[i] > math.MaxInt32 {
				return fmt.Errorf("node %d of tree %d has no such feature or child", ids[i], trees[i])
			}
			t.feature = int32(feature[i])
		}
		if !inner[key{trees[i], ids[i]}] {
			f.roots = append(f.roots, int32(i))
		}
	}
	weights, err := realAttr(n, prefix+"_weights")
	if err != nil {
		return err
	}
	vt, vn, target := n.Ints(prefix+"_treeids"), n.Ints(prefix+"_nodeids"), n.Ints(prefix+"_ids")
	if len(vt) != len(weights) || len(vn) != len(weights) || len(target) != len(weights) {
		return fmt.Errorf("lists of %d, %d, %d and %d votes", len(weights), len(vt), len(vn), len(target))
	}
	// Votes of a leaf become neighbours, in the order of the lists.
	byLeaf := make([][]vote, count)
	for i, w := range weights {
		leaf, ok := at[key{vt[i], vn[i]}]
		if !ok || f.nodes[leaf].mode != leafMode || target[i] < 0 || target[i] >= int64(f.targets) {
			return fmt.Errorf("vote %d is of node %d of tree %d for target %d of %d", i, vn[i], vt[i], target[i], f.targets)
		}
		byLeaf[leaf] = append(byLeaf[leaf], vote{int32(target[i]), w})
	}
	for i, votes := range byLeaf {
		if f.nodes[i].mode == leafMode {
			f.nodes[i].yes = int32(len(f.votes))
			f.votes = append(f.votes, votes...)
			f.nodes[i].no = int32(len(f.votes))
		}
	}
	return nil
}

// compileTreeEnsemble compiles a TreeEnsemble.
func compileTreeEnsemble(s *Site) (Kernel, error) {
	n := s.Node
	f := &forest{merge: n.Int("aggregate_function", 1), targets: int(n.Int("n_targets", 1))}
	var err error
	if f.post, err = postOf(n); err != nil {
		return nil, s.Errorf("%w", err)
	}
	if f.merge < 0 || f.merge > 3 || f.targets < 1 {
		return nil, s.Errorf("aggregate_function is %d, n_targets %d", f.merge, f.targets)
	}
	if err := f.readEnsemble(n); err != nil {
		return nil, s.Errorf("%w", err)
	}
	if err := f.check(); err != nil {
		return nil, s.Errorf("%w", err)
	}
	f.prepare()
	return f.regress(tensor.Undefined), nil
}

func (f *forest) readEnsemble(n *graph.Node) error {
	ints := func(name string) []int64 { return n.Ints(name) }
	splits, err := realAttr(n, "nodes_splits")
	if err != nil {
		return err
	}
	modes, err := realAttr(n, "nodes_modes")
	if err != nil {
		return err
	}
	weights, err := realAttr(n, "leaf_weights")
	if err != nil {
		return err
	}
	members, err := realAttr(n, "membership_values")
	if err != nil {
		return err
	}
	feature, missing, targets := ints("nodes_featureids"), ints("nodes_missing_value_tracks_true"), ints("leaf_targetids")
	kids := [2][]int64{ints("nodes_truenodeids"), ints("nodes_falsenodeids")}
	leafs := [2][]int64{ints("nodes_trueleafs"), ints("nodes_falseleafs")}
	count := len(modes)
	for _, l := range []int{len(splits), len(feature), len(kids[0]), len(kids[1]), len(leafs[0]), len(leafs[1])} {
		if l != count {
			return fmt.Errorf("lists of %d and %d nodes", count, l)
		}
	}
	if len(targets) != len(weights) || len(missing) != 0 && len(missing) != count {
		return fmt.Errorf("lists of %d and %d leaves, %d and %d nodes", len(weights), len(targets), count, len(missing))
	}
	// Leaf i is node count+i.
	f.nodes = make([]treeNode, count+len(weights))
	for i := range count {
		t := &f.nodes[i]
		if !(modes[i] >= 0 && modes[i] < leafMode) || feature[i] < 0 || feature[i] > math.MaxInt32 {
			return fmt.Errorf("node %d of mode %v with feature %d", i, modes[i], feature[i])
		}
		*t = treeNode{mode: uint8(modes[i]), feature: int32(feature[i]), value: splits[i], missing: missing != nil && missing[i] != 0}
		if t.mode == 6 {
			end := slices.IndexFunc(members, func(v float64) bool { return v != v })
			if end < 0 {
				end = len(members)
			}
			t.members = members[:end]
			members = members[min(end+1, len(members)):]
		}
		for k, dst := range []*int32{&t.yes, &t.no} {
			kid, limit, first := kids[k][i], count, 0
			if leafs[k][i] != 0 {
				limit, first = len(weights), count
			}
			if kid < 0 || kid >= int64(limit) {
				return fmt.Errorf("node %d with a branch to %d of %d", i, kid, limit)
			}
			*dst = int32(first + int(kid))
		}
	}
	for i, w := range weights {
		if targets[i] < 0 || targets[i] >= int64(f.targets) {
			return fmt.Errorf("leaf %d for target %d of %d", i, targets[i], f.targets)
		}
		f.nodes[count+i] = treeNode{mode: leafMode, yes: int32(i), no: int32(i + 1)}
		f.votes = append(f.votes, vote{int32(targets[i]), w})
	}
	for _, r := range ints("tree_roots") {
		if r < 0 || r >= int64(count) {
			return fmt.Errorf("root %d of %d nodes", r, count)
		}
		f.roots = append(f.roots, int32(r))
	}
	return nil
}

// each computes the scores of every row of input 0.
func (f *forest) each(c *Call, emit func(r int, s []float64, voted []bool)) (rows int, err error) {
	x := c.In(0)
	rows, cols, err := rowsOf(x)
	if err != nil {
		return 0, err
	}
	if cols < f.columns {
		return 0, fmt.Errorf("input %v, the trees read %d features", x, f.columns)
	}
	v, err := tensor.Float64s(x)
	if err != nil {
		return 0, err
	}
	return rows, c.For(rows, 32, func(lo, hi int) {
		s, voted := make([]float64, f.targets), make([]bool, f.targets)
		for r := lo; r < hi; r++ {
			f.score(v[r*cols:][:cols], s, voted)
			emit(r, s, voted)
		}
	})
}

// regress returns the kernel of a regressor with outputs of type t, or of the
// input's type.
func (f *forest) regress(t tensor.DType) Kernel {
	return func(c *Call) error {
		rows, _, err := rowsOf(c.In(0))
		if err != nil {
			return err
		}
		dtype := t
		if dtype == tensor.Undefined {
			dtype = c.In(0).DType()
		}
		if !dtype.IsFloat() {
			return fmt.Errorf("input %v", c.In(0))
		}
		y, err := c.Out(0, dtype, rows, f.targets)
		if err != nil {
			return err
		}
		_, err = f.each(c, func(r int, s []float64, _ []bool) {
			for i, b := range f.base {
				s[i] += b
			}
			f.post.apply(s)
			tensor.Write(y, r*f.targets, s)
		})
		return err
	}
}

// classify returns the kernel of a classifier. Two classes whose votes are all
// for one follow the rules of ONNX Runtime: the sum decides against 0, or .5 if
// no vote is negative; as votes for class 0 it is the score of class 1 all the
// same, and class 0 gets its complement. The specification leaves that open.
func (f *forest) classify(names labels) Kernel {
	return func(c *Call) error {
		rows, _, err := rowsOf(c.In(0))
		if err != nil {
			return err
		}
		y, err := c.Mem.New(tensor.Float32, []int{rows, f.targets})
		if err != nil {
			return err
		}
		out, class := tensor.As[float32](y), make([]int, rows)
		if _, err = f.each(c, func(r int, s []float64, _ []bool) {
			if f.binary {
				class[r] = f.binaryScores(s)
			} else {
				for i, b := range f.base {
					s[i] += b
				}
				class[r] = argmax(s)
				f.post.apply(s)
			}
			for i, v := range s {
				out[r*f.targets+i] = float32(v)
			}
		}); err != nil {
			return err
		}
		if c.wants(1) {
			c.SetOut(1, y)
		}
		return names.out(c, class)
	}
}

// binaryScores completes the scores of two classes of which one has votes, and
// returns the class.
func (f *forest) binaryScores(s []float64) int {
	voted := f.votes[0].target
	if len(f.base) == 2 {
		s[voted] += f.base[voted]
	} else if len(f.base) == 1 {
		s[0] += f.base[0]
	}
	v, class, limit := s[voted], 0, 0.0
	if f.positive {
		limit = 0.5
	}
	if v > limit {
		class = 1
	}
	switch {
	case voted == 1, f.post == probitTransform:
		f.post.apply(s)
	case f.post == logisticTransform:
		s[0], s[1] = logistic(-v), logistic(v)
	case f.positive:
		s[0], s[1] = 1-v, v
	default:
		s[0], s[1] = -v, v
	}
	return class
}
