package outbox

// The instructions between which a relay may be killed. A test kills a process
// at each of them (TestKilledAtEveryFailpoint); there is no other list.
const (
	fpLeaseTaken     = "lease.taken"     // the lease is ours, the position not read yet
	fpTakeoverLinked = "takeover.linked" // the first link of this holder is committed
	fpRoundLinked    = "round.linked"    // a round's first link is committed, nothing of it is sent
	fpBeforePublish  = "publish.before"  // a call is about to be sent
	fpAfterPublish   = "publish.after"   // the broker has answered, nothing is noted
	fpBeforeLink     = "link.before"     // settled events, their link not written
	fpAfterLink      = "link.after"      // their link is committed
	fpBeforePark     = "park.before"     // events chosen for parking, nothing written
	fpAfterPark      = "park.after"      // parked and passed, the lanes not told
	fpBeforeComplete = "complete.before" // a parked event is sent, its row still there
	fpAfterComplete  = "complete.after"  // its row is gone
	fpBeforeRequest  = "request.before"  // a replay or discard read, not carried out
	fpAfterRequest   = "request.after"   // carried out and committed, the lanes not told
	fpBeforeSteer    = "steer.before"    // a pause, rewind or the like is read, the window empty
	fpAfterSteer     = "steer.after"     // carried out and committed
	fpBeforeFinish   = "finish.before"   // all of a round is settled, its last link not written
	fpAfterFinish    = "finish.after"    // the round is finished
	fpBeforeEffects  = "effects.before"  // a durable handler has returned, its transaction is open
	fpAfterEffects   = "effects.after"   // its transaction is committed
	fpBeforeSetAside = "setaside.before" // it has failed, nothing is noted
	fpAfterSetAside  = "setaside.after"  // the event is put aside and passed
	fpBeforeHandover = "handover.before" // drained, the lease not given up
)

// failpoints lists all of them.
var failpoints = []string{
	fpLeaseTaken, fpTakeoverLinked, fpRoundLinked, fpBeforePublish, fpAfterPublish,
	fpBeforeLink, fpAfterLink, fpBeforePark, fpAfterPark, fpBeforeComplete, fpAfterComplete,
	fpBeforeRequest, fpAfterRequest, fpBeforeSteer, fpAfterSteer, fpBeforeFinish, fpAfterFinish, fpBeforeHandover,
}

// durableFailpoints lists those of durable handlers.
var durableFailpoints = []string{
	fpLeaseTaken, fpTakeoverLinked, fpRoundLinked, fpBeforeEffects, fpAfterEffects, fpBeforeSetAside, fpAfterSetAside,
	fpBeforeComplete, fpAfterComplete, fpBeforeRequest, fpAfterRequest, fpBeforeSteer, fpAfterSteer, fpBeforeFinish, fpAfterFinish,
}
