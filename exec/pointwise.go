package exec

import (
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
)

// pointwise makes one node of n, if it is element-wise, and those behind it each
// of which alone reads the result of the one before.
func (c *compiler) pointwise(n *graph.Node) {
	p := ops.NewPointwise(n, c.fused[n])
	if p == nil {
		return
	}
	run, names := []*graph.Node{n}, []string{n.Op.Type}
	for last := n; ; {
		y := last.Output(0)
		next := y.OnlyUse()
		if next == nil || next.Graph() != n.Graph() || c.tapped(y) || !p.Append(next, y, c.fused[next]) {
			break
		}
		run, names, last = append(run, next), append(names, next.Op.Type), next
	}
	if len(run) < 2 {
		return
	}
	last := run[len(run)-1]
	g, out := last.Graph(), last.Output(0)
	m := g.NewNode(graph.OpKey{Domain: ops.PointwiseDomain, Type: strings.Join(names, "+")}, last.Name, p.Inputs(), []*graph.Value{nil})
	g.InsertBefore(m, last)
	last.SetOutput(0, nil)
	m.SetOutput(0, out)
	for i := len(run) - 1; i >= 0; i-- {
		delete(c.fused, run[i])
		g.Remove(run[i])
	}
	c.runs[m] = p
}
