# proto needs protoc 3.21 or later and
#   go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12

.PHONY: build test lint proto bench

build:
	CGO_ENABLED=0 go build ./...

test:
	go test ./...

lint:
	go vet ./...
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"

bench:
	go test -run '^$$' -bench . ./...

proto:
	protoc -I . --go_out=. --go_opt=paths=source_relative internal/onnxpb/onnx.proto
