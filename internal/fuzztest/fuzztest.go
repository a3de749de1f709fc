// Package fuzztest bounds what one input of a fuzz target may take.
package fuzztest

import (
	"testing"
	"time"
)

const (
	maxTime   = 5 * time.Second
	maxMemory = 1 << 30
)

// Bound fails t if the rest of the test takes more than 5 s, or takes the
// process beyond 1 GiB of memory. Time is the processor's, spent by the whole
// process, so that a machine that is loaded or stops does not count; what waits
// for ever ends by the time limit of package testing.
func Bound(t *testing.T) {
	before := usage()
	t.Cleanup(func() {
		after := usage()
		if d := after.time - before.time; d > maxTime {
			t.Errorf("takes %v, more than %v", d, maxTime)
		}
		if after.memory > maxMemory && after.memory > before.memory {
			t.Errorf("the process has taken %d bytes, more than %d", after.memory, maxMemory)
		}
	})
}

// used is what the process has used since it began.
type used struct {
	time   time.Duration
	memory int64 // most bytes resident; 0 if that is not known
}
