// Package redisstream publishes to Redis Streams and consumes from them.
//
// Publisher is a Watermill message.Publisher and an outbox.BatchPublisher, so a
// relay sends a thousand events in one round trip and learns what became of
// each. Subscriber is a Watermill message.Subscriber: a member of a consumer
// group. Both speak the wire format of watermill-redisstream, so the stock
// publisher and subscriber may stand on either side.
//
//	client := redis.NewClient(&redis.Options{Addr: "localhost:6379"}) // go-redis v9; stays yours to close
//
//	publisher, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: client})
//	relay, err := outbox.NewRelay(pool, publisher, outbox.RelayConfig{Name: "redis"})
//
//	subscriber, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{
//		Client:   client,
//		Group:    "billing",
//		Consumer: os.Getenv("POD_NAME"), // the same after a restart; may be left out
//		// MaxInFlight: 64 by default, of different partition keys
//	})
//	router, err := handlers.NewRouter(subscriber, handlers.Config{...})
//
// Dedup remembers in Redis what a handler has handled, where that can't be in
// Postgres:
//
//	dedup, err := redisstream.NewDedup(redisstream.DedupConfig{Client: client})
//	handlers.Handle(router, "mail.receipt", mailer.SendReceipt, handlers.WithDedup(dedup))
//	handler.AddMiddleware(handlers.DedupBy(dedup)) // in a Watermill router
//
// Trim, called now and then, by a cron job for example, keeps a stream small:
//
//	removed, err := redisstream.Trim(ctx, client, "order", redisstream.Approximately())
//
// One topic is one stream; its name is the topic's. In a Redis Cluster that is
// one slot, on one node. With Shards, the same on both sides, a topic is several
// streams (ShardStream), its keys divided among them and each read by one consumer
// at a time: more consumers, on more nodes, with each key in order. Topology
// creates streams and groups beforehand, Subscriber.Lag says how far a group is
// behind.
//
// The server must be Redis 7.0 or newer: an older one answers XAUTOCLAIM with a
// null for an entry that was trimmed. An ACL user of a publisher needs EVAL,
// EVALSHA and XADD, and with WaitReplicas WAIT; one of a subscriber EVAL, EVALSHA,
// SCRIPT, XREADGROUP, XACK, XCLAIM, XAUTOCLAIM, XPENDING, XGROUP and, with FromNow, XINFO; with
// Shards also XREAD, XINFO, GET, SET, DEL, PEXPIRE, TIME, ZADD, ZREM,
// ZREMRANGEBYSCORE and ZRANGE; for Lag XINFO, XPENDING, XRANGE and TIME; one of Dedup SET,
// GET, DEL, EVAL and EVALSHA; one of Trim EVAL, XINFO, XPENDING and XTRIM.
//
// # Guarantees
//
//  1. Each message of a batch has an exact result, also when Redis refuses one
//     in the middle. TestPublishBatch, TestPublishBatchStopsAtFirstFailure
//  2. After a message that was not added, no later one of its key is sent in the
//     same call (outbox.BatchContract.StopsKeyAtFirstFailure), whatever the
//     failure: a refusal, a lost answer, a size over the limit.
//     TestPublishBatchStopsAtFirstFailure, TestPublishBatchLostReplyIsUnknown,
//     TestPublishBatchSortsOutTooLarge
//  3. Nothing is sent twice by one call: go-redis' retries are kept away from it,
//     however the client is set. TestPublishBatchLostReplyIsUnknown
//  4. A call ends with its deadline or its context, even if the server has
//     stopped answering and the client does not heed contexts; and what was not
//     sent by then is not sent later. TestPublishBatchHonoursDeadlineOnStall,
//     TestPublishBatchSendsNothingAfterDeadline
//  5. What is about the server and not about the message (no connection, no
//     memory, read-only, loading) is outbox.ErrUnavailable; what will never be
//     accepted is outbox.Permanent. TestPublishBatchOnSickServer,
//     TestPublishBatchConnectionRefused, TestJudge
//  6. The wire format is that of watermill-redisstream v1.4.5, both ways.
//     TestStockSubscriberReadsOurs, TestWeReadStockPublishers, TestMetadataRoundTrip
//  7. A single consumer hands over the entries of each partition key in order, one
//     at a time; one that was nacked comes again before any other of its key. With
//     MaxInFlight 1 that holds for the stream as a whole.
//     TestManyInFlightKeepTheOrderOfEachKey, TestSubscriberDeliversInOrder,
//     TestNackComesAgainFirst
//  8. No entry is lost: not by a consumer that is killed, nor by one that
//     restarts under its name, an answer that is lost, a server that is killed
//     and comes back with its data. TestKilledConsumersEntryIsClaimed,
//     TestRestartedConsumerGetsItsOwnFirst, TestLostReplyOfReadLosesNothing,
//     TestLostReplyOfReadOfMany, TestServerKilledInMidRun, TestTrimmedInFlight
//  9. An entry whose handler is slow, or that waits for one, is not handled by
//     anybody else meanwhile. TestSlowHandlerRunsOnce, TestSlowHandlersOfManyRunOnce.
//     Should it be taken all the same (this process had been stopped), the
//     handler's context says so. TestClaimedAwayCancelsTheHandler, TestClaimedAwayOfMany
//  10. An entry that cannot be read is handed over as a message with
//     HeaderUndecodable and stops nobody. TestUndecodableEntryIsHandedOver, FuzzDecode
//  11. A stream or group that was removed is created again, and loses nothing of
//     what the stream holds. TestLostGroupIsHealed, TestSubscribeFromNow
//  12. Close acknowledges what the handlers in flight have done and gives back the
//     rest at once, also what was read ahead. It may be called at any time, any number of times; no
//     goroutine outlives it, except for a handler that never returns.
//     TestCloseWaitsForTheHandler, TestCloseGivesBack,
//     TestCloseGivesBackWhatWasReadAhead, TestCloseGivesUpOnStuckHandler,
//     TestCloseAtAnyTime, TestRouterCloseRepeatsNothing
//  13. All of it on a Redis Cluster too. TestCluster
//  14. Your client is never closed. TestPublish, TestCloseAtAnyTime
//  15. Of those who claim an event for a handler one gets it, until he completes
//     or releases it, which nobody else can, or ClaimTTL has passed; a completion
//     is remembered for TTL. TestDedupOneOfManyClaims,
//     TestDedupClaimsCompletesReleases, TestDedupClaimRunsOut, TestDedupUnderConsumers
//  16. Two pairs of handler and event are never one key. TestDedupKeysAreDistinct
//  17. A call of Dedup that go-redis repeats after a lost answer ends as if the
//     answer had come; each call ends with its deadline, and says of a server that
//     is away or unfit that it is outbox.ErrUnavailable. TestDedupSurvivesLostReplies,
//     TestDedupHonoursDeadlines, TestDedupOnSickServer, TestDedupConfigFaults
//  18. Trim removes no entry that any group has not got, or has got and not
//     acknowledged, whatever publishers and consumers do meanwhile.
//     TestTrimKeepsWhatAnyGroupNeeds, TestTrimBesideConsumersLosesNothing
//  19. Trim says how many entries are gone, removes nothing from a stream without
//     groups, and holds Redis up for no more than some 10,000 entries at a time.
//     TestTrimGoesInSteps, TestTrimRefuses, TestTrimTellsALostReply
//  20. Dedup and Trim on a Redis Cluster too. TestDedupAndTrimOnACluster
//  21. With Shards each key stays in order, and nothing is lost, while consumers come
//     and go: a shard is read by whoever has its lease, and what his predecessor held
//     comes first. TestShardsAreHandedOver, TestKilledMembersShardsAreTakenOver.
//     Whoever has lost a lease gets nothing more of that shard, and his handlers'
//     contexts say so. TestLostLeaseStopsItsReader. On a Redis Cluster too.
//     TestShardsOnACluster
//  22. With WaitReplicas a message is outbox.Done only when so many replicas have
//     confirmed it. TestWaitReplicas
//  23. Lag counts what a group has not acknowledged, and says how old it is. TestLag
//  24. Declaring a topology changes nothing that exists. TestTopology
//
// # Not promised
//
//   - Redis replicates asynchronously: a fail-over may lose entries that were
//     added and acknowledged, and brings back acknowledged ones. How much a crash
//     of a single server loses is its appendfsync.
//   - Order over several consumers of a group, or over a take-over of a dead
//     consumer's entries, without Shards: others may have gone on with later ones.
//   - Order among messages without a partition key, when more than one may be in flight.
//   - One reader of a shard while a process is frozen: it wakes up with handlers that
//     may take a moment to see that their context has ended, and those who do not
//     look at it run to their end. What such a handler acks is not heard.
//   - Keys in order while Shards changes: another number moves them to other streams.
//   - Exactly once: an outbox.Unknown message that is sent again may stand in the
//     stream twice, under two entry ids and one message UUID.
//   - Room by itself: a stream grows until you call Trim. Never set MAXLEN, which
//     drops what no group has read. An entry that was trimmed while it was pending
//     is gone: it is logged and passed over (TestTrimmedPendingEntryIsPassedOver).
//     Trim knows the groups that exist: one that is created later, or created again
//     after it was removed, finds what is left. What was read with NOACK counts as
//     consumed.
//   - Deduplication beyond what Redis keeps: an asynchronous fail-over, a crash
//     within appendfsync, and eviction (set maxmemory-policy noeviction) forget
//     claims and completions, whose events may then be handled again, or by two at
//     once. So may an event that comes after DedupConfig.TTL, and one whose handler
//     takes longer than ClaimTTL. Effects that must happen once belong into Postgres
//     (handlers.HandleTx).
//   - A delivery count that survives everything: Redis keeps it per group, and
//     forgets it with the group.
//   - Housekeeping after killed consumers: their names, if they were made by us,
//     stay in the group (XINFO CONSUMERS) until XGROUP DELCONSUMER; harmless.
package redisstream
