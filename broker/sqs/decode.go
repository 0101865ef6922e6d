package sqs

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/uuid"
)

// decode reads a message in the wire format. What it gets may have been sent by
// anybody. One without attrUUID was not published through Watermill; its UUID is
// the id that SQS gave it, as watermill-aws has it.
func decode(m *types.Message) (*message.Message, error) {
	id, payload := aws.ToString(m.MessageId), []byte(aws.ToString(m.Body))
	metadata := make(message.Metadata, len(m.MessageAttributes)+5)
	encoding, packed := "", ""
	for name, v := range m.MessageAttributes {
		value := aws.ToString(v.StringValue)
		if v.StringValue == nil {
			value = string(v.BinaryValue)
		}
		switch name {
		case attrUUID:
			id = value
		case attrEncoding:
			encoding = value
		case attrMetadata:
			packed = value
		default:
			metadata[name] = value
		}
	}
	switch encoding {
	case "":
	case encodingEmpty:
		payload = nil
	case encodingBase64:
		decoded, err := base64.StdEncoding.DecodeString(string(payload))
		if err != nil {
			return nil, fmt.Errorf("%s says base64, and the body is none: %w", attrEncoding, err)
		}
		payload = decoded
	default:
		return nil, fmt.Errorf("%s is %.50q, which is none that we know", attrEncoding, encoding)
	}
	if packed != "" {
		var more map[string]string
		if err := json.Unmarshal([]byte(packed), &more); err != nil {
			return nil, fmt.Errorf("%s is no JSON object of strings: %w", attrMetadata, err)
		}
		for name, value := range more {
			metadata[name] = value
		}
	}
	for _, name := range [...]string{HeaderDeliveryCount, HeaderQueue, HeaderMessageID, HeaderGroupID, HeaderSentTime, HeaderUndecodable} {
		delete(metadata, name) // ours to say
	}
	msg := message.NewMessage(id, payload)
	msg.Metadata = metadata
	return msg, nil
}

// build makes what the handler gets.
func (r *received) build(queue string) *message.Message {
	msg, err := decode(&r.raw)
	if err != nil {
		msg = standIn(queue, &r.raw, err.Error())
	}
	msg.Metadata[HeaderDeliveryCount] = strconv.Itoa(r.receives)
	msg.Metadata[HeaderQueue] = queue
	msg.Metadata[HeaderMessageID] = aws.ToString(r.raw.MessageId)
	if r.group != "" {
		msg.Metadata[HeaderGroupID] = r.group
	}
	if !r.sent.IsZero() {
		msg.Metadata[HeaderSentTime] = r.sent.UTC().Format(time.RFC3339Nano)
	}
	return msg
}

// RawMessage is the payload, in JSON, of a message with HeaderUndecodable: the
// message as it stands in the queue.
type RawMessage struct {
	Queue      string            `json:"queue"`
	ID         string            `json:"id"`
	Body       string            `json:"body"`
	Attributes map[string]string `json:"attributes,omitempty"` // those that are UTF-8
	Binary     map[string][]byte `json:"binary,omitempty"`     // the others, in base64
}

// undecodable is the name space of the ids that stand-ins get: the same message
// always has the same one.
var undecodable = uuid.MustParse("5b6f2a3c-0d0e-5f8e-8a57-2f1f7d0e6c11")

func standIn(queue string, m *types.Message, reason string) *message.Message {
	raw := RawMessage{Queue: queue, ID: aws.ToString(m.MessageId), Body: aws.ToString(m.Body), Attributes: make(map[string]string)}
	for name, v := range m.MessageAttributes {
		switch value := aws.ToString(v.StringValue); {
		case v.StringValue != nil && utf8.ValidString(value):
			raw.Attributes[name] = value
		default:
			if raw.Binary == nil {
				raw.Binary = make(map[string][]byte)
			}
			raw.Binary[name] = v.BinaryValue
		}
	}
	payload, err := json.Marshal(raw)
	if err != nil {
		payload = nil // cannot be: strings and bytes
	}
	msg := message.NewMessage(uuid.NewSHA1(undecodable, []byte(queue+"/"+raw.ID)).String(), payload)
	msg.Metadata[HeaderUndecodable] = reason
	return msg
}
