package exec

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// noAccess is memory that may not be read, as that behind the end of a mapped
// file.
var noAccess = sync.OnceValue(func() []byte {
	b, err := syscall.Mmap(-1, 0, 1<<16, syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return b
})

var sink atomic.Uint32

// TestFault reads memory that is not there, on the caller and on a worker.
func TestFault(t *testing.T) {
	p, err := Compile(build(floatNet, tensor.New(tensor.Float32, 1, 3, 8, 8), false), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 64} {
		p.main.steps[0].kernel = func(c *ops.Call) error { return c.For(n, 1, func(int, int) { sink.Store(uint32(noAccess()[4096])) }) }
		s := p.NewSession(SessionOptions{Threads: 2})
		_, err := s.Run(context.Background(), map[string]ops.Data{"x": tensor.New(tensor.Float32, 1, 3, 8, 8)}, nil, nil)
		if !errors.Is(err, ErrFault) {
			t.Errorf("a fault in %d pieces gives %v", n, err)
		}
	}
}
