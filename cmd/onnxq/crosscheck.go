//go:build !noonnxgo

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/interop/onnxgo"
)

// crossCheckReport is what both decoders make of a model.
type crossCheckReport = onnxgo.Report

// checkCrossCheck reports whether this binary has the other decoder.
func checkCrossCheck() error { return nil }

// crossCheck compares m, which was loaded from path, with what onnx-go's decoder
// makes of the file.
func crossCheck(path string, m *graph.Model) (*crossCheckReport, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r *crossCheckReport
	err = onnxfile.Guard(func() error {
		r = onnxgo.CrossCheck(data, m)
		return nil
	})
	return r, err
}

// printCrossCheck writes r as a table, reasons for not reading something once.
func printCrossCheck(w io.Writer, r *crossCheckReport) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "onnx-go %s\t%v\n", onnxgo.Version, r)
	for _, d := range r.Differences {
		fmt.Fprintf(tw, "difference\t%s\n", d)
	}
	var reasons []string
	what := map[string][]string{}
	for _, u := range r.Unread {
		if what[u.Why] == nil {
			reasons = append(reasons, u.Why)
		}
		what[u.Why] = append(what[u.Why], u.What)
	}
	for _, why := range reasons {
		names := what[why]
		if len(names) > 3 {
			names = append(names[:2:2], fmt.Sprintf("… and %d more", len(names)-2))
		}
		fmt.Fprintf(tw, "cannot read\t%s (%s)\n", why, strings.Join(names, ", "))
	}
	return tw.Flush()
}

// crossCheckError is the first difference as an error about the file.
func crossCheckError(path string, r *crossCheckReport) error {
	if len(r.Differences) == 0 {
		return nil
	}
	return &onnxfile.ContentError{Path: path, Err: fmt.Errorf("onnx-go decodes it differently in %d places, first: %s", len(r.Differences), r.Differences[0])}
}
