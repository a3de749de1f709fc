package ops

import "github.com/onnxq/onnxq/graph"

// Certain is the magnitude from which logits count as certain: a probability of
// 0.993 or 0.007.
const Certain = 5

// Decides reports whether v holds logits: values that, moved about alone, reach a
// Sigmoid whose probabilities are outputs of the model, by themselves, moved
// about, multiplied or compared. What samples happen to show of such values says
// little of how certain a model can be of others.
func Decides(v *graph.Value) bool {
	seen := map[*graph.Value]bool{}
	var leads func(v *graph.Value, past bool) bool
	leads = func(v *graph.Value, past bool) bool {
		if v == nil || seen[v] {
			return false
		}
		seen[v] = true
		if past && v.IsOutput() {
			return true
		}
		for _, u := range v.Uses() {
			n := u.Node
			if n == nil || n.Op.Domain != graph.OnnxDomain {
				continue
			}
			spec := Lookup(n)
			if spec == nil {
				continue
			}
			switch flow := spec.FlowAt(n); {
			case n.Op.Type == "Sigmoid":
				if past {
					continue
				}
				if leads(n.Output(0), true) {
					return true
				}
				continue
			case flow == Pass || flow == Join:
			case past && (n.Op.Type == "Mul" || n.Op.Type == "Max" || n.Op.Type == "Min" || n.Op.Type == "ReduceMax" || n.Op.Type == "TopK" || n.Op.Type == "Sqrt" || n.Op.Type == "Pow"):
			default:
				continue
			}
			for _, y := range n.Outputs() {
				if leads(y, past) {
					return true
				}
			}
		}
		return false
	}
	return leads(v, false)
}
