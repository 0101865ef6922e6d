// Package rabbitmq publishes to RabbitMQ and consumes from it.
//
// Publisher is a Watermill message.Publisher and an outbox.BatchPublisher, so a
// relay has a thousand events on their way at once and learns what became of
// each. Subscriber is a Watermill message.Subscriber with several messages in
// flight and each partition key in order. Both speak the wire format of watermill-amqp,
// so the stock publisher and subscriber may stand on either side.
//
//	server := rabbitmq.ConnectionConfig{URL: os.Getenv("RABBITMQ_URL")} // amqp://user:password@host:5672/
//	topology := &rabbitmq.Topology{
//		Declare:   true,
//		Exchanges: []rabbitmq.Exchange{{Name: "order"}}, // fanout, named as the topic
//		Queues: []rabbitmq.Queue{{
//			Name:                 "order_billing", // topic + "_" + group; "order_billing.dead" comes with it
//			Bindings:             []rabbitmq.Binding{{Exchange: "order"}},
//			SingleActiveConsumer: true, // order over several processes
//		}},
//	}
//
//	publisher, err := rabbitmq.NewPublisher(rabbitmq.PublisherConfig{Connection: server, Topology: topology})
//	err = publisher.Ready(ctx) // or not: it connects when it is first needed
//	relay, err := outbox.NewRelay(pool, publisher, outbox.RelayConfig{Name: "rabbitmq"})
//
//	subscriber, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{Connection: server, Group: "billing", Topology: topology})
//	router, err := handlers.NewRouter(subscriber, handlers.Config{...})
//
// Declare and Check do by hand what a Topology does on every connection, and
// Describe prints it; Check also names queues that are full, have no consumer, or
// hold dead letters.
//
// A topic is an exchange of its name, or a routing key of one exchange
// (PublisherConfig.Exchange with ByTopic or ByEventType), or a queue
// (DefaultExchange). The server must be RabbitMQ 3.8 or newer for quorum queues, and is tested
// with 3.10. A user who publishes needs the right to write to its exchanges, one who
// consumes to read from its queues; to declare takes configure, and write and read for
// bindings and dead-letter exchanges.
//
// # Guarantees
//
//  1. Each message of a batch has an exact result: confirmed, without a route,
//     refused by a full queue, or unknown. TestPublishBatch, TestUnroutableInTheMiddle,
//     TestUnroutableTwinIsToldApart, TestRejectPublish
//  2. After a message that was not confirmed, no later one of its key and topic is sent in
//     the same call (outbox.BatchContract.StopsKeyAtFirstFailure), whatever the
//     failure. TestRejectPublish, TestUnroutableInTheMiddle, TestCutsUnderLoad
//  3. Done means that RabbitMQ has routed the message to a queue at least, and that
//     all its queues have it: it is still there after a SIGKILL. TestPrivateNode,
//     TestUnroutableInTheMiddle
//  4. A call ends with its deadline or its context, even if the server reads
//     nothing (a memory or disk alarm, a frozen process, a network that stalls);
//     what had not left by then does not leave later. So does Close.
//     TestDeadlineOnStall, TestPrivateNode
//  5. A call that is cancelled leaves the others on its connection alone, and its late
//     confirmations are nobody else's. TestCancelledCallDisturbsNobody
//  6. What is about the server and not about the message (no connection, wrong
//     password, alarm) is outbox.ErrUnavailable, at once while it lasts; what will never be
//     accepted is outbox.Permanent. TestServerAway, TestPrivateNode, TestSizes,
//     TestInvalidMessages, TestMissingExchange, TestNoRightToPublish
//  7. The wire format is that of watermill-amqp v3.0.2. TestWireFormat,
//     TestForeignMessages, TestRouting
//  8. Exchanges and queues are created from a Topology only, never from a topic or an
//     event; on every new connection, and again when something of it has gone.
//     TestMissingExchange, TestReconnectDeclaresAgain, TestQueueDeleted
//  9. What exists otherwise than the Topology says is told by the argument that
//     differs, and what loses messages or stops others is refused unless insisted
//     upon. TestDeclareAndCheck, TestTopologyFaults, TestFullQueueBehindExchangeDeadLetters
//  10. A consumer gets the messages of one key one at a time and in order, also through
//     errors of its handlers, and others meanwhile. TestOrderPerKeyUnderErrors,
//     TestManyQueues
//  11. Over several consumers of a queue with SingleActiveConsumer the same holds, and
//     a consumer that closes in good order leaves no repeats. TestSingleActiveConsumer
//  12. No message is lost: not by a cut connection, a deleted consumer, or a server
//     that is killed; a message is acknowledged only when its handler has acked, each by itself.
//     TestSubscriberCuts, TestPrivateNode, TestCloseUnderLoad
//  13. What RabbitMQ takes back cancels the handler's context (ErrLost), and is
//     not handled here beside it. TestLostDeliveryCancelsItsHandler
//  14. No message is made up: a cancelled consumer, a closed channel and a
//     reconnect hand over nothing. TestQueueDeleted, TestSubscriberCuts
//  15. A message that cannot be read is handed over with HeaderUndecodable and stops nobody;
//     headers of any type are readable, those of dead-lettered messages too.
//     TestForeignMessages, TestDeadLetterAfter
//  16. What waits or is repeated here for so long that the server's consumer_timeout comes near
//     goes back into the queue, in order. TestPutsBackBeforeTheServerLosesPatience
//  17. Close lets the handlers in flight finish, acknowledges what they did and gives
//     the rest back in order. It may be called at any time, any number of times; no goroutine
//     outlives it, except for a handler that never returns. TestCloseDrains,
//     TestCloseGivesUpOnStuckHandler, TestSubscriberCloseAtAnyTime, TestPublisherCloseAtAnyTime
//  18. A password is in no error, no log line, and no printed config.
//     TestSecretsStaySecret, TestServerAway
//
// # Not promised
//
//   - Exactly once: an outbox.Unknown message that is sent again may be in a queue
//     twice, under one message id. Behind an exchange with several queues, one that
//     was refused by one of them is sent to all of them again.
//   - Order over several consumers of one queue without SingleActiveConsumer; or after
//     dead-lettering, a DeliveryLimit that was reached, or a consumer that was
//     killed while a second one was active.
//   - That a queue keeps what it has confirmed when the only node with it loses its disk: use quorum
//     queues over three nodes.
//   - Replication and durability of queues that others have declared.
//   - Many messages of one key per second: each waits for the confirmation of the
//     one before it, some hundred to two thousand a second by disk and load. Different keys
//     don't wait for each other.
//   - The age of what waits in a queue: RabbitMQ does not tell it (see Lag).
package rabbitmq
