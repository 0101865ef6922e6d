package brokertest

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// mixed is a batch of several keys in which the third message of key-1 is too large, and what
// the suite expects of it.
func (r *room) mixed(topic string) (msgs []*outbox.Message) {
	for n := 1; n <= 6; n++ {
		for k := range 4 {
			size := 200
			if k == 1 && n == 3 {
				size = r.b.TooLarge
			}
			msgs = append(msgs, numbered(topic, fmt.Sprintf("key-%d", k), n, size))
		}
	}
	return msgs
}

// results: of each message what became of it, and the failure of one is nobody else's.
func results(r *room) (string, error) {
	p := r.publisher()
	batch, ok := p.(outbox.BatchPublisher)
	if !ok {
		return "", errors.New("it is no outbox.BatchPublisher")
	}
	topic := r.topic()
	msgs := r.mixed(topic)
	if r.b.RefusedTopic != nil {
		refused := r.b.RefusedTopic(r.t, r.address)
		for n := 1; n <= 3; n++ {
			msgs = append(msgs, numbered(refused, "refused", n, 0))
		}
	}
	large := len(msgs)
	for i := range 500 { // more than the client puts into one request
		msgs = append(msgs, numbered(topic, fmt.Sprintf("key-%d", 4+i%50), 1+i/50, 300))
	}
	got, err := send(p, msgs, quickly)
	if err != nil {
		return "", err
	}
	count := map[outbox.Status]int{}
	for i, m := range msgs {
		count[got[i].Status]++
		want := fmt.Sprint(outbox.Done)
		switch {
		case m.Key == "key-1" && m.LogID == 3:
			want = fmt.Sprint(outbox.Permanent)
		case m.Key == "key-1" && m.LogID > 3:
			continue // see holdsBack
		case m.Key == "refused":
			if got[i].Status == outbox.Done || m.LogID == 1 && got[i].Err == nil {
				return "", fmt.Errorf("message %d of the topic that the server refuses is %s, error %v", m.LogID, got[i].Status, got[i].Err)
			}
			continue
		}
		if is := got[i].Status.String(); is != want {
			return "", fmt.Errorf("message %d of key %s is %s, want %s (%v)", m.LogID, m.Key, is, want, got[i].Err)
		}
		if want != fmt.Sprint(outbox.Done) && got[i].Err == nil {
			return "", fmt.Errorf("message %d of key %s is %s without an error", m.LogID, m.Key, want)
		}
	}
	contract := batch.BatchContract()
	return figuresOf("%d messages, %d done, %d permanent, %d not attempted; at most %d in a call", len(msgs), count[outbox.Done], count[outbox.Permanent], count[outbox.NotAttempted], contract.MaxBatch),
		r.expect(topic, msgs[:large], got[:large])
}

// expect drains the topic: what is done is there, and nothing that is not.
func (r *room) expect(topic string, msgs []*outbox.Message, results []outbox.Result) error {
	var c collector
	if _, err := r.consume(topic, c.handle); err != nil {
		return err
	}
	for i, m := range msgs {
		if results[i].Status != outbox.Done {
			continue
		}
		if err := until(r.b.Patience, func() bool { return c.find(m.EventID.String()) != nil }, "message %d of key %s, which is done, to come", m.LogID, m.Key); err != nil {
			return err
		}
	}
	// Now one more of each key: what stood before it would have come by then.
	last := message.NewMessage(watermill.NewUUID(), []byte(`{"key":"key-1","n":100}`))
	last.Metadata[events.HeaderPartitionKey] = "key-1"
	if err := call(stuckAfter, func() error { return r.publisher().Publish(topic, last) }); err != nil {
		return fmt.Errorf("publish after a failure: %w", err)
	}
	if err := until(r.b.Patience, func() bool { return c.find(last.UUID) != nil }, "the last message to come"); err != nil {
		return err
	}
	for i, m := range msgs {
		if s := results[i].Status; (s == outbox.NotAttempted || s == outbox.Permanent || s == outbox.Passing) && c.find(m.EventID.String()) != nil {
			return fmt.Errorf("message %d of key %s is %s, and has come", m.LogID, m.Key, s)
		}
	}
	return nil
}

// holdsBack: behind the message that is too large, none of its key.
func holdsBack(r *room) (string, error) {
	p := r.publisher()
	topic := r.topic()
	batch, isBatch := p.(outbox.BatchPublisher)
	if isBatch && !batch.BatchContract().StopsKeyAtFirstFailure {
		return "", errors.New("its contract says that it does not")
	}
	msgs := r.mixed(topic)
	got, err := send(p, msgs, quickly)
	if err != nil {
		return "", err
	}
	if !isBatch && got[len(got)-1].Status == outbox.Done {
		return "", fmt.Errorf("%d bytes were accepted", r.b.TooLarge)
	}
	if !isBatch { // of the call is known that it failed; so nothing may be there from the large one on
		for i := range got {
			got[i].Status = outbox.Done
			if msgs[i].LogID > 3 || msgs[i].LogID == 3 && msgs[i].Key >= "key-1" {
				got[i].Status = outbox.NotAttempted
			}
		}
		return "stops at the first failure", r.expect(topic, msgs, got)
	}
	for i, m := range msgs {
		if m.Key == "key-1" && m.LogID > 3 && got[i].Status != outbox.NotAttempted {
			return "", fmt.Errorf("message %d of the key stands behind one that is too large, and is %s, not %s", m.LogID, got[i].Status, outbox.NotAttempted)
		}
	}
	return "stops the key", r.expect(topic, msgs, got)
}

// tooLarge: told to be permanent, and soon; the publisher goes on.
func tooLarge(r *room) (string, error) {
	p := r.publisher()
	topic := r.topic()
	began := time.Now()
	big := numbered(topic, "key", 1, r.b.TooLarge)
	err := call(stuckAfter, func() error { return p.Publish(topic, big.Watermill()) })
	took := time.Since(began).Round(time.Millisecond)
	if err == nil {
		return "", fmt.Errorf("%d bytes were accepted", len(big.Payload))
	}
	if !errors.Is(err, outbox.ErrPermanent) {
		return "", fmt.Errorf("the error does not say so: %v", err)
	}
	if err := call(stuckAfter, func() error { return p.Publish(topic, numbered(topic, "key", 2, 0).Watermill()) }); err != nil {
		return "", fmt.Errorf("publish after one that was too large: %w", err)
	}
	return figuresOf("refused after %s", took), nil
}
