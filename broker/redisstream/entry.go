package redisstream

import (
	"encoding/json"
	"fmt"
	"strconv"
	"sync/atomic"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
)

// An entry of a stream, while it is ours.
type entry struct {
	id         string
	values     map[string]any // as go-redis gives them: strings
	deliveries int64          // the first one of ours included

	key   string           // what order is kept by; "" is none
	size  int              // bytes
	first *message.Message // for the first attempt; every other is decoded again

	attempts atomic.Int64 // how often it was handed over here
	nacks    atomic.Int64 // and nacked
}

// oneAtATime is the key of every entry when only one may be in flight: they then
// come in the stream's order, and one that was nacked before any other.
const oneAtATime = "*"

// decode finds out the entry's key, and keeps the message for its first delivery.
func (s *subscription) decode(e *entry) {
	for name, v := range e.values {
		value, _ := v.(string)
		e.size += len(name) + len(value)
	}
	e.first = s.build(e)
	e.key = e.first.Metadata[events.HeaderPartitionKey]
	if s.of.cfg.MaxInFlight == 1 {
		e.key = oneAtATime
	}
}

// message is what the handler gets: fresh for every delivery.
func (s *subscription) message(e *entry, attempt int) *message.Message {
	msg := e.first
	if e.first = nil; msg == nil {
		msg = s.build(e)
	}
	e.attempts.Store(int64(attempt))
	msg.Metadata[HeaderDeliveryCount] = strconv.FormatInt(e.deliveries+int64(attempt)-1, 10)
	msg.Metadata[HeaderStream] = s.stream
	msg.Metadata[HeaderEntryID] = e.id
	return msg
}

func (s *subscription) build(e *entry) *message.Message {
	msg, err := decode(e.values)
	if err != nil {
		return standIn(s.stream, e, err.Error())
	}
	delete(msg.Metadata, HeaderUndecodable) // ours to say, and not so
	return msg
}

// decode reads an entry in the wire format. What it gets may have been written
// by anybody.
func decode(values map[string]any) (*message.Message, error) {
	id, ok := values[fieldUUID].(string)
	if !ok {
		return nil, fmt.Errorf("the entry has no field %s", fieldUUID)
	}
	payload, ok := values[fieldPayload].(string)
	if !ok {
		return nil, fmt.Errorf("the entry has no field %s", fieldPayload)
	}
	msg := message.NewMessage(id, []byte(payload))
	if metadata, _ := values[fieldMetadata].(string); metadata != "" {
		m, err := decodeStringMap([]byte(metadata))
		if err != nil {
			return nil, fmt.Errorf("the entry's metadata is no msgpack map of strings: %w", err)
		}
		msg.Metadata = m
	}
	return msg, nil
}

// RawEntry is the payload, in JSON, of a message with HeaderUndecodable: the
// entry as it stands in the stream.
type RawEntry struct {
	Stream string            `json:"stream"`
	ID     string            `json:"id"`
	Fields map[string]string `json:"fields,omitempty"` // those that are UTF-8
	Binary map[string][]byte `json:"binary,omitempty"` // the others, in base64; a name that is not UTF-8 is quoted as in Go
}

// undecodable is the name space of the ids that stand-ins get: the same entry
// always has the same one.
var undecodable = uuid.MustParse("0a3d9ea5-4a0c-5b0e-9d0f-6f6c6b1b7a55")

func standIn(stream string, e *entry, reason string) *message.Message {
	raw := RawEntry{Stream: stream, ID: e.id, Fields: make(map[string]string)}
	for name, v := range e.values {
		value, _ := v.(string)
		if utf8.ValidString(name) && utf8.ValidString(value) {
			raw.Fields[name] = value
			continue
		}
		if !utf8.ValidString(name) {
			name = strconv.Quote(name)
		}
		if raw.Binary == nil {
			raw.Binary = make(map[string][]byte)
		}
		raw.Binary[name] = []byte(value)
	}
	payload, err := json.Marshal(raw)
	if err != nil {
		payload = nil // cannot be: strings and bytes
	}
	msg := message.NewMessage(uuid.NewSHA1(undecodable, []byte(stream+"/"+e.id)).String(), payload)
	msg.Metadata[HeaderUndecodable] = reason
	return msg
}
