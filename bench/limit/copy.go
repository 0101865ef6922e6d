package limit

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash/fnv"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/bench/workload"
)

// Copier is the limit of append.batch: it encodes events to the same documents and
// sends them as one binary COPY a call, into a table with the same columns, defaults
// and indexes as ours. It takes every payload for sound, knows one event type, and
// checks nothing.
type Copier struct {
	sql      string
	document []byte
	stream   []byte
	entropy  uint64
}

// NewCopier copies into table.
func NewCopier(table string) *Copier {
	return &Copier{
		sql:     `COPY ` + table + ` (slot, schema_version, event_id, topic, event_type, partition_key, content_type, headers, payload) FROM STDIN BINARY`,
		entropy: uint64(time.Now().UnixNano()),
	}
}

// Append encodes orders and commits them in a transaction of their own.
func (c *Copier) Append(ctx context.Context, pool *pgxpool.Pool, orders []workload.Order) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"
		b := append(c.stream[:0], "PGCOPY\n\377\r\n\000\000\000\000\000\000\000\000\000"...)
		for i := range orders {
			var err error
			if b, err = c.row(b, &orders[i]); err != nil {
				return err
			}
		}
		c.stream = append(b, 0xff, 0xff)
		_, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(c.stream), c.sql)
		return err
	})
}

func (c *Copier) row(b []byte, o *workload.Order) ([]byte, error) {
	id, now := c.id()
	if err := c.encode(id, now, o); err != nil {
		return nil, err
	}
	hash := fnv.New32a()
	hash.Write([]byte(o.OrderID))
	b = binary.BigEndian.AppendUint16(b, 9)
	b = append(b, 0, 0, 0, 2, 0, byte(hash.Sum32()))
	b = append(b, 0, 0, 0, 4, 0, 0, 0, 1)
	b = append(append(b, 0, 0, 0, 16), id[:]...)
	b = field(b, "order")
	b = field(b, "order.placed")
	b = field(b, o.OrderID)
	b = field(b, "application/json")
	b = append(b, 0xff, 0xff, 0xff, 0xff) // no headers
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.document)))
	return append(b, c.document...), nil
}

func field(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// encode writes the same document as ours into c.document.
func (c *Copier) encode(id uuid.UUID, now time.Time, o *workload.Order) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	var text [36]byte
	hex.Encode(text[:8], id[:4])
	hex.Encode(text[9:13], id[4:6])
	hex.Encode(text[14:18], id[6:8])
	hex.Encode(text[19:23], id[8:10])
	hex.Encode(text[24:], id[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'

	d := append(c.document[:0], `{"event_id":"`...)
	d = append(d, text[:]...)
	d = append(d, `","event_type":"order.placed","schema_version":`...)
	d = strconv.AppendInt(d, int64(o.SchemaVersion()), 10)
	d = append(d, `,"aggregate_id":"`...)
	d = append(d, o.OrderID...)
	d = append(d, `","timestamp":"`...)
	d = now.AppendFormat(d, time.RFC3339Nano)
	d = append(d, `","correlation_id":"`...)
	d = append(d, text[:]...)
	d = append(d, `","data":`...)
	d = append(d, data...)
	c.document = append(d, '}')
	return nil
}

// id makes a UUIDv7 as cheaply as one can be made: SplitMix64 for its random bits.
func (c *Copier) id() (id uuid.UUID, now time.Time) {
	now = time.Now().UTC()
	c.entropy += 0x9e3779b97f4a7c15
	z := c.entropy
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixMilli())<<16|0x7000|z>>52)
	binary.BigEndian.PutUint64(id[8:], 1<<63|(z^z>>31)&(1<<62-1))
	return id, now
}
