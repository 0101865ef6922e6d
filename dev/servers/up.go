package main

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/postbus/postbus/internal/testkit/process"
)

// upper provides all servers at once, each waiting only for the one that it
// stands in front of.
type upper struct {
	place
	*progress
	servers []*server // that are to be up
	state   *state
	account process.Account
	docker  *docker
	debian  debian
	maven   sync.Mutex
}

// up provides the servers given; all, if none is.
func up(p place, wanted ...*server) error {
	if len(wanted) == 0 {
		wanted = servers
	}
	u := &upper{place: p, progress: &progress{w: os.Stderr}, servers: wanted}
	if err := p.make(); err != nil {
		return err
	}
	unlock, err := p.lock(u.progress)
	if err != nil {
		return err
	}
	defer unlock()
	if u.state, err = p.loadState(); err != nil {
		return err
	}
	if u.account, err = process.ServiceAccount(); err != nil {
		return err
	}
	u.docker = &docker{place: p, progress: u.progress}
	if err := u.missing(); err != nil {
		return err
	}
	if err := u.room(); err != nil {
		return err
	}

	var all sync.WaitGroup
	ready, errs := map[*server]chan struct{}{}, make([]error, len(u.servers))
	for _, s := range u.servers {
		ready[s] = make(chan struct{})
	}
	for i, s := range u.servers {
		all.Go(func() {
			defer close(ready[s])
			if s.behind != nil {
				<-ready[s.behind]
			}
			if err := u.provide(s); err != nil {
				errs[i] = fmt.Errorf("%s: %w", s.title, err)
			}
		})
	}
	all.Wait()
	return errors.Join(append(errs, p.writeEnv(u.state, u.testPrograms()))...)
}

// folder is place.folder for the servers' account.
func (u *upper) folder(name string) (string, error) { return u.place.folder(u.account, name) }

// origin decides where a server comes from; see the package's comment. It
// changes nothing.
func (u *upper) origin(s *server) string {
	old, known := u.state.get(s.key)
	// A shell that has sourced .dev/env hands us our own addresses back.
	ours := known && old.From != fromEnvironment
	if address := s.fromVariable(); address != "" && !(ours && address == old.URL) {
		return fromEnvironment
	}
	if ours && u.runs(s, old) {
		return old.From
	}
	// A pooler has to reach its server: the container of one does not reach
	// the loopback address of another.
	if (s.behind == nil || u.origin(s.behind) == fromCompose) && u.docker.answers() {
		return fromCompose
	}
	return fromLocal
}

// runs reports whether what the record speaks of is up, and stands in front
// of the right server.
func (u *upper) runs(s *server, r record) bool {
	if s.behind != nil {
		if behind, _ := u.state.get(s.behind.key); behind.URL != r.Behind {
			return false
		}
	}
	return u.step(s.title, "asking whether it answers", func() error { return s.running(r) }) == nil
}

// provide finds or starts one server and records it.
func (u *upper) provide(s *server) error {
	old, _ := u.state.get(s.key)
	var behind record
	if s.behind != nil {
		if behind, _ = u.state.get(s.behind.key); behind.URL == "" {
			return fmt.Errorf("it needs %s, which is not up", s.behind.title)
		}
	}
	from := u.origin(s)
	switch {
	case from == fromEnvironment:
		return u.fromEnvironment(s, s.fromVariable(), old, behind)
	case from == old.From && u.runs(s, old):
		return nil
	case from == fromCompose:
		return u.fromCompose(s, old, behind)
	}
	return u.fromLocal(s, old, behind)
}

func (u *upper) fromCompose(s *server, old, behind record) error {
	if err := u.quit(s, old); err != nil {
		return err
	}
	address, err := u.docker.up(s)
	if err != nil {
		return err
	}
	return u.state.set(s.key, record{From: fromCompose, URL: address, Behind: behind.URL})
}

// running returns nil if what the record speaks of is still ours and answers.
func (s *server) running(r record) error {
	if r.From == fromLocal && !r.Alive() {
		return fmt.Errorf("its process %d is gone", r.PID)
	}
	return s.answers(r.URL, r.From == fromEnvironment)
}

func (u *upper) fromEnvironment(s *server, address string, old, behind record) error {
	if s.behind != nil && behind.From != fromEnvironment {
		return fmt.Errorf("%s is set but %s is not: set both, so that one stands in front of the other, or neither",
			s.variable, s.behind.variable)
	}
	if err := s.answers(address, true); err != nil {
		return fmt.Errorf("%s is set, but what it names (%s) does not answer: %w; correct it, or unset it to have a server started",
			s.variable, withoutPassword(address), err)
	}
	if err := u.quit(s, old); err != nil {
		return err
	}
	return u.state.set(s.key, record{From: fromEnvironment, URL: address, Behind: behind.URL})
}
