package ops

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestForestPaths compares trees walked side by side with trees walked one by
// one, through every decision.
func TestForestPaths(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, mode := range []uint8{0, 1} {
		f := &forest{merge: 1, targets: 3}
		const features = 5
		var grow func(depth int) int32
		grow = func(depth int) int32 {
			i := int32(len(f.nodes))
			if depth == 0 || rng.IntN(4) == 0 {
				from := int32(len(f.votes))
				for range rng.IntN(4) {
					f.votes = append(f.votes, vote{int32(rng.IntN(f.targets)), rng.Float64() - .5})
				}
				f.nodes = append(f.nodes, treeNode{mode: leafMode, yes: from, no: int32(len(f.votes))})
				return i
			}
			f.nodes = append(f.nodes, treeNode{mode: mode, feature: int32(rng.IntN(features)), value: float64(rng.IntN(4))})
			yes := grow(depth - 1)
			no := grow(depth - 1)
			f.nodes[i].yes, f.nodes[i].no = yes, no
			return i
		}
		for range 11 {
			f.roots = append(f.roots, grow(6))
		}
		f.prepare()
		if err := f.check(); err != nil || f.paths == nil {
			t.Fatalf("check: %v, paths: %v", err, f.paths != nil)
		}
		slow := *f
		slow.paths = nil
		for range 200 {
			x := make([]float64, features)
			for i := range x {
				x[i] = float64(rng.IntN(5)) - .5*float64(rng.IntN(2))
				if rng.IntN(20) == 0 {
					x[i] = math.NaN()
				}
			}
			got, want, voted := make([]float64, f.targets), make([]float64, f.targets), make([]bool, f.targets)
			f.score(x, got, voted)
			slow.score(x, want, voted)
			if !slices.Equal(got, want) {
				t.Fatalf("mode %d: scores of %v are %v, want %v", mode, x, got, want)
			}
		}
	}
}
