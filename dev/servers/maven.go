package main

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/postbus/postbus/internal/testkit/process"
)

// Postgres 18 is not in Debian 12. Maven Central has its binaries: a jar, in
// it one .txz, in it bin, lib and share.
const (
	postgres18Version = "18.1.0"
	postgres18Group   = "io.zonky.test.postgres"
	mavenCopy         = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
)

// postgres18Binaries returns the folder of binaries, downloaded once.
func postgres18Binaries(l local) (string, error) {
	binaries, err := l.folder("bin")
	if err != nil {
		return "", err
	}
	home := filepath.Join(binaries, "postgres-"+postgres18Version)
	bin := filepath.Join(home, "bin")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	arch := map[string]string{"amd64": "amd64", "arm64": "arm64v8"}[runtime.GOARCH]
	if runtime.GOOS != "linux" || arch == "" {
		return "", fmt.Errorf("%w: there are no binaries to download for %s/%s; start Docker, or set %s to a server of yours",
			errNotInstalled, runtime.GOOS, runtime.GOARCH, l.server.variable)
	}
	mvn, err := l.program("mvn", "maven", "/usr/bin", "/usr/local/bin", "/opt/maven/bin")
	if err != nil {
		return "", err
	}

	// All in a folder that gets its name last: a half download is never used.
	fresh := home + ".new"
	if err := errors.Join(os.RemoveAll(fresh), openDir(fresh)); err != nil {
		return "", fmt.Errorf("make a folder for the binaries: %w", err)
	}
	artifact := "embedded-postgres-binaries-linux-" + arch
	err = l.step("downloading "+artifact+" "+postgres18Version+" with Maven", func() error {
		return command(nil, mvn, "-q", "-B", mavenCopy, "-DoutputDirectory="+fresh,
			"-Dartifact="+strings.Join([]string{postgres18Group, artifact, postgres18Version}, ":"))
	})
	if err != nil {
		return "", err
	}
	jar := filepath.Join(fresh, artifact+"-"+postgres18Version+".jar")
	if err := l.step("unpacking the binaries", func() error { return unpackJar(jar, fresh) }); err != nil {
		return "", err
	}
	return bin, os.Rename(fresh, home)
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
		// tar asks for xz, which every Debian has (dpkg needs it).
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
