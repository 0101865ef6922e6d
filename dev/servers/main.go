// Command servers provides the servers that the tests and the demo need.
//
//	go run ./dev/servers up       start what is missing; write .dev/env
//	go run ./dev/servers up redis postgres15
//	                              the same of these, and what they stand in front of
//	go run ./dev/servers status   what runs where, and whether it answers
//	go run ./dev/servers env      the addresses, for the shell's eval
//	go run ./dev/servers down     stop what up has started, and its data
//
// Each server comes from the first of these that there is: the address in its
// environment variable; Docker Compose, where an engine answers; a local
// process, whose program is looked for, installed as a Debian package or, of
// Postgres, downloaded. To rule Docker out, set POSTBUS_SERVERS=local. What
// can't be had at all is told before anything is started.
//
// It uses the standard library only, so that it builds in a fresh clone
// before any module is downloaded. One server is one file: to add one, write
// its file and name it in the table of server.go.
package main

import (
	"fmt"
	"os"
)

const usage = "usage: go run ./dev/servers up [server ...] | down | status | env\n"

func main() {
	if len(os.Args) < 2 || len(os.Args) > 2 && os.Args[1] != "up" {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "servers %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func run(command string, names []string) error {
	p, err := openPlace()
	if err != nil {
		return err
	}
	switch command {
	case "up":
		wanted, err := choose(names)
		if err != nil {
			return err
		}
		return up(p, wanted...)
	case "down":
		return down(p)
	case "status":
		return status(p, os.Stdout)
	case "env":
		return env(p, os.Stdout)
	}
	return fmt.Errorf("there is no such command; %s", usage)
}
