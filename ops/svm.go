package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// svmKernel measures the likeness of two vectors.
type svmKernel struct {
	kind                 string
	gamma, coef0, degree float64
}

func svmKernelOf(n *graph.Node) (svmKernel, error) {
	k := svmKernel{kind: n.String("kernel_type", "LINEAR")}
	switch k.kind {
	case "LINEAR", "POLY", "RBF", "SIGMOID":
	default:
		return k, fmt.Errorf("kernel_type is %q", k.kind)
	}
	p, err := realAttr(n, "kernel_params")
	if err != nil {
		return k, err
	}
	switch {
	case len(p) >= 3:
		k.gamma, k.coef0, k.degree = p[0], p[1], p[2]
	case len(p) > 0:
		return k, fmt.Errorf("%d kernel_params", len(p))
	}
	return k, nil
}

// of returns the kernel of a and b, of equal length.
func (k svmKernel) of(a, b []float64) float64 {
	sum := 0.0
	if k.kind == "RBF" {
		for i, v := range a {
			d := v - b[i]
			sum += float64(d * d)
		}
		return math.Exp(-k.gamma * sum)
	}
	for i, v := range a {
		sum += float64(v * b[i])
	}
	switch k.kind {
	case "POLY":
		return math.Pow(float64(k.gamma*sum)+k.coef0, k.degree)
	case "SIGMOID":
		return math.Tanh(float64(k.gamma*sum) + k.coef0)
	}
	return sum
}

// svm is what SVMClassifier and SVMRegressor have in common.
type svm struct {
	kernel       svmKernel
	vectors      []float64 // count × width
	coefficients []float64
	rho          []float64
	count, width int
}

func newSVM(n *graph.Node) (*svm, error) {
	var s svm
	var err error
	if s.kernel, err = svmKernelOf(n); err != nil {
		return nil, err
	}
	if s.vectors, err = realAttr(n, "support_vectors"); err != nil {
		return nil, err
	}
	if s.coefficients, err = realAttr(n, "coefficients"); err != nil {
		return nil, err
	}
	if s.rho, err = realAttr(n, "rho"); err != nil {
		return nil, err
	}
	if len(s.coefficients) == 0 || len(s.rho) == 0 {
		return nil, fmt.Errorf("%d coefficients, %d rho", len(s.coefficients), len(s.rho))
	}
	return &s, nil
}

// support states that there are count support vectors.
func (s *svm) support(count int) error {
	if len(s.vectors) == 0 || len(s.vectors)%count != 0 {
		return fmt.Errorf("%d numbers in %d support vectors", len(s.vectors), count)
	}
	s.count, s.width = count, len(s.vectors)/count
	return nil
}

// eachRow calls f for every row of input 0, in parallel, with a buffer for
// size numbers.
func (s *svm) eachRow(c *Call, size int, f func(r int, x, buf []float64)) error {
	x := c.In(0)
	rows, cols, err := rowsOf(x)
	if err != nil {
		return err
	}
	if cols != s.width {
		return fmt.Errorf("input %v for vectors of %d numbers", x, s.width)
	}
	v, err := tensor.Float64s(x)
	if err != nil {
		return err
	}
	return c.For(rows, max(1, cheapChunk/max(len(s.vectors)+len(s.coefficients), 1)), func(lo, hi int) {
		buf := make([]float64, size)
		for r := lo; r < hi; r++ {
			f(r, v[r*cols:][:cols], buf)
		}
	})
}

func inferSVMRegressor(c *Inference) error {
	c.Tensor(0, tensor.Float32, graph.Shape{rowDim(c.Shape(0)), graph.D(1)})
	return nil
}

// compileSVMRegressor compiles y = Σ coefficient·kernel(x, vector) + rho, or the
// scalar product of x and the coefficients + rho where there are no support
// vectors. For one_class y becomes 1 or -1. As in ONNX Runtime, post_transform
// is without effect.
func compileSVMRegressor(site *Site) (Kernel, error) {
	n := site.Node
	s, err := newSVM(n)
	if err != nil {
		return nil, site.Errorf("%w", err)
	}
	count := n.Int("n_supports", 0)
	switch {
	case count > int64(len(s.coefficients)) || count < 0:
		return nil, site.Errorf("n_supports is %d, with %d coefficients", count, len(s.coefficients))
	case count > 0:
		if err := s.support(int(count)); err != nil {
			return nil, site.Errorf("%w", err)
		}
	default:
		s.kernel.kind, s.width = "LINEAR", len(s.coefficients)
	}
	oneClass := n.Int("one_class", 0) != 0
	return func(c *Call) error {
		rows, _, err := rowsOf(c.In(0))
		if err != nil {
			return err
		}
		y, err := c.Out(0, tensor.Float32, rows, 1)
		if err != nil {
			return err
		}
		return s.eachRow(c, 0, func(r int, x, _ []float64) {
			sum := s.rho[0]
			for v := range s.count {
				sum += float64(s.coefficients[v] * s.kernel.of(x, s.vectors[v*s.width:][:s.width]))
			}
			if s.count == 0 {
				sum += s.kernel.of(x, s.coefficients)
			}
			switch {
			case oneClass && sum > 0:
				sum = 1
			case oneClass:
				sum = -1
			}
			tensor.As[float32](y)[r] = float32(sum)
		})
	}, nil
}

// svmClassifier is an SVMClassifier bound to its attributes.
type svmClassifier struct {
	*svm
	names        labels
	classes      int
	start        []int // of the vectors of each class, and their number; nil: linear
	probA, probB []float64
	positive     bool // no coefficient is negative
	post         postTransform
}

func compileSVMClassifier(site *Site) (Kernel, error) {
	n := site.Node
	s, err := newSVM(n)
	if err != nil {
		return nil, site.Errorf("%w", err)
	}
	k := &svmClassifier{svm: s, names: labelsOf(n), positive: true}
	k.classes = k.names.len()
	if k.classes == 0 {
		return nil, site.Errorf("no class labels")
	}
	if k.post, err = postOf(n); err != nil {
		return nil, site.Errorf("%w", err)
	}
	if k.probA, err = realAttr(n, "prob_a"); err != nil {
		return nil, site.Errorf("%w", err)
	}
	if k.probB, err = realAttr(n, "prob_b"); err != nil {
		return nil, site.Errorf("%w", err)
	}
	for _, v := range s.coefficients {
		k.positive = k.positive && v >= 0
	}
	counts := n.Ints("vectors_per_class")
	if len(counts) == 0 {
		if len(s.coefficients)%k.classes != 0 {
			return nil, site.Errorf("%d coefficients for %d classes", len(s.coefficients), k.classes)
		}
		s.kernel.kind, s.width = "LINEAR", len(s.coefficients)/k.classes
		return k.run, nil
	}
	total := 0
	k.start = []int{0}
	for _, v := range counts {
		if v < 0 || v > int64(len(s.coefficients)) {
			return nil, site.Errorf("a class of %d vectors, with %d coefficients", v, len(s.coefficients))
		}
		total += int(v)
		k.start = append(k.start, total)
	}
	pairs := k.classes * (k.classes - 1) / 2
	if len(counts) != k.classes || k.classes < 2 || total == 0 || len(s.coefficients) != (k.classes-1)*total || len(s.rho) < pairs ||
		len(k.probA) != len(k.probB) || len(k.probA) > 0 && len(k.probA) < pairs {
		return nil, site.Errorf("%d coefficients, %d rho, %d prob_a and %d prob_b for %d vectors of %d classes", len(s.coefficients), len(s.rho), len(k.probA), len(k.probB), total, k.classes)
	}
	if err := s.support(total); err != nil {
		return nil, site.Errorf("%w", err)
	}
	return k.run, nil
}

func (k *svmClassifier) run(c *Call) error {
	rows, _, err := rowsOf(c.In(0))
	if err != nil {
		return err
	}
	pairs := k.classes * (k.classes - 1) / 2
	columns, size := k.classes, k.classes
	if k.start != nil {
		size = k.count + pairs + k.classes*(2*k.classes+3)
		if len(k.probA) == 0 {
			columns = max(pairs, 2)
		}
	}
	z, err := c.Mem.New(tensor.Float32, []int{rows, columns})
	if err != nil {
		return err
	}
	class := make([]int, rows)
	if err := k.eachRow(c, size, func(r int, x, buf []float64) {
		dst := tensor.As[float32](z)[r*columns:][:columns]
		var score []float64
		if k.start == nil {
			score = buf
			class[r] = k.linear(x, score)
		} else {
			score, class[r] = k.pairwise(x, buf)
		}
		switch {
		case len(score) == 1 && columns == 2:
			k.oneScore(score[0], dst)
		case len(score) == 1 && k.post != probitTransform:
			dst[0] = float32(score[0])
		default:
			k.post.apply(score)
			for i, v := range score {
				dst[i] = float32(v)
			}
		}
	}); err != nil {
		return err
	}
	if c.wants(1) {
		c.SetOut(1, z)
	}
	return k.names.out(c, class)
}

// linear computes a score for each class and chooses one. Of two classes, ONNX
// Runtime takes the second if a score is above a limit, whichever it is.
func (k *svmClassifier) linear(x, score []float64) int {
	for i := range score {
		score[i] = k.kernel.of(x, k.coefficients[i*k.width:][:k.width]) + k.rho[0]
	}
	best := argmax(score)
	if k.classes == 2 && len(k.probA) == 0 && (k.positive && score[best] >= 0.5 || !k.positive && score[best] > 0) {
		return 1
	}
	return best
}

// pairwise computes a score for each pair of classes, which votes for the first
// if it is positive, and chooses the class of most votes. With prob_a the scores
// are turned into probabilities of the classes.
func (k *svmClassifier) pairwise(x, buf []float64) (score []float64, class int) {
	n := k.classes
	pairs := n * (n - 1) / 2
	like, score, buf := buf[:k.count], buf[k.count:][:pairs], buf[k.count+pairs:]
	votes, buf := buf[:n], buf[n:]
	for v := range like {
		like[v] = k.kernel.of(x, k.vectors[v*k.width:][:k.width])
	}
	clear(votes)
	at := 0
	for i := range n {
		for j := i + 1; j < n; j++ {
			sum := k.rho[at]
			for v := k.start[i]; v < k.start[i+1]; v++ {
				sum += float64(k.coefficients[(j-1)*k.count+v] * like[v])
			}
			for v := k.start[j]; v < k.start[j+1]; v++ {
				sum += float64(k.coefficients[i*k.count+v] * like[v])
			}
			score[at] = sum
			if sum > 0 {
				votes[i]++
			} else {
				votes[j]++
			}
			at++
		}
	}
	class = argmax(votes)
	if len(k.probA) == 0 {
		return score, class
	}
	r := buf[:n*n]
	at = 0
	for i := range n {
		for j := i + 1; j < n; j++ {
			p := min(max(logistic(-(score[at]*k.probA[at]+k.probB[at])), 1e-7), 1-1e-7)
			r[i*n+j], r[j*n+i] = p, 1-p
			at++
		}
	}
	return coupled(r, n, buf[n*n:]), class
}

// coupled returns the probabilities of n classes that fit the probabilities
// r[i·n+j] of class i among i and j best (Wu, Lin, Weng: Probability Estimates
// for Multi-class Classification by Pairwise Coupling, 2004, second method). buf
// holds n·n + 2n numbers.
func coupled(r []float64, n int, buf []float64) []float64 {
	q, p, qp := buf[:n*n], buf[n*n:][:n], buf[n*n+n:][:n]
	for t := range n {
		p[t], q[t*n+t] = 1/float64(n), 0
		for j := range n {
			if j != t {
				q[t*n+t] += r[j*n+t] * r[j*n+t]
				q[t*n+j] = -r[j*n+t] * r[t*n+j]
			}
		}
	}
	for range max(100, n) {
		total := 0.0
		for t := range n {
			qp[t] = 0
			for j := range n {
				qp[t] += q[t*n+j] * p[j]
			}
			total += p[t] * qp[t]
		}
		worst := 0.0
		for _, v := range qp {
			worst = max(worst, math.Abs(v-total))
		}
		if worst < 0.005/float64(n) {
			break
		}
		for t := range n {
			d := (total - qp[t]) / q[t*n+t]
			p[t] += d
			total = (total + d*(d*q[t*n+t]+2*qp[t])) / (1 + d) / (1 + d)
			for j := range n {
				qp[j] = (qp[j] + d*q[t*n+j]) / (1 + d)
				p[j] /= 1 + d
			}
		}
	}
	return p
}

// oneScore makes the two columns of two classes that have one score, as ONNX
// Runtime does.
func (k *svmClassifier) oneScore(s float64, dst []float32) {
	switch k.post {
	case noTransform:
		dst[0], dst[1] = float32(-s), float32(s)
	case logisticTransform:
		dst[0], dst[1] = float32(logistic(-s)), float32(logistic(s))
	case probitTransform:
		v := []float64{s}
		k.post.apply(v)
		dst[0], dst[1] = float32(v[0]), 0
	default:
		dst[0], dst[1] = float32(1-s), float32(s)
	}
}
