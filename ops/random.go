package ops

import (
	"fmt"
	"hash/fnv"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// randomSpecs are the operators that draw numbers. A node draws the same
// numbers at every run: those of its seed or, if it has none, of the name of
// its output, so that a model and its quantized form can be compared.
func randomSpecs() []Spec {
	num := func(name string) AttrSpec { return AttrSpec{Name: name, Kind: graph.AttrInt} }
	dec := func(name string) AttrSpec { return AttrSpec{Name: name, Kind: graph.AttrFloat} }
	shape := AttrSpec{Name: "shape", Kind: graph.AttrInts, Required: true}
	in := []Port{{Name: "input"}}
	out := []Port{{Name: "output", Role: Activation}}
	normal := []AttrSpec{num("dtype"), dec("seed"), dec("mean"), dec("scale")}
	uniform := []AttrSpec{num("dtype"), dec("seed"), dec("low"), dec("high")}
	return []Spec{
		{Type: "RandomNormal", Since: 1, Flow: Compute, Out: out, Attrs: append(normal, shape),
			Infer: inferRandom, Compile: compileRandom},
		{Type: "RandomUniform", Since: 1, Flow: Compute, Out: out, Attrs: append(uniform, shape),
			Infer: inferRandom, Compile: compileRandom},
		{Type: "RandomNormalLike", Since: 1, Flow: Compute, In: in, Out: out, Attrs: normal,
			Infer: inferRandomLike, Compile: compileRandom},
		{Type: "RandomUniformLike", Since: 1, Flow: Compute, In: in, Out: out, Attrs: uniform,
			Infer: inferRandomLike, Compile: compileRandom},
		{Type: "Bernoulli", Since: 15, Flow: Compute, In: in, Out: out, Attrs: []AttrSpec{num("dtype"), dec("seed")},
			Infer: inferRandomLike, Compile: compileBernoulli},
		{Type: "Multinomial", Since: 7, Flow: Integers, In: in, Out: []Port{{Name: "output", Role: Index}},
			Attrs: []AttrSpec{num("dtype"), num("sample_size"), dec("seed")},
			Infer: inferMultinomial, Compile: compileMultinomial},
	}
}

// generator is the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998),
// the generator behind the ONNX reference implementation.
type generator struct {
	state [624]uint32
	next  int
}

// newGenerator returns the generator of node n. A seed that is a whole number
// gives the numbers that it gives in numpy's RandomState.
func newGenerator(n *graph.Node) *generator {
	h := fnv.New32a()
	if v := n.Output(0); v != nil {
		h.Write([]byte(v.Name()))
	}
	seed := h.Sum32()
	switch a := n.Attr("seed"); {
	case a == nil:
	case a.Kind == graph.AttrInt:
		seed = uint32(n.Int("seed", 0))
	default:
		var whole [1]int64
		tensor.Read(tensor.Scalar(n.Float("seed", 0)), 0, whole[:])
		seed = uint32(whole[0])
	}
	g := &generator{next: 624}
	g.state[0] = seed
	for i := 1; i < len(g.state); i++ {
		p := g.state[i-1]
		g.state[i] = 1812433253*(p^p>>30) + uint32(i)
	}
	return g
}

func (g *generator) uint32() uint32 {
	if g.next == len(g.state) {
		for i := range g.state {
			y := g.state[i]&0x80000000 | g.state[(i+1)%624]&0x7fffffff
			g.state[i] = g.state[(i+397)%624] ^ y>>1 ^ y&1*0x9908b0df
		}
		g.next = 0
	}
	y := g.state[g.next]
	g.next++
	y ^= y >> 11
	y ^= y << 7 & 0x9d2c5680
	y ^= y << 15 & 0xefc60000
	return y ^ y>>18
}

// uniform returns a number in [0, 1) of 53 random bits.
func (g *generator) uniform() float64 {
	high, low := g.uint32()>>5, g.uint32()>>6
	return (float64(high)*(1<<26) + float64(low)) / (1 << 53)
}

// normals fills v with standard normal numbers (Box and Muller, 1958).
func (g *generator) normals(v []float64) {
	for i := 0; i < len(v); i += 2 {
		r, a := math.Sqrt(-2*math.Log(1-g.uniform())), 2*math.Pi*g.uniform()
		v[i] = r * math.Cos(a)
		if i+1 < len(v) {
			v[i+1] = r * math.Sin(a)
		}
	}
}

func inferRandom(c *Inference) error {
	elem, err := dtypeAttr(c.Node, "dtype", tensor.Float32)
	if err != nil {
		return err
	}
	c.Tensor(0, elem, graph.Shape(toDims(c.Node.Ints("shape"))))
	return nil
}

func inferRandomLike(c *Inference) error {
	elem, err := dtypeAttr(c.Node, "dtype", c.Elem(0))
	if err != nil {
		return err
	}
	c.Tensor(0, elem, bare(c.Shape(0)))
	return nil
}

func compileRandom(s *Site) (Kernel, error) {
	n := s.Node
	normal := n.Op.Type == "RandomNormal" || n.Op.Type == "RandomNormalLike"
	like := n.NumInputs() > 0
	a, b := float64(n.Float("low", 0)), float64(n.Float("high", 1))
	if normal {
		a, b = float64(n.Float("mean", 0)), float64(n.Float("scale", 1))
	}
	if _, err := dtypeAttr(n, "dtype", tensor.Float32); err != nil {
		return nil, s.Errorf("%v", err)
	}
	return func(c *Call) error {
		shape, def := []int(nil), tensor.Float32
		var err error
		if like {
			shape, def = c.In(0).Shape(), c.In(0).DType()
		} else if shape, err = sizesOf(n.Ints("shape")); err != nil {
			return err
		}
		dtype, err := dtypeAttr(n, "dtype", def)
		if err != nil {
			return err
		}
		out, err := newNumbers(c, dtype, shape)
		if err != nil {
			return err
		}
		v := make([]float64, out.Len())
		g := newGenerator(n)
		if normal {
			g.normals(v)
			for i := range v {
				v[i] = a + b*v[i]
			}
		} else {
			for i := range v {
				v[i] = a + (b-a)*g.uniform()
			}
		}
		tensor.Write(out, 0, v)
		return nil
	}, nil
}

// newNumbers allocates output 0 of a numeric type.
func newNumbers(c *Call, dtype tensor.DType, shape []int) (*tensor.Tensor, error) {
	if !dtype.Convertible() {
		return nil, fmt.Errorf("element type %v holds no numbers", dtype)
	}
	return c.Out(0, dtype, shape...)
}

func compileBernoulli(s *Site) (Kernel, error) {
	n := s.Node
	return func(c *Call) error {
		x := c.In(0)
		dtype, err := dtypeAttr(n, "dtype", x.DType())
		if err != nil {
			return err
		}
		p, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		out, err := newNumbers(c, dtype, x.Shape())
		if err != nil {
			return err
		}
		v := make([]float64, len(p))
		g := newGenerator(n)
		for i := range v {
			if g.uniform() < p[i] {
				v[i] = 1
			}
		}
		tensor.Write(out, 0, v)
		return nil
	}, nil
}

func inferMultinomial(c *Inference) error {
	elem, err := dtypeAttr(c.Node, "dtype", tensor.Int32)
	if err != nil {
		return err
	}
	out := graph.Shape{{}, graph.D(c.Node.Int("sample_size", 1))}
	if in := c.Shape(0); len(in) == 2 {
		out[0] = bare(in)[0]
	}
	c.Tensor(0, elem, out)
	return nil
}

func compileMultinomial(s *Site) (Kernel, error) {
	n := s.Node
	samples := n.Int("sample_size", 1)
	dtype, err := dtypeAttr(n, "dtype", tensor.Int32)
	if err != nil || samples < 0 || samples > 1<<40 || dtype != tensor.Int32 && dtype != tensor.Int64 {
		return nil, s.Errorf("sample_size %d of element type %v", samples, dtype)
	}
	return func(c *Call) error {
		x := c.In(0)
		if x.Rank() != 2 || x.Shape()[1] == 0 {
			return fmt.Errorf("input is %v, want a row of log-probabilities per sample", x)
		}
		logits, err := tensor.Float64s(x)
		if err != nil {
			return err
		}
		rows, classes := x.Shape()[0], x.Shape()[1]
		out, err := c.Out(0, dtype, rows, int(samples))
		if err != nil {
			return err
		}
		g := newGenerator(n)
		sums := make([]float64, classes)
		picks := make([]int64, min(samples, 1<<12))
		for r := range rows {
			row := logits[r*classes : (r+1)*classes]
			top, total := math.Inf(-1), 0.0
			for _, v := range row {
				top = max(top, v)
			}
			for i, v := range row {
				total += math.Exp(v - top)
				sums[i] = total
			}
			for at := 0; at < int(samples); at += len(picks) {
				if err := c.Ctx.Err(); err != nil {
					return err
				}
				some := picks[:min(len(picks), int(samples)-at)]
				for i := range some {
					u, k := g.uniform()*total, 0
					for k < classes-1 && sums[k] <= u {
						k++
					}
					some[i] = int64(k)
				}
				tensor.Write(out, r*int(samples)+at, some)
			}
		}
		return nil
	}, nil
}
