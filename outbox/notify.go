package outbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// NotifierConfig configures a Notifier. The zero value is usable.
type NotifierConfig struct {
	// Schema holds the tables. Defaults to migrations.DefaultSchema.
	Schema string
	// Every is the least time between two notifications: 10 ms are at most a hundred
	// of them per second, however many commits there are. Each is a transaction of
	// its own, which draws a transaction id and writes nothing to be flushed.
	// Defaults to 10 ms, at least 1 ms.
	Every time.Duration
	// DatabaseTimeout bounds one call to the database. Defaults to 10 s.
	DatabaseTimeout time.Duration
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Notifier tells other processes that something was committed through this one, so
// that their relays look at once instead of at their next poll; they need a
// [Listener] for it. It is a hint and no more: without it, or when a notification
// is lost, the polls find everything.
//
// It notifies behind the commit, in a statement of its own. Never put a NOTIFY
// into the transaction that publishes: it takes a lock of the whole cluster at the
// commit, and the transactions of all databases queue for it (measured: 2.5 times
// fewer commits/s at 64 clients).
type Notifier struct {
	cfg  NotifierConfig
	pool *pgxpool.Pool
}

// NewNotifier checks the config; it does not touch the database. The pool must be
// connected to the primary, directly or through PgBouncer; a notification takes one
// of its connections for the time of a round trip. It stays the caller's to close,
// after Run has returned.
func NewNotifier(pool *pgxpool.Pool, cfg NotifierConfig) (*Notifier, error) {
	var faults []error
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if cfg.Schema == "" {
		cfg.Schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(cfg.Schema); err != nil {
		faults = append(faults, fmt.Errorf("NotifierConfig.Schema: %w", err))
	}
	if cfg.Every == 0 {
		cfg.Every = 10 * time.Millisecond
	}
	if cfg.Every < time.Millisecond {
		faults = append(faults, fmt.Errorf("NotifierConfig.Every is %s: use at least 1ms, or 0 for the default of 10ms", cfg.Every))
	}
	if cfg.DatabaseTimeout == 0 {
		cfg.DatabaseTimeout = 10 * time.Second
	}
	if cfg.DatabaseTimeout < 100*time.Millisecond {
		faults = append(faults, fmt.Errorf("NotifierConfig.DatabaseTimeout is %s: use at least 100ms, or 0 for the default of 10s", cfg.DatabaseTimeout))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("outbox.NewNotifier: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Notifier{cfg: cfg, pool: pool}, nil
}

// Run notifies until ctx is done, and returns nil. The first commit after a pause is
// told at once; those that follow within NotifierConfig.Every are told together,
// and the last one is told as well. While nothing is committed through this process
// (bus.InTx, the end of a followed transaction, Log.Wake, a request to a relay) it
// sends nothing. Trouble with the database is waited out, and said once.
//
// One per process and schema is enough; a second one only doubles the
// notifications.
func (n *Notifier) Run(ctx context.Context) error {
	committed, unlisten := listenCommits(n.cfg.Schema)
	defer unlisten()
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval = 50*time.Millisecond, 5*time.Second
	pending, troubled := false, false
	for {
		if !pending {
			select {
			case <-ctx.Done():
				return nil
			case <-committed:
			}
		}
		err := n.notify(ctx, n.cfg.DatabaseTimeout)
		pending = err != nil
		switch {
		case err != nil && ctx.Err() == nil:
			if !troubled {
				n.cfg.Logger.Warn("other processes cannot be told of commits, and find them by polling", "schema", n.cfg.Schema, "error", err)
			}
			troubled = true
			sleep(ctx, pace.NextBackOff())
		case err == nil:
			if troubled {
				n.cfg.Logger.Info("other processes are told of commits again", "schema", n.cfg.Schema)
			}
			troubled = false
			pace.Reset()
			sleep(ctx, n.cfg.Every)
		}
		if ctx.Err() != nil {
			n.last(ctx, committed, pending, troubled)
			return nil
		}
	}
}

// last tells of what was committed just before the stop; not if that would hold
// the stop up.
func (n *Notifier) last(ctx context.Context, committed <-chan struct{}, pending, troubled bool) {
	select {
	case <-committed:
		pending = true
	default:
	}
	if pending && !troubled {
		_ = n.notify(context.WithoutCancel(ctx), min(time.Second, n.cfg.DatabaseTimeout)) // a hint
	}
}

func (n *Notifier) notify(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := n.pool.Exec(ctx, `SELECT pg_notify($1, $2)`, channelOf(n.cfg.Schema), thisProcess)
	return err
}

// thisProcess is the payload of our notifications, by which a Listener knows those
// of its own process: its relays have been woken in memory.
var thisProcess = uuid.NewString()

// channelOf is the name of a schema's channel: 63 bytes at most, as PostgreSQL
// demands (NAMEDATALEN). No schema has a # in its name, so that no hash can pass
// for one.
func channelOf(schema string) string {
	const prefix = "postbus.wake"
	if name := prefix + "." + schema; len(name) <= 63 {
		return name
	}
	sum := sha256.Sum256([]byte(schema))
	return prefix + "#" + hex.EncodeToString(sum[:16])
}
