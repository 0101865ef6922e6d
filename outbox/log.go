package outbox

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/migrations"
)

// Slots is into how many parts the keys of a log are cut, so that a relay can be
// spread over machines.
const Slots = 256

// LogConfig configures a Log. The zero value is usable.
type LogConfig struct {
	// Schema holds the tables. Defaults to migrations.DefaultSchema.
	Schema string
	// Topic names the topic of an event type. Order holds within one topic only, so
	// types whose events must stay in order belong on one. Defaults to DefaultTopic.
	Topic func(eventType string) string
	// MaxDocumentBytes bounds one encoded event. Defaults to events.MaxDocumentBytes (256 KiB).
	MaxDocumentBytes int
	// LockKeys has every append first take a lock on the keys of its events, until the
	// end of its transaction, for applications whose transactions of one key take no
	// row lock in common before they publish: the events of a key are then in the
	// order of those transactions all the same. It costs a round trip for each append,
	// and two keys may share one of the KeyLocks locks, so that transactions wait that
	// need not. One append never deadlocks with another; two transactions that append
	// twice, in opposite orders, may (40P01, see bus.RetryConflicts). Every program
	// that writes to the log must set it. Defaults to false: no lock.
	LockKeys bool
}

// Log is the outbox: an append-only table. It is safe for use by several
// goroutines and holds no connection.
type Log struct {
	schema   string
	topic    func(string) string
	maxBytes int
	insert   string // one row
	copyIn   string // many rows

	locksKeys bool
}

// NewLog checks the config; it does not touch the database.
func NewLog(cfg LogConfig) (*Log, error) {
	var faults []error
	if cfg.Schema == "" {
		cfg.Schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(cfg.Schema); err != nil {
		faults = append(faults, fmt.Errorf("LogConfig.Schema: %w", err))
	}
	if cfg.MaxDocumentBytes < 0 {
		faults = append(faults, fmt.Errorf("LogConfig.MaxDocumentBytes is %d: use a number of bytes, or 0 for the default of %d", cfg.MaxDocumentBytes, events.MaxDocumentBytes))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("outbox.NewLog: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	if cfg.Topic == nil {
		cfg.Topic = DefaultTopic
	}
	if cfg.MaxDocumentBytes == 0 {
		cfg.MaxDocumentBytes = events.MaxDocumentBytes
	}
	table := pgx.Identifier{cfg.Schema, "outbox"}.Sanitize()
	return &Log{
		schema:   cfg.Schema,
		topic:    cfg.Topic,
		maxBytes: cfg.MaxDocumentBytes,
		insert:   `INSERT INTO ` + table + ` (` + appendColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		copyIn:   `COPY ` + table + ` (` + appendColumns + `) FROM STDIN BINARY`,

		locksKeys: cfg.LockKeys,
	}, nil
}

// Schema is where the log's tables are.
func (l *Log) Schema() string { return l.schema }

// Wake tells the relays of this process that something was committed: they look
// at once instead of at their next poll. It never blocks, and a needless call
// costs one read.
func (l *Log) Wake() { wake(l.schema) }

// Hint tells the relays of this process that something was appended in a
// transaction whose commit nobody will report: those that sleep look soon, in 25
// ms, and then less and less often, up to their PollInterval. It never blocks,
// and many hints cause no more looks than that.
func (l *Log) Hint() { hint(l.schema) }

// DefaultTopic is the event type up to its first dot: events of one aggregate
// stay on one topic, and so in order.
func DefaultTopic(eventType string) string {
	topic, _, _ := strings.Cut(eventType, ".")
	return topic
}

// usableTopic is Kafka's rule (org.apache.kafka.common.internals.Topic), the
// strictest of the brokers': no topic can then be a wildcard, a path or a queue argument.
func usableTopic(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= 249 && s != "." && s != ".."
}

// slotOf is the slot of a partition key: FNV-1a, 32 bit, modulo Slots. It is part
// of the stored format and never changes.
func slotOf(key string) int16 {
	h := fnv.New32a()
	h.Write([]byte(key))
	return int16(h.Sum32() % Slots)
}
