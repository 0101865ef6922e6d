package outbox

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Relay drains the log to a publisher: every committed event at least once, those
// of one partition key in the order of their transactions.
type Relay struct {
	cfg       RelayConfig
	pool      *pgxpool.Pool
	publisher message.Publisher
	running   atomic.Bool
	window    atomic.Pointer[window] // of the tenure that works
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
	w := &relayWork{relay: r, db: db, holder: uuid.New()}
	s := &shift{
		who: w.who(), db: db, holder: w.holder, lease: r.cfg.Lease, log: r.cfg.Logger.With("relay", r.cfg.Name), hooks: r.cfg.Hooks,
		active: "relay active", standsBy: "relay stands by: another process holds the lease",
		work: w.work, had: &w.had,
	}
	return s.run(ctx)
}

// Window is what this process has taken from the log and not noted as published yet:
// how many events, and how many bytes of payload. Both are 0 while another process does
// the work. It is safe to call from any goroutine, and costs next to nothing.
func (r *Relay) Window() (events, bytes int) {
	w := r.window.Load()
	if w == nil {
		return 0, 0
	}
	items, bytes, _ := w.view()
	return len(items), bytes
}

// relayWork is the work of one Run, and what it remembers from one tenure to the
// next.
type relayWork struct {
	relay  *Relay
	db     *database
	holder uuid.UUID
	wakeC  <-chan struct{}
	had    bool // a position

	// What the last tenure had sent of a round without having noted it: sent
	// again neither after a lost connection nor after a lost reply.
	sentRound int64
	sent      map[int64]struct{}
}

func (w *relayWork) who() owner { return owner{kindRelay, w.relay.cfg.Name} }

// work moves the position under a lease that was just taken.
func (w *relayWork) work(ctx, hard context.Context, l *lease, source string, wakeC <-chan struct{}) error {
	w.wakeC = wakeC
	t := w.newTenure(l, source)
	w.relay.window.Store(t.window)
	defer w.relay.window.Store(nil)
	err := t.run(ctx, hard)
	w.remember(t)
	return err
}

func (w *relayWork) newTenure(l *lease, source string) *tenure {
	cfg := w.relay.cfg
	t := &tenure{
		seat: seat{
			who: w.who(), db: w.db, log: cfg.Logger.With("relay", cfg.Name), lease: l, source: source,
			chain: newChain(w.db, w.who(), allSlots, w.holder), retry: cfg.Retry, policy: cfg.Policy, hooks: cfg.Hooks,
			aside: caps{maxEvents: cfg.MaxParked, maxBytes: cfg.MaxParkedBytes},
		},
		cfg:       cfg,
		had:       w.had,
		sender:    newSender(w.relay.publisher, cfg.Batch, cfg.BatchBytes, cfg.Lanes),
		window:    newWindow(cfg.Window, cfg.WindowBytes),
		reader:    newReader(w.db, allSlots, source),
		margin:    cfg.Lease / 10,
		progressC: make(chan struct{}, 1),
		wakeC:     w.wakeC,
		readErrC:  make(chan error, 1),
	}
	t.sentRound, t.sentBefore = w.sentRound, w.sent
	return t
}

// remember keeps what t has sent and not noted, for the next tenure. One that did
// not get as far as reading its round knows nothing new: what is remembered of that
// round holds.
func (w *relayWork) remember(t *tenure) {
	w.had = w.had || t.chain.pos.n > 0
	if !t.active {
		return
	}
	w.sentRound, w.sent = t.chain.pos.round.n, map[int64]struct{}{}
	for id := range t.sentBefore {
		w.sent[id] = struct{}{}
	}
	items, _, _ := t.window.view()
	for _, it := range items {
		if it.state.Load() == stSettled {
			w.sent[it.LogID] = struct{}{}
		}
	}
}
