package graph

import (
	"errors"
	"fmt"
)

// Verify checks every invariant of the representation: links of the node
// lists, use-def chains in both directions, definition before use, visibility
// of captured values, single definition, and names that are unique where the
// ONNX specification (IR.md, "Names Within a Graph") wants them to be. The
// error names the first offender.
func (m *Model) Verify() error {
	if m.Graph == nil {
		return errors.New("verify: model has no graph")
	}
	v := verifier{m: m, defined: make([]bool, m.nextValue), visible: map[string]*Value{}}
	if err := v.graph(m.Graph); err != nil {
		return err
	}
	for _, f := range m.Functions {
		if err := v.graph(f.Body); err != nil {
			return err
		}
	}
	return nil
}

type verifier struct {
	m       *Model
	defined []bool // by value ID: visible at this point
	visible map[string]*Value
}

func (c *verifier) graph(g *Graph) error {
	var mine, hidden []*Value // hidden: of graphs around g, by inputs and initializers of g
	define := func(v *Value) error {
		switch {
		case v.graph != g:
			return ValueError("verify", v, errors.New("defined in a graph that it does not belong to"))
		case v.ID < 0 || v.ID >= c.m.nextValue:
			return ValueError("verify", v, fmt.Errorf("ID %d is out of range", v.ID))
		case c.defined[v.ID]:
			return ValueError("verify", v, errors.New("defined twice"))
		}
		c.defined[v.ID] = true
		mine = append(mine, v)
		if v.name == "" {
			return ValueError("verify", v, errors.New("value has no name"))
		}
		if w := c.visible[v.name]; w != nil {
			switch {
			case w.graph == g:
				return ValueError("verify", v, errors.New("two values of one graph have this name"))
			case v.def != nil:
				return ValueError("verify", v, errors.New("shadows a value of an outer graph"))
			}
			hidden = append(hidden, w)
		}
		c.visible[v.name] = v
		return nil
	}
	defer func() {
		for _, v := range mine {
			c.defined[v.ID] = false
			delete(c.visible, v.name)
		}
		for _, v := range hidden {
			c.visible[v.name] = v
		}
	}()

	for _, v := range g.inputs {
		if !v.input || v.def != nil {
			return ValueError("verify", v, errors.New("listed as an input but marked otherwise"))
		}
		if err := define(v); err != nil {
			return err
		}
	}
	for _, v := range g.inits {
		if !v.IsInitializer() || v.def != nil {
			return ValueError("verify", v, errors.New("listed as an initializer but has no value"))
		}
		if v.input {
			continue
		}
		if err := define(v); err != nil {
			return err
		}
	}
	count := 0
	var prev *Node
	for n := g.first; n != nil; prev, n = n, n.next {
		if n.prev != prev || n.graph != g {
			return NodeError("verify", n, errors.New("node list is broken"))
		}
		if count++; count > g.numNodes {
			return NodeError("verify", n, errors.New("node list is longer than its count"))
		}
		if err := c.node(n); err != nil {
			return err
		}
		for i, v := range n.outputs {
			if v == nil {
				continue
			}
			if v.def != n || v.index != i {
				return NodeError("verify", n, fmt.Errorf("output %q does not know its definition", v.name))
			}
			if err := define(v); err != nil {
				return err
			}
		}
	}
	if count != g.numNodes || g.last != prev {
		return fmt.Errorf("verify: scope %q: node list has %d nodes, its count says %d", g.Scope(), count, g.numNodes)
	}
	for i, v := range g.outputs {
		if v == nil || !c.defined[v.ID] {
			return fmt.Errorf("verify: scope %q: output %d is not defined", g.Scope(), i)
		}
		if !hasUse(v, Use{Graph: g, Index: i}) {
			return ValueError("verify", v, errors.New("does not know that it is an output"))
		}
	}
	for _, v := range mine {
		for k, u := range v.uses {
			switch {
			case u.Node == nil && (u.Index >= len(u.Graph.outputs) || u.Graph.outputs[u.Index] != v):
				return ValueError("verify", v, errors.New("claims to be an output and is not"))
			case u.Node != nil && (u.Node.Input(u.Index) != v || u.Node.slots[u.Index] != k):
				return ValueError("verify", v, fmt.Errorf("claims a use by node %q that does not read it", u.Node.Label()))
			case u.Node != nil && u.Node.graph == nil:
				return ValueError("verify", v, errors.New("is used by a removed node"))
			}
		}
	}
	return nil
}

func (c *verifier) node(n *Node) error {
	if n.Op.Type == "" {
		return NodeError("verify", n, errors.New("node has no operator type"))
	}
	for i, v := range n.inputs {
		if v == nil {
			continue
		}
		if v.graph == nil || v.ID >= len(c.defined) || !c.defined[v.ID] {
			return NodeError("verify", n, fmt.Errorf("input %d (%q) is not defined before it is read", i, v.name))
		}
		if s := n.slots[i]; s >= len(v.uses) || v.uses[s].Node != n || v.uses[s].Index != i {
			return NodeError("verify", n, fmt.Errorf("input %q does not know this use", v.name))
		}
	}
	seen := map[string]bool{}
	for _, a := range n.Attrs {
		if seen[a.Name] {
			return NodeError("verify", n, fmt.Errorf("attribute %q is given twice", a.Name))
		}
		seen[a.Name] = true
		for _, s := range a.Subgraphs() {
			if s.parent != n {
				return NodeError("verify", n, fmt.Errorf("graph in attribute %q does not know its node", a.Name))
			}
			if err := c.graph(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func hasUse(v *Value, want Use) bool {
	for _, u := range v.uses {
		if u == want {
			return true
		}
	}
	return false
}
