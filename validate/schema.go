package validate

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"

	"github.com/onnxq/onnxq/graph"
)

//go:embed schemas.txt
var text string

// schema is one version of an operator.
type schema struct {
	since                        int
	deprecated                   bool
	minIn, maxIn, minOut, maxOut int // -1: no upper bound
	in, out                      ports
	vars                         map[string]map[string]bool // type names that a variable may stand for
	attrs                        map[string]attribute
	required                     []string // attributes
}

type attribute struct{ kind graph.AttrKind }

type port struct {
	typ                       string // type name or variable
	optional, variadic, mixed bool
}

func (p *port) required() bool { return !p.optional && !p.variadic }

type ports []port

// at returns the port of input or output i, or nil.
func (ps ports) at(i int) *port {
	switch n := len(ps); {
	case i < n:
		return &ps[i]
	case n > 0 && ps[n-1].variadic:
		return &ps[n-1]
	}
	return nil
}

// table returns the versions of every operator, ascending.
var table = sync.OnceValue(func() map[graph.OpKey][]*schema {
	t := map[graph.OpKey][]*schema{}
	sets := map[string]map[string]bool{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if f[0] == "set" {
			set := map[string]bool{}
			for _, name := range f[2:] {
				set[name] = true
			}
			sets[f[1]] = set
			continue
		}
		k := graph.OpKey{Domain: graph.NormalDomain(f[0]), Type: f[1]}
		s := &schema{vars: map[string]map[string]bool{}, attrs: map[string]attribute{}}
		s.since, _ = strconv.Atoi(f[2])
		t[k] = append(t[k], s)
		if s.deprecated = f[3] == "deprecated"; s.deprecated {
			continue
		}
		s.minIn, s.maxIn = span(f[3])
		s.minOut, s.maxOut = span(f[4])
		s.in, s.out = parsePorts(f[5]), parsePorts(f[6])
		for _, v := range list(f[7], ",") {
			name, id, _ := strings.Cut(v, "=")
			s.vars[name] = sets[id]
		}
		for _, a := range list(f[8], ",") {
			at := strings.LastIndexByte(a, ':')
			name, kind := a[:at], a[at+1:]
			if k, ok := strings.CutSuffix(kind, "!"); ok {
				kind = k
				s.required = append(s.required, name)
			}
			n, _ := strconv.Atoi(kind)
			s.attrs[name] = attribute{graph.AttrKind(n)}
		}
	}
	return t
})

func list(s, sep string) []string {
	if s == "-" {
		return nil
	}
	return strings.Split(s, sep)
}

func span(s string) (lo, hi int) {
	a, b, _ := strings.Cut(s, "-")
	lo, _ = strconv.Atoi(a)
	hi = -1
	if b != "" {
		hi, _ = strconv.Atoi(b)
	}
	return lo, hi
}

func parsePorts(s string) ports {
	var out ports
	for _, p := range list(s, ";") {
		name := strings.TrimRight(p, "?*~")
		mark := p[len(name):]
		out = append(out, port{typ: name, optional: strings.Contains(mark, "?"), variadic: strings.Contains(mark, "*"), mixed: strings.Contains(mark, "~")})
	}
	return out
}

// find returns the schema of n at the version that holds where it stands, or
// nil.
func find(n *graph.Node) *schema {
	var found *schema
	version := n.Opset()
	if n.Op.Domain == msDomain {
		version = 1 // readers take it as imported
	}
	for _, s := range table()[graph.OpKey{Domain: n.Op.Domain, Type: n.Op.Type}] {
		if s.since <= version {
			found = s
		}
	}
	return found
}
