// Package reason makes the text of an error fit to be kept: in a header, a column, a log.
package reason

import (
	"regexp"
	"strings"
	"unicode"
)

// MaxBytes bounds the text of an error that is kept, in bytes of UTF-8.
const MaxBytes = 1 << 10

// examinedBytes is how much of an error's text is looked at: more than is kept,
// so that what is cut later is whole when secrets are searched.
const examinedBytes = 8 << 10

var (
	// The user part of a URL: up to the last @ of the run, since passwords are
	// pasted into DSNs unescaped. A run that the cut has left without an @ goes too.
	userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s]*@|[^\s/@]*:[^\s/@]*$)`)
	// name=value or "name": "value".
	secret = regexp.MustCompile(`(?i)(pass(?:word|wd|phrase|file)?|pwd|secret|token|api[_-]?key|authorization)(["']?\s*[=:]\s*)(?:'[^']*'?|"[^"]*"?|(?:bearer |basic )?[^\s,;&]+)`)
)

// Of is the text of err as it may travel in a header, or stand in a column or a log: one
// line, valid UTF-8, short, without what looks like a credential.
func Of(err error) string {
	text := err.Error()
	if len(text) > examinedBytes {
		text = text[:examinedBytes]
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	text = userinfo.ReplaceAllString(text, "${1}***@")
	text = secret.ReplaceAllString(text, "${1}${2}***")
	return Cut(text, MaxBytes)
}

// Cut shortens valid UTF-8 to at most most bytes, and shows that it did.
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	const dots = "…"
	return strings.ToValidUTF8(s[:most-len(dots)], "") + dots
}
