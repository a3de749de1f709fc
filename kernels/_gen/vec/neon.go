package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
)

// neon writes arm64 functions. The Go assembler lacks most vector instructions
// of floating point, so they are encoded here (Arm Architecture Reference
// Manual, C7.2). A function is a prologue, loops and an epilogue of straight
// code on values, to which 32 registers are given in order of appearance.
type neon struct {
	asm, stubs, dispatch strings.Builder
	ids                  *build.Context // source of names for values
	renamed              map[V]V
	fixed                map[V]int // values that live through the function
	consts               map[uint32]V
	order                []uint32 // constants in order of appearance
	body                 []ins
	params               map[string]param
	label                int
}

// ins computes dst from src; text prints it for their registers.
type ins struct {
	dst  V
	src  []V
	text func(d int, s []int) string
}

type param struct {
	typ    string
	offset int
	reg    int
}

// Encodings of instructions of three and of two registers.
const (
	fadd, fsub, fmul, fdiv, fmla = 0x4e20d400, 0x4ea0d400, 0x6e20dc00, 0x6e20fc00, 0x4e20cc00
	fmin, fmax                   = 0x4ea0f400, 0x4e20f400
	fcmeq, fcmge, fcmgt          = 0x4e20e400, 0x6e20e400, 0x6ea0e400
	vand, vorr, veor, bsl        = 0x4e201c00, 0x4ea01c00, 0x6e201c00, 0x6e601c00
	iadd, isub                   = 0x4ea08400, 0x6ea08400
	fadd64, fmla64, fabs64       = 0x4e60d400, 0x4e60cc00, 0x4ee0f800
	frintn, frintm, frintp       = 0x4e218800, 0x4e219800, 0x4ea18800
	fcvtns, scvtf, fsqrt, not    = 0x4e21a800, 0x4e21d800, 0x6ea1f800, 0x6e205800
	fminv, fmaxv                 = 0x6eb0f800, 0x6e30f800
	fcvtl64, fcvtl, fcvtn        = 0x0e617800, 0x0e217800, 0x0e216800
	xtn16, xtn8                  = 0x0e612800, 0x0e212800
	uxtl8, sxtl8, uxtl16, sxtl16 = 0x2f08a400, 0x0f08a400, 0x2f10a400, 0x0f10a400
	umax8, smax8                 = 0x6e206400, 0x4e206400
	upper                        = 1 << 30 // the form for the upper half
	dupLane, dupGeneral          = 0x4e040400, 0x4e040c00
)

// mnemonics are for the reader of the assembly.
var mnemonics = map[int]string{
	fadd:       "FADD",
	fsub:       "FSUB",
	fmul:       "FMUL",
	fdiv:       "FDIV",
	fmla:       "FMLA",
	fmin:       "FMIN",
	fmax:       "FMAX",
	fcmeq:      "FCMEQ",
	fcmge:      "FCMGE",
	fcmgt:      "FCMGT",
	vand:       "AND",
	vorr:       "ORR",
	veor:       "EOR",
	bsl:        "BSL",
	iadd:       "ADD",
	isub:       "SUB",
	fadd64:     "FADD.2D",
	fmla64:     "FMLA.2D",
	fabs64:     "FABS.2D",
	frintn:     "FRINTN",
	frintm:     "FRINTM",
	frintp:     "FRINTP",
	fcvtns:     "FCVTNS",
	scvtf:      "SCVTF",
	fsqrt:      "FSQRT",
	not:        "NOT",
	fminv:      "FMINV",
	fmaxv:      "FMAXV",
	fcvtl64:    "FCVTL.2D",
	fcvtl:      "FCVTL",
	fcvtn:      "FCVTN",
	xtn16:      "XTN.4H",
	xtn8:       "XTN.8B",
	uxtl8:      "UXTL.8H",
	sxtl8:      "SXTL.8H",
	uxtl16:     "UXTL.4S",
	sxtl16:     "SXTL.4S",
	umax8:      "UMAX.16B",
	smax8:      "SMAX.16B",
	dupLane:    "DUP",
	dupGeneral: "DUP",
}

// none is the third register of an instruction of two.
const none = -1

func word(code, d, n, m int) string {
	name, ok := mnemonics[code]
	if !ok {
		if name, ok = mnemonics[code&^upper]; ok {
			name += " upper"
		} else {
			name = "shift"
		}
	}
	from := fmt.Sprintf("V%d", n)
	switch {
	case code == dupGeneral:
		from = fmt.Sprintf("R%d", n)
	case m != none:
		from = fmt.Sprintf("V%d, %s", m, from)
	}
	return fmt.Sprintf("\tWORD $%#08x // %s %s, V%d\n", uint32(code)|uint32(max(m, 0))<<16|uint32(n)<<5|uint32(d), name, from, d)
}

func (n *neon) value() V { return n.ids.XMM() }

// name follows renamings.
func (n *neon) name(v V) V {
	for {
		w, ok := n.renamed[v]
		if !ok {
			return v
		}
		v = w
	}
}

// of returns the value of an operand, which may be a constant.
func (n *neon) of(x Op) V {
	bits, ok := bitsOf(x)
	if !ok {
		return n.name(x.(V))
	}
	v, ok := n.consts[bits]
	if !ok {
		v = n.value()
		n.consts[bits] = v
		n.order = append(n.order, bits)
	}
	return v
}

func (n *neon) emit(dst V, text func(d int, s []int) string, src ...Op) V {
	in := ins{dst: dst, text: text}
	for _, s := range src {
		in.src = append(in.src, n.of(s))
	}
	n.body = append(n.body, in)
	return dst
}

func (n *neon) three(code int, a, b Op) V { return n.threeTo(n.value(), code, a, b) }

func (n *neon) threeTo(dst V, code int, a, b Op) V {
	return n.emit(dst, func(d int, s []int) string { return word(code, d, s[0], s[1]) }, a, b)
}

func (n *neon) two(code int, a Op) V {
	return n.emit(n.value(), func(d int, s []int) string { return word(code, d, s[0], none) }, a)
}

// hoist returns a value of its own for x, which fma may rename.
func (n *neon) hoist(x Op) V {
	v := n.value()
	n.renamed[v] = n.of(x)
	return v
}

// fma renames p to p*x + c.
func (n *neon) fma(p, x V, c Op) V {
	r := n.emit(n.value(), func(d int, s []int) string {
		return word(vorr, d, s[2], s[2]) + word(fmla, d, s[0], s[1])
	}, p, x, c)
	n.renamed[p] = r
	return r
}

// pick returns a where the comparison of x with y holds, else b.
func (n *neon) pick(code int, x, y, a, b Op) V {
	return n.emit(n.value(), func(d int, s []int) string {
		return word(code, d, s[0], s[1]) + word(bsl, d, s[2], s[3])
	}, x, y, a, b)
}

func (n *neon) cmp(pred uint64, a V, b Op) V {
	switch pred {
	case eq:
		return n.three(fcmeq, a, b)
	case lt:
		return n.three(fcmgt, b, a)
	case ge:
		return n.three(fcmge, a, b)
	}
	return n.emit(n.value(), func(d int, s []int) string { return word(fcmeq, d, s[0], s[1]) + word(not, d, d, none) }, a, b)
}

func (n *neon) sel(m, a, b Op) V {
	return n.emit(n.value(), func(d int, s []int) string {
		return word(vorr, d, s[0], s[0]) + word(bsl, d, s[1], s[2])
	}, m, a, b)
}

// pair returns the lower halves of narrowed a and b, or what code makes of each.
func (n *neon) pair(code int, a, b V) V {
	return n.emit(n.value(), func(d int, s []int) string {
		return word(code, d, s[0], none) + word(code|upper, d, s[1], none)
	}, a, b)
}

// shift shifts int32 lanes: left, right with zeros, right with the sign.
func (n *neon) shift(kind string, a V, by int) V {
	code := map[string]int{
		"shl": 0x4f005400 | (32+by)<<16, "shr": 0x6f000400 | (64-by)<<16, "sra": 0x4f000400 | (64-by)<<16,
	}[kind]
	return n.two(code, a)
}

// keep makes v live through the function; it is given its register now.
func (n *neon) keep(v V) V {
	n.fixed[v] = len(n.fixed)
	return v
}

// fn starts a function with parameters as in a Go signature.
func (n *neon) fn(base, sig, results string) {
	name := base + "NEON"
	n.renamed, n.fixed, n.consts, n.params = map[V]V{}, map[V]int{}, map[uint32]V{}, map[string]param{}
	n.order, n.body = nil, nil
	offset, gp := 0, 0
	take := func(list string, load bool) {
		var names []string
		for _, p := range strings.Split(list, ",") {
			f := strings.Fields(p)
			names = append(names, f[0])
			if len(f) == 1 {
				continue
			}
			for _, name := range names {
				size, move := 8, "MOVD"
				switch f[1] {
				case "float32":
					size, move = 4, ""
				case "int32":
					size, move = 4, "MOVW"
				}
				offset = (offset + size - 1) &^ (size - 1)
				n.params[name] = param{f[1], offset, gp}
				if load && move != "" {
					defer fmt.Fprintf(&n.asm, "\t%s %s+%d(FP), R%d\n", move, name, offset, gp)
					gp++
				}
				offset += size
			}
			names = nil
		}
	}
	start := n.asm.String()
	n.asm.Reset()
	take(sig, true)
	loads := n.asm.String()
	ret := ""
	if results != "" {
		offset = (offset + 7) &^ 7
		take(results, false)
		ret = " (" + results + ")"
	}
	n.asm.Reset()
	fmt.Fprintf(&n.asm, "%s\n// func %s(%s)%s\nTEXT ·%s(SB), NOSPLIT, $0-%d\n%s", start, name, sig, ret, name, offset, loads)
	fmt.Fprintf(&n.stubs, "\n//go:noescape\nfunc %s(%s)%s\n", name, sig, ret)
}

func (n *neon) gp(name string) int { return n.params[name].reg }

// broadcast returns a parameter in all lanes, for the whole function.
func (n *neon) broadcast(name string) V {
	v, p := n.keep(n.value()), n.params[name]
	r := n.fixed[v]
	if p.typ == "float32" {
		fmt.Fprintf(&n.asm, "\tFMOVS %s+%d(FP), F%d\n%s", name, p.offset, r, word(dupLane, r, r, none))
	} else {
		n.asm.WriteString(word(dupGeneral, r, p.reg, none))
	}
	return v
}

// zeros returns a value of zeros that the function may add to.
func (n *neon) zeros() V {
	v := n.keep(n.value())
	n.asm.WriteString(word(veor, n.fixed[v], n.fixed[v], n.fixed[v]))
	return v
}

func (n *neon) load(p string, disp int) V {
	return n.emit(n.value(), func(d int, _ []int) string { return fmt.Sprintf("\tFMOVQ %d(R%d), F%d\n", disp, n.gp(p), d) })
}

func (n *neon) store(v V, p string, disp int) {
	n.emit(nil, func(_ int, s []int) string { return fmt.Sprintf("\tFMOVQ F%d, %d(R%d)\n", s[0], disp, n.gp(p)) }, v)
}

type hop struct {
	p     string
	bytes int
}

// each emits a loop over n elements, step at a time, that moves pointers.
func (n *neon) each(step int, body func(), moves ...hop) {
	n.body = nil
	body()
	n.constants()
	n.label++
	count := n.gp("n")
	fmt.Fprintf(&n.asm, "\nloop%d:\n\tCMP $%d, R%d\n\tBLT end%d\n", n.label, step, count, n.label)
	n.flush()
	for _, m := range moves {
		fmt.Fprintf(&n.asm, "\tADD $%d, R%d\n", m.bytes, n.gp(m.p))
	}
	fmt.Fprintf(&n.asm, "\tSUB $%d, R%d\n\tB loop%d\n\nend%d:\n", step, count, n.label, n.label)
}

// constants puts as many constants as leave 12 registers for the body into
// registers of their own; the others are made where they are used.
func (n *neon) constants() {
	const room = 20
	for _, bits := range n.order {
		v := n.consts[bits]
		if len(n.fixed) < room {
			n.asm.WriteString(setConst(bits, n.fixed[n.keep(v)]))
			continue
		}
		var body []ins
		for _, in := range n.body {
			var src []V
			for _, s := range in.src {
				if s == v {
					s = n.value()
					body = append(body, ins{dst: s, text: func(d int, _ []int) string { return setConst(bits, d) }})
				}
				src = append(src, s)
			}
			body = append(body, ins{in.dst, src, in.text})
		}
		n.body = body
	}
	n.order, n.consts = nil, map[uint32]V{}
}

func setConst(bits uint32, d int) string {
	return fmt.Sprintf("\tMOVD $%#x, R15\n", bits) + word(dupGeneral, d, 15, none)
}

// flush gives registers to the values of the body and prints it.
func (n *neon) flush() {
	last := map[V]int{}
	for i, in := range n.body {
		for _, s := range in.src {
			last[s] = i
		}
	}
	at, free := map[V]int{}, []int{}
	for r := 31; r >= len(n.fixed); r-- {
		free = append(free, r)
	}
	where := func(v V) int {
		if r, ok := n.fixed[v]; ok {
			return r
		}
		r, ok := at[v]
		if !ok {
			panic("value without a register")
		}
		return r
	}
	for i, in := range n.body {
		var s []int
		for _, v := range in.src {
			s = append(s, where(v))
		}
		d := -1
		if in.dst != nil {
			r, ok := n.fixed[in.dst]
			if !ok {
				if len(free) == 0 {
					panic("out of registers")
				}
				r = free[len(free)-1]
				free = free[:len(free)-1]
				at[in.dst] = r
			}
			d = r
		}
		n.asm.WriteString(in.text(d, s))
		for _, v := range in.src {
			if r, ok := at[v]; ok && last[v] == i {
				free = append(free, r)
				delete(at, v)
			}
		}
	}
	n.body = nil
}

func (n *neon) ret() { n.asm.WriteString("\tRET\n") }

// vec writes the function that dispatches base, which takes multiples of step.
func (n *neon) vec(base, sig, args string, step int) {
	fmt.Fprintf(&n.dispatch, "\nfunc %sVec(%s) int {\nif level == Generic {\nreturn 0\n}\nn &^= %d\n%sNEON(%s)\nreturn n\n}\n",
		base, sig, step-1, base, args)
}

// choose writes the dispatch of an operator.
func (n *neon) choose(name, sig, args string, step int, cases []string, base func(string) string) {
	fmt.Fprintf(&n.dispatch, "\nfunc %s(%s) int {\nif level == Generic {\nreturn 0\n}\nn &^= %d\nswitch op {\n", name, sig, step-1)
	for _, c := range cases {
		fmt.Fprintf(&n.dispatch, "case %s:\n%sNEON(%s)\n", c, base(c), args)
	}
	n.dispatch.WriteString("default:\nreturn 0\n}\nreturn n\n}\n")
}

// arm64 writes the files of arm64.
func arm64(dir string) error {
	n := &neon{ids: build.NewContext()}
	g := &gen{Context: n.ids, n: n}
	n.emitAll(g)
	const generated = "// Code generated by _gen/vec. DO NOT EDIT.\n\n//go:build !noasm\n\n"
	for name, text := range map[string]string{
		"vec_arm64.s":        generated + "#include \"textflag.h\"\n" + n.asm.String(),
		"vec_stubs_arm64.go": generated + "package kernels\n" + n.stubs.String(),
		"vec_arm64.go":       generated + "package kernels\n" + n.dispatch.String(),
	} {
		if err := writeGo(filepath.Join(dir, name), text); err != nil {
			return err
		}
	}
	return nil
}

// mapped emits a loop of f over src, one register at a time.
func (n *neon) mapped(f func(V) V) {
	n.each(4, func() { n.store(f(n.load("src", 0)), "dst", 0) }, hop{"src", 16}, hop{"dst", 16})
	n.ret()
}

func (n *neon) emitAll(g *gen) {
	var ops []string
	for _, u := range unaries {
		n.fn(lower(u.op), "dst, src *float32, n int", "")
		n.mapped(u.body(g))
		ops = append(ops, u.op)
	}
	n.choose("unaryVec", "op UnaryOp, dst, src *float32, n int", "dst, src, n", 4, ops, lower)
	ops = nil
	for _, b := range binaries {
		ops = append(ops, b.op)
		for _, form := range forms {
			n.fn(lower(b.op)+form, "dst, a, b *float32, n int", "")
			operand := func(p string, scalar bool) (func() V, []hop) {
				if !scalar {
					return func() V { return n.load(p, 0) }, []hop{{p, 16}}
				}
				v := n.keep(n.value())
				r := n.fixed[v]
				fmt.Fprintf(&n.asm, "\tFMOVS (R%d), F%d\n%s", n.gp(p), r, word(dupLane, r, r, none))
				return func() V { return v }, nil
			}
			x, mx := operand("a", form == "Left")
			y, my := operand("b", form == "Right")
			n.each(4, func() { n.store(b.body(g, x(), y()), "dst", 0) }, append(append(mx, my...), hop{"dst", 16})...)
			n.ret()
		}
	}
	for _, form := range forms {
		n.choose("binary"+form+"Vec", "op BinaryOp, dst, a, b *float32, n int", "dst, a, b, n", 4, ops,
			func(op string) string { return lower(op) + form })
	}
	both := func(base, sig, args string, step int, f func()) {
		n.fn(base, sig, "")
		f()
		n.vec(base, sig, args, step)
	}
	both("clip", "dst, src *float32, n int, lo, hi float32", "dst, src, n, lo, hi", 4, func() {
		lo, hi := n.broadcast("lo"), n.broadcast("hi")
		n.mapped(func(x V) V { return g.min(hi, g.max(lo, x)) })
	})
	both("hardSigmoid", "dst, src *float32, n int, alpha, beta float32", "dst, src, n, alpha, beta", 4, func() {
		alpha, beta := n.broadcast("alpha"), n.broadcast("beta")
		zero, one := n.of(K(0)), n.of(K(1))
		n.mapped(func(x V) V { return g.min(one, g.max(zero, g.add(g.mul(x, alpha), beta))) })
	})
	both("expLinear", "dst, src *float32, n int, positive, negative, rate float32", "dst, src, n, positive, negative, rate", 4, func() {
		positive, negative, rate := n.broadcast("positive"), n.broadcast("negative"), n.broadcast("rate")
		n.mapped(g.linear(positive, negative, rate))
	})
	both("normalize", "dst, src, gamma, beta *float32, n int, mean, inverse float32", "dst, src, gamma, beta, n, mean, inverse", 4, func() {
		mean, inverse := n.broadcast("mean"), n.broadcast("inverse")
		n.each(4, func() {
			x := g.mul(g.sub(n.load("src", 0), mean), inverse)
			n.store(g.fma(x, n.load("gamma", 0), n.load("beta", 0)), "dst", 0)
		}, hop{"src", 16}, hop{"gamma", 16}, hop{"beta", 16}, hop{"dst", 16})
		n.ret()
	})
	both("scaleBy", "dst, src, gamma *float32, n int, inverse float32", "dst, src, gamma, n, inverse", 4, func() {
		inverse := n.broadcast("inverse")
		n.each(4, func() {
			n.store(g.mul(g.mul(n.load("src", 0), inverse), n.load("gamma", 0)), "dst", 0)
		}, hop{"src", 16}, hop{"gamma", 16}, hop{"dst", 16})
		n.ret()
	})
	n.emitQuant(g, both)
	n.emitStat(g, both)
	n.emitMax8(both)
	for _, f := range []struct {
		base  string
		widen func(v V, high int) V
	}{
		{"halfToFloat", func(v V, high int) V { return n.two(fcvtl|high, v) }},
		{"brainToFloat", func(v V, high int) V { return n.shift("shl", n.two(uxtl16|high, v), 16) }},
	} {
		both(f.base, "dst *float32, src *uint16, n int", "dst, src, n", 8, func() {
			n.each(8, func() {
				v := n.load("src", 0)
				n.store(f.widen(v, 0), "dst", 0)
				n.store(f.widen(v, upper), "dst", 16)
			}, hop{"src", 16}, hop{"dst", 32})
			n.ret()
		})
	}
	for _, f := range []struct {
		base   string
		narrow func(a, b V) V
	}{
		{"floatToHalf", func(a, b V) V { return n.pair(fcvtn, a, b) }},
		{"floatToBrain", func(a, b V) V { return n.pair(xtn16, g.brain(a), g.brain(b)) }},
	} {
		both(f.base, "dst *uint16, src *float32, n int", "dst, src, n", 8, func() {
			n.each(8, func() { n.store(f.narrow(n.load("src", 0), n.load("src", 16)), "dst", 0) }, hop{"src", 32}, hop{"dst", 16})
			n.ret()
		})
	}
}

func (n *neon) emitMax8(both func(base, sig, args string, step int, f func())) {
	for _, m := range []struct {
		base, elem string
		code       int
	}{{"max8", "uint8", umax8}, {"max8Signed", "int8", smax8}} {
		both(m.base, "dst, a, b *"+m.elem+", n int", "dst, a, b, n", 16, func() {
			n.each(16, func() { n.store(n.three(m.code, n.load("a", 0), n.load("b", 0)), "dst", 0) }, hop{"a", 16}, hop{"b", 16}, hop{"dst", 16})
			n.ret()
		})
	}
}

func (n *neon) emitQuant(g *gen, both func(base, sig, args string, step int, f func())) {
	for _, q := range []struct {
		base, elem string
		size       int
	}{{"quantize8", "uint8", 1}, {"quantize16", "uint16", 2}} {
		both(q.base, "dst *"+q.elem+", src *float32, n int, scale, lo, hi float32, zero int32", "dst, src, n, scale, lo, hi, zero", 16, func() {
			scale, lo, hi, zero := n.broadcast("scale"), n.broadcast("lo"), n.broadcast("hi"), n.broadcast("zero")
			n.each(16, func() {
				var half [2]V
				for i := range half {
					a := g.addi(g.codes(n.load("src", 32*i), scale, lo, hi), zero)
					b := g.addi(g.codes(n.load("src", 32*i+16), scale, lo, hi), zero)
					half[i] = n.pair(xtn16, a, b)
				}
				if q.size == 1 {
					n.store(n.pair(xtn8, half[0], half[1]), "dst", 0)
					return
				}
				n.store(half[0], "dst", 0)
				n.store(half[1], "dst", 16)
			}, hop{"src", 64}, hop{"dst", 16 * q.size})
			n.ret()
		})
	}
	both("fakeQuantize", "dst, src *float32, n int, scale, lo, hi float32", "dst, src, n, scale, lo, hi", 4, func() {
		scale, lo, hi := n.broadcast("scale"), n.broadcast("lo"), n.broadcast("hi")
		n.mapped(func(v V) V { return g.mul(g.fromInt(g.codes(v, scale, lo, hi)), scale) })
	})
	for _, q := range []struct {
		name, elem     string
		size           int
		widen8, widen4 int
	}{
		{"U8", "uint8", 1, uxtl8, uxtl16}, {"I8", "int8", 1, sxtl8, sxtl16},
		{"U16", "uint16", 2, 0, uxtl16}, {"I16", "int16", 2, 0, sxtl16},
	} {
		step := 16 / q.size
		both("dequantize"+q.name, "dst *float32, src *"+q.elem+", n int, scale float32, zero int32", "dst, src, n, scale, zero", step, func() {
			scale, zero := n.broadcast("scale"), n.broadcast("zero")
			n.each(step, func() {
				words := []V{n.load("src", 0)}
				if q.size == 1 {
					words = []V{n.two(q.widen8, words[0]), n.two(q.widen8|upper, words[0])}
				}
				for i, w := range words {
					for j, high := range []int{0, upper} {
						v := n.two(q.widen4|high, w)
						n.store(g.mul(g.fromInt(g.subi(v, zero)), scale), "dst", 32*i+16*j)
					}
				}
			}, hop{"src", 16}, hop{"dst", 4 * step})
			n.ret()
		})
	}
	for _, q := range []struct {
		name, elem     string
		widen8, widen4 int
	}{{"U8", "uint8", uxtl8, uxtl16}, {"I8", "int8", sxtl8, sxtl16}} {
		both("codeSum"+q.name, "dst *float32, a, b *"+q.elem+", n int, ra, rb, c float32", "dst, a, b, n, ra, rb, c", 16, func() {
			ra, rb, c := n.broadcast("ra"), n.broadcast("rb"), n.broadcast("c")
			n.each(16, func() {
				a, b := n.load("a", 0), n.load("b", 0)
				for i, half := range []int{0, upper} {
					wa, wb := n.two(q.widen8|half, a), n.two(q.widen8|half, b)
					for j, high := range []int{0, upper} {
						sum := g.fma(g.fromInt(n.two(q.widen4|high, wb)), rb, c)
						n.store(g.fma(g.fromInt(n.two(q.widen4|high, wa)), ra, sum), "dst", 32*i+16*j)
					}
				}
			}, hop{"a", 16}, hop{"b", 16}, hop{"dst", 64})
			n.ret()
		})
	}
	n.emitColumns(g, both)
	both("dequantizeI32", "dst *float32, src *int32, n int, scale float32", "dst, src, n, scale", 4, func() {
		scale := n.broadcast("scale")
		n.mapped(func(v V) V { return g.mul(g.fromInt(v), scale) })
	})
}

// emitColumns writes quantization with a scale and a zero point for each element.
func (n *neon) emitColumns(g *gen, both func(base, sig, args string, step int, f func())) {
	for _, q := range []struct {
		base, elem string
		size       int
	}{{"quantizeColumns8", "uint8", 1}, {"quantizeColumns16", "uint16", 2}} {
		step := 16 / q.size
		both(q.base, "dst *"+q.elem+", src, scale *float32, zero *int32, n int, lo, hi int32", "dst, src, scale, zero, n, lo, hi", step, func() {
			lo, hi := n.broadcast("lo"), n.broadcast("hi")
			code := func(at int) V {
				zero := n.load("zero", at)
				least, most := g.fromInt(g.subi(lo, zero)), g.fromInt(g.subi(hi, zero))
				return g.addi(g.codes(n.load("src", at), n.load("scale", at), least, most), zero)
			}
			n.each(step, func() {
				v := n.pair(xtn16, code(0), code(16))
				if q.size == 1 {
					v = n.pair(xtn8, v, n.pair(xtn16, code(32), code(48)))
				}
				n.store(v, "dst", 0)
			}, hop{"src", 4 * step}, hop{"scale", 4 * step}, hop{"zero", 4 * step}, hop{"dst", 16})
			n.ret()
		})
	}
	for _, q := range []struct {
		name, elem     string
		size           int
		widen8, widen4 int
	}{
		{"U8", "uint8", 1, uxtl8, uxtl16}, {"I8", "int8", 1, sxtl8, sxtl16},
		{"U16", "uint16", 2, 0, uxtl16}, {"I16", "int16", 2, 0, sxtl16},
	} {
		step := 16 / q.size
		both("dequantizeColumns"+q.name, "dst *float32, src *"+q.elem+", scale *float32, zero *int32, n int", "dst, src, scale, zero, n", step, func() {
			n.each(step, func() {
				words := []V{n.load("src", 0)}
				if q.size == 1 {
					words = []V{n.two(q.widen8, words[0]), n.two(q.widen8|upper, words[0])}
				}
				for i, w := range words {
					for j, high := range []int{0, upper} {
						at := 32*i + 16*j
						v := g.subi(n.two(q.widen4|high, w), n.load("zero", at))
						n.store(g.mul(g.fromInt(v), n.load("scale", at)), "dst", at)
					}
				}
			}, hop{"src", 16}, hop{"scale", 4 * step}, hop{"zero", 4 * step}, hop{"dst", 4 * step})
			n.ret()
		})
	}
}

func (n *neon) emitStat(g *gen, both func(base, sig, args string, step int, f func())) {
	n.fn("minMax", "src *float32, n int", "low, high, zero float32")
	low, high, sum := n.zeros(), n.zeros(), n.zeros()
	fmt.Fprintf(&n.asm, "\tFMOVQ (R%d), F%d\n\tFMOVQ (R%d), F%d\n", n.gp("src"), n.fixed[low], n.gp("src"), n.fixed[high])
	zero := n.zeros()
	n.each(8, func() {
		for i := range 2 {
			v := n.load("src", 16*i)
			n.threeTo(low, fmin, low, v)
			n.threeTo(high, fmax, high, v)
			n.threeTo(sum, fmla, v, zero)
		}
	}, hop{"src", 32})
	for _, r := range []struct {
		v    V
		code int
		name string
	}{{low, fminv, "low"}, {high, fmaxv, "high"}, {sum, fmaxv, "zero"}} {
		f := n.fixed[r.v]
		fmt.Fprintf(&n.asm, "%s\tFMOVS F%d, %s+%d(FP)\n", word(r.code, f, f, none), f, r.name, n.params[r.name].offset)
	}
	n.ret()

	both("minMaxColumns", "low, high, src *float32, n int", "low, high, src, n", 4, func() {
		n.each(4, func() {
			// A NaN is neither less nor greater.
			v, low, high := n.load("src", 0), n.load("low", 0), n.load("high", 0)
			n.store(n.pick(fcmgt, low, v, v, low), "low", 0)
			n.store(n.pick(fcmgt, v, high, v, high), "high", 0)
		}, hop{"src", 16}, hop{"low", 16}, hop{"high", 16})
		n.ret()
	})
	both("addColumns", "sums *float64, src *float32, n int", "sums, src, n", 4, func() {
		n.each(4, func() {
			v := n.load("src", 0)
			for i, high := range []int{0, upper} {
				n.store(n.three(fadd64, n.load("sums", 16*i), n.two(fcvtl64|high, v)), "sums", 16*i)
			}
		}, hop{"src", 16}, hop{"sums", 32})
		n.ret()
	})

	// lanes keeps sums in registers that are read from and written to p+disp.
	lanes := func(p string, disp, registers int) (s []V, write func()) {
		s = make([]V, registers)
		for i := range s {
			s[i] = n.keep(n.value())
			fmt.Fprintf(&n.asm, "\tFMOVQ %d(R%d), F%d\n", disp+16*i, n.gp(p), n.fixed[s[i]])
		}
		return s, func() {
			for i := range s {
				fmt.Fprintf(&n.asm, "\tFMOVQ F%d, %d(R%d)\n", n.fixed[s[i]], disp+16*i, n.gp(p))
			}
		}
	}
	n.fn("moments", "src *float32, n int, sums *[3][16]float64", "")
	var s [3][]V
	var write [3]func()
	for i := range s {
		s[i], write[i] = lanes("sums", 128*i, 8)
	}
	n.each(16, func() {
		for i := range 4 {
			v := n.load("src", 16*i)
			for j, high := range []int{0, upper} {
				d := n.two(fcvtl64|high, v)
				a := n.two(fabs64, d)
				n.threeTo(s[0][2*i+j], fadd64, s[0][2*i+j], d)
				n.threeTo(s[1][2*i+j], fmla64, d, d)
				n.threeTo(s[2][2*i+j], fadd64, s[2][2*i+j], a)
			}
		}
	}, hop{"src", 64})
	for _, w := range write {
		w()
	}
	n.ret()
	n.vec("moments", "src *float32, n int, sums *[3][16]float64", "src, n, sums", 16)

	both("sums", "src *float32, n int, sums *[16]float64", "src, n, sums", 16, func() {
		s, write := lanes("sums", 0, 8)
		n.each(16, func() {
			for i := range 4 {
				v := n.load("src", 16*i)
				for j, high := range []int{0, upper} {
					n.threeTo(s[2*i+j], fadd64, s[2*i+j], n.two(fcvtl64|high, v))
				}
			}
		}, hop{"src", 64})
		write()
		n.ret()
	})
	both("laneSums", "src *float32, n int, sums *[8]float32", "src, n, sums", 8, func() {
		s, write := lanes("sums", 0, 2)
		n.each(8, func() {
			for i := range 2 {
				n.threeTo(s[i], fadd, s[i], n.load("src", 16*i))
			}
		}, hop{"src", 32})
		write()
		n.ret()
	})
	both("laneSquares", "src *float32, n int, mean float32, sums *[8]float32", "src, n, mean, sums", 8, func() {
		mean := n.broadcast("mean")
		s, write := lanes("sums", 0, 2)
		n.each(8, func() {
			for i := range 2 {
				d := g.sub(n.load("src", 16*i), mean)
				n.threeTo(s[i], fmla, d, d)
			}
		}, hop{"src", 32})
		write()
		n.ret()
	})

	for _, store := range []bool{true, false} {
		base, sig, args := "sumExp", "src *float32, n int, shift float32, sums *[16]float32", "src, n, shift, sums"
		moves := []hop{{"src", 64}}
		if store {
			base, sig, args = "expSum", "dst, "+sig, "dst, "+args
			moves = append(moves, hop{"dst", 64})
		}
		both(base, sig, args, 16, func() {
			shift := n.broadcast("shift")
			sums, write := lanes("sums", 0, 4)
			exp := g.exp()
			n.each(16, func() {
				for i := range 4 {
					e := exp(g.sub(n.load("src", 16*i), shift))
					if store {
						n.store(e, "dst", 16*i)
					}
					n.threeTo(sums[i], fadd, sums[i], e)
				}
			}, moves...)
			write()
			n.ret()
		})
	}
}
