package process

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Account is whom a server runs as. Postgres and PgBouncer refuse to run as
// root, so that root has to hand them to somebody else.
type Account struct {
	Name     string
	uid, gid int
	switches bool // we are root and become this account
}

// ServiceAccount is the caller's own account or, for root, `postgres` where
// the package has made it and `nobody` otherwise.
func ServiceAccount() (Account, error) {
	if os.Geteuid() != 0 {
		return Account{Name: "yourself", uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.Atoi(u.Uid)
		gid, errGID := strconv.Atoi(u.Gid)
		if errUID == nil && errGID == nil {
			return Account{Name: name, uid: uid, gid: gid, switches: true}, nil
		}
	}
	return Account{}, fmt.Errorf("find an account to run servers as (Postgres refuses root): neither `postgres` nor `nobody` exists; create one of them")
}

func (a Account) credential() *syscall.Credential {
	if !a.switches {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
}

// MakeDir makes a folder that belongs to the account, readable by it alone:
// Postgres refuses a data folder that others can read.
func (a Account) MakeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return a.own(dir)
}

// WriteFile writes a file that the account owns.
func (a Account) WriteFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return a.own(path)
}

func (a Account) own(path string) error {
	if !a.switches {
		return nil
	}
	return os.Chown(path, a.uid, a.gid)
}

// Reaches reports whether the account may walk down to dir: a checkout under
// a home folder of mode 0700 is closed to everybody but its owner.
func (a Account) Reaches(dir string) bool {
	if !a.switches {
		return true // what the caller can't reach fails by itself, with a clear error
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	for {
		var s syscall.Stat_t
		if err := syscall.Stat(dir, &s); err != nil {
			return false
		}
		mode, x := uint32(s.Mode), uint32(0o001)
		switch {
		case int(s.Uid) == a.uid:
			x = 0o100
		case int(s.Gid) == a.gid:
			x = 0o010
		}
		if mode&x == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// ReachableTemp is the first folder for temporary files that the account can
// walk into; TMPDIR may point into somebody's private folder.
func (a Account) ReachableTemp() (string, error) {
	for _, dir := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if a.Reaches(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("find a temporary folder for servers that run as %s: %s, /tmp and /var/tmp are closed to it; set TMPDIR to an open one", a.Name, os.TempDir())
}
