// Package brokerserver runs Kafka, RabbitMQ, ElasticMQ and moto from their
// programs: for the tests and the demo of this repository, never for
// production. It uses the standard library only.
package brokerserver

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/postbus/postbus/internal/testkit/process"
)

// Server is one broker on a loopback port, and on no other address. Program,
// Dir, Port and Account are required. The data is in Dir, and a later start
// finds it there. It is not safe for concurrent use.
type Server struct {
	Program  string   // java, rabbitmq-server, or a Python that has moto
	Jars     string   // folder of a Java server's jars
	Dir      string   // holds all that it writes; the account must reach it
	Port     int      // on 127.0.0.1
	Settings []string // lines of its configuration, after ours, which they may overrule
	Account  process.Account

	DieWithParent bool // see process.Spec
}

// Variables of the environment, and of .dev/env, that name the folders of jars
// from which tests start servers of their own.
const (
	KafkaJars     = "POSTBUS_KAFKA_JARS"
	ElasticMQJars = "POSTBUS_ELASTICMQ_JARS"
)

// Addr is host:port.
func (s Server) Addr() string { return addr(s.Port) }

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (s Server) path(name string) string { return filepath.Join(s.Dir, name) }

// write makes a file of the server's folder.
func (s Server) write(name, content string) error {
	if err := s.Account.WriteFile(s.path(name), []byte(content)); err != nil {
		return fmt.Errorf("configure %s: %w", filepath.Base(s.Program), err)
	}
	return nil
}

// Find looks for a program in folders and then in PATH.
func Find(name string, folders []string) (string, error) {
	for _, folder := range folders {
		if path, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither in PATH nor in %s", name, strings.Join(folders, " or "))
	}
	return path, nil
}

// JavaFolders are where to look for java before PATH.
func JavaFolders() []string {
	folders := []string{"/opt/homebrew/opt/openjdk/bin"} // macOS' own /usr/bin/java only asks for one
	if home := os.Getenv("JAVA_HOME"); home != "" {
		folders = append([]string{filepath.Join(home, "bin")}, folders...)
	}
	return folders
}

// java is a command line of the server's classes with at most that much heap.
// The collector is the one with the fewest threads: cores are few here.
func (s Server) java(heap string, args ...string) []string {
	return append([]string{
		"-Xms32m", "-Xmx" + heap, "-XX:+UseSerialGC", "-Djava.awt.headless=true", "-Djava.io.tmpdir=" + s.Dir,
		"-cp", filepath.Join(s.Jars, "*"),
	}, args...)
}
