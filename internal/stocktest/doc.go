// Package stocktest holds no more than tests: it runs the conformance suite of
// internal/brokertest with the stock Watermill publishers and subscribers, alone and with ours on
// the other side. It is a module of its own, so that none of them is a dependency of Postbus.
package stocktest
