package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

// local is what a server's file gets to start its process with.
type local struct {
	*upper
	server *server
	dir    string // belongs to the account
	port   int    // free a moment ago
	behind string // the address of the server that it stands in front of
}

// step reports what takes long, under the server's name.
func (l local) step(what string, do func() error) error {
	return l.upper.step(l.server.title, what, do)
}

// fromLocal starts the server's process, on its old data if it has any. Data
// that it can't start on is thrown away: nothing but tests has written it.
func (u *upper) fromLocal(s *server, old, behind record) error {
	if err := u.quit(s, old); err != nil {
		return err
	}
	run, err := u.folder("run")
	if err != nil {
		return err
	}
	dir := filepath.Join(run, s.key)
	_, err = os.Stat(dir)
	reused := err == nil
	err = u.startLocal(s, dir, old.Port, behind.URL)
	if err != nil && reused && !errors.Is(err, errNotInstalled) {
		u.say(s.title, "it does not start on its old data, so it starts afresh: %v", err)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clear %s: %w", dir, err)
		}
		err = u.startLocal(s, dir, old.Port, behind.URL)
	}
	return err
}

func (u *upper) startLocal(s *server, dir string, port int, behind string) error {
	if port == 0 || process.PortFree(port) != nil { // taken meanwhile: another will do
		var err error
		if port, err = process.FreePort(); err != nil {
			return err
		}
	}
	l := local{upper: u, server: s, dir: dir, port: port, behind: behind}
	if err := u.account.MakeDir(dir); err != nil {
		return fmt.Errorf("make its folder: %w", err)
	}
	r, p, err := s.start(l)
	if err != nil {
		return err
	}
	r.From, r.Behind, r.Identity, r.Port, r.Dir = fromLocal, behind, p.Identity, port, dir
	if err := u.state.set(s.key, r); err != nil {
		return errors.Join(err, p.Stop(s.stop, stopPatience))
	}
	err = l.step("starting", func() error {
		err := p.Ready(time.Minute, func() error { return s.answers(r.URL, false) })
		if err == nil && !p.Alive() {
			err = fmt.Errorf("somebody else answers at %s, and the process that was started is gone; try again", withoutPassword(r.URL))
		}
		return err
	})
	if err != nil {
		return errors.Join(err, u.quit(s, r))
	}
	return nil
}

const stopPatience = 10 * time.Second

// quit stops the process of a record, and no other, and forgets it. Its data
// stays.
func (u *upper) quit(s *server, r record) error {
	if r.From != fromLocal {
		return nil
	}
	err := u.step(s.title, "stopping what does not answer", func() error { return r.Stop(s.stop, stopPatience) })
	if err != nil {
		return err
	}
	return u.state.forget(s.key)
}
