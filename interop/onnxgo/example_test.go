//go:build !noonnxgo

package onnxgo_test

import (
	"fmt"
	"log"
	"os"

	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/interop/onnxgo"
	"github.com/owulveryck/onnx-go"
	"gorgonia.org/tensor"
)

// A program written on onnx-go. Only the line that makes the backend is not as
// in onnx-go's own documentation.
func Example() {
	file, err := os.ReadFile("../../models/digits/model.onnx")
	if err != nil {
		log.Fatal(err)
	}
	backend, err := onnxgo.NewFor(file)
	if err != nil {
		log.Fatal(err)
	}
	model := onnx.NewModel(backend)
	if err := model.UnmarshalBinary(file); err != nil {
		log.Fatal(err)
	}

	digit := []string{
		"..####..",
		".##..##.",
		".#....#.",
		".#....#.",
		".#....#.",
		".#....#.",
		".##..##.",
		"..####..",
	}
	image := tensor.New(tensor.WithShape(1, 1, 8, 8), tensor.Of(tensor.Float32))
	for y, row := range digit {
		for x, c := range row {
			if c == '#' {
				if err := image.SetAt(float32(1), 0, 0, y, x); err != nil {
					log.Fatal(err)
				}
			}
		}
	}
	if err := model.SetInput(0, image); err != nil {
		log.Fatal(err)
	}
	if err := backend.Run(); err != nil {
		log.Fatal(err)
	}
	outputs, err := model.GetOutputTensors()
	if err != nil {
		log.Fatal(err)
	}
	best, err := tensor.Argmax(outputs[0], 1)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("scores", outputs[0].Shape(), "are highest for", best)
	// Output: scores (1, 10) are highest for [0]
}

// The other way round: onnx-go's decoder as a check on our loader.
func ExampleCrossCheck() {
	file, err := os.ReadFile("../../models/digits/model.onnx")
	if err != nil {
		log.Fatal(err)
	}
	model, err := onnxfile.Decode(file)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(onnxgo.CrossCheck(file, model))
	// Output: 23 nodes, 79 edges, 33 attributes and 32 initializers compared: 0 differences; 0 things that onnx-go cannot read
}
