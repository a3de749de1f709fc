//go:build !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/ebitengine/purego"

	"github.com/onnxq/onnxq/exec"
)

// LibraryEnv names the environment variable that holds the library's path.
const LibraryEnv = "ONNXQ_ORT_LIB"

// symbol is the one symbol that the library exports for its C API.
const symbol = "OrtGetApiBase"

// names returns the patterns of the library's file name, and the path in the
// Python package of version 1.32.0.
func names() (patterns []string, inWheel string) {
	switch runtime.GOOS {
	case "windows":
		return []string{"onnxruntime.dll"}, `onnxruntime\capi\onnxruntime.dll`
	case "darwin":
		return []string{"libonnxruntime.dylib", "libonnxruntime.*.dylib"}, "onnxruntime/capi/libonnxruntime.1.32.0.dylib"
	}
	return []string{"libonnxruntime.so", "libonnxruntime.so.*"}, "onnxruntime/capi/libonnxruntime.so.1.32.0"
}

// LibraryError says that there is no library that can be used.
type LibraryError struct {
	Path string // "" if none was named and none was found
	Err  error
}

// Error says what is wrong, and how to get a library.
func (e *LibraryError) Error() string {
	_, path := names()
	get := fmt.Sprintf("get one with: pip download --no-deps onnxruntime==1.32.0, unzip the .whl, and give --ort-lib or %s the path %s in it", LibraryEnv, path)
	if e.Path == "" {
		return "no ONNX Runtime library was found; " + get
	}
	return fmt.Sprintf("%q cannot be used as ONNX Runtime library: %v; %s", e.Path, e.Err, get)
}

// Unwrap returns the cause.
func (e *LibraryError) Unwrap() error { return e.Err }

// loaded holds the libraries of this process by path.
var loaded struct {
	sync.Mutex
	apis map[string]*api
}

// Open finds and loads the library. It stays loaded until the process ends.
// The error is a *LibraryError.
func Open(o Options) (exec.Engine, error) {
	named := o.Library
	if named == "" {
		named = os.Getenv(LibraryEnv)
	}
	loaded.Lock()
	defer loaded.Unlock()
	if named != "" {
		a, err := use(named)
		if err != nil {
			return nil, &LibraryError{named, err}
		}
		return &engine{a, o}, nil
	}
	var first *LibraryError
	for _, path := range candidates() {
		a, err := use(path)
		if err == nil {
			return &engine{a, o}, nil
		}
		if first == nil && !errors.Is(err, errNotThere) {
			first = &LibraryError{path, err}
		}
	}
	if first == nil {
		first = &LibraryError{}
	}
	return nil, first
}

// errNotThere is the error of a bare name that the loader does not find.
var errNotThere = errors.New("not found")

// use loads the library in a file, or under a bare name that the loader looks
// for itself.
func use(path string) (*api, error) {
	file := path
	if filepath.Base(path) != path || exists(path) {
		var err error
		if file, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		if err := checkFile(file); err != nil {
			return nil, err
		}
	}
	if a := loaded.apis[file]; a != nil {
		return a, nil
	}
	get, err := load(file, symbol)
	if err != nil {
		if file == path && !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%w: %v", errNotThere, err)
		}
		return nil, err
	}
	base, _, _ := purego.SyscallN(get)
	a, err := newAPI(base)
	if err != nil {
		return nil, err
	}
	if loaded.apis == nil {
		loaded.apis = map[string]*api{}
	}
	loaded.apis[file] = a
	return a, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// candidates returns the usual places. The current folder is none of them: a
// library is code.
func candidates() []string {
	patterns, _ := names()
	var out []string
	in := func(dir string) {
		if !filepath.IsAbs(dir) {
			return
		}
		for _, p := range patterns {
			found, _ := fs.Glob(os.DirFS(dir), p)
			slices.Reverse(found) // the highest version, more or less
			for _, f := range found {
				out = append(out, filepath.Join(dir, f))
			}
		}
	}
	below := func(dir, pattern string) {
		if !filepath.IsAbs(dir) {
			return
		}
		found, _ := fs.Glob(os.DirFS(dir), pattern)
		slices.Reverse(found)
		for _, f := range found {
			in(filepath.Join(dir, f))
		}
	}
	if exe, err := os.Executable(); err == nil {
		in(filepath.Dir(exe))
		in(filepath.Join(filepath.Dir(exe), "..", "lib"))
	}
	for _, name := range []string{"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		for _, dir := range filepath.SplitList(os.Getenv(name)) {
			in(dir)
		}
	}
	if runtime.GOOS != "windows" { // which has an old one of its own
		out = append(out, patterns[0])
	}
	home, _ := os.UserHomeDir()
	for _, prefix := range pythons(home) {
		below(prefix, "lib/python3*/site-packages/onnxruntime/capi")
		below(prefix, "Lib/site-packages/onnxruntime/capi")
	}
	below(home, ".pyenv/versions/*/lib/python3*/site-packages/onnxruntime/capi")
	node := filepath.SplitList(os.Getenv("NODE_PATH"))
	node = append(node, "/usr/local/lib/node_modules", "/usr/lib/node_modules", "/opt/homebrew/lib/node_modules", filepath.Join(os.Getenv("APPDATA"), "npm", "node_modules"))
	system, arch := runtime.GOOS, runtime.GOARCH
	if system == "windows" {
		system = "win32"
	}
	if arch == "amd64" {
		arch = "x64"
	}
	for _, dir := range node {
		below(dir, "onnxruntime-node/bin/napi-v*/"+system+"/"+arch)
	}
	if runtime.GOOS != "windows" {
		for _, dir := range []string{"/usr/local/lib", "/usr/lib", "/usr/lib64", "/opt/homebrew/lib", "/opt/homebrew/opt/onnxruntime/lib"} {
			in(dir)
		}
		below("/usr/lib", "*-linux-gnu")
	}
	return out
}

// pythons returns the folders that Python environments lie in: the active one,
// that of the Python on the path, and the user's.
func pythons(home string) []string {
	var out []string
	for _, name := range []string{"VIRTUAL_ENV", "CONDA_PREFIX"} {
		if dir := os.Getenv(name); dir != "" {
			out = append(out, dir)
		}
	}
	for _, name := range []string{"python3", "python"} {
		path, err := osexec.LookPath(name)
		if err != nil {
			continue
		}
		for _, p := range []string{path, resolved(path)} {
			dir := filepath.Dir(p)
			if runtime.GOOS != "windows" {
				dir = filepath.Dir(dir)
			}
			out = append(out, dir)
		}
	}
	return append(out, filepath.Join(home, ".local"))
}

func resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return path
}
