package kernels

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/internal/par"
)

func TestPoolBlocks(t *testing.T) {
	pool := par.New(2)
	pool.Begin()
	defer pool.End()
	nan := float32(math.NaN())
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(61, 62))
		for range 300 {
			var a [2]PoolAxis
			for i := range a {
				k, d := 1+r.IntN(4), 1+r.IntN(2)
				p := PoolAxis{In: 1 + r.IntN(30), Kernel: k, Stride: 1 + r.IntN(3), Dilation: d, Begin: r.IntN(k * d)}
				// The last windows may lie partly or wholly behind the input.
				p.Out = 1 + (p.In+p.Begin)/p.Stride
				for o := range p.Out {
					if first := o*p.Stride - p.Begin; first >= 0 && first+(k-1)*d < p.In {
						p.Count = append(p.Count, k)
					} else {
						p.Count = append(p.Count, 1+r.IntN(k))
					}
				}
				a[i] = p
			}
			planes := 1 + r.IntN(3)
			x := randoms(t, r, planes*a[0].In*a[1].In*BlockSize)
			if r.IntN(3) == 0 {
				for range 5 {
					x[r.IntN(len(x))] = []float32{nan, float32(math.Inf(1)), float32(math.Inf(-1))}[r.IntN(3)]
				}
			}
			y := guarded[float32](t, planes*a[0].Out*a[1].Out*BlockSize)
			mean := r.IntN(2) == 0
			if err := PoolBlocks(pool, planes, a[0], a[1], x, y, mean); err != nil {
				t.Fatal(err)
			}
			for i, got := range y {
				lane, ox := i%BlockSize, i/BlockSize%a[1].Out
				oy, plane := i/BlockSize/a[1].Out%a[0].Out, i/BlockSize/a[1].Out/a[0].Out
				most, sum := float32(math.Inf(-1)), float32(0)
				for ky := range a[0].Kernel {
					for kx := range a[1].Kernel {
						iy, ix := oy*a[0].Stride-a[0].Begin+ky*a[0].Dilation, ox*a[1].Stride-a[1].Begin+kx*a[1].Dilation
						if uint(iy) >= uint(a[0].In) || uint(ix) >= uint(a[1].In) {
							continue
						}
						v := x[((plane*a[0].In+iy)*a[1].In+ix)*BlockSize+lane]
						if v > most || v != v {
							most = v
						}
						sum += v
					}
				}
				want := most
				if mean {
					want = sum / float32(a[0].Count[oy]*a[1].Count[ox])
				}
				if got != want && (got == got || want == want) {
					t.Fatalf("rows %+v, columns %+v, mean %v: element %d is %v, want %v", a[0], a[1], mean, i, got, want)
				}
			}
		}
	})
	one := PoolAxis{In: 2, Out: 2, Kernel: 1, Stride: 1, Dilation: 1}
	if err := PoolBlocks(nil, 1, one, one, make([]float32, 64), make([]float32, 63), false); err == nil {
		t.Error("short output: no error")
	}
	if err := PoolBlocks(nil, 1, one, one, make([]float32, 64), make([]float32, 64), true); err == nil {
		t.Error("mean without counts: no error")
	}
}
