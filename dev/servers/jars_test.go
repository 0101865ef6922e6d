package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is pinned can be read, and is pinned once.
func TestJarsArePinned(t *testing.T) {
	t.Parallel()
	for _, list := range []jars{kafkaJars, elasticmqJars} {
		seen := map[string]bool{}
		all := list.all()
		if len(all) < 20 {
			t.Errorf("%s: %d jars", list.name, len(all))
		}
		for _, j := range all {
			if seen[j.name()] || j.group == "" || j.version == "" || len(j.sha256) != 64 {
				t.Errorf("%s: %+v", list.name, j)
			}
			seen[j.name()] = true
			if strings.HasPrefix(j.artifact, list.name+"_") && j.version != list.version {
				t.Errorf("%s: the version is %s, and its folder is called %s", j.artifact, j.version, list.version)
			}
		}
	}
}

func TestMotoIsPinned(t *testing.T) {
	t.Parallel()
	if !strings.Contains(motoList, "moto=="+motoVersion+"\n") {
		t.Errorf("moto.txt has another version than %s", motoVersion)
	}
	for line := range strings.Lines(motoList) {
		if name, version, ok := strings.Cut(strings.TrimSpace(line), "=="); !ok || name == "" || version == "" {
			t.Errorf("moto.txt: %q", line)
		}
	}
}

// twoJars are in a folder in Maven's layout.
func twoJars(t *testing.T) (list jars, repository string) {
	t.Helper()
	repository = t.TempDir()
	list = jars{name: "some", version: "1"}
	for _, artifact := range []string{"one", "two"} {
		content := []byte("the jar " + artifact)
		sum := sha256.Sum256(content)
		list.list += "a.group:" + artifact + ":1.2 " + hex.EncodeToString(sum[:]) + "\n"
		path := filepath.Join(repository, "a/group", artifact, "1.2", artifact+"-1.2.jar")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return list, "file://" + repository
}

func TestJarsComeFromARepository(t *testing.T) {
	list, repository := twoJars(t)
	t.Setenv(mavenVariable, repository)
	l := localHere(t)
	dir, err := list.get(l)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "two-1.2.jar"))
	if err != nil || info.Mode().Perm()&0o044 != 0o044 {
		t.Errorf("the servers' account cannot read it: %v, %v", info, err)
	}
	if err := os.RemoveAll(strings.TrimPrefix(repository, "file://")); err != nil {
		t.Fatal(err)
	}
	if again, err := list.get(l); err != nil || again != dir {
		t.Errorf("the second time it is downloaded again: %q, %v", again, err)
	}
}

// One jar that is not the pinned one spoils all: nothing is kept.
func TestJarsAreHeldToTheirChecksums(t *testing.T) {
	list, repository := twoJars(t)
	t.Setenv(mavenVariable, repository)
	list.list = list.list[:len(list.list)-5] + "0000\n"
	l := localHere(t)
	if _, err := list.get(l); err == nil || !strings.Contains(err.Error(), "two-1.2.jar") || !strings.Contains(err.Error(), "sha256") {
		t.Fatalf("got %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(l.dev, "bin")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPOMNamesEachJar(t *testing.T) {
	t.Parallel()
	var pom struct {
		Items []struct {
			Artifact string `xml:"artifactId"`
		} `xml:"build>plugins>plugin>configuration>artifactItems>artifactItem"`
		Dir string `xml:"build>plugins>plugin>configuration>outputDirectory"`
	}
	text := pomOf("/a & b", []jar{{"g", "one", "1", ""}, {"g", "two", "2", ""}})
	if err := xml.Unmarshal([]byte(text), &pom); err != nil {
		t.Fatal(err)
	}
	if len(pom.Items) != 2 || pom.Items[1].Artifact != "two" || pom.Dir != "/a & b" {
		t.Errorf("got %+v", pom)
	}
}
