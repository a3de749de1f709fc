//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func temps(t *testing.T, dir string) []string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func put(s string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
}

func check(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Fatalf("%s = %q, %v; want %q", path, got, err, want)
	}
	if m := temps(t, filepath.Dir(path)); len(m) != 0 {
		t.Fatalf("left behind: %v", m)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	if err := Write(path, 0o600, put("one")); err != nil {
		t.Fatal(err)
	}
	check(t, path, "one")
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode of a new file %v", info.Mode())
	}
	os.Chmod(path, 0o640)
	if err := Write(path, 0o600, put("two")); err != nil {
		t.Fatal(err)
	}
	check(t, path, "two")
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Errorf("mode of a replaced file %v, want the old one", info.Mode())
	}

	boom := errors.New("boom")
	err := Write(path, 0o600, func(w io.Writer) error { io.WriteString(w, "half"); return boom })
	if !errors.Is(err, boom) {
		t.Errorf("error %v, want %v", err, boom)
	}
	check(t, path, "two")
}

func TestStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	f, err := Create(path, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("cd"), 2); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("ab"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("destination exists before Commit")
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	check(t, path, "abcd")
	if err := f.Close(); err != nil {
		t.Errorf("Close after Commit: %v", err)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Commit: %v", err)
	}
}

func TestLinks(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "d"), 0o755)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join("d", "real"), link); err != nil {
		t.Skip("no symbolic links here:", err)
	}
	for _, s := range []string{"new", "again"} {
		if err := Write(link, 0o644, put(s)); err != nil {
			t.Fatal(err)
		}
		check(t, filepath.Join(dir, "d", "real"), s)
	}
	if info, _ := os.Lstat(link); info.Mode()&fs.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	loop := filepath.Join(dir, "loop")
	os.Symlink("loop", loop)
	if err := Write(loop, 0o644, put("x")); err == nil || !strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("loop: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir:                                "is a directory",
		fifo:                               "not a regular file",
		"/dev/null":                        "not a regular file",
		filepath.Join(dir, "none", "out"):  "there is no folder",
		filepath.Join(fifo, "under", "it"): "not a directory",
	} {
		err := Write(path, 0o644, put("x"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if m := temps(t, dir); len(m) != 0 {
		t.Errorf("left behind: %v", m)
	}
}

// TestStale kills a writer in the middle; its file goes with the next Create,
// that of a living writer stays.
func TestStale(t *testing.T) {
	if dir := os.Getenv("ATOMICFILE_TEST_DIR"); dir != "" {
		if _, err := Create(filepath.Join(dir, "out"), 0o644); err != nil {
			os.Exit(3)
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestStale$")
	cmd.Env = append(os.Environ(), "ATOMICFILE_TEST_DIR="+dir)
	cmd.Run()
	if m := temps(t, dir); len(m) != 1 {
		t.Fatalf("the killed writer left %v", m)
	}
	alive, err := Create(filepath.Join(dir, "a"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if m := temps(t, dir); len(m) != 1 || m[0] != alive.Name() {
		t.Fatalf("%v, want only %s", m, alive.Name())
	}
	if err := Write(filepath.Join(dir, "b"), 0o644, put("b")); err != nil {
		t.Fatal(err)
	}
	if err := alive.Commit(); err != nil {
		t.Fatal(err)
	}
	check(t, filepath.Join(dir, "a"), "")
}

// TestFullDisk has the writer meet a full device halfway.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	full := "/dev/full"
	err := Write(path, 0o644, func(w io.Writer) error {
		f, err := os.OpenFile(full, os.O_WRONLY, 0)
		if err != nil {
			return syscall.ENOSPC
		}
		defer f.Close()
		_, err = f.Write(make([]byte, 1<<16))
		return err
	})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error %v", err)
	}
	check(t, path, "old")
}
