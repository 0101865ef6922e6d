package handlers

import (
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/failpoint"
	"github.com/postbus/postbus/internal/reason"
)

// dispatch hands a message to all handlers it is for, and returns nil when every
// one of them has settled.
func (r *Router) dispatch(topic string, stopping <-chan struct{}, msg *message.Message) error {
	replayFor := msg.Metadata[HeaderReplayFor]
	if why := msg.Metadata[HeaderUndecodable]; why != "" {
		return r.poisonUndecodable(topic, stopping, msg, errors.New(why))
	}
	// The header spares types that nobody here knows the decoding.
	if eventType := msg.Metadata[events.HeaderEventType]; eventType != "" && len(r.byType[eventType]) == 0 {
		r.unknown(topic, eventType, replayFor)
		return nil
	}
	event, err := events.Decode(msg.Payload)
	if err != nil {
		return r.poisonUndecodable(topic, stopping, msg, err)
	}
	if key := msg.Metadata[events.HeaderPartitionKey]; key != event.AggregateID && len(key) <= events.MaxKeyBytes {
		event.PartitionKey = key
	}

	var meant []*handler
	known := false
	for _, h := range r.byType[event.EventType] {
		if h.topic != topic {
			continue
		}
		known = true
		if replayFor == "" || replayFor == h.name {
			meant = append(meant, h)
		}
	}
	if !known {
		r.unknown(topic, event.EventType, replayFor)
		return nil
	}
	_, returned := r.returned.take(event.EventID)
	again := returned || redelivered(msg.Metadata)
	errs := make([]error, len(meant))
	deliver := func(i int, event events.DomainEvent) {
		d := &delivery{
			Delivery: Delivery{
				Topic: topic, Handler: meant[i].name, EventID: event.EventID,
				Redelivered: again, Replayed: replayFor != "",
			},
			event: event, stopping: stopping, onRetry: r.onRetry,
		}
		errs[i] = r.deliver(meant[i], d, msg)
	}
	var others sync.WaitGroup
	for i := 1; i < len(meant); i++ {
		event := event
		event.Metadata = maps.Clone(event.Metadata)
		others.Go(func() { deliver(i, event) })
	}
	if len(meant) > 0 {
		deliver(0, event)
	}
	others.Wait()
	if err := joinPostponed(errs); err != nil {
		r.returned.put(event.EventID, struct{}{})
		return err
	}
	failpoint.Hit(fpBeforeAck)
	return nil
}

// deliver runs the chain of one handler, and tells how it ended.
func (r *Router) deliver(h *handler, d *delivery, msg *message.Message) error {
	h.running.Add(1)
	defer h.running.Add(-1)
	start := time.Now()
	// A message of its own, since handlers run side by side and each changes the
	// context. Payload and headers are shared, and read only.
	own := &message.Message{UUID: msg.UUID, Metadata: msg.Metadata, Payload: msg.Payload}
	own.SetContext(withDelivery(msg.Context(), d))
	err := guard(h.chain, own)

	result := HandlerResult{
		Handler: h.name, Topic: d.Topic, EventID: d.EventID, EventType: d.event.EventType, Key: d.event.Key(),
		Outcome: OutcomeHandled, Attempts: d.Attempt, Redelivered: d.Redelivered, Replayed: d.Replayed,
		Err: err, Took: time.Since(start),
	}
	switch {
	case errors.Is(err, ErrFutureVersion):
		result.Outcome = OutcomeHeld
	case errors.Is(err, ErrInterrupted):
		result.Outcome = OutcomeInterrupted
	case err != nil:
		result.Outcome = OutcomePostponed
	case d.poisoned != nil:
		result.Outcome, result.Err = OutcomePoisoned, d.poisoned
	case d.duplicate:
		result.Outcome, result.Redelivered = OutcomeDuplicate, true
	}
	r.report(result)
	return err
}

// guard runs a chain. Handlers have a Recover of their own; what can still panic
// is a function of the config or the publisher of the poison queue, and it must
// not take the process with it.
func guard(chain message.HandlerFunc, msg *message.Message) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PostponedError{Err: newPanicError(v)}
		}
	}()
	_, err = chain(msg)
	return err
}

func (r *Router) report(result HandlerResult) {
	r.counters.outcomes[result.Outcome].Add(1)
	level, text := slog.LevelDebug, "event settled by a handler"
	switch result.Outcome {
	case OutcomePoisoned:
		level, text = slog.LevelError, "a handler gave up an event: it is in the poison queue"
	case OutcomeHeld, OutcomePostponed:
		level, text = slog.LevelWarn, "a handler could not settle an event now: it is given back"
	case OutcomeInterrupted:
		level, text = slog.LevelInfo, "a handler was interrupted: its event is given back"
	}
	r.log(level, text, result)
	if r.cfg.OnResult == nil {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			p := newPanicError(v)
			r.cfg.Logger.Error("Config.OnResult panicked", "error", reason.Of(p), "stack", string(p.Stack))
		}
	}()
	r.cfg.OnResult(result)
}
