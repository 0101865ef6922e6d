package process

import "syscall"

// DieWithParent has the kernel send sig to the child when the thread that
// started it dies. Start the child with Launch, on a thread that stays.
func DieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }
