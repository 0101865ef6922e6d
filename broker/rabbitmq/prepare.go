package rabbitmq

import (
	"context"
	"sync"
)

// A preparation declares or checks a topology once per session.
type preparation struct {
	topology *topology
	turn     chan struct{} // one at a time

	mu   sync.Mutex
	done *session
}

func newPreparation(t *topology) *preparation {
	return &preparation{topology: t, turn: make(chan struct{}, 1)}
}

func (p *preparation) prepare(ctx context.Context, s *session) error {
	if p.topology == nil || p.is(s) {
		return nil
	}
	return inTurn(ctx, p.turn, func() error {
		if p.is(s) {
			return nil
		}
		if err := p.topology.apply(ctx, s); err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.done = s
		return nil
	})
}

func (p *preparation) is(s *session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done == s
}

// forget has it done again: something is missing.
func (p *preparation) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = nil
}

func inTurn(ctx context.Context, turn chan struct{}, f func() error) error {
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-turn }()
	return f()
}
