package rabbitmq

import (
	"encoding/json"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// A Death is one way by which a message was dead-lettered.
type Death struct {
	Queue       string    `json:"queue"`        // that it was taken out of
	Reason      string    `json:"reason"`       // rejected, expired, maxlen or delivery_limit
	Count       int64     `json:"count"`        // how often, there and for that
	Exchange    string    `json:"exchange"`     // it had been published to
	RoutingKeys []string  `json:"routing-keys"` // it had been published with
	Time        time.Time `json:"time"`         // of the first time, in whole seconds
}

// Deaths tells where a message from a dead-letter queue has been before, the
// latest first: what RabbitMQ writes into the header x-death. Nil for a message
// that was never dead-lettered.
func Deaths(msg *message.Message) []Death {
	text := msg.Metadata[headerDeaths]
	if text == "" {
		return nil
	}
	var all []Death
	if json.Unmarshal([]byte(text), &all) != nil {
		return nil // written by somebody else
	}
	return all
}
