package calibration

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Digest returns the first 8 bytes of a SHA-256 over the names, element types,
// shapes and values of a sample, by name: the same for the same contents,
// whatever file they came from.
func (f Feed) Digest() uint64 {
	h := sha256.New()
	var head []byte
	for _, name := range slices.Sorted(mapKeys(f)) {
		t := f[name]
		head = binary.AppendUvarint(head[:0], uint64(len(name)))
		head = append(head, name...)
		head = binary.AppendUvarint(head, uint64(t.DType()))
		head = binary.AppendUvarint(head, uint64(t.Rank()))
		for _, d := range t.Shape() {
			head = binary.AppendUvarint(head, uint64(d))
		}
		for _, v := range t.Strings() {
			head = binary.AppendUvarint(head, uint64(len(v)))
			head = append(head, v...)
		}
		h.Write(head)
		h.Write(t.Bytes())
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}
