package sqs

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssns "github.com/aws/aws-sdk-go-v2/service/sns"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
)

// SNSTopic is one SNS topic and the queues that get a copy of its messages. A name
// that ends in ".fifo" makes a FIFO topic.
type SNSTopic struct {
	Name string

	// ARNPrefix is what its ARN begins with: see SNSPublisherConfig.ARNPrefix.
	ARNPrefix string

	// Queues get every message, by a subscription with raw delivery. Each must be
	// one of the Topology's; to a FIFO topic only FIFO queues are subscribed, since a
	// standard one would lose the order.
	Queues []string

	// MaxMessageBytes is the topic's MaximumMessageSize. Defaults to 256 KiB; at most
	// 1 MiB, and then SNS allows 100 subscriptions.
	MaxMessageBytes int
}

func (t SNSTopic) withDefaults() SNSTopic {
	orDefault(&t.MaxMessageBytes, snsDefaultBytes)
	t.ARNPrefix = strings.TrimSuffix(t.ARNPrefix, ":")
	return t
}

func (t SNSTopic) arn() string { return t.ARNPrefix + ":" + t.Name }

func (t SNSTopic) faults(queues map[string]bool) (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("SNS topic %q: "+format, append([]any{t.Name}, args...)...))
	}
	if f := topicNameFault(t.Name); f != "" {
		fault("%s", f)
	}
	if !arnPrefix.MatchString(t.ARNPrefix) {
		fault("ARNPrefix is %q: give partition, service, region and account, such as arn:aws:sns:eu-central-1:123456789012", t.ARNPrefix)
	}
	if t.MaxMessageBytes < 1024 || t.MaxMessageBytes > maxBytes {
		fault("MaxMessageBytes is %d: give 1,024 to %d, or 0 for %d", t.MaxMessageBytes, maxBytes, snsDefaultBytes)
	}
	for _, q := range t.Queues {
		if !queues[q] {
			fault("queue %q is not in the Topology: add it to Queues", q)
		}
		if isFIFO(q) != isFIFO(t.Name) {
			fault("queue %q: a FIFO topic needs FIFO queues, or the order is lost, and a standard topic cannot deliver to them", q)
		}
	}
	return faults
}

func (t SNSTopic) describe(b *strings.Builder) {
	kind := "standard SNS topic"
	if isFIFO(t.Name) {
		kind = "FIFO SNS topic"
	}
	fmt.Fprintf(b, "%s %s: messages up to %d bytes, raw copies to %s\n", kind, t.Name, t.MaxMessageBytes, strings.Join(t.Queues, ", "))
}

func (w *worker) topic(ctx context.Context, t SNSTopic) error {
	arn := t.arn()
	var has map[string]string
	look := func(ctx context.Context) error {
		out, err := w.SNS.GetTopicAttributes(ctx, &awssns.GetTopicAttributesInput{TopicArn: &arn}, onceSNS)
		if err == nil {
			has = out.Attributes
		}
		return err
	}
	if err := w.call(ctx, look); err != nil {
		if v, _, _, _ := judgeCall(err); !w.create || !v.is(ErrNoQueue) {
			return fmt.Errorf("SNS topic %q: %w", t.Name, lookUpError(t.Name, err))
		}
		if err := w.makeTopic(ctx, t); err != nil {
			return fmt.Errorf("make SNS topic %q: %w", t.Name, lookUpError(t.Name, err))
		}
	} else if n, err := strconv.Atoi(has["MaximumMessageSize"]); err == nil && n != t.MaxMessageBytes {
		return fmt.Errorf("SNS topic %q: %w: MaximumMessageSize is %d, want %d; change the topic, which Declare does not, or the Topology",
			t.Name, ErrDiffers, n, t.MaxMessageBytes)
	}
	for _, q := range t.Queues {
		if err := w.subscription(ctx, t, q); err != nil {
			return fmt.Errorf("SNS topic %q, queue %q: %w", t.Name, q, err)
		}
		if err := w.policy(ctx, t, q); err != nil {
			return fmt.Errorf("SNS topic %q, policy of queue %q: %w", t.Name, q, err)
		}
	}
	return nil
}

func (w *worker) makeTopic(ctx context.Context, t SNSTopic) error {
	attributes := map[string]string{}
	if isFIFO(t.Name) {
		attributes["FifoTopic"] = "true"
	}
	if t.MaxMessageBytes != snsDefaultBytes {
		attributes["MaximumMessageSize"] = strconv.Itoa(t.MaxMessageBytes)
	}
	made := ""
	err := w.call(ctx, func(ctx context.Context) error {
		out, err := w.SNS.CreateTopic(ctx, &awssns.CreateTopicInput{Name: &t.Name, Attributes: attributes}, onceSNS)
		if err == nil {
			made = aws.ToString(out.TopicArn)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case made != t.arn():
		return fmt.Errorf("it was made as %s, for that is where the client's account and region are: correct ARNPrefix or the client, and remove it there", made)
	}
	w.Logger.Info("an SNS topic was made", "topic", t.Name)
	return nil
}

// subscription makes sure that the queue gets raw copies.
func (w *worker) subscription(ctx context.Context, t SNSTopic, queue string) error {
	arn := t.arn()
	found := ""
	for token := (*string)(nil); ; {
		var out *awssns.ListSubscriptionsByTopicOutput
		if err := w.call(ctx, func(ctx context.Context) (err error) {
			out, err = w.SNS.ListSubscriptionsByTopic(ctx, &awssns.ListSubscriptionsByTopicInput{TopicArn: &arn, NextToken: token}, onceSNS)
			return err
		}); err != nil {
			return lookUpError(t.Name, err)
		}
		for _, s := range out.Subscriptions {
			if aws.ToString(s.Endpoint) == w.arns[queue] {
				found = aws.ToString(s.SubscriptionArn)
			}
		}
		if token = out.NextToken; aws.ToString(token) == "" || found != "" {
			break
		}
	}
	if found == "" {
		if !w.create {
			return fmt.Errorf("the subscription: %w; Declare it", ErrNoQueue)
		}
		err := w.call(ctx, func(ctx context.Context) error {
			_, err := w.SNS.Subscribe(ctx, &awssns.SubscribeInput{TopicArn: &arn, Protocol: aws.String("sqs"), Endpoint: aws.String(w.arns[queue]),
				Attributes: map[string]string{"RawMessageDelivery": "true"}, ReturnSubscriptionArn: true}, onceSNS)
			return err
		})
		if err != nil {
			return lookUpError(t.Name, err)
		}
		w.Logger.Info("a queue was subscribed to an SNS topic", "topic", t.Name, "queue", queue)
		return nil
	}
	var has map[string]string
	if err := w.call(ctx, func(ctx context.Context) error {
		out, err := w.SNS.GetSubscriptionAttributes(ctx, &awssns.GetSubscriptionAttributesInput{SubscriptionArn: &found}, onceSNS)
		if err == nil {
			has = out.Attributes
		}
		return err
	}); err != nil {
		return lookUpError(t.Name, err)
	}
	if has["RawMessageDelivery"] != "true" {
		return fmt.Errorf("the subscription %s: %w: it wraps each message in a document of SNS' own; set its RawMessageDelivery to true", found, ErrDiffers)
	}
	return nil
}

// policy makes sure that the topic may send to the queue, and leaves whatever
// else the queue's policy says. Source of the statement:
// https://docs.aws.amazon.com/sns/latest/dg/subscribe-sqs-queue-to-sns-topic.html.
func (w *worker) policy(ctx context.Context, t SNSTopic, queue string) error {
	url := w.urls[queue]
	has, err := w.attributesOf(ctx, &url)
	if err != nil {
		return lookUpError(queue, err)
	}
	next, missing, err := allow(has["Policy"], w.arns[queue], t.arn())
	if err != nil {
		return fmt.Errorf("%w: it is no JSON that can be added to: %w", ErrDiffers, err)
	}
	if !missing {
		return nil
	}
	if !w.create {
		return fmt.Errorf("%w: it does not let the topic send; Declare the topology", ErrDiffers)
	}
	err = w.call(ctx, func(ctx context.Context) error {
		_, err := w.SQS.SetQueueAttributes(ctx, &awssqs.SetQueueAttributesInput{QueueUrl: &url, Attributes: map[string]string{"Policy": next}}, once)
		return err
	})
	if err != nil {
		return lookUpError(queue, err)
	}
	w.Logger.Info("an SNS topic was allowed to send to a queue", "topic", t.Name, "queue", queue)
	return nil
}

// allow adds to a policy that topic may send to queue, in one statement for all
// topics of ours. missing says that it was not so before.
func allow(policy, queueARN, topicARN string) (next string, missing bool, err error) {
	document := map[string]any{"Version": "2012-10-17"}
	if policy != "" {
		document = nil
		if err := json.Unmarshal([]byte(policy), &document); err != nil {
			return "", false, err
		}
		if document == nil {
			document = map[string]any{"Version": "2012-10-17"}
		}
	}
	var statements []any
	switch s := document["Statement"].(type) {
	case []any:
		statements = s
	case map[string]any:
		statements = []any{s}
	}
	var topics []string
	statements = slices.DeleteFunc(statements, func(s any) bool {
		statement, _ := s.(map[string]any)
		if statement["Sid"] != allowSID {
			return false
		}
		condition, _ := statement["Condition"].(map[string]any)
		equals, _ := condition["ArnEquals"].(map[string]any)
		switch arns := equals["aws:SourceArn"].(type) {
		case string:
			topics = append(topics, arns)
		case []any:
			for _, arn := range arns {
				if arn, ok := arn.(string); ok {
					topics = append(topics, arn)
				}
			}
		}
		return true
	})
	if slices.Contains(topics, topicARN) {
		return policy, false, nil
	}
	topics = append(topics, topicARN)
	slices.Sort(topics)
	document["Statement"] = append(statements, map[string]any{
		"Sid": allowSID, "Effect": "Allow", "Principal": map[string]any{"Service": "sns.amazonaws.com"},
		"Action": "sqs:SendMessage", "Resource": queueARN,
		"Condition": map[string]any{"ArnEquals": map[string]any{"aws:SourceArn": topics}},
	})
	text, err := json.Marshal(document)
	return string(text), true, err
}
