package onnxq

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/quant"
)

// BenchmarkObserving measures, on real models, what calibration takes above
// running the same samples: each metric is the time of collecting statistics
// and making every range by a method, over that of running alone, as the median
// over rounds that interleave the two. "median" has the medians over models.
func BenchmarkObserving(b *testing.B) {
	dir := os.Getenv("ONNXQ_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "shared")
	}
	models, _ := filepath.Glob(filepath.Join(dir, "zoo", "*", "model.onnx"))
	if len(models) == 0 {
		b.Skipf("SKIPPED: no models in %s/zoo (set ONNXQ_SHARED)", dir)
	}
	all := map[string][]float64{}
	for _, path := range models {
		name := filepath.Base(filepath.Dir(path))
		b.Run(name, func(b *testing.B) { benchmarkObserving(b, path, all) })
	}
	b.Run("median", func(b *testing.B) {
		b.ReportMetric(0, "ns/op")
		for name, costs := range all {
			b.ReportMetric(middle(costs), name)
		}
	})
}

// middle returns the median.
func middle(v []float64) float64 {
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

func benchmarkObserving(b *testing.B, path string, all map[string][]float64) {
	ctx := b.Context()
	m, err := Load(path)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	o := Options{Mode: Static}
	p, _, err := Prepare(ctx, m, o)
	if err != nil {
		b.Fatal(err)
	}
	plan, err := MakePlan(p, o)
	if err != nil {
		b.Fatal(err)
	}
	watch, err := plan.Wants(p)
	if err != nil {
		b.Fatal(err)
	}
	taps := make([]bool, len(watch))
	for i, w := range watch {
		taps[i] = w.Observe
	}
	src, err := Open(ctx, m, []string{filepath.Join(filepath.Dir(path), "calib")}, o)
	if err != nil {
		b.Fatal(err)
	}
	defer src.Close()
	run := func(watch []quant.Watch, taps []bool, methods []calibration.Method) []time.Duration {
		prog, err := exec.Compile(p, exec.Options{Taps: taps, Blocks: true})
		if err != nil {
			b.Fatal(err)
		}
		defer prog.Close()
		start := time.Now()
		t, err := calibration.Collect(ctx, prog, src, calibration.CollectOptions{Watch: watch})
		if err != nil {
			b.Fatal(err)
		}
		collected := time.Since(start)
		out := []time.Duration{collected}
		for _, m := range methods {
			start := time.Now()
			var list []calibration.Request
			for _, s := range t.Values {
				list = append(list, calibration.Request{Stats: s, Method: m, Options: calibration.MethodOptions{Scheme: quant.Scheme{Type: quant.U8, Axis: -1}}})
			}
			for _, a := range calibration.Ranges(list, 0) {
				if a.Err != nil {
					b.Fatal(a.Err)
				}
			}
			out = append(out, collected+time.Since(start))
		}
		return out
	}
	methods := []calibration.Method{calibration.MinMax, calibration.Percentile, calibration.Entropy, calibration.MSE, calibration.Auto}
	var costs [][]float64
	for len(costs) < 3 || b.Elapsed() < 2*time.Second && len(costs) < 25 {
		plain := run(make([]quant.Watch, len(watch)), nil, nil)[0]
		observed := run(watch, taps, methods)
		var c []float64
		for _, d := range observed {
			c = append(c, d.Seconds()/plain.Seconds())
		}
		costs = append(costs, c)
	}
	b.ReportMetric(0, "ns/op")
	for k, name := range append([]calibration.Method{"collect"}, methods...) {
		var v []float64
		for _, c := range costs {
			v = append(v, c[k])
		}
		m := middle(v)
		all[string(name)] = append(all[string(name)], m)
		b.ReportMetric(m, string(name))
	}
}
