package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/postbus/postbus/internal/brokerserver"
	"github.com/postbus/postbus/internal/testkit/process"
)

// moto serves SNS, and SQS for what SNS delivers to.
var moto = &server{
	key: "moto", title: "moto (SNS)", variable: "POSTBUS_SNS_URL",
	answers: answersAsAWS,
	start:   startMoto,
	missing: missingMoto,
	stop:    syscall.SIGTERM,

	composePort: 5000,
	composeURL:  brokerserver.HTTPURL,
}

const motoVersion = "5.2.5"

// motoList is moto with what its server needs for SNS and SQS, pinned: half of
// what `moto[server]` brings for the services that are not used here.
//
//go:embed moto.txt
var motoList string

var python = program{
	name: "python3", folders: []string{"/usr/bin", "/opt/homebrew/bin"}, fits: fitsAsPython,
	lack: lack{
		debian: "python3-venv", fedora: "python3", brew: "python3",
		byHand:   "a python3 with the modules venv and ensurepip in PATH; pip fetches from where its configuration says",
		variable: "POSTBUS_SNS_URL=http://host:5000",
	},
}

func fitsAsPython(path string) error {
	if out, err := exec.Command(path, "-c", "import venv, ensurepip").CombinedOutput(); err != nil {
		return fmt.Errorf("%s cannot make an environment of its own, for want of the modules venv and ensurepip: %w\n%s", path, err, tail(out))
	}
	return nil
}

func motoHome(u *upper) (string, error) {
	binaries, err := u.folder("bin")
	return filepath.Join(binaries, "moto-"+motoVersion), err
}

func missingMoto(u *upper) *lack {
	home, err := motoHome(u)
	if err == nil {
		if _, err := os.Stat(filepath.Join(home, "ready")); err == nil {
			return nil
		}
	}
	return python.missing(u)
}

func startMoto(l local) (record, *process.Process, error) {
	home, err := installMoto(l)
	if err != nil {
		return record{}, nil, err
	}
	m := brokerserver.Moto{Server: l.broker(filepath.Join(home, "bin", "python3"), "")}
	p, err := m.Start()
	return record{URL: brokerserver.HTTPURL(m.Addr())}, p, err
}

// installMoto makes an environment for Python with moto in it. Its programs
// hold its path, so that it gets no name at the end but a mark.
func installMoto(l local) (home string, err error) {
	if home, err = motoHome(l.upper); err != nil {
		return "", err
	}
	mark := filepath.Join(home, "ready")
	if _, err := os.Stat(mark); err == nil {
		return home, nil
	}
	program, err := l.program(python)
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.RemoveAll(home), openDir(home)); err != nil {
		return "", fmt.Errorf("make a folder for moto: %w", err)
	}
	if err := l.step("making an environment for Python", func() error { return command(nil, program, "-m", "venv", home) }); err != nil {
		return "", err
	}
	list := filepath.Join(home, "moto.txt")
	if err := os.WriteFile(list, []byte(motoList), 0o644); err != nil {
		return "", fmt.Errorf("write down for pip what to install: %w", err)
	}
	err = l.step("installing moto "+motoVersion+" with pip", func() error {
		return command(nil, filepath.Join(home, "bin", "python3"), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input",
			"install", "--only-binary", ":all:", "--no-deps", "--requirement", list)
	})
	if err != nil {
		return "", fmt.Errorf("%w\npip fetches from where its configuration says", err)
	}
	if err := readable(home); err != nil {
		return "", fmt.Errorf("let the servers' account read %s: %w", home, err)
	}
	return home, os.WriteFile(mark, []byte(strings.TrimSpace(motoVersion)+"\n"), 0o644)
}
