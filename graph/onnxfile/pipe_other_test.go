//go:build !unix

package onnxfile

import "errors"

func makePipe(string) error { return errors.ErrUnsupported }
