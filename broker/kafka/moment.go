package kafka

import (
	"bytes"
	"time"

	"github.com/google/uuid"
)

// A record's timestamp is when its event happened. Kafka removes records by
// their timestamps, so a moment that would take the record away from those who
// have not read it yet (it is older than half the topic's retention), or keep it
// for ever (it lies in the future), is replaced by the present. The event itself
// keeps its time: that is in its document.

const (
	// farFuture is more than clocks differ by. Kafka refuses what is further ahead
	// than message.timestamp.after.max.ms, an hour by default.
	farFuture = time.Minute

	// unknownRetention stands in for that of a topic whose settings we may not
	// read: Kafka's default.
	unknownRetention = 7 * 24 * time.Hour
)

func recordTime(happened, now time.Time, retention time.Duration) time.Time {
	switch age := now.Sub(happened); {
	case happened.IsZero(), age < -farFuture, retention > 0 && age > retention/2, happened.UnixMilli() < 0:
		return now
	}
	return happened
}

var (
	documentStart  = []byte(`{"event_id":"`)
	timestampStart = []byte(`,"timestamp":"`)
)

// eventTime finds when an event happened: in its document, whose members stand
// in a fixed order (events.DomainEvent.AppendTo), else in its id, if that is a
// UUIDv7 (RFC 9562, section 5.7). Zero if neither tells.
func eventTime(payload []byte, id uuid.UUID) (t time.Time) {
	if bytes.HasPrefix(payload, documentStart) {
		// What is before it are strings and a number, and in a string the quotes
		// would be escaped.
		if _, rest, ok := bytes.Cut(payload[:min(len(payload), 16<<10)], timestampStart); ok {
			if end := bytes.IndexByte(rest, '"'); end > 0 && t.UnmarshalText(rest[:end]) == nil {
				return t
			}
		}
	}
	if id.Version() == 7 {
		ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
		return time.UnixMilli(ms)
	}
	return time.Time{}
}
