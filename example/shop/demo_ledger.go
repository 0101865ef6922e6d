package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	watermillredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/outbox"
)

// ledgerTables is where the run writes down what it sees, to be judged at the
// end by judge. None of it is read by the shop or by Postbus.
const ledgerTables = `
-- What the domain says: each aggregate counts its own events, under its lock.
CREATE VIEW ledger_business AS
    SELECT 'order/' || customer_id AS aggregate, version FROM accounts
    UNION ALL SELECT 'payment/' || customer_id, version FROM wallets;
-- The id of each of them, written by a witness in the same transaction.
CREATE TABLE ledger_committed (
    event_id   uuid   PRIMARY KEY,
    event_type text   NOT NULL,
    aggregate  text   NOT NULL,
    version    bigint NOT NULL,
    UNIQUE (aggregate, version)
);
-- Which handlers an event of a type must have gone through, and whether they
-- leave an effect in this database.
CREATE TABLE ledger_duty (event_type text, handler text, effect boolean, PRIMARY KEY (event_type, handler));
-- What was found in the streams at the end, and in the poison queues.
CREATE TABLE ledger_published (stream text, entry text, event_id uuid NOT NULL, PRIMARY KEY (stream, entry));
CREATE TABLE ledger_poisoned (stream text, entry text, event_id uuid NOT NULL, handler text NOT NULL, PRIMARY KEY (stream, entry));
-- Each delivery to each handler, and how it ended.
CREATE TABLE ledger_delivery (handler text, event_id uuid NOT NULL, outcome text NOT NULL, replayed boolean NOT NULL);
CREATE INDEX ON ledger_delivery (event_id);
-- Each call of a ledger handler, written before anything else and outside of its
-- transaction, so that failed ones are seen too.
CREATE TABLE ledger_attempt (
    seq       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id  uuid   NOT NULL,
    aggregate text   NOT NULL,
    version   bigint NOT NULL
);
-- What handlers have done. No key keeps out a second effect of one event: it is to be seen.
CREATE TABLE ledger_entry (handler text NOT NULL, event_id uuid NOT NULL);
CREATE VIEW ledger_effect AS
    SELECT handler, event_id FROM ledger_entry
    UNION ALL SELECT 'stock.ship', reference::uuid FROM parcels;`

// ledger writes it down.
type ledger struct {
	pool   *pgxpool.Pool
	duties [][3]any
	calls  atomic.Int64 // of ledger handlers
	onFail func(error)  // told when something could not be written down: the count would not be true
}

// install creates the tables and notes the duties; after the shop's Install.
func (l *ledger) install(ctx context.Context) error {
	if _, err := l.pool.Exec(ctx, ledgerTables); err != nil {
		return fmt.Errorf("create the ledger: %w", err)
	}
	for _, duty := range l.duties {
		if _, err := l.pool.Exec(ctx, `INSERT INTO ledger_duty VALUES ($1, $2, $3)`, duty[0], duty[1], duty[2]); err != nil {
			return fmt.Errorf("note the duties of handlers: %w", err)
		}
	}
	return nil
}

// duty notes that events of a type must go through a handler.
func (l *ledger) duty(eventType, handler string, effect bool) {
	l.duties = append(l.duties, [3]any{eventType, handler, effect})
}

// watch adds a witness to the bus and a bookkeeper to the router, for events of
// one type, beside the shop's own handlers.
func watch[T events.Payload](l *ledger, s *Shop, version func(T) int64) {
	var zero T
	handler := "ledger." + zero.EventType()
	l.duty(zero.EventType(), handler, true)

	bus.SubscribeInTx(s.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[T]) error {
		_, err := tx.Exec(ctx, `INSERT INTO ledger_committed VALUES ($1, $2, $3, $4)`, e.EventID, e.EventType, aggregate(e.DomainEvent), version(e.Data))
		return err
	})
	handlers.HandleTx(s.router, handler, func(ctx context.Context, tx pgx.Tx, e events.Event[T]) error {
		_, err := l.pool.Exec(ctx, `INSERT INTO ledger_attempt (event_id, aggregate, version) VALUES ($1, $2, $3)`, e.EventID, aggregate(e.DomainEvent), version(e.Data))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO ledger_entry VALUES ($1, $2)`, handler, e.EventID); err != nil {
			return err
		}
		// Some fail when all is done, once: their effects must go with them.
		if d, _ := handlers.DeliveryFrom(ctx); d.Attempt == 1 && l.calls.Add(1)%50 == 0 {
			return errors.New("made to fail after its effects")
		}
		return nil
	})
}

// aggregate is whose order an event has its place in.
func aggregate(e events.DomainEvent) string {
	return outbox.DefaultTopic(e.EventType) + "/" + e.AggregateID
}

// delivered is handlers.Config.OnResult.
func (l *ledger) delivered(r handlers.HandlerResult) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := l.pool.Exec(ctx, `INSERT INTO ledger_delivery VALUES ($1, $2, $3, $4)`, r.Handler, r.EventID, r.Outcome.String(), r.Replayed)
	if err != nil {
		l.onFail(fmt.Errorf("write down a delivery: %w", err))
	}
}

// readBack writes down what stands in the streams. The decoder is Watermill's
// own, so that ours is not its own witness.
func (l *ledger) readBack(ctx context.Context, client *redis.Client, streams ...string) error {
	for _, stream := range streams {
		entries, err := client.XRange(ctx, stream, "-", "+").Result()
		if err != nil {
			return fmt.Errorf("read stream %s back: %w", stream, err)
		}
		batch := &pgx.Batch{}
		for _, entry := range entries {
			msg, err := watermillredis.DefaultMarshallerUnmarshaller{}.Unmarshal(entry.Values)
			if err != nil {
				return fmt.Errorf("read entry %s of stream %s back: %w", entry.ID, stream, err)
			}
			e, err := events.Decode(msg.Payload)
			if err != nil {
				return fmt.Errorf("read entry %s of stream %s back: %w", entry.ID, stream, err)
			}
			switch handler := msg.Metadata[handlers.HeaderPoisonHandler]; {
			case !strings.HasSuffix(stream, handlers.DefaultPoisonTopic("")):
				batch.Queue(`INSERT INTO ledger_published VALUES ($1, $2, $3)`, stream, entry.ID, e.EventID)
			default:
				batch.Queue(`INSERT INTO ledger_poisoned VALUES ($1, $2, $3, $4)`, stream, entry.ID, e.EventID, handler)
			}
		}
		if err := l.pool.SendBatch(ctx, batch).Close(); err != nil {
			return fmt.Errorf("write down what stream %s holds: %w", stream, err)
		}
	}
	return nil
}
