// Package ort is ONNX Runtime as an engine: it runs models with a
// libonnxruntime that is found when the program runs, through the runtime's C
// API of version 16 and later. There is no cgo in it; a program that imports
// it is linked with the C library of the system all the same.
//
// The build tag noort leaves the engine out, and so do systems that it does
// not serve: Open then says so.
//
// A model goes to the runtime as the file it was loaded from if it is still
// what that says, and else encoded, above 2 GiB in a temporary folder. Taps are
// further outputs of an encoded copy, so the runtime does not fuse across them,
// and all are in memory until the run has ended; values of nested graphs,
// sequences and optionals cannot be tapped.
//
// Tensors of all element types that the runtime knows (none of complex
// numbers, as of 1.32), sequences of tensors and optionals that hold one of
// these pass. Empty sequences and empty optionals come out but cannot be
// fed, since the C API has no way to make them; maps and sparse tensors do not
// pass. The bounds SessionOptions.MaxBytes and MaxSteps are not kept: the
// runtime has none of that kind.
package ort

import "errors"

// Options say which library to use, and how.
type Options struct {
	// Library is the path of the shared library. "" stands for the environment
	// variable ONNXQ_ORT_LIB, and without that for the usual places: beside
	// the program, the loader's path, the onnxruntime package of a Python
	// environment or of Node.js, and the folders of system libraries.
	Library string
	// Optimization is how far the runtime changes graphs before it runs them.
	Optimization Optimization
	// Log makes the runtime write its log to standard error, from this
	// severity on.
	Log Severity
}

// Optimization is a level of graph optimization.
type Optimization uint8

// Levels of optimization; see the runtime's documentation.
const (
	OptimizeAll Optimization = iota
	OptimizeExtended
	OptimizeBasic
	OptimizeNone
)

// Severity is a level of log messages.
type Severity uint8

// Severities. Errors are returned in any case.
const (
	LogNothing Severity = iota
	LogErrors
	LogWarnings
	LogInfo
	LogVerbose
)

// Name is the name of this engine.
const Name = "ort"

// ErrLeftOut is the error of Open in a build without this engine.
var ErrLeftOut = errors.New("this build has no ONNX Runtime engine (build tag noort, or a system that it does not serve)")
