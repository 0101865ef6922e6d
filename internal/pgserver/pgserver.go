// Package pgserver runs a Postgres server from its binaries: for the tests
// and the demo of this repository, never for production. It uses the standard
// library only.
package pgserver

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

// User and Database exist on every server: a superuser that loopback trusts,
// and its database.
const (
	User     = "dev" // not "postbus": a role named like the schema finds our tables before its own
	Database = "postbus"
)

// Server is one Postgres on a loopback port. All fields but Settings are
// required. It is not safe for concurrent use.
type Server struct {
	Bin      string   // folder of initdb and postgres
	Dir      string   // holds data/ and the log; the account must reach it
	Port     int      // on 127.0.0.1
	Settings []string // "name=value", on top of those every server gets
	Account  process.Account

	DieWithParent bool // see process.Spec
}

// Addr is host:port.
func (s Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// URL is the connection string of the superuser.
func (s Server) URL() string {
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", User, s.Addr(), Database)
}

func (s Server) data() string { return filepath.Join(s.Dir, "data") }

// Exists reports whether Init has been completed in Dir.
func (s Server) Exists() bool {
	_, err := os.Stat(filepath.Join(s.data(), "PG_VERSION"))
	return err == nil
}

// Init makes the data folder and the database. The folder gets its name last,
// so that an interrupted Init leaves nothing that Exists.
func (s Server) Init() error {
	if err := s.Account.MakeDir(s.Dir); err != nil {
		return fmt.Errorf("make the folder of a Postgres server: %w", err)
	}
	fresh := filepath.Join(s.Dir, "data.new")
	if err := errors.Join(os.RemoveAll(fresh), os.RemoveAll(s.data())); err != nil {
		return fmt.Errorf("clear the folder of a Postgres server: %w", err)
	}
	// No locale: every machine sorts alike. No sync: a crash of the machine
	// itself is not among the faults that tests cause.
	err := process.Run(s.Account, s.Dir, "", filepath.Join(s.Bin, "initdb"),
		"--pgdata="+fresh, "--username="+User, "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
	if err != nil {
		return err
	}
	// Single-user mode, because some builds come without createdb and psql.
	err = process.Run(s.Account, s.Dir, "CREATE DATABASE "+Database+";\n", filepath.Join(s.Bin, "postgres"),
		"--single", "-D", fresh, "postgres")
	if err != nil {
		return err
	}
	return os.Rename(fresh, s.data())
}

// Start starts the server. Call Ready before using it.
func (s Server) Start() (*process.Process, error) {
	if err := s.breakLock(); err != nil {
		return nil, fmt.Errorf("start Postgres after a crash: %w", err)
	}
	args := []string{"-D", s.data(), "-p", strconv.Itoa(s.Port),
		"-c", "listen_addresses=127.0.0.1",
		// No Unix socket: its path has a limit of 107 bytes, and nobody asks for it.
		"-c", "unix_socket_directories=",
	}
	for _, setting := range s.Settings {
		args = append(args, "-c", setting)
	}
	return process.Start(process.Spec{
		Program: filepath.Join(s.Bin, "postgres"), Args: args,
		Dir: s.Dir, Log: filepath.Join(s.Dir, "log"),
		Account: s.Account, DieWithParent: s.DieWithParent,
	})
}

// breakLock frees the data folder from a postmaster that was killed. Postgres
// does so itself, except while the dead one is still a zombie, as it may be
// for ever in a container whose init reaps nothing. Only the pid in the lock
// file is replaced, by one that no kernel hands out: the rest keeps Postgres
// from starting beside backends that outlive their postmaster for a moment.
func (s Server) breakLock() error {
	path := filepath.Join(s.data(), "postmaster.pid")
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	line, rest, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return nil // Postgres says what it thinks of it
	}
	if _, err := process.Identify(pid); err == nil {
		return nil
	}
	return s.Account.WriteFile(path, []byte(strconv.Itoa(math.MaxInt32)+"\n"+rest))
}

// Ready waits until the server takes connections. Crash recovery may take its
// time, so the limit is generous.
func (s Server) Ready(p *process.Process) error {
	return p.Ready(time.Minute, func() error { return Ping(s.Addr(), User, Database) })
}

// Stop ends the server: first as `pg_ctl stop -m fast` does, which rolls open
// transactions back; SIGKILL comes after ten seconds.
func Stop(id process.Identity) error { return id.Stop(syscall.SIGINT, 10*time.Second) }
