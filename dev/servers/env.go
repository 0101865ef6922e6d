package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// env prints the addresses as shell commands.
func env(p place, w io.Writer) error {
	st, err := p.loadState()
	if err != nil {
		return err
	}
	lines, missing := exports(st)
	if len(missing) > 0 {
		return fmt.Errorf("no address for %s; run `make servers-up` first", strings.Join(missing, ", "))
	}
	_, err = io.WriteString(w, lines+p.programLines())
	return err
}

// exports makes one line per server. Tests read them too (testkit.URL), so
// the form is fixed: export NAME='value'.
func exports(st *state) (lines string, missing []string) {
	var b strings.Builder
	for _, s := range servers {
		r, known := st.get(s.key)
		if !known {
			missing = append(missing, s.title)
			continue
		}
		b.WriteString(export(s.variable, r.URL))
	}
	return b.String(), missing
}

func export(name, value string) string {
	return fmt.Sprintf("export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
}

// writeEnv writes .dev/env, from which `go test` learns the addresses.
func (p place) writeEnv(st *state, testPrograms string) error {
	lines, _ := exports(st)
	if err := replaceFile(p.envFile(), []byte(lines+testPrograms)); err != nil {
		return fmt.Errorf("write the addresses: %w", err)
	}
	return nil
}

func (p place) removeEnv() error {
	if err := os.Remove(p.envFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the addresses: %w", err)
	}
	return nil
}

func (p place) envFile() string { return filepath.Join(p.dev, "env") }
