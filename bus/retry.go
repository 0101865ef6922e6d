package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TxOption is an option of one InTx.
type TxOption func(*txConfig) error

type txConfig struct {
	tx       pgx.TxOptions
	attempts int
}

// WithTxOptions begins the transaction with an isolation level, an access mode
// and so on. The default is that of the database, usually READ COMMITTED.
func WithTxOptions(o pgx.TxOptions) TxOption {
	return func(c *txConfig) error {
		c.tx = o
		return nil
	}
}

// RetryConflicts calls fn up to attempts times in all, as long as PostgreSQL ends
// the transaction with a serialization failure (40001) or a deadlock (40P01). In
// between it waits 10 ms, then twice as long each time up to 1 s, give or take
// half, or until ctx ends. After the last attempt the error is a *[ConflictError].
// Without this option every error is returned at once.
//
// The error must reach InTx: fn has to return it, wrapped or not. A COMMIT whose
// outcome is unknown is never retried.
func RetryConflicts(attempts int) TxOption {
	return func(c *txConfig) error {
		if attempts < 1 {
			return fmt.Errorf("RetryConflicts(%d): use how often fn may be called in all, 1 or more", attempts)
		}
		c.attempts = attempts
		return nil
	}
}

// ErrConflict is wrapped by a *[ConflictError].
var ErrConflict = errors.New("the transaction was in conflict with others every time")

// ConflictError says that RetryConflicts has given up. Nothing was committed.
type ConflictError struct {
	Attempts int
	Err      error // of the last attempt
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("InTx: %v, in %d attempts: lock rows in one order, make the transaction shorter, or allow more attempts: %v", ErrConflict, e.Attempts, e.Err)
}

// Unwrap gives ErrConflict and the error of the last attempt.
func (e *ConflictError) Unwrap() []error { return []error{ErrConflict, e.Err} }

func retry(ctx context.Context, attempts int, attempt func() error) error {
	pauses := backoff.ExponentialBackOff{
		InitialInterval:     10 * time.Millisecond,
		RandomizationFactor: 0.5, // the parties of a conflict must not meet again
		Multiplier:          2,
		MaxInterval:         time.Second,
	}
	for n := 1; ; n++ {
		err := attempt()
		if err == nil || !isConflict(err) {
			return err
		}
		if n == attempts {
			return &ConflictError{Attempts: n, Err: err}
		}
		pause := time.NewTimer(pauses.NextBackOff())
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("InTx: ctx ended before attempt %d: %w; the last one ended with: %w", n+1, endOf(ctx), err)
		}
	}
}

// isConflict tells whether the same work may succeed in a new transaction.
func isConflict(err error) bool {
	if errors.Is(err, ErrCommitUnknown) {
		return false
	}
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}
