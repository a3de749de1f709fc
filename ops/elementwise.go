package ops

// elementwiseSpecs lists the operators that compute every element of the
// output from the elements at the same place, after broadcasting.
func elementwiseSpecs() []Spec {
	specs := []Spec{notSpec, clipSpec, castSpec, castLikeSpec, bitCastSpec, whereSpec, identitySpec, dropoutSpec, powSpec}
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
