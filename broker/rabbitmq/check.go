package rabbitmq

import (
	"context"
	"errors"
	"fmt"
)

// FullError: a queue has as many messages as it may have (Queue.MaxLength), and
// refuses or dead-letters.
type FullError struct {
	Queue     string
	Messages  int
	MaxLength int
	Overflow  Overflow
	Consumers int
}

func (e *FullError) Error() string {
	what := "publishers wait for it"
	if e.Overflow == DeadLetterOldest {
		what = "its oldest messages are dead-lettered"
	}
	return fmt.Sprintf("queue %q is full: %d messages of at most %d, and %d consumers; %s", e.Queue, e.Messages, e.MaxLength, e.Consumers, what)
}

// DeadLettersError: messages were given up and wait for a person.
type DeadLettersError struct {
	Queue    string // they are in
	Of       string // the queue they came from
	Messages int
}

func (e *DeadLettersError) Error() string {
	return fmt.Sprintf("queue %q holds %d messages that were given up in %q; see their header x-death, then handle or purge them",
		e.Queue, e.Messages, e.Of)
}

// NoConsumerError: messages wait, and nobody consumes them.
type NoConsumerError struct {
	Queue    string
	Messages int
}

func (e *NoConsumerError) Error() string {
	return fmt.Sprintf("queue %q holds %d messages and has no consumer", e.Queue, e.Messages)
}

// Check looks, and declares nothing: whether everything of t is there, and which
// queues are full, hold messages that nobody consumes, or have dead letters. It
// returns nil, or all that is wrong, joined: FullError, DeadLettersError,
// NoConsumerError, and errors that wrap ErrMissing. Make it an alert. MaxLengthBytes
// can't be looked at: RabbitMQ tells it to its management API only.
func Check(ctx context.Context, server ConnectionConfig, t Topology) error {
	t.Declare = false
	return withSession(ctx, "rabbitmq.Check", server, t, func(s *session, t *topology) error {
		var problems []error
		for _, e := range t.exchanges {
			if err := t.exchange(ctx, s, e); err != nil {
				problems = append(problems, err)
			}
		}
		of := make(map[string]string) // dead-letter queues
		for _, q := range t.queues {
			if q.DeadLetter.Queue != "" {
				of[q.DeadLetter.Queue] = q.Name
			}
		}
		for _, q := range t.queues {
			found, err := lookAt(ctx, s, q.Name)
			source, isDead := of[q.Name]
			switch {
			case err != nil:
				problems = append(problems, err)
			case q.MaxLength > 0 && found.Messages >= q.MaxLength:
				problems = append(problems, &FullError{Queue: q.Name, Messages: found.Messages, MaxLength: q.MaxLength, Overflow: q.Overflow, Consumers: found.Consumers})
			case isDead && found.Messages > 0:
				problems = append(problems, &DeadLettersError{Queue: q.Name, Of: source, Messages: found.Messages})
			case !isDead && found.Messages > 0 && found.Consumers == 0:
				problems = append(problems, &NoConsumerError{Queue: q.Name, Messages: found.Messages})
			}
			if ctx.Err() != nil {
				break
			}
		}
		return errors.Join(problems...)
	})
}
