package events

import (
	"encoding/binary"
	"unsafe"
)

// Texts are looked at eight bytes at a time, as "Bit Twiddling Hacks" (S. E.
// Anderson, "Determine if a word has a zero byte") has it: of v, whose bytes are
// numbers below 256, (v - 0x01…) &^ v & 0x80… has the top bit of every byte that is
// zero. Bytes above the lowest such one may be taken for zero wrongly, by its borrow.

const (
	ones = 0x0101010101010101
	tops = 0x8080808080808080
)

// load reads b[i:i+8], the first byte lowest.
func load(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// bytesOf is s without a copy, to be read only.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// unlikeText is zero if all bytes of v may stand in a JSON string as they are;
// else its lowest bit is in the first that may not.
func unlikeText(v uint64) uint64 {
	quote, backslash, control := v^ones*'"', v^ones*'\\', v&(ones*0xe0)
	return ((quote-ones)&^quote | (backslash-ones)&^backslash | (control-ones)&^control) & tops
}

// isPlain tells whether all bytes of v are printable ASCII.
func isPlain(v uint64) bool {
	control, del := v&(ones*0xe0), v^ones*0x7f
	return (v|(control-ones)&^control|(del-ones)&^del)&tops == 0
}
