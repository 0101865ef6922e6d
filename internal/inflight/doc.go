// Package inflight is the room between the goroutine that reads a broker and
// the channel that a Watermill consumer reads.
//
// A Room takes deliveries in the broker's order and hands on up to N at once,
// one per key at a time and in order within a key. What is acked settles; what
// is nacked is handed over again in place, after a growing pause, or goes back
// to the broker where the adapter says so. The adapter's side:
//
//	room := inflight.New(base, inflight.Config[*kgo.Record]{
//		Build:       func(r *kgo.Record, attempt int) *message.Message { ... }, // a fresh message each time
//		MaxInFlight: 64,
//	})
//	go func() { // or in the reading goroutine, between two reads
//		for range room.Changed() { // closed when the room is
//			for _, r := range room.Take(nil) {
//				// r.Outcome is Acked: acknowledge, commit, delete; or GivenBack: it was not handled
//			}
//		}
//	}()
//	for {
//		records := ... // read the broker
//		err := room.Offer(ctx, deliveries) // blocks while the room is full
//	}
//	abandoned := room.Close() // drains; the channel is closed
//
// and what it gives to its user is room.Out().
//
// A delivery that is lost (revoked, claimed away, its visibility gone) is taken
// out with Lose: its handler's context is cancelled, and what the handler then
// says is not heard. Withdraw takes out what was not handed over yet and lets
// finish what was; Await waits for that. Watermark turns acks in any order into
// an offset that may be committed.
//
// # How it goes fast
//
// Watermill says that a message is settled by closing a channel, so somebody has
// to wait for each message in flight. One goroutine per message costs two
// switches of goroutines each time. Here a goroutine (see attend) waits for a
// whole batch, at first only for its oldest message: if handlers are quick, the
// others are done when that one is, and are settled under one lock. If the
// oldest takes longer than some hundred microseconds, the rest of the batch is
// shared out to goroutines of their own, so that a slow message keeps back
// nobody; from then on every message has one, until acks come quickly again.
// The channel has room for all that may be in flight, so that handing over never
// blocks; what nobody has taken from it can be taken back.
//
// # Guarantees
//
//  1. Of one key, at most one message is with the handlers at any time, and
//     first deliveries come in the order in which they were offered. TestRoomModel
//  2. Every delivery that was offered is acked, given back, lost or abandoned, and
//     only one of these. TestRoomModel
//  3. At most MaxInFlight messages are with the handlers or in the channel. TestRoomModel
//  4. A slow or nacked message holds back its own key only. TestSlowMessageHoldsBackItsKeyOnly,
//     TestNackPausesItsKeyOnly
//  5. The message of a repeat is a fresh one. TestNackBuildsAFreshMessage
//  6. Offer blocks when the room is full, by count or by bytes, and always lets a
//     single delivery in, however large. TestOfferBlocks, TestOfferBlocksByBytes
//  7. After Lose the handler's context is cancelled with the cause, and the
//     delivery is never reported; the key waits for the handler all the same. TestLose
//  8. After Withdraw nothing that it matched is handed over any more. TestWithdraw,
//     TestTakenOutWhileItIsBuilt
//  9. Close hands over nothing more, gives back what was not handed over, lets
//     handlers finish, cancels those that take too long, and leaves no goroutine.
//     TestCloseDrains, TestCloseAbandons, TestAbandonedIsNotReportedToo,
//     TestCloseAtAnyTime
//  10. A message's context carries the values of the base context, and is cancelled
//     when the message is settled. TestMessageContext
//  11. Rooms that share an Outlet take back their own only. TestOutlet
//  12. The watermark is the offset below which all is done. TestWatermarkModel
//
// # Not promised
//
//   - Order between keys: what is older goes first by and large only.
//   - Order of a key across a delivery that was lost or given back.
package inflight
