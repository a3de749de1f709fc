package auto

import (
	"maps"
	"slices"
	"testing"
)

// What does harm in 8 bits keeps 16, and little else.
func TestPruned(t *testing.T) {
	for _, c := range []struct {
		name string
		fine []int
		harm []int
		want []int
	}{
		{"one of eight", []int{1, 2, 3, 4, 5, 6, 7, 8}, []int{3}, []int{3}},
		{"all", []int{1, 2, 3}, []int{1, 2, 3}, []int{1, 2, 3}},
		{"a single one", []int{5}, []int{5}, []int{5}},
		{"two apart", []int{1, 2, 3, 4}, []int{1, 4}, []int{1, 4}},
		{"more than it tries", []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, []int{2, 5, 9, 14}, []int{1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}},
	} {
		t.Run(c.name, func(t *testing.T) {
			size, tries := map[int]int{}, 0
			for _, id := range c.fine {
				size[id] = 100 - id // so that the order is theirs
			}
			try := func(half []int) (*candidate, error) {
				tries++
				return (&candidate{}).storing(half, 16), nil
			}
			passes := func(x *candidate) bool {
				return !slices.ContainsFunc(c.harm, func(id int) bool { return x.qdq.Least[id] == 0 })
			}
			best, err := pruned(&candidate{}, c.fine, size, try, passes)
			if err != nil {
				t.Fatal(err)
			}
			got := c.fine
			if best.qdq.Least != nil {
				got = slices.Sorted(maps.Keys(best.qdq.Least))
			}
			if tries > maxPrunes || !slices.Equal(got, c.want) {
				t.Errorf("%v after %d tries, want %v", got, tries, c.want)
			}
		})
	}
}
