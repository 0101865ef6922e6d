// Package kafka publishes to Apache Kafka and consumes from it, by franz-go.
//
// Publisher is a Watermill message.Publisher and an outbox.BatchPublisher, so a
// relay sends a thousand events at once and learns what became of each.
// Subscriber is a Watermill message.Subscriber: a member of a consumer group that
// has many messages in flight and keeps each key in order. Both speak the wire
// format of watermill-kafka, so the stock publisher and subscriber may stand on
// either side.
//
//	cluster := kafka.Cluster{
//		Brokers: []string{"kafka-1:9092", "kafka-2:9092"},
//		TLS:     &tls.Config{},
//		SASL:    scram.Auth{User: user, Pass: password}.AsSha512Mechanism(), // github.com/twmb/franz-go/pkg/sasl/scram
//	}
//	topology := kafka.Topology{Topics: []kafka.Topic{{Name: "order", Partitions: 12, Replicas: 3}}}
//	err := topology.Declare(ctx, cluster) // or Check, where somebody else creates topics
//
//	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Cluster: cluster})
//	relay, err := outbox.NewRelay(pool, publisher, outbox.RelayConfig{Name: "kafka"})
//
//	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{Cluster: cluster, Group: "billing"})
//	router, err := handlers.NewRouter(subscriber, handlers.Config{...})
//
// The record's key is the event's partition key, its timestamp the time of the
// event. Kafka removes records by their timestamps: an event that is older than
// half of the topic's retention, or lies in the future, gets the present as its timestamp. The event's own
// time in its document is not touched.
//
// A user needs Write and Describe on the topics to publish, and DescribeConfigs
// to know their max.message.bytes and retention (without it Kafka's defaults are
// assumed); Read and Describe on topics and group to subscribe; Create on
// the cluster for Topology.Declare.
//
// # Guarantees
//
//  1. Each message of a batch has an exact result, also when Kafka refuses a
//     batch of its own making for the sake of one record in it: the culprit is
//     found, by counting or by trying, and the others go through.
//     TestPublishBatch, TestPublishBatchFindsTheCulprit, TestPublishBatchRefused
//  2. After a message that was not added, no later one of its key is sent in the
//     same call (outbox.BatchContract.StopsKeyAtFirstFailure).
//     TestPublishBatchFindsTheCulprit, TestPublishBatchThroughCuts
//  3. A call ends with its deadline or its context, even if the brokers have
//     stopped answering. What had been sent by then is outbox.Unknown; what had not
//     is not sent later, save for a single message of Publish whose caller has cancelled: it is Unknown, too.
//     TestPublishBatchHonoursDeadlineOnStall, TestPublishHonoursDeadlineOnStall
//  4. What is about the cluster or a partition and not about the message is
//     outbox.ErrUnavailable; what will never be accepted is outbox.ErrPermanent; a
//     topic that does not exist is neither.
//     TestPublishBatchConnectionRefused, TestPublishBatchRefused, TestRightsAndPasswords
//  5. Done is acknowledged by all replicas in sync, and broken connections neither
//     lose nor reorder; options that would are refused at construction.
//     TestPublishBatchThroughCuts, TestPublisherConfigFaults, TestSubscriberConfigFaults
//  6. A key's partition is that of Kafka's Java client, or by SaramaFNV1a that of
//     sarama; messages without a key are spread over all partitions. TestHashers, TestPublish
//  7. A record's timestamp is when its event happened, unless Kafka would remove
//     it for that. TestEventTime, TestRecordTime
//  8. Up to MaxInFlight messages are with handlers at once, one per key at a
//     time, and of each key in order; one that was nacked comes again before any other of its key.
//     TestSubscriberKeepsOrderPerKey, TestNackComesAgainFirst
//  9. The offset that is committed is never beyond a record that was not handled.
//     TestCommitsNothingUnhandled
//  10. A key that keeps failing does not stop other partitions.
//     TestFailingKeyStopsOnlyItself
//  11. Members may come and go: nothing is lost, each key stays in order, and what
//     was handled is not handled again if the handlers end in time. Others have their contexts
//     cancelled (ErrRevoked), and what they do afterwards is not committed.
//     TestMembersComeAndGo, TestRevokedWhileHandling
//  12. Nothing is lost, and each key stays in order, when connections are cut or the
//     server is killed and comes back with its data. TestSubscriberThroughCuts,
//     TestServerKilledInMidRun, TestConformance
//  13. A record that was not written by Watermill, or has no value, is handed
//     over and stops nobody. TestMessageOfARecord
//  14. Close waits for the handlers, commits what they did and repeats none of it.
//     It may be called at any time, any number of times; no goroutine outlives it, save for a
//     handler that never returns. TestCloseUnderLoad, TestCloseAtAnyTime
//  15. A wrong address, a refused password, a missing topic and a forbidden name
//     are told by Subscribe, at once. TestSubscribeRefused, TestRightsAndPasswords
//  16. No password is in an error or in what a configuration prints. TestRightsAndPasswords
//  17. Topology creates what is missing, changes nothing that exists, and says what
//     is otherwise. TestDeclareAndCheck, TestTopologyFaults, TestDescribe
//  18. Lag tells how many records a group has not committed, and how old the first
//     is. TestLag
//
// # Not promised
//
//   - Exactly once in the topic: an outbox.Unknown message that is sent again may
//     stand there twice. So may what was still on its way when a call gave up, and behind
//     later ones: consumers see it as a repeat.
//   - Order when partitions are added to a topic: most keys then belong to another one.
//   - Order between records without a key.
//   - A delivery count that survives anything: Kafka has none.
//   - That a partition without a leader is no burden to the others: a relay's call
//     gives it three seconds each time.
package kafka
