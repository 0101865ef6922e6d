package bus_test

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What can be told apart by types is: a pool or a connection where a transaction
// belongs, the wrong kind of handler, a misspelt method of an event.
func TestWrongKindDoesNotCompile(t *testing.T) {
	const dir = "testdata/refused"
	source, err := os.ReadFile(dir + "/refused.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []int
	for i, line := range strings.Split(string(source), "\n") {
		if strings.Contains(line, "// ERROR") {
			want = append(want, i+1)
		}
	}
	output, err := exec.Command("go", "build", "-gcflags=-e", "./"+dir).CombinedOutput() // -e: all errors
	if err == nil {
		t.Fatal("all of it compiles")
	}
	var have []int
	for _, m := range regexp.MustCompile(`refused\.go:(\d+):`).FindAllSubmatch(output, -1) {
		line, _ := strconv.Atoi(string(m[1]))
		if !slices.Contains(have, line) {
			have = append(have, line)
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Fatalf("refused are the lines %v, and should be %v:\n%s", have, want, bytes.TrimSpace(output))
	}
}
