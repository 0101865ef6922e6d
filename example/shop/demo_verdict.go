package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// verdict is what became of the committed events, as the ledger has it.
type verdict struct {
	committed, published, handled, effects int // distinct events
	lost, doubled, disorder, phantom       int
	poisoned, replayed, redelivered        int
	projectionDiff                         int // rows

	evidence []string // a few of what is lost, doubled, ...
}

// The numbers of events. The first is the domain's own count and knows nothing of
// ids, outbox or broker; the others must come to the same.
const (
	countCommitted = `SELECT coalesce(sum(version), 0) FROM ledger_business`
	countPublished = `SELECT count(DISTINCT event_id) FROM ledger_published`
	// Handled: settled in each handler that has to.
	countHandled = `
		SELECT count(DISTINCT event_id) FROM inbox WHERE state = 'handled' AND event_id NOT IN (
			SELECT c.event_id FROM ledger_committed c JOIN ledger_duty d USING (event_type)
			LEFT JOIN inbox i ON i.handler = d.handler AND i.event_id = c.event_id AND i.state = 'handled'
			WHERE i.event_id IS NULL)`
	countEffects = `SELECT count(DISTINCT event_id) FROM ledger_effect`
)

// What must not be. Each row of an answer is one case, in words.
const (
	// Lost: committed, and without one of its effects.
	findLost = `
		SELECT DISTINCT ON (b.aggregate, v) format('version %s of %s (event %s) has no effect in %s', v, b.aggregate,
			coalesce(c.event_id::text, 'without a witness'), coalesce(d.handler, 'any handler'))
		FROM ledger_business b CROSS JOIN generate_series(1, b.version) v
		LEFT JOIN ledger_committed c ON c.aggregate = b.aggregate AND c.version = v
		LEFT JOIN ledger_duty d ON d.event_type = c.event_type AND d.effect
		LEFT JOIN ledger_effect e ON e.event_id = c.event_id AND e.handler = d.handler
		WHERE e.event_id IS NULL ORDER BY b.aggregate, v`
	// Doubled: one event had its effect in one handler more than once.
	findDoubled = `
		SELECT format('event %s has had its effect in %s %s times', event_id, handler, count(*))
		FROM ledger_effect GROUP BY event_id, handler HAVING count(*) > 1`
	// Disorder: first tried when a later event of its aggregate had been tried.
	findDisorder = `
		SELECT format('version %s of %s (event %s) was first tried after version %s', version, aggregate, event_id, highest)
		FROM (SELECT *, max(version) OVER (PARTITION BY aggregate ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS highest
			FROM (SELECT DISTINCT ON (event_id) * FROM ledger_attempt ORDER BY event_id, seq) AS first_attempts) AS in_turn
		WHERE version <= highest`
	// Phantom: seen somewhere, and never committed.
	findPhantom = `
		SELECT format('event %s was never committed and is in %s', event_id, string_agg(DISTINCT place, ', ' ORDER BY place))
		FROM (SELECT event_id, 'the broker' AS place FROM ledger_published
			UNION ALL SELECT event_id, 'the poison queue' FROM ledger_poisoned
			UNION ALL SELECT event_id, 'the deliveries' FROM ledger_delivery
			UNION ALL SELECT event_id, 'the attempts' FROM ledger_attempt
			UNION ALL SELECT event_id, 'the inbox' FROM inbox
			UNION ALL SELECT event_id, 'the effects' FROM ledger_effect) AS seen
		WHERE event_id NOT IN (
			SELECT c.event_id FROM ledger_committed c JOIN ledger_business b USING (aggregate) WHERE c.version BETWEEN 1 AND b.version)
		GROUP BY event_id`
)

// Where the report, which a durable handler has put together of events, is not what
// the orders say. Each row is one article, in words.
const findProjectionDiff = `
	SELECT format('the report of %s says (%s), the orders say (%s)', sku, concat_ws(', ', r.placed, r.paid, r.cancelled, r.sold, r.cents),
		concat_ws(', ', o.placed, o.paid, o.cancelled, o.sold, o.cents))
	FROM sales r FULL JOIN (
		SELECT sku, count(*) AS placed, count(*) FILTER (WHERE state = 'paid') AS paid, count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
			coalesce(sum(quantity) FILTER (WHERE state = 'paid'), 0) AS sold, sum(cents) AS cents
		FROM orders GROUP BY sku) o USING (sku)
	WHERE (r.placed, r.paid, r.cancelled, r.sold, r.cents) IS DISTINCT FROM (o.placed, o.paid, o.cancelled, o.sold, o.cents)
	ORDER BY sku`

// What was provoked. A poisoning is an event in a handler: the queue may hold
// several copies of it.
const (
	poisonings = `(SELECT event_id, handler FROM ledger_delivery WHERE outcome = 'poisoned'
		UNION SELECT event_id, handler FROM ledger_poisoned) AS poisonings`
	countPoisoned = `SELECT count(*) FROM ` + poisonings
	countReplayed = `
		SELECT count(*) FROM ` + poisonings + ` WHERE (event_id, handler) IN (
			SELECT event_id, handler FROM ledger_delivery WHERE replayed AND outcome = 'handled')`
	countRedelivered = `
		SELECT coalesce(sum(deliveries - 1), 0) FROM (
			SELECT max(n) AS deliveries FROM (
				SELECT event_id, count(*) AS n FROM ledger_delivery GROUP BY event_id, handler) AS per_handler
			GROUP BY event_id) AS per_event`
)

// database is a pool, or a transaction.
type database interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// judge reads the ledger. Everything must have come to rest.
func judge(ctx context.Context, db database) (v verdict, err error) {
	if _, err := db.Exec(ctx, `ANALYZE ledger_committed, ledger_published, ledger_delivery, ledger_attempt, ledger_entry, parcels, inbox`); err != nil {
		return v, fmt.Errorf("read the ledger: %w", err)
	}
	for _, q := range []struct {
		number *int
		sql    string
	}{
		{&v.committed, countCommitted}, {&v.published, countPublished}, {&v.handled, countHandled}, {&v.effects, countEffects},
		{&v.poisoned, countPoisoned}, {&v.replayed, countReplayed}, {&v.redelivered, countRedelivered},
	} {
		if err := db.QueryRow(ctx, q.sql).Scan(q.number); err != nil {
			return v, fmt.Errorf("read the ledger: %w", err)
		}
	}
	for _, q := range []struct {
		number *int
		sql    string
	}{{&v.lost, findLost}, {&v.doubled, findDoubled}, {&v.disorder, findDisorder}, {&v.phantom, findPhantom}, {&v.projectionDiff, findProjectionDiff}} {
		rows, _ := db.Query(ctx, q.sql) // CollectRows gives its error
		cases, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return v, fmt.Errorf("read the ledger: %w", err)
		}
		*q.number = len(cases)
		v.evidence = append(v.evidence, cases[:min(len(cases), 3)]...)
	}
	return v, nil
}

// faults says in words what is wrong and where to look; none if all is well.
func (v verdict) faults() (faults []string) {
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	fault(v.committed == 0, "nothing was committed: look at the clerks")
	fault(v.lost > 0, "lost=%d: look at the outbox, the relay's position and the inbox", v.lost)
	fault(v.doubled > 0, "doubled=%d: look at the inbox and the transaction of HandleTx", v.doubled)
	fault(v.disorder > 0, "disorder=%d: look at the locks of the domain, the relay's lanes and the subscriber", v.disorder)
	fault(v.phantom > 0, "phantom=%d: look at how rounds are read and at rolled back transactions", v.phantom)
	fault(v.published != v.committed, "published=%d of %d: look at the relay and its parked events", v.published, v.committed)
	fault(v.handled != v.committed, "handled=%d of %d: look at the router and the poison queue", v.handled, v.committed)
	fault(v.effects != v.committed, "effects=%d of %d: look at the ledger handlers", v.effects, v.committed)
	fault(v.poisoned != 1, "poisoned=%d instead of 1: look at the poison queue and the handlers' errors", v.poisoned)
	fault(v.replayed != 1, "replayed=%d instead of 1: look at the replayer", v.replayed)
	fault(v.redelivered < 1, "redelivered=0, although a duplicate was forced: look at the subscriber")
	fault(v.projectionDiff > 0, "projection_diff=%d: look at the durable handler of the report, its position and its rebuild", v.projectionDiff)
	return faults
}

func (v verdict) ok() bool { return len(v.faults()) == 0 }

// line is the last line of the demonstration.
func (v verdict) line() string {
	numbers := fmt.Sprintf("committed=%d published=%d handled=%d effects=%d lost=%d doubled=%d disorder=%d phantom=%d poisoned=%d replayed=%d redelivered=%d projection_diff=%d",
		v.committed, v.published, v.handled, v.effects, v.lost, v.doubled, v.disorder, v.phantom, v.poisoned, v.replayed, v.redelivered, v.projectionDiff)
	if faults := v.faults(); len(faults) > 0 {
		return "demo: FAILED " + numbers + " (" + faults[0] + ")"
	}
	return "demo: ok " + numbers
}

// print writes the table, and below it what is wrong, if anything.
func (v verdict) print(out io.Writer) {
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"events", "", "counted in"})
	t.AppendRow(table.Row{"committed", v.committed, "the versions of the shop's own rows"})
	t.AppendRow(table.Row{"published", v.published, "what the broker has held: distinct ids"})
	t.AppendRow(table.Row{"handled", v.handled, "the inbox: settled in every handler"})
	t.AppendRow(table.Row{"effects", v.effects, "the rows that handlers have written"})
	t.AppendSeparator()
	t.AppendRow(table.Row{"lost", v.lost, "committed, without an effect"})
	t.AppendRow(table.Row{"doubled", v.doubled, "in effect more than once in a handler"})
	t.AppendRow(table.Row{"disorder", v.disorder, "first tried after a later one of its aggregate"})
	t.AppendRow(table.Row{"phantom", v.phantom, "delivered, and never committed"})
	t.AppendSeparator()
	t.AppendRow(table.Row{"poisoned", v.poisoned, "given up by a handler, on purpose"})
	t.AppendRow(table.Row{"replayed", v.replayed, "and handled after the fix"})
	t.AppendRow(table.Row{"redelivered", v.redelivered, "deliveries beyond the first: kill -9, duplicate, replay"})
	t.AppendSeparator()
	t.AppendRow(table.Row{"projection diff", v.projectionDiff, "articles whose report is not what the orders say"})
	t.Render()
	for _, words := range append(v.faults(), v.evidence...) {
		fmt.Fprintln(out, "  "+words)
	}
}
