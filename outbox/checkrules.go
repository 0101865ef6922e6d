package outbox

import (
	"fmt"
	"time"
)

// problems applies the rules to what was read.
func (c *CheckConfig) problems(s *Stats) (all []*Problem) {
	known := map[string]*RelayStats{}
	for i := range s.Relays {
		known[s.Relays[i].Name] = &s.Relays[i]
	}
	names := c.Relays
	if len(names) == 0 {
		for _, r := range s.Relays {
			names = append(names, r.Name)
		}
	}
	for _, name := range names {
		e := examination{cfg: c, stats: s, RelayStats: known[name]}
		if e.RelayStats == nil {
			e.RelayStats = &RelayStats{Name: name}
			e.found(ProblemUnknown, "nobody has ever run it in schema %q: start it, or correct CheckConfig.Relays", c.Schema)
		} else {
			e.examine()
		}
		all = append(all, e.problems...)
	}
	return all
}

// examination looks at one relay or durable handler.
type examination struct {
	cfg   *CheckConfig
	stats *Stats
	*RelayStats
	problems []*Problem
}

func (e *examination) found(kind ProblemKind, format string, args ...any) {
	what := "relay"
	if e.Kind == "handler" {
		what = "durable handler"
	}
	e.problems = append(e.problems, &Problem{Relay: e.Name, Kind: kind,
		Text: fmt.Sprintf("%s %q (%s): ", what, e.Name, kind) + fmt.Sprintf(format, args...) + "; docs/operations.md says more"})
}

func (e *examination) examine() {
	switch {
	case !e.Lost.IsZero():
		e.found(ProblemLost, "retention removed events at %s that it had not read (it stood at id %d, the oldest there is now is %d): if they are needed, stop retention, then drop it with Desk.Drop and let it begin anew",
			e.Lost.UTC().Format(time.RFC3339), e.Position.ID, e.stats.Log.OldestID)
		return // nobody can run it, and the rest follows
	case e.Kind == "" && e.age(e.Requests.Oldest) > e.cfg.MaxRequestAge:
		e.found(ProblemRequests, "%s wait, the first for %s, and nobody has ever run anything of this name: correct the name, or start it", several(e.Requests.Open, "request"), e.ago(e.Requests.Oldest))
		return
	case e.Kind == "":
		return
	}
	switch {
	case !e.isRun(): // what waits is told with that
	case e.Paused:
		e.pause()
	default:
		e.unpublished()
	}
	e.parked()
	if e.age(e.Requests.Oldest) > e.cfg.MaxRequestAge {
		e.found(ProblemRequests, "%s wait, the first for %s, while %s: read the log lines of the process that runs it; it may be unable to write", several(e.Requests.Open, "request"), e.ago(e.Requests.Oldest), e.holder())
	}
}

// isRun reports that nobody holds the lease, if that is for longer than hand-overs take.
func (e *examination) isRun() bool {
	since := e.Lease.Until
	if since.IsZero() { // given up; when, is not known: after the last link
		since = e.Position.LinkAt
	}
	if since.Before(e.Created) {
		since = e.Created
	}
	unheld := e.age(since)
	if e.Lease.Held || unheld <= e.cfg.MaxUnheld {
		return true
	}
	if unheld > e.cfg.AbandonedAfter && e.Backlog > 0 {
		e.found(ProblemAbandoned, "nobody has run it since %s, and retention keeps up to %s for it%s: run it again, or remove its position with Desk.Drop if it is never to come back",
			since.UTC().Format(time.RFC3339), several(e.Backlog, "event"), e.oldest())
	} else {
		e.found(ProblemNotRunning, "nobody holds its lease, for up to %s, with a backlog of up to %s%s: start it, and look why it is gone",
			unheld.Round(time.Second), several(e.Backlog, "event"), e.oldest())
	}
	return false
}

func (e *examination) pause() {
	since := e.PausedSince
	if since.IsZero() {
		since = e.Position.LinkAt
	}
	if e.cfg.MaxPaused > 0 && e.age(since) > e.cfg.MaxPaused {
		e.found(ProblemPaused, "it was paused %s ago, with a backlog of up to %s%s that retention keeps: resume it with Desk.Resume", e.ago(since), several(e.Backlog, "event"), e.oldest())
	}
}

func (e *examination) unpublished() {
	if e.OldestUnpublished.IsZero() {
		return
	}
	// What a round has taken waits for that round since it began; the rest appeared
	// later than that, whatever its age.
	since := e.OldestUnpublished
	if e.Position.RoundAt.After(since) {
		since = e.Position.RoundAt
	}
	if e.age(since) <= e.cfg.MaxAge {
		return
	}
	if e.moved {
		limit := ""
		if e.Rate > 0 {
			limit = fmt.Sprintf(" by its limit of %g a second", e.Rate)
		}
		e.found(ProblemBehind, "event %d waits since %s (%s), the backlog is up to %s; it moves by %.0f ids a second%s: see what takes its time, the broker or the database; raise Lanes or the rate",
			e.OldestUnpublishedID, e.OldestUnpublished.UTC().Format(time.RFC3339), e.ago(e.OldestUnpublished), several(e.Backlog, "event"), e.IDsPerSecond, limit)
		return
	}
	e.found(ProblemStuck, "event %d waits since %s (%s), the backlog is up to %s; the position (link %d, written %s ago) does not move, while %s: read the log lines of that process, see whether the broker accepts anything, and restart the process if it does",
		e.OldestUnpublishedID, e.OldestUnpublished.UTC().Format(time.RFC3339), e.ago(e.OldestUnpublished), several(e.Backlog, "event"), e.Position.Link, e.ago(e.Position.LinkAt), e.holder())
}

func (e *examination) holder() string {
	if e.Lease.Held {
		return fmt.Sprintf("%s renews its lease", e.Lease.Holder)
	}
	return "nobody holds its lease"
}

func (e *examination) parked() {
	p := &e.Parked
	more := ""
	if p.AtLeast {
		more = "at least "
	}
	if c := e.cfg.MaxGivenUp; c != Unlimited && p.GivenUp.Rows > int64(c) {
		e.found(ProblemGivenUp, "%s%s given up, the first %s ago; %s with parked events: find out why with Desk.Parked, mend it, then replay or discard them",
			more, several(p.GivenUp.Rows, "event"), e.ago(p.GivenUp.Oldest), several(p.KeysBlocked, "key"))
	}
	if c := e.cfg.MaxParked; c != Unlimited && p.Rows() > int64(c) {
		e.found(ProblemParked, "%s%s put aside (%d retrying, %d waiting, %d given up) of %s, where %d may be: see what they have in common with Desk.Parked, and mend it before RelayConfig.MaxParked stops the whole",
			more, several(p.Rows(), "event"), p.Retrying.Rows, p.Waiting.Rows, p.GivenUp.Rows, several(p.KeysBlocked, "key"), c)
	}
	if e.age(p.Retrying.Oldest) > e.cfg.MaxRetrying {
		e.found(ProblemRetrying, "%s%s tried again and again, the first put aside %s ago, with %s waiting behind: look at its error with Desk.Parked, and mend it or discard the event",
			more, several(p.Retrying.Rows, "event"), e.ago(p.Retrying.Oldest), several(p.Waiting.Rows, "event"))
	}
}

// oldest says in brackets since when the oldest event waits.
func (e *examination) oldest() string {
	if e.OldestUnpublished.IsZero() {
		return ""
	}
	return fmt.Sprintf(" (the oldest since %s)", e.OldestUnpublished.UTC().Format(time.RFC3339))
}

// age is 0 for what never was.
func (e *examination) age(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return max(0, e.stats.At.Sub(t))
}

func (e *examination) ago(t time.Time) time.Duration { return e.age(t).Round(time.Second) }

func several(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
