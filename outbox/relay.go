package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// Relay drains the log to a publisher: every committed event at least once, those
// of one partition key in the order of their transactions.
type Relay struct {
	cfg       RelayConfig
	pool      *pgxpool.Pool
	publisher message.Publisher
	running   atomic.Bool
}

// NewRelay checks the config; it touches neither the database nor the broker. The
// pool must be connected to the primary, directly or through PgBouncer (then with
// default_query_exec_mode=exec); the relay uses up to four of its connections.
// A publisher that is also a BatchPublisher gets batches; any other gets one
// message at a time, from cfg.Lanes goroutines at once. Pool and publisher stay
// the caller's to close, after Run has returned.
func NewRelay(pool *pgxpool.Pool, publisher message.Publisher, cfg RelayConfig) (*Relay, error) {
	var faults []error
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if isNil(publisher) {
		faults = append(faults, errors.New("the publisher is nil: pass the one that events go to"))
	}
	_, batches := publisher.(BatchPublisher)
	cfg, more := cfg.withDefaults(batches)
	if faults = append(faults, more...); len(faults) > 0 {
		return nil, fmt.Errorf("outbox.NewRelay: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return &Relay{cfg: cfg, pool: pool, publisher: publisher}, nil
}

// isNil also finds the nil pointer inside an interface.
func isNil(p message.Publisher) bool {
	if p == nil {
		return true
	}
	v := reflect.ValueOf(p)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// Run publishes until ctx is done; then it lets calls under way come back, at most
// DrainTimeout, hands over and returns nil. While another process holds the lease
// of this name it stands by. Trouble with the database or the broker is waited
// out, and said once. It returns an error at once for what waiting cannot mend:
// the database out of reach or not migrated at the start, a read replica, another
// cluster's log, a missing privilege, ErrAlreadyRunning.
func (r *Relay) Run(ctx context.Context) error {
	if !r.running.CompareAndSwap(false, true) {
		return fmt.Errorf("run relay %q: %w: one Run per Relay value; a second relay of the name needs a value of its own and stands by", r.cfg.Name, ErrAlreadyRunning)
	}
	defer r.running.Store(false)

	db := &database{pool: r.pool, schema: r.cfg.Schema, timeout: r.cfg.DatabaseTimeout}
	if err := db.check(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("run relay %q: %w", r.cfg.Name, err)
	}
	s := &shift{relay: r, db: db, holder: uuid.New()}
	wakeC, unlisten := listenWake(r.cfg.Schema)
	defer unlisten()
	s.wakeC = wakeC

	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 50*time.Millisecond, 5*time.Second
	var pause time.Duration
	for ctx.Err() == nil {
		began := time.Now()
		err := s.once(ctx)
		switch {
		case ctx.Err() != nil && err == nil:
			return nil
		case isFinal(err):
			return fmt.Errorf("run relay %q: %w", r.cfg.Name, err)
		case errors.Is(err, errLeaseLost):
			r.cfg.Logger.Warn("lease lost, standing by", "relay", r.cfg.Name)
		case err != nil:
			r.cfg.Logger.Warn("starting over from the stored position", "relay", r.cfg.Name, "error", err)
		}
		if time.Since(began) > 2*pause {
			pace.Reset() // it worked for a while: another trouble
		}
		pause = pace.NextBackOff()
		sleep(ctx, pause)
	}
	return nil
}

// isFinal: waiting does not mend it.
func isFinal(err error) bool {
	return errors.Is(err, migrations.ErrNotMigrated) || errors.Is(err, migrations.ErrFromTheFuture) ||
		errors.Is(err, ErrReadReplica) || errors.Is(err, ErrOtherCluster) || errors.Is(err, ErrMissingPrivilege)
}

// shift is one Run: a holder that takes the lease, loses it, takes it again.
type shift struct {
	relay  *Relay
	db     *database
	holder uuid.UUID // fresh per Run
	wakeC  <-chan struct{}
	told   bool // that this holder is active

	// What the last tenure had sent of a round without having noted it: sent
	// again neither after a lost connection nor after a lost reply.
	sentRound int64
	sent      map[int64]struct{}
}

// once waits for the lease and works until ctx is done or something breaks.
func (s *shift) once(ctx context.Context) error {
	cfg := s.relay.cfg
	l := newLease(s.db, cfg.Name, allSlots, s.holder, cfg.Lease)
	if err := s.standBy(ctx, l); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return l.giveUp(ctx) // it may just have been taken
	}
	hit(fpLeaseTaken)
	if !s.told {
		s.told = true // once per Run, however often the position is loaded anew
		cfg.Logger.Info("relay active", "relay", cfg.Name, "holder", s.holder)
	}
	// The work outlives ctx by the drain, and not the lease.
	hard, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		if err := l.keep(hard); err != nil {
			stop(err)
		}
	}()
	defer func() { stop(nil); <-kept }()

	source, err := s.db.source(hard)
	if err != nil {
		return err
	}
	t := s.newTenure(l, source)
	err = t.run(ctx, hard)
	s.remember(t)
	if errors.Is(context.Cause(hard), errLeaseLost) {
		s.told = false
		return errLeaseLost
	}
	if ctx.Err() != nil {
		stop(nil)
		<-kept // or a renewal could undo the giving up
		if giveUpErr := l.giveUp(ctx); giveUpErr != nil && err == nil {
			cfg.Logger.Warn("the lease could not be given up and runs out by itself", "relay", cfg.Name, "error", giveUpErr)
		}
		if err != nil {
			cfg.Logger.Warn("stopped without a last link: some events may be published again", "relay", cfg.Name, "error", err)
		}
		return nil
	}
	return err
}

// standBy returns when the lease is taken or ctx is done.
func (s *shift) standBy(ctx context.Context, l *lease) error {
	every := min(time.Second, l.length/3)
	for first := true; ctx.Err() == nil; first = false {
		ok, err := l.take(ctx)
		if ok || err != nil {
			if ctx.Err() != nil && !ok {
				return nil
			}
			return err
		}
		if first {
			s.told = false
			s.relay.cfg.Logger.Info("relay stands by: another process holds the lease", "relay", l.relay, "holder", s.holder)
		}
		sleep(ctx, time.Duration((0.8+0.4*rand.Float64())*float64(every)))
	}
	return nil
}

func (s *shift) newTenure(l *lease, source string) *tenure {
	cfg := s.relay.cfg
	t := &tenure{
		cfg: cfg, log: cfg.Logger, db: s.db, lease: l, source: source,
		chain:     newChain(s.db, cfg.Name, allSlots, s.holder),
		sender:    newSender(s.relay.publisher, cfg.Batch, cfg.BatchBytes, cfg.Lanes),
		window:    newWindow(cfg.Window, cfg.WindowBytes),
		reader:    newReader(s.db, allSlots, source),
		margin:    cfg.Lease / 10,
		progressC: make(chan struct{}, 1),
		wakeC:     s.wakeC,
		readErrC:  make(chan error, 1),
	}
	t.sentRound, t.sentBefore = s.sentRound, s.sent
	return t
}

// remember keeps what t has sent and not noted, for the next tenure. One that did
// not get as far as reading its round knows nothing new: what is remembered of that
// round holds.
func (s *shift) remember(t *tenure) {
	if !t.active {
		return
	}
	s.sentRound, s.sent = t.chain.pos.round.n, map[int64]struct{}{}
	for id := range t.sentBefore {
		s.sent[id] = struct{}{}
	}
	items, _, _ := t.window.view()
	for _, it := range items {
		if it.state.Load() == stSettled {
			s.sent[it.LogID] = struct{}{}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
