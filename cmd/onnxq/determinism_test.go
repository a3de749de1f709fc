package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDeterminism quantizes in every mode, with other numbers of processors, in
// folders of other names, with flags in another order, and again: the bytes are
// the same. ONNXQ_FAULTS adds the second sample model. TestOrders of package
// passes has the passes in another order.
func TestDeterminism(t *testing.T) {
	modes := []struct {
		name   string
		sample bool // wants samples
		flags  string
		same   string // the same flags, said in another order
	}{
		{name: "auto", sample: true},
		{name: "static", sample: true, flags: "--mode static"},
		{name: "every method", sample: true, flags: "--mode static --method entropy --algorithm equalize,smooth,round,bias-correction",
			same: "--algorithm bias-correction --algorithm round,smooth,equalize --method entropy --mode static"},
		{name: "operators on codes", sample: true, flags: "--format qoperator"},
		{name: "for size", sample: true, flags: "--prefer size --activations i8"},
		{name: "dynamic", flags: "--mode dynamic"},
		{name: "float8", sample: true, flags: "--target tensorrt --activations f8e4m3"},
		{name: "per token", flags: "--mode dynamic --per-token"},
		{name: "weights", flags: "--mode weights"},
		{name: "four bits", sample: true, flags: "--weights i4 --granularity block:32"},
		{name: "four bits in integer kernels", sample: true, flags: "--target qnn --weights i4"},
		{name: "bits per weight", sample: true, flags: "--bits-per-weight 9 --granularity block:32 --scale-type f16"},
		{name: "codebook", flags: "--weights kmeans:16"},
		{name: "float16", sample: true, flags: "--mode float16"},
		{name: "external", sample: true, flags: "--external-data always"},
	}
	samples := []string{"digits"}
	if os.Getenv("ONNXQ_FAULTS") != "" {
		samples = append(samples, "text")
	}
	workDir(t)
	const other = "a folder/of another name, and depth/"
	for _, s := range samples {
		if err := os.MkdirAll(other, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(other, s), os.DirFS(s)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range samples {
		for _, mode := range modes {
			t.Run(s+"/"+mode.name, func(t *testing.T) {
				var want []byte
				for i, c := range []struct{ procs, folder string }{{"1", ""}, {"2", ""}, {"7", ""}, {"2", other}, {"7", other}} {
					flags := mode.flags
					if i%2 > 0 && mode.same != "" {
						flags = mode.same
					}
					args := append([]string{"quantize", c.folder + s + "/model.onnx", "-o", c.folder + "out.onnx", "-q", "--keep-failed"}, strings.Fields(flags)...)
					if mode.sample {
						args = append(args, "--data", c.folder+s+"/calib", "--samples", "16")
					}
					cmd := exec.Command("onnxq", args...)
					cmd.Env = append(os.Environ(), "GOMAXPROCS="+c.procs)
					if text, err := cmd.CombinedOutput(); err != nil {
						var exit *exec.ExitError
						if !errors.As(err, &exit) || exit.ExitCode() != exitContract {
							t.Fatalf("%v: %v\n%s", args, err, text)
						}
					}
					got, err := os.ReadFile(c.folder + "out.onnx")
					if err != nil {
						t.Fatal(err)
					}
					data, _ := filepath.Glob(c.folder + "out.onnx.*.data")
					for _, name := range data {
						b, err := os.ReadFile(name)
						if err != nil {
							t.Fatal(err)
						}
						got = append(got, fmt.Sprint(filepath.Base(name))...)
						got = append(got, b...)
						os.Remove(name)
					}
					if want == nil {
						want = got
					} else if string(got) != string(want) {
						t.Errorf("GOMAXPROCS=%s in %q with %q: other bytes", c.procs, c.folder, flags)
					}
				}
			})
		}
	}
}
