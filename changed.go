package onnxq

import (
	"errors"
	"runtime"
	"runtime/debug"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
)

// fault is what a read behind the end of a mapped file panics with.
type fault interface {
	runtime.Error
	Addr() uintptr
}

// watch makes a fault of this goroutine while it reads m's file a panic, and
// returns what to defer: it turns that, and the failure of a kernel for the
// same reason, into an error that names the file.
func watch(m *graph.Model, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		var kernel *exec.PanicError
		switch r := recover(); {
		case r != nil:
			if _, ok := r.(fault); !ok {
				panic(r)
			}
			*err = onnxfile.ErrChanged
		case errors.As(*err, &kernel):
			if _, ok := kernel.Value.(fault); !ok {
				return
			}
		default:
			return
		}
		if changed := onnxfile.Unchanged(m); changed != nil {
			*err = changed
		}
	}
}
