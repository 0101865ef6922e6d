// Package brokertest is the conformance suite of the brokers: what a publisher and a
// subscriber must be able to do on a real server, and what becomes of messages when
// that server is killed, the network breaks, or a consumer dies.
//
//	func TestConformance(t *testing.T) { brokertest.Run(t, ours) }
//	func init()                        { brokertest.Register(ours) } // for the consumer that is killed
//
// A Broker tells how topics, publishers and subscribers are made, and declares what
// they can do. Each capability is measured, and the answer must be the declared one:
// a declared yes that fails is a fault of the adapter, a declared no that works is one
// of the declaration. What is declared is the table in docs/brokers/README.md, which
// the suite holds to it. So the table shows what was measured.
//
// The short form runs with the other tests. POSTBUS_TEST_LONG=1 kills more often, takes
// 1,000 topics instead of 20, and waits for what takes its time.
//
// Adapters of ours and stock Watermill components are measured alike; Exchange puts one of
// each on the two sides of a broker.
package brokertest
