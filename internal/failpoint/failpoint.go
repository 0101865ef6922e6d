// Package failpoint lets a test stop, kill or delay a process at a named
// instruction. Nothing but a test can set a hook, so a program in production
// pays one atomic load per point and cannot be switched by its environment.
package failpoint

import "sync/atomic"

var hook atomic.Pointer[func(name string)]

// Hit calls the hook, if a test has set one.
func Hit(name string) {
	if h := hook.Load(); h != nil {
		(*h)(name)
	}
}

// Set makes h the hook of the process; nil removes it. h may be called from
// several goroutines at once.
func Set(h func(name string)) {
	if h == nil {
		hook.Store(nil)
		return
	}
	hook.Store(&h)
}
