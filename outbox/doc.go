// Package outbox is the log that events are appended to inside a transaction, and
// the relay that takes them from there to a broker.
//
// In order of use:
//
//	err := migrations.Up(ctx, pool, migrations.DefaultSchema)
//
//	log, err := outbox.NewLog(outbox.LogConfig{})
//	err = log.Append(ctx, tx, event) // the bus does this: bus.EventBus.Publish
//
//	relay, err := outbox.NewRelay(pool, publisher, outbox.RelayConfig{Name: "kafka"})
//	err = relay.Run(ctx) // in as many processes as you like: one works, the others stand by
//
//	desk, err := outbox.NewDesk(pool, "kafka", outbox.DeskConfig{By: "anna"})
//	parked, err := desk.Parked(ctx, outbox.ParkedFilter{}, 0, 100) // what the relay has put aside, and why
//	err = desk.Replay(ctx, parked[0].LogID)
//
//	retention, err := outbox.NewRetention(pool, outbox.RetentionConfig{})
//	err = retention.Run(ctx) // beside the relays: what all have passed leaves the log after a week
//
// publisher is any message.Publisher of Watermill. One that is also a
// [BatchPublisher], as the adapters of this module are, gets many events per call.
//
// # Follow a row
//
// The files in the order in which an event passes through them.
//
// Into the log: log.go (what a log is, topics, slots), append.go (check, encode once,
// one INSERT), copy.go (many events as one COPY), keylock.go (order without a row lock,
// by option), wake.go (the relay of this process is told of a commit, or given a hint),
// notify.go, listen.go and listendirect.go (those of other processes are told).
// The table, with the reason for the order of its columns, is in
// migrations/sql/0001_outbox.sql.
//
// A relay begins: config.go, relay.go, startat.go and idat.go (where a new name
// begins), shift.go (Run: stand by, work, start over), owner.go (relays and durable
// handlers), source.go and grants.go (what is checked first), database.go (how anything is written),
// lease.go (who should move the position), seat.go (take over), control.go (how it is
// steered), tenure.go (from one load of the position to the next error: loop, drain).
//
// Which rows are new: poll.go (is there anything), round.go (what a round is, and why
// it is whole), snapshot.go, chain.go (who can move the position: the steps of a
// round, as links).
//
// To the broker: reader.go and row.go (a round's rows, in windows of ids), sharedread.go
// (read once for all relays of a process that are behind), item.go
// (an event in memory and its states), window.go (what a crash may publish twice), pace.go (a limited rate),
// lane.go and keyqueue.go (order per key), sender.go, publisher.go, message.go (the
// call, and what a publisher promises), outcome.go (results become states), health.go
// (a bad event, or a broker that is down).
//
// Into a handler instead: durable.go and durableconfig.go, durables.go (several, on a
// pool of their own), duty.go (what a tenure is for a relay: its loop), effect.go, tx.go
// and txend.go (the transaction that link and effects share), setaside.go (a handler that fails), held.go
// (what is put aside, when its place comes again).
//
// Published: settle.go (the link that passes it), handover.go (the last ones before a
// clean stop).
//
// Or not: parking.go (put aside, in the transaction whose link passes it),
// parkedload.go (found again by the next holder), desk.go, deskparked.go, deskfilter.go
// and deskmatching.go (a person looks, and asks), deskrequests.go (the record of it),
// desksteer.go and deskmove.go (what is asked of the whole), deskdrop.go, request.go
// (replay and discard, carried out), steer.go (the rest of it). errors.go,
// faults.go (of a config), hooks.go and failpoints.go belong to all.
//
// Looked at: stats.go, statsread.go and statssql.go (how the log and all who read it
// stand, for all relays at once), check.go and checkrules.go (is it as it should be).
//
// Out of the log: retention.go (Run, Once, what is kept how long), retentionlook.go
// (one look: chunks of ids, from the floor upwards), retentionseen.go (what every
// position has passed), retentionlock.go (what moves a position back, and what takes
// rows, take turns), retentionlate.go (what is committed below the floor),
// retentionheld.go (who holds the log back), retentioncap.go (whose position is
// ended), retentionaside.go (the tables beside the log).
//
// Moved to another cluster: rebase.go (what is refused, and what is locked),
// rebaseplan.go (what every position still has to take), rebasewrite.go, renumbering.go
// (transaction ids of another cluster, in this one's terms).
//
// # Guarantees
//
//  1. An append is part of the caller's transaction, and all of one call is appended
//     or nothing. A refusal comes before the first statement, leaves the transaction
//     usable, and says what to do; the bytes in the log are those that were encoded
//     (TestAppendOneAndMany, TestAppendRefusesBeforeItWrites,
//     TestAppendNeedsATransaction, TestAppendExplainsTheDatabasesAnswer,
//     TestAppendFromManyGoroutines).
//  2. Every committed event is published at least once, and the first deliveries of
//     one topic and key are in the order of the transactions that appended them, while
//     relays are killed, frozen and woken; repeats are at most a window per crash or
//     forced take-over (TestEveryCommittedEventIsPublishedInOrder, TestOrderWhileRelaysAreKilledAndFrozen,
//     TestKilledAtEveryFailpoint, TestReadAgainstModel). A clean stop, a cut connection
//     and a lost reply repeat nothing (TestCleanStopLosesAndRepeatsNothing,
//     TestCutConnectionsLoseAndRepeatNothing, TestLostRepliesRepeatNothing).
//  3. So it is through crashes of the server, noticed or hidden by a pool
//     (TestCrashOfTheServerWithUnflushedXids, TestRelayOutlivesItsServersCrashes).
//  4. A transaction that stays open delays its own events only, and none of them is
//     lost, whatever ids they have (TestLongTransactionStallsNothing,
//     TestAppendThatCommitsAfterThePoll, TestLateLowerIDsAndNobodyWaits,
//     TestPreparedTransaction, TestLateTransactionOfManyRows, TestGapsOfIDs).
//  5. The order of steps that this rests on is kept: a row's xid before its id, the
//     sequence's position before our own xid, never the sequence's page
//     (TestXidStandsBeforeID, TestAppendWithTheApplicationsPrivileges,
//     TestSequenceIsReadBeforeTheXid, TestXidBeforeTheSequenceWouldLoseRows,
//     TestNoStatementReadsTheSequencesPage).
//  6. Nobody moves a position on top of what they have not seen: not a former holder,
//     a holder whose commit lost its reply, or one whose links a crash of the server
//     has lost; and no position passes what could not be parked
//     (TestTakeoverWhileALinkCommits, TestFormerHolderWakesUp, TestLostReplyOfACommit,
//     TestLinkStandsOnTheOneThatWasSeen, TestNothingIsPassedThatCouldNotBeParked).
//  7. A failing event holds up its own key, and no other; its attempts are bounded and
//     outlive a restart (TestFailingEventStopsItsKeyOnly,
//     TestEventsOfOtherKeysFlowWhenAllElseFails, TestPermanentErrorIsGivenUpAtOnce,
//     TestAttemptsAreBoundedAndSurviveARestart,
//     TestParkedRowsBlockTheirKeyForTheNextHolder, TestParkingUnderFire).
//  8. A publisher that hangs or panics holds up the keys of that call, and no other; it
//     keeps Run from stopping no longer than RelayConfig.DrainTimeout
//     (TestPublisherThatHangsStopsOneKeyOnly, TestCallThatHangsIsLeftBehind,
//     TestPublisherThatPanicsStopsNothing, TestMessageOfACallLeftBehindIsNotTouched).
//  9. A batch call holds one event per key at most, unless the publisher says that a
//     key stops at its first failure; what was not attempted costs no attempt
//     (TestAtMostOneEventPerKeyInACallThatDoesNotStopKeys, TestNotAttemptedIsSentAgain,
//     TestPublishersBoundsAndTheRelaysBothHold). Each attempt of a stock publisher gets a
//     fresh message (TestEachAttemptGetsAFreshMessage).
//  10. While the broker is down nothing is parked and no attempt is counted; an unknown
//     outcome is tried again before anything else of its key, and never given up
//     (TestBrokerDownParksNothing, TestOutageIsProbedByOneCallAtATime,
//     TestOutageIsManyKeysWithNothingAcceptedBetween,
//     TestUnknownOutcomeIsTriedFirstAndNeverGivenUp).
//  11. A replay goes through its key's lane, in order under [BlockKey] and marked under
//     [SkipKey]; what is discarded is not sent any more, and its key goes on. Both are
//     carried out while the stream runs (TestReplayGoesOnInTheKeysLane,
//     TestDiscardedEventIsNeverSentAndItsKeyGoesOn,
//     TestRequestsForOneEventAreCarriedOutInTurn, TestReplayIsCarriedOutWhileTheStreamRuns,
//     TestRequestsForWhatIsNotParkedAreRefused).
//  12. [FromNow] leaves the history out, also if the first start ends half way
//     (TestFromNow).
//  13. A relay is told of a commit made through this process, and looks at once; of an
//     append whose commit nobody reports it is given a hint, and looks soon and then
//     ever more rarely (TestHintIsLookedForSoon). With a [Notifier] there and a
//     [Listener] here it is told of another process's commits, too
//     (TestCommitOfAnotherProcessWakesTheRelay, TestListenerWakesTheRelaysOfItsProcess),
//     after connections were lost, with or without a word (TestListenerOutlivesItsConnection,
//     TestListenerFindsADeadConnection, TestNotifierWaitsTroubleOut). Many commits are
//     few notifications, the last one told of (TestNotificationsAreCoalesced,
//     TestNotifierTellsOfTheLastCommit), none of them inside a
//     transaction that publishes (TestNoNotifyInsideATransactionThatPublishes); where
//     they would be lost, Run says so (TestListenerRefusesPgBouncerInTransactionMode).
//  14. Under LogConfig.LockKeys the order of a key's events is that of the transactions
//     that append them, without any other lock; appends that cross do not deadlock, and
//     a transaction holds at most KeyLocks locks (TestKeyLockOrdersWritersWithoutARowLock,
//     TestKeyLockWaitsForItsKeyOnly, TestKeyLockOfCrossingAppends, TestKeyLocksAreBounded,
//     TestKeyLockInEveryExecMode).
//  15. The log is read by plans that do not depend on statistics
//     (TestPlansDoNotDependOnStatistics, TestLogIsReadByPlainPlans).
//  16. All of this holds on PostgreSQL 15 and 18, and through PgBouncer in transaction
//     mode (TestOrderWhileRelaysAreKilledAndFrozen, TestAppendOneAndMany,
//     TestEveryExecMode, TestRelayRunsInEveryExecMode,
//     TestDurableHandlerRunsInEveryExecMode). A query exec mode that the pooler breaks is
//     refused, or named by the error (TestExecModeThatAPoolerBreaks,
//     TestAppendInAnExecModeThatAPoolerBreaks). It needs no more privileges than
//     migrations.Grants gives (TestGrantsAreWhatIsAskedFor), and no more connections
//     than it says (TestRelayUsesAtMostFourConnections,
//     TestRelayAndApplicationShareASmallPool, TestRelayOutlivesAPoolThatIsUsedUp).
//  17. What would lose events, or never work, ends Run at its start, with one sentence
//     that says what was found and what to do: a read replica, a schema of another
//     version, all the privileges that are missing, ids in blocks or behind the log,
//     another cluster's transaction ids (TestRunRefusesWhatWaitingCannotMend,
//     TestStartRefusesAStandby, TestStartNamesEveryMissingGrant,
//     TestStartRefusesASequenceBehind, TestStartRefusesAnotherClustersNumbers,
//     TestStartRefusesNothingWhileEventsAreAppended).
//  18. The desk refuses, in a sentence and with nothing noted, what would never be carried
//     out or cannot be meant (TestSteeringOfWhatDoesNotRunIsRefused,
//     TestSteeringThatMakesNoSenseIsRefused, TestMovesThatCannotBeMeantAreRefused,
//     TestMatchingIsRefused, TestFilterThatCannotBeMeantIsRefused); what it asks for is
//     noted with who asked (TestSteeringIsAskedFor, TestMatchingEventsAreAskedForOneByOne),
//     and carried out, or refused with the reason if things have changed
//     (TestSteeredFromTheDesk, TestRequestThatCameTooLate). A move to a time misses no
//     event of that time or later (TestIDOfATime, TestIDOfATimeAmongHeldUpSessions). A
//     drop waits for nobody who runs, loses no parked event unasked, and leaves nothing
//     that a frozen holder could go on from (TestDropEndsARelayForGood,
//     TestDropPastAFrozenHolder, TestAskingWhileItIsDropped, TestDropThatFailsChangesNothing).
//  19. [Retention] removes no event that a relay or durable handler has still to read, nor
//     one that is younger than RetentionConfig.Keep, whatever commits late, falls behind,
//     begins or is rewound meanwhile; a rewind to what may be gone is refused
//     (TestRetentionAgainstModel, TestRetentionWaitsForLateCommits,
//     TestRetentionWaitsForTheSlowestPosition, TestRetentionKeepsWhatIsYoung,
//     TestRetentionKeepsWhatIsLateAndYoung, TestRetentionWaitsForANewRelay, TestRetentionWaitsForABrokenPosition,
//     TestRetentionWithoutReaders,
//     TestRetentionTakesTurnsWithPositions, TestRetentionStoresItsFloor). It forgets none
//     that may leave, though it is killed (TestRetentionIsKilled,
//     TestRetentionOutlivesACrashOfTheServer, TestRetentionPassesGaps). A position is
//     ended only where a config says so, and Run of it is refused then
//     (TestRetentionEndsAPosition, TestRetentionEndsNoPositionThatMoves).
//  20. Retention makes nobody wait but who moves a position back: it has no locks that an
//     append conflicts with, and waits for no transaction, snapshot or dump
//     (TestRetentionTakesNoLockThatAppendsWaitFor). What it touches depends neither on
//     statistics nor on what it has removed before (TestRetentionIsReadByPlainPlans). One
//     process works at a time, another goes on after it (TestRetentionRunsOneAtATime,
//     TestRetentionsBesideEachOther). It
//     works through PgBouncer (TestRetentionThroughPgBouncer), and on the tables beside the
//     log (TestRetentionRemovesWhatLiesAside).
//  21. [ReadStats] finds the oldest event that is committed and not passed, whatever
//     commits late (TestStatsAgainstEveryRow, TestStatsOfLateEvents,
//     TestStatsFollowThePosition), by probes of indexes that no statistics turn into a
//     scan of the log (TestStatsPlansDoNotDependOnStatistics), with SELECT alone
//     (TestStatsPrivileges), through PgBouncer too (TestStatsInEveryExecMode).
//  22. [Check] tells of a relay that is alive and publishes nothing
//     (TestCheckOfARelayThatIsAliveAndPublishesNothing,
//     TestCheckOfARelayThatStartsOverAndOver, TestCheckOfLateEvents), that nobody runs
//     (TestCheckOfARelayThatNobodyRuns), is paused or lost (TestCheckOfPauseAndLoss), or
//     needs a person (TestCheckOfParkedEventsAndRequests); and of none that is as it
//     should be (TestCheckOfWhatIsHealthy, TestCheckOfARelayThatLeavesTypesOut,
//     TestCheckLooksTwice).
//  23. What a durable handler writes through its Tx takes effect once for each event, in
//     the order of its key, while its processes are killed or frozen, or a COMMIT loses its reply
//     (TestDurableHandlerTakesEffectOnceAndInOrder, TestDurableHandlerKilledAtEveryFailpoint,
//     TestDurableHandlerUnderFire, TestLostReplyOfADurableHandlersCommit). A frozen one holds
//     nobody up for longer than the lease (TestFrozenDurableHandlerTakesNoEffect).
//  24. A handler that fails, hangs, panics or ends its transaction leaves no effect, and
//     holds up its key only; attempts are bounded and outlive a restart
//     (TestHandlerThatMisbehavesTakesNoEffect, TestFailingEventOfADurableHandlerStopsItsKeyOnly,
//     TestAttemptsOfADurableHandlerAreBoundedAndSurviveARestart, TestHandlersVerdictOnAnEventIsNoOutage,
//     TestConflictOfADurableHandlerIsTriedAgainAtOnce, TestQueueThatIsFreedLetsOtherKeysThrough). In an
//     outage nothing is put aside, and never more than may be
//     (TestOutageOfADurableHandlerPutsNothingAside, TestOutageThatBeginsBehindTheLogsEndIsProbed,
//     TestOutageWithAsMuchPutAsideAsMayBeEnds, TestDurableHandlerStopsWhenTooMuchIsPutAside).
//  25. A durable handler is steered as a relay is (TestDurableHandlerIsSteered,
//     TestFrozenDurableHandlerThatWasDropped, TestDurableHandlerAndRelayCannotShareAName,
//     TestDurableHandlerBeginsWhereItIsTold); a rewind handles each event once more, in order, also
//     those put aside (TestProjectionIsRebuiltWithEventsPutAside). Many of them need few
//     connections (TestManyDurableHandlersOnFewConnections, TestRunDurablesRefusesAndEnds), and a
//     stop counts no attempt (TestDurableHandlerStops).
//  26. After [Rebase] in another cluster every relay and durable handler goes on with
//     exactly what it had not settled in the state that was copied, in order, whatever
//     it was doing and however far the two clusters have come; repeats are those of a
//     crash (TestRebaseAgainstRandomHistories, TestRebaseAfterDumpAndRestore,
//     TestRenumberingKeepsWhatSnapshotsCanTellApart). Events that were appended there
//     with ids that had been passed are not lost (TestRebaseAfterLogicalReplication). It
//     is refused while the log is in use, and does all or nothing
//     (TestRebaseIsRefusedOrWhole).
//  27. Hooks are told of what happens, once, and change nothing by what they do (TestHooks);
//     a relay tells its window (TestRelaysWindowIsTold). Relays of one process that are
//     behind read the log together, and each gets all of it
//     (TestRelaysOfAProcessShareWhatTheyRead, TestSharedBlockIsNotOlderThanTheRound).
//
// # Not promised
//
// Order without a lock: the transactions of one key are ordered if each takes the row
// lock, or does the version check, of its aggregate before it appends, or if
// LogConfig.LockKeys is set.
//
// Order across topics, and order of repeats: what is in order are first deliveries. A
// repeat may send a run of older events again.
//
// Exactly once. A crash, a take-over from a dead or frozen holder, or a stop while the
// broker or the database is away publishes up to a window again, a crash of the
// server possibly more, since links that only move a position are not waited for; a call
// that a paused process had begun may still arrive, and an event whose outcome is unknown
// is sent again. Consumers deduplicate by the event's id.
//
// Durability beyond the server's: a transaction that PostgreSQL loses after its commit
// (synchronous_commit off, an asynchronous fail-over) may have been published.
//
// Space back while an old snapshot, or a transaction that has written, is open anywhere in
// the cluster: what retention removes meanwhile is reused only after it has ended, and the
// table grows until then.
//
// Spreading one relay over several processes: it does not exist yet.
package outbox
