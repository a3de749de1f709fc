// Onnxq-beam calibrates and quantizes models in Apache Beam pipelines. The
// flags of Beam choose the runner; prism in this process is the default. Models,
// samples and outputs are paths, or URLs of Beam filesystems. The build tag
// nocloud leaves out the filesystems gs:// and s3:// and Dataflow.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	beamsdk "github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/beam"
	"github.com/onnxq/onnxq/calibration"
)

const usage = `usage:
  onnxq-beam calibrate --model MODEL --data SRC... -o TABLE.json [flags]   statistics of the samples
  onnxq-beam quantize  --model MODEL --data SRC... -o OUT [flags]          one model; the search is shared out
  onnxq-beam models    --model GLOB... --data SRC... -o FOLDER [flags]     each model by itself, under the same options
Models, samples and outputs are paths, or URLs of Beam filesystems such as gs://bucket/samples.
flags:
`

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

var (
	modelFlag, dataFlag list
	outFlag             = flag.String("o", "", "the `FILE` or folder to write")
	configFlag          = flag.String("config", "", "`FILE` with onnxq.Options as JSON")
	partsFlag           = flag.Int("parts", 0, "`NUMBER` of parts that samples are cut into (0: 16, or 4 where all run in this process)")
	stagingFlag         = flag.String("staging", "", "`FOLDER` that all workers reach, of any Beam filesystem, for files of tasks and results; needed where workers do not see the files of this machine")
	threadsFlag         = flag.Int("threads", 0, "`NUMBER` of threads of a task (0: one per processor)")
)

func main() {
	flag.Var(&modelFlag, "model", "`FILE` of a model, or a glob for models; may be repeated")
	flag.Var(&dataFlag, "data", "`SRC` of samples as of onnxq calibrate, by a path that all workers see, or a URL; may be repeated")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	// A worker that a runner starts gets flags alone.
	args, command := os.Args[1:], ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	_ = flag.CommandLine.Parse(args) // ends the program on errors
	beamsdk.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := do(ctx, os.Stdout, command); err != nil {
		fmt.Fprintln(os.Stderr, "onnxq-beam:", err)
		os.Exit(1)
	}
}

// do does what the command line says.
func do(ctx context.Context, w io.Writer, command string) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("%q is no flag", flag.Arg(0))
	}
	var o onnxq.Options
	if *configFlag != "" {
		f, err := os.Open(*configFlag)
		if err != nil {
			return err
		}
		d := json.NewDecoder(f)
		d.DisallowUnknownFields()
		err = d.Decode(&o)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", *configFlag, err)
		}
	}
	if len(dataFlag) > 0 {
		o.Data = dataFlag
	}
	if *partsFlag > 0 {
		o.Parts = *partsFlag
	}
	if len(modelFlag) == 0 || *outFlag == "" {
		return errors.New("--model and -o are needed; --help lists the flags")
	}
	e := beam.Engine{Staging: *stagingFlag, Threads: *threadsFlag}
	if command != "models" && len(modelFlag) > 1 {
		return fmt.Errorf("%s takes one model", command)
	}
	switch command {
	case "calibrate":
		t, err := e.Calibrate(ctx, modelFlag[0], *outFlag, onnxq.CalibrateOptions{Options: o})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%d values of %d samples → %s\n", len(t.Values), len(t.Samples), *outFlag)
		return err
	case "quantize":
		res, err := e.Quantize(ctx, modelFlag[0], *outFlag, o)
		if res != nil {
			fmt.Fprintf(w, "%s → %s\n", done(res), *outFlag)
		}
		return err
	case "models":
		return models(ctx, w, e, o)
	}
	return fmt.Errorf("%q is none of calibrate, quantize, models", command)
}

// done says what was done to a model.
func done(r *onnxq.Result) string {
	return fmt.Sprintf("%d of %d nodes are quantized, %d bytes are %d", r.Quantized, r.Nodes, r.BytesIn, r.BytesOut)
}

// models quantizes each model that the globs name.
func models(ctx context.Context, w io.Writer, e beam.Engine, o onnxq.Options) error {
	ins, outs, err := beam.Pair(ctx, modelFlag, *outFlag)
	if err != nil {
		return err
	}
	if !calibration.IsURL(*outFlag) {
		if err := os.MkdirAll(*outFlag, 0o777); err != nil {
			return err
		}
	}
	results, err := e.Models(ctx, ins, outs, o)
	if err != nil {
		return err
	}
	failed := 0
	for i, r := range results {
		if r.Error != "" {
			failed++
			fmt.Fprintf(w, "%s: %s\n", ins[i], r.Error)
			continue
		}
		fmt.Fprintf(w, "%s: %s → %s\n", ins[i], done(r.Result), outs[i])
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d models failed", failed, len(ins))
	}
	return nil
}
