// Package opdoc makes the page docs/operators.md from the operator table.
package opdoc

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/targets"
)

const head = `# Operators

Generated from the operator table (package ops) and the targets by ` + "`make docs`" + `; do not edit.

- **Values**: how outputs relate to inputs. *compute*: new values, whose range is observed; *pass*: the input's values rearranged; *join*: values of several
  inputs side by side; *fixed*: a known range; *integers*: no real values; *opaque*: kept as it is, never quantized.
- **Inputs**: w marks weights and b biases, ? what may be omitted, … what may be repeated.
- **Runs**: the embedded executor computes it, so that models with it can be calibrated.
- **A column for each target**: what it does with the operator on integers. *anchor*: multiplies with a constant weight, the reason to quantize; *bridge*:
  pays between integer neighbours; *carry*: moves codes; *table*: looks rows up in a quantized constant; *dynamic*: multiplies inputs, quantized as they
  come, with a constant weight.

Operators that are not listed are kept as they are, and a model with one can be prepared and inspected but not calibrated.

`

// Write writes the page.
func Write(w io.Writer) error {
	specs := slices.Clone(ops.All())
	slices.SortFunc(specs, func(a, b *ops.Spec) int { return strings.Compare(name(a), name(b)) })
	var b strings.Builder
	b.WriteString(head)
	fmt.Fprintf(&b, "%d operators.\n\n| Operator | From opset | Values | Inputs | Runs |", len(specs))
	for _, t := range targets.All() {
		fmt.Fprintf(&b, " %s |", t.Name)
	}
	b.WriteString("\n|---|---|---|---|---|" + strings.Repeat("---|", len(targets.All())) + "\n")
	for _, s := range specs {
		runs := "yes"
		if s.Compile == nil {
			runs = "no"
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s |", name(s), max(s.Since, 1), s.Flow, inputs(s), runs)
		for _, t := range targets.All() {
			var classes []string
			for _, r := range t.Rules {
				if r.Op == s.Type && graph.NormalDomain(s.Domain) == graph.OnnxDomain && !slices.Contains(classes, string(r.Class)) {
					classes = append(classes, string(r.Class))
				}
			}
			fmt.Fprintf(&b, " %s |", strings.Join(classes, ", "))
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func name(s *ops.Spec) string { return graph.OpKey{Domain: s.Domain, Type: s.Type}.String() }

func inputs(s *ops.Spec) string {
	var out []string
	for _, p := range s.In {
		t := p.Name
		switch p.Role {
		case ops.Weight:
			t += " (w)"
		case ops.Bias:
			t += " (b)"
		}
		if p.Optional {
			t += "?"
		}
		if p.Variadic {
			t += "…"
		}
		out = append(out, t)
	}
	return strings.Join(out, ", ")
}
