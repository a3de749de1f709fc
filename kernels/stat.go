package kernels

import (
	"math"
	"sync"
)

// Extrema are the least and the greatest finite element of a slice and how many
// elements are not finite. Without a finite element Min is +Inf and Max is
// -Inf. A zero has no sign.
type Extrema struct {
	Min, Max float32
	NaN, Inf int
}

// NoExtrema returns the Extrema of no elements.
func NoExtrema() Extrema {
	inf := float32(math.Inf(1))
	return Extrema{Min: inf, Max: -inf}
}

// Merge returns the Extrema of the elements of both.
func (e Extrema) Merge(o Extrema) Extrema {
	return Extrema{min(e.Min, o.Min), max(e.Max, o.Max), e.NaN + o.NaN, e.Inf + o.Inf}
}

// MinMax returns the Extrema of src.
func MinMax(src []float32) Extrema {
	e := NoExtrema()
	n := minMaxVec(&e, ptr(src), len(src))
	for _, x := range src[n:] {
		switch {
		case x != x:
			e.NaN++
		case x-x != 0:
			e.Inf++
		default:
			if x < e.Min {
				e.Min = x
			}
			if x > e.Max {
				e.Max = x
			}
		}
	}
	e.Min += 0 // +0 for -0
	e.Max += 0
	return e
}

// MinMaxChannels sets lows[c] and highs[c] to the least and the greatest finite
// element of channel c of src, which has the shape [outer, C, inner] with
// C = len(lows) = len(highs), as MinMax does, and returns the numbers of NaN
// and of infinite elements of src. len(src) is a multiple of C*inner.
func MinMaxChannels(lows, highs, src []float32, inner int) (nans, infs int) {
	none := NoExtrema()
	for c := range lows {
		lows[c], highs[c] = none.Min, none.Max
	}
	if len(src) == 0 {
		return 0, 0
	}
	if inner == 1 {
		return minMaxColumns(lows, highs, src)
	}
	for c := 0; len(src) > 0; src = src[inner:] {
		e := MinMax(src[:inner])
		lows[c], highs[c] = min(lows[c], e.Min), max(highs[c], e.Max)
		nans, infs = nans+e.NaN, infs+e.Inf
		if c++; c == len(lows) {
			c = 0
		}
	}
	return nans, infs
}

func minMaxColumns(lows, highs, src []float32) (nans, infs int) {
	all := MinMax(src)
	for ; len(src) > 0; src = src[len(lows):] {
		n := 0
		if all.Inf == 0 {
			n = minMaxColumnsVec(ptr(lows), ptr(highs), ptr(src), len(lows))
		}
		for c := n; c < len(lows); c++ {
			x := src[c]
			if x-x != 0 {
				continue
			}
			if x < lows[c] {
				lows[c] = x
			}
			if x > highs[c] {
				highs[c] = x
			}
		}
	}
	for c := range lows {
		lows[c] += 0
		highs[c] += 0
	}
	return all.NaN, all.Inf
}

// Moments returns the sums of the elements of src, of their squares and of
// their magnitudes. Element i goes to lane i%16 of float64 sums, and the lanes
// are added in pairs j and j+8, then j+4, j+2, j+1.
func Moments(src []float32) (sum, squares, magnitudes float64) {
	var s [3][16]float64
	addMoments(src, &s)
	return foldLanes(&s[0]), foldLanes(&s[1]), foldLanes(&s[2])
}

func addMoments(src []float32, s *[3][16]float64) {
	n := momentsVec(ptr(src), len(src), s)
	for i, x := range src[n:] {
		v := float64(x)
		s[0][i%16] += v
		s[1][i%16] += float64(v * v)
		s[2][i%16] += math.Abs(v)
	}
}

// BlockStats are statistics of 16 columns: extrema and sums of each, and the
// sums of all squares and magnitudes.
type BlockStats struct {
	Min, Max            [BlockSize]float32
	Sum                 [BlockSize]float64
	Squares, Magnitudes float64
}

// Extrema returns the extrema of all columns.
func (b *BlockStats) Extrema() Extrema {
	e := NoExtrema()
	for k := range BlockSize {
		e.Min, e.Max = min(e.Min, b.Min[k]), max(e.Max, b.Max[k])
	}
	return e
}

// BlockMoments returns the statistics of rows of 16 elements, at least one, and
// whether all elements are finite; if not, the statistics are undefined.
func BlockMoments(src []float32) (b BlockStats, finite bool) {
	if finite = blockExtrema(&b.Min, &b.Max, src); !finite {
		return b, false
	}
	var s [3][16]float64
	addMoments(src, &s)
	b.Sum, b.Squares, b.Magnitudes = s[0], foldLanes(&s[1]), foldLanes(&s[2])
	return b, true
}

func blockExtrema(low, high *[BlockSize]float32, src []float32) (finite bool) {
	if done, finite := blockExtremaVec(low, high, src); !done {
		copy(low[:], src)
		copy(high[:], src)
		for i, x := range src {
			if x-x != 0 {
				return false
			}
			k := i % BlockSize
			low[k], high[k] = min(low[k], x), max(high[k], x)
		}
	} else if !finite {
		return false
	}
	for k := range BlockSize { // +0 for -0
		low[k] += 0
		high[k] += 0
	}
	return true
}

// foldLanes adds lanes j and j+8, then j+4, j+2, j+1.
func foldLanes(s *[16]float64) float64 {
	var a [8]float64
	for j := range a {
		a[j] = s[j] + s[j+8]
	}
	return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
}

// Histogram adds the elements of src to counts: bin b, of width 2^k, counts the
// x with (b+offset)*2^k <= x < (b+offset+1)*2^k, exactly. Where elements are
// not finite or outside all bins it counts nothing and returns how many they
// are.
func Histogram(counts []uint64, src []float32, k, offset int) (outside int) {
	e := MinMax(src)
	if len(src) == 0 {
		return 0
	}
	bin := binOf(k, offset)
	if e.NaN+e.Inf > 0 || bin(e.Min) < 0 || bin(e.Max) >= float64(len(counts)) {
		for _, x := range src {
			if b := bin(x); !(b >= 0 && b < float64(len(counts))) {
				outside++
			}
		}
		return outside
	}
	HistogramWithin(counts, src, e, k, offset)
	return 0
}

// binOf returns the bin of x as a whole number.
func binOf(k, offset int) func(x float32) float64 {
	return func(x float32) float64 { return math.Floor(math.Ldexp(float64(x), -k)) - float64(offset) }
}

// HistogramWithin is Histogram of elements that are known to be finite and
// within the bins: e holds their MinMax, or bounds of them.
func HistogramWithin(counts []uint64, src []float32, e Extrema, k, offset int) {
	if len(src) == 0 {
		return
	}
	bin := binOf(k, offset)
	lo, hi := int(bin(e.Min)), int(bin(e.Max))
	used := counts[lo : hi+1]
	offset += lo
	if !histogramVec(used, src, k, offset) {
		inverse := math.Ldexp(1, -k)
		for _, x := range src {
			used[int(math.Floor(float64(x)*inverse))-offset]++
		}
	}
}

// privateBins is the most bins that the private tables are worth their memory
// for, in units of 16 bytes.
const privateBins = 1 << 15

// privateTables holds tables of zeros.
var privateTables = sync.Pool{New: func() any { return new([privateBins + 3][8]uint16) }}

// histogramVec counts src where private tables pay, else it returns false.
// counts covers all of src.
func histogramVec(counts []uint64, src []float32, k, offset int) bool {
	const limit = 1 << 24 // bins at such a distance from 0 have exact float32 edges
	if len(counts) > privateBins || len(src) < len(counts)/2+64 || k < -120 || k > 120 ||
		offset < -limit || offset+len(counts) > limit || !canBin() {
		return false
	}
	tables := privateTables.Get().(*[privateBins + 3][8]uint16)
	const most = 1 << 17 // elements; foldBins adds up counters below 1<<15
	for len(src) > 0 {
		part := src[:min(len(src), most)]
		src = src[len(part):]
		inverse := float32(math.Ldexp(1, -k))
		n := binsVec(counts, tables[:], part, inverse, offset)
		for _, x := range part[n:] {
			tables[int(math.Floor(float64(x)*float64(inverse)))-offset][0]++
		}
		done := foldBinsVec(ptr(counts), &tables[0], len(counts))
		for i := done; i < len(counts); i++ {
			t := &tables[i]
			for _, c := range t {
				counts[i] += uint64(c)
			}
			*t = [8]uint16{}
		}
	}
	privateTables.Put(tables)
	return true
}

// AddColumns adds row, element by element, to sums of the same length.
func AddColumns(sums []float64, row []float32) {
	row = row[:len(sums)]
	for i := addColumnsVec(ptr(sums), ptr(row), len(sums)); i < len(sums); i++ {
		sums[i] += float64(row[i])
	}
}
