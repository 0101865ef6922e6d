package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/postbus/postbus/events"
)

// The columns that an append fills. xid and id have defaults, which the
// application's role may not override.
const appendColumns = `slot, schema_version, event_id, topic, event_type, partition_key, content_type, headers, payload`

// contentType of the one JSON document.
const contentType = "application/json"

// Append writes evs to the log inside the caller's transaction, in the given
// order, and does nothing else: they are published if and only if tx commits.
// Every event is checked and encoded before the first statement, so that a
// refusal leaves tx as it was; an error of the database aborts tx as any failed
// statement does. The order of one key's events over several transactions is
// the order of those transactions if each takes the key's row lock before it
// appends, or if LogConfig.LockKeys has Append take a lock itself.
//
// tx may be a pgx transaction of any kind, direct or through PgBouncer.
func (l *Log) Append(ctx context.Context, tx pgx.Tx, evs ...events.DomainEvent) error {
	if len(evs) == 0 {
		return nil
	}
	if tx == nil {
		return fmt.Errorf("append %q %s: %w: the tx is nil, pass the one that your business rows are written in", evs[0].EventType, evs[0].EventID, ErrNoTransaction)
	}
	var err error
	if len(evs) == 1 {
		err = l.appendOne(ctx, tx, &evs[0])
	} else {
		err = l.appendMany(ctx, tx, evs)
	}
	if errors.Is(err, pgx.ErrTxClosed) {
		return fmt.Errorf("append %q %s: %w: the transaction is already committed or rolled back: %w", evs[0].EventType, evs[0].EventID, ErrNoTransaction, err)
	}
	return err
}

func (l *Log) appendOne(ctx context.Context, tx pgx.Tx, e *events.DomainEvent) error {
	buf := buffers.Get().(*[]byte)
	defer putBuffer(buf)
	document, err := l.encode((*buf)[:0], e)
	if err != nil {
		return err
	}
	*buf = document
	r, err := l.route(e)
	if err != nil {
		return err
	}
	if err := l.lockKeys(ctx, tx, *e); err != nil {
		return l.failed(evError(e), 1, err)
	}
	_, err = tx.Exec(ctx, l.insert, r.slot, int32(e.SchemaVersion), pgtype.UUID{Bytes: e.EventID, Valid: true}, r.topic, e.EventType, r.key, contentType, r.headers, document)
	if err != nil {
		return l.failed(evError(e), 1, err)
	}
	return nil
}

func (l *Log) failed(first string, n int, err error) error {
	if n > 1 {
		return fmt.Errorf("append %s and %d more: %w", first, n-1, explain(l.schema, err))
	}
	return fmt.Errorf("append %s: %w", first, explain(l.schema, err))
}

func evError(e *events.DomainEvent) string { return fmt.Sprintf("%q %s", e.EventType, e.EventID) }

// route is what the relay needs to know of an event without decoding it.
type route struct {
	slot    int16
	topic   string
	key     string
	headers *string
}

func (l *Log) route(e *events.DomainEvent) (route, error) {
	topic := l.topic(e.EventType)
	if !usableTopic(topic) {
		if err := e.Validate(); err != nil { // the event type may be what is wrong
			return route{}, err
		}
		return route{}, fmt.Errorf("append %s: its topic %.80q is not usable: LogConfig.Topic must give 1 to 249 letters, digits, dots, dashes or underscores", evError(e), topic)
	}
	key := e.Key()
	if key == "" { // which is no part of the document, so that encoding does not look
		return route{}, e.Validate()
	}
	return route{slot: slotOf(key), topic: topic, key: key, headers: traceHeaders(e.Metadata)}, nil
}

// encode checks e and appends its document to dst.
func (l *Log) encode(dst []byte, e *events.DomainEvent) ([]byte, error) {
	start := len(dst)
	dst, err := e.AppendTo(dst)
	if err == nil {
		err = e.CheckSize(len(dst)-start, l.maxBytes)
	}
	return dst, err
}

// traceHeaders copies what tracing needs out of the metadata, so that a broker's
// instrumentation finds it without decoding the document.
func traceHeaders(metadata map[string]string) *string {
	parent, ok := metadata["traceparent"]
	if !ok {
		return nil
	}
	h := map[string]string{"traceparent": parent}
	if state, ok := metadata["tracestate"]; ok {
		h["tracestate"] = state
	}
	b, err := json.Marshal(h)
	if err != nil {
		return nil // a map of strings always encodes
	}
	s := string(b)
	return &s
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

func putBuffer(b *[]byte) {
	if cap(*b) <= 1<<20 { // one huge event must not be kept for ever
		buffers.Put(b)
	}
}
