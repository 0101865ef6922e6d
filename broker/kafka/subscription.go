package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/internal/inflight"
	"github.com/postbus/postbus/outbox"
)

// A subscription is one member of the group on one topic: a client, and the room
// between it and the handlers. Three goroutines: one reads, one notes what has
// been handled, one commits it. franz-go calls from a fourth what a rebalance
// asks for.
type subscription struct {
	of     *Subscriber
	topic  string
	member string // of a static member
	log    *slog.Logger
	client *kgo.Client
	line   line
	room   *inflight.Room[taken]
	ends   kadm.ListedOffsets // at the start, for FromNow

	dirty chan struct{} // capacity 1: there is something to commit
	freed chan struct{} // capacity 1: records have left the room

	collecting sync.Mutex
	results    []inflight.Result[taken]

	mu    sync.Mutex
	parts map[int32]*part // ours at present

	// committing is held while a commit is under way: whoever gives up a partition
	// waits for it, so that nothing is committed for it afterwards.
	committing  sync.Mutex
	uncommitted bool // commits fail, and that has been said; guarded by committing

	broken  bool // reading is broken, and that has been said
	backoff *backoff.ExponentialBackOff
}

// part is a partition, while it is ours. What may change is guarded by the
// subscription's mu, save top.
type part struct {
	number    int32
	name      string
	mark      inflight.Watermark
	committed int64 // what was committed last; -1: nothing by us
	handled   bool  // something was, since it is ours

	top    atomic.Int64 // the highest offset that was handed over; -1: none
	open   int          // records in the room
	bytes  int          // their sizes
	moved  bool         // something of it was settled since awaitRoom has looked
	paused bool         // it is full
}

// taken is a record in the room.
type taken struct {
	record *kgo.Record
	part   *part
}

const (
	// closeGrace is what a handler gets after its context was cancelled; never more
	// than CloseTimeout.
	closeGrace = 2 * time.Second

	// commitEvery: what a crash repeats is what was handled within it.
	commitEvery = 100 * time.Millisecond

	pollRecords = 1000
)

func newSubscription(s *Subscriber, topic string, base context.Context) *subscription {
	return &subscription{
		of: s, topic: topic,
		log: s.cfg.Logger.With("topic", topic, "group", s.cfg.Group),
		room: inflight.New(base, inflight.Config[taken]{
			Build:        messageOf,
			MaxInFlight:  s.cfg.MaxInFlight,
			NackDelay:    s.cfg.NackDelay,
			MaxNackDelay: s.cfg.MaxNackDelay,
			CloseTimeout: s.cfg.CloseTimeout / 2, // the other half is for finish
			CloseGrace:   min(closeGrace, s.cfg.CloseTimeout),
			CloseCause:   ErrCloseTimeout,
		}),
		dirty:   make(chan struct{}, 1),
		freed:   make(chan struct{}, 1),
		parts:   make(map[int32]*part),
		backoff: &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 5 * time.Second},
	}
}

// start makes sure that there is something to read and that we are let in. The
// client that joins the group comes after that: it would try for ever.
func (s *subscription) start(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	cfg := &s.of.cfg
	own := []kgo.Opt{
		kgo.ConsumerGroup(cfg.Group),
		kgo.ConsumeTopics(s.topic),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // what is polled is in the room before its partition goes
		kgo.SessionTimeout(cfg.SessionTimeout),
		kgo.HeartbeatInterval(min(3*time.Second, cfg.SessionTimeout/3)),
		kgo.RebalanceTimeout(cfg.RebalanceTimeout),
		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnPartitionsRevoked(s.revoked),
		kgo.OnPartitionsLost(s.lost),
		kgo.WithHooks(&s.line),
	}
	if s.member != "" {
		own = append(own, kgo.InstanceID(s.member))
	}
	if cfg.Protocol == NextGen {
		own = append(own, kgo.WithContext(nextGen{context.Background()}))
	}
	client, err := newClient(append(s.of.options(), own...)...)
	if err != nil {
		return err
	}
	s.client = client
	return nil
}

// nextGen is how franz-go is asked for KIP-848.
type nextGen struct{ context.Context }

func (c nextGen) Value(key any) any {
	if key == "opt_in_kafka_next_gen_balancer_beta" {
		return true
	}
	return c.Context.Value(key)
}

// look asks for the topic and the group.
func (s *subscription) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client, err := newClient(append(s.of.options(), kgo.WithHooks(&s.line))...)
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	found, err := admin.ListTopics(ctx, s.topic)
	if err != nil {
		return s.unreachable(err)
	}
	switch t := found[s.topic]; {
	case errors.Is(t.Err, kerr.UnknownTopicOrPartition):
		return fmt.Errorf("%w: create the topic (kafka.Topology does), or correct its name; nothing is created by subscribing", t.Err)
	case errors.Is(t.Err, kerr.TopicAuthorizationFailed):
		return fmt.Errorf("%w: %s", t.Err, allowRead)
	case t.Err != nil:
		return fmt.Errorf("%w: %s", t.Err, judge(t.Err).wayOut)
	case len(t.Partitions) == 0:
		return errNoPartitions
	}
	for _, c := range admin.FindGroupCoordinators(ctx, s.of.cfg.Group) {
		if errors.Is(c.Err, kerr.GroupAuthorizationFailed) {
			return fmt.Errorf("%w: allow this user Read on the group", c.Err)
		}
	}
	if s.of.cfg.Start == FromNow {
		if s.ends, err = admin.ListEndOffsets(ctx, s.topic); err != nil {
			return s.unreachable(err)
		}
	}
	return nil
}

const allowRead = "allow this user Read and Describe on the topic"

func (s *subscription) unreachable(err error) error {
	if trouble := s.line.trouble(); trouble != nil && !answered(err) {
		err = trouble
	}
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return fmt.Errorf("%w: %w: the user or the password is wrong", outbox.ErrUnavailable, err)
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fmt.Errorf("%w: %s", err, allowRead)
	}
	return fmt.Errorf("%w: %w", outbox.ErrUnavailable, err)
}

// run reads until it is told to stop; then it waits for the handlers, commits
// and leaves the group.
func (s *subscription) run(reading context.Context) {
	var working sync.WaitGroup
	stop := make(chan struct{})
	working.Go(s.note)
	working.Go(func() { s.commitLoop(stop) })
	s.read(reading)

	s.finish(s.of.cfg.CloseTimeout/2, func(taken) bool { return true })
	abandoned := s.room.Close()
	if n := len(abandoned); n > 0 {
		s.of.abandoned.Add(int64(n))
		s.log.Warn("handlers have not come back in time to close; their records are not committed and are delivered again", "records", n)
	}
	close(stop)
	working.Wait()
	s.commitLast()
	s.mu.Lock()
	clear(s.parts) // nothing is left to do for them
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	s.client.LeaveGroupContext(ctx) // an error means that the session runs out
	s.client.Close()
}

func (s *subscription) read(reading context.Context) {
	for s.awaitRoom(reading) {
		fetches := s.client.PollRecords(reading, s.atOnce())
		if reading.Err() != nil || fetches.IsClientClosed() {
			s.client.AllowRebalance()
			return
		}
		s.take(fetches)
		s.client.AllowRebalance()
		s.tell(reading, fetches)
	}
}

// take puts what was polled into the room.
func (s *subscription) take(fetches kgo.Fetches) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var deliveries []inflight.Delivery[taken]
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		p := s.parts[f.Partition]
		if p == nil || len(f.Records) == 0 {
			return
		}
		for _, r := range f.Records {
			size := sizeOf(r)
			p.mark.Add(r.Offset)
			p.open++
			p.bytes += size
			deliveries = append(deliveries, inflight.Delivery[taken]{Key: keyOf(r), Size: size, Token: taken{r, p}})
		}
	})
	s.room.Add(deliveries) // an error means that we are closing: it is not committed
}

// awaitRoom waits until there is room for what a poll may bring. It returns
// false if reading is over.
//
// What is not polled franz-go keeps. To pause a partition costs more: what it has of
// it is thrown away, and fetched again later. So that is for partitions that
// have filled the room and do not move on, so that the others do not stand still
// behind a handler that does.
func (s *subscription) awaitRoom(reading context.Context) bool {
	const stuckAfter = 250 * time.Millisecond
	var timer *time.Timer
	for !s.roomy() {
		if timer == nil {
			timer = time.NewTimer(stuckAfter)
			defer timer.Stop()
		}
		select {
		case <-s.freed:
		case <-timer.C:
			s.pauseFull()
			timer.Reset(stuckAfter)
		case <-reading.Done():
			return false
		}
	}
	return reading.Err() == nil
}

func (s *subscription) roomy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var moving, all room
	for _, p := range s.parts {
		all.add(p)
		if !p.paused {
			moving.add(p)
		}
	}
	return moving.under(s.bound()) && all.bytes < pausedFactor*s.of.cfg.MaxBufferedBytes
}

// pausedFactor: so many times MaxBufferedBytes may be in the room, with what is paused.
const pausedFactor = 4

// room is how much of it is taken.
type room struct{ records, bytes int }

func (r *room) add(p *part)       { r.records, r.bytes = r.records+p.open, r.bytes+p.bytes }
func (r room) under(of room) bool { return r.records < of.records && r.bytes < of.bytes }
func (r room) half() room         { return room{(r.records + 1) / 2, (r.bytes + 1) / 2} }

func (s *subscription) share() room { return s.bound().part(max(len(s.parts), 1)) }

// bound is what may be in the room before the next poll.
func (s *subscription) bound() room {
	cfg := &s.of.cfg
	return room{max(cfg.MaxBuffered-s.atOnce(), 1), cfg.MaxBufferedBytes}
}

// atOnce is how many records a poll brings at most.
func (s *subscription) atOnce() int { return min(pollRecords, max(s.of.cfg.MaxBuffered/4, 1)) }

func (r room) part(n int) room { return room{max(r.records/n, 1), max(r.bytes/n, 1)} }

// pauseFull pauses the partitions that have more than their share in the room and
// of which nothing has been settled since the last time, if there are others.
func (s *subscription) pauseFull() {
	s.mu.Lock()
	defer s.mu.Unlock()
	share := s.share()
	var full []int32
	for n, p := range s.parts {
		if held := (room{p.open, p.bytes}); !p.paused && !p.moved && !held.under(share) {
			full = append(full, n)
		}
		p.moved = false
	}
	if len(full) == 0 || len(full) == len(s.parts) {
		return
	}
	for _, n := range full {
		s.parts[n].paused = true
	}
	s.client.PauseFetchPartitions(map[string][]int32{s.topic: full})
}

// note moves the marks by what was handled, until the room is closed.
func (s *subscription) note() {
	for open := true; open; {
		_, open = <-s.room.Changed()
		s.collect()
		select {
		case s.dirty <- struct{}{}:
		default:
		}
	}
}

// collect notes what has become of records.
func (s *subscription) collect() {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	s.results = s.room.Take(s.results[:0])
	s.settle(s.results)
	clear(s.results)
}

func (s *subscription) settle(results []inflight.Result[taken]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	enough := s.share().half()
	var freed []int32
	for _, r := range results {
		p := r.Token.part
		if r.Outcome == inflight.Acked {
			p.mark.Done(r.Token.record.Offset)
			p.handled = true
		}
		p.open--
		p.moved = true
		p.bytes -= sizeOf(r.Token.record)
		if p.paused && (room{p.open, p.bytes}).under(enough) && s.parts[p.number] == p {
			p.paused = false
			freed = append(freed, p.number)
		}
	}
	if len(freed) > 0 {
		s.client.ResumeFetchPartitions(map[string][]int32{s.topic: freed})
	}
	select {
	case s.freed <- struct{}{}:
	default:
	}
}

// tell waits after a failure, and says once that there is one and once that it
// is over.
func (s *subscription) tell(reading context.Context, fetches kgo.Fetches) {
	var first error
	fetches.EachError(func(_ string, partition int32, err error) {
		if lost := (*kgo.ErrDataLoss)(nil); errors.As(err, &lost) {
			s.log.Error("a partition has lost records that were in it: look for an unclean leader election", "partition", partition, "error", err)
			return
		}
		if first == nil {
			first = err
		}
	})
	if first == nil {
		if s.broken && !fetches.Empty() {
			s.broken = false
			s.backoff.Reset()
			s.log.Info("reading a topic works again")
		}
		return
	}
	if !s.broken {
		s.broken = true
		s.log.Warn("reading a topic is broken; it is tried again until it works", "error", first)
	}
	timer := time.NewTimer(s.backoff.NextBackOff())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-reading.Done():
	}
}
