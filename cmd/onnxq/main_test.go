package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/models"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"onnxq": main})
}

// TestScripts runs testdata/*.txtar, in which digits/ and text/ are the sample
// models and "model FILE TEXT" makes a model of its textual form.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			return unpackSamples(e.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"model": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(saveText(ts.ReadFile(args[1]), ts.MkAbs(args[0])))
			},
			"same": func(ts *testscript.TestScript, neg bool, args []string) {
				if (ts.ReadFile(args[0]) == ts.ReadFile(args[1])) == neg {
					ts.Fatalf("%s and %s: equal is %v", args[0], args[1], neg)
				}
			},
			"smaller": func(ts *testscript.TestScript, _ bool, args []string) {
				a, b := len(ts.ReadFile(args[0])), len(ts.ReadFile(args[1]))
				if float64(a) > 0.6*float64(b) {
					ts.Fatalf("%s takes %d bytes, %s %d", args[0], a, args[1], b)
				}
			},
		},
	})
}

func unpackSamples(dir string) error {
	for _, s := range models.All() {
		for name, from := range map[string]fs.FS{"calib": s.Calib, "eval": s.Eval} {
			if err := os.CopyFS(filepath.Join(dir, s.Name, name), from); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, s.Name, "model.onnx"), s.Model, 0o666); err != nil {
			return err
		}
	}
	return nil
}

func saveText(text, path string) error {
	m, err := graph.Parse(text)
	if err != nil {
		return err
	}
	return onnxfile.Save(context.Background(), m, path, onnxfile.SaveOptions{})
}

// onnxqIn runs the command in this process.
func onnxqIn(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"onnxq"}, args...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

const stateModel = `<ir_version: 8, opset_import: ["" : 13]>
accumulate (float[1, 4] x, float[1, 4] h) => (float[1, 4] y, float[1, 4] hn)
<float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
{
  p = MatMul (x, w)
  hn = Add (p, h)
  y = Relu (hn)
}
`

// workDir changes to a folder with the sample models and some files that are
// wrong.
func workDir(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if err := unpackSamples(dir); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	files := map[string]string{
		"page.onnx": "<!DOCTYPE html><html></html>", "empty.onnx": "", "cut.onnx": string(models.Digits().Model[:5000]),
		"notes.txt": "not a sample", "bad.npz": "PK no archive", "plan.json": `{"format": "onnxq-plan", "version": 1, "nodse": []}`,
		"table.json": `{"format": "other"}`, "mixed/a.npz": "x", "mixed/b.jpg": "x",
		"escape.onnx": string(evilModel(t)),
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir("none", 0o777); err != nil {
		t.Fatal(err)
	}
	if err := saveText(stateModel, "state.onnx"); err != nil {
		t.Fatal(err)
	}
}

// evilModel has an operator whose name would clear the screen.
func evilModel(t *testing.T) []byte {
	t.Helper()
	m := graph.NewModel(8, graph.Opset{Version: 17})
	g := m.Graph
	x := g.NewValue("x", graph.TensorType(1, graph.ShapeOf(2)))
	y := g.NewValue("y", graph.TensorType(1, graph.ShapeOf(2)))
	g.AddInput(x)
	g.Append(g.NewNode(graph.OpKey{Type: "Evil\x1b[2J\nOK: done"}, "", []*graph.Value{x}, []*graph.Value{y}))
	g.AddOutput(y)
	var b bytes.Buffer
	if err := onnxfile.Write(t.Context(), &b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestMistakes checks exit code and first line of what a wrong command says.
func TestMistakes(t *testing.T) {
	workDir(t)
	digits := "digits/model.onnx"
	quantize := func(more ...string) []string {
		return append([]string{"quantize", digits, "-o", "out.onnx", "--data", "digits/calib"}, more...)
	}
	for _, c := range []struct {
		args []string
		code int
		want string // regular expression on the first line of stderr
	}{
		{[]string{"quantise", digits}, 2, `unknown command "quantise" \(is quantize meant\?\); see onnxq --help`},
		{[]string{"quantise", digits, "-o", "out.onnx"}, 2, `unknown command "quantise" \(is quantize meant\?\)`},
		{[]string{"--verison"}, 2, `unknown flag --verison \(is --version meant\?\); see onnxq --help`},
		{[]string{"calibrate", "mrge", "a.json", "b.json"}, 2, `calibrate has no command "mrge" \(is merge meant\?\)`},
		{[]string{"quantize"}, 2, `quantize: MODEL is missing; see onnxq quantize --help`},
		{[]string{"quantize", digits, "--data", "digits/calib"}, 2, `say with -o where the quantized model goes`},
		{[]string{"quantize", digits, "out.onnx"}, 2, `takes only MODEL, but there is also "out.onnx"`},
		{quantize("--colour"), 2, `quantize: unknown flag --colour; see`},
		{quantize("--methdo", "mse"), 2, `unknown flag --methdo \(is --method meant\?\); see onnxq quantize --help`},
		{[]string{"quantize", "-z", digits}, 2, `unknown flag -z`},
		{[]string{"quantize", digits, "-o", "out.onnx", "--data"}, 2, `flag --data needs a value`},
		{quantize("--target", "gpu"), 2, `unknown target "gpu"; known are: ort-cpu`},
		{quantize("--mode", "dynamo"), 2, `--mode "dynamo" is none of`},
		{quantize("--method", "max"), 2, `--method: .*"max"`},
		{quantize("--percentile", "99"), 2, `--percentile goes with --method percentile`},
		{quantize("--method", "percentile", "--percentile", "30"), 2, `--percentile is 30, want more than 50`},
		{quantize("--samples", "-3"), 2, `--samples cannot be -3, want at least`},
		{quantize("--samples", "many"), 2, `--samples cannot be "many"`},
		{quantize("--activations", "u7"), 2, `--activations "u7" is none of u8, i8, u16, i16, f8e4m3, none`},
		{quantize("--mode", "static", "--weights", "i4"), 2, `weights in i4 are for mode weights: the integer kernels of ort-cpu read i8, u8 .*; i4 are read by those of qnn`},
		{quantize("--target", "qnn", "--weights", "i4", "--granularity", "block:32"), 2, `weights in i4 are for mode weights|qnn has no form for i4 weights`},
		{[]string{"quantize", digits, "-o", "out.onnx", "--target", "qnn", "--weights", "i4"}, 4, `static quantization needs samples`},
		{quantize("--activations", "f8e4m3"), 2, `ort-cpu has no kernels for f8e4m3 activations, only u8`},
		{quantize("--target", "tensorrt", "--weights", "f8e4m3"), 2, `weights in f8e4m3 go with activations of the same type in the kernels of tensorrt`},
		{quantize("--target", "tensorrt", "--activations", "f8e4m3", "--weights", "i8"), 2, `f8e4m3 activations do not go with i8 weights`},
		{quantize("--target", "qnn", "--mode", "static", "--weights", "f8e4m3"), 2, `integer kernels of qnn read i8, u8, i4 .*; f8e4m3 are read by those of tensorrt`},
		{quantize("--per-token"), 2, `a scale for each row is for mode dynamic`},
		{quantize("--granularity", "row"), 2, `--granularity "row" is none of`},
		{quantize("--range", "x"), 2, `--range "x" is not NAME=MIN:MAX`},
		{quantize("--range", "nosuch=0:1"), 2, `nosuch`},
		{quantize("--range", "image=2:1"), 2, `--range "image=2:1" is not NAME=MIN:MAX, with MIN not above MAX`},
		{quantize("--include", "nosuch*"), 2, `"nosuch\*" matches no node; onnxq plan MODEL lists`},
		{quantize("--exclude", "op:Gru"), 2, `op:Gru`},
		{quantize("--algorithm", "magic"), 2, `--algorithm "magic" is none of`},
		{quantize("--max-memory", "lots"), 2, `--max-memory: "lots" is not a size`},
		{quantize("--external-data", "maybe"), 2, `--external-data "maybe" is none of`},
		{quantize("--image", "resize"), 2, `--image: `},
		{quantize("--opset", "99"), 2, `ort-cpu runs quantized models up to opset`},
		{quantize("--min-coverage", "120"), 2, `--min-coverage is 120, want 0 to 100`},
		{quantize("--plan", "plan.json"), 2, `plan.json: not a plan: .*nodse`},
		{quantize("--table", "table.json"), 2, `table.json: not a calibration table`},
		{quantize("--bins", "0"), 2, `--bins cannot be 0`},
		{quantize("--state", "x"), 2, `--state "x" is not INPUT=OUTPUT`},
		{quantize("--state", "h=y"), 2, `state "h=y": the model has no input "h", only \["image"\]`},
		{[]string{"quantize", digits, "-o", "-", "--json", "-", "--data", "digits/calib"}, 2, `stdout can carry the result or the JSON`},
		{[]string{"calibrate", digits, "-o", "t.json"}, 2, `say with --data where the samples are`},
		{[]string{"calibrate", digits, "-o", "t.json", "--data", "digits/calib", "--shard", "3/3"}, 2, `--shard "3/3" is not I/N`},
		{[]string{"calibrate", "merge", "-o", "t.json"}, 2, `calibrate merge: TABLE is missing`},
		{[]string{"calibrate", "diff", "table.json"}, 2, `calibrate diff: AFTER is missing`},
		{[]string{"bench", digits, "--runs", "0"}, 2, `--runs is 0, want at least 1`},
		{[]string{"run", digits, "-o", "outputs", "--data", "digits/calib", "--format", "csv"}, 2, `--format "csv" is none of pb, npz`},
		{[]string{"completion", "tcsh"}, 2, `"tcsh" is none of bash, zsh, fish`},
		{quantize("--min-sqnr", "high"), 2, `--min-sqnr cannot be "high"`},
		{quantize("--in-place=maybe"), 2, `--in-place cannot be "maybe"`},
		{quantize("--opset", "10"), 2, `the model is of opset 13 and is not lowered to 10`},
		{[]string{"run", digits, "-o", "-", "--data", "digits/calib"}, 2, `give -o its name`},
		{[]string{"quantize", digits, "digits/calib", "-o", "out.onnx"}, 2, `samples are given with --data`},
		{[]string{"help", "nothing"}, 2, `unknown command "nothing"`},
		{[]string{"demo", "now"}, 2, `demo takes no arguments, but there is "now"`},

		{[]string{"inspect", "page.onnx"}, 3, `page.onnx: .*HTML`},
		{[]string{"inspect", "empty.onnx"}, 3, `empty.onnx: .*empty`},
		{[]string{"quantize", "cut.onnx", "-o", "out.onnx", "--data", "digits/calib"}, 3, `cut.onnx: `},
		{[]string{"inspect", "escape.onnx"}, 3, `escape.onnx: .*node "y".*control characters`},
		{[]string{"quantize", "notes.txt", "-o", "out.onnx", "--data", "digits/calib"}, 3, `notes.txt: `},

		{[]string{"quantize", digits, "-o", "out.onnx", "--mode", "static"}, 4, `samples: give --data`},
		{[]string{"quantize", digits, "-o", "out.onnx", "--data", "nowhere"}, 4, `nowhere: no such file or folder`},
		{[]string{"quantize", digits, "-o", "out.onnx", "--data", "none"}, 4, `none: `},
		{[]string{"quantize", digits, "-o", "out.onnx", "--data", "bad.npz"}, 4, `bad.npz: `},
		{[]string{"quantize", digits, "-o", "out.onnx", "--data", "notes.txt"}, 4, `notes.txt: `},
		{[]string{"quantize", digits, "-o", "out.onnx", "--data", "mixed"}, 4, `mixed: `},
		{[]string{"quantize", digits, "-o", "out.onnx", "--data", "random:x"}, 4, `random:x`},
		{[]string{"quantize", digits, "-o", "out.onnx", "--data", "text/calib"}, 4, `text/calib.*"image"`},
		{quantize("--holdout", "32"), 4, `32 samples held out of 32 leave none`},
		{quantize("--eval-data", "nowhere"), 4, `nowhere: `},
		{[]string{"run", "state.onnx", "-o", "outputs", "--data", "x.npz"}, 4, `x.npz: `},

		{[]string{"inspect", "missing.onnx"}, 5, `missing.onnx: no such file`},
		{[]string{"inspect", "none"}, 5, `none: is a directory`},
		{[]string{"quantize", digits, "-o", "no/such/out.onnx", "--data", "digits/calib"}, 5, `no/such/out.onnx: there is no folder no/such`},
		{quantize("--json", "no/out.json"), 5, `--json: write no/out.json: there is no folder no`},
		{quantize("--report", "no/out.html"), 5, `--report: write no/out.html: there is no folder no`},
		{[]string{"quantize", digits, "-o", "none", "--data", "digits/calib"}, 5, `none: `},
		{[]string{"quantize", digits, "-o", digits, "--data", "digits/calib"}, 5, `digits/model.onnx: .*`},
		{quantize("--plan", "missing.json"), 5, `missing.json: no such file`},
		{quantize("--table", "missing.json"), 5, `missing.json: no such file`},
		{[]string{"calibrate", "merge", "missing.json", "-o", "t.json"}, 5, `missing.json: no such file`},

		{[]string{"inspect", digits, "--limit", "nodes=3"}, 6, `digits/model.onnx: .*nodes=3`},
		{quantize("--limit", "memory=1kB", "--limit", "nodes=22"), 6, `nodes=22`},
		{quantize("--limit", "size=3"), 2, `the name is none of depth, files, memory, nodes, objects, rank`},
		{quantize("--limit", "nodes"), 2, `--limit "nodes" is not NAME=N`},
		{quantize("--max-memory", "2kB"), 6, `memory limit.*a larger --max-memory allows more`},

		{quantize("--min-sqnr", "200"), 7, `output "logits" has an SQNR of [0-9.]+ dB, 200 dB were demanded`},
		{quantize("--exclude", "*", "--min-coverage", "99"), 7, `0.0 % of the multiply-adds`},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			os.Remove("out.onnx")
			code, stdout, stderr := onnxqIn(t, c.args...)
			line, _, _ := strings.Cut(stderr, "\n")
			if code != c.code || !regexp.MustCompile(c.want).MatchString(line) || !strings.HasPrefix(line, "onnxq: ") {
				t.Errorf("exit %d, want %d with %q; stderr:\n%s", code, c.code, c.want, stderr)
			}
			if _, err := os.Stat("out.onnx"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the output was written (%v)", err)
			}
			if strings.Contains(stdout+stderr, "\x1b") || strings.Contains(stderr, "goroutine") {
				t.Errorf("escapes or a trace in\n%s%s", stdout, stderr)
			}
			if c.code != 7 && stdout != "" {
				t.Errorf("stdout: %s", stdout)
			}
		})
	}
	if b, _ := os.ReadFile(digits); !bytes.Equal(b, models.Digits().Model) {
		t.Error("the model was changed")
	}
}

// TestOrders runs every command with its flags before, between and behind its
// arguments, and behind "--".
func TestOrders(t *testing.T) {
	workDir(t)
	for i := range 2 {
		code, _, stderr := onnxqIn(t, "calibrate", "digits/model.onnx", "-o", fmt.Sprintf("shard%d.json", i), "--data", "digits/calib", "--shard", fmt.Sprintf("%d/2", i), "--samples", "6")
		if code != 0 {
			t.Fatal(stderr)
		}
	}
	data := []string{"--data", "digits/calib", "--samples", "4"}
	for _, c := range []struct {
		command    []string
		positional []string
		flags      []string
	}{
		{[]string{"quantize"}, []string{"digits/model.onnx"}, append(data, "-o", "out", "--threads", "1", "-v")},
		{[]string{"calibrate"}, []string{"digits/model.onnx"}, append(data, "-o", "out", "--bins=64")},
		{[]string{"calibrate", "merge"}, []string{"shard0.json", "shard1.json"}, []string{"-o", "out"}},
		{[]string{"calibrate", "diff"}, []string{"shard0.json", "shard1.json"}, []string{"--json", "out", "--method", "mse"}},
		{[]string{"plan"}, []string{"digits/model.onnx"}, []string{"-o", "out", "--exclude", "op:Gemm", "-q"}},
		{[]string{"inspect"}, []string{"digits/model.onnx"}, []string{"--json", "out"}},
		{[]string{"prepare"}, []string{"digits/model.onnx"}, []string{"-o", "out", "--opset", "17"}},
		{[]string{"lint"}, []string{"digits/model.onnx"}, []string{"--json", "out", "--target", "ort-cpu", "-v"}},
		{[]string{"compare"}, []string{"digits/model.onnx", "digits/model.onnx"}, append(data, "--json", "out", "-v")},
		{[]string{"run"}, []string{"digits/model.onnx"}, append(data, "-o", "out", "--format=npz")},
		{[]string{"bench"}, []string{"digits/model.onnx"}, []string{"--runs", "2", "--threads=1", "--json", "out"}},
		{[]string{"demo"}, nil, []string{"-o", "out"}},
		{[]string{"targets"}, nil, []string{"--json", "out"}},
		{[]string{"ops"}, nil, []string{"--json", "out"}},
		{[]string{"completion"}, []string{"bash"}, nil},
		{[]string{"man"}, nil, nil},
	} {
		orders := map[string][]string{
			"before":  append(append(append([]string{}, c.command...), c.flags...), c.positional...),
			"behind":  append(append(append([]string{}, c.command...), c.positional...), c.flags...),
			"dashes":  append(append(append(append([]string{}, c.command...), c.flags...), "--"), c.positional...),
			"between": append(append(append([]string{}, c.command...), first(c.positional)...), append(append([]string{}, c.flags...), rest(c.positional)...)...),
		}
		if len(c.command) == 2 {
			orders["before the second word"] = append(append(append([]string{c.command[0]}, c.flags...), c.command[1]), c.positional...)
		}
		var want string
		for _, order := range []string{"before", "behind", "dashes", "between", "before the second word"} {
			args, ok := orders[order]
			if !ok {
				continue
			}
			os.RemoveAll("out")
			code, stdout, stderr := onnxqIn(t, args...)
			if code != 0 {
				t.Errorf("%s, %s: exit %d: %s", strings.Join(c.command, " "), order, code, stderr)
				continue
			}
			if len(c.flags) > 0 {
				if _, err := os.Stat("out"); err != nil {
					t.Errorf("%s, %s: %v", strings.Join(c.command, " "), order, err)
				}
			}
			if c.command[0] == "bench" || c.command[0] == "demo" {
				continue // prints times
			}
			got := regexp.MustCompile(`(?m)^time.*$|[0-9.]+ s$`).ReplaceAllString(stdout, "")
			if want == "" {
				want = got
			} else if got != want {
				t.Errorf("%s, %s: other output:\n%s\nwant\n%s", strings.Join(c.command, " "), order, got, want)
			}
		}
	}
}

func first(s []string) []string { return s[:min(1, len(s))] }
func rest(s []string) []string  { return s[min(1, len(s)):] }

func TestJSONAloneOnStdout(t *testing.T) {
	workDir(t)
	for _, args := range [][]string{
		{"quantize", "digits/model.onnx", "-o", "out.onnx", "--data", "digits/calib"},
		{"plan", "digits/model.onnx"}, {"inspect", "digits/model.onnx"}, {"targets"}, {"ops"},
		{"prepare", "digits/model.onnx", "-o", "out.onnx"}, {"lint", "digits/model.onnx"},
		{"compare", "digits/model.onnx", "digits/model.onnx", "--data", "digits/calib", "--samples", "2"},
	} {
		code, stdout, stderr := onnxqIn(t, append(args, "--json", "-")...)
		var v any
		if err := json.Unmarshal([]byte(stdout), &v); code != 0 || err != nil || stderr != "" {
			t.Errorf("%v: exit %d, %v, stderr %q, stdout:\n%s", args, code, err, stderr, stdout)
		}
	}
	var res map[string]any
	_, stdout, _ := onnxqIn(t, "quantize", "digits/model.onnx", "-o", "out.onnx", "--data", "digits/calib", "--json", "-")
	if err := json.Unmarshal([]byte(stdout), &res); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{
		"nodes", "quantized", "float", "bytes_in", "bytes_out", "weight_bytes_in", "weight_bytes_out", "weights",
		"int8_macs_share", "sqnr_db", "outputs", "seconds", "peak_rss_bytes", "mode", "target",
	} {
		if _, ok := res[key]; !ok {
			t.Errorf("no %q in %s", key, stdout)
		}
	}
}

func TestSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: no such signals on Windows")
	}
	workDir(t)
	for _, c := range []struct {
		sig  syscall.Signal
		data string
		want int
	}{
		{syscall.SIGINT, "random:1000000", 130},
		{syscall.SIGTERM, "random:1000000", 143},
		{syscall.SIGINT, "-", 130}, // waits for input that does not come
	} {
		sig, want := c.sig, c.want
		cmd := exec.Command("onnxq", "calibrate", "text/model.onnx", "-o", "table.out", "--data", c.data)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
		err = cmd.Wait()
		late.Stop()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != want {
			t.Errorf("%v: %v, want exit %d; stderr %s", sig, err, want, stderr.String())
		}
		if !strings.HasPrefix(stderr.String(), "onnxq: stopped by signal") {
			t.Errorf("%v: stderr %q", sig, stderr.String())
		}
		if _, err := os.Stat("table.out"); err == nil {
			t.Errorf("%v: the output exists", sig)
		}
	}
}

func TestMeant(t *testing.T) {
	known := []string{"--data", "--mode", "--method", "--max-memory", "--holdout"}
	for word, want := range map[string]string{
		"--dta": "--data", "--mehtod": "--method", "--maxmemory": "--max-memory", "--mod": "--mode",
		"--colour": "", "--q": "", "": "",
	} {
		got := meant(word, known)
		if want != "" {
			want = " (is " + want + " meant?)"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain → ä\n\tb":     "plain → ä\n\tb",
		"a\x1b[2J\x07b\r":    `a\x1b[2J\ab\r`,
		"\x9b1m \u202e \xff": `\x9b1m \u202e \xff`,
		"\ufffd":             "\ufffd",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}
