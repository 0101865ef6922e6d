package handlers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/postbus/postbus/internal/reason"
)

// log writes one line about a result, without building it when nobody reads it.
func (r *Router) log(level slog.Level, text string, result HandlerResult) {
	ctx := context.Background()
	if !r.cfg.Logger.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("handler", result.Handler),
		slog.String("topic", result.Topic),
		slog.String("event_id", result.EventID.String()),
		slog.String("event_type", result.EventType),
		slog.String("outcome", result.Outcome.String()),
		slog.Int("attempts", result.Attempts),
	}
	r.cfg.Logger.LogAttrs(ctx, level, text, appendError(attrs, result.Err)...)
}

// onRetry is told of each attempt that failed and will be followed by another.
func (r *Router) onRetry(d *delivery, err error, wait time.Duration) {
	r.counters.retried.Add(1)
	attrs := []slog.Attr{
		slog.String("handler", d.Handler),
		slog.String("topic", d.Topic),
		slog.String("event_id", d.EventID.String()),
		slog.String("event_type", d.event.EventType),
		slog.Int("attempts", d.Attempt),
		slog.Duration("wait", wait),
	}
	r.cfg.Logger.LogAttrs(context.Background(), slog.LevelWarn, "an attempt failed: it is tried again", appendError(attrs, err)...)
}

func (r *Router) unknown(topic, eventType, replayFor string) {
	if replayFor != "" {
		return // for somebody else's handler
	}
	r.counters.unknownTypes.Add(1)
	r.cfg.Logger.Debug("no handler for an event type: acked", "topic", topic, "event_type", reason.Cut(eventType, 128))
}

func appendError(attrs []slog.Attr, err error) []slog.Attr {
	if err == nil {
		return attrs
	}
	attrs = append(attrs, slog.String("error", reason.Of(err)))
	var panicked *PanicError
	if errors.As(err, &panicked) {
		attrs = append(attrs, slog.String("stack", string(panicked.Stack)))
	}
	return attrs
}
