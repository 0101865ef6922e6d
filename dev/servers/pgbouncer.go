package main

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/postbus/postbus/internal/testkit/process"
)

// pgbouncer pools transactions in front of Postgres 15, as many production
// systems do: nothing that a session holds survives from one to the next.
var pgbouncer = &server{
	key: "pgbouncer", title: "PgBouncer", variable: "POSTBUS_PGBOUNCER_URL",
	behind:  postgres15,
	answers: answersAsPostgres,
	start:   startPgBouncer,
	missing: pooler.missing,
	stop:    syscall.SIGTERM, // at once; SIGINT would wait for every client to leave

	composePort: 5432,
	composeURL:  func(addr string) string { return pooled(postgresURL(addr)) },
}

var pooler = program{
	name: "pgbouncer", folders: []string{"/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"},
	lack: lack{
		debian: "pgbouncer", fedora: "pgbouncer", brew: "pgbouncer",
		byHand:   "a pgbouncer anywhere in PATH",
		variable: "POSTBUS_PGBOUNCER_URL=postgres://user@host:6432/name (and POSTBUS_POSTGRES_URL of the server behind it)",
	},
}

func startPgBouncer(l local) (record, *process.Process, error) {
	program, err := l.program(pooler)
	if err != nil {
		return record{}, nil, err
	}
	ini, err := pgbouncerConfig(l.behind, l.port)
	if err != nil {
		return record{}, nil, err
	}
	config := filepath.Join(l.dir, "pgbouncer.ini")
	if err := l.account.WriteFile(config, []byte(ini)); err != nil {
		return record{}, nil, fmt.Errorf("write PgBouncer's configuration: %w", err)
	}
	p, err := process.Start(process.Spec{
		Program: program, Args: []string{"-q", config},
		Dir: l.dir, Log: filepath.Join(l.dir, "log"), Account: l.account,
	})
	u, _ := url.Parse(l.behind) // pgbouncerConfig has read it
	u.Host = net.JoinHostPort("127.0.0.1", fmt.Sprint(l.port))
	u.RawQuery = "sslmode=disable"
	return record{URL: pooled(u.String())}, p, err
}

// pooled adds to a URL what pgx needs behind a pooler of transactions: a
// statement prepared on one server connection is unknown on the next.
func pooled(address string) string { return address + "&default_query_exec_mode=exec" }

// pgbouncerConfig lets any user in and logs in to Postgres with the user and
// the password of its address, which may be one of the developer's.
func pgbouncerConfig(postgres string, port int) (string, error) {
	u, err := url.Parse(postgres)
	if err != nil {
		return "", fmt.Errorf("read the address of Postgres for PgBouncer: it is not a URL")
	}
	server := []string{"host=" + u.Hostname(), "user=" + quoted(u.User.Username())}
	if u.Port() != "" {
		server = append(server, "port="+u.Port())
	}
	if password, ok := u.User.Password(); ok {
		server = append(server, "password="+quoted(password))
	}
	return fmt.Sprintf(`[databases]
* = %s

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 40
max_client_conn = 2000
ignore_startup_parameters = extra_float_digits,statement_timeout,idle_in_transaction_session_timeout
`, strings.Join(server, " "), port), nil
}

// quoted is a value as PgBouncer's [databases] section takes it.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
