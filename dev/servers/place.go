package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/postbus/postbus/internal/testkit/process"
)

// place is where the servers of this checkout live.
type place struct {
	repo string // the folder of go.mod
	dev  string // repo/.dev: lock, state, addresses
}

func openPlace() (place, error) {
	dir, err := os.Getwd()
	if err != nil {
		return place{}, fmt.Errorf("find the checkout: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return place{}, errors.New("find the checkout: no go.mod here or above; run it inside the repository")
		}
		dir = parent
	}
	return place{repo: dir, dev: filepath.Join(dir, ".dev")}, nil
}

func (p place) make() error {
	if err := openDir(p.dev); err != nil {
		return fmt.Errorf("make the folder for servers: %w", err)
	}
	return nil
}

// folder makes and returns a folder for binaries or data: in .dev, or in a
// temporary folder where the account that the servers run as can't walk down
// to .dev.
func (p place) folder(a process.Account, name string) (string, error) {
	home := p.dev
	if !a.Reaches(home) {
		temp, err := a.ReachableTemp()
		if err != nil {
			return "", err
		}
		home = filepath.Join(temp, fmt.Sprintf("postbus-dev-%d-%s", os.Geteuid(), p.id()))
	}
	dir := filepath.Join(home, name)
	for _, d := range []string{home, dir} {
		if err := openDir(d); err != nil {
			return "", fmt.Errorf("make a folder for servers that %s can reach: %w", a.Name, err)
		}
	}
	return dir, nil
}

// id tells this checkout from others on the machine.
func (p place) id() string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(p.repo)))[:12]
}

// openDir makes a folder that others may enter, whatever the umask. It refuses
// a link or a folder of somebody else's: in a temporary folder anybody could
// have put one there.
func openDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder; remove it", dir)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d; work as that user, or remove it", dir, owner)
	}
	return os.Chmod(dir, 0o755)
}
