package testkit

import (
	"fmt"
	"testing"
	"time"
)

// Eventually waits until cond holds, and fails the test if it does not within
// timeout. msg is a format and its arguments: what was waited for. Call it
// from the test's own goroutine; cond is not called after it returns.
func Eventually(t testing.TB, timeout time.Duration, cond func() bool, msg ...any) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; !cond(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", timeout, describe(msg))
		}
		time.Sleep(pause)
	}
}

func describe(msg []any) string {
	if len(msg) == 0 {
		return "the condition does not hold"
	}
	if format, ok := msg[0].(string); ok {
		return fmt.Sprintf(format, msg[1:]...)
	}
	return fmt.Sprint(msg...)
}
