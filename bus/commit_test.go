package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/postbus/postbus/internal/testkit"
)

// viaProxy is a world whose pool goes through a proxy; its own questions do not.
func viaProxy(t *testing.T) (w *world, proxy *testkit.Proxy) {
	w = newWorld(t)
	proxy = testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	return w, proxy
}

// isCommit knows the simple query COMMIT; a schema's name may hold the word too.
func isCommit(b []byte) bool { return bytes.Equal(b, []byte("Q\x00\x00\x00\x0bcommit\x00")) }

func onCommit(action testkit.Action) func([]byte) testkit.Action {
	return func(b []byte) testkit.Action {
		if isCommit(b) {
			return action
		}
		return testkit.Forward
	}
}

// The transaction is committed, its caller cannot know it, and no handler is told.
func TestCommitUnknown(t *testing.T) {
	w, proxy := viaProxy(t)
	announced := w.announced()
	pool := testkit.Pool(t, proxy.URL())
	proxy.OnClientBytes(onCommit(testkit.LoseReply))
	attempts := 0
	err := InTx(t.Context(), pool, func(ctx context.Context, tx pgx.Tx) error {
		attempts++
		return w.bus.Publish(ctx, tx, order(1), order(2))
	}, RetryConflicts(3))
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) || len(unknown.EventIDs) != 2 || unknown.Err == nil {
		t.Fatalf("have %v", err)
	}
	says(t, err, ErrCommitUnknown, "not known whether", "look in the outbox for event "+unknown.EventIDs[0].String())
	if attempts != 1 {
		t.Fatalf("%d attempts", attempts)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return len(w.logged()) == 2 }, "the commit itself")
	if have := ids(w.logged()); have[0] != unknown.EventIDs[0] || have[1] != unknown.EventIDs[1] {
		t.Fatalf("event ids %v, not %v", unknown.EventIDs, have)
	}
	announced.want(t)
	if w.log.wakes.Load() != 1 {
		t.Fatal("the relay was not woken")
	}
}

// COMMIT was sent and never arrived: that looks the same from here.
func TestCommitUnknownAndNotCommitted(t *testing.T) {
	w, proxy := viaProxy(t)
	announced := w.announced()
	pool := testkit.Pool(t, proxy.URL())
	proxy.OnClientBytes(onCommit(testkit.Cut))
	err := InTx(t.Context(), pool, func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, order(1))
	})
	says(t, err, ErrCommitUnknown)
	equal(t, w.loggedKeys())
	announced.want(t)
}

// A connection that is lost before COMMIT leaves no doubt.
func TestConnectionLostBeforeTheCommit(t *testing.T) {
	w, proxy := viaProxy(t)
	pool := testkit.Pool(t, proxy.URL())
	err := InTx(t.Context(), pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := w.bus.Publish(ctx, tx, order(1)); err != nil {
			return err
		}
		proxy.CutAll()
		_, _ = tx.Exec(ctx, "SELECT 1") // swallowed
		return nil
	})
	says(t, err, pgconn.ErrConnClosed, "rolled back")
	if errors.Is(err, ErrCommitUnknown) {
		t.Fatal(err)
	}
	equal(t, w.loggedKeys())
}

// A caller who gives up while COMMIT is on its way still learns the outcome if it
// comes soon enough, here at once.
func TestCommitOutlastsTheContext(t *testing.T) {
	w, proxy := viaProxy(t)
	announced := w.announced()
	pool := testkit.Pool(t, proxy.URL())
	ctx, cancel := context.WithCancel(t.Context())
	var sent atomic.Bool
	proxy.OnClientBytes(func(b []byte) testkit.Action {
		if isCommit(b) {
			cancel()
			sent.Store(true)
		}
		return testkit.Forward
	})
	err := InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, order(1))
	})
	if err != nil || !sent.Load() {
		t.Fatal(err)
	}
	equal(t, w.loggedKeys(), "order.placed 1")
	announced.want(t, "1")
}

func TestOutlast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tired := errors.New("tired")
		ctx, cancel := context.WithCancelCause(t.Context())
		patient, stop := outlast(ctx, 5*time.Second)
		defer stop()
		cancel(tired)
		time.Sleep(5*time.Second - 1)
		synctest.Wait()
		if patient.Err() != nil {
			t.Fatal("ended early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if cause := context.Cause(patient); !errors.Is(cause, tired) || !errors.Is(cause, context.Canceled) {
			t.Fatalf("cause %v", cause)
		}
	})
	synctest.Test(t, func(t *testing.T) { // nothing is left behind, or synctest would fail
		ctx, cancel := context.WithCancel(t.Context())
		_, stop := outlast(ctx, time.Hour)
		cancel()
		stop()
	})
}

func TestRolledBackIsCertain(t *testing.T) {
	server := func(severity, code string) error {
		return fmt.Errorf("wrapped: %w", &pgconn.PgError{SeverityUnlocalized: severity, Severity: "FEHLER", Code: code})
	}
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"COMMIT answered by ROLLBACK", pgx.ErrTxCommitRollback, true},
		{"deferred constraint", server("ERROR", "23505"), true},
		{"serialization failure", server("ERROR", "40001"), true},
		{"statement timeout in a deferred trigger", server("ERROR", "57014"), true},
		{"no unlocalized severity", &pgconn.PgError{Severity: "ERROR", Code: "23505"}, true},
		{"shutdown", server("FATAL", "57P01"), false},
		{"shutdown, as a proxy tells it", server("ERROR", "57P01"), false},
		{"pooler lost its server", &pgconn.PgError{Severity: "FATAL", Code: "08P01"}, false},
		{"a foreign server was lost", server("ERROR", "08006"), false},
		{"completion unknown", server("ERROR", "40003"), false},
		{"crash", server("PANIC", "XX000"), false},
		{"connection lost", io.ErrUnexpectedEOF, false},
		{"timeout", &net.OpError{Op: "read", Err: context.DeadlineExceeded}, false},
		{"connection lost, as pgx tells it", fmt.Errorf("exec: %w", pgconn.ErrConnClosed), false},
		{"context ended", context.DeadlineExceeded, false},
	} {
		if have := rolledBack(c.err); have != c.want {
			t.Errorf("%s: %v", c.name, have)
		}
	}
}
