package main

import (
	"fmt"
	"syscall"
)

// leastRoom is what the servers fill at once, before any test has run: data
// folders, logs, binaries.
const leastRoom = 600 << 20 // bytes

// room tells of a full disk before Postgres does, in the middle of something.
func (u *upper) room() error {
	dir, err := u.folder("run")
	if err != nil {
		return err
	}
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return nil // whoever can't tell doesn't stop us
	}
	if free := uint64(s.Bavail) * uint64(s.Bsize); free < leastRoom {
		return fmt.Errorf("the disk of %s has %d MB left, and the servers need %d MB to start with: make room; nothing was started",
			dir, free>>20, leastRoom>>20)
	}
	return nil
}
