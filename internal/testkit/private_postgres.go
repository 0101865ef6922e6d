package testkit

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/pgserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

// PrivateServer is a Postgres 15 of one test's own, on a port that it keeps
// across restarts. Its methods return when the server is in the state that
// they name, or fail the test. It is not safe for concurrent use.
type PrivateServer struct {
	t      testing.TB
	server pgserver.Server
	proc   *process.Process // nil when stopped
}

// PrivatePostgres makes and starts a server: about two seconds, and some 60 MB
// of disk until the test ends. Settings are of the form "name=value".
func PrivatePostgres(t testing.TB, settings ...string) *PrivateServer {
	t.Helper()
	bin, err := privateBinaries()
	if err != nil {
		t.Fatalf("start a private Postgres: %v", err)
	}
	account, err := process.ServiceAccount()
	if err != nil {
		t.Fatalf("start a private Postgres: %v", err)
	}
	port, err := process.FreePort()
	if err != nil {
		t.Fatalf("start a private Postgres: %v", err)
	}
	s := &PrivateServer{t: t, server: pgserver.Server{
		Bin: bin, Dir: privateDir(t, account), Port: port, Account: account, DieWithParent: true,
		Settings: append([]string{"max_connections=50", "shared_buffers=32MB", "max_prepared_transactions=16"}, settings...),
	}}
	if err := s.server.Init(); err != nil {
		t.Fatalf("make a private Postgres: %v", err)
	}
	s.Start()
	return s
}

// privateBinaries is the folder that the environment or .dev/env names, where
// `make servers-up` has downloaded them if need be, or that of a package.
func privateBinaries() (string, error) {
	if folder, err := variable(pgserver.BinVariable); err == nil && folder != "" {
		if err := pgserver.Check(folder, 15); err != nil {
			return "", fmt.Errorf("%s: %w; run `make servers-up`, or unset it", pgserver.BinVariable, err)
		}
		return folder, nil
	}
	folder, err := pgserver.Binaries(15)
	if err != nil {
		return "", fmt.Errorf("%w; run `make servers-up`, which downloads them with Maven, or install the Debian package postgresql-15, or set %s",
			err, pgserver.BinVariable)
	}
	return folder, nil
}

// privateDir is removed when the test ends. It can't be t.TempDir, which
// nobody but its owner can enter: as root we run the server as somebody else.
func privateDir(t testing.TB, account process.Account) string {
	t.Helper()
	temp, err := account.ReachableTemp()
	if err != nil {
		t.Fatalf("start a private server: %v", err)
	}
	dir, err := os.MkdirTemp(temp, "postbus-private-")
	if err != nil {
		t.Fatalf("start a private server: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove a private server: %v", err)
		}
	})
	return dir
}

// URL is the address of the server's superuser.
func (s *PrivateServer) URL() string { return s.server.URL() }

// Start starts a stopped or crashed server and waits for its recovery.
func (s *PrivateServer) Start() {
	s.t.Helper()
	if s.proc != nil {
		s.t.Fatal("start a private Postgres: it runs already")
	}
	proc, err := s.server.Start()
	if err != nil {
		s.t.Fatalf("start a private Postgres: %v", err)
	}
	s.proc = proc
	s.t.Cleanup(s.CrashImmediate) // the quickest end; nothing if it has ended before
	if err := s.server.Ready(proc); err != nil {
		s.t.Fatalf("start a private Postgres: %v", err)
	}
}

// Stop shuts the server down cleanly and rolls back open transactions.
func (s *PrivateServer) Stop() { s.end(syscall.SIGINT) }

// CrashImmediate has all of its processes quit at once, without writing
// anything more (SIGQUIT, `pg_ctl stop -m immediate`): the next Start recovers
// from the log, as after a crash. A SIGKILL of the postmaster alone would leave
// its children to finish on their own.
func (s *PrivateServer) CrashImmediate() { s.end(syscall.SIGQUIT) }

func (s *PrivateServer) end(sig syscall.Signal) {
	s.t.Helper()
	if s.proc == nil {
		return
	}
	if err := s.proc.Stop(sig, 20*time.Second); err != nil {
		s.t.Fatalf("stop a private Postgres: %v", err)
	}
	s.proc = nil
}

// KillBackendsCrash kills one backend with SIGKILL. The postmaster then takes
// the shared memory for damaged, throws every session out and recovers from
// the log; it survives itself. Returns when the server takes connections again.
func (s *PrivateServer) KillBackendsCrash() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(ctx, s.URL())
		if err != nil {
			s.t.Fatalf("crash a private Postgres: %v", err)
		}
		return conn
	}
	victim, witness := connect(), connect()
	defer victim.Close(ctx)
	defer witness.Close(ctx)
	if err := syscall.Kill(int(victim.PgConn().PID()), syscall.SIGKILL); err != nil {
		s.t.Fatalf("crash a private Postgres: kill backend %d: %v", victim.PgConn().PID(), err)
	}
	// A login could still succeed before the postmaster has noticed. It has
	// when it throws another session out.
	if err := witness.PgConn().WaitForNotification(ctx); ctx.Err() != nil {
		s.t.Fatalf("crash a private Postgres: the other sessions live on: %v", err)
	}
	if err := s.server.Ready(s.proc); err != nil {
		s.t.Fatalf("crash a private Postgres: %v", err)
	}
}
