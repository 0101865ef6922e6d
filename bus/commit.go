package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// commitGrace is how long the answer to COMMIT is still waited for when ctx has
// ended meanwhile.
const commitGrace = 5 * time.Second

// ErrCommitUnknown is wrapped by a *[CommitUnknownError].
var ErrCommitUnknown = errors.New("it is not known whether the transaction was committed")

// CommitUnknownError says that COMMIT was sent and no answer came: the
// transaction is committed or rolled back, and only the database knows. Whoever
// does the work again without looking may do it twice, with events of new ids.
//
// The server may still be at it: a look that finds nothing is conclusive once a
// row that it had locked can be locked again. The log keeps its events until
// somebody deletes them.
type CommitUnknownError struct {
	EventIDs []uuid.UUID // of the events published: in the outbox all of them, or none
	Err      error       // what came instead of an answer
}

func (e *CommitUnknownError) Error() string {
	look := "look for the rows that were written in it"
	if len(e.EventIDs) > 0 {
		look = fmt.Sprintf("look in the outbox for event %s (it is there exactly if the transaction was committed)", e.EventIDs[0])
	}
	return fmt.Sprintf("commit: %v, because the answer to COMMIT did not arrive: before doing it again, %s: %v", ErrCommitUnknown, look, e.Err)
}

// Unwrap gives ErrCommitUnknown and the cause.
func (e *CommitUnknownError) Unwrap() []error { return []error{ErrCommitUnknown, e.Err} }

// commit commits the transaction that s follows, and wakes the relays. What rules
// a commit out is found before COMMIT is sent, while the outcome is still certain:
// then sent is false, and the transaction is still to be rolled back. op names the
// attempt in errors.
func (s *scope) commit(ctx context.Context, tx pgx.Tx, op string) (sent bool, err error) {
	if err := s.doom(); err != nil {
		return false, fmt.Errorf("%s: rolled back: %w", op, err)
	}
	if err := checkCommittable(ctx, tx, op); err != nil {
		return false, err
	}
	err = commit(ctx, tx, op, s.published)
	s.close()
	if err == nil || errors.Is(err, ErrCommitUnknown) {
		s.wake() // in vain at worst
	}
	return true, err
}

func checkCommittable(ctx context.Context, tx pgx.Tx, op string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: rolled back, because ctx ended before the commit: %w", op, endOf(ctx))
	}
	if conn := tx.Conn(); conn != nil {
		if conn.IsClosed() {
			return fmt.Errorf("%s: rolled back, because the connection was lost before the commit: %w", op, pgconn.ErrConnClosed)
		}
		if conn.PgConn().IsBusy() {
			return fmt.Errorf("%s: rolled back, because the connection is busy with rows that were left open: close them, or read them to their end", op)
		}
	}
	switch txStatus(tx) {
	case statusAborted:
		return fmt.Errorf("%s: rolled back, because a statement had failed and its error was dropped: return the statement's error, or run it in a savepoint (pgx.BeginFunc): %w", op, pgx.ErrTxCommitRollback)
	case statusIdle:
		return fmt.Errorf("%s: the transaction was ended by SQL text (COMMIT, ROLLBACK), so that nothing is announced: end it by its methods, or leave that to InTx", op)
	}
	return nil
}

// commit commits, and answers with an error that wraps ErrCommitUnknown unless
// the outcome is certain.
func commit(ctx context.Context, tx pgx.Tx, op string, published []uuid.UUID) error {
	patient, cancel := outlast(ctx, commitGrace)
	defer cancel()
	err := tx.Commit(patient)
	switch {
	case err == nil:
		return nil
	case rolledBack(err):
		return fmt.Errorf("%s: the transaction was rolled back at its commit: %w", op, err)
	}
	if patient.Err() != nil {
		err = fmt.Errorf("%w: %w", endOf(patient), err)
	}
	return &CommitUnknownError{EventIDs: published, Err: err}
}

// rolledBack tells whether an error of Commit leaves no doubt that nothing was
// committed. That is so in two cases only:
//
//   - the server answered ROLLBACK to COMMIT;
//   - the server answered with an ERROR. PostgreSQL raises one only before its
//     commit record is written: what fails after that is a PANIC of the server.
//
// A FATAL answer (57P01, the shutdown of a server, and its kin) is none of them:
// the session may end between the commit and its confirmation. Nor are those
// classes of ERROR that stand for a lost answer further on, as proxies and
// foreign servers report it: 08 (connection), 57P (shutdown), and 40003
// (statement completion unknown).
//
// pgconn.SafeToRetry is no help: pgx 5.12 says that nothing was sent ("conn
// closed") also when the connection breaks while the answer is read. What keeps
// COMMIT from being sent is found by checkCommittable.
func rolledBack(err error) bool {
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return true
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	severity := pg.SeverityUnlocalized
	if severity == "" { // not sent by every pooler
		severity = pg.Severity
	}
	lost := strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "57P") || pg.Code == "40003"
	return severity == "ERROR" && !lost
}

// outlast is ctx with its end put off: once ctx has ended, the work under way has
// this long left.
func outlast(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	patient, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			end(fmt.Errorf("no answer within %s after ctx had ended: %w", grace, endOf(ctx)))
		case <-patient.Done():
		}
	})
	return patient, func() { stop(); end(nil) }
}

// endOf is why ctx has ended: its Err, for errors.Is, and its cause if it has one.
func endOf(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == nil || errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}
