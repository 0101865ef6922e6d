package sqs

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/outbox"
)

// benchMessages are 600 bytes each, of a thousand keys.
func benchMessages(queue string) (msgs []*outbox.Message) {
	payload := bytes.Repeat([]byte("x"), 600)
	for i := range 1000 {
		m := outboxMessage(queue, fmt.Sprintf("key-%d", i), i)
		m.Payload = payload
		msgs = append(msgs, m)
	}
	return msgs
}

// A thousand messages in one call, beside SendMessageBatch with as many requests
// at once and the same attributes.
func BenchmarkPublish(b *testing.B) {
	for _, suffix := range []string{"", ".fifo"} {
		b.Run("ours"+suffix, func(b *testing.B) {
			c := client(b)
			p, err := NewPublisher(PublisherConfig{Client: c})
			if err != nil {
				b.Fatal(err)
			}
			queue := newQueue(b, c, suffix)
			for b.Loop() {
				b.StopTimer()
				msgs := benchMessages(queue)
				b.StartTimer()
				for _, r := range publishBatch(p, context.Background(), msgs) {
					if r.Status != outbox.Done {
						b.Fatal(r.Err)
					}
				}
			}
			b.ReportMetric(float64(1000*b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
		b.Run("raw"+suffix, func(b *testing.B) {
			c := client(b)
			queue := newQueue(b, c, suffix)
			url := queueURL(b, c, queue)
			for b.Loop() {
				b.StopTimer()
				msgs := benchMessages(queue)
				b.StartTimer()
				work := make(chan []*outbox.Message, 100)
				for i := 0; i < len(msgs); i += 10 {
					work <- msgs[i : i+10]
				}
				close(work)
				var all sync.WaitGroup
				for range defaultRequests {
					all.Go(func() {
						for part := range work {
							in := &awssqs.SendMessageBatchInput{QueueUrl: url}
							for i, m := range part {
								e := types.SendMessageBatchRequestEntry{Id: &entryIDs[i], MessageBody: aws.String(string(m.Payload)), MessageAttributes: map[string]types.MessageAttributeValue{}}
								m.EachHeader(func(name, value string) {
									e.MessageAttributes[name] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &value}
								})
								e.MessageAttributes[attrUUID] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String(m.EventID.String())}
								if suffix != "" {
									e.MessageGroupId, e.MessageDeduplicationId = &m.Key, aws.String(m.EventID.String())
								}
								in.Entries = append(in.Entries, e)
							}
							if out, err := c.SendMessageBatch(context.Background(), in); err != nil || len(out.Failed) > 0 {
								b.Error(out, err)
							}
						}
					})
				}
				all.Wait()
			}
			b.ReportMetric(float64(1000*b.N)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}
