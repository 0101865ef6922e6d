// Package sqs publishes to Amazon SQS queues and SNS topics, and consumes from SQS
// queues.
//
// Publisher and SNSPublisher are Watermill message.Publishers and
// outbox.BatchPublishers: several requests of ten messages at once, with a result
// for each message. Subscriber is a Watermill message.Subscriber with many
// messages in flight, one per key at a time. All speak the wire format of
// watermill-aws, so the stock publisher and subscriber may stand on either side.
//
//	cfg, err := config.LoadDefaultConfig(ctx) // aws-sdk-go-v2/config: region, credentials
//	client := awssqs.NewFromConfig(cfg)       // aws-sdk-go-v2/service/sqs
//
//	topology := sqs.Topology{Queues: []sqs.Queue{{Name: "order.fifo", HighThroughput: true}}}
//	err = topology.Declare(ctx, sqs.Clients{SQS: client}) // or Check, where others declare
//
//	publisher, err := sqs.NewPublisher(sqs.PublisherConfig{Client: client, QueueName: sqs.FIFOQueueName})
//	relay, err := outbox.NewRelay(pool, publisher, outbox.RelayConfig{Name: "sqs"})
//
//	subscriber, err := sqs.NewSubscriber(sqs.SubscriberConfig{Client: client, QueueName: sqs.FIFOQueueName})
//	router, err := handlers.NewRouter(subscriber, handlers.Config{...})
//
// One topic is one queue, found by QueueName. A queue has one group of consumers:
// those who subscribe to it share its messages. To give every service a copy,
// publish to an SNS topic, to which each service's queue is subscribed:
//
//	publisher, err := sqs.NewSNSPublisher(sqs.SNSPublisherConfig{Client: snsClient, ARNPrefix: "arn:aws:sns:eu-central-1:123456789012"})
//
// What went to a dead-letter queue comes back by Redrive:
//
//	report, err := sqs.Redrive(ctx, sqs.RedriveConfig{Client: client, From: "order-dead.fifo", To: "order.fifo", Types: []string{"order.placed"}})
//
// # Guarantees
//
//  1. Each message of a batch has a result of its own, whether SQS refuses an
//     entry, a whole request for one of its entries, or does not answer.
//     TestPublishBatch, TestPublishBatchStopsAtFirstFailure, TestRefusedRequestIsTakenApart,
//     TestSickServices
//  2. After a message that was not accepted, no later one of its key is sent by the
//     same call (outbox.BatchContract.StopsKeyAtFirstFailure): of a key one
//     message is under way at a time. TestOneOfAGroupAtATime,
//     TestPublishBatchStopsAtFirstFailure
//  3. Nothing is sent twice by one call: the SDK's retries are kept away from it. Only
//     a request that was throttled goes again, of which nothing was accepted.
//     TestPublishBatchLostReplyIsUnknown, TestThrottledIsSentAgain
//  4. A call ends with its deadline or its context, also on a network that stalls,
//     and with an HTTP client that heeds no context; what was not sent by then is
//     not sent later. TestPublishBatchHonoursDeadlineOnStall,
//     TestPublishBatchEndsWithoutItsTransport, TestPublishBatchCancelled
//  5. What is about the service, the credentials or the pace is
//     outbox.ErrUnavailable, what will never be accepted outbox.ErrPermanent.
//     TestSickServices, TestPublishBatchConnectionRefused, TestMissingCredentials,
//     TestMissingQueueAndNames
//  6. A message over the limit of the service or of the queue is sorted out, and
//     requests stay within it. TestSizes
//  7. Every payload and every header arrives as it was, also binary ones, empty
//     ones, and more than SQS has attributes for. TestRoundTrip, TestBinaryAndEmptyPayloads
//  8. In a FIFO queue an event that is sent again within five minutes is one
//     message; one that is replayed or poisoned on purpose is another. TestFIFO
//  9. Up to MaxInFlight messages are with the handlers. TestSeveralInFlight
//  10. In a FIFO queue no message is handled before the one in front of it in its
//     group, with several consumers, many in flight and handlers that fail.
//     TestFIFOOrderUnderNacks
//  11. A message that was nacked comes again after NackDelay. TestNackComesAgain
//  12. A message whose handler takes longer than Visibility is handled by nobody
//     else meanwhile, nor is what stands behind it. TestSlowHandlerRunsOnce. If it
//     can't be kept, or HandlerLimit is over, the handler's context says so.
//     TestLostVisibilityCancelsTheHandler, TestHandlerLimit
//  13. Nothing is lost by a consumer that is killed, a server that is killed and
//     comes back, a network that cuts, stalls or loses answers.
//     TestKilledConsumersMessagesComeBack, TestServerKilledInMidRun, TestSubscriberOnABadNetwork
//  14. A message that cannot be read is handed over with HeaderUndecodable, and
//     stops nobody. TestUndecodableIsHandedOver
//  15. Close gives back at once what no handler has got, waits for handlers, and
//     ends whether anybody reads the channel or not; at any time, any number of times;
//     no goroutine outlives it, except for a handler that never returns.
//     TestCloseGivesBack, TestCloseWaitsForTheHandler, TestCloseGivesUpOnStuckHandler,
//     TestCloseAtAnyTime, TestSubscriberCloseAtAnyTime
//  16. A Topology makes what is missing, and nothing else: what is otherwise than
//     described is told, and not changed; a queue's policy keeps what it has.
//     TestTopologyOfQueues, TestTopologyDescribes, TestPolicyAllowsSeveralTopics
//  17. Each queue that is subscribed to an SNS topic gets each message. TestSNSFanOut
//  18. Redrive sends back what its filters choose and leaves the rest visible; a FIFO
//     queue keeps its order. TestDeadLetterAndRedrive, TestRedriveChooses, TestRedriveFilters
//  19. Nothing is created by publishing or subscribing. TestMissingQueueAndNames,
//     TestSubscribeFaults
//  20. Credentials are in no error, log or print of a config. TestSickServices,
//     TestPublisherConfigFaults
//
// # Not promised
//
//   - Order in standard queues: SQS does not keep it. Use FIFO queues where it matters.
//   - Speed of one key: its messages go one request after the other, some tens to hundreds a
//     second by the distance to AWS. Of two messages of a group in one request SQS
//     may accept the second and not the first.
//   - Exactly once: a standard queue delivers some messages twice by itself; in a FIFO
//     queue an outbox.Unknown message that is sent again later than five minutes
//     is a second one.
//   - A rewind of a relay within five minutes: a FIFO queue takes the events for
//     repeats, and swallows them.
//   - That what stands behind a message in its FIFO group is spared its
//     redeliveries: it was received with it and goes back with it, so its receive
//     count grows, too, and it may be moved to the dead-letter queue with it.
//   - The age of the oldest message in a queue: SQS tells it to CloudWatch only. See Lag.
//   - An end of Close at once: a request to receive that is broken off may take
//     messages with it, so Close waits for it, up to WaitTime.
//   - MessageGroupIds in standard queues (fair queues), queues of other accounts,
//     and bodies that SNS has wrapped (subscriptions without raw delivery), which are handed
//     over as they are.
package sqs
