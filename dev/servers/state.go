package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/postbus/postbus/internal/testkit/process"
)

// Where a server comes from.
const (
	fromEnvironment = "environment"
	fromCompose     = "compose"
	fromLocal       = "local"
)

// record is what we remember of one server.
type record struct {
	From   string `json:"from"`
	URL    string `json:"url"`
	Behind string `json:"behind,omitempty"` // the address that a pooler was started in front of

	// Of a local process.
	process.Identity
	Port int    `json:"port,omitempty"`
	Dir  string `json:"dir,omitempty"`
}

// state is the memory between two calls, by server key. It is written after
// every change, so that an interrupted `up` leaves no process that `down`
// does not know. Safe for concurrent use.
type state struct {
	mu      sync.Mutex
	path    string
	records map[string]record
}

func (p place) loadState() (*state, error) {
	s := &state{path: filepath.Join(p.dev, "state.json"), records: map[string]record{}}
	content, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which servers run: %w", err)
	}
	if err := json.Unmarshal(content, &s.records); err != nil {
		return nil, fmt.Errorf("read which servers run from %s: %w; stop them by hand and remove the file", s.path, err)
	}
	return s, nil
}

func (s *state) get(key string) (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records[key]
	return r, ok
}

func (s *state) set(key string, r record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[key] = r
	return s.save()
}

func (s *state) forget(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, key)
	return s.save()
}

// save replaces the file in one step. An empty state has none.
func (s *state) save() error {
	if len(s.records) == 0 {
		if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the servers: %w", err)
		}
		return nil
	}
	content, err := json.MarshalIndent(s.records, "", "\t")
	if err == nil {
		err = replaceFile(s.path, append(content, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write down which servers run: %w", err)
	}
	return nil
}

// replaceFile lets a reader see the old file or the new one, never a half. It
// is private: an address from the environment may hold a password.
func replaceFile(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
