//go:build !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

import (
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"
)

// apiVersion is the version of the C API that is asked for. Members are only
// ever added at the end of its table, so every later library serves it.
const apiVersion = 16

// function is the place of a function in the table OrtApi of
// onnxruntime_c_api.h.
type function int

// The functions that are used.
const (
	getErrorCode                   function = 1
	getErrorMessage                function = 2
	createEnv                      function = 3
	disableTelemetryEvents         function = 6
	createSession                  function = 7
	createSessionFromArray         function = 8
	runSession                     function = 9
	createSessionOptions           function = 10
	enableProfiling                function = 14
	setSessionLogSeverityLevel     function = 22
	setGraphOptimizationLevel      function = 23
	setIntraOpNumThreads           function = 24
	setInterOpNumThreads           function = 25
	createRunOptions               function = 39
	runOptionsSetLogSeverityLevel  function = 41
	runOptionsSetTerminate         function = 46
	createTensorAsOrtValue         function = 48
	createTensorWithDataAsOrtValue function = 49
	getTensorMutableData           function = 51
	getStringTensorDataLength      function = 53
	getStringTensorContent         function = 54
	getTensorElementType           function = 60
	getDimensionsCount             function = 61
	getDimensions                  function = 62
	getTensorTypeAndShape          function = 65
	getValueType                   function = 67
	createCPUMemoryInfo            function = 69
	allocatorFree                  function = 76
	getAllocatorWithDefaultOptions function = 78
	getValue                       function = 80
	getValueCount                  function = 81
	createValue                    function = 82
	releaseStatus                  function = 93
	releaseSession                 function = 95
	releaseValue                   function = 96
	releaseRunOptions              function = 97
	releaseTensorTypeAndShapeInfo  function = 99
	releaseSessionOptions          function = 100
	sessionEndProfiling            function = 110
	hasValue                       function = 192
	getResizedStringElementBuffer  function = 252

	numFunctions = 253
)

// Values of the enumerations OrtLoggingLevel, OrtAllocatorType, OrtMemType and
// ONNXType.
const (
	levelFatal = 4

	arenaAllocator = 1
	memTypeDefault = 0

	typeTensor   = 1
	typeSequence = 2
	typeMap      = 3
	typeSparse   = 5
	typeOptional = 6
)

// handle is a pointer to an object of the runtime, or to other memory that is
// not Go's.
type handle = uintptr

// api is the table of functions of a library, and the objects that all
// sessions share. It lives as long as the process.
type api struct {
	table     [numFunctions]uintptr
	version   string
	env       handle
	memory    handle // OrtMemoryInfo of ordinary memory
	allocator handle
}

// call calls a function that does not return a status. Pointers to Go memory
// are converted in the argument list, which keeps them alive.
//
//go:uintptrescapes
func (a *api) call(f function, args ...uintptr) uintptr {
	r, _, _ := purego.SyscallN(a.table[f], args...)
	return r
}

// do calls a function that returns a status.
//
//go:uintptrescapes
func (a *api) do(f function, args ...uintptr) error {
	status, _, _ := purego.SyscallN(a.table[f], args...)
	if status == 0 {
		return nil
	}
	e := &Error{Code: int(int32(a.call(getErrorCode, status))), Message: goString(a.call(getErrorMessage, status))}
	a.call(releaseStatus, status)
	return e
}

// Error is an error that the runtime returned.
type Error struct {
	Code    int // of the enumeration OrtErrorCode
	Message string
}

// Error returns the runtime's message on one line.
func (e *Error) Error() string {
	if e.Message == "" {
		return "ONNX Runtime error " + strconv.Itoa(e.Code)
	}
	return "ONNX Runtime: " + strings.Join(strings.Fields(e.Message), " ")
}

// newAPI asks a library for its table and makes the shared objects. base is
// its OrtApiBase.
func newAPI(base handle) (*api, error) {
	if base == 0 {
		return nil, fmt.Errorf("it has no C API")
	}
	entry := *(*[2]uintptr)(pointer(base)) // GetApi, GetVersionString
	a := &api{}
	version, _, _ := purego.SyscallN(entry[1])
	a.version = goString(version)
	if major, minor := parseVersion(a.version); major < 1 || major == 1 && minor < apiVersion {
		return nil, fmt.Errorf("it is ONNX Runtime %q, 1.%d or later is needed", a.version, apiVersion)
	}
	table, _, _ := purego.SyscallN(entry[0], apiVersion)
	if table == 0 {
		return nil, fmt.Errorf("it is ONNX Runtime %s, which does not have version %d of the C API", a.version, apiVersion)
	}
	a.table = *(*[numFunctions]uintptr)(pointer(table))
	id := cString("onnxq")
	if err := a.do(createEnv, levelFatal, uintptr(unsafe.Pointer(id)), uintptr(unsafe.Pointer(&a.env))); err != nil {
		return nil, err
	}
	if err := a.do(disableTelemetryEvents, a.env); err != nil {
		return nil, err
	}
	if err := a.do(createCPUMemoryInfo, arenaAllocator, memTypeDefault, uintptr(unsafe.Pointer(&a.memory))); err != nil {
		return nil, err
	}
	return a, a.do(getAllocatorWithDefaultOptions, uintptr(unsafe.Pointer(&a.allocator)))
}

// parseVersion reads "1.32.0"; what is no version is 0, 0.
func parseVersion(s string) (major, minor int) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) < 2 {
		return 0, 0
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	return major, minor
}

// pointer returns the address p of memory that is not Go's as a pointer.
func pointer(p handle) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

// maxString bounds what goString reads.
const maxString = 1 << 20

// goString copies a string that ends with a zero byte; that of 0 is "".
func goString(p handle) string {
	if p == 0 {
		return ""
	}
	n := 0
	for n < maxString && *(*byte)(unsafe.Add(pointer(p), n)) != 0 {
		n++
	}
	return string(unsafe.Slice((*byte)(pointer(p)), n))
}

// cString returns a copy of s with a zero byte behind it. Names of values and
// files that hold one are cut there; nothing is called so.
func cString(s string) *byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return &b[0]
}
