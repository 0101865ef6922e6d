// Package postbustest is for the tests of programs that use Postbus. It is one
// package, and not one per package under test, because a test of yours meets the
// bus, the log and the broker in one function, and asks all three the same question:
// what has been published?
//
// In order of use, from the cheapest test to the most honest:
//
// A domain without a database. [Bus] has the one method that domain code depends on:
//
//	var told postbustest.Bus[order.Event]
//	orders := order.New(&told)
//	...
//	e := postbustest.RequirePublished[order.Placed](t, &told)[0]
//
// A service with a database. [Schema] is the test's own; the real bus writes to the
// real log, which is looked into before the commit or after it:
//
//	schema := postbustest.Schema(t, pool)
//	...
//	postbustest.RequirePublished[order.Placed](t, postbustest.InTx(tx, schema), postbustest.WithKey("o-1"))
//	postbustest.RequireNothingPublished(t, postbustest.InLog(pool, schema)) // it was rolled back
//
// All the way to a broker that fails on command. [Broker] stands for yours:
//
//	var broker postbustest.Broker
//	broker.On(t, postbustest.When{Type: "order.placed", Nth: 1}, postbustest.LoseAnswer())
//	parked := postbustest.RunToEnd(t, pool, &broker, outbox.RelayConfig{Schema: schema})
//	postbustest.RequirePublished[order.Placed](t, &broker, postbustest.Times(2))
//
// Handlers of the log run to its end:
//
//	parked := postbustest.RunDurablesToEnd(t, pool, eventBus.Durables())
//
// The helpers take a testing.TB and end the test where they fail: call them from the
// test's own goroutine. There are no build tags: import the package in _test files only.
//
// # Guarantees
//
//  1. What has been published in a transaction is seen through it before its commit,
//     and nothing of other transactions or of savepoints that were undone, on
//     PostgreSQL 15 and 18 and through PgBouncer (TestInTxSeesItsOwnOnly).
//  2. A failed assertion says what there is instead, with types, keys, ids and data,
//     and a test that asks the wrong question fails, instead of finding nothing
//     (TestOptionsNarrow, TestDataThatDoesNotFitFails, TestReadingTheLogSaysTheWayOut).
//  3. The Broker remembers what it accepts, in order, in memory of its own, and the
//     same whether it comes by batch or one by one (TestBrokerRemembersInOrder,
//     TestBrokerReadsWatermill). It keeps the contract of outbox.BatchPublisher
//     (TestKeyStopsAtItsFirstFailure, TestDeadlineOfWhatHangs).
//  4. A fault meets exactly the attempts that When picks, until it is stopped or its
//     test ends (TestFaults, TestWhenPicksAttempts, TestLastRuleHoldsUntilItIsStopped,
//     TestRuleEndsWithTheTest, TestHangUntilStopped, TestSlowTakesItsTime,
//     TestClosedBrokerRefuses).
//  5. Waiting ends with the condition, from any goroutine; what does not come is told
//     (TestWaitForFromManyGoroutines, TestWaitForSaysWhatCame).
//  6. The Bus refuses what the real one refuses of an event, all of a call or nothing,
//     and gives back what was encoded, whatever the domain does to it later
//     (TestBusRemembersTyped, TestBusRefusesWhatTheRealOneRefuses,
//     TestBusFromManyGoroutines).
//  7. RunToEnd returns when all that was committed at the call is published or parked
//     until a person acts, and not before: attempts that go on and requests to the
//     desk are waited for, open transactions are not (TestRunToEndPublishesAll,
//     TestRunToEndWithAStockPublisher, TestRunToEndOutlivesFaults,
//     TestRunToEndSkipsKeys, TestRunToEndEndsWhileMoreIsCommitted,
//     TestRunToEndBesideARunningRelay). Else it says what is
//     left (TestRunToEndSaysWhatIsLeft, TestRunToEndRefuses).
//  8. RunDurablesToEnd returns when the log has nothing left for any of the handlers,
//     what they publish themselves included, and not before; what only a person can
//     get out it gives, by handler (TestRunDurablesToEndHandlesAll,
//     TestRunDurablesToEndTellsWhatIsParked). Else it says for each handler what is
//     left, and which event is in the way with which error, also when one hangs
//     (TestRunDurablesToEndSaysWhatIsLeft, TestRunDurablesToEndWithOneThatHangs,
//     TestRunDurablesToEndRefuses).
//  9. A Schema is the test's own, and gone after it, although the test has closed its
//     pool (TestSchemaIsTheTestsOwn, TestSchemaIsDroppedThoughThePoolIsClosed,
//     TestSchemaRefuses).
//
// # Not promised
//
// That a Bus rolls back, or calls handlers: it has no transactions. Tests of what is
// undone, and of handlers, need the real bus, and a database or a bus.Local.
//
// A broker's own behaviour: a Broker has no topics that are missing, no size limits,
// no consumers. It honours the deadline of a call; a publisher that does not is not
// among its faults.
//
// Speed on a large log: RunToEnd and RunDurablesToEnd look at the whole of it
// again and again. They are for the few thousand events of a test.
//
// The time that a helper takes to fail. Limits bound waiting; a database that does
// not answer, or a call that hangs in a relay, may add some seconds.
package postbustest
