package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/postbus/postbus/migrations"
)

// ErrNotDirect is wrapped when a Listener's connection goes through a pooler that
// does not pass notifications on, such as PgBouncer in transaction mode.
var ErrNotDirect = errors.New("notifications do not arrive on this connection")

// ListenerConfig configures a Listener. The zero value is usable.
type ListenerConfig struct {
	// Schema holds the tables. Defaults to migrations.DefaultSchema.
	Schema string
	// Silence is how long a connection may be silent until it is asked, by an empty
	// statement, whether it is still alive: a connection that is dead without a word
	// (a lost machine, a firewall) is found within Silence and DatabaseTimeout.
	// Defaults to 30 s, at least 100 ms.
	Silence time.Duration
	// DatabaseTimeout bounds one call to the database. Defaults to 10 s.
	DatabaseTimeout time.Duration
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Listener hears, from the [Notifier] of other processes, that something was
// committed, and wakes the relays of this process: they look at once instead of at
// their next poll. It is a hint and no more: without it the polls find everything.
type Listener struct {
	cfg  ListenerConfig
	conn *pgx.ConnConfig
}

// NewListener checks the config; it does not touch the database. While it runs, a
// Listener holds one connection of its own, made by conn, which is copied: it must
// lead to the primary itself, not through PgBouncer, whatever the relay's pool
// does. conn comes from pgx.ParseConfig, or from a pool: pool.Config().ConnConfig.
func NewListener(conn *pgx.ConnConfig, cfg ListenerConfig) (*Listener, error) {
	var faults []error
	if conn == nil || conn.DialFunc == nil { // pgx would panic
		faults = append(faults, errors.New("the connection's config is nil or made by hand: make it with pgx.ParseConfig, or take pool.Config().ConnConfig"))
	}
	if cfg.Schema == "" {
		cfg.Schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(cfg.Schema); err != nil {
		faults = append(faults, fmt.Errorf("ListenerConfig.Schema: %w", err))
	}
	if cfg.Silence == 0 {
		cfg.Silence = 30 * time.Second
	}
	if cfg.Silence < 100*time.Millisecond {
		faults = append(faults, fmt.Errorf("ListenerConfig.Silence is %s: use at least 100ms, or 0 for the default of 30s", cfg.Silence))
	}
	if cfg.DatabaseTimeout == 0 {
		cfg.DatabaseTimeout = 10 * time.Second
	}
	if cfg.DatabaseTimeout < 100*time.Millisecond {
		faults = append(faults, fmt.Errorf("ListenerConfig.DatabaseTimeout is %s: use at least 100ms, or 0 for the default of 10s", cfg.DatabaseTimeout))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("outbox.NewListener: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	conn = conn.Copy()
	conn.OnNotification = nil // or it would get what is meant for us
	// No statement is prepared for a connection that sends two.
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec
	return &Listener{cfg: cfg, conn: conn}, nil
}

// Run listens until ctx is done, and returns nil. A connection that cannot be made,
// or is lost, is made anew with growing pauses, and said once; as soon as it is
// there the relays are woken once, for what was missed. It returns an error that
// wraps ErrNotDirect if the connection goes through a pooler that does not pass
// notifications on.
//
// One per process and schema is enough.
func (l *Listener) Run(ctx context.Context) error {
	pace := backoff.NewExponentialBackOff() // with jitter: a server that restarts has many of us
	pace.InitialInterval, pace.MaxInterval = 50*time.Millisecond, 10*time.Second
	troubled := false
	var pause time.Duration
	for {
		began := time.Now()
		err := l.once(ctx, func() {
			if troubled {
				l.cfg.Logger.Info("listening for the commits of other processes again", "schema", l.cfg.Schema)
			}
			troubled = false
			wakeForOthers(l.cfg.Schema)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrNotDirect):
			return fmt.Errorf("listen for the commits of other processes in schema %q: %w", l.cfg.Schema, err)
		case !troubled:
			l.cfg.Logger.Warn("not listening for the commits of other processes: they are found by polling", "schema", l.cfg.Schema, "error", err)
		}
		troubled = true
		if time.Since(began) > 2*pause {
			pace.Reset() // it worked for a while: another trouble
		}
		pause = pace.NextBackOff()
		if sleep(ctx, pause); ctx.Err() != nil {
			return nil
		}
	}
}

// once listens on one connection until ctx is done or the connection is lost.
func (l *Listener) once(ctx context.Context, ready func()) error {
	conn, err := l.connect(ctx)
	if err != nil {
		return err
	}
	defer l.close(ctx, conn)
	if err := l.checkDirect(ctx, conn); err != nil {
		return err
	}
	if err := l.exec(ctx, conn, `LISTEN `+pgx.Identifier{channelOf(l.cfg.Schema)}.Sanitize()); err != nil {
		return err
	}
	ready()
	for {
		n, err := l.wait(ctx, conn)
		if err != nil {
			return err
		}
		if n.Payload != thisProcess {
			wakeForOthers(l.cfg.Schema)
		}
	}
}

// wait waits for a notification, for as long as the connection is alive.
func (l *Listener) wait(ctx context.Context, conn *pgx.Conn) (*pgconn.Notification, error) {
	for {
		silence, cancel := context.WithTimeout(ctx, l.cfg.Silence)
		n, err := conn.WaitForNotification(silence)
		cancel()
		if n != nil {
			return n, nil
		}
		if ctx.Err() != nil || conn.IsClosed() || !pgconn.Timeout(err) {
			return nil, err
		}
		if err := l.ping(ctx, conn); err != nil {
			return nil, fmt.Errorf("the connection was silent for %s and does not answer: %w", l.cfg.Silence, err)
		}
	}
}

func (l *Listener) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DatabaseTimeout)
	defer cancel()
	return pgx.ConnectConfig(ctx, l.conn)
}

func (l *Listener) exec(ctx context.Context, conn *pgx.Conn, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DatabaseTimeout)
	defer cancel()
	_, err := conn.Exec(ctx, sql, args...)
	return err
}

func (l *Listener) ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DatabaseTimeout)
	defer cancel()
	return conn.Ping(ctx)
}

func (l *Listener) close(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // at worst the server finds out itself
}
