package ops

import "github.com/onnxq/onnxq/graph"

// elementwiseSpecs lists the operators that compute every element of the
// output from the elements at the same place, after broadcasting.
func elementwiseSpecs() []Spec {
	specs := []Spec{notSpec, clipSpec, castSpec, castLikeSpec, whereSpec, identitySpec, dropoutSpec, powSpec}
	for i := range unaryOps {
		specs = append(specs, unaryOps[i].spec())
	}
	for i := range predicates {
		specs = append(specs, predicates[i].spec())
	}
	for i := range arithOps {
		specs = append(specs, arithOps[i].spec())
	}
	for i := range compareOps {
		specs = append(specs, compareOps[i].spec())
	}
	return specs
}

// bareShape returns s without what only the file knows about its dimensions.
func bareShape(s graph.Shape) graph.Shape {
	if s == nil {
		return nil
	}
	out := make(graph.Shape, len(s))
	for i, d := range s {
		d.Extra = nil
		out[i] = d
	}
	return out
}
