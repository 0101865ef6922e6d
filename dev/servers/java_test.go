package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJavaMustBeNewEnough(t *testing.T) {
	old := fakeProgram(t, "java", `echo 'openjdk version "11.0.2" 2019-01-15' >&2`)
	new := fakeProgram(t, "java", `echo 'openjdk version "21.0.1" 2023-10-17' >&2`)
	nothingHere(t, old, new)
	p := java
	p.folders = nil
	if _, err := p.find(); err == nil || !strings.Contains(err.Error(), "Java 11; 17 or later") {
		t.Errorf("got %v", err)
	}
	p.folders = []string{new}
	if got, err := p.find(); err != nil || got != filepath.Join(new, "java") {
		t.Errorf("got %q, %v", got, err)
	}
}

// Without Java, Maven and root a person is told of both programs, in one sentence.
func TestJavaAndMavenMissingAreToldTogether(t *testing.T) {
	saved, savedJava := maven.folders, java.folders
	t.Cleanup(func() { maven.folders, java.folders = saved, savedJava })
	maven.folders, java.folders = nil, nil
	u := &upper{place: here(t), progress: &progress{w: &strings.Builder{}}}

	nothingHere(t)
	l := kafka.missing(u)
	if l == nil || !strings.Contains(l.why, "java is neither") || !strings.Contains(l.why, "mvn") || l.debian != "default-jre-headless maven" {
		t.Fatalf("got %+v", l)
	}
	err := waysOut([]lack{*l, *elasticmq.missing(u)}, nil)
	if n := strings.Count(err.Error(), "default-jre-headless"); n != 1 {
		t.Errorf("the package is named %d times: %v", n, err)
	}

	java17 := fakeProgram(t, "java", `echo 'openjdk version "17.0.1" 2021-10-19' >&2`)
	nothingHere(t, java17)
	if l := kafka.missing(u); l == nil || strings.Contains(l.why, "java is neither") {
		t.Errorf("with Java, without Maven: got %+v", l)
	}
	home, err := kafkaJars.home(u)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if l := kafka.missing(u); l != nil {
		t.Errorf("with Java and the jars: got %+v", l)
	}
}

func TestPythonMustMakeEnvironments(t *testing.T) {
	saved := python.folders
	t.Cleanup(func() { python.folders = saved })
	python.folders = nil
	u := &upper{place: here(t), progress: &progress{w: &strings.Builder{}}}
	nothingHere(t, fakeProgram(t, "python3", `echo "No module named 'ensurepip'" >&2; exit 1`))
	if l := moto.missing(u); l == nil || !strings.Contains(l.why, "ensurepip") {
		t.Errorf("got %+v", l)
	}
	nothingHere(t, fakeProgram(t, "python3", "exit 0"))
	if l := moto.missing(u); l != nil {
		t.Errorf("got %+v", l)
	}
}
