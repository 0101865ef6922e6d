package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// down stops what up has started, and nothing else: a local process by its
// pid and start time, the containers by the project's name. It removes the
// data and keeps the binaries.
func down(p place) error {
	if _, err := os.Stat(p.dev); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	w := &progress{w: os.Stderr}
	unlock, err := p.lock(w)
	if err != nil {
		return err
	}
	defer unlock()
	st, err := p.loadState()
	if err != nil {
		return err
	}

	var all sync.WaitGroup
	errs := make([]error, len(servers))
	var containers []string
	for i, s := range servers {
		r, known := st.get(s.key)
		switch {
		case !known:
		case r.From == fromCompose:
			containers = append(containers, s.key)
		case r.From == fromEnvironment:
			errs[i] = st.forget(s.key) // not ours to stop
		default:
			all.Go(func() {
				if err := stopLocal(st, w, s, r); err != nil {
					errs[i] = fmt.Errorf("%s: %w", s.title, err)
				}
			})
		}
	}
	all.Wait()
	if len(containers) > 0 {
		errs = append(errs, (&docker{place: p, progress: w}).down())
		for _, key := range containers {
			errs = append(errs, st.forget(key))
		}
	}
	return errors.Join(append(errs, p.removeEnv())...)
}

func stopLocal(st *state, w *progress, s *server, r record) error {
	err := w.step(s.title, "stopping", func() error { return r.Stop(s.stop, stopPatience) })
	if err != nil {
		return err
	}
	if err := remove(r.Dir); err != nil {
		return fmt.Errorf("remove its data: %w", err)
	}
	return st.forget(s.key)
}

// remove tries for some seconds: the children of a server that had to be killed
// may write for a moment longer.
func remove(dir string) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if err := os.RemoveAll(dir); err == nil || time.Now().After(end) {
			return err
		}
	}
}
