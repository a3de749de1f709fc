package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// detSpecs lists determinants, inverses and distances.
func detSpecs() []Spec {
	return []Spec{{Domain: msDomain, Type: "Inverse", Since: 1, Flow: Compute, Pure: true,
		In: []Port{{Name: "X", Role: Activation}}, Out: []Port{{Name: "Y", Role: Activation}},
		Infer: inferLikeFirst, Compile: func(*Site) (Kernel, error) { return runInverse, nil },
	}, {Domain: msDomain, Type: "CDist", Since: 1, Flow: Compute, Pure: true,
		In: []Port{{Name: "A", Role: Activation}, {Name: "B"}}, Out: []Port{{Name: "C", Role: Activation}},
		Attrs: []AttrSpec{{Name: "metric", Kind: graph.AttrString}},
		Infer: func(c *Inference) error {
			shape := graph.UnknownShape(2)
			for i := range shape {
				if s := c.Shape(i); len(s) == 2 {
					shape[i] = bareDim(s[0])
				}
			}
			c.Tensor(0, c.Elem(0), shape)
			return nil
		},
		Compile: compileCDist,
	}, {Type: "Det", Since: 11, Flow: Compute, Pure: true,
		In: []Port{{Name: "X", Role: Activation}}, Out: []Port{{Name: "Y", Role: Activation}},
		Infer: func(c *Inference) error {
			x := c.Shape(0)
			if x == nil {
				c.Tensor(0, c.Elem(0), nil)
				return nil
			}
			if len(x) < 2 {
				return c.Errorf("input of shape %v", x)
			}
			c.Tensor(0, c.Elem(0), bare(x[:len(x)-2]))
			return nil
		},
		Compile: func(*Site) (Kernel, error) { return runDet, nil },
	}}
}

// runDet computes the determinants of the matrices in the last two dimensions.
func runDet(c *Call) error {
	x := c.In(0)
	s := x.Shape()
	if !x.DType().IsFloat() || !x.DType().Convertible() || len(s) < 2 || s[len(s)-1] != s[len(s)-2] {
		return fmt.Errorf("input %v, square matrices of floats are needed", x)
	}
	n := s[len(s)-1]
	y, err := newOutput[float64](c, 0, -1, x.DType(), s[:len(s)-2])
	if err != nil {
		return err
	}
	m, err := scratch[float64](c, x.Len())
	if err != nil {
		return err
	}
	tensor.Read(x, 0, m)
	if err := c.For(len(y.data), max(1, cheapChunk/max(n*n*n, 1)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			y.data[i] = determinant(m[i*n*n:][:n*n], n)
		}
	}); err != nil {
		return err
	}
	return y.store(c)
}

// determinant eliminates in a, an n×n matrix that it overwrites, with the
// largest element of a column as pivot.
func determinant(a []float64, n int) float64 {
	det := 1.0
	for k := range n {
		p := k
		for i := k + 1; i < n; i++ {
			if math.Abs(a[i*n+k]) > math.Abs(a[p*n+k]) {
				p = i
			}
		}
		if p != k {
			det = -det
			for j := k; j < n; j++ {
				a[k*n+j], a[p*n+j] = a[p*n+j], a[k*n+j]
			}
		}
		pivot := a[k*n+k]
		det *= pivot
		if pivot == 0 {
			return 0
		}
		for i := k + 1; i < n; i++ {
			f := a[i*n+k] / pivot
			for j := k + 1; j < n; j++ {
				a[i*n+j] -= float64(f * a[k*n+j])
			}
		}
	}
	return det
}

// runInverse inverts the matrices in the last two dimensions. The inverse of a
// singular one is not finite.
func runInverse(c *Call) error {
	x := c.In(0)
	s := x.Shape()
	if !x.DType().IsFloat() || !x.DType().Convertible() || len(s) < 2 || s[len(s)-1] != s[len(s)-2] {
		return fmt.Errorf("input %v, square matrices of floats are needed", x)
	}
	n := s[len(s)-1]
	y, err := newOutput[float64](c, 0, -1, x.DType(), s)
	if err != nil || x.Len() == 0 {
		return err
	}
	m, err := scratch[float64](c, x.Len())
	if err != nil {
		return err
	}
	tensor.Read(x, 0, m)
	if err := c.For(x.Len()/(n*n), max(1, cheapChunk/(n*n*n)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			inverse(y.data[i*n*n:][:n*n], m[i*n*n:][:n*n], n)
		}
	}); err != nil {
		return err
	}
	return y.store(c)
}

// inverse stores the inverse of a, an n×n matrix that it overwrites, in b.
func inverse(b, a []float64, n int) {
	clear(b)
	for i := range n {
		b[i*n+i] = 1
	}
	for k := range n {
		p := k
		for i := k + 1; i < n; i++ {
			if math.Abs(a[i*n+k]) > math.Abs(a[p*n+k]) {
				p = i
			}
		}
		for j := range n {
			a[k*n+j], a[p*n+j] = a[p*n+j], a[k*n+j]
			b[k*n+j], b[p*n+j] = b[p*n+j], b[k*n+j]
		}
		pivot := a[k*n+k]
		for j := range n {
			a[k*n+j] /= pivot
			b[k*n+j] /= pivot
		}
		for i := range n {
			f := a[i*n+k]
			if i == k {
				continue
			}
			for j := range n {
				a[i*n+j] -= float64(f * a[k*n+j])
				b[i*n+j] -= float64(f * b[k*n+j])
			}
		}
	}
}

// compileCDist compiles the distances of each row of A from each row of B.
func compileCDist(s *Site) (Kernel, error) {
	metric := s.Node.String("metric", "sqeuclidean")
	if metric != "sqeuclidean" && metric != "euclidean" {
		return nil, s.Errorf("metric is %q", metric)
	}
	return func(c *Call) error {
		a, b := c.In(0), c.In(1)
		if a.Rank() != 2 || b.Rank() != 2 || a.DType() != b.DType() || a.Shape()[1] != b.Shape()[1] {
			return fmt.Errorf("operands %v and %v", a, b)
		}
		return byFloat(a,
			func() error { return distances[float32](c, metric == "euclidean") },
			func() error { return distances[float64](c, metric == "euclidean") })
	}, nil
}

func distances[T floating](c *Call, root bool) error {
	a, b := c.In(0), c.In(1)
	m, k, n := a.Shape()[0], b.Shape()[0], a.Shape()[1]
	as, err := load[T](c, a)
	if err != nil {
		return err
	}
	bs, err := load[T](c, b)
	if err != nil {
		return err
	}
	y, err := newOutput[T](c, 0, -1, a.DType(), []int{m, k})
	if err != nil {
		return err
	}
	if err := c.For(m, max(1, cheapChunk/max(k*n, 1)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			x := as[i*n:][:n]
			for j := range k {
				var sum T
				for l, v := range bs[j*n:][:n] {
					d := x[l] - v
					sum += T(d * d)
				}
				if root {
					sum = T(math.Sqrt(float64(sum)))
				}
				y.data[i*k+j] = sum
			}
		}
	}); err != nil {
		return err
	}
	return y.store(c)
}
