package events

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// IdempotencyKey is the SHA-256, in hex, of entityID:action:at, with at in UTC
// as RFC 3339 with nanoseconds ([time.RFC3339Nano], which leaves trailing zeros
// out). The same moment gives the same key in every time zone.
//
// The three are joined by colons that nothing escapes, so that two different
// triples can give one string, and thus one key: ("a:b", "c", t) and
// ("a", "b:c", t) do. Keep colons out of entityID or out of action.
func IdempotencyKey(entityID, action string, at time.Time) string {
	var space [192]byte // on the stack
	b := append(space[:0], entityID...)
	b = append(b, ':')
	b = append(b, action...)
	b = append(b, ':')
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	sum := sha256.Sum256(b)
	return string(hex.AppendEncode(space[:0], sum[:]))
}
