package main

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/postbus/postbus/internal/testkit/process"
)

// archive is a build of Postgres for Linux from Maven's central repository: a
// jar, in it one .txz, in it bin, lib and share. It needs no root, and holds
// initdb, pg_ctl and postgres only: no psql and no pg_dump.
//
// To take another version, let Maven fetch both jars and write down what
// sha256sum says: CONTRIBUTING.md has the commands.
type archive struct {
	version string
	sha256  map[string]string // of the jar, by runtime.GOARCH
}

var (
	postgres15Archive = archive{"15.15.0", map[string]string{
		"amd64": "7c73da91870b0615b37a8ceb84871bd42f28c3600f87a97ca9747f4a0b8d2dbb",
		"arm64": "623ee4c35cfdccd585d4473ff9b51942d465a7f8280687e6b960f56066f58909",
	}}
	postgres18Archive = archive{"18.1.0", map[string]string{
		"amd64": "65d0723e0274ad3ec6230dcbdfe034af6ee096fce15a77b0f9b8be71d2702934",
		"arm64": "ea0f16b754fc0a10d9d8993bbd426c20f8c709b318b28e49b42d9cac1c958b8f",
	}}
)

const archiveGroup = "io.zonky.test.postgres"

func (a archive) artifact() string {
	return "embedded-postgres-binaries-linux-" + map[string]string{"amd64": "amd64", "arm64": "arm64v8"}[runtime.GOARCH]
}

func (a archive) jar() jar {
	return jar{archiveGroup, a.artifact(), a.version, a.sha256[runtime.GOARCH]}
}

// home is where its files are, or will be.
func (a archive) home(u *upper) (string, error) {
	binaries, err := u.folder("bin")
	return filepath.Join(binaries, "postgres-"+a.version), err
}

// there reports whether it is unpacked already.
func (a archive) there(u *upper) (bin string, ok bool) {
	home, err := a.home(u)
	if err != nil {
		return "", false
	}
	_, err = os.Stat(filepath.Join(home, "bin", "postgres"))
	return filepath.Join(home, "bin"), err == nil
}

// obstacle says why it can't be had on this machine, before anything is tried.
func (a archive) obstacle() error {
	if runtime.GOOS != "linux" || a.sha256[runtime.GOARCH] == "" {
		return fmt.Errorf("there are no binaries to download for %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	if musl, _ := filepath.Glob("/lib/ld-musl-*"); len(musl) > 0 {
		return errors.New("the binaries to download need glibc, and this system has musl")
	}
	for _, name := range []string{"tar", "xz"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("its binaries can be downloaded, but %s is not in PATH to unpack them with", name)
		}
	}
	if err := mavenObstacle(); err != nil {
		return fmt.Errorf("its binaries can be downloaded, but %w", err)
	}
	return nil
}

// get returns the folder of its binaries, downloaded and unpacked once.
func (a archive) get(l local) (string, error) {
	if bin, ok := a.there(l.upper); ok {
		return bin, nil
	}
	if err := a.obstacle(); err != nil {
		return "", fmt.Errorf("%w: %w", errNotInstalled, err)
	}
	home, err := a.home(l.upper)
	if err != nil {
		return "", err
	}

	err = freshFolder(home, func(fresh string) error {
		if err := l.fetch(a.jar().name(), fresh, a.jar()); err != nil {
			return err
		}
		return l.step("unpacking the binaries", func() error { return unpackJar(filepath.Join(fresh, a.jar().name()), fresh) })
	})
	return filepath.Join(home, "bin"), err
}

// freshFolder has fill make a folder's content, all in a folder that gets its
// name last: a half download is never used.
func freshFolder(home string, fill func(fresh string) error) error {
	fresh := home + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.RemoveAll(home), openDir(fresh)); err != nil {
		return fmt.Errorf("make a folder for the binaries: %w", err)
	}
	if err := fill(fresh); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	return os.Rename(fresh, home)
}

// unpackJar unpacks the one .txz in the jar into dir, and removes the jar.
func unpackJar(jar, dir string) error {
	r, err := zip.OpenReader(jar)
	if err != nil {
		return fmt.Errorf("open %s: %w", jar, err)
	}
	defer r.Close()
	for _, entry := range r.File {
		if !strings.HasSuffix(entry.Name, ".txz") {
			continue
		}
		txz := filepath.Join(dir, "postgres.txz")
		if err := copyEntry(entry, txz); err != nil {
			return fmt.Errorf("unpack %s: %w", jar, err)
		}
		if err := process.Run(process.Account{Name: "yourself"}, dir, "", "tar", "-xJf", txz, "--no-same-owner"); err != nil {
			return err
		}
		return errors.Join(os.Remove(txz), os.Remove(jar))
	}
	return fmt.Errorf("unpack %s: no .txz in it", jar)
}

func copyEntry(entry *zip.File, path string) error {
	in, err := entry.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
