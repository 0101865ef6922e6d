package handlers

import "github.com/ThreeDotsLabs/watermill/message"

// The headers that consumers read and write, beside those of package events.
// All have a bounded size and are overwritten, never appended to, so that a
// message does not grow by being poisoned and replayed again.
const (
	// HeaderUndecodable is set by a subscriber on a message that it could not turn
	// into one of ours; its value says why, its payload is what the broker had. It
	// belongs to the delivery and does not travel on.
	HeaderUndecodable = "postbus_undecodable"
	// HeaderDeliveryCount is set by a subscriber whose broker counts: how often this
	// message was delivered, this time included. It belongs to the delivery and does
	// not travel on.
	HeaderDeliveryCount = "postbus_delivery_count"

	// HeaderPoisonHandler is which handler gave up: with HeaderPoisonEventID it
	// identifies the poisoning, of which there may be several copies.
	HeaderPoisonHandler = "postbus_poison_handler"
	// HeaderPoisonReason is the last error: at most MaxReasonBytes, without secrets
	// as far as they can be told.
	HeaderPoisonReason = "postbus_poison_reason"
	// HeaderPoisonAttempts is how often the handler was tried, in decimal.
	HeaderPoisonAttempts = "postbus_poison_attempts"
	// HeaderPoisonTopic is where the message came from, and where a replay goes.
	HeaderPoisonTopic = "postbus_poison_topic"
	// HeaderPoisonTime is when the handler gave up, by this process's clock: RFC 3339, UTC.
	HeaderPoisonTime = "postbus_poison_time"
	// HeaderPoisonEventID is the event's id; empty when no event could be read.
	HeaderPoisonEventID = "postbus_poison_event_id"

	// HeaderReplayFor names the one handler that a replayed message is for; all
	// others ack it. It lifts that handler's poisoning.
	HeaderReplayFor = "postbus_replay_for"
	// HeaderReplayPass is the id of the replay that last touched the message, which
	// is how it finds the end of the queue.
	HeaderReplayPass = "postbus_replay_pass"
)

// UndecodableHandler is the reserved handler name under which a message is
// poisoned that is no event for anybody. A replay of it is for all handlers.
const UndecodableHandler = "postbus.undecodable"

// copyHeaders copies what travels on, without what belongs to one delivery, one
// poisoning or one replay.
func copyHeaders(from message.Metadata) message.Metadata {
	to := make(message.Metadata, len(from)+8)
	for name, value := range from {
		switch name {
		case HeaderUndecodable, HeaderDeliveryCount, HeaderReplayFor,
			HeaderPoisonHandler, HeaderPoisonReason, HeaderPoisonAttempts,
			HeaderPoisonTopic, HeaderPoisonTime, HeaderPoisonEventID:
		default:
			to[name] = value
		}
	}
	return to
}

// redelivered tells what the broker knows. No count means that it does not tell.
func redelivered(headers message.Metadata) bool {
	count := headers[HeaderDeliveryCount]
	return count != "" && count != "1"
}
