package events

import (
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// A small reader of JSON (RFC 8259), because encoding/json is of no use for an
// envelope: it matches member names case-insensitively, lets the last of two
// equal members win, and puts U+FFFD in place of a lone surrogate. It is also
// three to four times slower at telling whether bytes are JSON. FuzzDataRoundTrip
// holds it against json.Valid.
//
// A fault is a clause for an error message; "" means none. The position beside
// it is where the fault was found.

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func skipSpace(b []byte, i int) int {
	for i < len(b) && isSpace(b[i]) {
		i++
	}
	return i
}

// scanValue finds the end of the value that begins at b[i], in which arrays and
// objects may nest depth deep.
func scanValue(b []byte, i, depth int) (end int, fault string) {
	if i >= len(b) {
		return i, "the text ends where a value should begin"
	}
	switch c := b[i]; c {
	case '"':
		end, _, fault = scanString(b, i)
		return end, fault
	case '{':
		return scanObject(b, i, depth)
	case '[':
		return scanArray(b, i, depth)
	case 't':
		return scanWord(b, i, "true")
	case 'f':
		return scanWord(b, i, "false")
	case 'n':
		return scanWord(b, i, "null")
	default:
		if c == '-' || isDigit(c) {
			return scanNumber(b, i)
		}
		return i, "a value should begin"
	}
}

const tooDeep = "arrays and objects nest deeper than events.MaxDepth allows"

func scanObject(b []byte, i, depth int) (end int, fault string) {
	if depth == 0 {
		return i, tooDeep
	}
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == '}' {
		return i + 1, ""
	}
	for {
		if i, _, fault = scanName(b, i); fault != "" {
			return i, fault
		}
		if i, fault = scanValue(b, i, depth-1); fault != "" {
			return i, fault
		}
		i = skipSpace(b, i)
		switch {
		case i < len(b) && b[i] == ',':
			i = skipSpace(b, i+1)
		case i < len(b) && b[i] == '}':
			return i + 1, ""
		default:
			return i, "an object should go on with a comma or end"
		}
	}
}

func scanArray(b []byte, i, depth int) (end int, fault string) {
	if depth == 0 {
		return i, tooDeep
	}
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == ']' {
		return i + 1, ""
	}
	for {
		if i, fault = scanValue(b, i, depth-1); fault != "" {
			return i, fault
		}
		i = skipSpace(b, i)
		switch {
		case i < len(b) && b[i] == ',':
			i = skipSpace(b, i+1)
		case i < len(b) && b[i] == ']':
			return i + 1, ""
		default:
			return i, "an array should go on with a comma or end"
		}
	}
}

// scanName finds the value behind the member name that begins at b[i], and the
// end of the name's string.
func scanName(b []byte, i int) (value, nameEnd int, fault string) {
	if i >= len(b) || b[i] != '"' {
		return i, i, "a member name in quotes should stand"
	}
	nameEnd, _, fault = scanString(b, i)
	if fault != "" {
		return nameEnd, nameEnd, fault
	}
	i = skipSpace(b, nameEnd)
	if i >= len(b) || b[i] != ':' {
		return i, nameEnd, "a colon should follow the member name"
	}
	return skipSpace(b, i+1), nameEnd, ""
}

// verbatim tells which bytes stand for themselves in a string.
var verbatim = func() (table [256]bool) {
	for c := range table {
		table[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return table
}()

// skipVerbatim finds the next byte that does not stand for itself.
func skipVerbatim(b []byte, i int) int {
	for ; len(b)-i >= 8; i += 8 {
		if at := unlikeText(load(b, i)); at != 0 {
			return i + bits.TrailingZeros64(at)/8
		}
	}
	for i < len(b) && verbatim[b[i]] {
		i++
	}
	return i
}

// scanString finds the end of the string whose opening quote is b[i], and
// whether there is a backslash in it.
func scanString(b []byte, i int) (end int, escaped bool, fault string) {
	for i++; ; i++ {
		if i = skipVerbatim(b, i); i >= len(b) {
			return i, escaped, "the text ends inside a string"
		}
		switch b[i] {
		case '"':
			return i + 1, escaped, ""
		case '\\':
			escaped = true
			i++
			if i >= len(b) {
				return i, escaped, "the text ends inside a string"
			}
			switch b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if _, ok := hex4(b, i+1); !ok {
					return i, escaped, "\\u should be followed by four hexadecimal digits"
				}
				i += 4
			default:
				return i, escaped, "a backslash is followed by what JSON does not know"
			}
		default:
			return i, escaped, "a control character stands unescaped in a string"
		}
	}
}

func scanWord(b []byte, i int, word string) (end int, fault string) {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return i, "a value should begin"
	}
	return i + len(word), ""
}

func scanNumber(b []byte, i int) (end int, fault string) {
	const digit = "a digit should stand in a number"
	if b[i] == '-' {
		i++
	}
	switch {
	case i >= len(b) || !isDigit(b[i]):
		return i, digit
	case b[i] == '0':
		i++
	default:
		i = skipDigits(b, i)
	}
	if i < len(b) && b[i] == '.' {
		if i++; i >= len(b) || !isDigit(b[i]) {
			return i, digit
		}
		i = skipDigits(b, i)
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if i >= len(b) || !isDigit(b[i]) {
			return i, digit
		}
		i = skipDigits(b, i)
	}
	return i, ""
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func skipDigits(b []byte, i int) int {
	for i < len(b) && isDigit(b[i]) {
		i++
	}
	return i
}

// unescape appends what is written between the quotes of a scanned string. It is
// false for a surrogate without its partner, which is no character: anything
// written in its place would change the text.
func unescape(dst, s []byte) ([]byte, bool) {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			dst = append(dst, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			c, _ := hex4(s, i+1)
			i += 4
			if utf16.IsSurrogate(c) {
				if i+2 >= len(s) || s[i+1] != '\\' || s[i+2] != 'u' {
					return dst, false
				}
				low, _ := hex4(s, i+3)
				if c = utf16.DecodeRune(c, low); c == utf8.RuneError {
					return dst, false
				}
				i += 6
			}
			dst = utf8.AppendRune(dst, c)
		default:
			dst = append(dst, s[i])
		}
	}
	return dst, true
}

func hex4(b []byte, i int) (rune, bool) {
	if len(b)-i < 4 {
		return 0, false
	}
	var c rune
	for _, d := range b[i : i+4] {
		switch {
		case d >= '0' && d <= '9':
			d -= '0'
		case d >= 'a' && d <= 'f':
			d -= 'a' - 10
		case d >= 'A' && d <= 'F':
			d -= 'A' - 10
		default:
			return 0, false
		}
		c = c<<4 | rune(d)
	}
	return c, true
}
