// Package rabbitmq publishes to RabbitMQ and consumes from it.
package rabbitmq
