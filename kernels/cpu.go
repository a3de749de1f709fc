package kernels

import "os"

// Level is an instruction set that kernels are written for. arm64 has Generic,
// NEON and NEONDot, amd64 Generic and the others; each includes the ones before
// it of the same processors.
type Level uint8

const (
	Generic    Level = iota // portable Go
	NEON                    // the vectors of arm64
	NEONDot                 // those with 8-bit dot products
	AVX2                    // AVX2, FMA
	AVX512                  // AVX-512 F, BW, DQ, VL
	AVX512VNNI              // AVX-512 with 8-bit dot products
)

var levelNames = [...]string{"generic", "neon", "neondot", "avx2", "avx512", "avx512vnni"}

// String returns the name that ONNXQ_CPU knows the level by.
func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return "unknown"
}

// detected is the highest level of this CPU and build, and level the one in
// use. Only tests change level after the start of the program. An object that
// holds packed data keeps the level that it was packed for.
var (
	detected = detect()
	level    = chosen(detected, os.Getenv("ONNXQ_CPU"))
)

// chosen returns the level named want where have includes it, else have.
func chosen(have Level, want string) Level {
	for l, name := range levelNames {
		if l := Level(l); name == want && l < have && (l == Generic || l >= AVX2 == (have >= AVX2)) {
			return l
		}
	}
	return have
}

// CPU returns the level that the kernels run at.
func CPU() Level { return level }
