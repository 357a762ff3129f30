package balance

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// EjectorConfig says when a server is taken out, and for how long. A field that is 0 has its default.
type EjectorConfig struct {
	// Consecutive is how many calls in a row fail before the server is taken out. Default 5; negative: it is
	// not taken out for that.
	Consecutive int
	// Excess is by how much a server's share of failed calls, of those of the last ten seconds or so, may be
	// above that of all others: 0.3 takes out one with 40% if the others have 10%. It counts for servers with
	// MinCalls or more in that time. Default 0.3; negative or above 1: a server is not taken out for that.
	Excess float64
	// MinCalls is the least number of calls that Excess judges by. Default 20.
	MinCalls int
	// MaxShare is the largest part of the servers that may be out at a time, rounded down: with 0.5, one of
	// three. From 0 to 1; default 0.5.
	MaxShare float64
	// Base is how long a server is out for the first time; each time after that it is twice as long, up to
	// Max. Defaults 5 seconds and 5 minutes.
	Base, Max time.Duration
}

const (
	ejectWindow = 5 * time.Second // of the two windows in which calls are counted
	// widespread is the share of failed calls among the others from which on a server is no outlier.
	widespread = 0.5
	// restAfter is for how long nobody is judged after all were found to fail, for each member, if they are
	// more than fewMembers: each judgement looks at all of them.
	restAfter  = time.Microsecond
	fewMembers = 100
	// passes is how many calls in a row must go well before a server that has come back is one like others.
	passes = 5
)

// Ejector takes servers out that fail more than the others do: outlier ejection, as Envoy has it. When its
// time is over a server is on probation: it has one call at a time, the first failure takes it out for twice
// as long, and after five calls that went well it is one like all others. What all servers have in common,
// because something behind them is broken, takes none of them out.
//
// Servers are [Member] values. An Ejector is safe for concurrent use.
type Ejector struct {
	config EjectorConfig

	mu      sync.Mutex // guards the fields below, and the decision who is out
	members []*Member
	rests   time.Duration // until when nobody is judged, as all are failing
}

// Member is one server of an Ejector.
type Member struct {
	of    *Ejector
	state atomic.Int32 // memberIn, memberOut, memberProbation
	until atomic.Int64 // when a member that is out comes back on probation

	mu       sync.Mutex // guards the fields below; the Ejector's may be held
	windows  [2]ejectCounts
	epoch    int64 // of windows[0]; windows[1] is the one before
	row      int   // failures in a row
	good     int   // calls that went well in a row, on probation
	times    int   // how often it was taken out lately
	returned time.Duration
	lastOut  time.Duration // how long it was out the last time
}

type ejectCounts struct{ calls, failed int }

const (
	memberIn int32 = iota
	memberOut
	memberProbation
)

// NewEjector returns an ejector without members. It panics if the configuration has a mistake, see
// [EjectorConfig.Mistake].
func NewEjector(c EjectorConfig) *Ejector {
	if m := c.Mistake(); m != "" {
		panic("balance: NewEjector: " + m)
	}
	setDefault(&c.Consecutive, 5)
	setDefault(&c.Excess, 0.3)
	setDefault(&c.MinCalls, 20)
	setDefault(&c.MaxShare, 0.5)
	setDefault(&c.Base, defaultBase)
	setDefault(&c.Max, max(5*time.Minute, c.Base))
	return &Ejector{config: c}
}

// defaultBase is how long a server is out the first time if Base is 0.
const defaultBase = 5 * time.Second

// Mistake returns which field makes no sense, and what was expected; an empty text if all do.
func (c EjectorConfig) Mistake() string {
	base := c.Base
	setDefault(&base, defaultBase)
	switch {
	case !(c.MaxShare >= 0 && c.MaxShare <= 1):
		return fmt.Sprintf("MaxShare is %v, a number from 0 to 1 was expected.", c.MaxShare)
	case base < 0 || c.Max < 0 || c.Max != 0 && c.Max < base:
		return fmt.Sprintf("Base is %v and Max is %v, times that are not negative were expected, and Max "+
			"not less than Base.", base, c.Max)
	case c.Excess != c.Excess:
		return "Excess is not a number."
	case c.MinCalls < 0:
		return fmt.Sprintf("MinCalls is %d, a number that is not negative was expected.", c.MinCalls)
	}
	return ""
}

func setDefault[T comparable](field *T, to T) {
	if *field == *new(T) {
		*field = to
	}
}

// Join adds a server.
func (j *Ejector) Join() *Member {
	m := &Member{of: j}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.members = append(j.members, m)
	return m
}

// Leave removes the server. If too many of the others are out then, those that would come back first do so.
// The Member is of no use any more; its methods do no harm.
func (m *Member) Leave(now time.Duration) {
	m.of.remove(m, now)
}

func (j *Ejector) remove(m *Member, now time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.members = slices.DeleteFunc(j.members, func(other *Member) bool { return other == m })
	for {
		out, next := j.outLocked(now)
		if out <= j.mostLocked() {
			return
		}
		next.until.Store(int64(now))
	}
}

// outLocked returns how many members are out, and which of them comes back first.
func (j *Ejector) outLocked(now time.Duration) (n int, next *Member) {
	for _, m := range j.members {
		if !m.Ejected(now) {
			continue
		}
		if n++; next == nil || m.until.Load() < next.until.Load() {
			next = m
		}
	}
	return n, next
}

// mostLocked returns how many members may be out.
func (j *Ejector) mostLocked() int { return int(j.config.MaxShare * float64(len(j.members))) }

// Ejected reports whether the server is out. It takes no lock.
func (m *Member) Ejected(now time.Duration) bool {
	return m.state.Load() == memberOut && int64(now) < m.until.Load()
}

// Skip reports whether the server gets no call now, with so many under way: it is out, or on probation and
// has one. It takes no lock.
func (m *Member) Skip(now time.Duration, outstanding int) bool {
	switch m.state.Load() {
	case memberIn:
		return false
	case memberOut:
		return int64(now) < m.until.Load() || outstanding > 0
	}
	return outstanding > 0
}

// Count counts a call that is over, and reports whether the server was taken out for it. Calls that nobody
// waits for any more are not counted by the caller.
func (m *Member) Count(now time.Duration, failed bool) (ejected bool) {
	if !m.note(now, failed) {
		return false
	}
	return m.of.judge(m, now)
}

// note counts the call and reports whether the member may have to go.
func (m *Member) note(now time.Duration, failed bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turnLocked(now)
	m.windows[0].calls++
	if !failed {
		m.row = 0
		m.passLocked(now)
		return false
	}
	m.windows[0].failed++
	m.row++
	m.good = 0
	return m.state.Load() != memberIn || m.of.config.suspects(m.sumLocked(), m.row, 0)
}

// suspects reports whether a server has failed enough to be taken out, if the others have failed by share.
func (c *EjectorConfig) suspects(own ejectCounts, row int, share float64) bool {
	return c.Consecutive > 0 && row >= c.Consecutive ||
		c.Excess >= 0 && own.calls >= c.MinCalls && own.share() > share+c.Excess
}

// sumLocked returns what the member has done in both windows.
func (m *Member) sumLocked() ejectCounts {
	a, b := m.windows[0], m.windows[1]
	return ejectCounts{a.calls + b.calls, a.failed + b.failed}
}

// passLocked counts a call that went well of a member on probation.
func (m *Member) passLocked(now time.Duration) {
	state := m.state.Load()
	if state == memberIn || state == memberOut && int64(now) < m.until.Load() {
		return // a call from before it was taken out says nothing
	}
	m.state.CompareAndSwap(memberOut, memberProbation)
	if m.good++; m.good >= passes && m.state.CompareAndSwap(memberProbation, memberIn) {
		m.good, m.returned = 0, now
		m.windows = [2]ejectCounts{}
	}
}

// turnLocked begins a new window if it is time.
func (m *Member) turnLocked(now time.Duration) {
	epoch := int64(now / ejectWindow)
	switch {
	case epoch == m.epoch+1:
		m.windows[0], m.windows[1] = ejectCounts{}, m.windows[0]
	case epoch > m.epoch || epoch < m.epoch-1:
		m.windows = [2]ejectCounts{}
	default:
		return
	}
	m.epoch = epoch
}

// counts returns what the member has done lately.
func (m *Member) counts(now time.Duration) (c ejectCounts, row int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turnLocked(now)
	return m.sumLocked(), m.row
}

// judge takes the member out if it has failed more than others.
func (j *Ejector) judge(m *Member, now time.Duration) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	state := m.state.Load()
	if state == memberOut && int64(now) < m.until.Load() {
		return false
	}
	if len(j.members) > fewMembers && now < j.rests {
		return false
	}
	own, row := m.counts(now)
	out, member := 0, false
	var others ejectCounts
	for _, other := range j.members {
		if other == m {
			member = true
			continue
		}
		if other.Ejected(now) {
			out++
			continue
		}
		c, _ := other.counts(now)
		others.calls += c.calls
		others.failed += c.failed
	}
	if !member || out+1 > j.mostLocked() {
		return false
	}
	share := others.share()
	if share >= widespread {
		j.rests = now + time.Duration(len(j.members))*restAfter
		return false
	}
	if state == memberIn && !j.config.suspects(own, row, share) {
		return false
	}
	m.eject(now, j.config.Base, j.config.Max)
	return true
}

func (c ejectCounts) share() float64 { return float64(c.failed) / float64(max(c.calls, 1)) }

// eject takes the member out; the Ejector's lock is held.
func (m *Member) eject(now, base, most time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Load() == memberIn && now-m.returned > 2*m.lastOut {
		m.times = 0 // it was well for long
	}
	d := base
	for range m.times {
		d = min(2*d, most)
	}
	if d < most {
		m.times++
	}
	m.lastOut = d
	m.row, m.good = 0, 0
	m.windows = [2]ejectCounts{}
	m.until.Store(int64(now + d))
	m.state.Store(memberOut)
}
