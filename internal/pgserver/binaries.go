package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// BinVariable names a folder with the binaries of Postgres 15, for servers
// that tests start themselves. `make servers-up` writes it into .dev/env.
const BinVariable = "POSTBUS_POSTGRES_BIN"

// Binaries finds the folder of the binaries of one major version: where
// packages put them (Debian's, the PostgreSQL project's RPMs, Homebrew), in
// the other folders given, and at last where PATH finds postgres, if that is
// of this version.
func Binaries(major int, others ...string) (string, error) {
	folders := append([]string{
		fmt.Sprintf("/usr/lib/postgresql/%d/bin", major),
		fmt.Sprintf("/usr/pgsql-%d/bin", major),
		fmt.Sprintf("/opt/homebrew/opt/postgresql@%d/bin", major),
		fmt.Sprintf("/usr/local/opt/postgresql@%d/bin", major),
	}, others...)
	return binaries(major, folders)
}

func binaries(major int, folders []string) (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real // initdb is beside the program, not beside a link to it
		}
		folders = append(folders[:len(folders):len(folders)], filepath.Dir(path))
	}
	var faults []error
	for _, folder := range folders {
		err := Check(folder, major)
		if err == nil {
			return folder, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	return "", errors.Join(append([]error{fmt.Errorf("find the binaries of Postgres %d: they are in no folder where packages put them, and PATH has none", major)}, faults...)...)
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// Check returns nil if the folder has what a Server needs, in this major
// version, and os.ErrNotExist in the error if it has no postgres at all.
func Check(folder string, major int) error {
	for _, name := range []string{"postgres", "initdb"} {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("look for Postgres %d: %w", major, err)
		}
		if _, err := exec.LookPath(path); err != nil {
			return fmt.Errorf("look for Postgres %d: %s is not a program that you may run", major, path)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(folder, "postgres"), "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("look for Postgres %d: %s/postgres does not run here: %w\n%s", major, folder, err, out)
	}
	m := versionText.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("look for Postgres %d: %s/postgres --version says %q", major, folder, out)
	}
	if got, _ := strconv.Atoi(string(m[1])); got != major {
		return fmt.Errorf("look for Postgres %d: %s has version %d", major, folder, got)
	}
	return nil
}
