package main

import (
	"math"

	"github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

const (
	absMask = KI(0x7fffffff)
	infBits = KI(0x7f800000)
)

var infinity = K(math.Inf(1))

func stat(c *build.Context) {
	levels(c, func(g *gen) {
		g.minMax()
		g.minMaxFinite()
		g.minMaxColumns()
		g.blockExtrema()
		g.moments()
		g.sums()
		if !g.z {
			g.laneSums()
		}
		if g.z {
			g.binsList()
		} else { // no faster with wider vectors: the counting takes the time
			g.bins()
			g.countList()
			g.foldBins()
			g.addColumns()
		}
	})
}

// extrema emits the loops that take the minimum and the maximum of src in four
// vectors each, of which vector i takes the vectors of src that are i modulo
// each, and find whether all is finite: 0*x summed up is NaN if not. MIN and MAX
// keep the accumulator at NaN.
func (g *gen) extrema(src, n reg.Register, each int) (low, high, sum [4]V) {
	zero := g.zero()
	var first [4]V
	for i := range 4 {
		if i < each {
			first[i] = g.load(g.at(src, i))
		}
		low[i], high[i], sum[i] = g.reg(), g.reg(), g.reg()
		g.VMOVAPS(first[i%each], low[i])
		g.VMOVAPS(first[i%each], high[i])
		g.VMOVAPS(zero, sum[i])
	}
	for _, vectors := range []int{4, each} {
		g.each(n, vectors*g.lanes(), func() {
			for i := range vectors {
				v := g.load(g.at(src, i))
				g.VMINPS(low[i], v, low[i])
				g.VMAXPS(high[i], v, high[i])
				g.VFMADD231PS(v, zero, sum[i])
			}
		}, stream{src, 4})
	}
	for i := each; i < 4; i++ {
		g.VMINPS(low[i%each], low[i], low[i%each])
		g.VMAXPS(high[i%each], high[i], high[i%each])
	}
	for i := range 3 {
		g.VADDPS(sum[0], sum[i+1], sum[0])
	}
	return low, high, sum
}

func (g *gen) minMax() {
	g.fn("minMax", "func(src *float32, n int) (low, high, zero float32)",
		"returns the minimum, the maximum and 0, or NaN in place of 0 where an element is NaN or infinite"+g.multiple(8)+", and not 0.")
	low, high, sum := g.extrema(g.param("src"), g.param("n"), 1)
	g.Store(g.fold(g.VMINPS, low[0]), g.Return("low"))
	g.Store(g.fold(g.VMAXPS, high[0]), g.Return("high"))
	g.Store(g.fold(g.VADDPS, sum[0]), g.Return("zero"))
	g.ret()
}

func (g *gen) minMaxFinite() {
	g.fn("minMaxFinite", "func(src *float32, n int) (low, high float32, nans, infs int)",
		"returns the minimum and the maximum of the finite elements, +Inf and -Inf where there is none, and the numbers of NaN and of infinities"+
			g.multiple(8)+", and below 1<<31.")
	src, n := g.param("src"), g.param("n")
	low, high, nans, infs := g.hoist(infinity), g.hoist(-infinity), g.zero(), g.zero()
	g.each(n, g.lanes(), func() {
		v := g.load(Mem{Base: src})
		a := g.and(v, absMask)
		finite := g.cmp(lt, a, infinity)
		l, h := g.hoist(infinity), g.hoist(-infinity)
		g.VMINPS(low, g.sel(finite, v, l), low)
		g.VMAXPS(high, g.sel(finite, v, h), high)
		g.count(g.cmp(un, v, v), nans)
		g.count(g.cmp(eq, a, infinity), infs)
	}, stream{src, 4})
	for _, c := range []struct {
		v    V
		name string
	}{{nans, "nans"}, {infs, "infs"}} {
		s, r := g.fold(g.VPADDD, c.v), g.GP64()
		g.VMOVD(s, r.As32())
		g.Store(r, g.Return(c.name))
	}
	g.Store(g.fold(g.VMINPS, low), g.Return("low"))
	g.Store(g.fold(g.VMAXPS, high), g.Return("high"))
	g.ret()
}

func (g *gen) minMaxColumns() {
	g.fn("minMaxColumns", "func(low, high, src *float32, n int)",
		"lowers low and raises high to the elements of src that are not NaN"+g.multiple(8)+".")
	low, high, src, n := g.param("low"), g.param("high"), g.param("src"), g.param("n")
	g.each(n, g.lanes(), func() {
		v := g.load(Mem{Base: src})
		l, h := g.load(Mem{Base: low}), g.load(Mem{Base: high})
		g.VMINPS(l, v, l)
		g.VMAXPS(h, v, h)
		g.VMOVUPS(l, Mem{Base: low})
		g.VMOVUPS(h, Mem{Base: high})
	}, stream{src, 4}, stream{low, 4}, stream{high, 4})
	g.ret()
}

// blockExtrema is minMax by column of 16.
func (g *gen) blockExtrema() {
	g.fn("blockExtrema", "func(low, high *[16]float32, src *float32, n int) (zero float32)",
		"sets low and high to the extrema of 16 columns, and returns 0, or NaN where an element is NaN or infinite; n is a multiple of 16, and not 0.")
	low, high := g.param("low"), g.param("high")
	each := 16 / g.lanes() // vectors of a row
	l, h, sum := g.extrema(g.param("src"), g.param("n"), each)
	for i := range each {
		g.VMOVUPS(l[i], g.at(low, i))
		g.VMOVUPS(h[i], g.at(high, i))
	}
	g.Store(g.fold(g.VADDPS, sum[0]), g.ReturnIndex(0))
	g.ret()
}

// sums16 emits the loop of sums of 16 float64 lanes: lane j takes the elements
// i with i%16 == j. f adds the eight (four) doubles v to its sums of group i.
func (g *gen) sums16(src, n reg.Register, f func(i int, v V)) {
	groups := 64 / g.width() * 2
	body := func(load func(i int, r V)) {
		for i := range groups {
			r := g.reg()
			load(i, r)
			f(i, r)
		}
	}
	g.each(n, 16, func() {
		body(func(i int, r V) { g.VCVTPS2PD(Mem{Base: src, Disp: i * g.width() / 2}, r) })
	}, stream{src, 4})
}

// accs returns the registers of 16 float64 sums, in order.
func (g *gen) accs() []V {
	s := make([]V, 64/g.width()*2)
	for i := range s {
		s[i] = g.zero()
	}
	return s
}

func (g *gen) moments() {
	g.fn("moments", "func(src *float32, n int, sums *[3][16]float64)",
		"adds element i, its square and its magnitude to lane i%16 of the sums; n is a multiple of 16.")
	src, n, out := g.param("src"), g.param("n"), g.param("sums")
	var s [3][]V
	for i := range s {
		s[i] = g.accs()
		for j, r := range s[i] {
			g.VMOVUPD(Mem{Base: out, Disp: i*128 + j*g.width()}, r)
		}
	}
	abs := g.reg()
	if g.z {
		g.VPTERNLOGD(U8(0xff), abs, abs, abs)
	} else {
		g.VPCMPEQD(abs, abs, abs)
	}
	g.VPSRLQ(U8(1), abs, abs)
	g.sums16(src, n, func(i int, v V) {
		g.VADDPD(v, s[0][i], s[0][i])
		g.VFMADD231PD(v, v, s[1][i])
		g.VANDPD(abs, v, v)
		g.VADDPD(v, s[2][i], s[2][i])
	})
	for i := range s {
		for j, r := range s[i] {
			g.VMOVUPD(r, Mem{Base: out, Disp: i*128 + j*g.width()})
		}
	}
	g.ret()
}

func (g *gen) sums() {
	g.fn("sums", "func(src *float32, n int, sums *[16]float64)", "adds element i to lane i%16 of the sums; n is a multiple of 16.")
	src, n, out := g.param("src"), g.param("n"), g.param("sums")
	s := g.accs()
	for j, r := range s {
		g.VMOVUPD(Mem{Base: out, Disp: j * g.width()}, r)
	}
	g.sums16(src, n, func(i int, v V) { g.VADDPD(v, s[i], s[i]) })
	for j, r := range s {
		g.VMOVUPD(r, Mem{Base: out, Disp: j * g.width()})
	}
	g.ret()
}

// laneSums has lanes of float32, eight at any level.
func (g *gen) laneSums() {
	g.fn("laneSums", "func(src *float32, n int, sums *[8]float32)", "adds element i to lane i%8 of the sums; n is a multiple of 8.")
	src, n, out := g.param("src"), g.param("n"), g.param("sums")
	s := g.load(Mem{Base: out})
	g.each(n, 8, func() { g.VADDPS(Mem{Base: src}, s, s) }, stream{src, 4})
	g.VMOVUPS(s, Mem{Base: out})
	g.ret()

	g.fn("laneSquares", "func(src *float32, n int, mean float32, sums *[8]float32)",
		"adds the square of src-mean, rounded once with the sum, of element i to lane i%8 of the sums; n is a multiple of 8.")
	src, n, out = g.param("src"), g.param("n"), g.param("sums")
	mean := g.broadcast("mean")
	s = g.load(Mem{Base: out})
	g.each(n, 8, func() {
		d := g.sub(g.load(Mem{Base: src}), mean)
		g.VFMADD231PS(d, d, s)
	}, stream{src, 4})
	g.VMOVUPS(s, Mem{Base: out})
	g.ret()
}

// bins counts in eight private counters for each bin, so that equal neighbours
// do not wait for each other's stores.
func (g *gen) bins() {
	g.fn("bins", "func(counts *[8]uint16, src *float32, n int, inverse float32, offset int32)",
		"counts element i in counts[floor(src*inverse)-offset][i%8]; n is a multiple of 16.")
	counts, src, n := g.param("counts"), g.param("src"), g.param("n")
	inverse, offset := g.broadcast("inverse"), g.broadcast("offset")
	buf := g.AllocLocal(64)
	g.each(n, 16, func() {
		for i := range 2 {
			g.VMOVDQU(g.binOf(g.load(g.at(src, i)), inverse, offset), buf.Offset(i*32))
		}
		g.increment(counts, buf, 16)
	}, stream{src, 4})
	g.ret()
}

// increment counts n elements whose counters lie in the bytes from list on, 16 a
// bin: the i-th in counter i%8.
func (g *gen) increment(counts reg.Register, list Mem, n int) {
	for i := 0; i < n; i += 2 {
		a, b := g.GP64(), g.GP64()
		g.MOVQ(list.Offset(i*4), a)
		g.MOVL(a.As32(), b.As32())
		g.SHRQ(U8(32), a)
		g.INCW(Mem{Base: counts, Index: b, Scale: 1, Disp: i % 8 * 2})
		g.INCW(Mem{Base: counts, Index: a, Scale: 1, Disp: (i + 1) % 8 * 2})
	}
}

// binOf returns where the counters of the bins of v lie, in bytes.
func (g *gen) binOf(v, inverse, offset V) V {
	// A negative product that underflows to 0 is below 0 all the same.
	p := g.mul(v, inverse)
	p = g.sel(g.cmp(lt, v, K(0)), g.min(p, KI(0x80000001)), p)
	b := g.subi(g.toInt(g.round(p, down)), offset)
	g.VPSLLD(U8(4), b, b)
	return b
}

// binsList leaves out zeros, of which rectifiers make so many that not to count
// them one by one saves more than the list takes.
func (g *gen) binsList() {
	g.fn("binsList", "func(list *int32, src *float32, n int, inverse float32, offset int32) (length int)",
		"lists 16*(floor(src*inverse)-offset) of the elements that are not 0; n is a multiple of 16, and list has room for as many.")
	list, src, n := g.param("list"), g.param("src"), g.param("n")
	inverse, offset := g.broadcast("inverse"), g.broadcast("offset")
	start := g.GP64()
	g.MOVQ(list, start)
	g.each(n, 16, func() {
		v := g.load(Mem{Base: src})
		b := g.binOf(v, inverse, offset)
		m := g.cmp(ne, v, K(0))
		kept, k := g.reg(), g.GP32()
		g.VPCOMPRESSD_Z(b, m, kept)
		g.VMOVDQU32(kept, Mem{Base: list})
		g.KMOVW(m, k)
		g.POPCNTL(k, k)
		g.LEAQ(Mem{Base: list, Index: k.As64(), Scale: 4}, list)
	}, stream{src, 4})
	g.SUBQ(start, list)
	g.SHRQ(U8(2), list)
	g.Store(list, g.ReturnIndex(0))
	g.ret()
}

// countList counts as bins does.
func (g *gen) countList() {
	g.fn("countList", "func(counts *[8]uint16, list *int32, n int)", "counts element i of the list in counts[list[i]/16][i%8]; n is a multiple of 8.")
	counts, list, n := g.param("counts"), g.param("list"), g.param("n")
	g.each(n, 8, func() { g.increment(counts, Mem{Base: list}, 8) }, stream{list, 4})
	g.RET()
}

// foldBins adds up private counters of at most 32767.
func (g *gen) foldBins() {
	g.fn("foldBins", "func(counts *uint64, private *[8]uint16, n int)",
		"adds the private counters of each bin, below 1<<15, to its count and sets them to 0; n is a multiple of 4.")
	counts, private, n := g.param("counts"), g.param("private"), g.param("n")
	ones, zero := g.reg(), g.zero()
	g.VPCMPEQW(ones, ones, ones)
	g.VPSRLW(U8(15), ones, ones)
	g.each(n, 4, func() {
		a, b := g.load(Mem{Base: private}), g.load(Mem{Base: private, Disp: 32})
		g.VMOVDQU(zero, Mem{Base: private})
		g.VMOVDQU(zero, Mem{Base: private, Disp: 32})
		g.VPMADDWD(ones, a, a)
		g.VPMADDWD(ones, b, b)
		g.VPHADDD(b, a, a) // bins 0 0 2 2 | 1 1 3 3
		g.VPHADDD(a, a, a) // bins 0 2 . . | 1 3 . .
		hi, lo := g.XMM(), g.XMM()
		g.VEXTRACTI128(U8(1), a, hi)
		g.VPUNPCKLDQ(hi, a.AsX(), lo) // bins 0 1 2 3
		wide := g.reg()
		g.VPMOVZXDQ(lo, wide)
		g.VPADDQ(Mem{Base: counts}, wide, wide)
		g.VMOVDQU(wide, Mem{Base: counts})
	}, stream{counts, 8}, stream{private, 64 / 4})
	g.ret()
}

// addColumns has lanes of float64, for rows of channels.
func (g *gen) addColumns() {
	g.fn("addColumns", "func(sums *float64, src *float32, n int)", "adds src to sums; n is a multiple of 4.")
	sums, src, n := g.param("sums"), g.param("src"), g.param("n")
	g.each(n, 4, func() {
		v := g.reg()
		g.VCVTPS2PD(Mem{Base: src}, v)
		g.VADDPD(Mem{Base: sums}, v, v)
		g.VMOVUPD(v, Mem{Base: sums})
	}, stream{src, 4}, stream{sums, 8})
	g.ret()
}
