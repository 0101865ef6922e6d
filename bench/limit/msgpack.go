package limit

import "errors"

// What little of MessagePack the metadata of watermill-redisstream is made of: a map of
// less than 16 strings of less than 256 bytes (https://msgpack.org: fixmap, fixstr, str 8).

func msgpackMap(n int) byte { return 0x80 | byte(n) }

func appendText(to []byte, text string) []byte {
	if len(text) < 32 {
		to = append(to, 0xa0|byte(len(text)))
	} else {
		to = append(to, 0xd9, byte(len(text)))
	}
	return append(to, text...)
}

var errMetadata = errors.New("the limit knows short metadata only")

// decodeMap cuts the strings out of text, which is not copied.
func decodeMap(text string, into map[string]string) error {
	if text == "" || text[0]&0xf0 != 0x80 {
		return errMetadata
	}
	n := int(text[0] & 0x0f)
	text = text[1:]
	next := func() (s string, ok bool) {
		var size, from int
		switch {
		case len(text) > 0 && text[0]&0xe0 == 0xa0:
			size, from = int(text[0]&0x1f), 1
		case len(text) > 1 && text[0] == 0xd9:
			size, from = int(text[1]), 2
		}
		if from == 0 || len(text) < from+size {
			return "", false
		}
		s, text = text[from:from+size], text[from+size:]
		return s, true
	}
	for range n {
		name, ok := next()
		value, also := next()
		if !ok || !also {
			return errMetadata
		}
		into[name] = value
	}
	return nil
}
