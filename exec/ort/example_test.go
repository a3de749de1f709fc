package ort_test

import (
	"context"
	"fmt"
	"log"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/exec/ort"
)

// The library quantizes with ONNX Runtime as what runs models.
func Example() {
	engine, err := ort.Open(ort.Options{}) // finds a library, or says how to get one
	if err != nil {
		log.Fatal(err)
	}
	res, err := onnxq.Quantize(context.Background(), "model.onnx", "model.int8.onnx", onnxq.Options{
		Data:   []string{"samples"},
		Engine: engine,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d of %d nodes, measured by %s %s\n", res.Quantized, res.Nodes, engine.Name(), engine.Version())
}
