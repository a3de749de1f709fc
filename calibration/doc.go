// Package calibration finds the ranges of a model's values from samples. A
// Source says where samples come from; an Observer gathers the statistics of
// one value as it is produced; Range turns statistics into a range by a Method;
// a Table holds the statistics of all values on disk, so that tables made of
// parts of the samples merge into the one that all samples would have given,
// byte for byte.
package calibration
