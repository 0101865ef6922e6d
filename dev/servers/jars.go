package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/postbus/postbus/internal/brokerserver"
)

// jars are what a Java server consists of: all of it pinned, by version and by
// checksum, so that what runs here runs everywhere. CONTRIBUTING.md tells how
// to take another version.
type jars struct {
	name, version string
	list          string // a line per jar: group:artifact:version sha256
	variable      string // tells tests where they are
}

//go:embed kafka.jars
var kafkaList string

//go:embed elasticmq.jars
var elasticmqList string

var (
	kafkaJars     = jars{"kafka", "4.3.0", kafkaList, brokerserver.KafkaJars}
	elasticmqJars = jars{"elasticmq", "1.6.16", elasticmqList, brokerserver.ElasticMQJars}
)

func (j jars) all() []jar {
	var all []jar
	for line := range strings.Lines(j.list) {
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ':' || r == ' ' || r == '\n' })
		all = append(all, jar{group: f[0], artifact: f[1], version: f[2], sha256: f[3]})
	}
	return all
}

func (j jars) home(u *upper) (string, error) {
	binaries, err := u.folder("bin")
	return filepath.Join(binaries, j.name+"-"+j.version), err
}

// there reports whether they are downloaded already.
func (j jars) there(u *upper) (dir string, ok bool) {
	home, err := j.home(u)
	if err != nil {
		return "", false
	}
	_, err = os.Stat(home)
	return home, err == nil
}

// find looks for jars that were downloaded before.
func (j jars) find(u *upper) (string, error) {
	if dir, ok := j.there(u); ok {
		return dir, nil
	}
	return "", fmt.Errorf("the jars of %s %s are not there", j.name, j.version)
}

// get returns the folder of the jars, downloaded once.
func (j jars) get(l local) (string, error) {
	if dir, ok := j.there(l.upper); ok {
		return dir, nil
	}
	if err := mavenObstacle(); err != nil {
		return "", fmt.Errorf("%w: its jars can be downloaded, but %w", errNotInstalled, err)
	}
	home, err := j.home(l.upper)
	if err != nil {
		return "", err
	}
	return home, freshFolder(home, func(fresh string) error {
		if err := l.fetch(j.name+" "+j.version, fresh, j.all()...); err != nil {
			return err
		}
		return readable(fresh)
	})
}

// readable lets the account that servers run as read a folder, whatever the
// umask was when it was filled.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.Type()&os.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if entry.IsDir() || mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}
