// Package handlers hands the events of a broker to typed handlers.
package handlers
