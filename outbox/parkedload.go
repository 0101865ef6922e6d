package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// loadParked reads, before anything is sent or handled, what blocks keys.
func (s *seat) loadParked(hard context.Context) error {
	states := []string{stateRetrying, stateWaiting}
	if s.policy == BlockKey {
		states = append(states, stateGivenUp)
	}
	items, err := s.parkedItems(hard, `state = ANY ($4::text[])`, states)
	if err != nil {
		return err
	}
	s.parked, s.parkedKeys = make(map[int64]*item, len(items)), map[laneKey]int{}
	for _, it := range items {
		s.keepParked(it)
	}
	err = s.db.read(hard, `SELECT count(*), coalesce(sum(octet_length(payload)), 0)::bigint FROM `+s.db.table("parked")+`
		WHERE relay = $1 AND slot BETWEEN $2 AND $3 AND state <> 'discarded'`, []any{s.who.name, s.chain.slots.from, s.chain.slots.to},
		func(rows pgx.Rows) (bool, error) { return true, rows.Scan(&s.aside.events, &s.aside.bytes) })
	if err != nil {
		return fmt.Errorf("count the parked events of %s: %w", s.who, explain(s.db.schema, err))
	}
	return nil
}

// parkedItems reads parked events without their payloads, in order.
func (s *seat) parkedItems(hard context.Context, where string, arg any) (items []*item, err error) {
	err = s.db.read(hard, `SELECT log_id, slot, state, attempts, replays, coalesce(last_error, ''), schema_version, event_id::text,
			topic, event_type, partition_key, content_type, headers, octet_length(payload)
		FROM `+s.db.table("parked")+` WHERE relay = $1 AND slot BETWEEN $2 AND $3 AND `+where+` ORDER BY log_id`,
		[]any{s.who.name, s.chain.slots.from, s.chain.slots.to, arg}, func(row pgx.Rows) (bool, error) {
			it := &item{parked: true}
			var state, id string
			var headers *string
			err := row.Scan(&it.LogID, &it.slot, &state, &it.attempts, &it.replays, &it.lastErr, &it.SchemaVersion, &id,
				&it.Topic, &it.EventType, &it.Key, &it.ContentType, &headers, &it.bytes)
			if err != nil {
				return false, err
			}
			if it.EventID, err = uuid.Parse(id); err != nil {
				return false, err
			}
			if headers != nil {
				if err := json.Unmarshal([]byte(*headers), &it.Headers); err != nil {
					return false, fmt.Errorf("parked event %d: its headers are no JSON object of strings: %w", it.LogID, err)
				}
			}
			it.Source = s.source
			it.giveUp = state == stateGivenUp
			if state == stateRetrying && it.attempts > 0 {
				it.retry = s.retry.backoff(it.attempts)
			}
			it.state.Store(stParked)
			items = append(items, it)
			return true, s.markReplayed(it)
		})
	if err != nil {
		return nil, fmt.Errorf("load the parked events of %s: %w", s.who, explain(s.db.schema, err))
	}
	return items, nil
}

// markReplayed says in a header that the event comes out of order: later ones of
// its key went on when it was given up.
func (s *seat) markReplayed(it *item) error {
	if it.replays == 0 || s.policy != SkipKey {
		return nil
	}
	h := maps.Clone(it.Headers) // a call left behind may still read the old one
	if h == nil {
		h = map[string]string{}
	}
	h[events.HeaderReplayed] = "true"
	it.Headers = h
	return nil
}

// loadPayloads reads the payloads of the parked events in a call, by log id, at
// most one such read at a time for all lanes: a relay uses few connections. They
// belong to the call: between attempts a parked event is small in memory.
func (s *seat) loadPayloads(ctx context.Context, batch []*item) (map[int64][]byte, error) {
	var ids []int64
	for _, it := range batch {
		if it.parked {
			ids = append(ids, it.LogID)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	s.loading.Lock()
	defer s.loading.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.db.timeout)
	defer cancel()
	rows, err := s.db.pool.Query(ctx, `SELECT log_id, payload FROM `+s.db.table("parked")+` WHERE relay = $1 AND log_id = ANY ($2::bigint[])`, s.who.name, ids)
	if err != nil {
		return nil, err
	}
	found := make(map[int64][]byte, len(ids))
	var id int64
	var payload []byte
	if _, err := pgx.ForEachRow(rows, []any{&id, &payload}, func() error {
		found[id] = payload
		payload = nil
		return nil
	}); err != nil {
		return nil, err
	}
	for _, id := range ids {
		if _, ok := found[id]; !ok {
			return nil, fmt.Errorf("parked event %d of %s is gone from its table", id, s.who)
		}
	}
	return found, nil
}
