package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

// docker runs servers in containers, where an engine answers.
type docker struct {
	place
	*progress

	asked sync.Once
	yes   bool
	mu    sync.Mutex // one compose at a time: two would make the network twice

	variables []string // NAME=value, of compose.yaml; guarded by mu
}

// answers reports whether a docker engine with Compose really answers: on
// many machines the command is there and the engine is not.
func (d *docker) answers() bool {
	d.asked.Do(func() {
		if os.Getenv("POSTBUS_SERVERS") == fromLocal {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		d.yes = exec.CommandContext(ctx, "docker", "info").Run() == nil &&
			exec.CommandContext(ctx, "docker", "compose", "version").Run() == nil
	})
	return d.yes
}

// compose runs Docker Compose on this checkout's project and returns stdout.
func (d *docker) compose(args ...string) (string, error) {
	cmd := exec.Command("docker", append([]string{"compose",
		"--project-name", "postbus-" + d.id(),
		"--file", filepath.Join(d.repo, "dev", "compose.yaml")}, args...)...)
	cmd.Env = append(os.Environ(), d.variables...)
	var out, problems strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run docker compose %s: %w\n%s\nto do without Docker, set POSTBUS_SERVERS=local",
			strings.Join(args, " "), err, tail([]byte(problems.String())))
	}
	return out.String(), nil
}

// up starts a service, waits until it is healthy and returns its address.
func (d *docker) up(s *server) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var address string
	err := d.step(s.title, "starting with Docker Compose", func() error {
		if err := d.choosePort(s); err != nil {
			return err
		}
		if _, err := d.compose("up", "--detach", "--wait", s.key); err != nil {
			return err
		}
		// Docker has chosen the port on the loopback address, for most.
		addr, err := d.compose("port", s.key, strconv.Itoa(s.composePort))
		if err != nil {
			return err
		}
		address = s.composeURL(strings.TrimSpace(addr))
		return d.reachable(s, address)
	})
	return address, err
}

// choosePort finds a port for a server that has to know it beforehand.
func (d *docker) choosePort(s *server) error {
	if s.composeKnows == "" {
		return nil
	}
	port, err := process.FreePort()
	if err == nil {
		d.variables = append(d.variables, fmt.Sprintf("%s=%d", s.composeKnows, port))
	}
	return err
}

// reachable waits until a container answers on its port out here.
func (d *docker) reachable(s *server, address string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := s.answers(address, false)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("reach the container %s at %s: %w", s.key, address, err)
		}
	}
}

// down removes the containers and their data.
func (d *docker) down() error {
	return d.step("Docker Compose", "stopping", func() error {
		_, err := d.compose("down", "--volumes", "--timeout", "5")
		return err
	})
}
