package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/postbus/postbus/internal/brokerserver"
)

// java runs the servers that come as jars.
var java = program{
	name: "java", folders: brokerserver.JavaFolders(), fits: fitsAsJava,
	lack: lack{debian: "default-jre-headless", fedora: "java-17-openjdk-headless", brew: "openjdk"},
}

const leastJava = 17 // Kafka 4 asks for it

var javaVersion = regexp.MustCompile(`version "(\d+)`)

func fitsAsJava(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s does not run here: %w\n%s", path, err, tail(out))
	}
	m := javaVersion.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("%s -version says %q, which is not Java", path, tail(out))
	}
	if major, _ := strconv.Atoi(string(m[1])); major < leastJava {
		return fmt.Errorf("%s is Java %s; %d or later is needed", path, m[1], leastJava)
	}
	return nil
}

// obtain finds or installs Java and downloads the jars.
func (j jars) obtain(l local) (program, dir string, err error) {
	if program, err = l.program(java); err != nil {
		return "", "", err
	}
	dir, err = j.get(l)
	return program, dir, err
}

// missing says what a person has to do before a server of these jars can be
// started, or nothing.
func (j jars) missing(variable string) func(*upper) *lack {
	return func(u *upper) *lack {
		l := java.lack
		var obstacles []error
		if java.missing(u) != nil {
			_, err := java.find()
			obstacles = append(obstacles, err)
		}
		if _, ok := j.there(u); !ok {
			if err := mavenObstacle(); err != nil {
				obstacles = append(obstacles, fmt.Errorf("its jars can be downloaded, but %w", err))
				l.debian, l.fedora, l.brew = l.debian+" maven", l.fedora+" maven", l.brew+" maven"
			}
		}
		if len(obstacles) == 0 {
			return nil
		}
		l.why = errors.Join(obstacles...).Error()
		l.byHand = fmt.Sprintf("a Java of %d or later in PATH or JAVA_HOME, and a Maven (mvn) in PATH, or in its place %s=URL of a Maven repository", leastJava, mavenVariable)
		l.variable = variable
		return &l
	}
}
