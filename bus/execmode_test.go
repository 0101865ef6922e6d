package bus

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

// A commit, a rollback, a savepoint taken back, several events at once: in every exec
// mode of pgx, and through PgBouncer in all but the one whose prepared statements it
// loses. A transaction stays on its connection.
func TestPublishInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
			pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
			if which == testkit.PgBouncer && mode == pgx.QueryExecModeCacheStatement {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", which, mode), func(t *testing.T) {
				t.Parallel()
				w := newWorldAt(t, which, Config{})
				w.pool = testkit.As(t, testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }), testkit.App)
				announced := w.announced()
				SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
					return w.insert(ctx, tx, e.Data.OrderID)
				})
				w.inTx(func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order(1)) })
				undo := errors.New("undo")
				w.inTx(func(ctx context.Context, tx pgx.Tx) error {
					err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return errors.Join(w.bus.Publish(ctx, tx, order("not")), undo) })
					if !errors.Is(err, undo) {
						return err
					}
					return w.bus.Publish(ctx, tx, order(2), order(3))
				})
				if err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
					return errors.Join(w.bus.Publish(ctx, tx, order("nor this")), undo)
				}); !errors.Is(err, undo) {
					t.Error(err)
				}
				equal(t, w.loggedKeys(), "order.placed 1", "order.placed 2", "order.placed 3")
				equal(t, w.effects(), "1", "2", "3")
				announced.want(t, "1", "2", "3")
			})
		}
	}
}
