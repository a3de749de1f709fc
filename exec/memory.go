package exec

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Memory bounds what a process takes: what the Go runtime has from the system,
// and the pages of files that are mapped.
type Memory struct {
	limit int64
	old   int64 // the soft limit of the Go runtime before
}

// reserve is what the process may take besides what is counted, and mapping
// how much of a model's file is taken to be in memory besides what is.
const reserve = 6 << 20

// BoundMemory bounds the process to limit bytes until Release is called.
// mapped is the size of mapped files that will be read. It is an error
// (ErrLimit) if the process takes more already.
func BoundMemory(limit, mapped int64) (*Memory, error) {
	m := &Memory{limit: limit - reserve}
	_, file := taken()
	room := m.limit - max(file, mapped)
	m.old = debug.SetMemoryLimit(max(room, 1<<20))
	if err := m.Check(); err != nil {
		m.Release()
		return nil, err
	}
	return m, nil
}

// Release ends the bound.
func (m *Memory) Release() {
	if m != nil {
		debug.SetMemoryLimit(m.old)
	}
}

// taken returns what the Go runtime takes, without what it could use again or
// has given back, and the resident pages of mapped files.
func taken() (heap, file int64) {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64()) - int64(s[1].Value.Uint64()) - int64(s[2].Value.Uint64()), residentFiles()
}

// Left returns how much more the process may take.
func (m *Memory) Left() int64 {
	heap, file := taken()
	return m.limit - heap - file
}

// Check returns an error (ErrLimit) if the process takes too much, also when
// the garbage is collected.
func (m *Memory) Check() error { return m.want(0) }

// want returns an error unless the process may take n bytes more.
func (m *Memory) want(n int64) error {
	if m == nil || m.Left() >= n {
		return nil
	}
	runtime.GC()
	if left := m.Left(); left < n {
		return fmt.Errorf("%w: the process takes %d bytes, %d more wanted, %d allowed", ErrLimit, m.limit-left+reserve, n, m.limit+reserve)
	}
	return nil
}
