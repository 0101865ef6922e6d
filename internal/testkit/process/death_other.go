//go:build !linux

package process

import "syscall"

// DieWithParent is Linux's alone; elsewhere only a test's cleanup ends its
// children.
func DieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
