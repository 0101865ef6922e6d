package house

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/postbus/postbus"

// The rooms and their floors. Imports go down only, never sideways; inside a room
// packages may import each other. A star stands for one name: each adapter and each
// program is a room of its own.
var floors = map[string]int{
	"events": 0, "migrations": 0,
	"outbox": 1, "schema": 1,
	"bus": 2, "handlers": 2, "postbustest": 2, // what users test with is held to the closed list of dependencies, too
	"broker/*":  3,
	"example/*": 4, "cmd/*": 4,
}

// coreFloor is the highest floor that every program compiles, whatever its broker.
const coreFloor = 2

// coreImports is all that the core may import from outside the standard library. A
// trailing "/..." stands for the packages below, too.
var coreImports = []string{
	"github.com/jackc/pgx/v5/...",
	"github.com/google/uuid",
	"github.com/ThreeDotsLabs/watermill/message",
	"github.com/ThreeDotsLabs/watermill", // its logger, which message asks for
	"github.com/cenkalti/backoff/v5",
}

// coreModules is all that a program with the core, and without an adapter,
// compiles: the modules of coreImports, and what they import themselves.
var coreModules = []string{
	module,
	"github.com/jackc/pgx/v5",
	"github.com/jackc/pgpassfile", "github.com/jackc/pgservicefile", "github.com/jackc/puddle/v2",
	"golang.org/x/sync", "golang.org/x/text",
	"github.com/google/uuid",
	"github.com/ThreeDotsLabs/watermill",
	"github.com/lithammer/shortuuid/v3", "github.com/oklog/ulid", "github.com/pkg/errors",
	"github.com/cenkalti/backoff/v5",
}

// clients are the modules that speak to a broker, and the adapter each belongs to.
// None stands for no adapter at all: the stock ones appear in tests only.
var clients = map[string]string{
	"github.com/redis/go-redis": "broker/redisstream",
	"github.com/twmb/franz-go":  "broker/kafka",
	"github.com/IBM/sarama":     "none",
	"github.com/rabbitmq/":      "broker/rabbitmq",
	"github.com/aws/":           "broker/sqs",

	"github.com/ThreeDotsLabs/watermill-redisstream": "none",
	"github.com/ThreeDotsLabs/watermill-kafka":       "none",
	"github.com/ThreeDotsLabs/watermill-amqp":        "none",
	"github.com/ThreeDotsLabs/watermill-aws":         "none",
}

// testOnly is imported by _test files, by itself and by dev/, and by nobody else.
var testOnly = []string{"internal/testkit", "internal/brokertest", "internal/pgserver", "internal/brokerserver", "internal/house", "dev"}

// source is what one file imports. Its path is relative to the module.
type source struct {
	file    string
	imports []string
}

func (s source) pkg() string { return path.Dir(s.file) }

func TestFloors(t *testing.T) {
	for _, fault := range faultsOf(sources(t)) {
		t.Error(fault)
	}
}

// A program pays for the broker it uses, and for no other.
func TestCoreCompilesNoClient(t *testing.T) {
	for _, m := range modulesBehind(t, "./events", "./migrations", "./outbox", "./bus", "./handlers") {
		if !slices.Contains(coreModules, m) {
			t.Errorf("the core (floors 0 to %d) compiles %s, which is not in coreModules: do without it, or move what needs it into an adapter; `go mod why -m %s` tells who brought it", coreFloor, m, m)
		}
	}
}

func TestAdaptersCompileTheirOwnClientOnly(t *testing.T) {
	adapters, err := filepath.Glob(filepath.Join(root, "broker", "*"))
	if err != nil || len(adapters) == 0 {
		t.Fatal("no adapter found", err)
	}
	for _, dir := range adapters {
		room := "broker/" + filepath.Base(dir)
		for _, m := range modulesBehind(t, "./"+room) {
			if owner := ownerOf(m); owner != "" && owner != room {
				t.Errorf("%s compiles %s, a broker's client that belongs to %s: a program that uses one broker must not pay for another", room, m, owner)
			}
		}
	}
}

// A test that cannot fail is none: every rule is broken once.
func TestFloorsFindsFaults(t *testing.T) {
	sound := []source{
		{"events/event.go", []string{"github.com/google/uuid"}},
		{"outbox/append.go", []string{module + "/events", module + "/internal/tick", "github.com/jackc/pgx/v5/pgxpool"}},
		{"bus/bus.go", []string{module + "/outbox", "fmt"}},
		{"bus/deep/deep.go", []string{module + "/bus"}},
		{"broker/kafka/publisher.go", []string{module + "/outbox", module + "/handlers", "github.com/twmb/franz-go/pkg/kgo"}},
		{"example/shop/main.go", []string{module + "/broker/kafka", "github.com/twmb/franz-go/pkg/kgo"}},
		{"internal/tick/tick.go", []string{"time"}},
		{"internal/testkit/kit.go", []string{module + "/internal/pgserver", "github.com/redis/go-redis/v9"}},
		{"dev/servers/main.go", []string{module + "/internal/pgserver"}},
	}
	if faults := faultsOf(sound); len(faults) > 0 {
		t.Fatalf("a sound house is refused: %q", faults)
	}
	for _, c := range []struct {
		name string
		add  []source
		want []string // parts of the one fault
	}{
		{"up", []source{{"events/bad.go", []string{module + "/outbox"}}}, []string{"events/bad.go", module + "/outbox", "floor 0", "floor 1", "interface"}},
		{"sideways", []source{{"bus/bad.go", []string{module + "/handlers"}}}, []string{"bus/bad.go", "sideways"}},
		{"sideways between adapters", []source{{"broker/sqs/bad.go", []string{module + "/broker/kafka"}}}, []string{"broker/sqs/bad.go", "sideways"}},
		{"up, through internal", []source{{"internal/tick/bad.go", []string{module + "/bus"}}}, []string{"internal/tick/bad.go", "floor 1", "outbox", "floor 2"}},
		{"sideways, through two of internal", []source{
			{"handlers/use.go", []string{module + "/internal/a"}},
			{"internal/a/a.go", []string{module + "/internal/b"}},
			{"internal/b/b.go", []string{module + "/bus"}},
		}, []string{"internal/b/b.go", "handlers", "sideways"}},
		{"client in the core", []source{{"handlers/bad.go", []string{"github.com/redis/go-redis/v9"}}}, []string{"handlers/bad.go", "go-redis", "broker/redisstream"}},
		{"client in internal of the core", []source{{"internal/tick/bad.go", []string{"github.com/redis/go-redis/v9"}}}, []string{"internal/tick/bad.go", "broker/redisstream"}},
		{"another adapter's client", []source{{"broker/kafka/bad.go", []string{"github.com/redis/go-redis/v9"}}}, []string{"broker/kafka/bad.go", "broker/redisstream"}},
		{"stock adapter", []source{{"broker/kafka/bad.go", []string{"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"}}}, []string{"broker/kafka/bad.go", "tests"}},
		{"core dependency", []source{{"outbox/bad.go", []string{"github.com/sirupsen/logrus"}}}, []string{"outbox/bad.go", "logrus", "closed"}},
		{"router of watermill", []source{{"handlers/bad.go", []string{"github.com/ThreeDotsLabs/watermill/message/router/middleware"}}}, []string{"handlers/bad.go", "closed"}},
		{"test-only package", []source{{"bus/bad.go", []string{module + "/internal/testkit"}}}, []string{"bus/bad.go", "_test"}},
		{"no room", []source{{"utils/bad.go", nil}}, []string{"utils/bad.go", "no floor"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			faults := faultsOf(append(slices.Clone(sound), c.add...))
			if len(faults) != 1 {
				t.Fatalf("%d faults instead of one: %q", len(faults), faults)
			}
			for _, part := range c.want {
				if !strings.Contains(faults[0], part) {
					t.Errorf("the fault does not say %q: %s", part, faults[0])
				}
			}
		})
	}
}

// faultsOf judges what the files import, but for _test files: these may look up.
func faultsOf(all []source) []string {
	var faults []string
	internal := internalFloors(all)
	for _, s := range all {
		if isTestOnly(s.pkg()) {
			continue
		}
		room, floor, user := standing(s.pkg(), internal)
		if room == "" {
			faults = append(faults, fmt.Sprintf("%s stands on no floor: move it into a room of the map in internal/house/floors_test.go, or give it its place there", s.file))
			continue
		}
		for _, i := range s.imports {
			if why := forbidden(room, floor, user, i, internal); why != "" {
				faults = append(faults, fmt.Sprintf("%s imports %s: %s", s.file, i, why))
			}
		}
	}
	return faults
}

// forbidden says which rule an import breaks, and the way out; "" if none.
func forbidden(room string, floor int, user, imported string, internal map[string]place) string {
	who := fmt.Sprintf("%s (floor %d)", room, floor)
	if user != "" {
		who = fmt.Sprintf("%s, which stands on floor %d since %s uses it,", room, floor, user)
	}
	rest, ours := strings.CutPrefix(imported, module+"/")
	switch {
	case ours && isTestOnly(rest):
		return "this package is for _test files (and for dev/): move what is needed into a package of its own"
	case ours && strings.HasPrefix(rest, "internal/"):
		return "" // its floor is at most ours, and it is judged itself
	case ours:
		of, there, _ := standing(rest, internal)
		switch {
		case of == "" || of == room || there < floor:
			return ""
		case there == floor:
			return fmt.Sprintf("%s may not import sideways: let it state the interface it needs, and wire the two one floor up", who)
		}
		return fmt.Sprintf("%s may not import up, to floor %d: let it state the interface it needs, or move what is needed down", who, there)
	case !strings.Contains(strings.Split(imported, "/")[0], "."):
		return "" // the standard library
	}
	if owner := ownerOf(imported); owner != "" && owner != room && floor < 4 {
		if owner == "none" {
			return "the stock Watermill adapters are for tests: use the broker's own client in an adapter of ours"
		}
		return fmt.Sprintf("a broker's client belongs to %s alone: put what needs it there, behind an interface", owner)
	}
	if floor <= coreFloor && !allowed(coreImports, imported) {
		return fmt.Sprintf("the dependency list of the core (floors 0 to %d) is closed: do without it, or take it into an adapter", coreFloor)
	}
	return ""
}

// place is where an internal package stands, and why.
type place struct {
	floor int
	user  string
}

// internalFloors puts each internal package on the floor of its lowest user.
func internalFloors(all []source) map[string]place {
	places := map[string]place{}
	for changed := true; changed; {
		changed = false
		for _, s := range all {
			room, floor, user := standing(s.pkg(), places)
			if room == "" || isTestOnly(s.pkg()) {
				continue
			}
			if user == "" {
				user = room
			}
			for _, i := range s.imports {
				rest, ours := strings.CutPrefix(i, module+"/")
				if !ours || !strings.HasPrefix(rest, "internal/") {
					continue
				}
				if p, ok := places[rest]; !ok || floor < p.floor {
					places[rest] = place{floor, user}
					changed = true
				}
			}
		}
	}
	return places
}

// noUser is the floor of an internal package that only tests use: it may see all.
const noUser = 5

// standing gives a package's room and floor; for an internal package the package
// itself, and the room that put it on its floor.
func standing(pkg string, internal map[string]place) (room string, floor int, user string) {
	if strings.HasPrefix(pkg, "internal/") {
		if p, ok := internal[pkg]; ok {
			return pkg, p.floor, p.user
		}
		return pkg, noUser, ""
	}
	parts := strings.SplitN(pkg, "/", 3)
	if floor, ok := floors[parts[0]]; ok {
		return parts[0], floor, ""
	}
	if floor, ok := floors[parts[0]+"/*"]; ok && len(parts) > 1 {
		return parts[0] + "/" + parts[1], floor, ""
	}
	return "", 0, ""
}

func isTestOnly(pkg string) bool {
	return slices.ContainsFunc(testOnly, func(p string) bool { return pkg == p || strings.HasPrefix(pkg, p+"/") })
}

// ownerOf names the adapter that a broker's client belongs to; "" for anything else.
func ownerOf(imported string) string {
	for prefix, owner := range clients {
		if strings.HasPrefix(imported, prefix) {
			return owner
		}
	}
	return ""
}

func allowed(list []string, imported string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		base, below := strings.CutSuffix(a, "/...")
		return imported == base || below && strings.HasPrefix(imported, base+"/")
	})
}

// root is the module's directory, seen from this package.
const root = "../.."

// sources reads all files but those of tests, whatever system they are built for.
func sources(t *testing.T) (all []source) {
	t.Helper()
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if file != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil && file != root {
				return fs.SkipDir // a module of its own, such as bench
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if os.IsNotExist(err) {
			return nil // somebody's temporary file
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		s := source{file: filepath.ToSlash(rel)}
		for _, i := range parsed.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			s.imports = append(s.imports, p)
		}
		all = append(all, s)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// modulesBehind lists the modules that a program compiles with these packages.
func modulesBehind(t *testing.T, packages ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}"}, packages...)...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	return slices.Compact(modules)
}
