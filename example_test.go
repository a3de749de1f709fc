package onnxq_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
)

// The whole job: a float model and samples in, an integer model out.
func ExampleQuantize() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	res, err := onnxq.Quantize(context.Background(), "models/digits/model.onnx", filepath.Join(dir, "digits.int8.onnx"), onnxq.Options{
		Data: []string{"models/digits/calib"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("some of", res.Nodes, "nodes on integers:", res.Quantized > 0)
	fmt.Println("a third of the size:", res.BytesOut*3 < res.BytesIn)
	fmt.Println("more than 30 dB on", res.Measured+":", *res.SQNR > 30)
	// Output:
	// some of 17 nodes on integers: true
	// a third of the size: true
	// more than 30 dB on held-out samples: true
}

// The stages one by one: the plan could be changed or written to a file in
// between, the table come from other machines.
func ExampleMakePlan() {
	ctx := context.Background()
	model, err := onnxq.Load("models/digits/model.onnx")
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	options := onnxq.Options{Data: []string{"models/digits/calib"}}

	prepared, _, err := onnxq.Prepare(ctx, model, options)
	if err != nil {
		log.Fatal(err)
	}
	options.Plan, err = onnxq.MakePlan(prepared, options)
	if err != nil {
		log.Fatal(err)
	}
	src, err := onnxq.Open(ctx, model, options.Data, options)
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	options.Table, err = onnxq.Calibrate(ctx, prepared, options.Plan, src, options)
	if err != nil {
		log.Fatal(err)
	}
	r, err := calibration.Range(options.Table.Values["image"], calibration.MinMax, calibration.MethodOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("input from", r.Min, "to", r.Max)

	options.Data = nil
	quantized, res, err := onnxq.QuantizeModel(ctx, model, options)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(res.Quantized, "nodes quantized")

	outputs, err := onnxq.Compare(ctx, model, quantized, src, options)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("more than 30 dB:", *eval.Worst(outputs) > 30)
	fmt.Println("smaller:", onnxfile.Size(quantized) < onnxfile.Size(model))
	// Output:
	// input from 0 to 1
	// 17 nodes quantized
	// more than 30 dB: true
	// smaller: true
}

// Any model can be run on samples, quantized or not.
func ExampleRun() {
	model, err := onnxq.Load("models/digits/model.onnx")
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	options := onnxq.Options{Data: []string{"models/digits/eval"}, Samples: 2}
	_, err = onnxq.Run(context.Background(), model, options, func(name string, outputs []ops.Data) error {
		fmt.Println(name, outputs[0])
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// 000 float[32,10]
	// 008 float[32,10]
}

// ExampleInspect says what is in a model.
func ExampleInspect() {
	model, err := onnxq.Load("models/text/model.onnx")
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	s := onnxq.Inspect(model)
	fmt.Println(s.Inputs[0].Name, s.Inputs[0].Type, "→", s.Outputs[0].Name, s.Outputs[0].Type)
	// Output:
	// tokens int64[batch,length] → logits float[batch,length,128]
}
