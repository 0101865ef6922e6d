package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/postbus/postbus/internal/pgserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

var edition15 = edition{
	major: 15, archive: postgres15Archive, debian: "postgresql-15",
	lack: lack{debian: "maven", brew: "postgresql@15", variable: "POSTBUS_POSTGRES_URL=postgres://user@host:5432/name"},
}

var postgres15 = edition15.server("Postgres 15", "POSTBUS_POSTGRES_URL")

var postgres18 = edition{
	major: 18, archive: postgres18Archive, // Debian 12 has no package of it
	lack: lack{debian: "maven", brew: "postgresql@18", variable: "POSTBUS_POSTGRES18_URL=postgres://user@host:5432/name"},
}.server("Postgres 18", "POSTBUS_POSTGRES18_URL")

// edition is one major version of Postgres, and where its binaries come from.
type edition struct {
	major   int
	archive archive
	debian  string // installed where it can be, for the client programs that the archive lacks
	lack    lack
}

// find looks for binaries that are there: where the variable of Postgres 15
// says, where packages put them, downloaded before, in PATH.
func (e edition) find(u *upper) (bin string, err error) {
	if folder := os.Getenv(pgserver.BinVariable); e.major == 15 && folder != "" {
		if err := pgserver.Check(folder, e.major); err != nil {
			return "", fmt.Errorf("%s is set, but does not serve: %w; correct it or unset it", pgserver.BinVariable, err)
		}
		return folder, nil
	}
	var downloaded []string
	if bin, ok := e.archive.there(u); ok {
		downloaded = []string{bin}
	}
	return pgserver.Binaries(e.major, downloaded...)
}

// obtain finds, installs or downloads the binaries.
func (e edition) obtain(l local) (bin string, err error) {
	if bin, err = e.find(l.upper); err == nil {
		return bin, nil
	}
	if _, noRoot := asRoot(); e.debian != "" && noRoot == nil {
		if err = l.debian.install(l, e.debian); err == nil {
			return e.find(l.upper)
		}
		l.say(l.server.title, "there is no Debian package %s, so its binaries are downloaded", e.debian)
	}
	return e.archive.get(l)
}

// missing says what a person has to do before it can be started, or nothing.
func (e edition) missing(u *upper) *lack {
	_, notFound := e.find(u)
	if notFound == nil {
		return nil
	}
	if _, noRoot := asRoot(); noRoot == nil && e.debian != "" {
		return nil // it will be installed
	}
	obstacle := e.archive.obstacle()
	if obstacle == nil {
		return nil // it will be downloaded
	}
	l := e.lack
	l.why = errors.Join(notFound, obstacle).Error()
	l.fedora = "maven tar xz"
	l.byHand = "a Maven (mvn), tar and xz in PATH to download Postgres with, or in place of Maven " + mavenVariable + "=URL of a Maven repository"
	return &l
}

// postgresSettings are the same in compose.yaml.
var postgresSettings = []string{
	"max_connections=400", // packages are tested in parallel, each with pools of its own
	"max_prepared_transactions=64",
	"fsync=on", // durability tests kill the server
	"shared_buffers=256MB",
	"max_wal_size=4GB",
}

// server is the row in the table of an edition.
func (e edition) server(title, variable string) *server {
	s := server{key: fmt.Sprintf("postgres%d", e.major), title: title, variable: variable, missing: e.missing}
	s.answers = answersAsPostgres
	s.stop = syscall.SIGINT // a fast shutdown: rolls back what is open
	s.start = func(l local) (record, *process.Process, error) {
		bin, err := e.obtain(l)
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
