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
	"runtime/debug"
	"strings"
	"syscall"

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

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		cancel(stopped{<-signals})
		signal.Stop(signals) // a second signal ends the process at once
	}()
	os.Exit(run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// stopped is the cause of a context that a signal ended.
type stopped struct{ signal os.Signal }

func (s stopped) Error() string { return "stopped by signal: " + s.signal.String() }

// run is the whole command; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := newApp(stdin, stdout, stderr)
	err := app.RunContext(ctx, reorder(app, args))
	if err == nil {
		return 0
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	code := exitCode(err)
	if code == -int(syscall.EPIPE) {
		return 0
	}
	fmt.Fprintf(stderr, "onnxq: %s\n", strings.TrimSpace(err.Error()))
	return code
}

// usageError marks errors of the command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

func exitCode(err error) int {
	var (
		usage    usageError
		glob     *qdq.GlobError
		content  *onnxfile.ContentError
		place    *graph.Error
		data     *calibration.DataError
		contract *onnxq.ContractError
		path     *fs.PathError
		stop     stopped
		defect   *exec.PanicError
	)
	switch {
	case errors.As(err, &stop):
		if stop.signal == syscall.SIGTERM {
			return 143
		}
		return 130
	case errors.Is(err, syscall.EPIPE):
		return -int(syscall.EPIPE)
	case errors.As(err, &usage), errors.As(err, &glob):
		return exitUsage
	case errors.As(err, &contract):
		return exitContract
	case errors.As(err, &data), errors.Is(err, onnxq.ErrNoData):
		return exitData
	case errors.Is(err, exec.ErrLimit):
		return exitLimit
	case errors.As(err, &defect):
		return exitInternal
	case errors.As(err, &content):
		return exitModel
	case errors.As(err, &path), errors.Is(err, fs.ErrNotExist):
		return exitFile
	case errors.As(err, &place):
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

func newApp(stdin io.Reader, stdout, stderr io.Writer) *cli.App {
	e := &env{stdin: stdin, stdout: stdout, stderr: stderr}
	app := &cli.App{
		Name:                      "onnxq",
		Usage:                     "quantize ONNX models",
		Version:                   version(),
		Writer:                    stdout,
		ErrWriter:                 stderr,
		Reader:                    stdin,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              func(_ *cli.Context, err error, _ bool) error { return usageError{err.Error()} },
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("unknown command %q; see onnxq --help", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			e.quantizeCommand(), e.calibrateCommand(), e.planCommand(), e.inspectCommand(), e.prepareCommand(),
			e.runCommand(), e.demoCommand(), e.targetsCommand(), e.opsCommand(),
		},
	}
	setUsageErrors(app.Commands)
	return app
}

func setUsageErrors(commands []*cli.Command) {
	for _, c := range commands {
		name := c.FullName()
		c.HideHelpCommand = true
		c.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
			return usagef("%s: %s; see onnxq %s --help", name, err, name)
		}
		setUsageErrors(c.Subcommands)
	}
}

// reorder moves flags before positional arguments, since the parser stops at
// the first of these. What follows "--" stays positional.
func reorder(app *cli.App, args []string) []string {
	if len(args) < 2 || strings.HasPrefix(args[1], "-") {
		return args
	}
	out := []string{args[0]}
	commands, flags := app.Commands, app.Flags
	rest := args[1:]
	for len(rest) > 0 {
		next := find(commands, rest[0])
		if next == nil {
			break
		}
		out = append(out, rest[0])
		rest, commands, flags = rest[1:], next.Subcommands, next.Flags
	}
	values := map[string]bool{}
	for _, f := range flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, n := range f.Names() {
			values[n] = !isBool
		}
	}
	var named, positional []string
	for len(rest) > 0 {
		a := rest[0]
		rest = rest[1:]
		switch {
		case a == "--":
			positional = append(positional, rest...)
			rest = nil
		case len(a) < 2 || a[0] != '-':
			positional = append(positional, a)
		default:
			named = append(named, a)
			name := strings.TrimLeft(a, "-")
			if values[name] && len(rest) > 0 {
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

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
