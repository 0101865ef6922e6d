// Package handlers hands the events of a broker to typed handlers, with retry, a
// poison queue, and an inbox in Postgres that keeps an event from being handled
// twice.
//
// In order of use:
//
//	router, err := handlers.NewRouter(subscriber, handlers.Config{
//		Pool:   pool,
//		Poison: handlers.PoisonConfig{Publisher: publisher},
//	})
//	handlers.Handle(router, "mail.receipt", mailer.SendReceipt) // func(ctx, events.Event[order.Placed]) error
//	handlers.HandleTx(router, "stock.reserve", stock.Reserve)   // func(ctx, pgx.Tx, events.Event[order.Placed]) error
//
//	err = router.Run(ctx) // until ctx ends
//
//	// once the bug is fixed:
//	replayer, err := handlers.NewReplayer(subscriber, publisher, handlers.ReplayConfig{})
//	report, err := replayer.Replay(ctx, "order.poison")
//
// The broker is any Watermill subscriber and publisher. A message goes to all
// handlers of its event type; each of them retries, gives up and is recorded by
// itself; the message is acked when all have settled. A handler settles an event
// by succeeding or by giving it up to the poison queue. Both are recorded per
// (event id, handler name), so that whoever has settled is left out when the
// message comes again because of another.
//
// What a handler is not to blame for is postponed: the message is held a little
// and given back (nacked), and no attempt is counted. That goes for a database or
// a poison queue that is away, an event from a newer program, and a stop.
//
// The middlewares that do all this, [SlowNack], [Poison], [Dedup], [Retry],
// [InTx], [Timeout] and [Recover], outermost first, are ordinary
// message.HandlerMiddleware and serve in any Watermill router. Use Dedup or InTx,
// not both; InTx belongs inside Retry. [DedupBy] stands in for Dedup where what was
// handled is remembered elsewhere, such as in Redis, by any [DedupStore]; in a
// Router it is the option [WithDedup].
//
// # Guarantees
//
//  1. What HandleTx does in its transaction happens once, whatever is delivered
//     twice, at once or later, and wherever a process is killed or an answer lost
//     (TestHandleTxTakesEffectOnce, TestDuplicateWaitsForTheFirst,
//     TestKilledAtEveryFailpoint, TestLostCommitReplyTakesEffectOnce).
//  2. Handle is called at least once, and not again once its success is recorded. An
//     event is recorded with success only; one in progress elsewhere is no
//     duplicate (TestHandleRunsAgainOnlyUntilItSucceeds, TestKilledAtEveryFailpoint,
//     TestEqualPayloadsAreTwoEvents).
//  3. A message reaches every handler of its type, is acked when all have settled,
//     and those that have are not called again
//     (TestEachMessageReachesAllHandlersOfItsType, TestSettledHandlersDoNotRunAgain).
//  4. A message is poisoned whole, with its headers, its error, attempts and origin,
//     for the handler that gave up and no other. If that fails nothing is lost, and
//     there is no hot loop (TestPoisonedMessageKeepsItsEnvelope,
//     TestPoisonQueueDownLosesNothing, TestKilledAtEveryFailpoint).
//  5. A stop poisons nothing and loses nothing: running handlers finish with their
//     context alive, or are given back; Run returns in bounded time
//     (TestStopLetsRunningHandlersFinish, TestStopNeitherPoisonsNorLoses,
//     TestStopEndsWaitsForRetries, TestRevokedMessageIsGivenBack,
//     TestHandlersThatIgnoreTheirContextAreNamed,
//     TestStopReachesHandlersWhoseContextIsLoose,
//     TestStopFreesASubscriberThatMustDeliver, TestRunLeavesNoGoroutineBehind).
//  6. A database that is away poisons nothing and counts no attempt
//     (TestDatabaseOutagePoisonsNothing, TestConnectionLostUnderTheHandlerIsNoAttempt,
//     TestNothingIsPoisonedWithoutTheInbox). One event that cuts its own connection
//     20 times in a row is poisoned (TestEventThatKeepsLosingItsConnectionIsPoisoned).
//  7. An event of a newer schema version is held, an older one is not read into a type
//     that it may not fit (TestVersionsOfTheFutureAreHeld, TestOlderVersionsNeedALeave).
//  8. A message that cannot be read is poisoned once and holds nobody up
//     (TestUndecodableMessagesArePoisonedOnce, TestDataThatDoesNotFitIsPoisonedForItsHandler).
//  9. All attempts and waits of a delivery take no longer than RetryConfig.MaxElapsed
//     if handlers heed their context (TestRetryStaysBelowItsCap, TestRetryWaitsAreExact,
//     TestAttemptAfterATimeoutHasTimeAgain, TestRetryAfterIsWaitedFor).
//  10. A panic, and runtime.Goexit, is an error of the handler
//     (TestPanicIsAnErrorWithoutItsStack).
//  11. Headers stay small: an error's text is cut, and poisoning and replaying again
//     adds nothing (TestHugeErrorTextIsCut, TestReplayOfWhatFailsAgainEnds).
//  12. A replay runs the handler that gave up and no other, lifts its poisoning, takes
//     effect once, and ends; what is not chosen stays in the queue
//     (TestReplayRunsOnlyTheHandlerThatGaveUp, TestReplayedTwiceTakesEffectOnce,
//     TestReplayOfWhatFailsAgainEnds, TestReplayKeepsWhatItCannotSend,
//     TestReplayStopsAtItsLimitAndErrors, TestOverRedis).
//  13. A handler cannot commit half of its work: the transaction is the router's
//     (TestHandlerCannotEndTheTransaction).
//  14. Events published under a handler's ctx carry the correlation of the event
//     handled, and its id as causation (TestHandlerContextCarriesTheEvent).
//  15. A wrong config or wiring is refused before a message is taken, all faults
//     together (TestConfigFaultsAreReportedTogether, TestWiringFaultsAreNamed,
//     TestRunRefuses, TestMiddlewareConfigFaultsAreErrors).
//  16. A subscription that ends by itself ends Run with an error
//     (TestEndedSubscriptionEndsRun).
//  17. DedupBy calls the handler at least once, one call at a time while a claim
//     lasts, and not again once its success is recorded; a failed first try is no
//     duplicate, and what is in progress elsewhere is postponed
//     (TestDedupByTakesNoFailureForADuplicate, TestDedupByPostponesWhatIsInProgress).
//     A success that could not be recorded is recorded later without another call
//     (TestDedupByRecordsLaterWithoutAnotherCall). A store that is away poisons
//     nothing (TestDedupByPostponesWithoutItsStore). So it is with WithDedup
//     (TestWithDedupRemembersInTheStore, TestWithDedupOneAtATime,
//     TestWithDedupWithoutItsStore), which belongs to Handle only (TestWithDedupIsRefused);
//     what was poisoned, and comes again to this process because of another handler,
//     is not poisoned twice (TestWithDedupPoisonsOnce).
//
// # Not promised
//
// Effects outside of the inbox's database happen at least once: a process may die
// between them and the record.
//
// The order of events of a key is the subscriber's. A retry in place keeps it, since
// the message is held; an event that is poisoned lets younger ones of its key
// pass, and its replay comes behind them, marked by events.HeaderReplayed.
//
// The poison queue may hold a poisoning twice, after a crash between the publish
// and the record; HeaderPoisonEventID with HeaderPoisonHandler tells. A replay of
// the second is a duplicate. It may hold an event that was handled elsewhere at
// the same moment; its replay does nothing.
//
// A replay for a handler that no router has any more, because it was renamed, is
// acked by all: put the old name back, or handle it by hand.
//
// Attempts are counted in memory: after a restart, or on another consumer, they
// begin anew. A time asked for by RetryAfter is known to this process only.
//
// The inbox is never purged. An event that is delivered again after its row was
// deleted is handled again: keep rows for longer than the broker and the poison
// queue keep messages.
//
// DedupBy remembers for as long as its store does, and no poisonings: a duplicate
// of an event that was given up is handled. A handler that outlasts its claim may
// run beside another.
//
// Credentials are taken out of reasons and logs as far as they can be told; the
// text of an error is the handler's own.
package handlers
