package redisstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	"github.com/redis/go-redis/v9"
)

// A subscription is one member of the group on one stream. Its goroutine finds
// the next entry, has it handled, acknowledges it and finds the next one. To
// have several in flight is to call deliver in as many goroutines: all in it is
// about one entry only.
type subscription struct {
	of       *Subscriber
	stream   string
	consumer string
	out      chan *message.Message
	log      *slog.Logger

	handled string // id of the entry that was handled and is still to be acknowledged

	// what to look at before anything new
	ownFirst  bool   // our own pending entries, of before a restart or a broken connection
	claimFrom string // where the search for dead consumers' entries stands
	nextClaim time.Time

	// floor is where a FromNow group begins again if it is lost while the stream is not.
	floor string

	down    bool // reading is broken, and that has been said
	backoff *backoff.ExponentialBackOff
}

const (
	fromStart = "0" // before the first entry; for XAUTOCLAIM: begin, or: all seen ("0-0")
	fromNew   = ">" // what no consumer of the group has got yet

	// readBlock is how long Redis waits for a new entry before it answers that
	// there is none; closing may take that long, since go-redis cannot interrupt it.
	readBlock = 500 * time.Millisecond
)

func newSubscription(s *Subscriber, stream, consumer string) *subscription {
	return &subscription{
		of: s, stream: stream, consumer: consumer,
		out:      make(chan *message.Message), // unbuffered: nothing is taken that nobody handles
		log:      s.cfg.Logger.With("stream", stream, "group", s.cfg.Group, "consumer", consumer),
		ownFirst: true, claimFrom: fromStart,
		backoff: &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.5,
			Multiplier: 2, MaxInterval: 5 * time.Second},
	}
}

// start creates the group, and the stream for it, unless they exist.
func (s *subscription) start(ctx context.Context) error {
	position := fromStart
	if s.of.cfg.Start == FromNow {
		position = "$"
	}
	if err := s.createGroup(ctx, position); err != nil {
		return err
	}
	if s.of.cfg.Start == FromNow {
		return s.findFloor(ctx)
	}
	return nil
}

func (s *subscription) createGroup(ctx context.Context, position string) error {
	err := s.call(ctx, 0, func(ctx context.Context) error {
		return runOnce(ctx, s.of.cfg.Client, func(q redis.Pipeliner) {
			q.XGroupCreateMkStream(ctx, s.stream, s.of.cfg.Group, position)
		})
	})
	switch {
	case err == nil || strings.HasPrefix(err.Error(), "BUSYGROUP"): // somebody else has created it
		return nil
	case strings.HasPrefix(err.Error(), "WRONGTYPE"):
		return fmt.Errorf("%w; the key of that name is no stream: rename the topic or the key", err)
	}
	return err
}

// call runs one command with a deadline. The context's end keeps it from being
// sent, and does not cut off its answer.
func (s *subscription) call(ctx context.Context, waits time.Duration, f func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), waits+answerTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return f(bounded)
}

func (s *subscription) run(base, reading context.Context) {
	for {
		e := s.next(reading)
		if e == nil {
			break
		}
		if reading.Err() != nil { // it came while we were told to stop
			s.release(base, e)
			break
		}
		if s.deliver(base, reading, e) {
			s.handled = e.id
		}
	}
	s.acknowledgeLast(base)
	if s.of.ownName {
		s.removeConsumer(base)
	}
}

// next waits for an entry, through any trouble, until reading ends.
func (s *subscription) next(reading context.Context) *entry {
	for reading.Err() == nil {
		e, err := s.fetch(reading)
		switch {
		case err == nil:
			s.working()
			if e != nil {
				return e
			}
		case reading.Err() != nil:
		case isGroupLost(err):
			if err = s.heal(reading); err != nil {
				s.broken(reading, err)
			}
		default:
			s.broken(reading, err)
		}
	}
	return nil
}

// fetch acknowledges the last entry and looks for another one: first what is
// already ours, then what a dead consumer held, then what is new. (nil, nil):
// there is none as yet.
func (s *subscription) fetch(reading context.Context) (*entry, error) {
	claim := !time.Now().Before(s.nextClaim)
	if s.handled != "" {
		if !s.ownFirst && !claim { // the usual case, in one round trip
			e, some, err := s.read(reading, fromNew, -1)
			if some || err != nil {
				return e, err
			}
		} else if err := s.acknowledge(reading); err != nil {
			return nil, err
		}
	}
	if s.ownFirst {
		e, some, err := s.read(reading, fromStart, -1)
		if some || err != nil {
			return e, err
		}
		s.ownFirst = false
	}
	if claim {
		e, some, err := s.claim(reading)
		if some || err != nil {
			return e, err
		}
	}
	block := max(min(readBlock, time.Until(s.nextClaim)), time.Millisecond) // BLOCK 0 would be for ever
	e, _, err := s.read(reading, fromNew, block)
	return e, err
}

// read is XREADGROUP of one entry, and the XACK of the last one before it, if
// that is still due. some says that there was one; e is nil if it had been
// deleted, which is dealt with here.
func (s *subscription) read(ctx context.Context, from string, block time.Duration) (e *entry, some bool, err error) {
	var found *redis.XStreamSliceCmd
	err = s.call(ctx, max(block, 0), func(ctx context.Context) error {
		var ack *redis.IntCmd
		err := runOnce(ctx, s.of.cfg.Client, func(q redis.Pipeliner) {
			if s.handled != "" {
				ack = q.XAck(ctx, s.stream, s.of.cfg.Group, s.handled)
			}
			found = q.XReadGroup(ctx, &redis.XReadGroupArgs{Group: s.of.cfg.Group, Consumer: s.consumer,
				Streams: []string{s.stream, from}, Count: 1, Block: block})
		})
		if ack != nil && ack.Err() == nil {
			s.handled = ""
		}
		return err
	})
	if errors.Is(err, redis.Nil) {
		return nil, false, nil
	}
	if err != nil || len(found.Val()) == 0 || len(found.Val()[0].Messages) == 0 {
		return nil, false, err
	}
	m := found.Val()[0].Messages[0]
	if from == fromNew {
		return &entry{id: m.ID, values: m.Values, deliveries: 1}, true, nil
	}
	e, err = s.pendingEntry(ctx, m)
	return e, true, err
}

// acknowledge takes the handled entry off the group's pending list. One that
// another consumer has claimed meanwhile as well: it has been handled.
func (s *subscription) acknowledge(ctx context.Context) error {
	err := s.call(ctx, 0, func(ctx context.Context) error {
		return s.of.cfg.Client.XAck(ctx, s.stream, s.of.cfg.Group, s.handled).Err()
	})
	if err == nil {
		s.handled = ""
	}
	return err
}

// acknowledgeLast is the last thing we do, and does not wait for long if Redis
// does not answer.
func (s *subscription) acknowledgeLast(base context.Context) {
	for giveUp := time.Now().Add(s.grace()); s.handled != ""; sleep(base, 50*time.Millisecond) {
		if err := s.acknowledge(base); err != nil && time.Now().After(giveUp) {
			s.log.Warn("an entry was handled but could not be acknowledged; it is delivered again", "entry", s.handled, "error", err)
			return
		}
	}
}

// working and broken say a change of state once, however long it lasts.
func (s *subscription) working() {
	if s.down {
		s.down = false
		s.log.Info("reading the stream again")
	}
	s.backoff.Reset()
}

func (s *subscription) broken(reading context.Context, err error) {
	if !s.down {
		s.down = true
		s.log.Warn("reading the stream is interrupted and tried again", "error", err)
	}
	// An answer may have been lost after Redis had made an entry ours.
	s.ownFirst, s.claimFrom = true, fromStart
	sleep(reading, s.backoff.NextBackOff())
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
