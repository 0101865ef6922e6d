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
	if err := clearAndRewind(ctx, pool, desk); err != nil {
		return err
	}
	return carriedOut(ctx, desk, desk.Resume)
}

// clearAndRewind leaves the handler paused at the beginning of the log, and the
// report without a row: neither is seen by a handler without the other.
func clearAndRewind(ctx context.Context, pool *pgxpool.Pool, desk *outbox.Desk) error {
	// Once this is carried out no event is handled, and no transaction of the handler
	// is open, in whatever process.
	if err := carriedOut(ctx, desk, desk.Pause); err != nil {
		return err
	}
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return sales.Report{}.Clear(ctx, tx) }); err != nil {
		return err
	}
	err := carriedOut(ctx, desk, func(ctx context.Context) (outbox.RequestID, error) { return desk.RewindTo(ctx, 1) })
	if errors.Is(err, outbox.ErrWrongWay) {
		return nil // it is at the beginning
	}
	return err
}

// carriedOut asks for something, and returns when it is done.
func carriedOut(ctx context.Context, desk *outbox.Desk, ask func(context.Context) (outbox.RequestID, error)) error {
	id, err := ask(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	request, err := desk.Wait(ctx, id)
	if err == nil && request.Refused() {
		err = fmt.Errorf("%s %s: %s", request.Action, reportName, request.Outcome)
	}
	return err
}
