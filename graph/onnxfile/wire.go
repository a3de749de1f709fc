package onnxfile

import (
	"errors"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Wire types as the low bits of a tag; a case of the decoders is written
// number<<3 | type, so that a field of the wrong wire type is an unknown one.
const (
	vint = uint64(protowire.VarintType)
	blob = uint64(protowire.BytesType)
	fx32 = uint64(protowire.Fixed32Type)
	fx64 = uint64(protowire.Fixed64Type)
)

var errWire = errors.New("malformed protobuf")

// scanner steps through the fields of one message. What keep is called on
// gathers in extra, as a part of the message itself where the fields lie side
// by side.
type scanner struct {
	msg   []byte
	pos   int
	start int    // of the current field, tag included
	tag   uint64 // of the current field
	u     uint64 // its value, unless it is a blob or group
	b     []byte // its value if it is a blob
	err   error

	lo, hi int
	spill  []byte
}

func scan(msg []byte) scanner { return scanner{msg: msg} }

func (s *scanner) num() protowire.Number { return protowire.Number(s.tag >> 3) }

func (s *scanner) next() bool {
	if s.pos == len(s.msg) || s.err != nil {
		return false
	}
	s.start = s.pos
	rest := s.msg[s.pos:]
	num, typ, n := protowire.ConsumeTag(rest)
	if n < 0 {
		s.err = errWire
		return false
	}
	rest = rest[n:]
	var m int
	s.tag = uint64(num)<<3 | uint64(typ)
	s.u, s.b = 0, nil
	switch typ {
	case protowire.VarintType:
		s.u, m = protowire.ConsumeVarint(rest)
	case protowire.Fixed32Type:
		var v uint32
		v, m = protowire.ConsumeFixed32(rest)
		s.u = uint64(v)
	case protowire.Fixed64Type:
		s.u, m = protowire.ConsumeFixed64(rest)
	case protowire.BytesType:
		s.b, m = protowire.ConsumeBytes(rest)
		s.b = s.b[:len(s.b):len(s.b)]
	default:
		m = protowire.ConsumeFieldValue(num, typ, rest)
	}
	if m < 0 {
		s.err = errWire
		return false
	}
	s.pos += n + m
	return true
}

func (s *scanner) raw() []byte { return s.msg[s.start:s.pos:s.pos] }

// keep adds the current field to extra.
func (s *scanner) keep() {
	switch {
	case s.spill != nil:
		s.spill = append(s.spill, s.raw()...)
	case s.lo == s.hi:
		s.lo, s.hi = s.start, s.pos
	case s.hi == s.start:
		s.hi = s.pos
	default:
		s.spill = append(s.spill, s.msg[s.lo:s.hi]...)
		s.spill = append(s.spill, s.raw()...)
	}
}

func (s *scanner) extra() []byte {
	if s.spill != nil {
		return s.spill
	}
	if s.lo == s.hi {
		return nil
	}
	return s.msg[s.lo:s.hi:s.hi]
}

// str and num take a singular field; one that spells out its default is kept,
// because the file would be another without it.
func (s *scanner) str(dst *string) {
	*dst = string(s.b)
	if len(s.b) == 0 {
		s.keep()
	}
}

func (s *scanner) int(dst *int64) {
	*dst = int64(s.u)
	if s.u == 0 {
		s.keep()
	}
}

// varints appends the varints of a packed field.
func varints[T ~int64 | ~uint64](dst []T, b []byte) ([]T, error) {
	for len(b) > 0 {
		u, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return nil, errWire
		}
		dst = append(dst, T(u))
		b = b[n:]
	}
	return dst, nil
}

func fixed32s(dst []float32, b []byte) ([]float32, error) {
	if len(b)%4 != 0 {
		return nil, errWire
	}
	for ; len(b) > 0; b = b[4:] {
		u, _ := protowire.ConsumeFixed32(b)
		dst = append(dst, math.Float32frombits(u))
	}
	return dst, nil
}
