package testkit

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/postbus/postbus/internal/pgserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

// Has tells whether a program stands beside the server's: packages of a whole
// PostgreSQL bring pg_dump and psql, others no more than what a server needs.
func (s *PrivateServer) Has(program string) bool {
	_, err := os.Stat(filepath.Join(s.server.Bin, program))
	return err == nil
}

// Run runs a program beside the server's to its end, as the server's account and in
// the server's folder. The test fails if it does.
func (s *PrivateServer) Run(program string, args ...string) {
	s.t.Helper()
	if !s.Has(program) {
		s.t.Fatalf("run %s for the test: it is not in %s, and binaries downloaded from Maven have none: install the Debian package postgresql-15, or set %s to the bin folder of a whole PostgreSQL 15",
			program, s.server.Bin, pgserver.BinVariable)
	}
	if err := process.Run(s.server.Account, s.server.Dir, "", filepath.Join(s.server.Bin, program), args...); err != nil {
		s.t.Fatal(err)
	}
}

// Dir is the server's own folder, for files of Run too; it goes with the server.
func (s *PrivateServer) Dir() string { return s.server.Dir }

// Standby stops the server for a moment and starts a hot standby that is a copy of
// it, and that stays as it is: it receives nothing.
func (s *PrivateServer) Standby(t testing.TB) *PrivateServer {
	t.Helper()
	port, err := process.FreePort()
	if err != nil {
		t.Fatalf("start a private standby: %v", err)
	}
	copied := &PrivateServer{t: t, server: s.server}
	copied.server.Dir, copied.server.Port = privateDir(t, s.server.Account), port
	account := s.server.Account
	if err := account.MakeDir(copied.server.Dir); err != nil {
		t.Fatalf("make a private standby: %v", err)
	}
	s.Stop()
	// No tool of Postgres', since not every package has them.
	if err := process.Run(account, copied.server.Dir, "", "/bin/cp", "-a", filepath.Join(s.server.Dir, "data"), copied.server.Dir); err != nil {
		t.Fatalf("make a private standby: %v", err)
	}
	s.Start()
	if err := account.WriteFile(filepath.Join(copied.server.Dir, "data", "standby.signal"), nil); err != nil {
		t.Fatalf("make a private standby: %v", err)
	}
	copied.Start()
	return copied
}
