package brokertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// numbered is the nth message of a key, with room for size bytes in all.
func numbered(topic, key string, n, size int) *outbox.Message {
	payload := fmt.Sprintf(`{"key":%q,"n":%d,"text":""}`, key, n)
	if more := size - len(payload); more > 0 {
		payload = strings.Replace(payload, `""`, `"`+strings.Repeat("x", more)+`"`, 1)
	}
	return &outbox.Message{
		LogID: int64(n), EventID: uuid.Must(uuid.NewV7()), EventType: "conformance.checked", SchemaVersion: 1,
		Topic: topic, Key: key, ContentType: events.ContentTypeJSON, Source: "conformance/1", Payload: []byte(payload),
	}
}

// send publishes in one call and tells of each message what became of it: a batch where that
// can be, else Publish, of which is known only whether it has worked.
func send(p message.Publisher, msgs []*outbox.Message, limit time.Duration) ([]outbox.Result, error) {
	results := make([]outbox.Result, len(msgs))
	if batch, ok := p.(outbox.BatchPublisher); ok {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		err := call(max(2*limit, stuckAfter), func() error { batch.PublishBatch(ctx, msgs, results); return nil })
		if err != nil {
			results = make([]outbox.Result, len(msgs)) // the other array is still somebody's
		}
		return results, err
	}
	wm := make([]*message.Message, len(msgs))
	for i, m := range msgs {
		wm[i] = m.Watermill()
	}
	err := call(max(2*limit, stuckAfter), func() error { return p.Publish(msgs[0].Topic, wm...) })
	if errors.Is(err, errStuck) {
		return results, err
	}
	for i := range results {
		results[i] = outbox.Result{Status: outbox.Done}
		if err != nil {
			results[i] = outbox.Result{Status: outbox.Unknown, Err: err}
		}
	}
	return results, nil
}

// load publishes without end, as a relay does: what was not accepted is sent again before
// what stands behind it. It never is more than ahead messages before those who handle.
type load struct {
	publisher message.Publisher
	topic     string
	ledger    *ledger
	keys      int
	batch     int
	timeout   time.Duration

	emulated atomic.Bool // Broker.Emulated: what is refused for good is sent again

	cancel context.CancelFunc
	giveUp atomic.Pointer[time.Time] // set with cancel: until when the rest is tried
	ended  chan struct{}
	err    error // read after ended

	accepted atomic.Int64
	refused  atomic.Int64 // calls with a failure
	unknown  atomic.Int64 // messages that were sent and not answered

	mu   sync.Mutex
	sent map[string]int // the highest number of each key
}

const ahead = 150

func (r *room) load(p message.Publisher, topic string, l *ledger) *load {
	return r.loadWithin(callTimeout, p, topic, l)
}

// loadWithin has each call end after that long.
func (r *room) loadWithin(limit time.Duration, p message.Publisher, topic string, l *ledger) *load {
	batch := 1
	if _, ok := p.(outbox.BatchPublisher); ok {
		batch = 50
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &load{publisher: p, topic: topic, ledger: l, keys: 40, batch: batch, timeout: limit,
		cancel: cancel, ended: make(chan struct{}), sent: map[string]int{}}
	go func() {
		defer close(s.ended)
		s.err = s.run(ctx)
	}()
	r.t.Cleanup(func() { s.stop(0); <-s.ended })
	return s
}

// stop has nothing new sent, and what is begun for that long at most.
func (s *load) stop(rest time.Duration) {
	by := time.Now().Add(rest)
	s.giveUp.Store(&by)
	s.cancel()
}

func (s *load) run(ctx context.Context) error {
	var pending []*outbox.Message
	for ctx.Err() == nil || len(pending) > 0 {
		for ctx.Err() == nil && len(pending) < s.batch {
			pending = append(pending, s.next())
		}
		// A relay with lanes sends one message of a key at a time through a publisher
		// without batches, and so do we.
		results, err := send(s.publisher, pending, s.timeout)
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		var left []*outbox.Message
		failed := map[string]bool{}
		for i, result := range results {
			switch {
			case result.Status == outbox.Done && failed[pending[i].Key]:
				return fmt.Errorf("message %d of key %s is done, though an earlier one of the same call is not", pending[i].LogID, pending[i].Key)
			case result.Status == outbox.Permanent && !s.emulated.Load():
				return fmt.Errorf("publish message %d of key %s: %w", pending[i].LogID, pending[i].Key, result.Err)
			case result.Status == outbox.Done:
				s.accepted.Add(1)
				continue
			case result.Status == outbox.Unknown:
				s.unknown.Add(1)
			}
			failed[pending[i].Key] = true
			left = append(left, pending[i])
		}
		if pending = left; len(left) > 0 {
			s.refused.Add(1)
			// It must come to an end, also with a publisher that never works again.
			if by := s.giveUp.Load(); by != nil && time.Now().After(*by) {
				return fmt.Errorf("the publisher did not recover; %d messages are left, and of the first it says: %v", len(left), firstError(results))
			}
			<-time.After(20 * time.Millisecond)
		}
		s.waitForHandlers(ctx)
	}
	return nil
}

func firstError(results []outbox.Result) error {
	for _, r := range results {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

func (s *load) waitForHandlers(ctx context.Context) {
	pause := time.NewTicker(time.Millisecond)
	defer pause.Stop()
	for ctx.Err() == nil && int(s.accepted.Load())-s.ledger.done() > ahead {
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

func (s *load) next() *outbox.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprintf("key-%d", rand.IntN(s.keys))
	s.sent[key]++
	return numbered(s.topic, key, s.sent[key], 300)
}

// progress waits until that many more were handled than now.
func (s *load) progress(n int, limit time.Duration) error {
	goal := s.ledger.done() + n
	return until(limit, func() bool { return s.ledger.done() >= goal || s.over() },
		"%d messages more to be handled; %d were handled, %d accepted, %d calls failed", n, s.ledger.done, s.accepted.Load, s.refused.Load)
}

func (s *load) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// finish sends what is begun, waits until all of it is handled, and judges: nothing lost,
// each key in order, repeats within the bound.
func (s *load) finish(r *room, faults int, ordered bool) (string, error) {
	s.stop(r.b.Patience)
	figures := func() string {
		return figuresOf("%d messages, %d faults, %d repeats, %d calls failed, %d unknown", s.accepted.Load(), faults, s.ledger.repeated(), s.refused.Load(), s.unknown.Load())
	}
	if err := until(r.b.Patience+2*stuckAfter, s.over, "the publisher does not come to an end"); err != nil {
		return figures(), err
	}
	if s.err != nil {
		return figures(), s.err
	}
	total := 0
	for _, n := range s.sent {
		total += n
	}
	if err := until(r.b.Patience, func() bool { return s.ledger.done() >= total }, "all to be handled"); err != nil {
		lost := s.ledger.missing(s.sent)
		return figures(), fmt.Errorf("%w: %d of %d are missing, such as %s", err, len(lost), total, strings.Join(lost[:min(3, len(lost))], ", "))
	}
	if err := s.ledger.strangers(); err != nil {
		return figures(), err
	}
	if err := s.ledger.order(); ordered && err != nil {
		return figures(), err
	}
	if n, most := s.ledger.repeated(), max(faults, 1)*r.b.RepeatsPerFault; n > most {
		return figures(), fmt.Errorf("%d repeats; at most %d are due to %d faults", n, most, faults)
	}
	return figures(), nil
}
