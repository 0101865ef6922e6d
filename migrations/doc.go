// Package migrations creates, upgrades and removes the tables of Postbus in a schema of
// the user's choice, and says what each program needs to be granted there.
//
//	err := migrations.Up(ctx, pool, migrations.DefaultSchema)
//
//	// or by another tool: psql, atlas, golang-migrate, goose
//	fsys, err := migrations.Files(migrations.DefaultSchema, migrations.Goose)
//	err = os.CopyFS("migrations", fsys)
//
//	sql, err := migrations.Grants(migrations.DefaultSchema, migrations.Roles{App: "shop", Relay: "relay"})
//
//	err = migrations.Down(ctx, pool, migrations.DefaultSchema, 0) // refuses to lose an event
//
// The statements are in the folder sql, with {schema} in the place of the schema's name.
//
// # Guarantees
//
//  1. Up and Down may be called by any number of processes at once: one does the work,
//     the others wait for it and find it done (TestUpTwentyAtOnce,
//     TestDownTwentyAtOnce).
//  2. A migration is applied, or taken back, whole or not at all (TestUpIsAtomic,
//     TestDownIsAtomic).
//  3. A schema written by a newer Postbus is left alone, and the error says so
//     (TestUpRefusesTheFuture, TestDownRefusesBadArguments).
//  4. A schema with the name of the connection's role is not created: search_path
//     would look for the application's tables there (TestUpRefusesTheRolesOwnName).
//  5. A schema name that is not a plain lower-case identifier is refused before any
//     SQL (TestCheckSchema, TestGrantsRefuseBadArguments).
//  6. Down removes what Up has created and nothing else, not even what others have put
//     into the same schema; Up can begin anew (TestDownRemovesWhatUpMade,
//     TestDownLeavesASchemaThatOthersUse).
//  7. No event goes with it that a relay or durable handler has not settled, or that is
//     parked, and no row of the inbox, unless an option says that it may; a transaction
//     that is about to append is waited for (TestDownRefusesToLoseEvents,
//     TestDownSeesWhatIsCommittedMeanwhile).
//  8. The files for other tools create the same schema as Up, and refuse the same as
//     Down; the one can take down what the other has created (TestFilesMakeWhatUpMakes,
//     TestFilesAndUpMeet, TestFilesAreNamedAsToolsExpect).
//  9. Grants gives each role what its programs need: the suites of outbox, bus and
//     handlers run with it. The application may not read or change the log, nor choose
//     an id or a transaction id for a row (TestGrantsRun, TestGrantsAreDocumented).
//
// # Not promised
//
// Tables changed by hand are not noticed. Down is not for a system at work: it waits two
// seconds for transactions that use the tables, holds up the others meanwhile, and what is
// published afterwards is refused. The numbers of the files are those of Postbus, and
// may meet yours in one folder.
package migrations
