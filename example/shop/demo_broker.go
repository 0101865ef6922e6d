package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/handlers"
)

// inspection is what the demonstration wants of a broker beside the shop: to look
// past the adapter at what is there. Its methods may be called at any time.
type inspection interface {
	// published counts the messages in the topics, those that were handled included.
	published(ctx context.Context, topics []string) (int64, error)
	// again puts the topic's first message, which is event, there once more.
	again(ctx context.Context, topic string) (event string, err error)
	// drained: the shop has got and acknowledged all that is in the topics.
	drained(ctx context.Context, topics []string) (bool, error)
	// readBack tells of each message that the topics have held.
	readBack(ctx context.Context, topics []string, found func(finding) error) error
	// remove takes away what Declare and the shop have made.
	remove(ctx context.Context, topics []string) error
	close()
}

// finding is a message that a topic has held.
type finding struct {
	topic, entry string // entry is its place there
	payload      []byte
	handler      string // who gave it up, if it was poisoned
}

// witness stands between a subscriber and the shop, and remembers what passes:
// RabbitMQ and SQS don't, once it is acknowledged.
type witness struct {
	mu   sync.Mutex
	seen map[string][]*message.Message // by topic, each message once
}

// beside puts the witness in front of a subscriber.
func (w *witness) beside(s message.Subscriber) message.Subscriber { return &witnessed{s, w} }

type witnessed struct {
	message.Subscriber
	witness *witness
}

func (s *witnessed) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := s.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		for m := range in {
			s.witness.note(topic, m)
			select {
			case out <- m:
			case <-m.Context().Done(): // nobody handles it any more
				m.Nack()
			case <-ctx.Done():
				m.Nack()
			}
		}
	}()
	return out, nil
}

// note remembers a message that was not seen yet. What comes again for another
// handler is another message.
func (w *witness) note(topic string, m *message.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, known := range w.seen[topic] {
		if known.UUID == m.UUID && known.Metadata[handlers.HeaderPoisonHandler] == m.Metadata[handlers.HeaderPoisonHandler] {
			return
		}
	}
	if w.seen == nil {
		w.seen = map[string][]*message.Message{}
	}
	w.seen[topic] = append(w.seen[topic], m.Copy())
}

// count is how many messages have passed.
func (w *witness) count(topics []string) (n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, topic := range topics {
		n += int64(len(w.seen[topic]))
	}
	return n
}

// first is a copy of the first message of a topic, as it was published; nil if
// there was none.
func (w *witness) first(topic string) *message.Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen[topic]) == 0 {
		return nil
	}
	return w.seen[topic][0].Copy()
}

func (w *witness) readBack(_ context.Context, topics []string, found func(finding) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, topic := range topics {
		for i, m := range w.seen[topic] {
			err := found(finding{topic, strconv.Itoa(i), m.Payload, m.Metadata[handlers.HeaderPoisonHandler]})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// publishAgain publishes a copy of a message that the witness has seen.
func publishAgain(b broker, m *message.Message, topic string) (event string, err error) {
	if m == nil {
		return "", fmt.Errorf("publish the first message of %s again: there is none", topic)
	}
	publisher, err := b.Publisher()
	if err != nil {
		return "", err
	}
	return m.UUID, errors.Join(publisher.Publish(topic, m), publisher.Close())
}

// isPoison tells poison queues from topics of events.
func isPoison(topic string) bool { return strings.HasSuffix(topic, handlers.DefaultPoisonTopic("")) }
