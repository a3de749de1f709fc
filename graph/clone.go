package graph

import "slices"

// Clone returns a copy of the model that shares only tensors with it. IDs are
// the same, so an analysis of the one serves the other as long as neither is
// edited.
func (m *Model) Clone() *Model {
	c := *m
	c.Opsets = slices.Clone(m.Opsets)
	c.Metadata = slices.Clone(m.Metadata)
	c.names, c.nodeNames, c.suffix = nil, nil, nil
	c.Functions = nil
	cp := copier{m: &c, values: make([]*Value, m.nextValue)}
	c.Graph = cp.graph(m.Graph)
	for _, f := range m.Functions {
		g := *f
		g.Opsets = slices.Clone(f.Opsets)
		g.Attrs = slices.Clone(f.Attrs)
		g.Metadata = slices.Clone(f.Metadata)
		g.AttrDefaults = cp.attrs(f.AttrDefaults, nil)
		g.Body = cp.graph(f.Body)
		g.Body.fn = &g
		c.Functions = append(c.Functions, &g)
	}
	return &c
}

type copier struct {
	m      *Model
	values []*Value // by ID
}

func (c *copier) value(v *Value, g *Graph) *Value {
	if v == nil {
		return nil
	}
	if w := c.values[v.ID]; w != nil {
		return w
	}
	w := &Value{ID: v.ID, Type: v.Type, Const: v.Const, Sparse: v.Sparse, Doc: v.Doc, Extra: v.Extra, name: v.name, graph: g, input: v.input}
	c.m.count(&c.m.names, w.name, 1)
	c.values[v.ID] = w
	return w
}

func (c *copier) graph(g *Graph) *Graph {
	out := &Graph{Name: g.Name, Doc: g.Doc, Metadata: slices.Clone(g.Metadata), Extra: g.Extra, model: c.m, attr: g.attr}
	for _, v := range g.inputs {
		out.inputs = append(out.inputs, c.value(v, out))
	}
	for _, v := range g.inits {
		out.inits = append(out.inits, c.value(v, out))
	}
	for n := g.first; n != nil; n = n.next {
		node := new(Node)
		*node = *n
		node.graph, node.inputs, node.slots, node.outputs, node.prev, node.next = out, nil, nil, nil, nil, nil
		node.Metadata = slices.Clone(n.Metadata)
		for _, v := range n.inputs {
			if v == nil {
				node.AddInput(nil)
				continue
			}
			node.AddInput(c.values[v.ID])
		}
		for _, v := range n.outputs {
			node.AddOutput(c.value(v, out))
		}
		node.Attrs = c.attrs(n.Attrs, node)
		c.m.count(&c.m.nodeNames, node.Name, 1)
		out.link(node, out.last, nil)
	}
	for _, v := range g.outputs {
		out.AddOutput(c.values[v.ID])
	}
	for _, v := range g.ValueInfo {
		if v.graph != nil && c.values[v.ID] != nil {
			out.ValueInfo = append(out.ValueInfo, c.values[v.ID])
		}
	}
	return out
}

func (c *copier) attrs(list []*Attr, owner *Node) []*Attr {
	out := make([]*Attr, len(list))
	for i, a := range list {
		b := *a
		if a.G != nil {
			b.G = c.graph(a.G)
		}
		b.Graphs = nil
		for _, g := range a.Graphs {
			b.Graphs = append(b.Graphs, c.graph(g))
		}
		for _, g := range b.Subgraphs() {
			g.parent, g.attr = owner, b.Name
		}
		out[i] = &b
	}
	return out
}
