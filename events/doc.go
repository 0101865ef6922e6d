// Package events is the envelope of a domain event: how it is built, checked,
// written as the one JSON document that travels, and read again.
//
// A domain package defines its events as plain types with three methods (see
// [Payload]) and imports nothing of this module. In the order of a life:
//
//	e, err := events.New(ctx, order.Placed{OrderID: "o-1"}) // envelope, data encoded, checked
//	b, err := e.AppendTo(buf)                               // the document, into the log or onto the wire
//	e, err = events.Decode(b)                               // on the other side
//	o, err := events.Typed[order.Placed](e)                 // o.Data is an order.Placed
//
// Most programs call none of these: the bus calls New, the log AppendTo, routers
// Decode, Typed and [ContextHandling]. What they do call is [With], for the
// options of one publication, [IdempotencyKey], and [Raw], to publish an
// envelope that they built by hand.
//
// Everything here is safe for use by several goroutines, blocks on nothing and
// does no I/O. An error that wraps [ErrInvalidEvent] says that trying again is
// of no use.
//
// # Guarantees
//
//  1. Data comes back byte for byte, every other field by value.
//     (TestRoundTrip, FuzzDataRoundTrip, FuzzText)
//  2. Members of the document that this version does not know survive reading
//     and writing, byte for byte. A known name in another case is not a known
//     name. (TestRoundTripOfUnknownMembers, TestUnknownMembersSurvive)
//  3. Decode never panics, and accepts nothing that Encode would refuse.
//     (FuzzDecode, TestLimits, TestHardLimit)
//  4. Nothing is silently rewritten: no U+FFFD for bytes that are not UTF-8 or
//     for half a surrogate pair, no winner among equal members, no time cut
//     short. It is refused. (TestDecodeRefuses, TestNewRefusesBadPayloads)
//  5. What would fail later, in the user's transaction or at a broker, is refused
//     here: long keys, NUL, control characters in ids and names, reserved
//     prefixes. (TestLimits)
//  6. New never panics, whatever the payload does.
//     (TestNewRefusesBadPayloads, TestOptionsRefuseNothing)
//  7. Ids are UUIDv7, unique, and strictly increasing within the process,
//     whatever the clock does. (TestNewIDIncreasesAcrossGoroutines,
//     TestNewIDIncreasesWhateverTheClockDoes, TestNewIDOutlivesItsCounter)
//  8. An event published under a handler's context carries the correlation of the
//     event handled, and its id as causation. (TestCorrelationFollowsTheContext)
//  9. Events never share state: an option, a pooled buffer or a decoded document
//     that changes later does not change an event. (TestWithSetsOnePublication,
//     TestNewDoesNotHandOutPooledBytes, TestDecodeKeepsNothingOfTheDocument)
//  10. An event that is logged or printed with %v, and the error that refuses
//     one, show nothing of its data. (TestLogsAndErrorsHoldNoData)
//  11. AppendTo and NewID allocate nothing.
//     (TestAppendToAllocatesNothing, TestNewIDAllocatesNothing)
//
// # Not promised
//
//   - The document's own bytes: white space, the order of members, escapes in
//     texts and the time zone are not kept, only data and unknown members are.
//   - The document by json.Marshal: it knows nothing of the rules above. Use Encode.
//   - What lies inside data: equal members, half surrogate pairs and NUL as
//     escapes are carried as they are, and it is encoding/json that reads them
//     in Typed, with its own ways.
//   - Order among processes: ids follow clocks there, and a log has its own order.
//   - Two ids for two facts: IdempotencyKey does not escape its colons.
//   - Bytes of Data, or entries of Metadata, that somebody changes afterwards.
package events
