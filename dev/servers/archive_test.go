package main

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// repository is a folder in Maven's layout that holds one jar of a Postgres
// that only tells its version.
func repository(t *testing.T) (a archive, dir string) {
	t.Helper()
	if (archive{sha256: map[string]string{runtime.GOARCH: "any"}}).artifact() == "embedded-postgres-binaries-linux-" || runtime.GOOS != "linux" {
		t.Skip("there is no archive for this machine")
	}
	files := t.TempDir()
	for _, name := range []string{"postgres", "initdb", "pg_ctl"} {
		path := filepath.Join(files, "bin", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho 'postgres (PostgreSQL) 15.99'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	txz := filepath.Join(t.TempDir(), "postgres.txz")
	if out, err := exec.Command("tar", "-cJf", txz, "-C", files, "bin").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	content, err := os.ReadFile(txz)
	if err != nil {
		t.Fatal(err)
	}

	a = archive{version: "15.99.0"}
	dir = t.TempDir()
	jar := filepath.Join(dir, "io/zonky/test/postgres", a.artifact(), a.version, a.jar().name())
	if err := os.MkdirAll(filepath.Dir(jar), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(jar)
	if err != nil {
		t.Fatal(err)
	}
	w := zip.NewWriter(f)
	entry, err := w.Create("postgres-linux.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := entry.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(jar)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(whole)
	a.sha256 = map[string]string{runtime.GOARCH: hex.EncodeToString(sum[:])}
	return a, dir
}

func localHere(t *testing.T) local {
	t.Helper()
	u := &upper{place: here(t), progress: &progress{w: &strings.Builder{}}}
	return local{upper: u, server: postgres15}
}

func TestArchiveComesFromARepository(t *testing.T) {
	a, dir := repository(t)
	over := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer over.Close()
	for _, address := range []string{"file://" + dir, over.URL, over.URL + "/"} {
		t.Setenv(mavenVariable, address)
		l := localHere(t)
		bin, err := a.get(l)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if again, ok := a.there(l.upper); !ok || again != bin {
			t.Errorf("%s: not found again: %q, %v", address, again, ok)
		}
		if left, _ := filepath.Glob(filepath.Join(l.dev, "bin", "*.new")); len(left) > 0 {
			t.Errorf("%s: left behind: %v", address, left)
		}
	}
}

// What is not the pinned file is not used, nor kept.
func TestArchiveIsHeldToItsChecksum(t *testing.T) {
	a, dir := repository(t)
	t.Setenv(mavenVariable, "file://"+dir)
	a.sha256 = map[string]string{runtime.GOARCH: strings.Repeat("0", 64)}
	l := localHere(t)
	if _, err := a.get(l); err == nil || !strings.Contains(err.Error(), "sha256") {
		t.Fatalf("got %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(l.dev, "bin")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestArchiveNamesWhatIsWrongWithTheRepository(t *testing.T) {
	a, _ := repository(t)
	empty := httptest.NewServer(http.NotFoundHandler())
	defer empty.Close()
	for address, want := range map[string]string{
		strings.Replace(empty.URL, "http://", "http://me:secret@", 1): "404",
		"file:///nowhere":        "no such file",
		"ftp://me:secret@h":      "scheme",
		"http://me:secret@h:x y": "not a URL",
	} {
		t.Setenv(mavenVariable, address)
		_, err := a.get(localHere(t))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), mavenVariable) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want %q, the variable and no password", address, err, want)
		}
	}
}
