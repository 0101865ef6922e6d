package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// lease says who should move a position. It cannot keep a frozen holder from
// waking up later; the chain does that. It is a row and not an advisory lock,
// which PgBouncer and a dropped connection would lose.
type lease struct {
	db     *database
	who    owner
	slots  slotRange
	holder uuid.UUID
	length time.Duration

	// until is the local deadline, in the process's monotonic clock since start.
	// It counts from before the statement was sent, so it lies before the
	// database's expiry whatever the network does.
	start time.Time
	until atomic.Int64

	takeSQL, renewSQL, giveUpSQL string
}

func newLease(db *database, who owner, slots slotRange, holder uuid.UUID, length time.Duration) *lease {
	t := db.table("relay_lease")
	return &lease{
		db: db, who: who, slots: slots, holder: holder, length: length, start: time.Now(),
		// clock_timestamp, so that no application's clock is ever compared with another's.
		takeSQL: `INSERT INTO ` + t + ` AS l (relay, slot_from, slot_to, holder, expires)
			VALUES ($1, $2, $3, $4::uuid, clock_timestamp() + $5::bigint * interval '1 microsecond')
			ON CONFLICT (relay, slot_from, slot_to) DO UPDATE SET holder = excluded.holder, expires = excluded.expires
			WHERE l.expires < clock_timestamp() OR l.holder = excluded.holder
			RETURNING true`,
		renewSQL: `UPDATE ` + t + ` SET expires = clock_timestamp() + $5::bigint * interval '1 microsecond'
			WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 AND holder = $4::uuid AND expires > clock_timestamp()
			RETURNING true`,
		giveUpSQL: `UPDATE ` + t + ` SET expires = '-infinity'
			WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 AND holder = $4::uuid`,
	}
}

// take tries once to get the lease; false: somebody else holds it.
func (l *lease) take(ctx context.Context) (bool, error) { return l.ask(ctx, "take", l.takeSQL) }

// renew prolongs it; false: it is lost.
func (l *lease) renew(ctx context.Context) (bool, error) { return l.ask(ctx, "renew", l.renewSQL) }

// renewInTime tries no longer than the lease lasts.
func (l *lease) renewInTime(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, l.left())
	defer cancel()
	return l.renew(ctx)
}

func (l *lease) ask(ctx context.Context, what, sql string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, min(l.db.timeout, l.length/2))
	defer cancel()
	asked := time.Since(l.start)
	var ok bool
	err := l.db.pool.QueryRow(ctx, sql, l.who.name, l.slots.from, l.slots.to, l.holder.String(), l.length.Microseconds()).Scan(&ok)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s the lease of %s: %w", what, l.who, explain(l.db.schema, err))
	}
	l.until.Store(int64(asked + l.length))
	return true, nil
}

// left is for how long the lease is certainly ours.
func (l *lease) left() time.Duration {
	return time.Duration(l.until.Load()) - time.Since(l.start)
}

// keep renews the lease every third of its length until ctx is done, and returns
// errLeaseLost as soon as it is not certainly ours any more.
func (l *lease) keep(ctx context.Context) error {
	every := time.NewTicker(l.length / 3)
	defer every.Stop()
	for {
		expired := time.NewTimer(l.left())
		select {
		case <-ctx.Done():
			expired.Stop()
			return nil
		case <-expired.C:
			return errLeaseLost
		case <-every.C:
			expired.Stop()
			ok, err := l.renewInTime(ctx)
			if err == nil && !ok {
				return errLeaseLost
			}
			// An error is no loss yet: the next try, or the deadline, decides.
		}
	}
}

// giveUp lets a standby take over at once. It is a courtesy: on an error the
// lease runs out by itself.
func (l *lease) giveUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(l.db.timeout, l.length/2))
	defer cancel()
	_, err := l.db.pool.Exec(ctx, l.giveUpSQL, l.who.name, l.slots.from, l.slots.to, l.holder.String())
	return err
}
