package testkit

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestPrivatePostgresKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := PrivatePostgres(t)
	exec := func(statement string) {
		t.Helper()
		conn, err := pgx.Connect(ctx, s.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TABLE kept (what text)")
	postmaster := s.proc.Identity

	exec("INSERT INTO kept VALUES ('before a backend was killed')")
	s.KillBackendsCrash()
	if !postmaster.Alive() {
		t.Error("the postmaster did not survive KillBackendsCrash")
	}

	exec("INSERT INTO kept VALUES ('before the crash')")
	s.CrashImmediate()
	if postmaster.Alive() {
		t.Error("the postmaster survived CrashImmediate")
	}
	if _, err := pgx.Connect(ctx, s.URL()); err == nil {
		t.Error("a crashed server takes connections")
	}
	s.Start()

	exec("INSERT INTO kept VALUES ('before the stop')")
	s.Stop()
	s.Start()

	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var n int
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM kept").Scan(&n); err != nil || n != 3 {
		t.Errorf("%d rows after two crashes and a stop, want 3 (error %v)", n, err)
	}
}
