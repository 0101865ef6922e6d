package outbox

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The columns in the order rowReader takes them.
const rowColumns = `xid, id, slot, schema_version, event_id, topic, event_type, partition_key, content_type, headers, payload`

const rowFields = 11

// rowReader turns result rows into items without an allocation per field: names
// that repeat are shared, payloads and keys are copied into one arena per chunk.
// pgx gives results in binary or, behind PgBouncer, in text; it reads both.
type rowReader struct {
	source  string
	names   map[string]string // topics, types, content types: few, and each seen often
	last    [rowFields]string // by column: mostly the next one, too
	arena   []byte
	arenaOf int // size of the next arena
}

func newRowReader(source string) *rowReader {
	return &rowReader{source: source, names: map[string]string{}, arenaOf: 64 << 10}
}

// arenaMax bounds an arena: an event that outlives its neighbours (a failing one)
// keeps the whole of it in memory.
const arenaMax = 512 << 10

// copied gives a copy of b that lives in the arena.
func (r *rowReader) copied(b []byte) []byte {
	if len(b) > cap(r.arena)-len(r.arena) {
		r.arena = make([]byte, 0, max(r.arenaOf, len(b)))
		r.arenaOf = min(2*r.arenaOf, arenaMax)
	}
	at := len(r.arena)
	r.arena = append(r.arena, b...)
	return r.arena[at:len(r.arena):len(r.arena)]
}

func (r *rowReader) name(b []byte, column int) string {
	if string(b) == r.last[column] {
		return r.last[column]
	}
	s, ok := r.names[string(b)]
	if !ok {
		if len(r.names) >= 4096 { // whatever the users do with their types, this stays small
			clear(r.names)
		}
		s = string(b)
		r.names[s] = s
	}
	r.last[column] = s
	return s
}

// read fills it from the current row and gives the row's xid.
func (r *rowReader) read(rows pgx.Rows, it *item) (xid uint64, err error) {
	v, f := rows.RawValues(), rows.FieldDescriptions()
	if len(v) != rowFields {
		return 0, fmt.Errorf("read the log: %d columns instead of %d", len(v), rowFields)
	}
	x, err := integer(v[0], f[0])
	if err != nil {
		return 0, err
	}
	if it.LogID, err = integer(v[1], f[1]); err != nil {
		return 0, err
	}
	slot, err := integer(v[2], f[2])
	if err != nil {
		return 0, err
	}
	version, err := integer(v[3], f[3])
	if err != nil {
		return 0, err
	}
	if it.EventID, err = uuidOf(v[4], f[4]); err != nil {
		return 0, err
	}
	it.slot, it.SchemaVersion, it.Source = int16(slot), int(version), r.source
	it.Topic, it.EventType, it.Key, it.ContentType = r.name(v[5], 5), r.name(v[6], 6), string(v[7]), r.name(v[8], 8)
	if v[9] != nil {
		if err = json.Unmarshal(v[9], &it.Headers); err != nil {
			return 0, fmt.Errorf("read event %d of the log: its headers are no JSON object of strings: %w", it.LogID, err)
		}
	}
	if it.Payload, err = r.payload(v[10], f[10]); err != nil {
		return 0, err
	}
	it.bytes = len(it.Payload)
	return uint64(x), nil
}

func (r *rowReader) payload(b []byte, f pgconn.FieldDescription) ([]byte, error) {
	if f.Format == pgx.BinaryFormatCode {
		return r.copied(b), nil
	}
	// bytea_output = hex, the default since PostgreSQL 9.0; escape is not spoken.
	if len(b) < 2 || b[0] != '\\' || b[1] != 'x' {
		return nil, fmt.Errorf("read the log: the connection gives bytea in another form than hex: remove bytea_output from the role's settings")
	}
	p := r.copied(b[2:])
	n, err := hex.Decode(p, p) // in place: it writes behind where it reads
	return p[:n:n], err
}

// integer reads int2, int4, int8 and xid8.
func integer(b []byte, f pgconn.FieldDescription) (int64, error) {
	if f.Format == pgx.BinaryFormatCode {
		switch len(b) {
		case 2:
			return int64(int16(binary.BigEndian.Uint16(b))), nil
		case 4:
			return int64(int32(binary.BigEndian.Uint32(b))), nil
		case 8:
			return int64(binary.BigEndian.Uint64(b)), nil
		}
		return 0, fmt.Errorf("read the log: column %s has %d bytes, not those of an integer", f.Name, len(b))
	}
	// xid8 is unsigned, but 2^63 transactions are out of anybody's reach.
	return strconv.ParseInt(string(b), 10, 64)
}

func uuidOf(b []byte, f pgconn.FieldDescription) (uuid.UUID, error) {
	if f.Format == pgx.BinaryFormatCode {
		return uuid.FromBytes(b)
	}
	return uuid.ParseBytes(b)
}
