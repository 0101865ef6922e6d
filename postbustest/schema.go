package postbustest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// Schema creates a schema of the test's own, migrates it, and gives its name: tests
// may then share a server and run in parallel. It is dropped when the test ends.
//
// The drop takes a connection of its own, so that it does not matter whether the
// pool is closed by then. It waits ten seconds for transactions that are still open,
// and then fails the test. Where no test may leave a trace even if the process is
// killed, drop what begins with "t_" from time to time.
func Schema(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	name := schemaName(t.Name())
	if pool == nil {
		t.Fatalf("create schema %s: the pool is nil: pass an open *pgxpool.Pool", name)
	}
	config := pool.Config()
	t.Cleanup(func() { // before Up: what that leaves half way is dropped, too
		if err := dropSchema(config, name); err != nil {
			t.Errorf("drop schema %s: %v; is a transaction of the test still open?", name, err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := migrations.Up(ctx, pool, name); err != nil {
		t.Fatal(err)
	}
	return name
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// schemaName shows the test, is unique, and leaves room for suffixes below the 63
// bytes of an identifier.
func schemaName(test string) string {
	const most = 30
	readable := notInNames.ReplaceAllString(strings.ToLower(strings.TrimPrefix(test, "Test")), "_")
	readable = strings.Trim(readable[:min(len(readable), most)], "_")
	var unique [6]byte
	rand.Read(unique[:]) // never an error
	return "t_" + readable + "_" + hex.EncodeToString(unique[:])
}

func dropSchema(config *pgxpool.Config, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	login := config.ConnConfig.Copy()
	if config.BeforeConnect != nil { // where the password comes from, in some houses
		if err := config.BeforeConnect(ctx, login); err != nil {
			return err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, login)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	// In a transaction, because a pooler may give each statement another session.
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = %d`, lockWait.Milliseconds())); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DROP SCHEMA IF EXISTS `+pgx.Identifier{name}.Sanitize()+` CASCADE`)
		return err
	})
}

// lockWait is for sessions that are about to end.
const lockWait = 10 * time.Second
