package graph

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Error says where in a model something went wrong. Empty fields are not
// known or do not apply. Names are quoted in the message, so that a name can
// not forge or corrupt terminal output.
type Error struct {
	Stage string // "load", "verify", "run", …
	Pass  string
	Scope string // as Graph.Scope
	Node  string // as Node.Label
	Op    string
	Value string
	Err   error
}

// Error joins the known parts.
func (e *Error) Error() string {
	var b strings.Builder
	put := func(k, v string) {
		if v == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(k)
		b.WriteString(v)
	}
	put("", e.Stage)
	put("pass ", e.Pass)
	if e.Scope != "" && e.Scope != MainScope {
		put("scope ", strconv.Quote(e.Scope))
	}
	if e.Node != "" {
		put("node ", strconv.Quote(e.Node))
	}
	if e.Op != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("(" + strings.Trim(strconv.Quote(e.Op), `"`) + ")")
	}
	if e.Value != "" {
		put("tensor ", strconv.Quote(e.Value))
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// NodeError returns err with the place of n; an Error that already names a
// node is returned as it is.
func NodeError(stage string, n *Node, err error) error {
	var ge *Error
	if errors.As(err, &ge) && ge.Node != "" {
		return err
	}
	e := &Error{Stage: stage, Node: n.Label(), Op: n.Op.Type, Err: err}
	if n.graph != nil {
		e.Scope = n.graph.Scope()
	}
	return e
}

// ValueError returns err with the place of v.
func ValueError(stage string, v *Value, err error) error {
	e := &Error{Stage: stage, Value: v.name, Err: err}
	if v.graph != nil {
		e.Scope = v.graph.Scope()
	}
	return e
}

// Errorf returns an Error about n with a formatted cause.
func (n *Node) Errorf(stage, format string, args ...any) error {
	return NodeError(stage, n, fmt.Errorf(format, args...))
}
