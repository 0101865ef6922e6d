package outbox

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// Desk is where a person looks at one relay or durable handler, and asks something
// of it. It looks at once, but what it asks is carried out by the holder of the
// lease of that name, within about a second, in order with its other work; if nobody
// runs under the name, a request waits. Every request stays as a row of the table
// relay_request: who asked for what and when, and what came of it.
//
// A Desk keeps nothing open between calls, starts nothing, and does not close the
// pool. It is safe for use by several goroutines.
type Desk struct {
	db   *database
	name string
	by   string
}

// What a desk refuses, to branch on. The text of each error says the way out.
var (
	// ErrInvalidRequest is wrapped when what is asked makes no sense, whatever the
	// relay is doing: a rate of zero, a pattern that is none, an empty filter. Nothing
	// was asked for.
	ErrInvalidRequest = errors.New("invalid request")
	// ErrUnknownRelay is wrapped when no relay and no durable handler of that name has
	// ever run on this schema, or it was dropped.
	ErrUnknownRelay = errors.New("no relay or durable handler of that name")
	// ErrNothingMatches is wrapped when a filter means no event that could be replayed
	// or discarded. Nothing was asked for.
	ErrNothingMatches = errors.New("nothing matches")
	// ErrUnknownRequest is wrapped when a request is not, or no longer, in the record.
	ErrUnknownRequest = errors.New("no such request")
	// ErrWrongWay is wrapped when a rewind would go ahead, or a skip back.
	ErrWrongWay = errors.New("wrong way")
	// ErrOutsideLog is wrapped when a position is to move to where the log has no
	// events any more, or none yet.
	ErrOutsideLog = errors.New("outside the log")
	// ErrRunning is wrapped when a relay or handler is to be dropped that somebody runs.
	ErrRunning = errors.New("it is running")
	// ErrHasParked is wrapped when a drop would lose events that are parked.
	ErrHasParked = errors.New("parked events would be lost")
)

// DeskConfig is what NewDesk may be told. The zero value works.
type DeskConfig struct {
	// Schema defaults to migrations.DefaultSchema.
	Schema string
	// By is who asks, for the record: a person's name or a ticket, at most 200 bytes of
	// one line. Defaults to the connection's database role (session_user).
	By string
}

// deskTimeout bounds one call to the database, beside the caller's own deadline.
const deskTimeout = 10 * time.Second

// NewDesk opens the desk of the relay or durable handler of that name
// (RelayConfig.Name). It does not ask the database anything. All that is wrong is
// reported together, in an error that wraps ErrInvalidConfig.
func NewDesk(pool *pgxpool.Pool, name string, cfg DeskConfig) (*Desk, error) {
	var faults []error
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if !relayName.MatchString(name) {
		faults = append(faults, fmt.Errorf("the name is %.120q: use that of the relay (RelayConfig.Name) or durable handler", name))
	}
	if cfg.Schema == "" {
		cfg.Schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(cfg.Schema); err != nil {
		faults = append(faults, fmt.Errorf("DeskConfig.Schema: %w", err))
	}
	if fault := faultOfLine(cfg.By, 200); fault != "" {
		faults = append(faults, fmt.Errorf("DeskConfig.By %s: give it a person's name or a ticket, or leave it empty for the database role", fault))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("outbox.NewDesk: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return &Desk{db: &database{pool: pool, schema: cfg.Schema, timeout: deskTimeout}, name: name, by: cfg.By}, nil
}

// faultOfLine is what keeps a text from being stored as one line, or "".
func faultOfLine(s string, most int) string {
	switch {
	case len(s) > most:
		return fmt.Sprintf("is %d bytes long, more than %d", len(s), most)
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "has a control character"
	}
	return ""
}

// did says what was attempted, with a %q for the name, and what came in between.
func (d *Desk) did(what string, err error) error {
	return fmt.Errorf(what+": %w", d.name, explain(d.db.schema, err))
}
