package main

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/example/shop/internal/order"
	"github.com/postbus/postbus/example/shop/internal/payment"
	"github.com/postbus/postbus/example/shop/internal/sales"
	"github.com/postbus/postbus/example/shop/internal/stock"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// A day on which all went well: customer a has placed two orders, paid one and
// cancelled the other; customer b has placed one. The order paid was poisoned in
// stock.ship and replayed; event 3 was delivered twice. The report says so, too.
const goodDay = `
INSERT INTO accounts VALUES ('a', 4), ('b', 1);
INSERT INTO wallets VALUES ('a', 1, 100);
INSERT INTO orders (customer_id, sku, quantity, cents, state) VALUES ('a', 'lamp', 2, 100, 'paid'), ('a', 'lamp', 1, 50, 'cancelled'), ('b', 'globe', 3, 900, 'open');
INSERT INTO sales VALUES ('lamp', 2, 1, 1, 2, 150), ('globe', 1, 0, 0, 0, 900);
INSERT INTO ledger_committed VALUES
	('00000000-0000-0000-0000-000000000001', 'order.placed', 'order/a', 1),
	('00000000-0000-0000-0000-000000000002', 'order.placed', 'order/a', 2),
	('00000000-0000-0000-0000-000000000003', 'order.paid', 'order/a', 3),
	('00000000-0000-0000-0000-000000000004', 'order.cancelled', 'order/a', 4),
	('00000000-0000-0000-0000-000000000005', 'order.placed', 'order/b', 1),
	('00000000-0000-0000-0000-000000000006', 'payment.received', 'payment/a', 1);
INSERT INTO ledger_published SELECT split_part(aggregate, '/', 1), event_id::text, event_id FROM ledger_committed;
INSERT INTO ledger_published VALUES ('order', 'again', '00000000-0000-0000-0000-000000000003');
INSERT INTO ledger_attempt (event_id, aggregate, version) SELECT event_id, aggregate, version FROM ledger_committed ORDER BY event_id;
INSERT INTO ledger_attempt (event_id, aggregate, version) VALUES ('00000000-0000-0000-0000-000000000002', 'order/a', 2);
INSERT INTO inbox (handler, event_id, state) SELECT handler, event_id, 'handled' FROM ledger_committed JOIN ledger_duty USING (event_type);
INSERT INTO ledger_entry SELECT handler, event_id FROM ledger_committed JOIN ledger_duty USING (event_type) WHERE handler LIKE 'ledger.%';
INSERT INTO parcels (order_id, label, reference) VALUES (1, 'label', '00000000-0000-0000-0000-000000000003');
INSERT INTO ledger_delivery
	SELECT handler, event_id, CASE handler WHEN 'stock.ship' THEN 'poisoned' ELSE 'handled' END, false FROM ledger_committed JOIN ledger_duty USING (event_type);
INSERT INTO ledger_delivery VALUES
	('stock.ship', '00000000-0000-0000-0000-000000000003', 'handled', true),
	('ledger.order.paid', '00000000-0000-0000-0000-000000000003', 'duplicate', false);
INSERT INTO ledger_poisoned VALUES ('order.poison', '1', '00000000-0000-0000-0000-000000000003', 'stock.ship');`

func TestJudge(t *testing.T) {
	t.Parallel()
	pool := oracle(t)
	good := verdict{committed: 6, published: 6, handled: 6, effects: 6, poisoned: 1, replayed: 1, redelivered: 1}
	for _, c := range []struct {
		name   string
		spoil  string // what befalls the good day
		expect func(v *verdict)
	}{
		{"a good day", ``, func(*verdict) {}},
		{"an event was never handled", `
			DELETE FROM ledger_entry WHERE event_id = '00000000-0000-0000-0000-000000000004';
			DELETE FROM inbox WHERE event_id = '00000000-0000-0000-0000-000000000004';
			DELETE FROM ledger_published WHERE event_id = '00000000-0000-0000-0000-000000000004'`,
			func(v *verdict) { v.lost, v.published, v.handled, v.effects = 1, 5, 5, 5 }},
		{"the last effect of one of two handlers is missing", `DELETE FROM parcels`,
			func(v *verdict) { v.lost = 1 }},
		{"the outbox has lost an event and its witness", `
			DELETE FROM ledger_committed WHERE event_id = '00000000-0000-0000-0000-000000000005';
			DELETE FROM ledger_entry WHERE event_id = '00000000-0000-0000-0000-000000000005';
			DELETE FROM inbox WHERE event_id = '00000000-0000-0000-0000-000000000005';
			DELETE FROM ledger_attempt WHERE event_id = '00000000-0000-0000-0000-000000000005';
			DELETE FROM ledger_delivery WHERE event_id = '00000000-0000-0000-0000-000000000005';
			DELETE FROM ledger_published WHERE event_id = '00000000-0000-0000-0000-000000000005'`,
			func(v *verdict) { v.lost, v.published, v.handled, v.effects = 1, 5, 5, 5 }},
		{"a letter was never sent", `DELETE FROM inbox WHERE handler = 'mail.receipt'`,
			func(v *verdict) { v.handled = 5 }},
		{"a letter is still in the poison queue", `
			UPDATE inbox SET state = 'poisoned' WHERE handler = 'mail.receipt';
			UPDATE ledger_delivery SET outcome = 'poisoned' WHERE handler = 'mail.receipt'`,
			func(v *verdict) { v.handled, v.poisoned = 5, 2 }},
		{"an effect has happened twice", `INSERT INTO ledger_entry VALUES ('ledger.order.placed', '00000000-0000-0000-0000-000000000001')`,
			func(v *verdict) { v.doubled = 1 }},
		{"two parcels were sent", `INSERT INTO parcels (order_id, label, reference) SELECT order_id, label, reference FROM parcels`,
			func(v *verdict) { v.doubled = 1 }},
		{"two events have changed places", `
			UPDATE ledger_attempt SET seq = seq + 1000 WHERE event_id = '00000000-0000-0000-0000-000000000002'`,
			func(v *verdict) { v.disorder = 1 }},
		{"the first came last", `
			UPDATE ledger_attempt SET seq = seq + 1000 WHERE event_id = '00000000-0000-0000-0000-000000000001'`,
			func(v *verdict) { v.disorder = 1 }},
		{"all came the wrong way round", `
			UPDATE ledger_attempt SET seq = -seq`,
			func(v *verdict) { v.disorder = 2 }},
		{"a rolled back event is with the broker", `
			INSERT INTO ledger_published VALUES ('order', 'phantom', '00000000-0000-0000-0000-000000000099')`,
			func(v *verdict) { v.phantom, v.published = 1, 7 }},
		{"a rolled back event was handled in the place of a later one", `
			INSERT INTO ledger_delivery VALUES ('ledger.order.placed', '00000000-0000-0000-0000-000000000099', 'handled', false);
			INSERT INTO ledger_attempt (event_id, aggregate, version) VALUES ('00000000-0000-0000-0000-000000000099', 'order/b', 1);
			INSERT INTO ledger_entry VALUES ('ledger.order.placed', '00000000-0000-0000-0000-000000000099');
			INSERT INTO inbox (handler, event_id, state) VALUES ('ledger.order.placed', '00000000-0000-0000-0000-000000000099', 'handled')`,
			func(v *verdict) { v.phantom, v.disorder, v.effects, v.handled = 1, 1, 7, 7 }},
		{"the domain's rows were rolled back and the event was not", `UPDATE accounts SET version = 3 WHERE customer_id = 'a'`,
			func(v *verdict) { v.phantom, v.committed = 1, 5 }},
		{"the queue has a second copy of the poisoning", `INSERT INTO ledger_poisoned SELECT topic, '2', event_id, handler FROM ledger_poisoned`,
			func(*verdict) {}},
		{"a poisoning that nobody was told of is in the queue", `
			INSERT INTO ledger_poisoned VALUES ('order.poison', '2', '00000000-0000-0000-0000-000000000001', 'ledger.order.placed')`,
			func(v *verdict) { v.poisoned = 2 }},
		{"nothing was poisoned", `DELETE FROM ledger_poisoned; UPDATE ledger_delivery SET outcome = 'handled'`,
			func(v *verdict) { v.poisoned, v.replayed = 0, 0 }},
		{"the poisoned event was not replayed", `DELETE FROM ledger_delivery WHERE replayed`,
			func(v *verdict) { v.replayed = 0 }},
		{"nothing came twice", `DELETE FROM ledger_delivery WHERE replayed OR outcome = 'duplicate'`,
			func(v *verdict) { v.replayed, v.redelivered = 0, 0 }},
		{"the report has counted an event twice", `UPDATE sales SET cancelled = 2 WHERE sku = 'lamp'`,
			func(v *verdict) { v.projectionDiff = 1 }},
		{"the report has counted a rebuild on top of what there was", `UPDATE sales SET placed = 2 * placed, paid = 2 * paid, cancelled = 2 * cancelled, sold = 2 * sold, cents = 2 * cents`,
			func(v *verdict) { v.projectionDiff = 2 }},
		{"the report is right in numbers and wrong in money", `UPDATE sales SET cents = cents - 1 WHERE sku = 'globe'`,
			func(v *verdict) { v.projectionDiff = 1 }},
		{"the report knows of an article that nobody has ordered", `INSERT INTO sales (sku, placed) VALUES ('first-edition', 1)`,
			func(v *verdict) { v.projectionDiff = 1 }},
		{"the report has not heard of an article", `DELETE FROM sales WHERE sku = 'globe'`,
			func(v *verdict) { v.projectionDiff = 1 }},
		{"the report was cleared and not written anew", `TRUNCATE sales`,
			func(v *verdict) { v.projectionDiff = 2 }},
		{"nothing happened", `TRUNCATE sales, accounts, wallets, ledger_committed, ledger_published, ledger_poisoned, ledger_delivery, ledger_attempt, ledger_entry, parcels, inbox CASCADE`,
			func(v *verdict) { *v = verdict{} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background()) // each case begins with an empty ledger
			if _, err := tx.Exec(t.Context(), `ALTER SEQUENCE ledger_attempt_seq_seq RESTART; `+goodDay+c.spoil); err != nil {
				t.Fatal(err)
			}
			got, err := judge(t.Context(), tx)
			if err != nil {
				t.Fatal(err)
			}
			if n := got.lost + got.doubled + got.disorder + got.phantom + got.projectionDiff; len(got.evidence) != min(n, 3) {
				t.Errorf("%d cases, evidence %q", n, got.evidence)
			}
			want := good
			c.expect(&want)
			isGood := reflect.DeepEqual(want, good)
			want.evidence = got.evidence
			if !reflect.DeepEqual(got, want) {
				t.Errorf("judged %+v\nexpected %+v", got, want)
			}
			if got.ok() != isGood {
				t.Errorf("ok: %t; faults %q", got.ok(), got.faults())
			}
			start := "demo: FAILED committed="
			if isGood {
				start = "demo: ok committed=6 published=6 handled=6 effects=6 lost=0 doubled=0 disorder=0 phantom=0 poisoned=1 replayed=1 redelivered=1 projection_diff=0"
			}
			if !strings.HasPrefix(got.line(), start) || isGood && got.line() != start {
				t.Errorf("the line is %q", got.line())
			}
		})
	}
}

// oracle is an empty ledger in a schema of the test's own.
func oracle(t *testing.T) *pgxpool.Pool {
	t.Helper()
	schema := testkit.Schema(t)
	pool := testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.RuntimeParams["search_path"] = schema
		cfg.ConnConfig.RuntimeParams["jit"] = "off"
	})
	if err := migrations.Up(t.Context(), pool, schema); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), order.Tables+payment.Tables+stock.Tables+sales.Tables); err != nil {
		t.Fatal(err)
	}
	l := &ledger{pool: pool}
	for _, eventType := range []string{"order.placed", "order.paid", "order.cancelled", "payment.received"} {
		l.duty(eventType, "ledger."+eventType, true)
	}
	l.duty("order.placed", "mail.confirmation", false)
	l.duty("payment.received", "mail.receipt", false)
	l.duty("order.paid", "stock.ship", true)
	if err := l.install(t.Context()); err != nil {
		t.Fatal(err)
	}
	return pool
}
