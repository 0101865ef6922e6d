package main

import (
	"path/filepath"
	"syscall"

	"github.com/postbus/postbus/internal/pgserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

var postgres15 = postgres(server{
	key: "postgres15", title: "Postgres 15", variable: "POSTBUS_POSTGRES_URL",
}, func(l local) (string, error) {
	program, err := l.program("postgres", "postgresql-15", pgserver.Debian15)
	return filepath.Dir(program), err
})

var postgres18 = postgres(server{
	key: "postgres18", title: "Postgres 18", variable: "POSTBUS_POSTGRES18_URL",
}, postgres18Binaries)

// postgresSettings are the same in compose.yaml.
var postgresSettings = []string{
	"max_connections=400", // packages are tested in parallel, each with pools of its own
	"max_prepared_transactions=64",
	"fsync=on", // durability tests kill the server
	"shared_buffers=256MB",
	"max_wal_size=4GB",
}

// postgres completes a row with what every version of Postgres shares.
func postgres(s server, binaries func(local) (string, error)) *server {
	s.answers = answersAsPostgres
	s.stop = syscall.SIGINT // a fast shutdown: rolls back what is open
	s.start = func(l local) (record, *process.Process, error) {
		bin, err := binaries(l)
		if err != nil {
			return record{}, nil, err
		}
		pg := pgserver.Server{Bin: bin, Dir: l.dir, Port: l.port, Settings: postgresSettings, Account: l.account}
		if !pg.Exists() {
			if err := l.step("making the data folder", pg.Init); err != nil {
				return record{}, nil, err
			}
		}
		p, err := pg.Start()
		return record{URL: pg.URL()}, p, err
	}
	s.composePort, s.composeURL = 5432, postgresURL
	return &s
}

func postgresURL(addr string) string {
	return "postgres://" + pgserver.User + "@" + addr + "/" + pgserver.Database + "?sslmode=disable"
}

func answersAsPostgres(address string, foreign bool) error {
	addr, err := hostPort(address, "5432")
	if err != nil {
		return err
	}
	if foreign {
		return pgserver.Speaks(addr)
	}
	return pgserver.Ping(addr, pgserver.User, pgserver.Database)
}
