package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

var errUndo = errors.New("undo")

// Three levels, every combination of kept and rolled back.
func TestSavepoints(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	var want []string
	for n := range 8 {
		keep := func(level int) bool { return n>>level&1 == 1 }
		id := func(at string) orderPlaced { return order(fmt.Sprintf("%d %s", n, at)) }
		w.inTx(func(ctx context.Context, tx pgx.Tx) error {
			var nest func(tx pgx.Tx, level int) error
			nest = func(tx pgx.Tx, level int) error {
				if err := w.bus.Publish(ctx, tx, id(fmt.Sprintf("%d before", level))); err != nil {
					return err
				}
				if level < 3 {
					err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
						err := nest(tx, level+1)
						if err == nil && !keep(level) {
							return errUndo
						}
						return err
					})
					if err != nil && err != errUndo {
						return err
					}
				}
				return w.bus.Publish(ctx, tx, id(fmt.Sprintf("%d after", level)))
			}
			return nest(tx, 0)
		})
		kept := 0 // levels that are committed below the root
		for kept < 3 && keep(kept) {
			kept++
		}
		for level := 0; level <= kept; level++ {
			want = append(want, fmt.Sprintf("%d %d before", n, level))
		}
		for level := kept; level >= 0; level-- {
			want = append(want, fmt.Sprintf("%d %d after", n, level))
		}
	}
	announced.want(t, want...)
	var logged []string
	for _, e := range w.logged() {
		logged = append(logged, e.AggregateID)
	}
	equal(t, logged, want...)
}

// What is announced is what is in the log, whatever a transaction does with its
// savepoints, and through whichever handle: Postgres is the oracle.
func TestAnnouncedIsWhatIsCommitted(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			open := []pgx.Tx{tx}
			for step := range 25 {
				last := len(open) - 1
				switch rnd.IntN(5) {
				case 0:
					sp, err := open[rnd.IntN(len(open))].Begin(ctx) // also from an outer handle
					if err != nil {
						return err
					}
					open = append(open, sp)
				case 1, 2:
					if err := w.bus.Publish(ctx, open[rnd.IntN(len(open))], order(fmt.Sprint(rnd.Uint64(), step))); err != nil {
						return err
					}
				default:
					if last == 0 {
						continue
					}
					// An outer savepoint takes the inner ones with it.
					from := 1 + rnd.IntN(last)
					end := open[from].Commit
					if rnd.IntN(2) == 0 {
						end = open[from].Rollback
					}
					if err := end(ctx); err != nil {
						return err
					}
					open = open[:from]
				}
			}
			if rnd.IntN(5) == 0 {
				return errUndo
			}
			return nil
		})
		if err != nil && err != errUndo {
			t.Fatal(err)
		}
	}
	var logged []string
	for _, e := range w.logged() {
		logged = append(logged, e.AggregateID)
	}
	announced.want(t, logged...)
}

func TestFailedPublishDooms(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	objection := errors.New("out of stock")
	SubscribeInTx(w.bus, func(_ context.Context, _ pgx.Tx, e events.Event[stockReserved]) error { return objection })
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := w.bus.Publish(ctx, tx, order(1)); err != nil {
			return err
		}
		_ = w.bus.Publish(ctx, tx, stockReserved{"1"}) // swallowed
		return w.bus.Publish(ctx, tx, order(2))
	})
	says(t, err, ErrDoomed, "out of stock", "although nil was returned")
	says(t, err, objection)
	equal(t, w.loggedKeys())
	announced.want(t)
}

func TestFailedPublishInSavepoint(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[stockReserved]) error {
		_, err := tx.Exec(ctx, "SELECT 1/0")
		return err
	})
	try := func(ctx context.Context, tx pgx.Tx) error { // publishes a, then fails
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			if err := w.bus.Publish(ctx, tx, order("a")); err != nil {
				return err
			}
			return w.bus.Publish(ctx, tx, stockReserved{"a"})
		})
	}
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		says(t, try(ctx, tx), nil, "division by zero")
		return w.bus.Publish(ctx, tx, order("b"))
	})
	announced.want(t, "b")
	equal(t, w.loggedKeys(), "order.placed b")

	// Doomed before the savepoint stays doomed.
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		_ = w.bus.Publish(ctx, tx, order(""))
		_ = try(ctx, tx)
		return nil
	})
	says(t, err, ErrDoomed, "aggregate_id")
}

// pgx sends no ROLLBACK TO under a context that has ended, and what was to be
// undone would be committed with the rest.
func TestSavepointRollsBackUnderAnEndedContext(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		short, cancel := context.WithCancel(ctx)
		_ = pgx.BeginFunc(short, tx, func(tx pgx.Tx) error {
			if err := w.bus.Publish(ctx, tx, order("a")); err != nil {
				return err
			}
			cancel()
			return errUndo
		})
		return w.bus.Publish(ctx, tx, order("b"))
	})
	announced.want(t, "b")
	equal(t, w.loggedKeys(), "order.placed b")

	// A release that is not sent leaves effects behind that their owner believes gone.
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		short, cancel := context.WithCancel(ctx)
		err := pgx.BeginFunc(short, tx, func(tx pgx.Tx) error {
			cancel()
			return w.bus.Publish(ctx, tx, order("c"))
		})
		if err == nil {
			t.Error("released under an ended context")
		}
		return nil
	})
	says(t, err, ErrDoomed, "release a savepoint")
	equal(t, w.loggedKeys(), "order.placed b")
}

// The tx of InTx is a whole pgx.Tx.
func TestTransactionIsWhole(t *testing.T) {
	w := newWorld(t)
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			if _, err := tx.CopyFrom(ctx, pgx.Identifier{w.schema, "effects"}, []string{"id"}, pgx.CopyFromRows([][]any{{"copied"}})); err != nil {
				return err
			}
			batch := &pgx.Batch{}
			batch.Queue("INSERT INTO " + w.table() + " (id) VALUES ('batched')")
			if err := tx.SendBatch(ctx, batch).Close(); err != nil {
				return err
			}
			if _, err := tx.Prepare(ctx, "p", "INSERT INTO "+w.table()+" (id) VALUES ($1)"); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "p", "prepared"); err != nil {
				return err
			}
			large := tx.LargeObjects()
			oid, err := large.Create(ctx, 0)
			if err != nil {
				return err
			}
			if err := large.Unlink(ctx, oid); err != nil {
				return err
			}
			var n int
			if err := tx.QueryRow(ctx, "SELECT count(*) FROM "+w.table()).Scan(&n); err != nil || n != 3 {
				return fmt.Errorf("%d rows, %w", n, err)
			}
			return tx.Conn().Ping(ctx)
		})
	})
	equal(t, w.effects(), "batched", "copied", "prepared")
}

func TestBehindPgBouncerAndOn18(t *testing.T) {
	for _, server := range []testkit.Server{testkit.PgBouncer, testkit.PG18} {
		t.Run(string(server), func(t *testing.T) {
			w := newWorldAt(t, server, Config{})
			announced := w.announced()
			w.inTx(func(ctx context.Context, tx pgx.Tx) error {
				err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
					if err := w.bus.Publish(ctx, tx, order(1)); err != nil {
						return err
					}
					return errUndo
				})
				if err != errUndo {
					return err
				}
				many := slices.Repeat([]events.Payload{order(2)}, 10)
				return errors.Join(w.bus.Publish(ctx, tx, order(3)), w.bus.Publish(ctx, tx, many...))
			})
			announced.want(t, append([]string{"3"}, slices.Repeat([]string{"2"}, 10)...)...)
			if n := len(w.logged()); n != 11 {
				t.Fatalf("%d events in the log", n)
			}
		})
	}
}
