package outbox

import (
	"testing"
	"testing/synctest"
	"time"
)

// An append that we do not commit ourselves is looked for soon, and then ever more
// rarely; a commit at once, also one behind a hint.
func TestHintIsLookedForSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := NewLog(LogConfig{Schema: "hinted"})
		if err != nil {
			t.Fatal(err)
		}
		wakeC, unlisten := listenWake(l.Schema())
		defer unlisten()
		var p idlePoll
		p.reset(time.Second)
		p.commits = commits(l.Schema()) // of an earlier run of the test
		looks := func() {
			p.due = false
			p.looked()
		}
		signal := func() {
			<-wakeC
			p.signalled(commits(l.Schema()))
		}
		for !p.rested() {
			looks()
		}
		l.Hint()
		signal()
		if p.due || p.in() > soonest {
			t.Fatalf("after a hint: due %t, next in %s", p.due, p.in())
		}
		p.next = time.Now()
		l.Hint()
		signal()
		if p.in() > 0 {
			t.Fatalf("a second hint has put the look off: in %s", p.in())
		}
		n := 0
		for ; !p.rested(); n++ {
			looks()
		}
		if n != 6 { // 50, 100, 200, 400, 800, 1000 ms
			t.Fatalf("the pace was back after %d looks", n)
		}
		l.Hint()
		l.Wake() // one signal for both
		signal()
		if !p.due {
			t.Fatal("a commit behind a hint is not looked for at once")
		}
	})
}
