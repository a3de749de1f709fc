package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/urfave/cli/v2"
)

// choices returns the values of flags that take one of a list.
func choices() map[string][]string {
	var names []string
	for _, t := range targets.All() {
		names = append(names, t.Name)
	}
	return map[string][]string{
		"mode": modeNames, "target": names, "method": methodNames(),
		"activations": activationNames, "weights": quant.Storages(), "granularity": {"channel", "tensor", "block:32"}, "weight-zero": {"symmetric", "full", "asymmetric"}, "scale-type": {"f32", "f16", "bf16"},
		"external-data": {"auto", "always", "never"}, "format": {"qdq", "qoperator", "pb", "npz"}, "algorithm": algorithmNames(), "engine": engineNames(),
	}
}

// word is a command as completion and the manual see it.
type word struct {
	path  string // "calibrate merge"
	c     *cli.Command
	flags []cli.Flag
}

func words(commands []*cli.Command, parent string) []word {
	var out []word
	for _, c := range commands {
		path := parent + c.Name
		out = append(out, word{path, c, c.Flags})
		out = append(out, words(c.Subcommands, path+" ")...)
	}
	return out
}

func (e *env) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script for a shell", ArgsUsage: "bash|zsh|fish",
		Description: "bash: source <(onnxq completion bash)\nzsh: source <(onnxq completion zsh)\nfish: onnxq completion fish | source",
		Action: func(c *cli.Context) error {
			a, err := args(c, "SHELL")
			if err != nil {
				return err
			}
			list := words(c.App.Commands, "")
			switch a[0] {
			case "bash":
				return bashCompletion(e.stdout, list, false)
			case "zsh":
				return bashCompletion(e.stdout, list, true)
			case "fish":
				return fishCompletion(e.stdout, list)
			}
			return usagef("completion: %q is none of bash, zsh, fish", a[0])
		},
	}
}

// dashed returns the spellings of a flag.
func dashed(f cli.Flag) []string {
	var out []string
	for _, n := range f.Names() {
		if len(n) == 1 {
			out = append(out, "-"+n)
		} else {
			out = append(out, "--"+n)
		}
	}
	return out
}

// bashCompletion writes a function for bash, which zsh takes as well.
func bashCompletion(w io.Writer, list []word, zsh bool) error {
	var b strings.Builder
	if zsh {
		b.WriteString("autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n")
	}
	b.WriteString("_onnxq() {\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd= flags= subs= w i\n")
	b.WriteString("\tfor ((i = 1; i < COMP_CWORD; i++)); do\n\t\tw=${COMP_WORDS[i]}\n\t\tcase \"$cmd:$w\" in\n")
	for _, x := range list {
		parent, name := "", x.path
		if i := strings.LastIndexByte(x.path, ' '); i >= 0 {
			parent, name = x.path[:i], x.path[i+1:]
		}
		fmt.Fprintf(&b, "\t\t%q) cmd=%q ;;\n", parent+":"+name, x.path)
	}
	b.WriteString("\t\tesac\n\tdone\n\tcase $cmd in\n")
	var top []string
	for _, x := range list {
		var flags, subs []string
		for _, f := range x.flags {
			flags = append(flags, dashed(f)...)
		}
		for _, s := range x.c.Subcommands {
			subs = append(subs, s.Name)
		}
		if x.c.Name == "completion" {
			subs = []string{"bash", "zsh", "fish"}
		}
		if !strings.Contains(x.path, " ") {
			top = append(top, x.path)
		}
		fmt.Fprintf(&b, "\t%q) flags=%q subs=%q ;;\n", x.path, strings.Join(append(flags, "--help"), " "), strings.Join(subs, " "))
	}
	fmt.Fprintf(&b, "\t*) flags=\"--help --version\" subs=%q ;;\n\tesac\n\tcase $prev in\n", strings.Join(top, " "))
	values := choices()
	var names []string
	for n := range values {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(&b, "\t--%s) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n", n, strings.Join(values[n], " "))
	}
	b.WriteString(`	esac
	case $cur in
	-*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
	*) COMPREPLY=($(compgen -W "$subs" -- "$cur") $(compgen -f -- "$cur")) ;;
	esac
}
complete -o filenames -F _onnxq onnxq
`)
	_, err := io.WriteString(w, b.String())
	return err
}

func fishCompletion(w io.Writer, list []word) error {
	var b strings.Builder
	quote := func(s string) string { return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'" }
	values := choices()
	for _, x := range list {
		name, when := x.path, "__fish_use_subcommand"
		if i := strings.LastIndexByte(x.path, ' '); i >= 0 {
			name, when = x.path[i+1:], "__fish_seen_subcommand_from "+x.path[:i]
		}
		fmt.Fprintf(&b, "complete -c onnxq -n %s -a %s -d %s\n", quote(when), name, quote(x.c.Usage))
		for _, f := range x.flags {
			fmt.Fprintf(&b, "complete -c onnxq -n %s", quote("__fish_seen_subcommand_from "+name))
			for _, n := range f.Names() {
				if len(n) == 1 {
					fmt.Fprintf(&b, " -s %s", n)
				} else {
					fmt.Fprintf(&b, " -l %s", n)
				}
				if v := values[n]; v != nil {
					fmt.Fprintf(&b, " -x -a %s", quote(strings.Join(v, " ")))
				}
			}
			if _, ok := f.(*cli.BoolFlag); !ok && values[f.Names()[0]] == nil {
				b.WriteString(" -r")
			}
			fmt.Fprintf(&b, " -d %s\n", quote(usageOf(f)))
		}
	}
	b.WriteString("complete -c onnxq -n '__fish_seen_subcommand_from completion' -x -a 'bash zsh fish'\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func usageOf(f cli.Flag) string {
	if d, ok := f.(cli.DocGenerationFlag); ok {
		return strings.ReplaceAll(d.GetUsage(), "`", "")
	}
	return ""
}

func (e *env) manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page", Description: "onnxq man > onnxq.1; or: onnxq man | man -l -",
		Action: func(c *cli.Context) error {
			if _, err := args(c); err != nil {
				return err
			}
			return writeManual(e.stdout, words(c.App.Commands, ""))
		},
	}
}

// writeManual writes a page in the man macros of roff.
func writeManual(w io.Writer, list []word) error {
	var b strings.Builder
	esc := func(s string) string {
		s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", "").Replace(s)
		for _, c := range ".'" {
			if strings.HasPrefix(s, string(c)) {
				s = `\&` + s
			}
		}
		return s
	}
	b.WriteString(".TH ONNXQ 1\n.SH NAME\nonnxq \\- quantize ONNX models\n.SH SYNOPSIS\n")
	for _, x := range list {
		fmt.Fprintf(&b, ".B onnxq %s\n%s\n.br\n", esc(x.path), esc(strings.TrimSpace("[flags] "+x.c.ArgsUsage)))
	}
	b.WriteString(".SH DESCRIPTION\nTakes a float ONNX model and sample inputs, and writes a model with QuantizeLinear and DequantizeLinear\nthat ONNX Runtime runs on integers. Flags may stand before, between and behind arguments; \\-\\- ends them.\n.SH COMMANDS\n")
	for _, x := range list {
		fmt.Fprintf(&b, ".SS onnxq %s\n%s.\n", esc(x.path), esc(strings.ToUpper(x.c.Usage[:1])+x.c.Usage[1:]))
		for _, f := range x.flags {
			var names []string
			for _, d := range dashed(f) {
				names = append(names, `\fB`+esc(d)+`\fR`)
			}
			fmt.Fprintf(&b, ".TP\n%s", strings.Join(names, ", "))
			if d, ok := f.(cli.DocGenerationFlag); ok && d.TakesValue() {
				b.WriteString(` \fIVALUE\fR`)
			}
			b.WriteString("\n" + esc(usageOf(f)))
			if d, ok := f.(cli.DocGenerationFlag); ok && d.TakesValue() {
				if t := strings.Trim(d.GetDefaultText(), `"`); t != "" {
					fmt.Fprintf(&b, " [%s]", esc(t))
				}
			}
			b.WriteByte('\n')
		}
	}
	b.WriteString(".SH EXIT STATUS\n")
	for _, c := range exitCodes {
		fmt.Fprintf(&b, ".TP\n%s\n%s\n", c[0], esc(c[1]))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
