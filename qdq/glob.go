package qdq

import (
	"strings"

	"github.com/onnxq/onnxq/graph"
)

// Match reports whether pattern matches s as a whole: '*' stands for any
// characters, '/' included, '?' for one byte, and '\' takes the next character
// literally.
func Match(pattern, s string) bool {
	// Iterative matching with one point of return: linear in practice and
	// never worse than len(pattern)·len(s).
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		if p < len(pattern) {
			c := pattern[p]
			switch {
			case c == '*':
				star, mark = p, i
				p++
				continue
			case c == '?':
				p, i = p+1, i+1
				continue
			case c == '\\' && p+1 < len(pattern):
				if pattern[p+1] == s[i] {
					p, i = p+2, i+1
					continue
				}
			case c == s[i]:
				p, i = p+1, i+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// NodeName returns the name that globs and reports use for n: its label, with
// the scope before it where n is not in the main graph.
func NodeName(n *graph.Node) string {
	if s := n.Graph().Scope(); s != graph.MainScope {
		return s + "/" + n.Label()
	}
	return n.Label()
}

// matchNode reports whether a glob matches n: "op:TYPE" its operator, anything
// else its name.
func matchNode(glob string, n *graph.Node) bool {
	if op, ok := strings.CutPrefix(glob, "op:"); ok {
		return Match(op, n.Op.String())
	}
	return Match(glob, NodeName(n))
}
