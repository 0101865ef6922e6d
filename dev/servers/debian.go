package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// debian installs Debian packages, one after the other.
type debian struct {
	mu      sync.Mutex
	updated bool // the lists are fresh
}

// errNotInstalled says that a person has to install something.
var errNotInstalled = errors.New("not installed")

// installScript runs as root; its arguments are packages. A policy file keeps
// the packages from starting services of their own, and, where systemd runs,
// they stay off after the next boot too: only what we start by pid is ours to
// stop. A policy that is there already is the owner's and stays.
const installScript = `set -e
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
if [ -d /run/systemd/system ]; then
	for package in "$@"; do systemctl disable --quiet "${package%-15}" 2>/dev/null || true; done
fi
`

func (d *debian) install(l local, packages ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := strings.Join(packages, " ")
	root, err := asRoot()
	if err != nil {
		return fmt.Errorf("%w: run `apt-get install %s` as root, or start Docker, or set %s to a server of yours (%v)",
			errNotInstalled, names, l.server.variable, err)
	}
	install := func() error {
		return command(root, append([]string{"sh", "-c", installScript, "sh"}, packages...)...)
	}
	return l.step("installing the Debian package "+names, func() error {
		err := install()
		if err == nil || d.updated {
			return err
		}
		// The lists are missing or older than what the mirror still has.
		if err := command(root, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"); err != nil {
			return err
		}
		d.updated = true
		return install()
	})
}

// asRoot is what to put before a command to run it as root: nothing, or sudo
// where it asks for no password.
func asRoot() ([]string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("there is no apt-get to do it for you")
	}
	if os.Geteuid() == 0 {
		return nil, nil
	}
	if err := exec.Command("sudo", "-n", "true").Run(); err != nil {
		return nil, errors.New("you are not root, and sudo wants a password or is not there")
	}
	return []string{"sudo", "-n"}, nil
}

// command runs a program without input; its output becomes part of the error.
func command(before []string, args ...string) error {
	args = append(before[:len(before):len(before)], args...)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", strings.Join(args[:min(len(args), 3)], " "), err, tail(out))
	}
	return nil
}

// tail keeps the end of a program's output, where the reason stands.
func tail(out []byte) []byte {
	const most = 2000 // bytes
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return bytes.TrimSpace(out)
}
