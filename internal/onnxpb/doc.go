// Package onnxpb is the ONNX protobuf schema as generated code. Models are
// read and written by package graph/onnxfile straight from and to the wire;
// the generated messages serve small messages and, as an independent decoder,
// the tests.
package onnxpb
