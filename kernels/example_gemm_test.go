package kernels_test

import (
	"fmt"

	"github.com/onnxq/onnxq/kernels"
)

func ExampleGemm() {
	a := kernels.Matrix{Data: []float32{1, 2, 3, 4, 5, 6}, Ld: 3} // 2×3
	b := kernels.PackB(3, 2, kernels.Matrix{Data: []float32{1, 0, 0, 1, 1, 1}, Ld: 2})
	c := make([]float32, 4)
	kernels.GemmPacked(nil, 2, a, b, c, 2, &kernels.Epilogue{ColBias: []float32{10, -20}, Clip: true, Max: 100})
	fmt.Println(c)
	// Output: [14 0 20 0]
}

func ExampleConv() {
	conv, err := kernels.NewConv(kernels.ConvSpec{
		Cin: 1, Cout: 1, Groups: 1, Kernel: []int{3}, PadBegin: []int{1}, PadEnd: []int{1},
	}, []float32{1, 2, 1}, []float32{.5})
	if err != nil {
		fmt.Println(err)
		return
	}
	out, _ := conv.Out([]int{4})
	y := make([]float32, out[0])
	if err := conv.Run(nil, []float32{1, 2, 3, 4}, 1, []int{4}, y, nil); err != nil {
		fmt.Println(err)
	}
	fmt.Println(y)
	// Output: [4.5 8.5 12.5 11.5]
}

func ExampleQGemm() {
	a := kernels.QMatrix{Data: []byte{130, 126}, Ld: 2} // zero point 128: 2, -2
	minus := int8(-3)
	b := kernels.PackQB(2, 1, kernels.QMatrix{Data: []byte{5, byte(minus)}, Signed: true, Ld: 1}, nil, false)
	y := make([]byte, 1)
	kernels.QGemm(nil, 1, a, 128, b, &kernels.QOut{Ld: 1, Bytes: y, Scale: []float32{.25}, Zero: 100})
	fmt.Println(y) // 100 + 16/4
	// Output: [104]
}
