package beam_test

import (
	"context"
	"flag"
	"fmt"
	"log"

	beamsdk "github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/beam"
)

// The program imports github.com/apache/beam/sdks/v2/go/pkg/beam/io/filesystem/gcs,
// which makes gs:// known.
func ExampleEngine_Calibrate() {
	flag.Parse()
	beamsdk.Init()
	e := beam.Engine{Staging: "gs://bucket/tmp"}
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{"gs://bucket/samples"}}}
	table, err := e.Calibrate(context.Background(), "gs://bucket/model.onnx", "gs://bucket/table.json", o)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(table.Samples), "samples")
}

func ExampleEngine_Run() {
	flag.Parse()
	beamsdk.Init()
	o := onnxq.Options{Data: []string{"samples"}, Runner: beam.Engine{}.Run}
	if _, err := onnxq.Quantize(context.Background(), "model.onnx", "model.int8.onnx", o); err != nil {
		log.Fatal(err)
	}
}
