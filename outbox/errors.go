package outbox

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/postbus/postbus/internal/pooler"
	"github.com/postbus/postbus/migrations"
)

var (
	// ErrInvalidConfig is wrapped by every refusal of a config's field.
	ErrInvalidConfig = errors.New("invalid config")
	// ErrNoTransaction is returned by Append without a live transaction.
	ErrNoTransaction = errors.New("no transaction")
	// ErrAlreadyRunning is returned by a second Run of one Relay, Durable or bus.
	ErrAlreadyRunning = errors.New("it is already running")
	// ErrReadReplica is returned when the database is a standby.
	ErrReadReplica = errors.New("the database is a read replica")
	// ErrOtherCluster is returned when the log was written in another cluster:
	// its transaction ids mean nothing here.
	ErrOtherCluster = errors.New("the log was written in another database cluster")
	// ErrMissingPrivilege is wrapped when the role may not do what it is asked to.
	ErrMissingPrivilege = errors.New("missing privilege")
	// ErrNameTaken is returned by Run when the name belongs to the other kind: a
	// durable handler's to a relay, or a relay's to a durable handler.
	ErrNameTaken = errors.New("the name is taken")
	// ErrDropped is returned by Run when its position was dropped meanwhile.
	ErrDropped = errors.New("the position was dropped")
	// ErrPositionLost is returned by Run when retention's cap has ended the position.
	ErrPositionLost = errors.New("the position is lost")
	// ErrExecMode is wrapped when the pool's query exec mode does not work through the
	// pooler that it is connected to: put default_query_exec_mode=exec into its address.
	ErrExecMode = pooler.ErrExecMode
	// ErrNotParked is wrapped when a request names an event that is not parked.
	ErrNotParked = errors.New("not parked")

	// errFenced: somebody else has written the link we were about to write, or
	// our own write of it was not known to have happened.
	errFenced = errors.New("the chain has moved on")
	// errLeaseLost: the lease ran out or was taken before it was renewed.
	errLeaseLost = errors.New("the lease is lost")
	// errSteered: what was asked for is written down; work on from there.
	errSteered = errors.New("steered")
)

// PostgreSQL error codes (appendix A of its manual) that have a better text.
const (
	codeUndefinedTable    = "42P01"
	codeUndefinedColumn   = "42703"
	codeInvalidSchemaName = "3F000"
	codeInsufficientPriv  = "42501"
	codeUniqueViolation   = "23505"
	codeNotNull           = "23502"
)

// explain gives the database's answer the sentence that a person needs for it.
func explain(schema string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	if pooler.Lost(err) {
		return pooler.Explain(err)
	}
	switch pg.Code {
	case codeUndefinedTable, codeUndefinedColumn, codeInvalidSchemaName:
		return fmt.Errorf("%w: call migrations.Up(ctx, pool, %q) first: %w", migrations.ErrNotMigrated, schema, err)
	case codeInsufficientPriv:
		return fmt.Errorf("%w: grant it to the connection's role: %w", ErrMissingPrivilege, err)
	}
	return err
}
