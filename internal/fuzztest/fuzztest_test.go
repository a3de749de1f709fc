package fuzztest

import (
	"testing"
	"time"
)

// TestUsage spends processor time and memory, and sleeps, which is no use.
func TestUsage(t *testing.T) {
	Bound(t)
	before := usage()
	if before.memory == 0 {
		t.Skip("NOT TESTED: memory and the processor's time are not known on this system")
	}
	b := make([]byte, 64<<20)
	for usage().time-before.time < 50*time.Millisecond {
		for i := range b {
			b[i]++
		}
	}
	after := usage()
	if after.memory < int64(len(b)) {
		t.Errorf("%d bytes resident, with %d written", after.memory, len(b))
	}
	time.Sleep(300 * time.Millisecond)
	if d := usage().time - after.time; d > 250*time.Millisecond {
		t.Errorf("sleep takes %v of the processor", d)
	}
}
