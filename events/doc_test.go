package events

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A guarantee whose test has been renamed or removed is no guarantee.
func TestEveryGuaranteeNamesATest(t *testing.T) {
	doc := string(must(os.ReadFile("doc.go")))
	var tests strings.Builder
	for _, file := range must(filepath.Glob("*_test.go")) {
		tests.Write(must(os.ReadFile(file)))
	}
	named := regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`).FindAllString(doc, -1)
	if len(named) < 11 {
		t.Errorf("doc.go names %d tests", len(named))
	}
	for _, name := range named {
		if !strings.Contains(tests.String(), "\nfunc "+name+"(") {
			t.Errorf("doc.go names %s, which does not exist", name)
		}
	}
}
