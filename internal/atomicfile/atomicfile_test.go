package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A file is named by what was written to it.
func TestWriteNamed(t *testing.T) {
	dir := t.TempDir()
	n := 0
	write := func(w io.Writer) error {
		var err error
		n, err = io.WriteString(w, "twelve bytes")
		return err
	}
	if err := WriteNamed(filepath.Join(dir, "any"), 0o666, write, func() (string, error) { return fmt.Sprint(n), nil }); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "12")); err != nil || string(b) != "twelve bytes" {
		t.Errorf("%q, %v", b, err)
	}
	refused := errors.New("refused")
	if err := WriteNamed(filepath.Join(dir, "any"), 0o666, write, func() (string, error) { return "", refused }); err != refused {
		t.Error(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("files: %v", list)
	}
}
