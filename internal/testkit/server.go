package testkit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Server is one of the shared servers. Its value is the environment variable
// that holds its address.
type Server string

const (
	PG15        Server = "POSTBUS_POSTGRES_URL"
	PG18        Server = "POSTBUS_POSTGRES18_URL"
	PgBouncer   Server = "POSTBUS_PGBOUNCER_URL" // transaction pooling, in front of PG15
	RedisServer Server = "POSTBUS_REDIS_URL"

	KafkaServer    Server = "POSTBUS_KAFKA_BROKERS" // host:port,host:port
	RabbitMQServer Server = "POSTBUS_RABBITMQ_URL"
	SQSServer      Server = "POSTBUS_SQS_URL" // ElasticMQ
	SNSServer      Server = "POSTBUS_SNS_URL" // moto, which has an SQS of its own behind it
)

// direct is the server behind a pooler, or the server itself.
func (s Server) direct() Server {
	if s == PgBouncer {
		return PG15
	}
	return s
}

// URL is the address of a shared server: from its environment variable, or
// else from the file that `make servers-up` has written. Without either the
// test fails.
func URL(t testing.TB, which Server) string {
	t.Helper()
	address, err := which.address()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func (s Server) address() (string, error) {
	address, err := variable(string(s))
	if err != nil {
		return "", fmt.Errorf("find a server for the test: %w; set %s", err, s)
	}
	if address == "" {
		return "", fmt.Errorf("no server for the test: run `make servers-up` or set %s", s)
	}
	return address, nil
}

// variable is what the environment says or else .dev/env; "" if neither does.
func variable(name string) (string, error) {
	if value := strings.TrimSpace(os.Getenv(name)); value != "" {
		return value, nil
	}
	path, err := envFile()
	if err != nil {
		return "", err
	}
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return parseEnv(string(content))[name], nil
}

// envFile is .dev/env beside go.mod, here or above: go test runs every
// package's tests in the package's own folder.
func envFile() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".dev", "env"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod here or above")
		}
		dir = parent
	}
}

// parseEnv reads lines of the form export NAME='value', quoted for the shell
// as dev/servers writes them.
func parseEnv(content string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(content) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if !ok || len(value) < 2 || value[0] != '\'' || value[len(value)-1] != '\'' {
			continue
		}
		values[name] = strings.ReplaceAll(value[1:len(value)-1], `'\''`, "'")
	}
	return values
}
