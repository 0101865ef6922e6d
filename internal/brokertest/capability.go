package brokertest

import "fmt"

// Answer says whether something can be done.
type Answer uint8

const (
	No Answer = iota
	Yes
	// NotAssured: it depends on who is faster. Measured, and either result accepted.
	NotAssured
)

func (a Answer) String() string {
	switch a {
	case No:
		return "no"
	case Yes:
		return "yes"
	case NotAssured:
		return "not assured"
	}
	return fmt.Sprintf("Answer(%d)", uint8(a))
}

// Capabilities are declared by a Broker and measured by Run, each by the case of its name.
type Capabilities struct {
	Payloads         Answer // any payload arrives byte for byte: empty, binary, the largest
	Headers          Answer // so do headers: empty, long, UTF-8, twenty at once
	Results          Answer // outbox.BatchPublisher: a result for each message of a batch, and no failure but its own
	HoldsBack        Answer // behind a message that failed, none of its key is sent by the same call
	TellsTooLarge    Answer // a message over the limit is outbox.ErrPermanent
	TellsAway        Answer // a server that is away is outbox.ErrUnavailable, soon, on both sides
	Deadline         Answer // a call to publish ends with its deadline on a network that stalls
	Pipelines        Answer // messages are on their way together: a slow network does not cost a round trip for each
	OrderPerKey      Answer // one consumer, many in flight, some nacked: each key in order, none overtaken
	InFlight         Answer // as many messages at once as were asked for
	OrderOverMembers Answer // the same over consumers that come and go
	SurvivesKill     Answer // server killed and restarted under load: nothing lost, each key in order, both sides go on
	PublisherCut     Answer // the publisher's connections cut under load: the same
	SubscriberCut    Answer // the subscriber's connections cut under load: the same
	PublisherFrozen  Answer // the publisher's connections become half-open: it goes on over new ones
	SubscriberFrozen Answer // so does the subscriber
	ConsumerKilled   Answer // a consumer killed in mid-handler: another one gets its message
	Foreign          Answer // an entry that cannot be read is handed on and stops nobody
	PublisherClose   Answer // closes twice, before use, concurrently, under load; publishing afterwards is an error
	SubscriberClose  Answer // so does the subscriber, and also when nobody reads its channel
	GracefulStop     Answer // closing waits for the handlers, and what they did is not repeated
	ManyTopics       Answer // 20 topics at once, 1,000 in the long form
	Lag              Answer // messages behind, and the age of the oldest
	UnderRelay       Answer // the outbox relay publishes through it: nothing lost, each key in order
	NoLeaks          Answer // no goroutine outlives a case
}

// Everything is what our adapters should be able to do.
func Everything() Capabilities {
	var c Capabilities
	for _, k := range cases {
		*k.declared(&c) = Yes
	}
	c.NoLeaks = Yes
	return c
}
