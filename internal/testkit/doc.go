// Package testkit gives the tests of this repository real servers, and the
// faults that happen to them.
//
//   - Postgres, Redis, Kafka, RabbitMQ, SQS, SNS, URL: the shared servers of
//     `make servers-up`. A test takes a name of its own there (Schema, Prefix,
//     Name), since packages run in parallel; what is under the first two is gone
//     after the test.
//   - As, Grant, GrantAll: pools with the privileges of the programs' roles, and no
//     others: what is under test runs so.
//   - PrivatePostgres: a server of the test's own, which may crash.
//   - PrivateKafka, PrivateRabbitMQ, PrivateElasticMQ, PrivateRedis: the same of a
//     broker, which may freeze, too.
//   - Proxy: a TCP proxy that cuts, stalls and loses replies.
//   - Main, RegisterChild, StartChild: the test's binary once more, as a
//     process that may be killed.
//   - Eventually: waits for a condition, never for a time.
//
// A server that is missing fails the test; it never skips it.
package testkit
