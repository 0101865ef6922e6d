package outbox

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// handlerError is what a handler, or the commit of what it did, has failed with. Any
// other error of an attempt is the database's, and says nothing of the event.
type handlerError struct {
	at  int // which of the events; -1: the commit of all
	err error
}

func (e *handlerError) Error() string { return e.err.Error() }
func (e *handlerError) Unwrap() error { return e.err }

var (
	errLeftAborted = errors.New("the handler returned nil although one of its statements had failed, which aborts the transaction: return the error, or run the statement in a savepoint (tx.Begin)")
	errHangs       = errors.New("the handler did not return when its ctx ended: its connection was closed")
	errGoexit      = errors.New("the handler ended its goroutine (runtime.Goexit, t.FailNow) instead of returning")
)

// effects runs the handler for items, in one transaction that begins with the link
// to lastID and the statements of also. It is committed when nil is returned.
func (t *duty) effects(work context.Context, lastID int64, items []*item, payloads map[int64][]byte, also ...statement) error {
	if err := t.db.enter(work); err != nil {
		return err
	}
	defer t.db.leave()
	began := time.Now()
	ctx, cancel := context.WithTimeout(work, t.db.timeout)
	defer cancel()
	conn, err := t.db.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	kept := true
	defer func() {
		if kept {
			conn.Release()
		}
	}()
	given := &Tx{conn: conn.Conn()}
	defer func() {
		given.over.Store(true)
		if !kept || conn.Conn().PgConn().TxStatus() == 'I' {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(work), rollbackTimeout)
		defer cancel()
		// Release throws a connection away that is still in a transaction.
		_, _ = conn.Conn().Exec(ctx, `ROLLBACK`)
	}()
	if err := t.begin(ctx, conn.Conn(), lastID, also); err != nil {
		return t.chain.failed(err)
	}
	for i, it := range items {
		m := &it.Message
		if it.parked {
			loaded := it.Message
			loaded.Payload = payloads[it.LogID]
			m = &loaded
		}
		if kept, err = t.call(work, conn, given, m); err != nil {
			return &handlerError{i, err}
		}
	}
	hit(fpBeforeEffects)
	ctx, cancel = context.WithTimeout(context.WithoutCancel(work), t.db.timeout)
	defer cancel()
	given.over.Store(true)
	if err := commit(ctx, conn.Conn()); err != nil {
		if refusedCommit(err) {
			return &handlerError{-1, fmt.Errorf("the transaction was rolled back at its commit: %w", err)}
		}
		return fmt.Errorf("commit the effects of event %d of %s, which may have happened: %w", lastID, t.who, err)
	}
	hit(fpAfterEffects)
	t.chain.moved(lastID)
	told(t.log, t.cfg.Hooks.Handled, HandledInfo{Name: t.who.name, Events: len(items), Took: time.Since(began)})
	t.after = given.after
	return nil
}

// rollbackTimeout bounds a rollback; a connection that cannot do it in this time is
// closed, and the server rolls back.
const rollbackTimeout = 5 * time.Second

// begin begins the transaction: with the link, so that whoever else is at this event
// waits for us, or we for them, before anything is done; and with limits of half the lease,
// since that of a frozen process keeps the link of its successor waiting. It is one
// round trip.
func (t *duty) begin(ctx context.Context, conn *pgx.Conn, lastID int64, also []statement) error {
	var batch pgx.Batch
	batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`)
	batch.Queue(t.limitsSQL)
	var wrong error
	for _, s := range append(also, t.chain.link(lastID)) {
		s.queue(&batch, &wrong)
	}
	if err := conn.SendBatch(ctx, &batch).Close(); err != nil {
		return err
	}
	return wrong
}

// limits is what a handler's transaction is set to, in one statement. A shorter
// statement_timeout of the role is kept.
func limits(lease time.Duration) string {
	ms := (lease / 2).Milliseconds()
	return fmt.Sprintf(`%s, set_config('idle_in_transaction_session_timeout', '%d', true), set_config('statement_timeout',
		CASE WHEN current_setting('statement_timeout')::interval BETWEEN '1 ms' AND '%d ms' THEN current_setting('statement_timeout') ELSE '%d' END, true)`,
		beDurable, ms, ms, ms)
}

func commit(ctx context.Context, conn *pgx.Conn) error {
	tag, err := conn.Exec(ctx, `COMMIT`)
	if err == nil && tag.String() != "COMMIT" {
		return pgx.ErrTxCommitRollback
	}
	return err
}

// call has the handler handle one event. In a goroutine of its own, since it may end
// that, or not come back: then its connection is taken from under it. kept: the
// connection is still ours.
func (t *duty) call(work context.Context, conn *pgxpool.Conn, tx *Tx, m *Message) (kept bool, err error) {
	ctx, cancel := context.WithTimeout(work, t.cfg.HandlerTimeout)
	defer cancel()
	back := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("the handler panicked: %v", v)
				t.log.Error("a durable handler panicked", "log_id", m.LogID, "event_id", m.EventID, "event_type", m.EventType, "panic", v, "stack", string(debug.Stack()))
			}
			back <- err
		}()
		err = t.handle(ctx, tx, m)
	}()
	select {
	case err = <-back:
	case <-ctx.Done():
		late := time.NewTimer(time.Second)
		defer late.Stop()
		select {
		case err = <-back:
		case <-late.C:
			_ = conn.Hijack().PgConn().Conn().Close() // goroutine-safe: whatever it does with it fails
			return false, errHangs
		}
	}
	switch {
	case err != nil && tx.ended && !errors.Is(err, ErrTxEnded):
		return true, fmt.Errorf("%w; besides: %w", err, ErrTxEnded)
	case err != nil:
		return true, err
	case tx.ended:
		return true, ErrTxEnded
	}
	pc := conn.Conn().PgConn()
	switch {
	case pc.IsClosed():
		return true, fmt.Errorf("the connection was lost in the handler, which returned nil: %w", pgconn.ErrConnClosed)
	case pc.IsBusy():
		return true, errors.New("the handler returned while rows that it had asked for were open: close them, or read them to their end")
	case pc.TxStatus() == 'E':
		return true, errLeftAborted
	case pc.TxStatus() == 'I':
		return true, ErrTxEnded
	}
	return true, nil
}

func (t *duty) afterCommit(f func()) {
	defer func() {
		if v := recover(); v != nil {
			t.log.Error("a function of Tx.AfterCommit panicked", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	f()
}

// refusedCommit: the server has answered that nothing is committed.
func refusedCommit(err error) bool {
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return true
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	lost := strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "57P") || pg.Code == "40003"
	return pg.SeverityUnlocalized != "FATAL" && pg.SeverityUnlocalized != "PANIC" && !lost
}

// conflicts: the server asks for the transaction to be tried again as it is.
func conflicts(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}
