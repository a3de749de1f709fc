package onnxq_test

import (
	"context"
	"math"
	"testing"

	"github.com/onnxq/onnxq"
)

func TestBench(t *testing.T) {
	m, err := onnxq.Load(sampleModel("digits"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b, err := onnxq.Bench(context.Background(), m, onnxq.Options{Data: samples("digits"), Samples: 4, Threads: 1}, 9)
	if err != nil {
		t.Fatal(err)
	}
	if b.Runs != 9 || b.Threads != 1 || !(0 < b.MinMS && b.MinMS <= b.MedianMS && b.MedianMS <= b.MaxMS) {
		t.Errorf("got %+v", b)
	}
	var share float64
	found := false
	for i, op := range b.Ops {
		share += op.Share
		found = found || op.Op == "Conv" && op.Calls >= 1
		if i > 0 && op.MS > b.Ops[i-1].MS {
			t.Errorf("%s is out of order", op.Op)
		}
	}
	if !found || math.Abs(share-1) > 1e-6 {
		t.Errorf("operators %+v", b.Ops)
	}
}
