// Command onnxq quantizes ONNX models. All work is done by package onnxq; this
// command turns flags into its Options and results into tables.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/qdq"
	"github.com/urfave/cli/v2"
)

// Exit codes.
const (
	exitInternal = 1
	exitUsage    = 2
	exitModel    = 3
	exitData     = 4
	exitFile     = 5
	exitLimit    = 6
	exitContract = 7
)

// patience is how long work may go on after a signal; what does not end by then
// waits for input.
const patience = 900 * time.Millisecond

// bound keeps the process to a number of threads; only main makes it do so.
var bound = func(threads int) {}

func main() {
	bound = func(threads int) {
		if threads > 0 && threads < runtime.GOMAXPROCS(0) {
			runtime.GOMAXPROCS(threads)
		}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		stop := stopped{<-signals}
		cancel(stop)
		signal.Stop(signals) // a second signal ends the process at once
		time.Sleep(patience)
		fmt.Fprintf(os.Stderr, "onnxq: %v\n", stop)
		os.Exit(exitCode(stop))
	}()
	os.Exit(run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// stopped is the cause of a context that a signal ended.
type stopped struct{ signal os.Signal }

func (s stopped) Error() string { return "stopped by signal: " + s.signal.String() }

// run is the whole command; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	e := &env{stdin: stdin, stdout: stdout, stderr: stderr}
	defer func() {
		if r := recover(); r != nil {
			e.endProgress()
			fmt.Fprintf(stderr, "onnxq: internal error, please report it with ONNXQ_TRACE=1 set: %s\n", printable(fmt.Sprint(r)))
			if os.Getenv("ONNXQ_TRACE") != "" {
				stderr.Write(debug.Stack())
			}
			code = exitInternal
		}
	}()
	app := newApp(e)
	err := app.RunContext(ctx, reorder(app, args))
	e.endProgress()
	if err == nil {
		return 0
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	text := strings.TrimSpace(err.Error())
	var glob *qdq.GlobError
	if errors.As(err, &glob) {
		text += "; onnxq plan MODEL lists their names"
	}
	var data *calibration.DataError
	if errors.As(err, &data) && data.Sample != "" && !data.Every {
		first, others, more := strings.Cut(text, "\n")
		text = first + "; --skip-bad-samples N leaves out up to N such samples"
		if more {
			text += "\n" + others
		}
	}
	switch {
	case errors.Is(err, exec.ErrSteps):
		text += "; --limit steps=N allows more"
	case errors.Is(err, exec.ErrLimit) && slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--max-memory") }):
		text += "; a larger --max-memory allows more"
	}
	fmt.Fprintf(stderr, "onnxq: %s\n", printable(text))
	return exitCode(err)
}

// usageError marks errors of the command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

func exitCode(err error) int {
	var (
		usage    usageError
		option   *onnxq.OptionError
		glob     *qdq.GlobError
		content  *onnxfile.ContentError
		place    *graph.Error
		data     *calibration.DataError
		contract *onnxq.ContractError
		limit    *onnxfile.LimitError
		path     *fs.PathError
		link     *os.LinkError
		stop     stopped
		defect   *exec.PanicError
	)
	switch {
	case errors.As(err, &stop):
		if stop.signal == syscall.SIGTERM {
			return 143
		}
		return 130
	case errors.As(err, &usage), errors.As(err, &option), errors.As(err, &glob):
		return exitUsage
	case errors.As(err, &contract):
		return exitContract
	case errors.As(err, &defect):
		return exitInternal
	case errors.Is(err, exec.ErrLimit), errors.Is(err, exec.ErrSteps), errors.As(err, &limit):
		return exitLimit
	case errors.As(err, &data), errors.Is(err, onnxq.ErrNoData):
		return exitData
	case errors.As(err, &content):
		return exitModel
	case errors.As(err, &path), errors.As(err, &link), errors.Is(err, fs.ErrNotExist), errors.Is(err, onnxfile.ErrChanged), errors.Is(err, exec.ErrFault):
		return exitFile
	case errors.As(err, &place):
		if place.Stage == "plan" {
			return exitUsage
		}
		return exitModel
	}
	return exitInternal
}

// version is that of the module, or of the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value
		}
	}
	return v
}

// exitCodes are shown in the help and the manual page.
var exitCodes = [][2]string{
	{"0", "done"},
	{"1", "internal error"},
	{"2", "the command line is wrong, or a file that it names as an option"},
	{"3", "the contents of the model are wrong"},
	{"4", "the samples are wrong or missing"},
	{"5", "a model cannot be read, or a result not be written"},
	{"6", "a limit was hit"},
	{"7", "a demand such as --min-sqnr was not met"},
	{"130, 143", "stopped by a signal"},
}

func newApp(e *env) *cli.App {
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Usage: "print the version"}
	var codes strings.Builder
	for _, c := range exitCodes {
		fmt.Fprintf(&codes, "\n%s: %s", c[0], c[1])
	}
	app := &cli.App{
		Name:                      "onnxq",
		Usage:                     "quantize ONNX models",
		UsageText:                 "onnxq quantize MODEL -o OUT --data SAMPLES\nonnxq COMMAND --help",
		Description:               "Exit codes:" + codes.String(),
		Version:                   version(),
		Writer:                    e.stdout,
		ErrWriter:                 e.stderr,
		Reader:                    e.stdin,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			text := flagText(err)
			if flag, ok := strings.CutPrefix(text, "unknown flag --"); ok {
				text += meant("--"+flag, []string{"--help", "--version"})
			}
			return usagef("%s; see onnxq --help", text)
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				name := c.Args().First()
				var names []string
				for _, known := range c.App.Commands {
					names = append(names, known.Name)
				}
				return usagef("unknown command %q%s; see onnxq --help", name, meant(name, names))
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			e.quantizeCommand(), e.calibrateCommand(), e.planCommand(), e.inspectCommand(), e.prepareCommand(), e.tensorCommand(),
			e.lintCommand(), e.compareCommand(), e.runCommand(), e.benchCommand(), e.demoCommand(), e.targetsCommand(), e.opsCommand(), e.completionCommand(), e.manCommand(),
		},
	}
	setUsageErrors(app.Commands, "")
	return app
}

// flagText is what the flag parser says, in our words.
func flagText(err error) string {
	s := err.Error()
	if name, ok := strings.CutPrefix(s, "flag provided but not defined: -"); ok {
		if len(name) > 1 {
			name = "-" + name
		}
		return "unknown flag -" + name
	}
	if name, ok := strings.CutPrefix(s, "flag needs an argument: -"); ok {
		if len(name) > 1 {
			name = "-" + name
		}
		return "flag -" + name + " needs a value"
	}
	if m := badValue.FindStringSubmatch(s); m != nil {
		return fmt.Sprintf("--%s cannot be %s", m[2], m[1])
	}
	return s
}

// badValue is what the parser says of a value that is not of the flag's type.
var badValue = regexp.MustCompile(`^invalid (?:boolean )?value (".*") for (?:flag )?-+([a-z-]+):`)

func setUsageErrors(commands []*cli.Command, parent string) {
	for _, c := range commands {
		name := parent + c.Name
		c.HideHelpCommand = true
		c.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
			text := flagText(err)
			if flag, ok := strings.CutPrefix(text, "unknown flag --"); ok {
				var names []string
				for _, f := range c.Flags {
					names = append(names, "--"+f.Names()[0])
				}
				text += meant("--"+flag, names)
			}
			return usagef("%s: %s; see onnxq %[1]s --help", name, text)
		}
		setUsageErrors(c.Subcommands, name+" ")
	}
}

// meant names the one of known that a mistyped word is most like, if any.
func meant(word string, known []string) string {
	best, least := "", 1+len(word)/6
	for _, k := range known {
		if d := distance(word, k); d <= least && (best == "" || d < least) {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (is %s meant?)", best)
}

// distance is the number of bytes to insert, delete or replace, and of
// neighbours to exchange, that make b of a.
func distance(a, b string) int {
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			change := last[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// reorder moves command names to the front and flags before positional
// arguments, since the parser stops at the first of these. What follows "--"
// stays positional. "help COMMAND" becomes "COMMAND --help".
func reorder(app *cli.App, args []string) []string {
	if len(args) > 1 && args[1] == "help" {
		args = slices.Delete(slices.Clone(args), 1, 2)
		if len(args) == 1 || find(app.Commands, args[1]) != nil {
			args = append(args, "--help")
		}
	}
	if len(args) < 2 || strings.HasPrefix(args[1], "-") {
		return args
	}
	out := []string{args[0]}
	commands, rest := app.Commands, args[1:]
	var flags []cli.Flag
	for at := 0; at >= 0; {
		c := find(commands, rest[at])
		if c == nil && len(out) == 1 {
			return args[:2] // no command: what flags there are does not matter
		}
		if c == nil {
			break
		}
		out = append(out, rest[at])
		rest = append(slices.Clone(rest[:at]), rest[at+1:]...)
		commands, flags = c.Subcommands, c.Flags
		for _, sub := range commands {
			flags = append(slices.Clone(flags), sub.Flags...)
		}
		at = firstPositional(rest, takesValue(flags))
	}
	takes := takesValue(flags)
	var named, positional []string
	for len(rest) > 0 {
		a := rest[0]
		rest = rest[1:]
		switch {
		case a == "--":
			positional = append(positional, rest...)
			rest = nil
		case !isFlag(a):
			positional = append(positional, a)
		default:
			named = append(named, a)
			if takes(a) {
				if len(rest) == 0 {
					return append(out, named...) // which the parser refuses
				}
				named = append(named, rest[0])
				rest = rest[1:]
			}
		}
	}
	out = append(out, named...)
	if len(positional) > 0 {
		out = append(append(out, "--"), positional...)
	}
	return out
}

// isFlag reports whether a stands for a flag; "-" alone is a value.
func isFlag(a string) bool { return len(a) > 1 && a[0] == '-' }

// takesValue tells the flags whose value is the next argument.
func takesValue(flags []cli.Flag) func(arg string) bool {
	values := map[string]bool{}
	for _, f := range flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, n := range f.Names() {
			values[n] = !isBool
		}
	}
	return func(arg string) bool { return values[strings.TrimLeft(arg, "-")] }
}

// firstPositional returns the place of the first argument that is neither a
// flag nor the value of one, or -1.
func firstPositional(args []string, takes func(string) bool) int {
	for i := 0; i < len(args) && args[i] != "--"; i++ {
		if !isFlag(args[i]) {
			return i
		}
		if takes(args[i]) {
			i++
		}
	}
	return -1
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
