package handlers

import "sync"

// memory is a small map that forgets: what it holds speeds things up or keeps a
// count, and may be lost. It is safe for use by several goroutines.
type memory[K comparable, V any] struct {
	mu      sync.Mutex
	limit   int
	entries map[K]V
}

func newMemory[K comparable, V any](limit int) *memory[K, V] {
	return &memory[K, V]{limit: limit, entries: map[K]V{}}
}

// take removes the entry and returns it.
func (m *memory[K, V]) take(k K) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.entries[k]
	if ok {
		delete(m.entries, k)
	}
	return v, ok
}

// put forgets an arbitrary entry when there is no room.
func (m *memory[K, V]) put(k K, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, replaced := m.entries[k]; !replaced && len(m.entries) >= m.limit {
		for old := range m.entries {
			delete(m.entries, old)
			break
		}
	}
	m.entries[k] = v
}
