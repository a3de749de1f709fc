package targets

import "slices"

// onnxruntime lists what the CPU provider of ONNX Runtime has integer kernels
// for.
var onnxruntime = []Rule{
	{Op: "Conv", Class: Anchor, Absorbs: clamps},
	{Op: "MatMul", Class: Anchor, FloatOutput: true, MinRank: 2},
	{Op: "Gemm", Class: Anchor, FloatOutput: true, Attrs: plainGemm},
	{Op: "Gather", Class: Table, Attrs: []AttrRule{{"axis", 0}}},

	{Op: "Add", Class: Bridge, Absorbs: clamps},
	{Op: "Mul", Class: Bridge, Absorbs: clamps},
	{Op: "AveragePool", Class: Bridge},
	{Op: "GlobalAveragePool", Class: Bridge},
	{Op: "LeakyRelu", Class: Bridge},
	{Op: "Sigmoid", Class: Bridge},
	{Op: "Concat", Class: Bridge},

	{Op: "MaxPool", Class: Carry, MinOpset: 12},
	{Op: "Reshape", Class: Carry, Hoist: true},
	{Op: "Flatten", Class: Carry, Hoist: true},
	{Op: "Squeeze", Class: Carry, Hoist: true},
	{Op: "Unsqueeze", Class: Carry, Hoist: true},
	{Op: "Transpose", Class: Carry, Hoist: true},
	{Op: "Slice", Class: Carry},
	{Op: "Split", Class: Carry},
	{Op: "Expand", Class: Carry},
	{Op: "Tile", Class: Carry},
	{Op: "Gather", Class: Carry},

	{Op: "MatMul", Class: Dynamic},
	{Op: "Gemm", Class: Dynamic, Attrs: plainGemm},
	{Op: "LSTM", Class: Dynamic, Attrs: []AttrRule{{"layout", 0}}},
	{Op: "Conv", Class: Dynamic, Slow: true},
}

var (
	clamps    = []string{"Relu", "Clip"}
	plainGemm = []AttrRule{{"alpha", 1}, {"beta", 1}, {"transA", 0}}
)

// ortTarget returns a build of ONNX Runtime's CPU provider.
func ortTarget(name, title, fusion string, pairSums bool, costs []Cost, sources ...string) *Target {
	return &Target{
		Name: name, Title: title,
		Sources: append([]string{
			"microsoft/onnxruntime: core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc, qdq_selector_action_transformer.cc",
			"microsoft/onnxruntime: core/optimizer/qdq_transformer/qdq_propagation.cc, clip_quantizelinear.cc, weight_bias_quantization.cc",
			"microsoft/onnxruntime: core/optimizer/matmul_integer_to_float.cc, dynamic_quantize_matmul_fusion.cc; contrib_ops/cpu/quantization/dynamic_quantize_lstm.cc",
			"optimized graphs written by onnxruntime 1.32.0",
		}, sources...),
		Activations: []string{"u8", "i8", "u16", "i16"}, Weights: []string{"i8", "u8"}, Floats: []string{"f16"},
		PerTensorOpset: 10, PerChannelOpset: 13, WideOpset: 21, MSDomain: true, MaxOpset: 25,
		PairSums: pairSums, Pins: []string{"MaxPool"}, Requantizes: []string{"Conv", "ConvTranspose", "Gemm"}, Propagates: []string{"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"},
		TakesBatch: []string{"MatMul", "Gemm"},
		Fusion:     fusion, Costs: costs, Rules: onnxruntime, Forms: ortForms, Refusals: ortRefusals,
	}
}

const quantizePage = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html (data type selection)"

// presets are the built-in targets; the first is the default.
var presets = []*Target{
	ortTarget("ort-cpu", "ONNX Runtime, CPU execution provider, any processor: sums of two products stay within 16 bits", "onnxruntime-x86", true, []Cost{avx2Cost, vnniCost}),
	ortTarget("ort-cpu-vnni", "ONNX Runtime, CPU execution provider on x86-64 with VNNI, whose sums cannot saturate", "onnxruntime-x86", false, []Cost{vnniCost}, quantizePage),
	ortTarget("ort-cpu-avx2", "ONNX Runtime, CPU execution provider on x86-64 without VNNI, where u8 by i8 products saturate in 16 bits", "onnxruntime-x86", true, []Cost{avx2Cost}, quantizePage,
		"Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: VPMADDUBSW"),
	ortTarget("ort-arm64", "ONNX Runtime, CPU execution provider on arm64, whose kernels take signed activations", "onnxruntime-arm", false, []Cost{avx2Cost},
		"microsoft/onnxruntime: core/mlas/lib/qgemm.h (dispatch for arm64: UDOT and SDOT)"),
	&tensorRT, &openVINO, &qnn, &coreML, &standard,
}

var tensorRT = Target{
	Name:  "tensorrt",
	Title: "NVIDIA TensorRT, explicit quantization: symmetric int8 or float8, biases in float",
	Sources: []string{
		"https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html (symmetric scheme, zero points of 0)",
		"https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html (placement of Q/DQ: inputs of products, residual sums, none behind outputs)",
		"onnx/onnx-tensorrt: docs/operators.md, onnxOpImporters.cpp (QuantizeLinear and DequantizeLinear of float8 by the type of the zero point)",
		"https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/release-notes-10/10.6.0.html (float8 products with a scale for each channel)",
		"NVIDIA/TensorRT-Model-Optimizer: modelopt/onnx/quantization/fp8.py (Conv, Gemm and MatMul in float8, channels and places of a Conv)",
	},
	Activations: []string{"i8", "f8e4m3"}, Weights: []string{"i8", "f8e4m3"}, Floats: []string{"f16", "bf16"}, SymmetricActivations: true, FloatBias: true,
	PerTensorOpset: 10, PerChannelOpset: 13, MaxOpset: 22,
	Rules: []Rule{
		{Op: "Conv", Class: Anchor, FloatOutput: true, CodesToo: true, Absorbs: clamps},
		{Op: "ConvTranspose", Class: Anchor, FloatOutput: true, CodesToo: true, Absorbs: clamps},
		{Op: "MatMul", Class: Anchor, FloatOutput: true, BothSides: true},
		{Op: "Gemm", Class: Anchor, FloatOutput: true, Attrs: plainGemm},
		{Op: "Add", Class: Bridge, Absorbs: clamps},
		{Op: "AveragePool", Class: Bridge},
		{Op: "GlobalAveragePool", Class: Bridge},
		{Op: "Concat", Class: Bridge},
		{Op: "MaxPool", Class: Carry},
		{Op: "Reshape", Class: Carry, Hoist: true},
		{Op: "Flatten", Class: Carry, Hoist: true},
		{Op: "Squeeze", Class: Carry, Hoist: true},
		{Op: "Unsqueeze", Class: Carry, Hoist: true},
		{Op: "Transpose", Class: Carry, Hoist: true},
		{Op: "Slice", Class: Carry},
		{Op: "Conv", Class: Anchor, FloatOutput: true, Types: []string{"f8e4m3"}, Channels: 16, Places: 32},
		{Op: "MatMul", Class: Anchor, FloatOutput: true, BothSides: true, Types: []string{"f8e4m3"}},
		{Op: "Gemm", Class: Anchor, FloatOutput: true, Attrs: plainGemm, Types: []string{"f8e4m3"}},
	},
}

var openVINO = Target{
	Name:  "openvino",
	Title: "OpenVINO, CPU and GPU plugins: low precision transformations, biases in float",
	Sources: []string{
		"https://docs.openvino.ai/2024/documentation/openvino-extensibility/openvino-plugin-library/advanced-guides/low-precision-transformations.html",
		"openvinotoolkit/nncf: src/nncf/common/hardware/setups/cpu.py (u8 or i8 activations, i8 weights per channel, operators)",
	},
	Activations: []string{"u8", "i8"}, Weights: []string{"i8"}, Floats: []string{"f16", "bf16"}, FloatBias: true,
	PerTensorOpset: 10, PerChannelOpset: 13, MaxOpset: 21,
	Rules: []Rule{
		{Op: "Conv", Class: Anchor, FloatOutput: true, CodesToo: true, Absorbs: clamps},
		{Op: "ConvTranspose", Class: Anchor, FloatOutput: true, CodesToo: true, Absorbs: clamps},
		{Op: "MatMul", Class: Anchor, FloatOutput: true, BothSides: true},
		{Op: "Gemm", Class: Anchor, FloatOutput: true, Attrs: plainGemm},
		{Op: "Gather", Class: Table, Attrs: []AttrRule{{"axis", 0}}},
		{Op: "Add", Class: Bridge, Absorbs: clamps},
		{Op: "Mul", Class: Bridge, Absorbs: clamps},
		{Op: "AveragePool", Class: Bridge},
		{Op: "GlobalAveragePool", Class: Bridge},
		{Op: "Concat", Class: Bridge},
		{Op: "MaxPool", Class: Carry},
		{Op: "DepthToSpace", Class: Carry, Hoist: true},
		{Op: "Reshape", Class: Carry, Hoist: true},
		{Op: "Flatten", Class: Carry, Hoist: true},
		{Op: "Squeeze", Class: Carry, Hoist: true},
		{Op: "Unsqueeze", Class: Carry, Hoist: true},
		{Op: "Transpose", Class: Carry, Hoist: true},
		{Op: "Slice", Class: Carry},
		{Op: "Split", Class: Carry},
		{Op: "Tile", Class: Carry},
	},
}

var qnn = Target{
	Name:  "qnn",
	Title: "Qualcomm AI Engine (QNN, HTP backend), through ONNX Runtime: the whole graph on integers of 8 or 16 bits",
	Sources: []string{
		"https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html (quantized models for the HTP backend, supported operators)",
		"microsoft/onnxruntime: python/tools/quantization/execution_providers/qnn/quant_config.py (u8 and u16 activations, u8 and i8 weights)",
		"onnxruntime/onnxruntime-qnn: onnxruntime/test/providers/qnn/conv_test.cc, matmul_test.cc (i4 weights per channel with u8 and u16 activations)",
		"https://docs.qualcomm.com/bundle/publicresource/80-63442-10/topics/htp_guidelines_int4_weights.html (Conv, FullyConnected, MatMul with constant i4 weights)",
	},
	Activations: []string{"u8", "u16"}, Weights: []string{"i8", "u8", "i4"}, Floats: []string{"f16"}, Whole: true,
	PerTensorOpset: 10, PerChannelOpset: 13, WideOpset: 21, MSDomain: true, MaxOpset: 21,
	Rules: slices.Concat([]Rule{
		{Op: "Conv", Class: Anchor, Absorbs: clamps, FewBits: true},
		{Op: "ConvTranspose", Class: Anchor, Absorbs: clamps},
		{Op: "MatMul", Class: Anchor, BothSides: true, FewBits: true},
		{Op: "Gemm", Class: Anchor, Attrs: plainGemm, FewBits: true},
		{Op: "Add", Class: Bridge, Absorbs: clamps},
		{Op: "Sub", Class: Bridge, Absorbs: clamps},
		{Op: "Mul", Class: Bridge, Absorbs: clamps},
		{Op: "Div", Class: Bridge, Absorbs: clamps},
	}, bridges("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "HardSwish", "HardSigmoid", "Gelu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax",
		"LayerNormalization", "InstanceNormalization", "LpNormalization", "LRN", "Pow", "Sqrt", "Exp", "Log", "Neg", "Abs", "Sin", "Cos",
		"Max", "Min", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "AveragePool", "GlobalAveragePool", "Resize", "Concat", "Where"), []Rule{
		{Op: "MaxPool", Class: Carry},
		{Op: "DepthToSpace", Class: Carry},
		{Op: "SpaceToDepth", Class: Carry},
		{Op: "Reshape", Class: Carry},
		{Op: "Flatten", Class: Carry},
		{Op: "Squeeze", Class: Carry},
		{Op: "Unsqueeze", Class: Carry},
		{Op: "Transpose", Class: Carry},
		{Op: "Slice", Class: Carry},
		{Op: "Split", Class: Carry},
		{Op: "Expand", Class: Carry},
		{Op: "Tile", Class: Carry},
		{Op: "Gather", Class: Carry},
		{Op: "Pad", Class: Carry},
	}),
}

func bridges(ops ...string) []Rule {
	var out []Rule
	for _, op := range ops {
		out = append(out, Rule{Op: op, Class: Bridge})
	}
	return out
}

var coreML = Target{
	Name:  "coreml-like",
	Title: "runtimes such as Core ML: symmetric int8 around products, everything else and biases in float",
	Sources: []string{
		"https://apple.github.io/coremltools/docs-guides/source/opt-quantization-api.html (linear_symmetric for activations and weights, a scale for each channel of weights)",
		"https://apple.github.io/coremltools/source/coremltools.optimize.coreml.quantization.html (linear_quantize_activations)",
	},
	Activations: []string{"i8"}, Weights: []string{"i8"}, Floats: []string{"f16"}, SymmetricActivations: true, FloatBias: true,
	PerTensorOpset: 10, PerChannelOpset: 13, MaxOpset: 21,
	Rules: []Rule{
		{Op: "Conv", Class: Anchor, FloatOutput: true, CodesToo: true, Absorbs: clamps},
		{Op: "ConvTranspose", Class: Anchor, FloatOutput: true, Absorbs: clamps},
		{Op: "MatMul", Class: Anchor, FloatOutput: true},
		{Op: "Gemm", Class: Anchor, FloatOutput: true, Attrs: plainGemm},
		{Op: "Add", Class: Bridge, Absorbs: clamps},
		{Op: "AveragePool", Class: Bridge},
		{Op: "GlobalAveragePool", Class: Bridge},
		{Op: "MaxPool", Class: Carry},
		{Op: "Reshape", Class: Carry, Hoist: true},
		{Op: "Flatten", Class: Carry, Hoist: true},
		{Op: "Transpose", Class: Carry, Hoist: true},
	},
}
