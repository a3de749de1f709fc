package auto

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The flow is as large as the least cut of all, found by trying them, and what
// is reached in the end is one of these.
func TestFlow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		n := 2 + r.IntN(7)
		f := &flow{}
		f.grow(n)
		type link struct {
			from, to int
			c        float64
		}
		var links []link
		for range r.IntN(3 * n) {
			l := link{r.IntN(n), r.IntN(n), float64(r.IntN(9))}
			if r.IntN(8) == 0 {
				l.c = math.Inf(1)
			}
			links = append(links, l)
			f.add(l.from, l.to, l.c)
		}
		weight := func(in func(int) bool) float64 {
			sum := 0.0
			for _, l := range links {
				if in(l.from) && !in(l.to) {
					sum += l.c
				}
			}
			return sum
		}
		want := math.Inf(1)
		for set := range 1 << n {
			if set&1 != 0 && set&2 == 0 {
				want = math.Min(want, weight(func(i int) bool { return set>>i&1 != 0 }))
			}
		}
		got := f.run(0, 1)
		if math.Abs(got-want) > 1e-9 {
			t.Fatalf("flow of %v, the least cut has %v: %v", got, want, links)
		}
		if math.IsInf(want, 1) {
			continue
		}
		side := f.reached(0)
		if side[1] || math.Abs(weight(func(i int) bool { return side[i] })-want) > 1e-9 {
			t.Fatalf("side %v is no least cut of %v", side, links)
		}
	}
}
