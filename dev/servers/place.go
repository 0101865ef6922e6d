package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

// home is the folder for binaries and data: .dev, or a temporary folder where
// the account that the servers run as can't walk down to .dev.
func (p place) home(a process.Account) (string, error) {
	if a.Reaches(p.dev) {
		return p.dev, nil
	}
	temp, err := a.ReachableTemp()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(temp, fmt.Sprintf("postbus-dev-%d-%s", os.Geteuid(), p.id()))
	if err := openDir(dir); err != nil {
		return "", fmt.Errorf("make a folder for servers that %s can reach: %w", a.Name, err)
	}
	return dir, nil
}

// id tells this checkout from others on the machine.
func (p place) id() string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(p.repo)))[:12]
}

// openDir makes a folder that others may enter, whatever the umask, and
// refuses one that somebody else has put there.
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
	// Only the owner may change the mode, so this also finds a stranger's folder.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("%w: somebody else made it; work as that user, or remove it", err)
	}
	return nil
}
