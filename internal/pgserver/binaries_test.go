package pgserver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeBinaries is a folder with an initdb and a postgres that tells a version.
func fakeBinaries(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + "'\n"
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBinariesChoosesByVersion(t *testing.T) {
	old, right, other := fakeBinaries(t, "14.9"), fakeBinaries(t, "15.15 (Debian 15.15-1)"), fakeBinaries(t, "15.1")
	t.Setenv("PATH", other+":"+os.Getenv("PATH"))
	for name, test := range map[string]struct {
		folders []string
		want    string
	}{
		"a folder comes before PATH":    {[]string{old, right}, right},
		"PATH where no folder has them": {[]string{old, t.TempDir()}, other},
	} {
		if got, err := binaries(15, test.folders); err != nil || got != test.want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, test.want)
		}
	}
	if _, err := binaries(16, []string{old}); err == nil || !strings.Contains(err.Error(), old+" has version 14") {
		t.Errorf("got %v, want what was found and does not fit", err)
	}
}

// What PATH finds may be a link whose folder has no initdb.
func TestBinariesFollowsLinks(t *testing.T) {
	real, links := fakeBinaries(t, "15.15"), t.TempDir()
	if err := os.Symlink(filepath.Join(real, "postgres"), filepath.Join(links, "postgres")); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(real)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", links+":"+os.Getenv("PATH"))
	if got, err := binaries(15, nil); err != nil || got != real {
		t.Errorf("got %q, %v; want %q", got, err, real)
	}
}

func TestCheckTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	if err := Check(t.TempDir(), 15); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty folder: got %v", err)
	}
	dumb := fakeBinaries(t, "15.1")
	if err := os.WriteFile(filepath.Join(dumb, "postgres"), []byte("#!/bin/sh\necho no such library >&2; exit 127\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Check(dumb, 15); err == nil || !strings.Contains(err.Error(), "no such library") {
		t.Errorf("a postgres that does not run: got %v", err)
	}
}
