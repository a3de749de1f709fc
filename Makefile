# Targets that need more than Go say so above them.

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build static release test fuzz faults arm64 race noasm lint cross bench generate docs proto gates hostile benchmarks table demo distributed

build:
	CGO_ENABLED=0 go build -trimpath -o bin/onnxq ./cmd/onnxq

# Without the ONNX Runtime engine, and so without the system's C library.
static:
	CGO_ENABLED=0 go build -tags noort -trimpath -o bin/onnxq-static ./cmd/onnxq

# Programs for every system, in dist/: with the ONNX Runtime engine, and -static
# without it and without onnx-go, which needs nothing of the system.
RELEASE = linux/amd64 linux/arm64 darwin/arm64 windows/amd64
release:
	rm -rf dist && mkdir dist
	for t in $(RELEASE); do \
		os=$${t%/*} arch=$${t#*/}; exe=; test $$os = windows && exe=.exe; \
		export CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch; \
		go build -trimpath -ldflags '-s -w' -o dist/onnxq-$$os-$$arch$$exe ./cmd/onnxq || exit 1; \
		go build -trimpath -ldflags '-s -w' -tags noort,noonnxgo -o dist/onnxq-$$os-$$arch-static$$exe ./cmd/onnxq || exit 1; done
	cd dist && sha256sum onnxq-* > SHA256SUMS && wc -c onnxq-*

demo: build
	bin/onnxq demo

test:
	go test ./...

# Every fuzz target for FUZZTIME, one after the other, or those of FUZZ, such as
# FUZZ=./kernels:FuzzConv. What is found lies in the testdata of the package.
FUZZTIME = 10m
FUZZ = $(shell grep -ro '^func Fuzz[A-Za-z0-9]*' --include='*_test.go' . | sed 's,/[^/]*:func ,:,')
fuzz:
	for f in $(FUZZ); do \
		echo "$$f"; go test -run '^$$' -fuzz "^$${f#*:}\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $${f%:*} || exit 1; done

# Kills, full disks, odd paths and bad samples, at more points in time than test.
faults:
	ONNXQ_FAULTS=200 go test -count 1 -timeout 20m -run '^TestFault|^TestSignals|^TestDeterminism' -v ./cmd/onnxq

# The kernels as arm64 has them, under emulation: needs qemu-user-static.
arm64:
	GOARCH=arm64 CGO_ENABLED=0 go test -exec qemu-aarch64-static -timeout 60m ./kernels ./quant

# Packages that start goroutines or run inside them. Needs a C compiler.
race:
	go test -race ./internal/... ./exec/... ./interop/... ./calibration/... ./passes/accuracy ./auto .

noasm:
	go test -tags noasm ./kernels/... ./quant/... ./ops/... ./exec/... .

lint:
	go vet ./...
	go vet -tags noonnxgo ./cmd/... ./interop/...
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	go run $(STATICCHECK) ./...

cross:
	for t in linux/arm64 darwin/arm64 windows/amd64; do \
		echo $$t; CGO_ENABLED=0 GOOS=$${t%/*} GOARCH=$${t#*/} go build -o /dev/null ./... || exit 1; \
		CGO_ENABLED=0 GOOS=$${t%/*} GOARCH=$${t#*/} go vet ./... || exit 1; done
	go vet -tags noort ./...

# The kernels by themselves; then, where the models are, the executor and
# calibration beside ONNX Runtime (needs what gates needs).
bench: build
	go test -run '^$$' -bench . ./...
	python3 gates/bench.py --onnxq bin/onnxq --shared $${ONNXQ_SHARED:-../shared} --int8 bin/int8 --profile
	python3 gates/calibration.py --onnxq bin/onnxq --shared $${ONNXQ_SHARED:-../shared}

# Assembly, from the generators in kernels/_gen.
generate:
	go generate ./kernels

# Pages that are made from tables in the code.
docs:
	go test ./internal/opdoc -update

# Needs protoc 3.21 or later and
#   go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
proto:
	protoc -I . --go_out=. --go_opt=paths=source_relative internal/onnxpb/onnx.proto

# Needs Python with the packages that .ci/run installs, and ../shared.
gates: build
	python3 gates/zoo.py --onnxq bin/onnxq --shared $${ONNXQ_SHARED:-../shared} --gates exec,quant,match,speed

# Malformed, hostile and awkward models as whole commands. Needs what gates needs.
hostile: build
	$${ONNXQ_PYTHON:-python3} $${ONNXQ_SHARED:-../shared}/hostile/judge.py -- $(CURDIR)/bin/onnxq quantize {in} -o {out} --data {calib}

# docs/benchmarks.md: other tools beside this one. Needs what gates needs, and onnxsim 0.8.1 and sympy.
benchmarks: build
	python3 gates/benchmarks.py --onnxq bin/onnxq --shared $${ONNXQ_SHARED:-../shared}

# docs/schemes.md: each way to quantize on real models. Needs what gates needs,
# and time.
table: build
	python3 gates/table.py --onnxq bin/onnxq --shared $${ONNXQ_SHARED:-../shared} --only $${MODELS:-vww_mobilenet,cifar_resnet8,crepe_tiny}

# What divides work among processes: Beam on prism, Spark, Ray, the manifests, the
# cost model. Installs Python packages into .cache, and GNU parallel where it
# may; needs Java 17 or later for Spark, and ../shared for the real models.
distributed: build
	(command -v parallel || apt-get install -y --no-install-recommends parallel) >/dev/null 2>&1 || echo "SKIPPED: no GNU parallel" >&2
	test -x .cache/distributed/bin/python || python3 -m venv .cache/distributed
	.cache/distributed/bin/python -m pip install -q -r examples/spark/requirements.txt -r examples/ray/requirements.txt
	cd beam && CGO_ENABLED=0 go build -o ../bin/onnxq-beam ./cmd/onnxq-beam && go vet ./... && go test -count 1 -timeout 30m ./...
	PATH="$$PWD/bin:$$PATH" bash examples/manifests/test.sh
	.cache/distributed/bin/python examples/spark/test.py
	.cache/distributed/bin/python examples/ray/test.py
	python3 examples/scale/scale.py measure --onnxq bin/onnxq --model models/digits/model.onnx --data models/digits/calib -o .cache/digits.json
	python3 examples/scale/scale.py simulate --within 0.35 .cache/digits.json examples/scale/figures/*.json
	for m in efficientnet_lite0 minilm gru_shakespeare; do d=$${ONNXQ_SHARED:-../shared}/zoo/$$m; \
		if [ -d $$d ]; then python3 gates/beam.py --model $$d/model.onnx --data $$d/calib || exit 1; \
		else echo "SKIPPED overhead on $$m: no $$d" >&2; fi; done
