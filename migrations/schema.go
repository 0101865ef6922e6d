package migrations

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// DefaultSchema is where the tables live unless the user says otherwise.
const DefaultSchema = "postbus"

// ErrInvalidSchema is wrapped by every refusal of a schema name.
var ErrInvalidSchema = errors.New("not a usable schema name")

// 63 bytes is PostgreSQL's NAMEDATALEN - 1; it truncates longer names silently,
// so that two of them could meet in one schema.
var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// CheckSchema refuses names that would need quoting, that PostgreSQL would
// truncate, or that it keeps for itself.
func CheckSchema(schema string) error {
	if !schemaName.MatchString(schema) {
		return fmt.Errorf("schema %.80q: %w: use 1 to 63 lower-case letters, digits and underscores, not starting with a digit", schema, ErrInvalidSchema)
	}
	if strings.HasPrefix(schema, "pg_") || schema == "information_schema" {
		return fmt.Errorf("schema %q: %w: PostgreSQL keeps this name for itself, choose another", schema, ErrInvalidSchema)
	}
	return nil
}
