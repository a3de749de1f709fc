//go:build !unix

package fuzztest

import "time"

var start = time.Now()

// usage has the wall's time and no memory where the processor's is not asked for.
func usage() used { return used{time: time.Since(start)} }
