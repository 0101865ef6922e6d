package brokertest

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/postbus/postbus/outbox"
)

// closeBy is within what a close must be over, if no handler holds it up.
const closeBy = 12 * time.Second

// closes closes n times at once, and then once more.
func closes(c io.Closer) error {
	var all sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		all.Go(func() { errs[i] = call(closeBy, c.Close) })
	}
	all.Wait()
	return errors.Join(append(errs, call(closeBy, c.Close))...)
}

func publisherCloses(r *room) (string, error) {
	if err := closes(r.publisher()); err != nil {
		return "", fmt.Errorf("close before use: %w", err)
	}
	topic := r.topic()
	p := r.publisher()
	var load sync.WaitGroup
	errs := make(chan error, 8)
	var first sync.Once
	published, over := make(chan struct{}), make(chan struct{})
	for g := range 4 {
		load.Go(func() {
			for n := 1; ; n++ {
				select {
				case <-over:
					errs <- errors.New("it goes on after close") // judged below
					return
				default:
				}
				err := call(closeBy, func() error {
					return p.Publish(topic, numbered(topic, fmt.Sprintf("key-%d", g), n, 0).Watermill())
				})
				first.Do(func() { close(published) })
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	<-published
	began := time.Now()
	err := closes(p)
	took := time.Since(began)
	close(over)
	load.Wait()
	close(errs)
	if err != nil {
		return "", fmt.Errorf("close under load: %w", err)
	}
	for err := range errs {
		if isPanic(err) || errors.Is(err, errStuck) {
			return "", fmt.Errorf("publish while it was closed: %w", err)
		}
	}
	err = call(closeBy, func() error { return p.Publish(topic, numbered(topic, "key", 1, 0).Watermill()) })
	if err == nil || isPanic(err) || errors.Is(err, errStuck) {
		return "", fmt.Errorf("publish after close: want an error, got %v", err)
	}
	if batch, ok := p.(outbox.BatchPublisher); ok {
		results := make([]outbox.Result, 1)
		err := call(closeBy, func() error {
			batch.PublishBatch(r.t.Context(), []*outbox.Message{numbered(topic, "key", 1, 0)}, results)
			return nil
		})
		if err != nil || results[0].Status == outbox.Done || results[0].Err == nil {
			return "", fmt.Errorf("publish a batch after close: %v, %v", err, results[0])
		}
	}
	return figuresOf("closed under load in %s", took.Round(time.Millisecond)), nil
}

func isPanic(err error) bool {
	return err != nil && len(err.Error()) > 6 && err.Error()[:6] == "panic:"
}

func subscriberCloses(r *room) (string, error) {
	if err := closes(r.subscriber()); err != nil {
		return "", fmt.Errorf("close before use: %w", err)
	}
	topic := r.topic()

	// Nobody reads its channel.
	p := r.publisher()
	for n := 1; n <= 3; n++ {
		if results, err := send(p, []*outbox.Message{numbered(topic, "key", n, 0)}, callTimeout); err != nil || results[0].Status != outbox.Done {
			return "", fmt.Errorf("publish: %v %v", err, results)
		}
	}
	deaf := r.subscriber()
	ch, err := r.subscribe(deaf, topic)
	if err != nil {
		return "", err
	}
	select {
	case m := <-ch: // so it reads; and from now on it has the next in its hands
		m.Ack()
	case <-time.After(r.b.Patience):
		return "", errors.New("no message came")
	}
	<-time.After(300 * time.Millisecond) // for who would wait for a reader; nobody can see that
	if err := closes(deaf); err != nil {
		return "", fmt.Errorf("close with nobody reading: %w", err)
	}

	// Under load.
	l := newLedger()
	c, err := r.consume(topic, l.handler(0))
	if err != nil {
		return "", err
	}
	s := r.load(p, topic, l)
	if err := s.progress(50, r.b.Patience); err != nil {
		return "", err
	}
	began := time.Now()
	if err := closes(c.sub); err != nil {
		return "", fmt.Errorf("close under load: %w", err)
	}
	if err := c.stop(); err != nil {
		return "", fmt.Errorf("close under load: %w", err)
	}
	took := time.Since(began)
	if _, err := r.subscribe(c.sub, topic); err == nil || isPanic(err) || errors.Is(err, errStuck) {
		return "", fmt.Errorf("subscribe after close: want an error, got %v", err)
	}
	return figuresOf("closed under load in %s", took.Round(time.Millisecond)), nil
}
