package redisstream

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The metadata of an entry is a msgpack map of strings
// (https://github.com/msgpack/msgpack/blob/master/spec.md), as
// watermill-redisstream writes it. These few functions are all of msgpack that
// it takes: they append to a buffer that a whole batch shares, and read what a
// stranger may have written without trusting any length in it.

const (
	mpNil    = 0xc0
	mpBin8   = 0xc4
	mpBin16  = 0xc5
	mpBin32  = 0xc6
	mpStr8   = 0xd9
	mpStr16  = 0xda
	mpStr32  = 0xdb
	mpMap16  = 0xde
	mpMap32  = 0xdf
	mpFixMap = 0x80 // 1000xxxx
	mpFixStr = 0xa0 // 101xxxxx
)

func appendMapHeader(dst []byte, n int) []byte {
	switch {
	case n < 16:
		return append(dst, mpFixMap|byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(dst, mpMap16), uint16(n))
	default:
		return binary.BigEndian.AppendUint32(append(dst, mpMap32), uint32(n))
	}
}

func appendStringHeader(dst []byte, n int) []byte {
	switch {
	case n < 32:
		return append(dst, mpFixStr|byte(n))
	case n < 1<<8:
		return append(dst, mpStr8, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(dst, mpStr16), uint16(n))
	default:
		return binary.BigEndian.AppendUint32(append(dst, mpStr32), uint32(n))
	}
}

func appendString(dst []byte, s string) []byte {
	return append(appendStringHeader(dst, len(s)), s...)
}

func appendPair(dst []byte, name, value string) []byte {
	return appendString(appendString(dst, name), value)
}

var errTruncated = errors.New("it ends in the middle")

// decodeStringMap reads a map of strings (or of binaries, which other writers
// use) that fills b exactly; nil is an empty map. Never panics, and allocates
// no more than b's length warrants.
func decodeStringMap(b []byte) (map[string]string, error) {
	if len(b) == 0 {
		return nil, errTruncated
	}
	n, b, err := mapLen(b)
	if err != nil {
		return nil, err
	}
	if n < 0 {
		return nil, errTruncated
	}
	m := make(map[string]string, min(n, len(b)/2)) // a pair takes two bytes at least
	for range n {
		var name, value string
		if name, b, err = cutString(b); err != nil {
			return nil, err
		}
		if value, b, err = cutString(b); err != nil {
			return nil, err
		}
		m[name] = value
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%d bytes follow its end", len(b))
	}
	return m, nil
}

func mapLen(b []byte) (n int, rest []byte, err error) {
	code, rest := b[0], b[1:]
	switch {
	case code == mpNil:
		return 0, rest, nil
	case code&0xf0 == mpFixMap:
		return int(code & 0x0f), rest, nil
	case code == mpMap16:
		return cutLen(rest, 2)
	case code == mpMap32:
		return cutLen(rest, 4)
	}
	return 0, nil, fmt.Errorf("it begins with 0x%02x, which is no map", code)
}

func cutString(b []byte) (s string, rest []byte, err error) {
	if len(b) == 0 {
		return "", nil, errTruncated
	}
	var n int
	code, rest := b[0], b[1:]
	switch {
	case code == mpNil:
		return "", rest, nil
	case code&0xe0 == mpFixStr:
		n = int(code & 0x1f)
	case code == mpStr8 || code == mpBin8:
		n, rest, err = cutLen(rest, 1)
	case code == mpStr16 || code == mpBin16:
		n, rest, err = cutLen(rest, 2)
	case code == mpStr32 || code == mpBin32:
		n, rest, err = cutLen(rest, 4)
	default:
		return "", nil, fmt.Errorf("it holds 0x%02x where a string belongs", code)
	}
	if err != nil {
		return "", nil, err
	}
	if n < 0 || n > len(rest) { // below zero where an int has 32 bits
		return "", nil, errTruncated
	}
	return string(rest[:n]), rest[n:], nil
}

func cutLen(b []byte, width int) (n int, rest []byte, err error) {
	if len(b) < width {
		return 0, nil, errTruncated
	}
	for _, c := range b[:width] {
		n = n<<8 | int(c)
	}
	return n, b[width:], nil
}
