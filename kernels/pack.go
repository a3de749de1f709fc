package kernels

// Pack4 stores the low 4 bits of src[2i]+offset in the low half of dst[i] and
// those of src[2i+1]+offset in the high half, the layout of int4 and uint4
// tensors in ONNX. A missing last half is 0. dst has at least (len(src)+1)/2
// bytes.
func Pack4[T ~uint8 | ~int8](dst []byte, src []T, offset byte) {
	dst = dst[:(len(src)+1)/2]
	n := packVec(4, ptr(dst), cast[uint8](src), len(src), offset)
	dst, src = dst[n/2:], src[n:]
	for i := range len(src) / 2 {
		dst[i] = (byte(src[2*i])+offset)&15 | (byte(src[2*i+1])+offset)<<4
	}
	if len(src)%2 == 1 {
		dst[len(dst)-1] = (byte(src[len(src)-1]) + offset) & 15
	}
}

// Unpack4 is the inverse of Pack4 for len(dst) elements, with extension of the
// sign for a signed T. src has at least (len(dst)+1)/2 bytes.
func Unpack4[T ~uint8 | ~int8](dst []T, src []byte) {
	src = src[:(len(dst)+1)/2]
	for i := range len(dst) / 2 {
		b := src[i]
		dst[2*i], dst[2*i+1] = T(b<<4)>>4, T(b)>>4
	}
	if len(dst)%2 == 1 {
		dst[len(dst)-1] = T(src[len(src)-1]<<4) >> 4
	}
}

// Pack2 stores the low 2 bits of src[4i]+offset, ..., src[4i+3]+offset in
// dst[i], lowest bits first, the layout of int2 and uint2 tensors in ONNX.
// Missing last elements are 0. dst has at least (len(src)+3)/4 bytes.
func Pack2[T ~uint8 | ~int8](dst []byte, src []T, offset byte) {
	dst = dst[:(len(src)+3)/4]
	n := packVec(2, ptr(dst), cast[uint8](src), len(src), offset)
	dst, src = dst[n/4:], src[n:]
	for i := range len(src) / 4 {
		s := src[4*i : 4*i+4]
		dst[i] = (byte(s[0])+offset)&3 | (byte(s[1])+offset)&3<<2 | (byte(s[2])+offset)&3<<4 | (byte(s[3])+offset)<<6
	}
	if tail := src[len(src)&^3:]; len(tail) > 0 {
		var b byte
		for j, q := range tail {
			b |= (byte(q) + offset) & 3 << (2 * j)
		}
		dst[len(dst)-1] = b
	}
}

// Unpack2 is the inverse of Pack2 for len(dst) elements, with extension of the
// sign for a signed T. src has at least (len(dst)+3)/4 bytes.
func Unpack2[T ~uint8 | ~int8](dst []T, src []byte) {
	src = src[:(len(dst)+3)/4]
	for i := range dst {
		dst[i] = T(src[i/4]<<(6-2*(i%4))) >> 6
	}
}

// Pack8 stores src[i]+offset in dst[i], modulo 256. dst is at least as long as
// src and may be src.
func Pack8[T ~uint8 | ~int8](dst []byte, src []T, offset byte) {
	dst = dst[:len(src)]
	n := packVec(8, ptr(dst), cast[uint8](src), len(src), offset)
	for i, q := range src[n:] {
		dst[n+i] = byte(q) + offset
	}
}
