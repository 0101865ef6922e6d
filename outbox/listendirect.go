package outbox

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// checkDirect refuses a connection on which notifications would not arrive.
//
// The key for cancelling that the server gives at the login carries the id of its
// process (BackendKeyData, https://www.postgresql.org/docs/current/protocol-message-formats.html);
// a pooler, whose clients have no process of their own, makes one up. Where the two
// differ there may still be a proxy, or a pooler in session mode, that passes
// notifications on. That is tried, from a second connection: on the first one a
// notification of its own would arrive even in transaction mode, as long as that
// happens to get the same process of the server for each statement.
func (l *Listener) checkDirect(ctx context.Context, conn *pgx.Conn) error {
	pid, err := l.backend(ctx, conn)
	if err != nil || pid == int64(conn.PgConn().PID()) {
		return err
	}
	return l.tryNotification(ctx, conn)
}

// backend is the id of the server's process that serves the connection just now.
func (l *Listener) backend(ctx context.Context, conn *pgx.Conn) (pid int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DatabaseTimeout)
	defer cancel()
	err = conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid)
	return pid, err
}

func (l *Listener) tryNotification(ctx context.Context, conn *pgx.Conn) error {
	// A channel that nobody else uses: in transaction mode the LISTEN stays with some
	// process of the server.
	channel := "postbus.probe." + uuid.NewString()
	if err := l.exec(ctx, conn, `LISTEN `+pgx.Identifier{channel}.Sanitize()); err != nil {
		return err
	}
	other, err := l.connect(ctx)
	if err != nil {
		return err
	}
	defer l.close(ctx, other)
	if err := l.exec(ctx, other, `SELECT pg_notify($1, '')`, channel); err != nil {
		return err
	}
	arrival, cancel := context.WithTimeout(ctx, l.cfg.DatabaseTimeout)
	_, missing := conn.WaitForNotification(arrival)
	cancel()
	if err := l.exec(ctx, conn, `UNLISTEN `+pgx.Identifier{channel}.Sanitize()); err != nil {
		return err
	}
	if missing != nil {
		return fmt.Errorf("%w: a pooler stands in between, and a notification sent on trial did not come within %s: give NewListener the address of the server itself, or of a pooler in session mode; everything else may stay behind the pooler",
			ErrNotDirect, l.cfg.DatabaseTimeout)
	}
	return nil
}
