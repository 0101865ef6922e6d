package bus

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"

	"github.com/postbus/postbus/events"
)

// announcement is one call of an after-commit handler that is due.
type announcement struct {
	ctx     context.Context // of Publish, for its values
	parent  *link           // what was being handled when the event was published
	event   *occurrence
	handler *Subscription
}

// runAfterCommit makes the calls, in the order of publication, and survives
// whatever the handlers do.
func runAfterCommit(due []announcement) {
	for i, a := range due {
		// A handler that ends the goroutine ends InTx with it. The others are then
		// called on the way out: their events are committed too.
		a.call(func() { runAfterCommit(due[i+1:]) })
	}
}

func (a announcement) call(onExit func()) {
	b, e, name := a.handler.bus, a.event.envelope, a.handler.info.Handler
	ctx := events.ContextHandling(context.WithoutCancel(a.ctx), *e)
	ctx = withFrame(ctx, frame{chain: a.parent.next(e.EventType)})
	if b.afterCommitTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, b.afterCommitTimeout)
		defer cancel()
	}
	failed := func(err error) {
		b.tellAfterCommitError(ctx, &HandlerError{
			Kind: KindAfterCommit, Handler: name, EventType: e.EventType, EventID: e.EventID, AfterCommit: true, Err: err,
		})
	}
	err := protect(name, e.EventID, func() error { return a.handler.call(ctx, a.event.to(a.handler, nil)) }, func() {
		failed(errExited)
		onExit()
	})
	if err != nil {
		failed(err)
	}
}

// tellAfterCommitError calls the hook, which is the user's and may panic as well.
func (b *EventBus) tellAfterCommitError(ctx context.Context, err *HandlerError) {
	defer func() {
		if v := recover(); v != nil {
			b.logger.LogAttrs(ctx, slog.LevelError, "Config.OnAfterCommitError panicked",
				slog.Any("panic", v), slog.String("stack", string(debug.Stack())), slog.Any("error", err))
		}
	}()
	b.onAfterCommitError(ctx, err)
}

// logAfterCommitError is the default hook. An error is a warning: the
// transaction stands, and what was missed is best effort. A panic is a mistake in
// the program, which a person must correct.
func (b *EventBus) logAfterCommitError(ctx context.Context, err *HandlerError) {
	level := slog.LevelWarn
	attrs := []slog.Attr{
		slog.String("handler", err.Handler), slog.String("event_type", err.EventType),
		slog.String("event_id", err.EventID.String()), slog.Any("error", err.Err),
	}
	var panicked *PanicError
	if errors.As(err.Err, &panicked) {
		level = slog.LevelError
		attrs = append(attrs, slog.String("stack", string(panicked.Stack)))
	}
	b.logger.LogAttrs(ctx, level, "after-commit handler failed", attrs...)
}
