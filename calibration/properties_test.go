package calibration

import (
	"bytes"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// drawStats makes statistics of one value over a few samples with indices of
// their own.
func drawStats(t *rapid.T, label string, first int) *Stats {
	o := NewObserver(8, 1)
	element := rapid.OneOf(rapid.Float32Range(-10, 10), rapid.Float32(), rapid.Just(float32(0)))
	for i := range rapid.IntRange(0, 3).Draw(t, label+" samples") {
		rows := rapid.IntRange(0, 3).Draw(t, "rows")
		x := rapid.SliceOfN(element, 6*rows, 6*rows).Draw(t, "x")
		if err := o.Update(first+i, []int{rows, 3, 2}, x); err != nil {
			t.Fatal(err)
		}
	}
	return o.Stats()
}

func merged(t *rapid.T, list ...*Stats) *Stats {
	s := list[0].Clone()
	for _, m := range list[1:] {
		if err := s.Merge(m); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// equalStats compares by the form in a file, which holds everything.
func equalStats(t *rapid.T, a, b *Stats) bool {
	encode := func(s *Stats) []byte {
		text, err := new(writer).stats(s)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	return bytes.Equal(encode(a), encode(b))
}

// TestMergeProperties: Merge is commutative and associative, and nothing is its
// identity.
func TestMergeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawStats(t, "a", 0), drawStats(t, "b", 10), drawStats(t, "c", 20)
		if !equalStats(t, merged(t, a, b), merged(t, b, a)) {
			t.Fatal("a and b differ from b and a")
		}
		if !equalStats(t, merged(t, merged(t, a, b), c), merged(t, a, merged(t, b, c))) {
			t.Fatal("the grouping matters")
		}
		none := NewObserver(8, 1).Stats()
		if !equalStats(t, merged(t, a, none), a) || !equalStats(t, merged(t, none, a), a) {
			t.Fatal("nothing changes something")
		}
	})
}

// TestBatchProperties: how samples are cut into batches changes no count, range
// or histogram, and no exact element.
func TestBatchProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.IntRange(1, 12).Draw(t, "rows")
		x := rapid.SliceOfN(rapid.OneOf(rapid.Float32Range(-10, 10), rapid.Float32()), 6*rows, 6*rows).Draw(t, "x")
		whole, cut := NewObserver(8, 1), NewObserver(8, 1)
		if err := whole.Update(0, []int{rows, 3, 2}, x); err != nil {
			t.Fatal(err)
		}
		for from := 0; from < rows; {
			n := rapid.IntRange(1, rows-from).Draw(t, "batch")
			if err := cut.Update(0, []int{n, 3, 2}, x[6*from:6*(from+n)]); err != nil {
				t.Fatal(err)
			}
			from += n
		}
		a, b := whole.Stats(), cut.Stats()
		if !reflect.DeepEqual(a.Hist, b.Hist) || a.Count != b.Count || a.Min != b.Min || a.Max != b.Max ||
			!reflect.DeepEqual(a.Lowest, b.Lowest) || !reflect.DeepEqual(a.Highest, b.Highest) ||
			!reflect.DeepEqual(a.Samples, b.Samples) || !reflect.DeepEqual(a.Channels.Min, b.Channels.Min) || !reflect.DeepEqual(a.Channels.Max, b.Channels.Max) {
			t.Fatalf("at once %+v\nin batches %+v", a, b)
		}
		for _, m := range []Method{MinMax, MovingAverage, Percentile, Entropy, MSE, HistogramSearch, L1, Lp, Weighted, Auto} {
			o := MethodOptions{Levels: 4}
			r, err1 := Range(a, m, o)
			s, err2 := Range(b, m, o)
			if r != s || (err1 == nil) != (err2 == nil) {
				t.Fatalf("%s: at once %v %v, in batches %v %v", m, r, err1, s, err2)
			}
		}
	})
}

// TestTableProperties: shards merge to the bytes of one run in any order.
func TestTableProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		parts := tableParts(rapid.Uint64().Draw(r, "seed"))
		shards := rapid.IntRange(1, 5).Draw(r, "shards")
		var order []int
		for i := range shards {
			order = append(order, i)
		}
		var tables []*Table
		for _, i := range rapid.Permutation(order).Draw(r, "order") {
			tables = append(tables, tableOf(t, parts, 11, i, shards))
		}
		m, err := Merge(tables...)
		if err != nil {
			r.Fatal(err)
		}
		if !bytes.Equal(encode(t, m), encode(t, tableOf(t, parts, 11, 0, 1))) {
			r.Fatal("merged differs from one run")
		}
	})
}
