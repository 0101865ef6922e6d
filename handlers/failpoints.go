package handlers

// The instructions between which a consumer may be killed. A test kills a process
// at each of them (TestKilledAtEveryFailpoint); there is no other list.
const (
	fpBeforeInsert = "insert.before" // the message is here, nothing is written
	fpAfterInsert  = "insert.after"  // the inbox row is written, the handler not called (HandleTx)
	fpAfterEffects = "effects.after" // the handler is done, its success not recorded
	fpAfterCommit  = "commit.after"  // recorded
	fpBeforePoison = "poison.before" // a handler gave up, the poison queue has nothing
	fpAfterPoison  = "poison.after"  // the poison queue has it, the inbox does not know
	fpBeforeAck    = "ack.before"    // all handlers have settled, the broker does not know
)

// failpoints lists all of them.
var failpoints = []string{
	fpBeforeInsert, fpAfterInsert, fpAfterEffects, fpAfterCommit, fpBeforePoison, fpAfterPoison, fpBeforeAck,
}
