package onnxfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/graph"
)

// ContentError says that a file was read but does not hold a valid model (or
// tensor). An error that concerns the file system instead wraps a
// *fs.PathError, and one about a limit a *LimitError; neither is a
// ContentError.
type ContentError struct {
	Path string // "" for a stream
	Err  error
}

// Error names the file, quoted where its name could corrupt a terminal.
func (e *ContentError) Error() string { return withPath(e.Path, e.Err) }

// Unwrap returns the cause.
func (e *ContentError) Unwrap() error { return e.Err }

// LimitError says that a file asks for more than Limits allow.
type LimitError struct {
	Name  string // field of Limits in lower case
	Limit int64
}

// Error names the limit.
func (e *LimitError) Error() string {
	return fmt.Sprintf("over the limit %s=%d", e.Name, e.Limit)
}

// ErrChanged is the cause of an error about a file that was cut short or
// rewritten while it was in use.
var ErrChanged = errors.New("the file was changed while in use")

// ErrInput is the cause of an error about a destination that is the file the
// model was loaded from, without SaveOptions.InPlace.
var ErrInput = errors.New("the file is the input")

func withPath(path string, err error) string {
	if path == "" {
		return err.Error()
	}
	return printable(path) + ": " + err.Error()
}

// printable returns s, quoted unless it is plain.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}

type pathError struct {
	path string
	err  error
}

func (e *pathError) Error() string { return withPath(e.path, e.err) }
func (e *pathError) Unwrap() error { return e.err }

// classify gives err the path and the type that tell bad contents from a file
// that could not be read.
func classify(path string, err error) error {
	var pe *fs.PathError
	var le *LimitError
	switch {
	case errors.Is(err, ErrChanged):
		return &fs.PathError{Op: "read", Path: path, Err: ErrChanged}
	case errors.As(err, &pe) || errors.As(err, &le):
		return &pathError{path, err}
	}
	return &ContentError{Path: path, Err: err}
}

// Guard runs f and returns its error. A fault while f reads a mapped file that
// has been cut short since is an error that wraps ErrChanged instead of the
// end of the process. Only the calling goroutine is guarded.
func Guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			err = ErrChanged
		default:
			panic(r)
		}
	}()
	return f()
}

// Unchanged returns an error that wraps ErrChanged and names the file if one
// that m was loaded from is not what it was then.
func Unchanged(m *graph.Model) error { return originOf(m).unchanged() }

// guess says what else the bytes may be if they are no model, or "".
func guess(b []byte) string {
	head := strings.ToLower(strings.TrimSpace(string(b[:min(len(b), 256)])))
	switch {
	case len(b) == 0:
		return "the file is empty"
	case strings.HasPrefix(head, "version https://git-lfs"):
		return "this is a git-lfs pointer, not the model: fetch the file with git lfs pull"
	case strings.HasPrefix(head, "<!doctype") || strings.HasPrefix(head, "<html") || strings.HasPrefix(head, "<?xml"):
		return "this is an HTML or XML page, not a model: the download went wrong"
	case bytes.HasPrefix(b, []byte("PK\x03\x04")):
		return "this is a zip archive (a PyTorch checkpoint?), not an ONNX model"
	case len(b) > 8 && string(b[4:8]) == "ORTM":
		return "this is ONNX Runtime's own format, not an ONNX model"
	case len(b) > 8 && string(b[4:8]) == "TFL3":
		return "this is a TensorFlow Lite model, not an ONNX model"
	case strings.HasPrefix(head, "ir_version:") || strings.HasPrefix(head, "graph {"):
		return "this is a model in protobuf text form, which is not supported: convert it to the binary form"
	}
	return ""
}
