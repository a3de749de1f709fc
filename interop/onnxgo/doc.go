// Package onnxgo joins this module and github.com/owulveryck/onnx-go.
//
// [Backend] runs programs written on onnx-go with the embedded executor: hand
// it to onnx.NewModel in place of another backend. [CrossCheck] goes the other
// way and uses onnx-go's decoder, which shares no code with ours, as a check
// on what onnxfile has read.
//
// What onnx-go's decoder cannot read stays out of reach of both: nested graphs
// (If, Loop, Scan), tensors of 8 and 16-bit integers, float16 and all younger
// types, raw booleans, external data, sequences and optionals. The build tag
// noonnxgo leaves the package empty and onnx-go out of the binary.
package onnxgo
