// Package house holds no code, only the tests about the house itself: which
// package may import which (floors_test.go), and that what the documents say is so
// (docs_test.go, guarantees_test.go).
package house
