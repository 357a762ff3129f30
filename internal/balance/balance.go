// Package balance decides which of many servers a call goes to.
//
// It knows servers as numbers: how many calls are under way at each, how long these take, what the server
// says of itself. It has no connections, starts no goroutines and reads no clock. Times are durations on a
// monotonic clock of the caller's, which may begin anywhere; what takes a time must be given times of the
// same clock.
//
// An [Endpoint] is one server as one client sees it. A [Policy] picks one of them, an [Ejector] takes out
// those that fail, a [Budget] bounds how many calls are made again, and [Subset] says which servers a client
// has at all. Everything is safe for concurrent use.
package balance

import "time"

// Call is what a policy knows of a call.
type Call struct {
	// Key is a hash of the call's key: calls with the same key go to the same server where a policy goes by
	// keys. Others ignore it.
	Key uint64
	// Untimed says that the call's end will not say how long a call takes, as that of a push or a stream.
	// Such a call is no trial of a server of which nothing is known.
	Untimed bool
}

// Policy picks a server for a call.
//
// A Policy keeps what it needs to know of the endpoints in them and in itself, so each list of endpoints has
// a Policy of its own, and an Endpoint is in the lists of one Policy. Pick may be called by any number of
// goroutines at once, and allocates nothing.
type Policy interface {
	// Pick returns the index of the endpoint that a call goes to, or -1 if skip forbids all of them or there
	// is none. The caller calls its Begin then. A nil skip forbids none.
	//
	// Endpoints that are preferred come first: others are picked when skip forbids all preferred ones, or
	// when these have too much to do, if the policy knows that.
	//
	// The slice must not change any more: when servers come or go, the caller makes a new one. skip may be
	// called several times for an index, or not at all.
	Pick(now time.Duration, from []*Endpoint, call Call, skip func(i int) bool) int
}

// mix spreads the bits of x over all 64. It is the finalizer of MurmurHash3 with the constants of David
// Stafford's variant 13, which splitmix64 uses too.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// preferredOnly reports whether any preferred endpoint may be picked. Then the others may not.
func preferredOnly(from []*Endpoint, skip func(int) bool) bool {
	for i, e := range from {
		if e.config.Preferred && (skip == nil || !skip(i)) {
			return true
		}
	}
	return false
}
