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
// folders of other names and again: the bytes are the same. ONNXQ_FAULTS adds
// the second sample model.
func TestDeterminism(t *testing.T) {
	modes := []struct {
		name   string
		sample bool // wants samples
		flags  string
	}{
		{"auto", true, ""},
		{"static", true, "--mode static"},
		{"every method", true, "--mode static --method entropy --algorithm equalize,smooth,round,bias-correction"},
		{"operators on codes", true, "--format qoperator"},
		{"for size", true, "--prefer size --activations i8"},
		{"dynamic", false, "--mode dynamic"},
		{"weights", false, "--mode weights"},
		{"four bits", true, "--weights i4 --granularity block:32"},
		{"bits per weight", true, "--bits-per-weight 9 --granularity block:32 --scale-type f16"},
		{"codebook", false, "--weights kmeans:16"},
		{"float16", true, "--mode float16"},
		{"external", true, "--external-data always"},
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
				for _, c := range []struct{ procs, folder string }{{"1", ""}, {"2", ""}, {"7", ""}, {"2", other}, {"7", other}} {
					args := append([]string{"quantize", c.folder + s + "/model.onnx", "-o", c.folder + "out.onnx", "-q", "--keep-failed"}, strings.Fields(mode.flags)...)
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
						t.Errorf("GOMAXPROCS=%s in %q: other bytes", c.procs, c.folder)
					}
				}
			})
		}
	}
}
