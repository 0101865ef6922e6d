package house

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The programs in testdata use one broker each, with all that an application needs of
// it. None of the other brokers' clients is linked into them.
func TestProgramsLinkOneClient(t *testing.T) {
	adapters, err := filepath.Glob(filepath.Join(root, "broker", "*"))
	if err != nil || len(adapters) == 0 {
		t.Fatal("no adapter found", err)
	}
	for _, dir := range adapters {
		name := filepath.Base(dir)
		program := "./internal/house/testdata/programs/" + name
		vet := exec.Command("go", "vet", program) // compiles it: go list is content with less
		vet.Dir = root
		if out, err := vet.CombinedOutput(); err != nil {
			t.Errorf("the program of broker/%s: write one into %s that compiles: %v\n%s", name, program, err, out)
			continue
		}
		own := false
		for _, m := range modulesBehind(t, program) {
			switch owner := ownerOf(m); owner {
			case "":
			case "broker/" + name:
				own = true
			default:
				t.Errorf("a program that uses broker/%s alone links %s, which belongs to %s", name, m, owner)
			}
		}
		if !own {
			t.Errorf("the program of broker/%s links no client of it: is its module in clients, in floors_test.go? (%s)", name, strings.TrimPrefix(program, "./"))
		}
	}
}
