package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
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
	jarLimit      = 100 << 20 // bytes; the largest have 15 MB
)

var maven = program{name: "mvn", folders: []string{"/usr/bin", "/usr/local/bin", "/opt/maven/bin"}, lack: lack{debian: "maven"}}

// mavenObstacle says why nothing can be had from Maven's repository.
func mavenObstacle() error {
	if os.Getenv(mavenVariable) != "" {
		return nil
	}
	if _, err := maven.find(); err == nil {
		return nil
	}
	if _, err := asRoot(); err == nil {
		return nil // Maven will be installed
	}
	return fmt.Errorf("there is neither mvn in PATH nor a repository in %s", mavenVariable)
}

// jar is one file of a Maven repository, and what it must be.
type jar struct{ group, artifact, version, sha256 string }

func (j jar) name() string { return j.artifact + "-" + j.version + ".jar" }

// fetch gets the jars into the folder: from the repository that the
// environment names, or with Maven, which asks its settings.xml where to fetch
// from. What is not the file that was written down is an error.
func (l local) fetch(what, dir string, jars ...jar) error {
	if repository := strings.TrimSpace(os.Getenv(mavenVariable)); repository != "" {
		return l.step("downloading "+what+" from "+mavenVariable, func() error {
			for _, j := range jars {
				if err := errors.Join(j.fetchFrom(repository, dir), j.verify(dir)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	mvn, err := l.program(maven)
	if err != nil {
		return err
	}
	l.maven.Lock() // two at once may write the same file of its repository
	defer l.maven.Unlock()
	pom := filepath.Join(dir, "pom.xml")
	if err := os.WriteFile(pom, []byte(pomOf(dir, jars)), 0o600); err != nil {
		return fmt.Errorf("write down for Maven what to download: %w", err)
	}
	defer os.Remove(pom)
	args := []string{mvn, "-q", "-B", "-f", pom, mavenCopy}
	if !mavenHasAHome() {
		args = append(args, "-Dmaven.repo.local="+filepath.Join(dir, "m2"))
		defer os.RemoveAll(filepath.Join(dir, "m2"))
	}
	err = l.step("downloading "+what+" with Maven", func() error { return command(nil, args...) })
	if err != nil {
		return fmt.Errorf("%w\nMaven fetches from where its settings.xml says; %s=URL names a Maven repository to do without it", err, mavenVariable)
	}
	for _, j := range jars {
		if err := j.verify(dir); err != nil {
			return err
		}
	}
	return nil
}

// pomOf has Maven copy the jars, and nothing that they depend on.
func pomOf(dir string, jars []jar) string {
	text := func(s string) string {
		var b strings.Builder
		xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
		return b.String()
	}
	var items strings.Builder
	for _, j := range jars {
		fmt.Fprintf(&items, "<artifactItem><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></artifactItem>\n",
			text(j.group), text(j.artifact), text(j.version))
	}
	plugin := strings.Split(mavenCopy, ":")
	return fmt.Sprintf(`<project>
<modelVersion>4.0.0</modelVersion><groupId>postbus</groupId><artifactId>servers</artifactId><version>1</version><packaging>pom</packaging>
<build><plugins><plugin><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version><configuration>
<outputDirectory>%s</outputDirectory>
<artifactItems>
%s</artifactItems>
</configuration></plugin></plugins></build>
</project>
`, plugin[0], plugin[1], plugin[2], text(dir), items.String())
}

// verify compares the file with what this repository has written down of it.
func (j jar) verify(dir string) error {
	f, err := os.Open(filepath.Join(dir, j.name()))
	if err != nil {
		return fmt.Errorf("check the download: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("check the download: %w", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != j.sha256 {
		return fmt.Errorf("check the download: the sha256 of %s is %s, want %s: it was damaged on its way, or the repository serves another file; it is not used",
			j.name(), got, j.sha256)
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
func (j jar) fetchFrom(repository, dir string) error {
	place := []string{strings.ReplaceAll(j.group, ".", "/"), j.artifact, j.version, j.name()}
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
	out, err := os.Create(filepath.Join(dir, j.name()))
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
