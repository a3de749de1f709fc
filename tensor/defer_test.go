package tensor

import (
	"bytes"
	"runtime"
	"testing"
)

func TestDeferred(t *testing.T) {
	made := 0
	// Objects of less than 16 bytes may share memory with others that live on.
	want := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6}, 20)
	d := Deferred(Uint8, []int{40, 3}, func() []byte {
		made++
		return bytes.Clone(want)
	})
	if d.Size() != 120 || d.Len() != 120 || made != 0 {
		t.Fatalf("size %d, made %d times before use", d.Size(), made)
	}
	b := d.Bytes()
	r, err := d.Reshape([]int{120})
	if err != nil || r.Bytes()[5] != 6 || As[uint8](d)[0] != 1 || made != 1 {
		t.Fatalf("made %d times while held, error %v", made, err)
	}
	if !d.Equal(Of(want, 40, 3)) || d.Clone().Bytes()[2] != 3 {
		t.Error("other elements")
	}
	got, err := Float32s(d)
	if err != nil || got[3] != 4 {
		t.Errorf("%v %v", got, err)
	}
	runtime.KeepAlive(b)
	for range 5 { // two cycles free it; the weak pointer goes with the first
		runtime.GC()
	}
	if d.Bytes()[0] != 1 || made != 2 {
		t.Errorf("made %d times, want a second time once nobody holds the bytes", made)
	}
	if e := Deferred(Int4, []int{0}, func() []byte { panic("empty") }); e.Bytes() != nil || e.Size() != 0 {
		t.Error("an empty tensor is made")
	}
}

func TestDeferredOfWrongSize(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	Deferred(Uint8, []int{2}, func() []byte { return []byte{1} }).Bytes()
}
