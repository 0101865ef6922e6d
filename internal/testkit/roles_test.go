package testkit

import (
	"sync"
	"testing"

	"github.com/postbus/postbus/migrations"
)

// A session of As has the role's privileges and no others; many tests make the roles
// at once; behind a pooler it stays what it was.
func TestAsHasTheRolesPrivilegesOnly(t *testing.T) {
	t.Parallel()
	for _, which := range []Server{PG15, PG18, PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			pool, schema := Postgres(t, which), Schema(t, which)
			if err := migrations.Up(t.Context(), pool, schema); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() { createRoles(t, pool) })
			}
			all.Wait()
			Grant(t, pool, schema)
			if _, err := pool.Exec(t.Context(), "CREATE TABLE "+schema+".theirs ()"); err != nil {
				t.Fatal(err)
			}
			GrantAll(t, pool, schema+".theirs")
			for role, may := range map[Role]bool{App: false, Relay: true, Consumer: false, Admin: true} {
				as := As(t, pool, role)
				if which == PgBouncer {
					may = true
				}
				for _, p := range []struct {
					sql string
					may bool
				}{
					{"SELECT FROM " + schema + ".outbox", may},
					{"SELECT FROM " + schema + ".theirs", true},
					{"CREATE TABLE " + schema + "." + string(role) + " ()", which == PgBouncer},
				} {
					if _, err := as.Exec(t.Context(), p.sql); (err == nil) != p.may {
						t.Errorf("%s: %s: %v", role, p.sql, err)
					}
				}
				if again := Pool(t, AddressOf(as)); which != PgBouncer {
					var name string
					if err := again.QueryRow(t.Context(), "SELECT current_user").Scan(&name); err != nil || name != string(role) {
						t.Errorf("the address of %s leads to %s, %v", role, name, err)
					}
				}
			}
		})
	}
}
