//go:build !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

import (
	"cmp"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
)

// event is an entry of the runtime's profile, a file in the trace event format
// of Chromium; times are in microseconds.
type event struct {
	Category string `json:"cat"`
	Name     string `json:"name"`
	Thread   int64  `json:"tid"`
	Start    int64  `json:"ts"`
	Length   int64  `json:"dur"`
	Args     struct {
		Op string `json:"op_name"`
	} `json:"args"`
}

// readProfile returns the times by operator, without those of nodes in nested
// graphs in that of the node that holds these. The runtime does not say which
// domain an operator is of.
func readProfile(r io.Reader) ([]exec.OpTime, error) {
	d := json.NewDecoder(r)
	if _, err := d.Token(); err != nil { // "["
		return nil, err
	}
	var events []event
	for d.More() {
		var e event
		if err := d.Decode(&e); err != nil {
			return nil, err
		}
		if e.Category == "Node" && strings.HasSuffix(e.Name, "_kernel_time") && e.Args.Op != "" {
			events = append(events, e)
		}
	}
	slices.SortStableFunc(events, func(a, b event) int {
		return cmp.Or(cmp.Compare(a.Thread, b.Thread), cmp.Compare(a.Start, b.Start), cmp.Compare(b.Length, a.Length))
	})
	times := map[string]*exec.OpTime{}
	var around []*event // the events that hold the current one
	for i := range events {
		e := &events[i]
		for len(around) > 0 {
			if o := around[len(around)-1]; o.Thread == e.Thread && holds(o.Args.Op) && e.Start+e.Length <= o.Start+o.Length {
				break
			}
			around = around[:len(around)-1]
		}
		t := times[e.Args.Op]
		if t == nil {
			t = &exec.OpTime{Op: graph.OpKey{Type: e.Args.Op}}
			times[e.Args.Op] = t
		}
		length := time.Duration(e.Length) * time.Microsecond
		t.Count++
		t.Time += length
		if len(around) > 0 {
			times[around[len(around)-1].Args.Op].Time -= length
		}
		around = append(around, e)
	}
	var list []exec.OpTime
	for _, t := range times {
		list = append(list, *t)
	}
	exec.SortTimes(list)
	return list, nil
}

// holds reports whether nodes of an operator have nested graphs.
func holds(op string) bool {
	switch op {
	case "If", "Loop", "Scan", "SequenceMap", "BeamSearch", "GreedySearch", "Sampling":
		return true
	}
	return false
}
