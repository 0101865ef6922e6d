package testkit

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"testing"
)

// Name is a name for what belongs to one test on a shared server, such as a
// topic, an exchange or a queue: lower-case letters, digits and underscores, at
// most 40 bytes, another one at each call. Nothing under it is removed for you.
func Name(t testing.TB) string { return uniqueName(t) }

// uniqueName is a name for what belongs to one test: lower-case letters,
// digits and underscores, at most 40 bytes, so that it is a valid identifier
// everywhere and a suffix still fits into Postgres' 63. It shows the test.
func uniqueName(t testing.TB) string {
	const mostOfTest = 24
	var b strings.Builder
	for _, r := range strings.ToLower(strings.TrimPrefix(t.Name(), "Test")) {
		if b.Len() >= mostOfTest {
			break
		}
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if s := b.String(); s != "" && s[len(s)-1] != '_' {
			b.WriteByte('_')
		}
	}
	var random [5]byte
	rand.Read(random[:])
	return "t_" + strings.TrimRight(b.String(), "_") + "_" + hex.EncodeToString(random[:])
}
