package calibration

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/tensor"
)

// folderStore serves a folder at test://f.
type folderStore struct {
	dir    string
	listed int
}

func (s *folderStore) path(url string) string {
	return filepath.Join(s.dir, strings.TrimPrefix(url, "test://f"))
}

func (s *folderStore) List(_ context.Context, url string) (list []StoredFile, err error) {
	s.listed++
	root := s.path(url)
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err1 := filepath.Rel(root, path)
		info, err2 := e.Info()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if rel = filepath.ToSlash(rel); rel == "." {
			rel = ""
		}
		list = append(list, StoredFile{rel, info.Size()})
		return nil
	})
	slices.Reverse(list)
	return list, err
}

func (s *folderStore) Open(_ context.Context, url string) (File, int64, error) {
	f, size, err := openRegular(s.path(url))
	if err != nil { // no nil pointer as a File
		return nil, 0, err
	}
	return f, size, nil
}

// A folder in a store gives the samples, names and hash of one on this machine,
// and with its list it is not listed again.
func TestStore(t *testing.T) {
	dir := t.TempDir()
	x := seq(6, 3, 2)
	write(t, dir, "npz/b/1.npz", npzBytes(true, "x", x))
	write(t, dir, "npz/b/2.npz", npzBytes(false, "x", x))
	write(t, dir, "npz/a.npz", npzBytes(false, "x", x))
	write(t, dir, "npz/.a.npz", nil)
	write(t, dir, "npz/notes.txt", nil)
	write(t, dir, "lines/0.jsonl", []byte("{\"x\": [1, 2]}\n\n{\"x\": [3, 4]}"))
	write(t, dir, "cut/0.npz", npzBytes(false, "x", x)[:100])
	inputs := []Input{{Name: "x", DType: tensor.Float32, Shape: []int{2}}}
	for _, name := range []string{"npz", "lines", "lines/0.jsonl"} {
		s := &folderStore{dir: dir}
		o := Options{Batched: true, Store: s}
		want, err1 := Open(t.Context(), []string{filepath.Join(dir, name)}, inputs, o)
		got, err2 := Open(t.Context(), []string{"test://f/" + name}, inputs, o)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		o.Listed = got.Listed()
		again, err := Open(t.Context(), []string{"test://f/" + name}, inputs, o)
		if err != nil || s.listed != 1 {
			t.Fatalf("listed %d times, %v", s.listed, err)
		}
		if got.Hash() != want.Hash() || again.Hash() != want.Hash() || got.Len() != want.Len() || len(got.Notes()) != len(want.Notes()) {
			t.Errorf("%s: %d samples of hash %s, want %d of %s", name, got.Len(), got.Hash(), want.Len(), want.Hash())
			continue
		}
		for i := range want.Len() {
			a, err1 := want.Load(t.Context(), i)
			b, err2 := again.Load(t.Context(), i)
			if err1 != nil || err2 != nil || string(a["x"].Bytes()) != string(b["x"].Bytes()) || want.Sample(i).Name != got.Sample(i).Name {
				t.Errorf("%s: sample %d: %v, %v", name, i, err1, err2)
			}
		}
	}
	o := Options{Store: &folderStore{dir: dir}}
	src, err := Open(t.Context(), []string{"test://f/cut"}, inputs, o)
	if err != nil {
		t.Fatal(err)
	}
	var de *DataError
	if _, err = src.Load(t.Context(), 0); !errors.As(err, &de) || de.Path != "test://f/cut/0.npz" {
		t.Errorf("%v, want an error that names the file", err)
	}
	if err := os.Remove(filepath.Join(dir, "cut/0.npz")); err != nil {
		t.Fatal(err)
	}
	if _, err = src.Load(t.Context(), 0); !errors.As(err, &de) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Open(t.Context(), []string{"test://f/none"}, inputs, o); !errors.As(err, &de) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Open(t.Context(), []string{"test://f/npz"}, inputs, Options{}); !errors.As(err, &de) || !strings.Contains(err.Error(), "is a URL") {
		t.Error(err)
	}
	for spec, is := range map[string]bool{"s3://b/x": true, "a-b+1.c://": true, "://x": false, "c://x": false, "a b://x": false, "x": false, "random:3": false, "ä://": false} {
		if IsURL(spec) != is {
			t.Errorf("IsURL(%q) is %v", spec, !is)
		}
	}
}
