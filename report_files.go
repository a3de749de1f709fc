package onnxq

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/onnxq/onnxq/internal/atomicfile"
	"github.com/onnxq/onnxq/report"
)

// WriteReport writes what is known of the result as one HTML file; in and out
// are the names of the models. The values along the network are there if
// Options.Report was set.
func (r *Result) WriteReport(path, in, out string) error {
	p := &report.Report{
		Float: filepath.Base(in), Quantized: filepath.Base(out), Mode: r.Mode, Target: r.Target,
		BytesIn: r.BytesIn, BytesOut: r.BytesOut, WeightBytesIn: r.WeightBytesIn, WeightBytesOut: r.WeightBytesOut,
		Nodes: r.Nodes, QuantizedNodes: r.Quantized, Measured: r.Measured, SQNR: r.SQNR, Outputs: r.Outputs,
		Notes: r.Notes, Plan: r.Plan.Nodes, Lint: r.Lint, Seconds: r.Seconds,
	}
	if r.Quantized > 0 {
		p.Int8MACs = &r.Int8MACs
	}
	for _, w := range r.Weights {
		i := slices.IndexFunc(p.Sizes, func(s report.Size) bool { return s.Op == w.Op })
		if i < 0 {
			i = len(p.Sizes)
			p.Sizes = append(p.Sizes, report.Size{Op: w.Op})
		}
		p.Sizes[i].In += w.BytesIn
		p.Sizes[i].Out += w.BytesOut
	}
	slices.SortStableFunc(p.Sizes, func(a, b report.Size) int { return cmp.Compare(b.In, a.In) })
	if d := r.Difference; d != nil {
		d.fill(p)
	}
	return writeReport(path, p, in, out)
}

// WriteReport writes the comparison as one HTML file; ref and got are the names
// of the models.
func (d *Difference) WriteReport(path, ref, got string) error {
	p := &report.Report{Float: filepath.Base(ref), Quantized: filepath.Base(got), SQNR: d.SQNR, Outputs: d.Outputs, Seconds: d.Seconds}
	for _, f := range []struct {
		path string
		to   *int64
	}{{ref, &p.BytesIn}, {got, &p.BytesOut}} {
		if info, err := os.Stat(f.path); err == nil {
			*f.to = info.Size()
		}
	}
	d.fill(p)
	return writeReport(path, p, ref, got)
}

func (d *Difference) fill(p *report.Report) {
	p.Samples, p.Values, p.Unmatched, p.Errors, p.Tensors, p.Weights = d.Samples, d.Values, d.Unmatched, d.Nodes, d.Tensors, d.Weights
}

// checkReport reports why a report could not be written to path.
func checkReport(path string, models ...string) error {
	if info, err := os.Stat(path); err == nil {
		for _, m := range models {
			if other, err := os.Stat(m); err == nil && os.SameFile(info, other) {
				return optionErrorf("the report would replace the model %s", m)
			}
		}
	}
	if err := atomicfile.Check(path); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func writeReport(path string, p *report.Report, models ...string) error {
	if err := checkReport(path, models...); err != nil {
		return err
	}
	if err := atomicfile.Write(path, 0o666, p.WriteHTML); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
