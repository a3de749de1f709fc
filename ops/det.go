package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/tensor"
)

func detSpecs() []Spec {
	return []Spec{{Type: "Det", Since: 11, Flow: Compute, Pure: true,
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
