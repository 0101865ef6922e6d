package outbox

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// endsTx tells whether a statement would end the transaction that it runs in. A COMMIT
// in the text of a handler would carry the link with it, which passes all events of a
// batch: those after the present one would be lost. Only the first statement of a text
// is looked at.
func endsTx(sql string) bool {
	word, rest := firstWord(sql)
	switch strings.ToUpper(word) {
	case "COMMIT", "END", "ABORT":
		return true
	case "ROLLBACK":
		next, rest := firstWord(rest)
		if next = strings.ToUpper(next); next == "WORK" || next == "TRANSACTION" {
			next, _ = firstWord(rest)
		}
		return !strings.EqualFold(next, "TO") // a savepoint
	case "PREPARE":
		next, _ := firstWord(rest)
		return strings.EqualFold(next, "TRANSACTION")
	}
	return false
}

// firstWord gives the first word behind space, comments and empty statements.
func firstWord(sql string) (word, rest string) {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n\f\v;")
		switch {
		case strings.HasPrefix(sql, "--"):
			_, sql, _ = strings.Cut(sql, "\n")
		case strings.HasPrefix(sql, "/*"):
			_, sql, _ = strings.Cut(sql, "*/")
		default:
			n := 0
			for n < len(sql) && (sql[n] >= 'a' && sql[n] <= 'z' || sql[n] >= 'A' && sql[n] <= 'Z') {
				n++
			}
			return sql[:n], sql[n:]
		}
	}
}

// savepoint is one of a handler's: it ends by its methods, and does not end what it is in.
type savepoint struct {
	pgx.Tx
	of *Tx
}

func (s *savepoint) Begin(ctx context.Context) (pgx.Tx, error) {
	sub, err := s.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &savepoint{sub, s.of}, nil
}

func (s *savepoint) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if endsTx(sql) {
		return pgconn.CommandTag{}, s.of.refuse()
	}
	return s.Tx.Exec(ctx, sql, args...)
}

func (s *savepoint) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if endsTx(sql) {
		return nil, s.of.refuse()
	}
	return s.Tx.Query(ctx, sql, args...)
}

func (s *savepoint) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if endsTx(sql) {
		return refusedRow{s.of.refuse()}
	}
	return s.Tx.QueryRow(ctx, sql, args...)
}

func (s *savepoint) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return s.Tx.SendBatch(s.of.sendable(ctx, b), b)
}

// sendable gives a ctx that has ended, under which nothing is sent, if b must not be.
func (t *Tx) sendable(ctx context.Context, b *pgx.Batch) context.Context {
	err := error(nil)
	if t.over.Load() {
		err = pgx.ErrTxClosed
	}
	for _, q := range b.QueuedQueries {
		if err == nil && endsTx(q.SQL) {
			err = t.refuse()
		}
	}
	if err == nil {
		return ctx
	}
	ended, cancel := context.WithCancelCause(ctx)
	cancel(err)
	return ended
}

// refusedRow is what QueryRow gives for a statement that is not sent.
type refusedRow struct{ err error }

func (r refusedRow) Scan(...any) error { return r.err }
