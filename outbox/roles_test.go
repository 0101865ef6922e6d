package outbox

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// as is a pool like the fixture's own, whose sessions may do what migrations.Grants
// gives the role, and no more: the code under test runs so, the application's apart
// from the relay's and the desk's. f.pool is the owner's: for what a test itself does.
func (f *fixture) as(role testkit.Role) *pgxpool.Pool {
	f.t.Helper()
	if f.pool.Config().ConnConfig.RuntimeParams["role"] != "" {
		return f.pool // a test's own choice
	}
	asRole.Lock()
	defer asRole.Unlock()
	k := rolePool{f.pool, f.schema, role}
	if pool, ok := asRole.pools[k]; ok {
		return pool
	}
	if granted := (rolePool{f.pool, f.schema, ""}); asRole.pools[granted] == nil {
		testkit.Grant(f.t, f.pool, f.schema)
		asRole.pools[granted] = f.pool
	}
	asRole.pools[k] = testkit.As(f.t, f.pool, role)
	return asRole.pools[k]
}

// close closes the fixture's pools, before the test's end does.
func (f *fixture) close() {
	f.t.Helper()
	asRole.Lock()
	defer asRole.Unlock()
	for k, pool := range asRole.pools {
		if k.like == f.pool {
			pool.Close()
		}
	}
	f.pool.Close()
}

// asRole are the pools of all fixtures, which tests copy and point elsewhere.
var asRole = struct {
	sync.Mutex
	pools map[rolePool]*pgxpool.Pool
}{pools: map[rolePool]*pgxpool.Pool{}}

type rolePool struct {
	like   *pgxpool.Pool
	schema string
	role   testkit.Role
}

// What migrations.Grants gives is what Run, retention, statistics and a rebase ask for,
// and no more.
func TestGrantsAreWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		role := f.schema + "_one"
		for what, c := range map[string]struct {
			roles migrations.Roles
			needs []grant
		}{
			"relay":     {migrations.Roles{Relay: role}, grantsOfRelay},
			"retention": {migrations.Roles{Retention: role}, grantsOfRetention},
			"watcher":   {migrations.Roles{Watcher: role}, grantsOfStats},
			"rebase":    {migrations.Roles{Rebase: role}, grantsOfRebase},
		} {
			f.exec(`CREATE ROLE ` + role)
			grants, err := migrations.Grants(f.schema, c.roles)
			if err != nil {
				t.Fatal(err)
			}
			f.exec(`DO $do$ BEGIN ` + grants + ` END $do$`)
			pool := testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = role })
			d := &database{pool: pool, schema: f.schema, timeout: 20 * time.Second}
			if err := d.missingGrants(t.Context(), what, c.needs); err != nil {
				t.Error(err)
			}
			pool.Close()
			rows, err := f.pool.Query(t.Context(), `SELECT c.relname || ' ' || a.privilege_type FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
				WHERE c.relnamespace = $1::regnamespace AND a.grantee = $2::regrole`, f.schema, role)
			if err != nil {
				t.Fatal(err)
			}
			given, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil || len(given) == 0 {
				t.Fatalf("%v, %v", given, err)
			}
			for _, g := range given {
				name, privilege, _ := strings.Cut(g, " ")
				if !slices.ContainsFunc(c.needs, func(n grant) bool {
					return n.name == name && slices.Contains(strings.Split(n.privileges, ", "), privilege)
				}) {
					t.Errorf("%s is granted what it does not need: %s", what, g)
				}
			}
			f.exec(`DROP OWNED BY ` + role)
			f.exec(`DROP ROLE ` + role)
		}
	})
}
