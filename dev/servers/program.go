package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// program is a binary that a server is started with, and how to come by it.
// Files that start servers hold one as a constant would be held.
type program struct {
	name    string
	folders []string // asked before PATH, which often lacks the sbin folders
	fits    func(path string) error
	lack    lack // what a person has to do where it can't be installed
}

// find looks for it without installing anything. The error tells what was
// found and does not fit.
func (p program) find() (string, error) {
	candidates := make([]string, 0, len(p.folders)+1)
	for _, folder := range p.folders {
		candidates = append(candidates, filepath.Join(folder, p.name))
	}
	var faults []error
	for _, candidate := range append(candidates, p.name) {
		path, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		if p.fits == nil {
			return path, nil
		}
		if err = p.fits(path); err == nil {
			return path, nil
		}
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return "", errors.Join(faults...)
	}
	return "", fmt.Errorf("%s is neither in PATH nor in %s", p.name, strings.Join(p.folders, " or "))
}

// missing says what a person has to do before `up` can start it, or nothing.
func (p program) missing(*upper) *lack {
	_, err := p.find()
	if err == nil {
		return nil
	}
	if _, noRoot := asRoot(); noRoot == nil {
		return nil // it will be installed
	}
	l := p.lack
	l.why = err.Error()
	return &l
}

// program finds a program, or installs the Debian package that holds it.
func (l local) program(p program) (string, error) {
	path, err := p.find()
	if err == nil {
		return path, nil
	}
	if err := l.debian.install(l, p.lack.debian); err != nil {
		return "", err
	}
	if path, err = p.find(); err != nil {
		return "", fmt.Errorf("find %s after installing the Debian package %s: %w", p.name, p.lack.debian, err)
	}
	return path, nil
}
