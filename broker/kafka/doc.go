// Package kafka publishes to Apache Kafka and consumes from it, by franz-go.
//
// Publisher is a Watermill message.Publisher and an outbox.BatchPublisher, so a
// relay sends a thousand events at once and learns what became of each. It
// speaks the wire format of watermill-kafka, so the stock publisher and
// subscriber may stand on either side.
//
//	cluster := kafka.Cluster{
//		Brokers: []string{"kafka-1:9092", "kafka-2:9092"},
//		TLS:     &tls.Config{},
//		SASL:    scram.Auth{User: user, Pass: password}.AsSha512Mechanism(),
//	}
//	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Cluster: cluster})
//	relay, err := outbox.NewRelay(pool, publisher, outbox.RelayConfig{Name: "kafka"})
package kafka
