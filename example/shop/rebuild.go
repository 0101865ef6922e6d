package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/example/shop/internal/sales"
	"github.com/postbus/postbus/outbox"
)

// rebuildReport has the report written anew from the whole log, and returns when its
// handler has begun with that. Until it has caught up, readers see a part of it. If it
// is interrupted, call it again: the handler rests until then. What was given up or
// discarded stays out of the new report, too.
func rebuildReport(ctx context.Context, pool *pgxpool.Pool, schema, by string) error {
	desk, err := outbox.NewDesk(pool, reportName, outbox.DeskConfig{Schema: schema, By: by})
	if err != nil {
		return err
	}
	// What retention has taken from the log would be missing.
	if _, err := desk.PlanRewind(ctx, 1); err != nil && !errors.Is(err, outbox.ErrWrongWay) {
		return err
	}
	for {
		rewound, err := clearAndRewind(ctx, pool, desk)
		if err != nil {
			return err
		}
		if err := carriedOut(ctx, desk, desk.Resume); err != nil || rewound {
			return err
		}
	}
}

// clearAndRewind leaves the handler paused at the beginning of the log, and the
// report without a row: neither is seen by a handler without the other.
func clearAndRewind(ctx context.Context, pool *pgxpool.Pool, desk *outbox.Desk) (rewound bool, err error) {
	// Once this is carried out no event is handled, and no transaction of the handler
	// is open, in whatever process.
	if err := carriedOut(ctx, desk, desk.Pause); err != nil {
		return false, err
	}
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return sales.Report{}.Clear(ctx, tx) }); err != nil {
		return false, err
	}
	rewind, err := desk.RewindTo(ctx, 1)
	if errors.Is(err, outbox.ErrWrongWay) {
		return true, nil // it is at the beginning
	}
	if err != nil {
		return false, err
	}
	err = done(ctx, desk, rewind, 3*time.Second)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err == nil, err
	}
	// The pause fell among the late events of a round, which a rewind waits for. When
	// they have been handled, all this is to be done once more.
	if err := carriedOut(ctx, desk, desk.Resume); err != nil {
		return false, err
	}
	return false, done(ctx, desk, rewind, time.Minute)
}

// carriedOut asks for something, and returns when it is done.
func carriedOut(ctx context.Context, desk *outbox.Desk, ask func(context.Context) (outbox.RequestID, error)) error {
	id, err := ask(ctx)
	if err != nil {
		return err
	}
	return done(ctx, desk, id, time.Minute)
}

func done(ctx context.Context, desk *outbox.Desk, id outbox.RequestID, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	request, err := desk.Wait(ctx, id)
	if err == nil && request.Refused() {
		err = fmt.Errorf("%s %s: %s", request.Action, reportName, request.Outcome)
	}
	return err
}
