//go:build linux

package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/onnxpb"
	"github.com/onnxq/onnxq/models"
	"github.com/onnxq/onnxq/tensor"
	"google.golang.org/protobuf/proto"
)

// The tests named TestFault bring the whole command into the faults that a file
// system, a user or the kernel can cause:
//
//	F1, F10   killed at any moment, one file or two           TestFaultKilled
//	F2        disk full, file size limited                    TestFaultNoSpace
//	F3, F6    output folder missing or closed, output a       TestFaultDestination, TestFaultReadOnly
//	          folder, a FIFO, a device
//	F4, F5    output is the input by any alias, or a link     TestFaultOutputIsInput, TestFaultOutputIsLink
//	F7        signals                                         TestFaultStopped
//	F8        two runs with one output                        TestFaultConcurrent
//	F9        external data                                   TestFaultExternalName
//	F11       little memory, endless loops                    TestFaultLittleMemory
//	F12–F18   no, bad, hostile, unreadable, many samples      TestFaultSamples, TestFaultData, TestFaultReadOnly
//	F19       input changes while it is read                  TestFaultInputChanges
//	F20       results past the 2 GiB of a protobuf            TestFaultHuge
//	F21       locale, mask, names, home, closed stdout        TestFaultSurroundings
//	F22       the same bytes out                              TestFaultSurroundings, TestDeterminism
//
// ONNXQ_FAULTS=N takes N points in time to kill it at instead of 12.

func kills(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("ONNXQ_FAULTS"))
	if err != nil {
		n = 12
		t.Logf("ONNXQ_FAULTS is no number: killed at %d points", n)
	}
	return n
}

// hang is after how long a process counts as one that does not end. It is far
// more than a busy machine needs, and far less than what these tests interrupt
// or forbid would take.
const hang = 3 * time.Minute

// ended waits for a process that was started.
func ended(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	late := time.AfterFunc(hang, func() { cmd.Process.Kill() })
	cmd.Wait()
	if !late.Stop() {
		t.Fatalf("%v: does not end", cmd.Args)
	}
}

// process runs the command as a process of its own.
func process(t *testing.T, prepare func(*exec.Cmd), args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("onnxq", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if prepare != nil {
		prepare(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended(t, cmd)
	for _, bad := range []string{"goroutine ", "panic:", "fatal error", "\x1b"} {
		if strings.Contains(errs.String(), bad) {
			t.Errorf("%v: stderr holds %q:\n%s", args, bad, errs.String())
		}
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// under makes the command run in a shell after a line such as "ulimit -f 8".
func under(line string) func(*exec.Cmd) {
	return func(c *exec.Cmd) {
		c.Args = append([]string{"sh", "-c", line + `; exec "$0" "$@"`}, c.Args...)
		c.Path, _ = exec.LookPath("sh")
		c.Err = nil
	}
}

func quantizeArgs(out string, more ...string) []string {
	return append([]string{"quantize", "digits/model.onnx", "-o", out, "--data", "digits/calib"}, more...)
}

func fails(t *testing.T, prepare func(*exec.Cmd), want int, text string, args ...string) {
	t.Helper()
	code, _, stderr := process(t, prepare, args...)
	if code != want || !strings.Contains(stderr, text) {
		t.Errorf("%v: exit %d, want %d with %q; stderr %s", args, code, want, text, stderr)
	}
}

func works(t *testing.T, prepare func(*exec.Cmd), args ...string) {
	t.Helper()
	if code, _, stderr := process(t, prepare, args...); code != 0 {
		t.Errorf("%v: exit %d; stderr %s", args, code, stderr)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func noTemps(t *testing.T, dir string) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(dir, ".onnxq-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// contents hashes a model with its external data; "" if it cannot be loaded.
func contents(path string) string {
	m, err := onnxfile.Open(path)
	if err != nil {
		return ""
	}
	defer m.Close()
	h := sha256.New()
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			fmt.Fprintln(h, n.Op, n.Label())
		}
		for _, v := range g.Initializers() {
			io.WriteString(h, v.Name())
			h.Write(v.Const.Bytes())
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestFaultKilled is F1 and F10: after kill -9 at any moment the output is the old
// or the new model, with its external data, and the next run clears up.
func TestFaultKilled(t *testing.T) {
	for _, external := range []string{"never", "always"} {
		t.Run(external, func(t *testing.T) {
			workDir(t)
			args := quantizeArgs("out.onnx", "-q", "--external-data", external)
			start := time.Now()
			works(t, nil, args...)
			whole := time.Since(start)
			fresh := contents("out.onnx")
			works(t, nil, append(args, "--weights", "u8")...)
			old := contents("out.onnx")
			if old == "" || old == fresh {
				t.Fatal("both runs give the same model")
			}
			n, states := kills(t), map[string]int{}
			for i := range n {
				cmd := exec.Command("onnxq", args...)
				if i%2 == 1 {
					cmd.Args = append(cmd.Args, "--weights", "u8")
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(whole * time.Duration(i+1) / time.Duration(n))
				cmd.Process.Kill()
				cmd.Wait()
				now := contents("out.onnx")
				if now != old && now != fresh {
					t.Fatalf("killed at point %d of %d: the output is neither the old nor the new model", i, n)
				}
				states[now]++
			}
			t.Logf("%d kills left %d models of one kind, %d of the other", n, states[old], states[fresh])
			works(t, nil, args...)
			noTemps(t, ".")
		})
	}
}

// smallDisk mounts a file system of n bytes at dir, or says why not.
func smallDisk(t *testing.T, dir string, n int) bool {
	t.Helper()
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("onnxq", abs, "tmpfs", 0, fmt.Sprintf("size=%d", n)); err != nil {
		t.Logf("NOT TESTED: a full disk, since none can be mounted here: %v", err)
		return false
	}
	t.Cleanup(func() { syscall.Unmount(abs, syscall.MNT_DETACH) })
	return true
}

func TestFaultNoSpace(t *testing.T) {
	workDir(t)
	if smallDisk(t, "disk", 32<<10) {
		if err := os.WriteFile("disk/out.onnx", []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
		for _, external := range []string{"never", "always"} {
			fails(t, nil, exitFile, "no space left on device", quantizeArgs("disk/out.onnx", "--external-data", external)...)
			fails(t, nil, exitFile, "no space left on device", "calibrate", "digits/model.onnx", "-o", "disk/out.onnx", "--data", "digits/calib")
			if read(t, "disk/out.onnx") != "old" {
				t.Error("the output was touched")
			}
			if left, _ := os.ReadDir("disk"); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		}
	}
	for _, external := range []string{"never", "always"} {
		if err := os.WriteFile("out.onnx", []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
		fails(t, under("ulimit -f 8"), exitFile, "out.onnx", quantizeArgs("out.onnx", "--external-data", external)...)
		if read(t, "out.onnx") != "old" {
			t.Error("the output was touched")
		}
		noTemps(t, ".")
		if data, _ := filepath.Glob("*.data"); len(data) > 0 {
			t.Errorf("left behind: %v", data)
		}
	}
}

// TestFaultDestination is F3 and F6: told at once, not after calibration.
func TestFaultDestination(t *testing.T) {
	workDir(t)
	if err := os.Mkdir("folder", 0o777); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo("fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", "loop"); err != nil {
		t.Fatal(err)
	}
	// Samples for hours: what is told before calibration ends long before.
	for out, text := range map[string]string{
		"missing/out.onnx": "there is no folder missing", "folder": "is a directory", "fifo": "not a regular file",
		"/dev/null": "not a regular file", "/dev/stdout": "/dev/stdout", "loop": "symbolic links", "notes.txt/out.onnx": "not a directory",
	} {
		fails(t, nil, exitFile, text, "quantize", "digits/model.onnx", "-o", out, "--data", "random:1000000")
	}
}

// TestFaultReadOnly is F3 for a folder that may not be written, F18 for a sample
// that may not be read.
func TestFaultReadOnly(t *testing.T) {
	var user func(*exec.Cmd)
	workDir(t)
	if os.Getuid() == 0 {
		// Root may write everywhere, so another user has to try.
		dir, err := os.MkdirTemp("", "onnxq-faults-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path, err := exec.LookPath("onnxq")
		if err != nil {
			t.Fatal(err)
		}
		bin := filepath.Join(dir, "onnxq")
		if err := os.WriteFile(bin, []byte(read(t, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chmod(dir, 0o755), os.CopyFS(filepath.Join(dir, "digits"), os.DirFS("digits"))); err != nil {
			t.Fatal(err)
		}
		t.Chdir(dir)
		user = func(c *exec.Cmd) {
			c.Path = bin
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
	}
	if err := errors.Join(os.Mkdir("closed", 0o555), os.Mkdir("open", 0o777), os.Chmod("open", 0o777)); err != nil {
		t.Fatal(err)
	}
	fails(t, user, exitFile, "permission denied", "quantize", "digits/model.onnx", "-o", "closed/out.onnx", "--data", "random:1000000")
	works(t, user, quantizeArgs("open/out.onnx")...)
	if err := os.Chmod("digits/calib/003.npz", 0); err != nil {
		t.Fatal(err)
	}
	fails(t, user, exitData, "003.npz", quantizeArgs("open/out.onnx")...)
	if err := os.Chmod("digits/model.onnx", 0); err != nil {
		t.Fatal(err)
	}
	fails(t, user, exitFile, "digits/model.onnx", quantizeArgs("open/out.onnx")...)
}

// TestFaultOutputIsInput is F4.
func TestFaultOutputIsInput(t *testing.T) {
	workDir(t)
	if err := errors.Join(os.Symlink("digits/model.onnx", "link.onnx"), os.Link("digits/model.onnx", "hard.onnx")); err != nil {
		t.Fatal(err)
	}
	abs, err := filepath.Abs("digits/model.onnx")
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{"digits/model.onnx", "./digits/../digits//model.onnx", abs, "link.onnx", "hard.onnx"} {
		fails(t, nil, exitFile, "input", quantizeArgs(out)...)
		if read(t, "digits/model.onnx") != string(models.Digits().Model) {
			t.Fatalf("%s: the input was changed", out)
		}
	}
	works(t, nil, quantizeArgs("digits/model.onnx", "--in-place")...)
	if read(t, "digits/model.onnx") == string(models.Digits().Model) {
		t.Error("--in-place changed nothing")
	}
	if read(t, "hard.onnx") != string(models.Digits().Model) {
		t.Error("the other name of the input was changed")
	}
}

// TestFaultOutputIsLink is F5: the target is replaced, the link stays.
func TestFaultOutputIsLink(t *testing.T) {
	workDir(t)
	if err := errors.Join(os.Mkdir("sub", 0o777), os.Symlink("sub/real.onnx", "link.onnx")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the target is missing, then there
		works(t, nil, quantizeArgs("link.onnx")...)
		if info, err := os.Lstat("link.onnx"); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("the link is gone (%v)", err)
		}
		if contents("sub/real.onnx") == "" {
			t.Error("the target holds no model")
		}
	}
	noTemps(t, "sub")
}

// TestFaultStopped is F7 while a model is quantized.
func TestFaultStopped(t *testing.T) {
	workDir(t)
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		for _, wait := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond} {
			if err := os.WriteFile("out.onnx", []byte("old"), 0o666); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("onnxq", "quantize", "text/model.onnx", "-o", "out.onnx", "--data", "random:1000000")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			untilMapped(t, cmd.Process.Pid, "text/model.onnx")
			time.Sleep(wait)
			start := time.Now()
			cmd.Process.Signal(sig)
			ended(t, cmd)
			t.Logf("%v after %v: ended %v later", sig, wait, time.Since(start))
			if code := cmd.ProcessState.ExitCode(); code != want {
				t.Errorf("%v: exit %d, want %d", sig, code, want)
			}
			if read(t, "out.onnx") != "old" {
				t.Errorf("%v: the output was touched", sig)
			}
			noTemps(t, ".")
		}
	}
	// Whatever the first of two signals finds, the second ends the process.
	cmd := exec.Command("onnxq", "quantize", "text/model.onnx", "-o", "out.onnx", "--data", "random:1000000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	untilMapped(t, cmd.Process.Pid, "text/model.onnx")
	for range 2 {
		cmd.Process.Signal(syscall.SIGINT)
		time.Sleep(time.Millisecond)
	}
	ended(t, cmd)
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if cmd.ProcessState.ExitCode() != 130 && status.Signal() != syscall.SIGINT {
		t.Errorf("two signals: %v", cmd.ProcessState)
	}
	if read(t, "out.onnx") != "old" {
		t.Error("two signals: the output was touched")
	}
}

// TestFaultConcurrent is F8: runs with one output never mix.
func TestFaultConcurrent(t *testing.T) {
	workDir(t)
	kinds := [][]string{nil, {"--weights", "u8"}, {"--granularity", "tensor"}}
	for _, external := range []string{"never", "always"} {
		good := map[string]bool{}
		for _, k := range kinds {
			works(t, nil, quantizeArgs("out.onnx", append(k, "--external-data", external)...)...)
			good[contents("out.onnx")] = true
		}
		var wg sync.WaitGroup
		for range 2 {
			for _, k := range kinds {
				wg.Go(func() { works(t, nil, quantizeArgs("out.onnx", append(k, "--external-data", external)...)...) })
			}
		}
		wg.Wait()
		if c := contents("out.onnx"); c == "" || !good[c] {
			t.Errorf("external data %s: the result is none of those of single runs", external)
		}
		noTemps(t, ".")
	}
}

// TestFaultExternalName is F9.
func TestFaultExternalName(t *testing.T) {
	workDir(t)
	works(t, nil, quantizeArgs("out.onnx", "--external-data", "always")...)
	data, _ := filepath.Glob("out.onnx.*")
	if len(data) != 1 || !regexp.MustCompile(`^out\.onnx\.[0-9a-f]{16}\.data$`).MatchString(data[0]) {
		t.Fatalf("data files %v", data)
	}
	before := read(t, data[0])
	works(t, nil, quantizeArgs("out.onnx", "--external-data", "always")...)
	if again, _ := filepath.Glob("out.onnx.*"); len(again) != 1 || read(t, data[0]) != before {
		t.Errorf("the second run left %v", again)
	}
	// A name that is taken by a link is not written through.
	if err := errors.Join(os.Remove(data[0]), os.WriteFile("victim", []byte("precious"), 0o666), os.Symlink("victim", data[0])); err != nil {
		t.Fatal(err)
	}
	process(t, nil, quantizeArgs("out.onnx", "--external-data", "always")...)
	if read(t, "victim") != "precious" {
		t.Error("the target of a link in the place of the data was overwritten")
	}
}

// TestFaultLittleMemory is F11.
func TestFaultLittleMemory(t *testing.T) {
	workDir(t)
	fails(t, nil, exitLimit, "memory limit", quantizeArgs("out.onnx", "--max-memory", "4KiB")...)
	works(t, nil, quantizeArgs("out.onnx", "--max-memory", "64MiB")...)
	const bomb = `<ir_version: 8, opset_import: ["" : 17]>
g (float[1] x) => (float[a,b] y) <int64[2] s = {1048576, 1048576}> { e = Expand(x, s)
 y = Relu(e) }`
	if err := saveText(bomb, "bomb.onnx"); err != nil {
		t.Fatal(err)
	}
	fails(t, under("ulimit -v 4000000"), exitLimit, "memory limit", "run", "bomb.onnx", "-o", "results", "--data", "random:2")
	const endless = `<ir_version: 8, opset_import: ["" : 17]>
g (float[1] x) => (float[1] y) <int64 n = {9223372036854775807}, bool c = {1}> { y = Loop(n, c, x) <body =
 b (int64 i, bool ci, float[1] a) => (bool co, float[1] z) { co = Identity(ci)
 z = Neg(a) }> }`
	if err := saveText(endless, "endless.onnx"); err != nil {
		t.Fatal(err)
	}
	fails(t, nil, exitLimit, "step limit", "run", "endless.onnx", "-o", "results", "--data", "random:1")
	fails(t, nil, exitLimit, "step limit reached: 1000", "run", "endless.onnx", "-o", "results", "--data", "random:1", "--limit", "steps=1000")
}

// npyFile is a file with the given header text.
func npyFile(header string, data []byte) []byte {
	b := append([]byte("\x93NUMPY\x01\x00"), byte(len(header)+1), byte((len(header)+1)>>8))
	return append(append(append(b, header...), '\n'), data...)
}

func floats(vs ...float32) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func pngFile(w, h uint32) []byte {
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte("IHDR"), w), h)
	head = append(head, 8, 2, 0, 0, 0)
	b := binary.BigEndian.AppendUint32([]byte("\x89PNG\r\n\x1a\n"), uint32(len(head)-4))
	return binary.BigEndian.AppendUint32(append(b, head...), crc32.ChecksumIEEE(head))
}

// TestFaultSamples is F12 to F18.
func TestFaultSamples(t *testing.T) {
	good := bytes.Repeat(floats(0.25, -0.5), 32)
	with := func(v float32) []byte { return append(bytes.Clone(good[:len(good)-4]), floats(v)...) }
	const head = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 8, 8), }"
	var zipped bytes.Buffer
	z := zip.NewWriter(&zipped)
	w, err := z.Create("image.npy")
	if err != nil {
		t.Fatal(err)
	}
	w.Write(npyFile("{'descr': '<f4', 'fortran_order': False, 'shape': (536870912,), }", nil))
	for range 64 {
		w.Write(make([]byte, 1<<20))
	}
	z.Close()
	for _, c := range []struct {
		name, file string
		data       []byte
		code       int
		want       string
		more       []string
	}{
		{"good", "a.npy", npyFile(head, good), 0, "", nil},
		{"nan", "b.npy", npyFile(head, with(float32(math.NaN()))), exitData, "b.npy", nil},
		{"inf", "b.npy", npyFile(head, with(float32(math.Inf(-1)))), exitData, "b.npy", nil},
		{"nan skipped", "b.npy", npyFile(head, with(float32(math.NaN()))), 0, "", []string{"--skip-bad-samples", "1"}},
		{"shape", "b.npy", npyFile("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 64), }", good), exitData, "b.npy", nil},
		{"dtype", "b.npy", npyFile("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 8, 4), }", good), exitData, "b.npy", nil},
		{"truncated", "b.npy", npyFile(head, good[:100]), exitData, "b.npy", nil},
		{"huge", "b.npy", npyFile("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1048576), }", good), exitData, "b.npy", nil},
		{"objects", "b.npy", npyFile("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 8, 8), }", good), exitData, "b.npy", nil},
		{"zeros", "a.npy", npyFile(head, make([]byte, 256)), 0, "", nil},
		{"zip bomb", "b.npz", zipped.Bytes(), exitData, "b.npz", nil},
		{"image bomb", "b.png", pngFile(60000, 60000), exitData, "b.png", []string{"--image", "resize=8,crop=8,layout=nchw"}},
		{"name", "b.npz", []byte("PK\x05\x06" + strings.Repeat("\x00", 18)), exitData, "b.npz", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			workDir(t)
			if err := os.Mkdir("data", 0o777); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(c.file, ".npy") {
				if err := os.WriteFile("data/a.npy", npyFile(head, good), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile("data/"+c.file, c.data, 0o666); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"quantize", "digits/model.onnx", "-o", "out.onnx", "--data", "data"}, c.more...)
			if c.code == 0 {
				works(t, under("ulimit -v 4000000"), args...)
				return
			}
			fails(t, under("ulimit -v 4000000"), c.code, c.want, args...)
			if _, err := os.Stat("out.onnx"); err == nil {
				t.Error("the output was written")
			}
		})
	}

	workDir(t)
	fails(t, nil, exitData, "nowhere", "quantize", "digits/model.onnx", "-o", "out.onnx", "--data", "nowhere")
	fails(t, nil, exitData, "none", "quantize", "digits/model.onnx", "-o", "out.onnx", "--data", "none")
	// A link to its own folder neither ends nor multiplies the walk.
	if err := os.Symlink(".", "digits/calib/self"); err != nil {
		t.Fatal(err)
	}
	fails(t, nil, exitData, "loop", quantizeArgs("one.onnx")...)

	// Samples of nothing but zeros are said.
	if err := os.Mkdir("zeros", 0o777); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		if err := os.WriteFile(fmt.Sprintf("zeros/%02d.npy", i), npyFile(head, make([]byte, 256)), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"quantize", "-o", "out.onnx"}, {"calibrate", "-o", "table"}} {
		code, stdout, stderr := process(t, nil, append(args, "digits/model.onnx", "--data", "zeros")...)
		if code != 0 || !regexp.MustCompile(`zero in every .*image`).MatchString(stdout) {
			t.Errorf("%s of zeros: exit %d\n%s%s", args[0], code, stdout, stderr)
		}
	}

	// All bad samples are named, whichever are found first, unless they may be
	// left out.
	for i, b := range map[int][]byte{3: with(float32(math.NaN())), 7: good[:100], 9: nil} {
		if err := os.WriteFile(fmt.Sprintf("zeros/%02d.npy", i), npyFile(head, b), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for _, skip := range []string{"0", "2", "3"} {
		for _, command := range []string{"quantize", "calibrate", "run"} {
			code, _, stderr := process(t, nil, command, "digits/model.onnx", "-o", "out-"+command, "--data", "zeros", "--skip-bad-samples", skip)
			if skip == "3" {
				if code != 0 {
					t.Errorf("%s with three bad samples left out: exit %d, %s", command, code, stderr)
				}
				continue
			}
			want := regexp.MustCompile(`(?s)^onnxq: zeros/03\.npy: .*1 NaN.*3 of 1[12] samples are bad.*--skip-bad-samples.*\n.*07\.npy.*\n.*09\.npy`)
			if code != exitData || !want.MatchString(stderr) {
				t.Errorf("%s with %s bad samples left out: exit %d, %s", command, skip, code, stderr)
			}
		}
	}

	// Many files of another kind are counted, not opened.
	if err := os.Mkdir("many", 0o777); err != nil {
		t.Fatal(err)
	}
	for i := range kills(t) * 500 {
		if err := os.WriteFile(fmt.Sprintf("many/%06d.txt", i), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	fails(t, nil, exitData, fmt.Sprintf("%d other files", kills(t)*500), "quantize", "digits/model.onnx", "-o", "out.onnx", "--data", "many")
}

// untilMapped waits until a process has mapped a file, where that can be seen,
// and then a moment.
func untilMapped(t *testing.T, pid int, file string) {
	t.Helper()
	maps := fmt.Sprintf("/proc/%d/maps", pid)
	for range 2000 {
		b, err := os.ReadFile(maps)
		if err != nil || strings.Contains(string(b), file) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
}

// TestFaultInputChanges is F19.
func TestFaultInputChanges(t *testing.T) {
	const model = "digits/model.onnx"
	for name, change := range map[string]func() error{
		"cut":     func() error { return os.Truncate(model, 4096) },
		"grown":   func() error { return os.Truncate(model, int64(len(models.Digits().Model))+1) },
		"touched": func() error { return os.Chtimes(model, time.Time{}, time.Unix(1e9, 0)) },
		"replaced": func() error {
			return errors.Join(os.WriteFile("other.onnx", models.Digits().Model, 0o666), os.Rename("other.onnx", model))
		},
	} {
		t.Run(name, func(t *testing.T) {
			workDir(t)
			if err := os.WriteFile("out.onnx", []byte("old"), 0o666); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("onnxq", "quantize", model, "-o", "out.onnx", "--data", "random:3000")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			untilMapped(t, cmd.Process.Pid, model)
			if err := change(); err != nil {
				t.Fatal(err)
			}
			ended(t, cmd)
			if code := cmd.ProcessState.ExitCode(); code != exitFile || !strings.Contains(stderr.String(), model) || strings.Contains(stderr.String(), "goroutine") {
				t.Errorf("exit %d, stderr %s", code, stderr.String())
			}
			if read(t, "out.onnx") != "old" {
				t.Error("the output was touched")
			}
			noTemps(t, ".")
		})
	}
}

// TestFaultHuge is F20: what does not fit into the 2 GiB of a protobuf gets
// external data, or an error where that is not wanted.
func TestFaultHuge(t *testing.T) {
	workDir(t)
	const rows, columns = 1024, 1<<19 + 1 // of float32; the file of zeros takes no disk
	f32, external := int32(tensor.Float32), onnxpb.TensorProto_EXTERNAL
	entry := func(k, v string) *onnxpb.StringStringEntryProto {
		return &onnxpb.StringStringEntryProto{Key: &k, Value: &v}
	}
	value := func(name string) *onnxpb.ValueInfoProto {
		return &onnxpb.ValueInfoProto{Name: &name, Type: &onnxpb.TypeProto{Value: &onnxpb.TypeProto_TensorType{TensorType: &onnxpb.TypeProto_Tensor{ElemType: &f32}}}}
	}
	w := &onnxpb.TensorProto{Name: proto.String("w"), Dims: []int64{rows, columns}, DataType: &f32, DataLocation: &external,
		ExternalData: []*onnxpb.StringStringEntryProto{entry("location", "w.bin")}}
	b, err := proto.Marshal(&onnxpb.ModelProto{
		IrVersion: proto.Int64(8), OpsetImport: []*onnxpb.OperatorSetIdProto{{Version: proto.Int64(17)}},
		Graph: &onnxpb.GraphProto{Name: proto.String("g"), Initializer: []*onnxpb.TensorProto{w},
			Node:  []*onnxpb.NodeProto{{OpType: proto.String("MatMul"), Input: []string{"x", "w"}, Output: []string{"y"}}},
			Input: []*onnxpb.ValueInfoProto{value("x")}, Output: []*onnxpb.ValueInfoProto{value("y")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("huge.onnx", b, 0o666); err != nil {
		t.Fatal(err)
	}
	sparse(t, "w.bin", nil, 4*rows*columns)
	fails(t, nil, exitFile, "2 GiB", "prepare", "huge.onnx", "-o", "out.onnx", "--external-data", "never")
	noTemps(t, ".")
	if os.Getenv("ONNXQ_FAULTS") == "" {
		t.Log("NOT TESTED: writing 2 GiB, without ONNXQ_FAULTS")
		return
	}
	works(t, nil, "prepare", "huge.onnx", "-o", "out.onnx")
	if data, _ := filepath.Glob("out.onnx.*.data"); len(data) != 1 {
		t.Errorf("data files %v", data)
	}
	works(t, nil, "inspect", "out.onnx")
}

// TestFaultSurroundings is F21 and F22: neither names, locale, home, mask nor the
// number of processors matter, and a reader that goes away is no crash.
func TestFaultSurroundings(t *testing.T) {
	workDir(t)
	works(t, nil, quantizeArgs("want.onnx")...)
	want := read(t, "want.onnx")
	for i, env := range [][]string{
		{"GOMAXPROCS=1"}, {"GOMAXPROCS=2"}, {"GOMAXPROCS=7"}, {"LC_ALL=tr_TR.UTF-8", "TZ=Asia/Kathmandu"}, {"GOGC=1"}, {},
	} {
		out := fmt.Sprintf("out%d.onnx", i)
		works(t, func(c *exec.Cmd) { c.Env = env }, quantizeArgs(out)...)
		if read(t, out) != want {
			t.Errorf("%v: other bytes", env)
		}
	}
	works(t, under("umask 077"), quantizeArgs("mine.onnx")...)
	if info, err := os.Stat("mine.onnx"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("umask 077 gives %v (%v)", info.Mode(), err)
	}

	odd := "mod\xff\xfe\n\x1b[2J.onnx"
	if err := os.WriteFile(odd, models.Digits().Model, 0o666); err != nil {
		t.Fatal(err)
	}
	works(t, nil, "quantize", odd, "-o", "o"+odd, "--data", "digits/calib", "--external-data", "always")
	if contents("o"+odd) == "" {
		t.Error("no model under a name that is not UTF-8")
	}
	fails(t, nil, exitFile, "x1b", "quantize", "not"+odd, "-o", "out.onnx", "--data", "digits/calib")

	for _, args := range [][]string{quantizeArgs("closed.onnx"), quantizeArgs("-"), {"ops"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		code, _, stderr := process(t, func(c *exec.Cmd) { c.Stdout = w }, args...)
		w.Close()
		if strings.Contains(stderr, "internal error") || code > 5 {
			t.Errorf("%v with a closed stdout: exit %d, stderr %s", args, code, stderr)
		}
	}
	if read(t, "closed.onnx") != want {
		t.Error("a closed stdout changed the output")
	}
	works(t, under("exec >&-"), quantizeArgs("none.onnx", "-q")...)
	if read(t, "none.onnx") != want {
		t.Error("no stdout at all changed the output")
	}
}
