package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// TestProgress draws on a file what a terminal would get: nothing for a short
// stage, and nothing that stays when a longer one has ended.
func TestProgress(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "terminal"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	drawn := func() string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	e := &env{bar: progress{file: f}}
	p := &e.bar
	wait := func() {
		for range 1000 {
			p.mu.Lock()
			shown := p.shown
			p.mu.Unlock()
			if shown {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatal("nothing is drawn")
	}
	p.set("calibrate", 1, 2)
	p.set("calibrate", 2, 2)
	e.endProgress()
	if s := drawn(); s != "" {
		t.Errorf("a short stage draws %q", s)
	}

	p.set("calibrate", 5, 20)
	wait()
	p.set("measure", 0, 0)
	bar := drawn()
	if !regexp.MustCompile(`25% \|█+ +\| \(5/20, [0-9]+ samples/(s|min|hr)\) calibrate`).MatchString(bar) || !regexp.MustCompile(`\r +\r$`).MatchString(bar) {
		t.Errorf("the bar is %q", bar)
	}
	wait()
	p.set("measure", 7, 0)
	for range 100 {
		if regexp.MustCompile(`measure, 7 done +\[`).MatchString(drawn()) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	e.endProgress()
	spinner := drawn()[len(bar):]
	if !regexp.MustCompile(`measure, 7 done +\[.*\r +\r$`).MatchString(spinner) {
		t.Errorf("the spinner is %q", spinner)
	}
	time.Sleep(300 * time.Millisecond)
	if got := drawn(); len(got) != len(bar)+len(spinner) {
		t.Errorf("after the end: %q", got[len(bar)+len(spinner):])
	}
}
