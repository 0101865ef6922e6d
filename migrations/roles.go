package migrations

import (
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed sql/roles.sql
var rolesSQL string

// Roles are the names of the database roles of your programs. One name may stand in
// several places, where a program does several things; an empty one is left out.
type Roles struct {
	App       string // publishes: bus, outbox.Log
	Relay     string // outbox.Relay, durable handlers
	Retention string // outbox.Retention
	Consumer  string // handlers.Router, handlers.Inbox
	Watcher   string // outbox.ReadStats, outbox.Check
	Desk      string // outbox.Desk
	Rebase    string // outbox.Rebase
}

// ErrInvalidRole is wrapped by every refusal of a role's name.
var ErrInvalidRole = errors.New("not a usable role")

// Grants gives the statements that grant each role what its programs need in schema
// (empty: DefaultSchema), and no more: what sql/roles.sql of this package says, with the
// names filled in. Run them as the owner of the tables, who called Up, and again after
// each migration. They create no role, take nothing back, and may be repeated. No role
// needs to own anything, or to be allowed to create anything; leave Up to the owner.
func Grants(schema string, roles Roles) (string, error) {
	if schema == "" {
		schema = DefaultSchema
	}
	if err := CheckSchema(schema); err != nil {
		return "", err
	}
	fields := []struct{ field, place, name string }{
		{"App", "{app}", roles.App}, {"Relay", "{relay}", roles.Relay}, {"Retention", "{retention}", roles.Retention},
		{"Consumer", "{consumer}", roles.Consumer}, {"Watcher", "{watcher}", roles.Watcher}, {"Desk", "{desk}", roles.Desk}, {"Rebase", "{rebase}", roles.Rebase},
	}
	var faults []error
	given := false
	for _, f := range fields {
		if f.name == "" {
			continue
		}
		given = true
		switch {
		case strings.Contains(f.name, "\x00") || len(f.name) > 63: // NAMEDATALEN - 1
			faults = append(faults, fmt.Errorf("the field Roles.%s is %.80q: use 1 to 63 bytes without NUL", f.field, f.name))
		case f.name == "public" || f.name == "none":
			faults = append(faults, fmt.Errorf("the field Roles.%s is %q, which PostgreSQL does not take for a role: name one of your own", f.field, f.name))
		case f.name == schema:
			faults = append(faults, fmt.Errorf("the field Roles.%s has the name of the schema: search_path looks into a schema of the role's own name first, so that the application's tables would be looked for, and created, among ours; use another role or another schema", f.field))
		}
	}
	if !given {
		faults = append(faults, errors.New("Roles is empty: name at least one role"))
	}
	if len(faults) > 0 {
		return "", fmt.Errorf("grants of schema %q: %w: %w", schema, ErrInvalidRole, errors.Join(faults...))
	}
	var kept []string
	for paragraph := range strings.SplitSeq(rolesSQL, "\n\n") {
		wanted := true
		for _, f := range fields {
			if strings.Contains(paragraph, f.place) {
				wanted = f.name != ""
			}
		}
		if wanted {
			kept = append(kept, paragraph)
		}
	}
	fill := []string{"{schema}", pgx.Identifier{schema}.Sanitize()}
	for _, f := range fields {
		fill = append(fill, f.place, pgx.Identifier{f.name}.Sanitize())
	}
	return strings.NewReplacer(fill...).Replace(strings.Join(kept, "\n\n")), nil
}
