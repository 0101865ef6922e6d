package main

import (
	"context"
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// published is what has come out of the queues, and what waits in them.
func (b *rabbitBroker) published(_ context.Context, topics []string) (int64, error) {
	waiting, err := b.waiting(topics)
	return b.count(topics) + waiting, err
}

// waiting is as many as RabbitMQ has counted in the last five seconds.
func (b *rabbitBroker) waiting(topics []string) (sum int64, err error) {
	err = b.with(func(c *amqp.Channel) error {
		for _, topic := range topics {
			q, err := c.QueueDeclarePassive(queueOf(topic), true, false, false, false, nil)
			if err != nil {
				return fmt.Errorf("read the length of queue %s: %w", queueOf(topic), err)
			}
			sum += int64(q.Messages)
		}
		return nil
	})
	return sum, err
}

func (b *rabbitBroker) again(_ context.Context, topic string) (event string, err error) {
	return publishAgain(b, b.first(topic), topic)
}

// drained: nothing waits. What is still being handled when the shop closes, it
// finishes before it does.
func (b *rabbitBroker) drained(_ context.Context, topics []string) (bool, error) {
	waiting, err := b.waiting(topics)
	return waiting == 0, err
}

func (b *rabbitBroker) remove(_ context.Context, topics []string) error {
	return b.with(func(c *amqp.Channel) (err error) {
		for _, q := range b.topology(topics).Queues {
			for _, name := range []string{q.Name, q.Name + ".dead"} {
				_, failed := c.QueueDelete(name, false, false, false)
				err = errors.Join(err, failed)
			}
		}
		for _, topic := range topics {
			err = errors.Join(err, c.ExchangeDelete(topic, false, false))
		}
		return err
	})
}

// with opens a channel for one look: an error would end it.
func (b *rabbitBroker) with(look func(*amqp.Channel) error) error {
	c, err := b.conn.Channel()
	if err != nil {
		return err
	}
	defer c.Close()
	return look(c)
}

func (b *rabbitBroker) close() { _ = b.conn.Close() } // nothing is under way on it
