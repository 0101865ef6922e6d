package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func rigIn(t *testing.T, which testkit.Server, mode pgx.QueryExecMode) *rig {
	t.Helper()
	r := rigAt(t, testkit.Postgres(t, which), testkit.Schema(t, which))
	r.own = testkit.As(t, testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }), testkit.Consumer)
	return r
}

// Once, again, poisoned: the inbox in every exec mode of pgx, and through PgBouncer in
// those that it does.
func TestInboxInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
			pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
			if which == testkit.PgBouncer && (mode == pgx.QueryExecModeCacheStatement || mode == pgx.QueryExecModeDescribeExec) {
				continue // TestExecModeThatAPoolerBreaks
			}
			t.Run(fmt.Sprintf("%s/%s", which, mode), func(t *testing.T) {
				t.Parallel()
				r := rigIn(t, which, mode)
				router := r.router()
				handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
				handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
					return handlers.Permanent(errors.New("no"))
				})
				r.run(router)
				msg := messageOf(t, order(1))
				r.send(msg, msg.Copy())
				testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 2 }, "both are acked")
				if n := r.effectsOf("stock.reserve"); n != 1 {
					t.Errorf("%d effects", n)
				}
				if n := r.count("SELECT count(*) FROM " + pgx.Identifier{r.schema, "inbox"}.Sanitize()); n != 2 {
					t.Errorf("the inbox has %d rows, want one handled and one poisoned", n)
				}
			})
		}
	}
}

func TestExecModeThatAPoolerBreaks(t *testing.T) {
	t.Parallel()
	r := rigIn(t, testkit.PgBouncer, pgx.QueryExecModeDescribeExec)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := router.Run(ctx); !errors.Is(err, outbox.ErrExecMode) || !strings.Contains(err.Error(), "default_query_exec_mode=exec") {
		t.Errorf("Run: %v, want ErrExecMode and the way out", err)
	}
}
