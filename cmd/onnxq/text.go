package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
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

func interval(lo, hi float64) string { return fmt.Sprintf("%.6g … %.6g", lo, hi) }
