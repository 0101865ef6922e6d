package sqs

import "unicode/utf8"

// isText says whether SQS and SNS take s as it is. SQS refuses, or worse, some
// paths replace by U+FFFD, what is not UTF-8 or not a character of XML 1.0:
// #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF, says
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html.
func isText[T string | []byte](s T) bool {
	ascii := true
	for i := range len(s) {
		c := s[i]
		if c < 0x20 && c != '\t' && c != '\n' && c != '\r' {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	if ascii {
		return true
	}
	for _, r := range string(s) {
		if r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}
	return utf8.ValidString(string(s))
}
