package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"strings"
	"time"
)

const (
	mavenCopy = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"

	// mavenVariable names a Maven repository, http(s) or a file:// folder in
	// its layout, to fetch from without the program mvn.
	mavenVariable = "POSTBUS_MAVEN_URL"
	mavenPatience = 15 * time.Minute
	jarLimit      = 100 << 20 // bytes; the jars have 15 MB
)

var maven = program{name: "mvn", folders: []string{"/usr/bin", "/usr/local/bin", "/opt/maven/bin"}, lack: lack{debian: "maven"}}

// fetch gets the jar: from the repository that the environment names, or with
// Maven, which asks its settings.xml where to fetch from.
func (a archive) fetch(l local, jar string) error {
	if repository := strings.TrimSpace(os.Getenv(mavenVariable)); repository != "" {
		return l.step("downloading "+a.jar()+" from "+mavenVariable, func() error { return a.fetchFrom(repository, jar) })
	}
	mvn, err := l.program(maven)
	if err != nil {
		return err
	}
	l.maven.Lock() // two at once may write the same file of its repository
	defer l.maven.Unlock()
	dir := filepath.Dir(jar)
	args := []string{mvn, "-q", "-B", mavenCopy, "-DoutputDirectory=" + dir,
		"-Dartifact=" + strings.Join([]string{archiveGroup, a.artifact(), a.version}, ":")}
	if !mavenHasAHome() {
		args = append(args, "-Dmaven.repo.local="+filepath.Join(dir, "m2"))
		defer os.RemoveAll(filepath.Join(dir, "m2"))
	}
	err = l.step("downloading "+a.jar()+" with Maven", func() error { return command(nil, args...) })
	if err != nil {
		return fmt.Errorf("%w\nMaven fetches from where its settings.xml says; %s=URL names a Maven repository to do without it", err, mavenVariable)
	}
	return nil
}

// mavenHasAHome reports whether Maven can keep its repository where it wants
// to: in the home folder that the system knows, whatever HOME says.
func mavenHasAHome() bool {
	me, err := user.Current()
	if err != nil {
		return false
	}
	repository := filepath.Join(me.HomeDir, ".m2", "repository")
	if err := os.MkdirAll(repository, 0o755); err != nil {
		return false
	}
	probe, err := os.MkdirTemp(repository, "postbus-")
	return err == nil && os.Remove(probe) == nil
}

// fetchFrom gets the jar from a repository in Maven's layout.
func (a archive) fetchFrom(repository, jar string) error {
	place := []string{strings.ReplaceAll(archiveGroup, ".", "/"), a.artifact(), a.version, a.jar()}
	u, err := url.Parse(repository)
	if err != nil {
		return fmt.Errorf("read %s: it is not a URL", mavenVariable) // the error would show a password
	}
	u = u.JoinPath(place...)
	attempt := "fetch " + u.Redacted()
	var in io.ReadCloser
	switch u.Scheme {
	case "file":
		in, err = os.Open(filepath.FromSlash(path.Clean(u.Path)))
	case "http", "https":
		in, err = get(u)
	default:
		return fmt.Errorf("read %s: its scheme is %q; write http://, https:// or file://", mavenVariable, u.Scheme)
	}
	if err != nil {
		return fmt.Errorf("%s: %w; %s must name a repository in Maven's layout that has it", attempt, err, mavenVariable)
	}
	defer in.Close()
	out, err := os.Create(jar)
	if err != nil {
		return fmt.Errorf("%s: %w", attempt, err)
	}
	_, err = io.Copy(out, io.LimitReader(in, jarLimit))
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("%s: %w", attempt, err)
	}
	return nil
}

func get(u *url.URL) (io.ReadCloser, error) {
	client := http.Client{Timeout: mavenPatience} // the reading included
	answer, err := client.Get(u.String())
	if err != nil {
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err // without the URL, which the caller shows
		}
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("the answer is %s", answer.Status)
	}
	return answer.Body, nil
}
