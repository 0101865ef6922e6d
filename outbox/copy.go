package outbox

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// The binary COPY format: signature, flags, header extension length; then per row
// the number of fields and per field its length (-1 for NULL) and its bytes; then
// a trailer of -1. https://www.postgresql.org/docs/current/sql-copy.html
var (
	copyHeader  = append([]byte("PGCOPY\n\377\r\n\000"), 0, 0, 0, 0, 0, 0, 0, 0)
	copyTrailer = []byte{0xff, 0xff}
)

// appendMany encodes every event straight into one COPY stream: one encode and no
// allocation per event.
func (l *Log) appendMany(ctx context.Context, tx pgx.Tx, evs []events.DomainEvent) error {
	// COPY goes past pgx.Tx, which would otherwise answer for a closed transaction.
	// An empty batch costs no round trip and has the check.
	if err := tx.SendBatch(ctx, &pgx.Batch{}).Close(); err != nil {
		return l.failed(evError(&evs[0]), len(evs), err)
	}
	buf := buffers.Get().(*[]byte)
	defer putBuffer(buf)
	b := append((*buf)[:0], copyHeader...)
	var err error
	for i := range evs {
		if b, err = l.copyRow(b, &evs[i]); err != nil {
			return err
		}
	}
	b = append(b, copyTrailer...)
	*buf = b
	if err := l.lockKeys(ctx, tx, evs...); err != nil {
		return l.failed(evError(&evs[0]), len(evs), err)
	}
	if _, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(b), l.copyIn); err != nil {
		return l.failed(evError(&evs[0]), len(evs), err)
	}
	return nil
}

func (l *Log) copyRow(b []byte, e *events.DomainEvent) ([]byte, error) {
	r, err := l.route(e)
	if err != nil {
		return b, err
	}
	b = binary.BigEndian.AppendUint16(b, 9)
	b = append(b, 0, 0, 0, 2, byte(r.slot>>8), byte(r.slot))
	b = append(b, 0, 0, 0, 4)
	b = binary.BigEndian.AppendUint32(b, uint32(e.SchemaVersion))
	b = append(b, 0, 0, 0, 16)
	b = append(b, e.EventID[:]...)
	b = copyText(b, r.topic)
	b = copyText(b, e.EventType)
	b = copyText(b, r.key)
	b = copyText(b, contentType)
	if r.headers == nil {
		b = append(b, 0xff, 0xff, 0xff, 0xff)
	} else {
		b = copyText(b, *r.headers)
	}
	// The document's length is known once it is written.
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	if b, err = l.encode(b, e); err != nil {
		return b, err
	}
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b, nil
}

func copyText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
