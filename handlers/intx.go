package handlers

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/failpoint"
)

type txKey struct{}

// TxFrom is the transaction that InTx has opened for the handler, nil outside of
// one. The handler writes its effects through it and returns; InTx commits or
// rolls back.
func TxFrom(ctx context.Context) pgx.Tx {
	tx, _ := ctx.Value(txKey{}).(pgx.Tx)
	return tx
}

// InTx runs the handler inside a transaction that first records the event as
// handled, and commits both or neither: the effects happen once. A concurrent
// duplicate waits for the first one's end, up to the inbox's timeout: it does
// nothing if that commits, and runs if it rolls back.
//
// A commit whose answer is lost postpones the message; the inbox knows at the
// redelivery. So does a database that cannot be reached, also when it goes away
// under the handler. It belongs inside Retry and outside of Timeout.
func InTx(inbox *Inbox) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			d, done := ensureDelivery(msg)
			defer done()
			k, err := d.key()
			if err != nil {
				return nil, err
			}
			failpoint.Hit(fpBeforeInsert)
			ctx := msg.Context()
			tx, fresh, err := inbox.begin(ctx, k, d.Replayed)
			if err != nil {
				return nil, postponed("begin the transaction of %s: %w", d, err)
			}
			if !fresh {
				d.duplicate = true
				d.Attempt = max(d.Attempt-1, 0) // it did not come to it
				return nil, nil
			}
			failpoint.Hit(fpAfterInsert)
			msg.SetContext(context.WithValue(ctx, txKey{}, tx))
			out, err := next(msg)
			msg.SetContext(ctx)
			if err != nil {
				return nil, tx.abandon(inbox.timeout, err)
			}
			failpoint.Hit(fpAfterEffects)
			if err := tx.finish(inbox.timeout); err != nil {
				return nil, err
			}
			failpoint.Hit(fpAfterCommit)
			return out, nil
		}
	}
}
