package sqs

import (
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/outbox"
)

// A source is one call's messages: those of a relay, or those of Publish.
type source interface {
	len() int
	topic(i int) string
	key(i int) string // what order is kept by, within a topic; empty: by nothing
	id(i int) string
	payload(i int) []byte
	eachHeader(i int, f func(name, value string))
	group(i int) string // MessageGroupId
	dedup(i int) string // MessageDeduplicationId
	fault(i int) string // what is wrong with it, whatever the queue
}

const noTopic = "it has no topic; name the queue or SNS topic"

type relayMessages []*outbox.Message

func (s relayMessages) len() int             { return len(s) }
func (s relayMessages) topic(i int) string   { return s[i].Topic }
func (s relayMessages) key(i int) string     { return s[i].Key }
func (s relayMessages) id(i int) string      { return s[i].EventID.String() }
func (s relayMessages) payload(i int) []byte { return s[i].Payload }
func (s relayMessages) group(i int) string   { return GroupID(s[i].Key) }

func (s relayMessages) eachHeader(i int, f func(name, value string)) { s[i].EachHeader(f) }

func (s relayMessages) dedup(i int) string {
	id := s.id(i)
	if _, again := s[i].Headers[events.HeaderReplayed]; again {
		return freshDedup(id)
	}
	return id
}

func (s relayMessages) fault(i int) string {
	if s[i].Topic == "" {
		return noTopic
	}
	return ""
}

// watermillMessages are those of one Publish call.
type watermillMessages struct {
	to   string
	msgs []*message.Message
}

func (s watermillMessages) len() int             { return len(s.msgs) }
func (s watermillMessages) topic(int) string     { return s.to }
func (s watermillMessages) payload(i int) []byte { return s.msgs[i].Payload }

func (s watermillMessages) id(i int) string {
	if s.msgs[i] == nil {
		return ""
	}
	return s.msgs[i].UUID
}

func (s watermillMessages) key(i int) string {
	if s.msgs[i] == nil {
		return ""
	}
	if group := s.msgs[i].Metadata[metadataGroup]; group != "" {
		return group
	}
	return s.msgs[i].Metadata[events.HeaderPartitionKey]
}

func (s watermillMessages) group(i int) string {
	if key := s.key(i); key != "" {
		return GroupID(key)
	}
	return ""
}

// dedup is that of the event, so that a message that is sent again after a lost
// answer is one message still. What was given up, or is replayed, must not be
// taken for the first copy of the same event.
func (s watermillMessages) dedup(i int) string {
	m := s.msgs[i]
	id := m.Metadata[metadataDedup]
	switch {
	case id != "":
	case m.Metadata[events.HeaderReplayed] != "" || m.Metadata[handlers.HeaderPoisonHandler] != "" || m.Metadata[handlers.HeaderReplayPass] != "":
		return freshDedup(m.UUID)
	default:
		id = m.UUID
	}
	if id == "" {
		return uuid.NewString()
	}
	return GroupID(id) // the same rule
}

// freshDedup: the same event on purpose once more, which SQS must not swallow.
func freshDedup(id string) string {
	if !isToken(id) || len(id) > 80 {
		id = digest(id)
	}
	return id + "/" + strings.ReplaceAll(uuid.NewString(), "-", "")
}

func (s watermillMessages) eachHeader(i int, f func(name, value string)) {
	for name, value := range s.msgs[i].Metadata {
		if name != metadataGroup && name != metadataDedup {
			f(name, value)
		}
	}
}

func (s watermillMessages) fault(i int) string {
	switch {
	case s.msgs[i] == nil:
		return "the message is nil"
	case s.to == "":
		return noTopic
	}
	return ""
}
