// Package bus publishes typed events inside the transaction that makes them true,
// and hands them to handlers in this process.
//
// In order of use:
//
//	log, err := outbox.NewLog(outbox.LogConfig{})
//	eventBus, err := bus.New(log, bus.Config{})
//
//	bus.SubscribeInTx(eventBus, stock.Reserve)         // func(ctx, pgx.Tx, events.Event[order.Placed]) error
//	bus.SubscribeAfterCommit(eventBus, cache.Forget)   // func(ctx, events.Event[order.Placed]) error
//
//	err = bus.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
//		if err := orders.Insert(ctx, tx, o); err != nil {
//			return err
//		}
//		return eventBus.Publish(ctx, tx, order.Placed{OrderID: o.ID})
//	})
//
// A transaction that the application begins and commits itself is followed:
// [Follow]. A domain that imports nothing of ours publishes through an interface of
// its own: [PublisherOf].
//
// Published events stand in the outbox, from where a relay takes them to a
// broker. An in-tx handler is part of the transaction: it writes through it, may
// publish further events in it, and may refuse it. An after-commit handler is told
// of what is committed.
//
// Handlers are found by an event's wire name and version, exactly: a handler of
// version 2 does not get version 1. One Go type stands for a name and version on
// a bus; an event of it is handed over as it is, and an envelope without a Go type
// ([events.Raw]) is decoded into it. Auditors and projections take the envelopes
// of all events that match a pattern: [SubscribeInTxTo], [SubscribeAfterCommitTo].
//
// A durable handler ([SubscribeDurable], run by [EventBus.Run]) reads the log: it gets
// every committed event of its type, once, in a transaction of its own, whatever
// crashes in between.
//
// Whoever wants typed events within the process, and no database, takes a [Local]
// instead: [NewLocal], [Subscribe], [Dispatch].
//
// # Guarantees
//
//  1. An event is in the log if and only if its transaction committed, and so is
//     what in-tx handlers wrote (TestPublishCommits, TestRollbackAnnouncesNothing,
//     TestPanicInFnRollsBackAndGoesOn, TestGoexitCommitsNothing).
//  2. All events of one Publish stand in the log in their order, and before those
//     that their handlers publish, also through a domain's own interface
//     (TestOrderInTheLog, TestPublisherOfADomain).
//  3. What is announced after a commit is what is in the log, in its order of
//     publication, savepoints included, to any depth
//     (TestAnnouncedIsWhatIsCommitted, TestSavepoints).
//  4. Nothing is announced unless the commit is known; if its answer is lost, the
//     error says so and nothing is done twice (TestCommitUnknown,
//     TestCommitUnknownAndNotCommitted, TestRolledBackIsCertain).
//  5. A Publish that failed is not committed around: its InTx rolls back, even if
//     the error was dropped, unless a savepoint has undone it
//     (TestFailedPublishDooms, TestFailedPublishInSavepoint,
//     TestSavepointRollsBackUnderAnEndedContext).
//  6. InTx returns nil once the commit is known, whatever after-commit handlers do;
//     the caller's cancel does not reach them (TestAfterCommitErrorsGoToTheHook,
//     TestAfterCommitContext, TestAfterCommitGoexit).
//  7. A transaction whose ctx has ended before COMMIT is not committed
//     (TestEndedContextIsNotCommitted).
//  8. An attempt of RetryConflicts knows nothing of the one before
//     (TestRetryStartsClean, TestRetryOfSerializationFailureAtCommit,
//     TestRetryOfDeadlock, TestRetryIsBounded).
//  9. A panic of a handler is an error with a stack; no error is lost
//     (TestHandlerPanicIsAnError, TestHandlerErrorRollsBack).
//  10. Events published by handlers carry the correlation of the event handled, and
//     its id as causation (TestCorrelationAndCausation).
//  11. Handlers that publish in a circle are stopped, and the circle is named
//     (TestCycleIsNamed, TestCycleAfterCommit).
//  12. A bad event is refused before anything is written, all of a call together
//     (TestRefusedBeforeAnythingIsWritten, TestPublishedTypesAreChecked); bad wiring
//     at the start (TestWiringFaultsPanicAtTheStart); what types can tell apart, by
//     the compiler (TestWrongKindDoesNotCompile).
//  13. No name of a Go type is on the wire or in a subscription
//     (TestRenamedGoTypeChangesNothing).
//  14. Subscribing and publishing from many goroutines is safe, and no lock is held
//     while a handler runs (TestSubscribeWhilePublishing).
//  15. A cancelled subscription gets nothing of a Publish that begins afterwards, and
//     misses nothing of one that has begun before; the others notice nothing
//     (TestCancel, TestCancelWhilePublishing). What is subscribed is listed, in the
//     order of calls (TestSubscriptionsAreListed).
//  16. What is said of InTx in 3 to 6 holds for a followed transaction that its Tx
//     ends (TestFollowedCommitAnnounces, TestFollowedRollbackAnnouncesNothing,
//     TestFollowRefuses), and for one committed by somebody else once Committed is
//     called (TestCommittedAlthoughDoomed). One that is dropped is made visible
//     (TestForgottenTransactionIsMadeVisible, TestForgottenIsLogged).
//  17. A handler of a pattern gets exactly the events whose type matches, of every
//     version, and with the typed handlers of an event in one order, that of
//     subscription (TestPatterns, TestOrderOfTypedAndUntypedHandlers); a pattern that
//     is none is refused at the start (TestPatternsAreCheckedAtTheStart).
//  18. Middlewares surround every call of every handler, the first one outermost, and
//     what they return or panic with is the handler's (TestMiddlewares,
//     TestMiddlewareErrorsAndPanics, TestBrokenMiddlewares).
//  19. Every event carries the metadata of its context, behind what it says itself;
//     what no event may carry is refused before anything is written
//     (TestMetadataOfTheContext, TestBadMetadataOfTheContext).
//  20. Dispatch calls every handler of the event's Go type, in the order of
//     subscription, whatever the others do, with an id and a time of its own, and
//     allocates nothing (TestDispatch, TestDispatchErrorsAndPanics,
//     TestDispatchManyTypes, TestDispatchAllocatesNothing, TestLocalWiring,
//     TestLocalMiddlewares).
//  21. A durable handler takes effect once for each committed event of its type, in the
//     order of each key, from where it is told to begin; what it publishes is announced
//     and handled in turn (TestDurableHandler). A version from the future is held, what
//     cannot be handled is put aside, and the rest goes on
//     (TestDurableHandlerVersionsAndFaults). Wrong wiring is refused at the start
//     (TestDurableWiring); a cancelled one ends (TestDurableCancel).
//
// # Not promised
//
// After-commit handlers are best effort: a process that dies after the commit
// does not call them, and nobody tries again.
//
// Savepoints made by SQL text (SAVEPOINT, ROLLBACK TO) are not seen: what is
// undone that way is announced all the same. So is a transaction that fn ends and
// begins anew by SQL text.
//
// A transaction serves one goroutine. Neither fn nor a handler may share its tx
// with goroutines it starts, or keep it.
//
// Handlers get the event by value, not a deep copy: slices, maps and pointers in
// it are shared with the publisher and with each other. They are read only, for
// the publisher too, until InTx has returned. Fields that JSON leaves out reach
// handlers in this process only.
package bus
