package testkit

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseEnv(t *testing.T) {
	t.Parallel()
	got := parseEnv("export A='postgres://x@h/d?a=b&c=d'\nexport B='it'\\''s'\n\n# no\nexport C=bare\nexport D='\nE='e'\n")
	want := map[string]string{"A": "postgres://x@h/d?a=b&c=d", "B": "it's", "E": "e"}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAddressComesFromTheVariableThenTheFile(t *testing.T) {
	repo := t.TempDir()
	inner := filepath.Join(repo, "a", "b")
	for path, content := range map[string]string{"go.mod": "module x", ".dev/env": "export POSTBUS_REDIS_URL='redis://file'\n", "a/b/x": ""} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(repo, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(repo, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(inner)

	t.Setenv(string(RedisServer), "")
	if got, err := RedisServer.address(); err != nil || got != "redis://file" {
		t.Errorf("from the file: got %q, %v", got, err)
	}
	t.Setenv(string(RedisServer), "redis://variable")
	if got, err := RedisServer.address(); err != nil || got != "redis://variable" {
		t.Errorf("from the variable: got %q, %v", got, err)
	}
	t.Setenv(string(PG18), "")
	if _, err := PG18.address(); err == nil || !strings.Contains(err.Error(), "make servers-up") || !strings.Contains(err.Error(), string(PG18)) {
		t.Errorf("from nowhere: got %v, want the command and the variable", err)
	}
}
