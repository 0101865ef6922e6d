package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lock keeps a second `up` or `down` on this checkout waiting, so that they
// don't start two sets of servers. The kernel frees it if we die.
func (p place) lock(w *progress) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(p.dev, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the servers of this checkout: %w", err)
	}
	const most = 15 * time.Minute // a first `up` downloads and installs
	err = w.step("servers", "waiting for another up or down of this checkout", func() error {
		for deadline := time.Now().Add(most); ; time.Sleep(50 * time.Millisecond) {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
			if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
				return err
			}
		}
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the servers of this checkout (%s): %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}
