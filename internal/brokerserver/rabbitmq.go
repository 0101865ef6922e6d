package brokerserver

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/postbus/postbus/internal/testkit/process"
)

// RabbitMQ is one node without plugins. Its own epmd, which tells one Erlang
// program the port of another, dies with it (on Linux).
type RabbitMQ struct {
	Server
	epmdPort int // another one at each start: the former epmd may not be gone yet
}

// Names and passwords: one that may everything, and one that may log in to the
// virtual host / and do nothing there.
const (
	RabbitMQUser, RabbitMQPassword         = "postbus", "postbus-secret"
	RabbitMQPowerless, RabbitMQPowerlessPw = "powerless", "powerless-secret"
)

const rabbitmqDefinitions = `{
"users": [
 {"name": "` + RabbitMQUser + `", "password": "` + RabbitMQPassword + `", "tags": "administrator"},
 {"name": "` + RabbitMQPowerless + `", "password": "` + RabbitMQPowerlessPw + `", "tags": ""}
],
"vhosts": [{"name": "/"}],
"permissions": [
 {"user": "` + RabbitMQUser + `", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
 {"user": "` + RabbitMQPowerless + `", "vhost": "/", "configure": "^$", "write": "^$", "read": "^$"}
]}
`

// RabbitMQFolders are where to look for rabbitmq-server and rabbitmqctl before
// PATH: what Debian puts there refuses to run as anybody but root.
func RabbitMQFolders() []string {
	return []string{"/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin"}
}

// rabbitmqScript: the node takes the script's place, so that its process id is
// the one to kill. Without a limit of its own it would be held to 1,024 files.
// An epmd that it starts itself would outlive it, so it may not.
const rabbitmqScript = `ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -H -n)"
if command -v setpriv >/dev/null; then
	setpriv --pdeathsig TERM epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" &
	export ERL_FLAGS="$ERL_FLAGS -start_epmd false"
fi
exec "$1"
`

// Start starts it, with a user and another without rights.
func (r *RabbitMQ) Start() (*process.Process, error) {
	distribution, err := process.FreePort()
	if err != nil {
		return nil, err
	}
	if r.epmdPort, err = process.FreePort(); err != nil {
		return nil, err
	}
	for name, content := range map[string]string{
		"rabbitmq.conf": fmt.Sprintf("listeners.tcp.1 = %s\nload_definitions = %s\nlog.console.level = warning\ndisk_free_limit.absolute = 50MB\n%s\n",
			r.Addr(), r.path("definitions.json"), strings.Join(r.Settings, "\n")),
		"definitions.json": rabbitmqDefinitions,
		"enabled_plugins":  "[].\n",
	} {
		if err := r.write(name, content); err != nil {
			return nil, err
		}
	}
	return process.Start(process.Spec{
		Program: "/bin/sh", Args: []string{"-c", rabbitmqScript, "sh", r.Program},
		Dir: r.Dir, Log: r.path("log"), Account: r.Account,
		Env: append(r.env(),
			"RABBITMQ_ALLOW_INPUT=1", // with -noinput: no script stays between us and it
			// Its schedulers would spin for work on cores that the tests need.
			"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-noinput +sbwt none +sbwtdcpu none +sbwtdio none",
			fmt.Sprintf("RABBITMQ_DIST_PORT=%d", distribution)),
		DieWithParent: r.DieWithParent, ParentDeath: syscall.SIGKILL,
	})
}

// env is what the node and rabbitmqctl see. The node's cookie lies in HOME,
// which is the server's folder.
func (r *RabbitMQ) env() []string {
	return []string{
		"RABBITMQ_NODENAME=postbus@localhost", "RABBITMQ_CONF_ENV_FILE=" + r.path("none"),
		"RABBITMQ_CONFIG_FILE=" + r.path("rabbitmq.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE=" + r.path("enabled_plugins"),
		"RABBITMQ_MNESIA_BASE=" + r.path("data"), "RABBITMQ_LOG_BASE=" + r.path("logs"), "RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE=" + r.path("pid"), "RABBITMQ_GENERATED_CONFIG_DIR=" + r.path("generated"),
		"ERL_EPMD_ADDRESS=127.0.0.1", fmt.Sprintf("ERL_EPMD_PORT=%d", r.epmdPort),
		"ERL_FLAGS=" + erlangFlags,
	}
}

// erlangFlags keep Erlang's own listener to the loopback address.
const erlangFlags = "-kernel inet_dist_use_interface {127,0,0,1}"

// EpmdAddr is where the running node's epmd listens.
func (r *RabbitMQ) EpmdAddr() string { return addr(r.epmdPort) }

// Control runs rabbitmqctl on the running node and returns what it prints. It
// starts no epmd for a node that has gone.
func (r *RabbitMQ) Control(args ...string) (string, error) {
	out, err := process.Output(process.Spec{
		Program: filepath.Join(filepath.Dir(r.Program), "rabbitmqctl"), Args: append([]string{"--quiet"}, args...),
		Dir: r.Dir, Account: r.Account, Env: append(r.env(), "ERL_FLAGS="+erlangFlags+" -start_epmd false"),
	}, "")
	return string(out), err
}

// URL is the address of the user that may everything.
func (r *RabbitMQ) URL() string { return RabbitMQURL(r.Addr()) }

// RabbitMQURL is the address of such a user on host:port.
func RabbitMQURL(addr string) string {
	return "amqp://" + RabbitMQUser + ":" + RabbitMQPassword + "@" + addr + "/"
}

// RabbitMQAnswers returns nil if somebody at host:port speaks AMQP 0-9-1. It
// logs in to nothing.
func RabbitMQAnswers(addr string) error {
	conn, err := dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "AMQP\x00\x00\x09\x01"); err != nil {
		return fmt.Errorf("greet %s: %w", addr, err)
	}
	var frame [11]byte // type, channel, size, class, method
	if _, err := io.ReadFull(conn, frame[:]); err != nil {
		return fmt.Errorf("greet %s: %w", addr, err)
	}
	if frame[0] != 1 || !bytes.Equal(frame[7:], []byte{0, 10, 0, 10}) {
		return fmt.Errorf("greet %s: the answer is not that of AMQP 0-9-1", addr)
	}
	return nil
}
