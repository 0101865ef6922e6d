package kafka

import (
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/events"
)

// Metadata that the Subscriber sets on the messages it hands over. It is about
// the delivery: what a publisher has written under these names is dropped.
const (
	// HeaderDeliveryCount: how often this process has handed this record to a
	// handler since it got the partition, this time included ("1" for the first).
	// Kafka itself does not count.
	HeaderDeliveryCount = "postbus_delivery_count"
	// HeaderTopic, HeaderPartition and HeaderOffset: where the record stands.
	HeaderTopic     = "postbus_topic"
	HeaderPartition = "postbus_partition"
	HeaderOffset    = "postbus_offset"
	// HeaderTimestamp: the record's timestamp in UTC, RFC 3339 with milliseconds.
	HeaderTimestamp = "postbus_timestamp"
	// HeaderKey: the record's key, where it is another one than the partition key
	// in the metadata says; absent if the record has none.
	HeaderKey = "postbus_key"
	// HeaderUndecodable: why the record cannot be read. It will never be handled:
	// poison it. So far there is one reason, a record without a value, which is a
	// deletion mark in a compacted topic.
	HeaderUndecodable = "postbus_undecodable"
)

const tombstone = "the record has no value: it marks its key as deleted in a compacted topic"

// nameless is the name space of the ids of records that have none: the same
// record always has the same one.
var nameless = uuid.MustParse("3d7a1e0c-0f1b-5d0a-8c59-5a6f7e1f2b90")

// messageOf builds what the handler gets: fresh for every attempt. A record
// without an id was not written by Watermill; it is handed over all the same,
// since its document may say all there is to know.
func messageOf(t taken, attempt int) *message.Message {
	r := t.record
	t.part.handing(r.Offset)
	m := message.NewMessage("", append(make([]byte, 0, len(r.Value)), r.Value...))
	m.Metadata = make(message.Metadata, len(r.Headers)+5)
	for i := range r.Headers {
		if h := &r.Headers[i]; h.Key == headerUUID {
			m.UUID = string(h.Value)
		} else {
			m.Metadata[h.Key] = string(h.Value)
		}
	}
	delete(m.Metadata, HeaderUndecodable) // ours to say
	delete(m.Metadata, HeaderKey)
	m.Metadata[HeaderDeliveryCount] = strconv.Itoa(attempt)
	m.Metadata[HeaderTopic] = r.Topic
	m.Metadata[HeaderPartition] = t.part.name
	m.Metadata[HeaderOffset] = strconv.FormatInt(r.Offset, 10)
	m.Metadata[HeaderTimestamp] = timestamp(r.Timestamp)
	if r.Key != nil && string(r.Key) != m.Metadata[events.HeaderPartitionKey] {
		m.Metadata[HeaderKey] = string(r.Key)
	}
	if m.UUID == "" {
		m.UUID = uuid.NewSHA1(nameless, []byte(r.Topic+"/"+t.part.name+"/"+m.Metadata[HeaderOffset])).String()
	}
	if r.Value == nil {
		m.Metadata[HeaderUndecodable] = tombstone
	}
	return m
}

func timestamp(t time.Time) string {
	var room [32]byte
	return string(t.UTC().AppendFormat(room[:0], "2006-01-02T15:04:05.000Z"))
}

// keyOf is what order is kept by, within a partition: the record's key, else
// the partition key that its metadata names. A record without either is by
// itself.
func keyOf(r *kgo.Record) string {
	if r.Key != nil {
		return string(r.Key)
	}
	for i := range r.Headers {
		if r.Headers[i].Key == events.HeaderPartitionKey {
			return string(r.Headers[i].Value)
		}
	}
	return ""
}

// sizeOf is what a record takes in memory, roughly.
func sizeOf(r *kgo.Record) int {
	n := 256 + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}
