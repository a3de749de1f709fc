package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// printable returns s with everything escaped that a terminal might act on;
// line breaks and tabs stay.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\n' || r == '\t' || strconv.IsPrint(r) && !(r == utf8.RuneError && n == 1):
			b.WriteString(s[i : i+n])
		default:
			q := strconv.Quote(s[i : i+n])
			b.WriteString(q[1 : len(q)-1])
		}
		i += n
	}
	return b.String()
}

// cleanWriter escapes what a terminal might act on. A rune must not be split
// between writes.
type cleanWriter struct{ w io.Writer }

func (c cleanWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(c.w, printable(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// quoted returns s as one word of a table: what a terminal or the table could
// misread is escaped.
func quoted(s string) string {
	q := strconv.Quote(s)
	q = q[1 : len(q)-1]
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(q)
}

// table returns where a command prints its table.
func (e *env) table(c *cli.Context) io.Writer {
	switch {
	case c.Bool("quiet") || c.String("json") == "-":
		return io.Discard
	case c.String("output") == "-":
		return cleanWriter{e.stderr}
	}
	return cleanWriter{e.stdout}
}

// note returns a callback that prints notes above the table.
func (e *env) note(c *cli.Context) func(string) {
	w := e.table(c)
	return func(text string) {
		e.endProgress()
		fmt.Fprintf(w, "note: %s\n", text)
	}
}

// columns returns a writer that aligns cells ended by tabs.
func columns(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// progressBar is what is drawn at the moment; the zero value is nothing.
type progressBar struct {
	bar   *progressbar.ProgressBar
	stage string
	began time.Time
}

// progress returns a callback that draws a bar on stderr if that is a
// terminal, once a stage has taken a second.
func (e *env) progress(c *cli.Context) func(stage string, done, total int) {
	f, ok := e.stderr.(*os.File)
	if c.Bool("quiet") || !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return func(stage string, done, total int) {
		b := &e.bar
		if stage != b.stage {
			e.endProgress()
			b.stage, b.began = stage, time.Now()
		}
		if b.bar == nil && time.Since(b.began) > time.Second && done < total {
			b.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(stage),
				progressbar.OptionShowIts(), progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(true),
				progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
		}
		if b.bar != nil {
			_ = b.bar.Set(done)
		}
	}
}

// endProgress takes the bar off the screen.
func (e *env) endProgress() {
	if e.bar.bar != nil {
		_ = e.bar.bar.Clear()
		e.bar = progressBar{}
	}
}

func interval(lo, hi float64) string { return fmt.Sprintf("%.6g … %.6g", lo, hi) }
