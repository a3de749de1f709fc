module github.com/onnxq/onnxq

go 1.26.0
