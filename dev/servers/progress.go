package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress tells a waiting person what takes long. Safe for concurrent use.
type progress struct {
	mu sync.Mutex
	w  io.Writer
}

const (
	quiet   = time.Second      // what is faster than this is not worth a line
	patient = 15 * time.Second // how often a long step says that it goes on
)

func (p *progress) say(title, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "%s: %s\n", title, fmt.Sprintf(format, args...))
}

// step runs do, and reports it if it takes longer than a second.
func (p *progress) step(title, what string, do func() error) error {
	begin, done := time.Now(), make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() {
		wait := quiet
		for {
			select {
			case <-done:
				return
			case <-time.After(wait):
				p.say(title, "%s ... %s", what, seconds(begin))
				wait = patient
			}
		}
	})
	err := do()
	close(done)
	reporter.Wait()
	if err == nil && time.Since(begin) > quiet {
		p.say(title, "%s: done in %s", what, seconds(begin))
	}
	return err
}

func seconds(since time.Time) string {
	return fmt.Sprintf("%.0f s", time.Since(since).Seconds())
}
