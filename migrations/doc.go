// Package migrations creates and upgrades the tables of Postbus in a schema of
// the user's choice.
//
//	err := migrations.Up(ctx, pool, migrations.DefaultSchema)
//
// # Guarantees
//
//  1. Up may be called by any number of processes at once: one does the work, the
//     others wait for it and find it done (TestUpTwentyAtOnce).
//  2. A migration is applied whole or not at all (TestUpIsAtomic).
//  3. A schema written by a newer Postbus is left alone, and the error says so
//     (TestUpRefusesTheFuture).
//  4. A schema with the name of the connection's role is not created: search_path
//     would look for the application's tables there (TestUpRefusesTheRolesOwnName).
//  5. A schema name that is not a plain lower-case identifier is refused before any
//     SQL (TestCheckSchema).
//
// # Not promised
//
// Down migrations, and plain files for other migration tools, do not exist yet.
// Tables changed by hand are not noticed.
package migrations
