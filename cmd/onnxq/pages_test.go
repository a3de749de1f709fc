package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what commands print into the pages that show it")

// console is a block of a page: lines "$ onnxq …", each with what it prints.
var console = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")

// pages are those that may show commands.
func pages(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(list) < 5 {
		t.Fatal(list, err)
	}
	return append(list, "../../README.md")
}

// TestPagesShowWhatCommandsPrint runs every command that a page shows, those of
// a page one after the other in a folder with the sample models, and compares
// what it prints: words exactly, numbers nearly, times and memory not at all.
// With -update the pages get what is printed now.
func TestPagesShowWhatCommandsPrint(t *testing.T) {
	blocks := 0
	for _, page := range pages(t) {
		page, err := filepath.Abs(page)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if !console.Match(b) {
			continue
		}
		t.Run(filepath.Base(page), func(t *testing.T) {
			dir := t.TempDir()
			if err := unpackSamples(filepath.Join(dir, "models")); err != nil {
				t.Fatal(err)
			}
			t.Chdir(dir)
			text := console.ReplaceAllStringFunc(string(b), func(block string) string {
				blocks++
				shown := console.FindStringSubmatch(block)[1]
				now := ""
				for line := range strings.Lines(shown) {
					if command, ok := strings.CutPrefix(line, "$ "); ok {
						now += line + printed(t, strings.TrimSpace(command))
					}
				}
				if !alike(shown, now) && !*update {
					t.Errorf("%s shows\n%s\nbut now it is\n%s\nIf that is meant: go test ./cmd/onnxq -run TestPages -update", filepath.Base(page), shown, now)
				}
				if alike(shown, now) {
					return block
				}
				return "```console\n" + now + "```"
			})
			if *update {
				if err := os.WriteFile(page, []byte(text), 0o666); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	if blocks < 10 {
		t.Errorf("only %d blocks of commands", blocks)
	}
}

// printed returns what a command line prints, which may end in "| head -N" and
// "; echo $?", and may be "cat FILE".
func printed(t *testing.T, line string) string {
	t.Helper()
	line, status := strings.CutSuffix(line, "; echo $?")
	line, head, cut := strings.Cut(line, " | head -")
	args := strings.Fields(line)
	var text string
	code := 0
	switch args[0] {
	case "onnxq":
		var errs string
		code, text, errs = onnxqIn(t, args[1:]...)
		text += errs
		if code != 0 && !status {
			t.Errorf("%s: exit %d: %s", line, code, errs)
		}
	case "cat":
		b, err := os.ReadFile(args[1])
		if err != nil {
			t.Error(err)
		}
		text = string(b)
	case "ls":
		found, err := os.ReadDir(args[1])
		if err != nil {
			t.Error(err)
		}
		for _, e := range found {
			text += e.Name() + "\n"
		}
	default:
		t.Errorf("%s: pages show onnxq, cat and ls", line)
	}
	if cut {
		n, err := strconv.Atoi(head)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfterN(text, "\n", n+1)
		text = strings.Join(lines[:min(n, len(lines))], "")
	}
	if status {
		text += fmt.Sprintln(code)
	}
	var out strings.Builder
	for l := range strings.Lines(text) {
		out.WriteString(strings.TrimRight(l, " \n") + "\n")
	}
	return out.String()
}

var (
	// measured are what differs from run to run: a number with a unit of time or
	// memory, and the columns that are laid out around it.
	measured = regexp.MustCompile(`[0-9.]+ (ns|µs|ms|s|MB|GB)([ ,]|$)`)
	number   = regexp.MustCompile(`[0-9]+(\.[0-9]+)?`)
	spaces   = regexp.MustCompile(`[ \t]+`)
)

// alike reports whether two outputs differ only in what machines may differ in.
func alike(a, b string) bool {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if !alikeLines(x[i], y[i]) {
			return false
		}
	}
	return true
}

func alikeLines(a, b string) bool {
	mask := func(s string) string {
		return spaces.ReplaceAllString(measured.ReplaceAllString(s, "# $1$2"), " ")
	}
	a, b = mask(a), mask(b)
	if number.ReplaceAllString(a, "#") != number.ReplaceAllString(b, "#") {
		return false
	}
	p, q := number.FindAllString(a, -1), number.FindAllString(b, -1)
	for i := range p {
		v, _ := strconv.ParseFloat(p[i], 64)
		w, _ := strconv.ParseFloat(q[i], 64)
		if d := v - w; d*d > 0.0004*(v*v+1) { // two in a hundred
			return false
		}
	}
	return true
}

func TestAlike(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"time  0.5 s, peak memory 40 MB", "time 12.25 s, peak memory 41.5 MB", true},
		{"SQNR 37.10 dB", "SQNR 37.12 dB", true},
		{"SQNR 37.10 dB", "SQNR 30.12 dB", false},
		{"nodes 3", "node 3", false},
		{"a", "a\nb", false},
	} {
		if alike(c.a, c.b) != c.want {
			t.Errorf("%q and %q: alike is %v", c.a, c.b, !c.want)
		}
	}
}

// TestPagesNameFlagsThatExist checks the flags that pages name.
func TestPagesNameFlagsThatExist(t *testing.T) {
	known := map[string]bool{"--help": true, "--no-deps": true, "--rm": true, "--from": true, "--model": true} // the latter are those of pip, docker and examples
	for _, w := range words(newApp(&env{}).Commands, "") {
		for _, f := range w.flags {
			for _, d := range dashed(f) {
				known[d] = true
			}
		}
	}
	for _, page := range pages(t) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range regexp.MustCompile(`--[a-z][a-z-]+`).FindAllString(string(b), -1) {
			if !known[f] {
				t.Errorf("%s names %s", filepath.Base(page), f)
			}
		}
	}
}

// TestPagesHaveProgramsThatRun runs the programs, "package main", that pages
// show, in a folder with the sample models.
func TestPagesHaveProgramsThatRun(t *testing.T) {
	programs := 0
	for _, page := range pages(t) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?ms)^```go\n(package main.*?)^```$").FindAllStringSubmatch(string(b), -1) {
			programs++
			dir := t.TempDir()
			root, err := filepath.Abs("../..")
			if err != nil {
				t.Fatal(err)
			}
			if err := unpackSamples(filepath.Join(dir, "models")); err != nil {
				t.Fatal(err)
			}
			source, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json")
			at := filepath.Join(root, "internal", "shown", "main.go") // which is there for the compiler only
			if err := os.WriteFile(source, []byte(m[1]), 0o666); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(overlay, fmt.Appendf(nil, `{"Replace": {%q: %q}}`, at, source), 0o666); err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(dir, "program.exe")
			build := exec.Command("go", "build", "-overlay", overlay, "-o", program, "./internal/shown")
			build.Dir = root
			if out, err := build.CombinedOutput(); err != nil {
				t.Errorf("%s: a program does not compile: %v\n%s", filepath.Base(page), err, out)
				continue
			}
			run := exec.Command(program)
			run.Dir = dir
			out, err := run.CombinedOutput()
			if err != nil {
				t.Errorf("%s: a program fails: %v\n%s", filepath.Base(page), err, out)
			}
			t.Logf("%s", out)
		}
	}
	if programs == 0 {
		t.Error("no page shows a program")
	}
}
