package postbustest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

// RunDurablesToEnd runs durable handlers until the log has nothing for any of them:
// each committed event is handled, or put aside where only a person can get it out
// (given up, or waiting behind such a one), and every request to their desks is
// carried out. What they publish themselves is waited for, too. Then it stops them and
// gives, by handler, what is on its desk, but for what was discarded: an empty map, if
// all has been handled.
//
//	parked := postbustest.RunDurablesToEnd(t, pool, eventBus.Durables())
//
// It fails the test, and says for each handler what is left and which event is in the
// way with which error, if that takes longer than 30 seconds (or [Within]), or if a
// handler ends with an error. Called again, they go on where they stopped.
//
// They run with the config that they have: in a test, one whose Retry tries again
// after milliseconds, and has few attempts. They use the connections that
// outbox.RunDurables opens, beside pool.
func RunDurablesToEnd(t testing.TB, pool *pgxpool.Pool, durables []*outbox.Durable, opts ...WaitOption) map[string][]outbox.ParkedEvent {
	t.Helper()
	if len(durables) == 0 || slices.Contains(durables, nil) {
		t.Fatalf("RunDurablesToEnd: there is no durable handler, or one is nil: subscribe them before the call, and pass EventBus.Durables")
	}
	limit := limitOf(opts, 30*time.Second)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	for _, d := range durables {
		if err := migrations.Check(ctx, pool, d.Config().Schema); err != nil {
			t.Fatalf("RunDurablesToEnd: %v", err)
		}
	}
	runs, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- outbox.RunDurables(runs, pool, 0, durables...) }()
	stopped := sync.OnceValue(func() error { stop(); return <-ran })
	defer stopped() // also when the test is failed below

	var last []handlersLeft
	for pause := time.Millisecond; ; pause = min(2*pause, 25*time.Millisecond) {
		left, err := leftToAll(ctx, pool, durables)
		if err == nil && len(left) == 0 {
			break
		}
		if err == nil {
			last = left
		}
		if ctx.Err() != nil {
			t.Fatalf("RunDurablesToEnd: %d durable handlers have not come to the end of the log within %s%s", len(durables), limit, tellOf(last))
		}
		if err != nil {
			t.Fatalf("RunDurablesToEnd: look how far they are: %v", err)
		}
		timer := time.NewTimer(pause)
		select {
		case err := <-ran:
			timer.Stop()
			ran <- err // for stopped
			if err == nil {
				err = errors.New("they were stopped")
			}
			t.Fatalf("RunDurablesToEnd: they have ended before the end of the log: %v%s", err, tellOf(last))
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	if err := stopped(); err != nil {
		t.Fatalf("RunDurablesToEnd: %v", err)
	}
	parked := map[string][]outbox.ParkedEvent{}
	for _, d := range durables {
		found, err := desk(pool, d.Config().Schema, d.Name())
		if err != nil {
			t.Fatalf("RunDurablesToEnd: %v", err)
		}
		if len(found) > 0 {
			parked[d.Name()] = found
		}
	}
	return parked
}

// handlersLeft is what is left to one handler.
type handlersLeft struct {
	name   string
	paused bool
	events []leftOver
}

// leftToAll asks for all of them at one moment: one that is done may get work by
// another that is not.
func leftToAll(ctx context.Context, pool *pgxpool.Pool, durables []*outbox.Durable) (all []handlersLeft, err error) {
	err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var snapshot string
		if err := tx.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&snapshot); err != nil {
			return err
		}
		for _, d := range durables {
			cfg := d.Config()
			events, err := leftTo(ctx, tx, cfg.Schema, cfg.Name, cfg.Policy, snapshot)
			if err != nil {
				return err
			}
			if len(events) == 0 {
				continue
			}
			left := handlersLeft{name: cfg.Name, events: events}
			err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+pgx.Identifier{cfg.Schema, "relay"}.Sanitize()+` WHERE relay = $1 AND paused)`, cfg.Name).Scan(&left.paused)
			if err != nil {
				return err
			}
			all = append(all, left)
		}
		return nil
	})
	return all, err
}

// tellOf says what is left, and what may keep it.
func tellOf(all []handlersLeft) string {
	if len(all) == 0 {
		return ""
	}
	var b strings.Builder
	for _, l := range all {
		many := ""
		if len(l.events) == 100 {
			many = " (the first 100)"
		}
		fmt.Fprintf(&b, "; left to %q are %d%s", l.name, len(l.events), many)
		if l.paused {
			b.WriteString(", while it is paused: desk.Resume")
		}
		lines := make([]string, len(l.events))
		for i, e := range l.events {
			lines[i] = e.String()
		}
		b.WriteString(":" + list(lines))
	}
	b.WriteString("\nWhat may keep it: a handler that hangs, a long Retry, another process that holds the lease. The handlers' own words are in their logger's output.")
	return b.String()
}
