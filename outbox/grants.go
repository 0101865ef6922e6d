package outbox

import (
	"context"
	"fmt"
	"strings"
)

// grant is what a role must be allowed on one of our objects.
type grant struct {
	kind       string // SCHEMA, TABLE or SEQUENCE
	name       string // of the object; empty for the schema
	privileges string // as GRANT takes them
}

// grantsOfRelay is what a relay or durable handler does to our tables, and no more.
var grantsOfRelay = []grant{
	{"SCHEMA", "", "USAGE"},
	{"TABLE", "schema_migration", "SELECT"},
	{"TABLE", "outbox_source", "SELECT, UPDATE"}, // UPDATE: a new timeline raises the incarnation
	{"TABLE", "outbox", "SELECT"},
	{"SEQUENCE", "outbox_id", "SELECT"}, // without it pg_sequence_last_value is NULL, which reads as an empty log
	{"TABLE", "relay", "SELECT, INSERT, UPDATE"},
	{"TABLE", "relay_link", "SELECT, INSERT, DELETE"},
	{"TABLE", "relay_lease", "SELECT, INSERT, UPDATE"},
	{"TABLE", "relay_request", "SELECT, UPDATE"},
	{"TABLE", "retention", "SELECT"},
	{"TABLE", "parked", "SELECT, INSERT, UPDATE, DELETE"},
}

// grantsOfRebase is what Rebase does.
var grantsOfRebase = []grant{
	{"SCHEMA", "", "USAGE"},
	{"TABLE", "schema_migration", "SELECT"},
	{"TABLE", "outbox_source", "SELECT, UPDATE"},
	{"TABLE", "outbox", "SELECT, UPDATE"},
	{"SEQUENCE", "outbox_id", "SELECT, UPDATE"},
	{"TABLE", "relay", "SELECT"},
	{"TABLE", "relay_link", "SELECT, INSERT, UPDATE, DELETE"}, // UPDATE: to lock it
	{"TABLE", "relay_lease", "SELECT, UPDATE"},
	{"TABLE", "relay_request", "SELECT, INSERT"},
	{"SEQUENCE", "relay_request_id_seq", "SELECT, UPDATE"},
	{"TABLE", "retention", "SELECT, UPDATE"},
	{"TABLE", "parked", "SELECT, UPDATE"},
}

// missingGrants is nil if the connection's role may do all of it; else one error
// that wraps ErrMissingPrivilege and holds the statements to run, complete. What does
// not exist is not missing here: migrations.Check finds it.
func (d *database) missingGrants(ctx context.Context, who string, needed []grant) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var kinds, names, privileges []string
	for _, g := range needed {
		for p := range strings.SplitSeq(g.privileges, ", ") {
			kinds, names, privileges = append(kinds, g.kind), append(names, g.name), append(privileges, p)
		}
	}
	// By oid, from the catalogs that all may read: a name could not even be looked up
	// in a schema without USAGE.
	var statements []string
	err := d.pool.QueryRow(ctx, `SELECT coalesce(array_agg(s ORDER BY first), '{}') FROM (
			SELECT min(o.k) AS first, format('GRANT %s ON %s %s TO %I;', string_agg(o.privilege, ', ' ORDER BY o.k), o.kind,
				CASE o.kind WHEN 'SCHEMA' THEN quote_ident(n.nspname) ELSE format('%I.%I', n.nspname, o.name) END, current_user) AS s
			FROM unnest($2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS o (kind, name, privilege, k)
			CROSS JOIN (SELECT oid, nspname FROM pg_namespace WHERE nspname = $1) AS n
			LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = o.name
			WHERE CASE o.kind WHEN 'SCHEMA' THEN NOT has_schema_privilege(n.oid, o.privilege)
				WHEN 'TABLE' THEN NOT has_table_privilege(c.oid, o.privilege)
				ELSE NOT has_sequence_privilege(c.oid, o.privilege) END
			GROUP BY o.kind, o.name, n.nspname) AS missing`,
		d.schema, kinds, names, privileges).Scan(&statements)
	if err != nil {
		return err
	}
	if len(statements) == 0 {
		return nil
	}
	return fmt.Errorf("%w: the connection's role lacks what %s needs: run, as the schema's owner: %s", ErrMissingPrivilege, who, strings.Join(statements, " "))
}
